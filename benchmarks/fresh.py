"""A piece of work in a process of its own: nothing loaded before, as many cores as asked for, and the memory it took at its peak.

What the work imports, it imports after the process was tied to its cores, since thread pools are sized then. This file is also
what such a process runs, so it imports nothing but the standard library and ``lipdub.stages``, which does the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lipdub.stages import cores as usable_cores

ROOT = Path(__file__).resolve().parent.parent
LOOK_EVERY_S = 0.2


def run_fresh(work: str, task: Mapping[str, Any], *, cores: int | None = None, source: Path | None = None) -> dict[str, Any]:
    """What ``work(task)`` answers when a new process runs it, with ``process_s`` (its whole life), ``peak_mib`` and ``cores`` added.

    work: ``module:function``; task and answer are what JSON can say. cores: the process runs on the first so many of the cores that
    this one may use; None for all. source: ``src`` folder of another checkout, whose lipdub is run. peak_mib: the larger of
    the process's own peak and of the sum over it and its children, looked at five times a second. Raises SystemExit with the last words
    of a process that failed.
    """
    with tempfile.TemporaryDirectory(prefix="lipdub-fresh-") as name:
        answer = Path(name) / "answer.json"
        order = {"work": work, "task": dict(task), "cores": cores, "answer": str(answer)}
        before = [str(source.resolve())] if source is not None else []
        path = os.pathsep.join([*before, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        said = Path(name) / "said.txt"
        started = time.perf_counter()
        with said.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.fresh", json.dumps(order, default=str)],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
            watch = _Watch(process.pid)
            try:
                process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                tree_mib = watch.stop()
        process_s = time.perf_counter() - started
        if process.returncode or not answer.is_file():
            words = said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise SystemExit(f"{work} failed: {words[-1]}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found | {"process_s": process_s, "peak_mib": max(tree_mib, found["peak_mib"])}


class _Watch:
    """Looks at the resident memory of a process and its children until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak_mib, self._ended = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The largest sum seen, MiB; 0 where the system does not tell."""
        self._ended.set()
        self._thread.join()
        return self._peak_mib

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self._peak_mib = max(self._peak_mib, _tree_mib(self._pid))


def _tree_mib(pid: int) -> float:
    """Resident memory of a process and of all that descend from it; pages that they share count once for each."""
    parents, pages = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in brackets may hold spaces and brackets itself, so what follows is counted from the last one.
            facts = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(entry.name)], pages[int(entry.name)] = int(facts[1]), int(facts[21])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(pages.get(member, 0) for member in family) * os.sysconf("SC_PAGE_SIZE") / 2**20 if pages else 0.0


def own_peak_mib() -> float:
    """The most memory that this process has held.

    Linux keeps in ``ru_maxrss`` what the parent held when it started the process, so the mark of the program itself is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        marks = [line.split() for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
        if marks:
            return int(marks[0][1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def cpu_seconds() -> dict[str, float]:
    """CPU seconds that this process has used so far, by itself (user, system) and by its children that have ended."""
    used = os.times()
    return {"user": used.user, "system": used.system, "children": used.children_user + used.children_system}


def cpu_between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds used from one reading to another, and their sum as ``all``."""
    used = {name: after[name] - before[name] for name in before}
    return used | {"all": sum(used.values())}


def _main(order: dict[str, Any]) -> None:
    if order["cores"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order["cores"]])
    module, _, function = order["work"].partition(":")
    answer = getattr(import_module(module), function)(order["task"])
    answer |= {"peak_mib": own_peak_mib(), "cores": usable_cores()}
    Path(order["answer"]).write_text(json.dumps(answer, default=str), encoding="utf-8")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
