"""The run: hands steps to a pool of workers, keeps the journal, tries failed rows again, and settles what an interruption leaves.

In the journal a row is pending, then running (on the disk before the work starts), then done, nothing-dubbed or failed.
Where the workers share a cache, a row waits until another row with the same video has found its faces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from lipdub.batch import storage
from lipdub.batch.fingerprint import place_of
from lipdub.batch.plan import Step, entry_of, first_entries
from lipdub.batch.row import FETCHING, Task, found_finished, write_row_report
from lipdub.batch.rows import Location, RowResult, one_line
from lipdub.batch.state import INTERRUPTED, RECOVERED, Entry, State
from lipdub.errors import LipdubError
from lipdub.records import NOTHING_DUBBED
from lipdub.reports import content_of

BEFORE_DRAWING = (FETCHING, "finding faces")
"""Stages after which the analysis of the video is in the cache."""
_EVENTS_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """A row has come further. As `stages.OnProgress` says it."""

    number: int
    stage: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker has answered."""

    number: int
    result: RowResult


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker that was at a row is gone. why: what is known of its end."""

    number: int
    why: str


Event = Progress | Finished | Lost


class Pool(Protocol):
    """Workers, wherever they are."""

    shares_cache: bool
    """Whether all workers look into the same analysis cache."""

    def free(self) -> int:
        """How many more tasks may be started now."""

    def start(self, task: Task) -> None:
        """Hand a task to a worker."""

    def events(self, timeout_s: float) -> Iterable[Event]:
        """What has happened since; waits up to `timeout_s` if nothing has."""

    def stop(self) -> None:
        """End all work, as after Ctrl-C, and wait until no worker is left. May be called twice."""


class Watch(Protocol):
    """Whoever looks on."""

    def started(self, step: Step) -> None:
        """A row was handed to a worker."""

    def progress(self, step: Step, stage: str, done: int, total: int | None) -> None:
        """A row has come further."""

    def finished(self, step: Step, result: RowResult, again: bool) -> None:
        """A row has ended. again: it has failed and will be tried again."""


def run(
    plan: Sequence[Step], pool: Pool, state: State, watch: Watch, *, retry: int = 0, cache: bool = True, lock: Path | None = None
) -> tuple[RowResult, ...]:
    """Carry out `plan`; the results of the rows that were worked on, in the order in which they ended.

    A row that fails is passed over, and its reason kept.
    A row that may do better is tried up to `retry` more times, after the others.
    The pool is stopped at the end, also after an error or Ctrl-C.
    After an interruption, a row that was running is pending again, or done if its output was just finished.

    Raises WriteFailed: the state cannot be written.
    """
    batch = _Run(plan, pool, state, retry, cache, lock, watch)
    # What a killed batch has left lies beside the outputs that it was at.
    storage.sweep(place_of(name, state.folder) for entry in state.was_running for name in entry.names)
    state.begin(first_entries(plan, state))
    try:
        batch.write_missing_reports()
        batch.work()
    finally:
        pool.stop()
        batch.settle()
        state.close()
    return tuple(batch.results)


@dataclass(slots=True)
class _Run:
    """One run under way. Numbers are places in the plan."""

    plan: Sequence[Step]
    pool: Pool
    state: State
    retry: int
    cache: bool
    lock: Path | None
    watch: Watch
    results: list[RowResult] = field(default_factory=list)
    tries: dict[int, int] = field(default_factory=dict)
    running: dict[int, Task] = field(default_factory=dict)
    analysing: dict[Location, int] = field(default_factory=dict)

    def write_missing_reports(self) -> None:
        """Reports of rows that were dubbed before, whose file is not there."""
        for step in self.plan:
            content = self.state.entries[step.key].done if step.action == "report" else None
            if step.row.report is not None and content is not None:
                why = ""
                try:
                    write_row_report(content, step.row.report)
                except LipdubError as error:
                    why = one_line(error)
                self._end(step, RowResult(step.row, None, why, 0.0, recovered=not why), content)

    def work(self) -> None:
        """Until every step has its result."""
        waiting = deque(number for number, step in enumerate(self.plan) if step.to_do)
        while waiting or self.running:
            while self.pool.free() > 0 and (number := self._next(waiting)) is not None:
                self._start(number)
            for event in self.pool.events(_EVENTS_S):
                self._take(event, waiting)

    def settle(self) -> None:
        """Rows that were running when the run was stopped: done if they just made it, pending otherwise. Temporary files go."""
        for number, task in self.running.items():
            step, result = self.plan[number], found_finished(task)
            if self.state.entries[step.key].state != "running":  # stopped between its line in the journal and ours here
                continue
            if result is not None and result.ok:
                self._end(step, result)
            else:
                self.state.record(entry_of(step, self.state, "pending", why=INTERRUPTED))
        # Every row that was started: a cluster may have lost and replaced a worker without a word.
        storage.sweep(place for number in self.tries for place in self.plan[number].row.written)

    def _next(self, waiting: deque[int]) -> int | None:
        """The first row that may start now, taken out of those that wait."""
        for number in waiting:
            if not (self.cache and self.pool.shares_cache and self.plan[number].row.video in self.analysing):
                waiting.remove(number)
                return number
        return None

    def _start(self, number: int) -> None:
        step = self.plan[number]
        self.tries[number] = self.tries.get(number, 0) + 1
        task = Task(number, step.row, step.before, self.cache, self.lock)
        self.state.record(replace(entry_of(step, self.state, "running"), attempt=self.tries[number]))
        self.running[number] = task
        self.analysing.setdefault(step.row.video, number)
        self.pool.start(task)
        self.watch.started(step)

    def _take(self, event: Event, waiting: deque[int]) -> None:
        number, step = event.number, self.plan[event.number]
        if number not in self.running:
            return
        if isinstance(event, Progress):
            if event.stage not in BEFORE_DRAWING:
                self._analysed(number)
            self.watch.progress(step, event.stage, event.done, event.total)
            return
        if isinstance(event, Lost):
            result = found_finished(self.running[number]) or RowResult(step.row, None, event.why, 0.0, transient=True)
        else:
            result = event.result
        self._analysed(number)
        if result.transient and not result.ok and self.tries[number] <= self.retry:
            self.state.record(replace(self._entry(step, result), state="pending"))
            waiting.append(number)
            self.watch.finished(step, result, True)
        else:
            self._end(step, result)
        del self.running[number]

    def _analysed(self, number: int) -> None:
        video = self.plan[number].row.video
        if self.analysing.get(video) == number:
            del self.analysing[video]

    def _end(self, step: Step, result: RowResult, content: dict[str, object] | None = None) -> None:
        entry = self._entry(step, result)
        if content is not None:
            entry = replace(entry, done=content, state=NOTHING_DUBBED if result.ok and content.get("nothing_dubbed") else entry.state)
        self.state.record(entry)
        self.results.append(result)
        self.watch.finished(step, result, False)

    def _entry(self, step: Step, result: RowResult) -> Entry:
        """What became of a row. What it wrote is noted for failures, too: an output whose report could not be written is this batch's."""
        nothing = result.report is not None and result.report.nothing_dubbed
        entry = entry_of(step, self.state, ("nothing-dubbed" if nothing else "done") if result.ok else "failed", why=result.why)
        now = self.state.found_now(entry)
        changed = {name: found for name, found in now.items() if found is not None and (result.ok or found != entry.before.get(name))}
        done = None if result.report is None else content_of(result.report)
        why = result.why or (RECOVERED if result.recovered and done is None and step.to_do else "")
        return replace(entry, files=changed, why=why, wall_s=round(result.wall_s, 3), done=done, trace=result.trace)
