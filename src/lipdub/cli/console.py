"""What commands print with: one console for results, one for errors, progress that keeps quiet when nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTHING_DUBBED_CODE: Final = 3
"""Exit code where an output was written, but nothing was dubbed in it."""
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


def print_line(text: str) -> None:
    """One line on standard output, as it is."""
    results().print(text, markup=False, soft_wrap=True)


def new_table(title: str, *columns: str) -> Table:
    """A table with its title on the left. columns: their headings, ``>`` before one for numbers; none for a table without headings."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=bool(columns))
    for name in columns:
        number = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def paragraphs(text: str) -> str:
    """`text` for the end of ``--help``, which keeps line breaks only between paragraphs."""
    return text.rstrip().replace("\n", "\n\n")


@contextmanager
def stoppable(message: str = "stopped; nothing was written") -> Iterator[None]:
    """Ctrl-C in the block says `message` and leaves with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        say(message)
        raise typer.Exit(130) from None


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar with time left for (stage, done, total) calls; shows nothing when standard error is no terminal."""
    from rich import progress as parts

    tasks: dict[str, parts.TaskID] = {}
    with parts.Progress(
        parts.TextColumn("{task.description:<16}"), parts.BarColumn(), parts.MofNCompleteColumn(), parts.TimeElapsedColumn(),
        parts.TextColumn("left"), parts.TimeRemainingColumn(), console=errors(), disable=quiet or not errors().is_terminal,
    ) as bar:  # fmt: skip

        def tell(stage: str, done: int, total: int | None) -> None:
            if interrupted:
                raise KeyboardInterrupt
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield tell


def counted(tell: Callable[[str, int, int | None], None], stage: str, total: int) -> Callable[..., None]:
    """A function that tells the progress of `stage`: one more of `total` each time it is called, with whatever arguments."""
    done = count(1)
    return lambda *_: tell(stage, next(done), total)
