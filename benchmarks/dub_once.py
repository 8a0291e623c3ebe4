"""One dub, as a fresh process does it (`benchmarks.fresh`), with what it cost. Works with older versions of lipdub, too."""

from __future__ import annotations

import inspect
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.fresh import cpu_between, cpu_seconds, run_fresh

CACHE_LIMIT_BYTES = 2**33
NO_CACHE = "this lipdub has no analysis cache (lipdub.faces.cache, dub(cache=...)): second dubs are left out"


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
        return run_fresh("benchmarks.dub_once:dub_once", task, cores=cores, source=source)


def dub_once(task: dict[str, Any]) -> dict[str, Any]:
    """What the fresh process does."""
    from lipdub import pipeline

    more: dict[str, Any] = {}
    if task["cache"] is not None:
        from lipdub.faces.cache import AnalysisCache

        more["cache"] = AnalysisCache(Path(task["cache"]), limit_bytes=CACHE_LIMIT_BYTES)
    before = cpu_seconds()
    report = pipeline.dub(
        Path(task["video"]), Path(task["speech"]), Path(task["out"]), model=task["model"], device=task["device"], fit="video",
        threads=task["threads"], **more,
    )  # fmt: skip
    used = cpu_between(before, cpu_seconds())
    return {"report": asdict(report) | {"spans": len(report.spans)}, "cpu_s": used}


def cache_is_there() -> bool:
    """Whether the lipdub that is installed keeps analyses."""
    from lipdub.pipeline import dub

    return find_spec("lipdub.faces.cache") is not None and "cache" in inspect.signature(dub).parameters


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
