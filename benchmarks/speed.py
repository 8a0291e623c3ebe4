"""Frames per second end to end, and where the time goes.

Each video is dubbed on the CPU by a process of its own, as the command does it; the time includes opening the model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.dub_once import measure_dub, summary
from benchmarks.footage import looped
from benchmarks.record import record
from lipdub import media

FULL = Path("../shared/clips/full")
VIDEOS = (FULL / "synthetic_face_576x768_silent.mp4", FULL / "portrait_1080x1920_hevc.mp4")


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("videos", type=Path, nargs="*", help="default: 576x768 and 1080x1920 of ../shared/clips/full, else the example")
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"))
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of the networks; default: ONNX Runtime's choice")
    parser.add_argument("--seconds", type=float, help="just the first seconds of each video")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    videos = options.videos or [video for video in VIDEOS if video.exists()] or [Path("examples/portrait.mp4")]
    rows = [measure_video(video, options) for video in videos]
    found = record("speed", arguments, rows, model=options.model)
    stages = sorted({stage for row in rows for stage in row["stage_s"]})
    common.table(
        f"{found['machine']['cpu']}, {found['machine']['cores_usable']} cores, load {found['machine']['load_1min']}, model {options.model}",
        ["video", "size", "frames", "dubbed", "frames/s", "seconds", *stages],
        [
            [
                common.short(Path(row["video"])), row["size"], row["frames"], row["dubbed"], round(row["frames_per_s"], 2),
                round(row["wall_s"], 2), *(f"{row['stage_s'].get(stage, 0.0):.2f}" for stage in stages),
            ]
            for row in rows
        ],
    )  # fmt: skip
    common.write_json(options.json, found)
    return 0


def measure_video(video: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Dub `video`, or its first seconds, and say how fast that was."""
    info = media.probe(video)
    with tempfile.TemporaryDirectory(prefix="lipdub-speed-") as name:
        source = video if options.seconds is None else looped(video, Path(name) / f"cut{video.suffix}", options.seconds)
        run = measure_dub(source, options.speech, model=options.model, device=options.device, threads=options.threads)
    return {"video": str(video), "size": f"{info.width}x{info.height}"} | summary([run])
