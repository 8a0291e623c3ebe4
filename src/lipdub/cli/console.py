"""What commands print with: one console for results, one for errors, progress that keeps quiet when nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


interrupted: list[int] = []
"""Signals that came. A library that is interrupted while it loads or calls back makes another error of it, or none."""


@lru_cache(maxsize=1)
def results() -> Console:
    """Standard output."""
    from rich.console import Console

    return Console(highlight=False)


@lru_cache(maxsize=1)
def errors() -> Console:
    """Standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line on standard error, whatever a path or a library's message holds; soft wrapping keeps it one line for scripts, too."""
    errors().print(" ".join(line.split()), markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar with time left for (stage, done, total) calls; shows nothing when standard error is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = errors()
    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:

        def tell(stage: str, done: int, total: int | None) -> None:
            if interrupted:
                raise KeyboardInterrupt
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield tell
