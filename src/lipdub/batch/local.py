"""`Workers`: processes on this machine, one row each at a time; a worker that dies takes its row with it and nothing else.

Workers are fresh interpreters (spawned, on every system). They do not outlive the batch: when the process that started them is gone,
however it went, a pipe that only it held open ends, and they clean up and leave. Ctrl-C reaches them through it alone.
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

from lipdub.batch.lock import row_lock
from lipdub.batch.loop import Event, Finished, Lost, Progress
from lipdub.batch.row import Task, Work, dub_task, work_on
from lipdub.batch.rows import RowResult, one_line
from lipdub.stages import cores

STOPPING_S: Final = 10.0
"""A worker that was told to stop has this long to clean up."""
_TELL_S: Final = 0.2
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """`jobs` processes, started when they are first needed and replaced when they die. Threads are shared out among them, but for rows
    that say how many they want."""

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
        worker = self._idle_worker() or _start_worker(self._work, self.threads)
        if task.row.options.threads is None and self.threads is not None:
            task = replace(task, row=replace(task.row, options=replace(task.row.options, threads=self.threads)))
        self._busy[task.number] = worker
        with suppress(OSError):  # it died just now: `events` will tell
            worker.pipe.send(task)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Progress and answers, and which workers are gone."""
        by_handle: dict[Any, int] = {}
        for number, worker in self._busy.items():
            by_handle[worker.pipe] = by_handle[worker.process.sentinel] = number
        ready = {by_handle[handle] for handle in wait(list(by_handle), timeout_s)} if by_handle else set()
        for number in sorted(ready):
            yield from self._said(number)

    def stop(self) -> None:
        """End all workers: politely, so that they remove their temporary files; after a while, not so politely."""
        workers = [*self._busy.values(), *self._idle]
        self._busy, self._idle = {}, []
        for worker in workers:
            worker.process.terminate()
        until = time.monotonic() + STOPPING_S
        for worker in workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            worker.end()

    def _idle_worker(self) -> _Worker | None:
        """One that is still there; a worker that died while it had nothing to do has harmed no row."""
        while self._idle:
            worker = self._idle.pop()
            if worker.process.is_alive():
                return worker
            worker.end()
        return None

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
    """Ctrl-C waits until the block has ended: a child that it meets while it starts would print a traceback. Inherited by the child."""
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # when started later, it would let the signals through
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
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
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        return "its worker process was killed (SIGKILL), often because memory ran out; run again with fewer --jobs"
    if name == "SIGTERM":
        return "its worker process was stopped from outside (SIGTERM); run again"
    return f"its worker process crashed ({name}); run again, and report it if that repeats"


# ------------------------------------------------------------------------------------------------- inside the worker


def _serve(pipe: Connection, lifeline: Connection, work: Work, threads: int | None) -> None:
    """A worker's life: rows come through `pipe`, progress and results go back, until the batch is gone or says stop."""
    # Daemonic for the batch, so that nothing waits for it; but a library may well start processes of its own.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
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
    # Not sys.exit: threads of libraries that never end must not hold the process.
    os._exit(0 if not stopping.is_set() else 128 + signal.SIGTERM)


def attempt(task: Task, work: Work, tell: Callable[[str, int, int | None], None]) -> RowResult:
    """The result of a task; a bug becomes the row's failure, with its traceback, and the batch goes on."""
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
    """Passes progress on, not too often: the first of a stage, then a few a second."""

    def __init__(self, send: Callable[[str, int, int | None], None], stopping: Callable[[], bool] = lambda: False) -> None:
        self._send = send
        self._stopping = stopping
        self._stage = ""
        self._at = 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """As `pipeline.OnProgress`."""
        if self._stopping():  # a library has made something else of the interruption
            raise KeyboardInterrupt
        now = time.monotonic()
        if stage != self._stage or now - self._at >= _TELL_S:
            self._stage, self._at = stage, now
            self._send(stage, done, total)


def _send(pipe: Connection, said: object) -> None:
    with suppress(OSError):  # the batch is gone; `_watch` sees to that
        pipe.send(said)


def _watch(lifeline: Connection) -> None:
    """Leave when the batch is gone: politely first, so that temporary files go, too."""
    with suppress(EOFError, OSError):
        lifeline.recv()
    with suppress(OSError):
        signal.raise_signal(signal.SIGTERM) if sys.platform == "win32" else os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3.0)
    os._exit(128 + signal.SIGTERM)


def _hush() -> None:
    """What libraries write to the terminal would tear the batch's table; errors go back as results."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        with suppress(OSError):
            os.dup2(null, number)
    os.close(null)
