"""`Workers`: processes on this machine, each with one row at a time. When a worker dies, only its row fails.

Workers are new interpreters (spawned, on every system).
Each one watches a pipe whose other end only the batch holds. When the batch ends, even by a kill, the pipe closes; the worker then
removes its temporary files and ends. Workers ignore Ctrl-C and a terminal that is closed: the batch stops them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Final

from lipdub import media
from lipdub.batch.lock import row_lock
from lipdub.batch.loop import Event, Finished, Lost, Progress
from lipdub.batch.row import Task, Work, dub_task, work_on
from lipdub.batch.rows import RowResult, one_line
from lipdub.stages import ENDING, cores

STOPPING_S: Final = 10.0
"""A worker that was told to stop has this long to clean up."""
_TELL_S: Final = 0.2
_FOR_THE_BATCH: Final = frozenset(ENDING) - {signal.SIGTERM}
"""Signals that come to all processes of a terminal."""
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """`jobs` processes, started when they are first needed and replaced when they die.

    They share the processor's cores; a row that says how many threads it wants gets those.
    """

    shares_cache = True

    def __init__(self, jobs: int, *, work: Work | None = None) -> None:
        self.jobs = jobs
        self.threads = max(1, cores() // jobs) if jobs > 1 else None
        self._work = work or dub_task
        self._idle: list[_Worker] = []
        self._busy: dict[int, _Worker] = {}

    def free(self) -> int:
        """Workers without a row."""
        return self.jobs - len(self._busy)

    def start(self, task: Task) -> None:
        """Give the task to an idle worker, or to a new one."""
        while self._idle and not self._idle[-1].process.is_alive():  # it died while it had nothing to do
            self._idle.pop().end()
        worker = self._idle.pop() if self._idle else _start_worker(self._work, self.threads)
        if task.row.options.threads is None and self.threads is not None:
            task = replace(task, row=replace(task.row, options=replace(task.row.options, threads=self.threads)))
        self._busy[task.number] = worker
        with suppress(OSError):  # it died just now: `events` will tell
            worker.pipe.send(task)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Progress and answers, and which workers are gone."""
        number_of: dict[Any, int] = {}
        for number, worker in self._busy.items():
            number_of[worker.pipe] = number_of[worker.process.sentinel] = number
        for number in sorted({number_of[handle] for handle in wait(list(number_of), timeout_s)} if number_of else ()):
            yield from self._said(number)

    def stop(self) -> None:
        """End all workers: first with SIGTERM, on which they remove their temporary files, then by a kill."""
        workers = [*self._busy.values(), *self._idle]
        self._busy, self._idle = {}, []
        for worker in workers:
            worker.process.terminate()
        until = time.monotonic() + STOPPING_S
        for worker in workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            worker.end()

    def _said(self, number: int) -> Iterator[Event]:
        worker = self._busy[number]
        try:
            while worker.pipe.poll():
                said = worker.pipe.recv()
                if isinstance(said, RowResult):
                    self._idle.append(self._busy.pop(number))
                    yield Finished(number, said)
                    return
                yield Progress(number, *said)
        except (EOFError, OSError):
            worker.process.join(STOPPING_S)
        if not worker.process.is_alive():
            del self._busy[number]
            worker.end()
            yield Lost(number, _end_of(worker.process.exitcode))


@dataclass(slots=True)
class _Worker:
    """A worker as the batch sees it. lifeline: our end of a pipe that the worker watches; it closes with this process."""

    process: BaseProcess
    pipe: Connection
    lifeline: Connection

    def end(self) -> None:
        """Let nothing of it stay."""
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        self.lifeline.close()


