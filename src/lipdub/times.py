"""Times as people write them: ``0:05``, ``1:02:03.5``, ``75``; and ranges of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

_CUES = re.compile(r"(.+\.(?:srt|vtt))(?:#(.+))?", re.IGNORECASE)
_TIME = re.compile(r"(?:(?:(\d{1,3}):)?(\d{1,4}):)?(\d{1,6}(?:\.\d{1,6})?)")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """From one time to a later one, seconds; `end_s` is infinite where it is open. Raises ``ValueError``: it would be empty."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(f"a range ends after it begins, got {self.start_s:g} s to {self.end_s:g} s")


def seconds_of(text: str) -> float:
    """``[[hours:]minutes:]seconds`` in seconds. Raises ``ValueError``: it is no time."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"'{text.strip()}' is no time; write seconds, or minutes and seconds, as in 75.5 or 1:15.5")
    hours, minutes, seconds = found.groups(default="0")
    return 3600.0 * int(hours) + 60.0 * int(minutes) + float(seconds)


def parsed_ranges(text: str) -> tuple[Range, ...]:
    """``0:05-0:12,1:00-``: ranges in order, those that touch as one; an end that is left out is open. Raises ``ValueError``."""
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not dash or not (first.strip() or last.strip()):
            raise ValueError(f"'{part.strip()}' is no range; write ranges as in 0:05-0:12,1:00-")
        found.append(Range(seconds_of(first) if first.strip() else 0.0, seconds_of(last) if last.strip() else math.inf))
    return joined(found)


def written(ranges: Iterable[Range], *, earlier_s: float = 0.0) -> str:
    """Ranges as `parsed_ranges` reads them, so much earlier; what would begin before 0 is cut. "" where nothing is left."""
    moved = [(max(0.0, one.start_s - earlier_s), one.end_s - earlier_s) for one in ranges]
    return ",".join(f"{start:.6f}-{'' if end == math.inf else f'{end:.6f}'}" for start, end in moved if round(end, 6) > round(start, 6))


def joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same times as ranges in order that neither touch nor overlap."""
    found: list[Range] = []
    for one in sorted(ranges):
        if found and one.start_s <= found[-1].end_s:
            found[-1] = Range(found[-1].start_s, max(found[-1].end_s, one.end_s))
        else:
            found.append(one)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Cues:
    """An .srt or .vtt file, and the speaker whose cues of it are meant, None for all cues."""

    path: str
    speaker: str | None = None

    @classmethod
    def of(cls, text: str) -> Cues | None:
        """``talk.srt`` or ``talk.vtt#Anna``; None: no such file is named."""
        found = _CUES.fullmatch(text.strip())
        return None if found is None else cls(found[1], found[2])
