"""Frames per second end to end, and where the time goes.

Each video is dubbed on the CPU by a process of its own, as the command does it; the time includes opening the model.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import common
from lipdub import __version__, media
from lipdub.evaluate.clips import cut_pictures
from lipdub.options import Device, DubOptions
from lipdub.pipeline import dub
from lipdub.stages import cores

FULL = Path("../shared/clips/full")
VIDEOS = (FULL / "synthetic_face_576x768_silent.mp4", FULL / "portrait_1080x1920_hevc.mp4")
PACKAGES = ("av", "mediapipe", "numpy", "onnxruntime", "onnxruntime-gpu", "opencv-contrib-python")


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("videos", type=Path, nargs="*", help="default: 576x768 and 1080x1920 of ../shared/clips/full")
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"))
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of the networks; default: ONNX Runtime's choice")
    parser.add_argument("--seconds", type=float, help="just the first seconds of each video")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    videos = options.videos or [video for video in VIDEOS if video.exists()] or [Path("examples/portrait.mp4")]
    work = partial(
        measure_video, speech=options.speech, model=options.model, device=options.device, threads=options.threads,
        seconds=options.seconds,
    )  # fmt: skip
    rows = [common.spread(work, [video], jobs=1, label=common.short)[0] for video in videos]
    machine = machine_facts()
    stages = sorted({stage for row in rows for stage in row["report"]["stage_s"]})
    common.table(
        f"{machine['cpu']}, {machine['cores_usable']} cores, load {machine['load_1min']}, model {options.model}",
        ["video", "size", "frames", "dubbed", "frames/s", "seconds", *stages],
        [
            [
                common.short(Path(row["video"])), row["size"], row["report"]["frames"], row["report"]["dubbed"],
                round(row["frames_per_s"], 2), round(row["report"]["wall_s"], 2),
                *(f"{row['report']['stage_s'].get(stage, 0.0):.2f}" for stage in stages),
            ]
            for row in rows
        ],
    )  # fmt: skip
    common.write_json(options.json, {"machine": machine, "model": options.model, "videos": rows})
    return 0


def measure_video(video: Path, *, speech: Path, model: str, device: Device, threads: int | None, seconds: float | None) -> dict[str, Any]:
    """Dub `video` and say how fast that was."""
    with tempfile.TemporaryDirectory(prefix="lipdub-speed-") as name:
        source = video
        if seconds is not None:
            source = Path(name) / f"cut-{video.stem}.mp4"
            info = media.probe(video)
            cut_pictures(video, source, 0, max(1, round(seconds * info.frame_rate)), crf=DubOptions().crf, preset=DubOptions().preset)
        report = dub(source, speech, Path(name) / "dubbed.mp4", DubOptions(model=model, device=device, fit="video", threads=threads))
    info = media.probe(video)
    facts = asdict(report) | {"spans": len(report.spans)}
    return {"video": str(video), "size": f"{info.width}x{info.height}", "frames_per_s": report.frames_per_s, "report": facts}


def machine_facts() -> dict[str, Any]:
    """What the figures hold for: processor, cores, load, versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": cores(),
        "load_1min": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "lipdub": __version__,
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
