"""Stages that overlap: plain iterators that run ahead in threads of their own, with a short queue to whoever takes from them.

    with Stages() as stages:
        frames = stages.ahead(decode())
        drawn = stages.ahead(draw(frame) for frame in frames)
        for picture in drawn: ...

NumPy, OpenCV, ONNX Runtime and FFmpeg let other threads run while they work, so the stages really overlap. However the block ends,
all threads have ended then, and every iterator that was handed over is closed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end, and that it cleans up at: Ctrl-C, a polite kill, and a terminal that was closed."""

OnProgress = Callable[[str, int, int | None], None]
"""Told (stage, frames done, frames in all or None) as work goes on."""

T = TypeVar("T")
U = TypeVar("U")


class _Stopped(BaseException):
    """Ends the thread of a stage from within; like GeneratorExit it is no error, and nothing may catch it on the way."""


@dataclass(slots=True)
class _Belt(Generic[T]):
    """What one stage has made and the next one has not taken yet."""

    depth: int
    items: deque[T] = field(default_factory=deque)
    ended: bool = False
    error: BaseException | None = None


class Stages:
    """A group of threads that live as long as the ``with`` block. See the module's text."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._turn:
            self._stopped = True
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()

    def ahead(self, items: Iterator[T], *, depth: int = 1) -> Generator[T, None, None]:
        """The same items, made by a thread that is up to `depth` of them ahead. What making one raises is raised in its place."""
        belt: _Belt[T] = _Belt(depth)
        thread = threading.Thread(target=self._fill, args=(items, belt), name="lipdub-stage", daemon=True)
        self._threads.append(thread)
        thread.start()
        return self._taken(belt)

    def _fill(self, items: Iterator[T], belt: _Belt[T]) -> None:
        try:
            for item in items:
                with self._turn:
                    self._wait(lambda: len(belt.items) < belt.depth)
                    belt.items.append(item)
                    self._turn.notify_all()
        except _Stopped:
            pass
        except BaseException as error:
            belt.error = error
        finally:
            if isinstance(items, Generator):
                with suppress(Exception):
                    items.close()
            with self._turn:
                belt.ended = True
                self._turn.notify_all()

    def _taken(self, belt: _Belt[T]) -> Generator[T, None, None]:
        while True:
            with self._turn:
                self._wait(lambda: bool(belt.items) or belt.ended)
                if not belt.items:
                    break
                item = belt.items.popleft()
                self._turn.notify_all()
            yield item
            del item  # a chunk must not be held while the next one is waited for
        if belt.error is not None:
            raise belt.error

    def _wait(self, until: Callable[[], bool]) -> None:
        """Wait for a turn of events. With a timeout, so that Ctrl-C gets through on every system. Raises _Stopped."""
        while not self._stopped and not until():
            self._turn.wait(0.5)
        if self._stopped:
            raise _Stopped


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A signal of ``ENDING`` that comes within the block is heard when the block has ended: for what may not be broken off half-way, such
    as the start of a process that nobody would know."""
    kept: dict[int, Any] = {}
    came: list[tuple[int, FrameType | None]] = []
    try:
        if threading.current_thread() is threading.main_thread():  # no other thread hears signals, or may say who does
            for number in ENDING:
                if callable(signal.getsignal(number)):
                    kept[number] = signal.getsignal(number)
                    signal.signal(number, lambda *signalled: came.append(signalled))
        yield
    finally:
        for number, heard in kept.items():
            signal.signal(number, heard)
        for number, frame in came[:1]:
            kept[number](number, frame)


def spread(work: Callable[[T], U], items: Iterator[T], *, workers: int) -> Generator[U, None, None]:
    """`work` done on each of `items` by `workers` threads, the answers in order; at most `workers` items are held."""
    if workers <= 1:
        for item in items:
            yield work(item)
        return
    waiting: deque[Future[U]] = deque()
    failed: Exception | None = None
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lipdub-stage")
    try:
        while failed is None:
            try:
                waiting.append(pool.submit(work, next(items)))
            except StopIteration:
                break
            except Exception as error:  # raised in its place: after the items before it
                failed = error
            if len(waiting) >= workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failed is not None:
            raise failed
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def counted(tell: OnProgress, stage: str, total: int | None) -> Callable[[int], None]:
    """Turns "so many frames more" into "so many of these" for `tell`; a total that was guessed too low grows."""
    done = 0

    def more(frames: int) -> None:
        nonlocal done
        done += frames
        tell(stage, done, None if total is None else max(total, done))

    return more


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Clock:
    """Busy seconds of each stage, summed over threads: waiting for another stage does not count, and while a stage runs inside
    another one on the same thread, only the inner one's time does."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._here = threading.local()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Book the block's time on `stage`."""
        running: list[str] = self._here.__dict__.setdefault("running", [])
        self._book(running)
        running.append(stage)
        try:
            yield
        finally:
            self._book(running)
            running.pop()

    def _book(self, running: list[str]) -> None:
        now = time.perf_counter()
        if running:
            with self._lock:
                self.seconds[running[-1]] = self.seconds.get(running[-1], 0.0) + now - self._here.since
        self._here.since = now

    def timed(self, stage: str, items: Iterator[T]) -> Generator[T, None, None]:
        """The same items, with the time that making them takes booked on `stage`."""
        try:
            while True:
                with self(stage):
                    item = next(items, None)
                if item is None:
                    return
                yield item
                del item
        finally:
            if isinstance(items, Generator):
                items.close()
