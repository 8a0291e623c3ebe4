"""Records as JSON, and the report of a dub as a JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lipdub import media
from lipdub.atomic import write_whole
from lipdub.errors import OutputRefused
from lipdub.records import DubReport


def check_report(path: Path, *, inputs: Sequence[Path], output: Path | None, force: bool) -> None:
    """Raise OutputRefused, saying what to do next, unless a report can be written at `path` and nothing would be lost: neither one of
    the `inputs` of the dub nor its `output` (None where it is not known) may lie there."""
    media.check_folder(path)
    if output is not None and _same_file(path, output):
        raise OutputRefused(f"cannot write the report '{path}': it is the output; choose another name")
    for other in inputs:
        if _same_file(path, other):
            raise OutputRefused(f"cannot write the report '{path}': it is an input; choose another name")
    if os.path.lexists(path) and not force:
        raise OutputRefused(f"report '{path}' exists already; add --force to replace it, or choose another name")


def _same_file(one: Path, other: Path) -> bool:
    """Whether both paths lead to one file, be it there or not, over links and detours."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def content_of(report: DubReport) -> dict[str, Any]:
    """What stands in the JSON file of a report: its fields, with each option in the place of all of them."""
    facts = asdict(report)
    return {**facts.pop("options"), **facts, "nothing_dubbed": report.nothing_dubbed, "frames_per_s": round(report.frames_per_s, 2)}


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays become lists, NaN and infinity null, floats are cut to six digits."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def write_report(report: DubReport, path: Path) -> None:
    """Write the report as JSON to `path`, whole or not at all. Raises WriteFailed."""
    write_content(content_of(report), path)


def write_content(content: Mapping[str, Any], path: Path) -> None:
    """Write what `content_of` gave to `path`, whole or not at all. Raises WriteFailed."""
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text, failed=f"'{content['output']}' was written, but not the report")
