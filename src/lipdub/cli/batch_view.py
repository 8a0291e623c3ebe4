"""What ``lipdub batch`` shows: a live table on a terminal, one line for each event elsewhere, a summary at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lipdub.cli.console import errors, new_table, print_line, results, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lipdub.batch import RowResult, Step

MOST_ROWS = 40
"""Longer summaries name the rows that failed, and no others."""


@dataclass(slots=True)
class _Running:
    """A row under way, as the table shows it."""

    step: Step
    since: float
    stage: str = "starting"
    done: int = 0
    total: int | None = None


class BatchView:
    """Watches a batch (`lipdub.batch.Watch`) and shows it on standard error; quiet: only rows that failed, and
    warnings."""

    def __init__(self, plan: Sequence[Step], *, quiet: bool) -> None:
        self.plan = plan
        self.results: list[tuple[Step, RowResult]] = []
        self._quiet = quiet
        self._live = not quiet and errors().is_terminal
        self._running: dict[str, _Running] = {}
        self._to_do = sum(step.action in ("dub", "redo", "report") for step in plan)
        self._before = sum(step.action == "keep" for step in plan)
        self._skipped = sum(step.action == "skip" for step in plan)
        self._started = time.monotonic()

    def started(self, step: Step) -> None:
        """A row was handed to a worker."""
        self._running[step.key] = _Running(step, time.monotonic())
        if not self._quiet and not self._live:
            say(f"line {step.row.line}: {step.row.output}{f' ({step.why})' if step.why else ''}")

    def progress(self, step: Step, stage: str, done: int, total: int | None) -> None:
        """A row has come further."""
        row = self._running.get(step.key)
        if row is not None:
            row.stage, row.done, row.total = stage, done, total

    def finished(self, step: Step, result: RowResult, again: bool) -> None:
        """A row has ended."""
        self._running.pop(step.key, None)
        if again:
            if not self._quiet:
                say(f"line {step.row.line} failed, will be tried again: {result.why}")
            return
        self.results.append((step, result))
        for warning in () if result.report is None else result.report.warnings:
            say(f"line {step.row.line}: warning: {warning.line}")
        if not result.ok:
            say(f"line {step.row.line} failed: {result.why}")
        elif not self._quiet and not self._live:
            say(f"line {step.row.line}: {what_became(result)} ({len(self.results)} of {self._to_do}, {result.wall_s:.1f} s)")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The live table, where there is a terminal to show it on."""
        if not self._live:
            yield
            return
        from rich.live import Live

        with Live(get_renderable=self._table, console=errors(), refresh_per_second=4, transient=True):
            yield

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), expand=False)
        table.add_column("line", justify="right", style="dim")
        table.add_column("output", overflow="ellipsis", no_wrap=True, max_width=48)
        table.add_column("stage")
        table.add_column("")
        table.add_column("", justify="right")
        table.add_column("for", justify="right", style="dim")
        running = sorted(self._running.values(), key=lambda row: row.step.row.line)
        rows_fit = max(1, errors().size.height - 5)
        for row in running[:rows_fit]:
            share = row.done / row.total if row.total else None
            bar = ProgressBar(total=1.0, completed=share or 0.0, width=20)
            percent = "" if share is None else f"{share:.0%}"
            for_s = clock_s(time.monotonic() - row.since)
            table.add_row(str(row.step.row.line), Text(name_of(row.step)), row.stage, bar, percent, for_s)
        more = [Text(f"... and {len(running) - rows_fit} more")] if len(running) > rows_fit else []
        return Group(table, *more, Text(self._counts(), "bold"))

    def _counts(self) -> str:
        failed, left = sum(not result.ok for _, result in self.results), self.left_s()
        counts = [
            f"{len(self.results) - failed + self._before} of {len(self.plan)} done",
            f"{failed} failed" if failed else "",
            f"{self._skipped} skipped" if self._skipped else "",
            f"{len(self._running)} running",
            f"{self.left_rows() - len(self._running)} waiting",
            f"{clock_s(time.monotonic() - self._started)} gone",
            f"about {clock_s(left)} left" if left is not None else "",
        ]
        return ", ".join(filter(None, counts))

    def left_rows(self) -> int:
        """Rows that have no result yet."""
        return self._to_do - len(self.results)

    def left_s(self) -> float | None:
        """Seconds that are left if the rows to come are like those that have ended in this run."""
        ended = len(self.results)
        if not ended:
            return None
        gone_s = time.monotonic() - self._started
        each_s = gone_s / (ended + 0.5 * len(self._running))
        return max(0.0, each_s * (self._to_do - ended - 0.5 * len(self._running)))

    def summarise(self) -> None:
        """One table on standard output: what became of each row, or of those that failed where there are many."""
        from rich.text import Text

        if self._quiet:
            return
        good = sum(result.ok for _, result in self.results)
        title = f"{good + self._before} of {len(self.plan)} rows dubbed"
        title += f", {self._before} of them before" if self._before else ""
        title += f", {self._skipped} skipped, their outputs were there" if self._skipped else ""
        nothing = sum(result.report is not None and result.report.nothing_dubbed for _, result in self.results)
        title += f", nothing dubbed in {nothing} of them" if nothing else ""
        title += f", {len(self.results) - good} failed" if len(self.results) > good else ""
        shown = [(step, result) for step, result in self.results if len(self.results) <= MOST_ROWS or not result.ok]
        if not shown:
            print_line(title)
            return
        table = new_table(title, ">line", "output", ">frames", ">seconds", "result")
        for step, result in sorted(shown, key=lambda item: item[0].row.line):
            frames = "-" if result.report is None else str(result.report.frames)
            what = Text(what_became(result), "" if result.ok else "red")
            table.add_row(str(step.row.line), Text(str(step.row.output)), frames, f"{result.wall_s:.1f}", what)
        results().print(table)


def what_became(result: RowResult) -> str:
    """What became of a row, in a few words."""
    if not result.ok:
        return f"failed: {result.why}"
    if result.report is None:
        return "dubbed; found finished" if result.recovered else "dubbed"
    if result.report.nothing_dubbed:
        return "nothing dubbed; see its warning"
    passed = result.report.passed_through
    return f"dubbed, {passed} frames passed through" if passed else "dubbed"


def name_of(step: Step) -> str:
    """The name of the row's output, without its folders."""
    return str(step.row.output).replace("\\", "/").rpartition("/")[2]


def clock_s(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
