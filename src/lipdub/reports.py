"""The report of a dub as a JSON file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from lipdub import media
from lipdub.errors import EncodingFailed, OutputRefused
from lipdub.records import DubReport


def check_report(path: Path, *, force: bool) -> None:
    """Raise OutputRefused, saying what to do next, unless a report can be written at `path`."""
    media.check_folder(path)
    if os.path.lexists(path) and not force:
        raise OutputRefused(f"report '{path}' exists already; add --force to replace it, or choose another name")


def write_report(report: DubReport, path: Path) -> None:
    """Write the report as JSON to `path`, whole or not at all. Raises EncodingFailed."""
    content = {**asdict(report), "frames_per_s": round(report.frames_per_s, 2)}
    try:
        with media.part_file(path) as part:
            part.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            os.replace(part, path)
    except OSError as error:
        raise EncodingFailed(
            f"'{report.output}' was written, but not the report '{path}': {error.strerror or error}; check the free space and the folder"
        ) from error
