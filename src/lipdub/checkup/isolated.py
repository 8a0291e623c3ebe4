"""Run a function in a new Python process: nothing is loaded before it, its memory is watched, and its crash is reported.

The new process runs this file, which imports only the standard library and lipdub's errors. The function's own module is imported
after the process was tied to its cores, because libraries size their thread pools when they are imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from lipdub.errors import LipdubError

LOOK_EVERY_S = 0.1
"""How often the memory of the process and its children is looked at."""


class ProcessFailed(Exception):
    """The process crashed, took too long, or its function raised an exception other than `LipdubError`.

    The text is one line. said: the traceback, or what the process wrote to standard error.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a process gave back, and what it took.

    answer: the function's return value.
    wall_s: seconds from the start of the process to its end.
    peak_bytes: most memory that the process and its children held together, looked at ten times a second, and at least the process's
    own peak; None where the system does not tell.
    """

    answer: Any
    wall_s: float
    peak_bytes: int | None


def run_isolated(
    work: str, task: object, *, timeout_s: float | None = None, cores: int | None = None, source: Path | None = None
) -> Outcome:
    """Call ``work(task)`` in a new process and wait for it.

    work: ``module:function``; it must be importable here.
    task: the function's argument; it and the return value are what JSON can hold.
    timeout_s: seconds after which the process is ended.
    cores: the process runs on the first so many of the cores that this process may use, where the system can do that; None: on all.
    source: folder that is searched before all others for imports, such as the ``src`` of another checkout of lipdub.

    The process ends when this one does, even if this one is killed.

    Raises LipdubError: the function raised one. ProcessFailed.
    """
    path = [*([str(source.resolve())] if source is not None else []), *sys.path]
    code = f"import runpy, sys; sys.path[:] = {path!r}; runpy.run_path({__file__!r}, run_name='__main__')"
    order = {"work": work, "task": task, "cores": cores}
    started = time.perf_counter()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(order)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ProcessFailed(f"'{sys.executable}' does not start: {error.strerror or error}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    out, said = _Reader(process.stdout), _Reader(process.stderr)
    try:
        peak_bytes = _watched(process, started, timeout_s)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        words = said.text().strip()
        answered = out.text()
    wall_s = time.perf_counter() - started
    if not answered:
        raise ProcessFailed(_ending(process.returncode, words), words)
    reply: dict[str, Any] = json.loads(answered)
    if "error" in reply:
        raise LipdubError(reply["error"])
    if "bug" in reply:
        raise ProcessFailed(reply["bug"], reply["traceback"])
    own = reply["peak_bytes"]
    return Outcome(reply["answer"], wall_s, max(peak_bytes, own) if own else peak_bytes or None)


class _Reader:
    """Reads a pipe to its end in a thread, so that the process never waits for it."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self._read = pipe, b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._read = self._pipe.read()

    def text(self) -> str:
        """All that was read. A child that outlives the process may keep the pipe open, so this waits for 5 s at most."""
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._pipe.close()
        return self._read.decode("utf-8", "replace")


def _watched(process: subprocess.Popen[bytes], started: float, timeout_s: float | None) -> int:
    """Wait for the process. Returns the most bytes that it and its children held together, 0 where the system does not tell."""
    peak = 0
    while True:
        peak = max(peak, sum(_resident_bytes(pid) for pid in _family(process.pid)))
        try:
            process.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            if timeout_s is not None and time.perf_counter() - started > timeout_s:
                raise ProcessFailed(f"did not end within {timeout_s:.0f} s") from None
        else:
            return peak


def _family(pid: int) -> Iterator[int]:
    """A process, its children and theirs."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def _ending(code: int, words: str) -> str:
    """One line on how a process without an answer ended. words: what it wrote to standard error."""
    last = words.splitlines()[-1].strip()[:300] if words else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"crashed ({name})" + (f" after: {last}" if last else "")
    return last or f"ended with exit code {code} and without a word"


def _answer() -> None:
    """The new process: call the function and write its answer to the standard output that the process started with."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to standard error
    threading.Thread(target=_end_with_parent, daemon=True).start()
    order = json.loads(sys.argv[1])
    if order["cores"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order["cores"]])
    module, _, function = order["work"].partition(":")
    try:
        reply = {"answer": getattr(import_module(module), function)(order["task"]), "peak_bytes": own_peak_bytes()}
    except LipdubError as error:
        reply = {"error": str(error)}
    except (Exception, SystemExit) as error:
        reply = {"bug": " ".join(f"{type(error).__name__}: {error}".split())[:400], "traceback": traceback.format_exc()}
    with out:
        json.dump(reply, out)


def _end_with_parent() -> None:
    """End this process when the parent ends: the parent holds the other end of our standard input, which the system then closes."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock Python waits for at exit
        pass
    os._exit(1)


def own_peak_bytes() -> int | None:
    """Most memory that this process has held; None where the system does not tell.

    On Linux ``ru_maxrss`` starts from what the parent held, so the figure is read from ``/proc`` there.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    _answer()
