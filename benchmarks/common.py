"""What the measures share: which videos, processes to work on them, tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from lipdub.evaluate.clips import SOUND_HZ
from lipdub.evaluate.openings import Openings, openings_of
from lipdub.evaluate.watch import tracked
from lipdub.stages import cores

__all__ = ["CONSOLE", "SOUND_HZ", "measure", "short", "spread", "table", "write_json"]

T = TypeVar("T")
Task = TypeVar("Task")
SMALLEST_REFERENCE_PX = 16
"""Side of reference crops that nobody looks at."""
CONSOLE = Console(highlight=False, width=None if Console().is_terminal else 160)


def measure(video: Path, cache: Path | None = None) -> Openings:
    """Openings of the person in each frame of `video`, as the detector sees them; the analysis is kept in the folder `cache`."""
    track = tracked(video, size=SMALLEST_REFERENCE_PX, cache=cache)
    track.references.close()
    return openings_of(track)


def short(clip: Path) -> str:
    """A clip's name as tables show it."""
    return clip.stem.split("__", 1)[-1].replace("_withaudio", "")[:34]


def spread(work: Callable[[Task], T], tasks: Sequence[Task], *, jobs: int, label: Callable[[Task], str]) -> list[T]:
    """The answers to `tasks` in order, worked on by `jobs` new processes; each finished one is named on standard error."""
    errors = Console(stderr=True, highlight=False)
    answers: dict[int, T] = {}
    with ProcessPoolExecutor(min(jobs, max(1, len(tasks))), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(work, task): number for number, task in enumerate(tasks)}
        for future in as_completed(waiting):
            number = waiting[future]
            answers[number] = future.result()
            errors.print(f"{len(answers)}/{len(tasks)} {label(tasks[number])}")
    return [answers[number] for number in range(len(tasks))]


def threads_per_job(jobs: int) -> int:
    """CPU threads for each of `jobs` processes that run beside each other."""
    return max(1, cores() // max(1, jobs))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: text to the left, numbers to the right with three decimals."""
    shown = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    CONSOLE.print(shown)


def write_json(file: Path | None, value: object) -> None:
    """Write `value` to `file`, where one is given; NaN becomes null."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
