"""``lipdub bench``: how fast a dub is on this machine, stage by stage, first and again, and how much memory it takes."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lipdub import __version__, media
from lipdub.checkup import isolated, sample_media
from lipdub.checkup.doctor.libraries import version_of
from lipdub.errors import LipdubError
from lipdub.media.excerpt import excerpt
from lipdub.options import Device
from lipdub.stages import OnProgress, cores

DEFAULT_SECONDS = 20.0
_PACKAGES = ("av", "mediapipe", "numpy", "onnxruntime", "onnxruntime-gpu", "opencv-contrib-python")


@dataclass(frozen=True, slots=True)
class DubSpeed:
    """One dub in a process of its own.

    wall_s: from the call of ``dub`` to its return.
    process_s: with the start of Python and all imports.
    stage_s: seconds in which a stage was busy; stages overlap, so they add up to more than `wall_s`.
    peak_bytes: most memory of the process and its children, None where the system does not tell.
    analysis_cached: the first pass was spared.
    """

    frames: int
    dubbed: int
    wall_s: float
    process_s: float
    stage_s: Mapping[str, float]
    peak_bytes: int | None
    analysis_cached: bool
    provider: str

    @property
    def frames_per_s(self) -> float:
        """Frames per second of wall time."""
        return self.frames / self.wall_s if self.wall_s > 0 else 0.0

    def stage_frames_per_s(self, stage: str) -> float:
        """Frames per second that a stage alone would reach; 0 where it did not run."""
        busy_s = self.stage_s.get(stage, 0.0)
        return self.frames / busy_s if busy_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured, on what.

    video: path, or "" for the portrait that lipdub brings.
    width, height: px.
    video_s: seconds of picture.
    threads: as asked for, None for lipdub's own choice.
    first, again: the same dub, the second from the cached analysis.
    """

    video: str
    width: int
    height: int
    video_s: float
    model: str
    device: str
    threads: int | None
    first: DubSpeed
    again: DubSpeed
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    date: str

    def times_real_time(self, dub: DubSpeed) -> float:
        """Seconds of picture per second of wall time."""
        return self.video_s / dub.wall_s if dub.wall_s > 0 else 0.0

    def to_json(self) -> str:
        """Everything as JSON, with the rates worked out."""
        content: dict[str, Any] = asdict(self)
        for name, dub in (("first", self.first), ("again", self.again)):
            content[name]["frames_per_s"] = round(dub.frames_per_s, 2)
            content[name]["times_real_time"] = round(self.times_real_time(dub), 3)
            content[name]["stage_frames_per_s"] = {stage: round(dub.stage_frames_per_s(stage), 1) for stage in dub.stage_s}
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def measure(
    video: Path | None = None,
    *,
    model: str = "base",
    device: Device = "auto",
    threads: int | None = None,
    seconds: float = DEFAULT_SECONDS,
    on_progress: OnProgress | None = None,
) -> BenchReport:
    """Dub the first `seconds` of `video` (None: of a portrait, 1280 x 720 px, 25 frames/s) twice, each time in a process of its own.

    A dub of one second goes ahead, so that programs and models lie in the system's memory for both. The speech is made for the purpose.

    Raises LipdubError: whatever a dub raises.
    """
    tell = on_progress or (lambda what, done, total: None)
    with tempfile.TemporaryDirectory(prefix="lipdub-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        source = _portrait(folder, seconds, tell) if video is None else _beginning(video, folder, seconds)
        info = media.probe(source)
        video_s = seconds if info.is_still else float(info.duration_s or seconds)
        task = {
            "video": str(source), "speech": str(folder / "speech.wav"), "out": str(folder / "dubbed.mp4"), "cache": str(folder / "cache"),
            "model": model, "device": device, "threads": threads,
        }  # fmt: skip
        sample_media.write_speech(folder / "speech.wav", seconds=video_s)
        _warm_up(folder, task, tell)
        speeds = []
        for what in ("first dub", "dub again"):
            tell(what, 0, None)
            speeds.append(_timed(task))
            tell(what, speeds[-1].frames, speeds[-1].frames)
    return BenchReport(
        video="" if video is None else str(video), width=info.width, height=info.height, video_s=round(video_s, 3), model=model,
        device=device, threads=threads, first=speeds[0], again=speeds[1], machine=machine(), versions=versions(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count() or 1, "usable_cores": cores()}


def versions() -> dict[str, str]:
    """lipdub, Python and the packages that the speed depends on."""
    installed = {package: version for package in _PACKAGES if (version := version_of(package))}
    return {"lipdub": __version__, "python": platform.python_version(), **installed}


def _portrait(folder: Path, seconds: float, tell: OnProgress) -> Path:
    path = folder / "portrait.mp4"
    sample_media.write_video(path, seconds=seconds, on_frames=lambda done, total: tell("making a video", done, total))
    return path


def _beginning(video: Path, folder: Path, seconds: float) -> Path:
    """The video itself where it is not longer than `seconds`."""
    info = media.probe(video)
    if info.is_still or (info.duration_s is not None and info.duration_s <= seconds):
        return video.resolve()
    return excerpt(video, folder, seconds=seconds)


def _warm_up(folder: Path, task: Mapping[str, Any], tell: OnProgress) -> None:
    """A dub of one second with the same model; what it wrote and cached is not looked at again."""
    tell("warming up", 0, None)
    video, speech = folder / "warm-up.mp4", folder / "warm-up.wav"
    sample_media.write_video(video, seconds=1, width=512, height=512)
    sample_media.write_speech(speech, seconds=1)
    speed = _timed({**task, "video": str(video), "speech": str(speech), "out": str(folder / "warm-up-dubbed.mp4")})
    tell("warming up", speed.frames, speed.frames)


def _timed(task: Mapping[str, Any]) -> DubSpeed:
    try:
        outcome = isolated.run_isolated("lipdub.checkup.bench:dub_once", dict(task))
    except isolated.ProcessFailed as error:
        raise LipdubError(f"the dub that was to be timed failed: {error}; 'lipdub doctor' looks for the reason") from error
    return DubSpeed(**outcome.answer, process_s=outcome.wall_s, peak_bytes=outcome.peak_bytes)


def dub_once(task: Mapping[str, Any]) -> dict[str, Any]:
    """What the new process does: one dub with the cache in ``task["cache"]``; what is measured inside it."""
    from lipdub.faces.cache import AnalysisCache
    from lipdub.options import DubOptions
    from lipdub.pipeline import dub

    options = DubOptions(model=task["model"], device=task["device"], threads=task["threads"], fit="video", force=True)
    report = dub(Path(task["video"]), Path(task["speech"]), Path(task["out"]), options, cache=AnalysisCache(Path(task["cache"])))
    return {name: getattr(report, name) for name in ("frames", "dubbed", "wall_s", "stage_s", "analysis_cached", "provider")}


def _processor() -> str:
    """The processor's name, as Linux tells it; elsewhere the family that Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
