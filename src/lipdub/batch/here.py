"""A pool without workers: rows are dubbed in this process, one after the other. For programs that want no others started."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from lipdub.batch.loop import Event, Finished, Progress
from lipdub.batch.row import Task, Work, dub_task, work_on


class Here:
    """One row at a time, in this process. A bug in a row ends the batch; `Workers` keeps it to its row."""

    shares_cache = True

    def __init__(self, work: Work | None = None) -> None:
        self._work = work or dub_task
        self._task: Task | None = None

    def free(self) -> int:
        """1 while nothing was started."""
        return 0 if self._task is not None else 1

    def start(self, task: Task) -> None:
        """Keep the task until `events` is asked for."""
        self._task = task

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Do the task; what happened meanwhile is told after it."""
        task = self._task
        if task is None:
            return
        told: deque[Event] = deque()
        result = work_on(task, self._work, lambda stage, done, total: told.append(Progress(task.number, stage, done, total)))
        self._task = None
        yield from told
        yield Finished(task.number, result)

    def stop(self) -> None:
        """Nothing goes on by itself."""
        self._task = None
