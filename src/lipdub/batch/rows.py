"""Records of a batch: what a row asks for, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lipdub.options import DubOptions
from lipdub.records import DubReport

REQUIRED: Final = ("video", "speech", "output")
"""Columns that a manifest must have, and cells that no row may leave empty."""

Location = Path | str
"""Where a file is: a path, or a URL as text (``s3://bucket/talk.mp4``), which ``storage`` fetches and puts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One dub: `line` of the manifest (the first one is 1), what to read, what to write. `report`: JSON file, None for none."""

    line: int
    video: Location
    speech: Location
    output: Location
    options: DubOptions = DubOptions()
    report: Location | None = None

    @property
    def written(self) -> tuple[Location, ...]:
        """The output, then the report if there is one."""
        return (self.output,) if self.report is None else (self.output, self.report)


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of a row.

    report: of the dub, None where there was none. why: one line, empty where all went well. wall_s: seconds that the row took.
    transient: another try may succeed (a full disk, a network, a worker that was killed). trace: of a bug, empty where there was none.
    recovered: an earlier attempt, which was killed, has written the output.
    """

    row: Row
    report: DubReport | None
    why: str
    wall_s: float
    transient: bool = False
    trace: str = ""
    recovered: bool = False

    @property
    def ok(self) -> bool:
        """Whether all that the row asks for was written."""
        return not self.why


def one_line(error: BaseException) -> str:
    """The text of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
