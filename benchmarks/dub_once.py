"""One dub in a process of its own, with what it cost. The process may run an older lipdub, so it imports nothing of it but what it uses."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

CACHE_LIMIT_BYTES = 2**33


def measure_dub(
    video: Path,
    speech: Path,
    *,
    model: str,
    device: str = "cpu",
    threads: int | None = None,
    cores: int | None = None,
    cache: Path | None = None,
    source: Path | None = None,
) -> dict[str, Any]:
    """Dub `video` with `speech` in a process of its own, into a file that is thrown away.

    threads: of the networks. cores: that the whole process may use. cache: folder of the analysis cache, used and filled; without
    it no cache is used. source: ``src`` folder of another checkout. The answer holds ``report`` (`DubReport` without its spans),
    ``cpu_s`` (of the dub: user, system, children, all), ``process_s``, ``peak_mib``, ``cores``.
    """
    with tempfile.TemporaryDirectory(prefix="lipdub-dub-") as name:
        task = {
            "video": str(video.resolve()), "speech": str(speech.resolve()), "out": str(Path(name) / "dubbed.mp4"), "model": model,
            "device": device, "threads": threads, "cache": None if cache is None else str(cache),
        }  # fmt: skip
        return measured("benchmarks.dub_once:dub_once", task, cores=cores, source=source)


def measured(work: str, task: Mapping[str, Any], *, cores: int | None = None, source: Path | None = None) -> dict[str, Any]:
    """The answer of ``work(task)`` (a dict) from `lipdub.checkup.isolated.run_isolated`, with ``process_s``, ``peak_mib`` and ``cores``.

    Raises SystemExit with one line where the process failed.
    """
    from lipdub import stages
    from lipdub.checkup.isolated import ProcessFailed, run_isolated
    from lipdub.errors import LipdubError

    try:
        outcome = run_isolated(work, dict(task), cores=cores, source=source)
    except (ProcessFailed, LipdubError) as error:
        raise SystemExit(f"{work} failed: {error}") from error
    answer: dict[str, Any] = outcome.answer
    used = min(cores or stages.cores(), stages.cores())
    return answer | {"process_s": outcome.wall_s, "peak_mib": (outcome.peak_bytes or 0) / 2**20, "cores": used}


def cpu_seconds() -> dict[str, float]:
    """CPU seconds that this process has used so far, by itself (user, system) and by its children that have ended."""
    used = os.times()
    return {"user": used.user, "system": used.system, "children": used.children_user + used.children_system}


def cpu_between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds used from one reading to another, and their sum as ``all``."""
    used = {name: after[name] - before[name] for name in before}
    return used | {"all": sum(used.values())}


def dub_once(task: dict[str, Any]) -> dict[str, Any]:
    """What the new process does. CPU seconds are of the dub alone, without the start of Python and the imports."""
    from lipdub import pipeline

    more: dict[str, Any] = {}
    if task["cache"] is not None:
        from lipdub.faces.cache import AnalysisCache

        more["cache"] = AnalysisCache(Path(task["cache"]), limit_bytes=CACHE_LIMIT_BYTES)
    dub: Any = pipeline.dub
    chosen = {name: task[name] for name in ("model", "device", "threads")} | {"fit": "video"}
    try:
        from lipdub.options import DubOptions
    except ImportError:  # a checkout of before it took its options in one record
        dub = partial(dub, **chosen)
    else:
        dub = partial(dub, options=DubOptions(**chosen))
    before = cpu_seconds()
    report = dub(Path(task["video"]), Path(task["speech"]), Path(task["out"]), **more)
    used = cpu_between(before, cpu_seconds())
    return {"report": asdict(report) | {"spans": len(report.spans)}, "cpu_s": used}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over several `measure_dub` of the same task, and each run's wall seconds.

    frames_per_s and times_real_time are of the dub (opening the model included, Python's start not); ``process_s`` is all of it.
    analysis_cached: None where this lipdub does not say.
    """
    reports = [run["report"] for run in runs]
    wall_s = median(report["wall_s"] for report in reports)
    cached = {report.get("analysis_cached") for report in reports}
    stages = sorted({stage for report in reports for stage in report["stage_s"]})
    return {
        "frames": reports[0]["frames"],
        "dubbed": reports[0]["dubbed"],
        "frames_per_s": reports[0]["frames"] / wall_s,
        "times_real_time": reports[0]["output_s"] / wall_s,
        "wall_s": wall_s,
        "process_s": median(run["process_s"] for run in runs),
        "cpu_s": {name: median(run["cpu_s"][name] for run in runs) for name in runs[0]["cpu_s"]},
        "peak_mib": median(run["peak_mib"] for run in runs),
        "cores": runs[0]["cores"],
        "provider": reports[0]["provider"],
        "analysis_cached": cached.pop() if len(cached) == 1 else "in some runs",
        "stage_s": {stage: median(report["stage_s"].get(stage, 0.0) for report in reports) for stage in stages},
        "wall_s_of_runs": [report["wall_s"] for report in reports],
    }