def _start_worker(work: Work, threads: int | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    watched, lifeline = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, watched, work, threads), name="lipdub batch worker", daemon=True)
    with _signals_wait():
        process.start()
    theirs.close()
    watched.close()
    return _Worker(process, ours, lifeline)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """What the batch alone answers waits until the block has ended, and in a process that the block starts: there it would print a
    traceback."""
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # when started later, it would let the signals through
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_BATCH)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _end_of(code: int | None) -> str:
    """How a worker ended, for the user."""
    if code is None or code == 0:
        return "its worker process ended without an answer; run again"
    if code > 0:
        return f"its worker process ended with code {code}; run again, and report it if that repeats"
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    known = {
        "SIGKILL": "was killed (SIGKILL), often because memory ran out; run again with fewer --jobs",
        "SIGTERM": "was stopped from outside (SIGTERM); run again",
    }
    return f"its worker process {known.get(name, f'crashed ({name}); run again, and report it if that repeats')}"


def _serve(pipe: Connection, lifeline: Connection, work: Work, threads: int | None) -> None:
    """What a worker does: rows come through `pipe`, progress and results go back, until the batch is gone or says stop."""
    # The batch does not wait for a daemonic process at its end; but such a process could start no others, and libraries do.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        raise KeyboardInterrupt

    for number in _FOR_THE_BATCH:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_BATCH)
    _hush()
    for name in _THREAD_VARIABLES if threads is not None else ():
        os.environ.setdefault(name, str(threads))
    threading.Thread(target=_watch, args=(lifeline,), name="lifeline", daemon=True).start()
    try:
        while not stopping.is_set():
            task = pipe.recv()
            with row_lock(task.lock, task.number):
                result = attempt(task, work, Teller(lambda *said: _send(pipe, said), stopping.is_set))
            if stopping.is_set():
                break
            pipe.send(result)
    except (EOFError, OSError, KeyboardInterrupt):
        pass
    media.let_go_of_copies()
    # Not sys.exit: it would wait for threads of libraries that never end.
    os._exit(0 if not stopping.is_set() else 128 + signal.SIGTERM)


def attempt(task: Task, work: Work, tell: Callable[[str, int, int | None], None]) -> RowResult:
    """The result of a task. An unexpected error fails the row, its traceback is kept, and the batch goes on."""
    started = time.perf_counter()
    try:
        return work_on(task, work, tell)
    except MemoryError:
        why, trace, transient = "there is not enough memory for it; run again with fewer --jobs", "", True
    except Exception as error:
        text = one_line(error)[:300]
        why = f"unexpected {type(error).__name__}: {text} (a bug in lipdub: please report it, with 'trace' of the state file)"
        trace, transient = traceback.format_exc()[-4000:], False
    return RowResult(task.row, None, why, time.perf_counter() - started, transient, trace)


class Teller:
    """Passes progress on: the first of each stage, then at most five a second."""

    def __init__(self, send: Callable[[str, int, int | None], None], stopping: Callable[[], bool] = lambda: False) -> None:
        self._send = send
        self._stopping = stopping
        self._stage = ""
        self._at = 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """As `stages.OnProgress`."""
        if self._stopping():  # a library has caught the KeyboardInterrupt
            raise KeyboardInterrupt
        now = time.monotonic()
        if stage != self._stage or now - self._at >= _TELL_S:
            self._stage, self._at = stage, now
            self._send(stage, done, total)


def _send(pipe: Connection, said: object) -> None:
    with suppress(OSError):  # the batch is gone; `_watch` sees to that
        pipe.send(said)


def _watch(lifeline: Connection) -> None:
    """When the batch is gone: SIGTERM to this process, so that temporary files are removed, then the end."""
    with suppress(EOFError, OSError):
        lifeline.recv()
    with suppress(OSError):
        signal.raise_signal(signal.SIGTERM) if sys.platform == "win32" else os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3.0)
    os._exit(128 + signal.SIGTERM)


def _hush() -> None:
    """Send standard output and error to nowhere: libraries would write into the batch's table. Errors go back as results."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        with suppress(OSError):
            os.dup2(null, number)
    os.close(null)
