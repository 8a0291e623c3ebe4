"""How fast is lipdub beside a chain in the shape of Wav2Lip's?

A baseline written for the purpose (36.3 M parameters, 96 px, PyTorch, batch 128, all frames in memory, a detector on every frame, the
face pasted as a rectangle; random weights, since only its time counts) and lipdub dub the same video with the same speech, in
turn, each time in a fresh process; medians. Wav2Lip's own detector is S3FD at full size on every frame: `s3fd-shaped` runs a network
of that shape for the time, while the box that is used comes from mediapipe, once, outside the clock; `mediapipe` puts a light detector in
its place, and `none` leaves detection out, which no user could. Reading the boxes off the network's maps is left out: the baseline
is a little faster for it.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.dub_once import measure_dub, summary
from benchmarks.footage import looped, looped_sound
from benchmarks.fresh import run_fresh
from benchmarks.record import record
from lipdub import media

DETECTORS = ("none", "mediapipe", "s3fd-shaped")
DETECTOR_BATCH = 16
SAMPLED_FRAMES_ON_CPU = 32
LOOKED_AT_FRAMES = 100
"""For the one box that is used on all frames."""


def main(arguments: list[str]) -> int:
    """Run both in turn, print the tables, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks wav2lip-shaped", description=__doc__)
    parser.add_argument("video", type=Path, nargs="?", default=Path("examples/portrait.mp4"))
    parser.add_argument(
        "speech", type=Path, nargs="?", default=Path("examples/speech.wav"), help="repeated until it is as long as the video"
    )
    parser.add_argument("--model", default="base", help="lipdub's bundle, by name or folder")
    parser.add_argument("--detector", choices=DETECTORS, nargs="+", default=["s3fd-shaped"], help="of the baseline; one row for each")
    parser.add_argument(
        "--detector-frames", type=int,
        help="time the S3FD-shaped detector on so many frames and scale its seconds to all; 0 for all of them "
        f"(default: {SAMPLED_FRAMES_ON_CPU} on the CPU, where it takes seconds a frame, all on CUDA)",
    )  # fmt: skip
    parser.add_argument("--detector-batch", type=int, default=DETECTOR_BATCH, help="frames at once; 16 of 720p need about 12 GiB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both")
    parser.add_argument("--threads", type=int, help="cores that each may use, and threads of its networks; default: all")
    parser.add_argument("--seconds", type=float, help="loop or cut the video to so many seconds")
    parser.add_argument("--repeat", type=int, default=3, help="times that each is run, in turn")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    sampled = (SAMPLED_FRAMES_ON_CPU if options.device == "cpu" else 0) if options.detector_frames is None else options.detector_frames
    if find_spec("torch") is None:
        parser.error("the baseline needs PyTorch: pip install 'lipdub[train]'")
    arms = [*options.detector, "lipdub"]
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory(prefix="lipdub-wav2lip-") as name:
        info = media.probe(options.video)
        seconds = options.seconds or float(info.duration_s or 0)
        video = looped(options.video, Path(name) / "video.mp4", seconds) if options.seconds else options.video
        speech = looped_sound(options.speech, Path(name) / "speech.wav", seconds)
        # Found before anything is timed; a process of its own keeps PyTorch and mediapipe out of this one.
        box = run_fresh("benchmarks.wav2lip_baseline:find_box", {"video": str(video.resolve()), "frames": LOOKED_AT_FRAMES})["box"]
        for turn in range(options.repeat):
            for arm in arms:
                if arm == "lipdub":
                    run = measure_dub(
                        video, speech, model=options.model, device=options.device, threads=options.threads, cores=options.threads
                    )
                else:
                    task = {
                        "video": str(video.resolve()), "speech": str(speech.resolve()), "out": str(Path(name) / "baseline.mp4"),
                        "detector": arm, "detector_frames": sampled or None, "detector_batch": options.detector_batch, "box": box,
                        "device": options.device, "threads": options.threads,
                    }  # fmt: skip
                    run = run_fresh("benchmarks.wav2lip_baseline:baseline_once", task, cores=options.threads)
                runs[arm].append(run)
                common.CONSOLE.print(f"{turn + 1}/{options.repeat} {arm}: {_wall_s(run):.1f} s")
    rows = comparison(runs)
    show(rows, f"{options.video.name}, {info.width}x{info.height}, {seconds:g} s")
    settings = {
        "video": options.video.name, "size": f"{info.width}x{info.height}", "seconds": seconds, "device": options.device,
        "threads": options.threads, "repeat": options.repeat, "model": options.model,
    }  # fmt: skip
    common.write_json(options.json, record("wav2lip-shaped", arguments, rows, settings=settings))
    return 0


def comparison(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per arm, medians; ``lipdub_is_faster`` is lipdub's frames per second over the arm's (1 for itself)."""
    rows = []
    for arm, found in runs.items():
        if arm == "lipdub":
            rows.append({"arm": arm, "detector_frames": None, "extrapolated_s": 0.0} | summary(found))
        else:
            wall_s = median(run["wall_s"] for run in found)
            rows.append(
                {
                    "arm": f"baseline, detector {arm}",
                    "detector_frames": found[0]["detector_frames"],
                    "extrapolated_s": median(run["extrapolated_s"] for run in found),
                    "frames": found[0]["frames"],
                    "frames_per_s": found[0]["frames"] / wall_s,
                    "times_real_time": found[0]["output_s"] / wall_s,
                    "wall_s": wall_s,
                    "process_s": median(run["process_s"] for run in found),
                    "cpu_s": {key: median(run["cpu_s"][key] for run in found) for key in found[0]["cpu_s"]},
                    "peak_mib": median(run["peak_mib"] for run in found),
                    "cores": found[0]["cores"],
                    "stage_s": {key: median(run["stage_s"][key] for run in found) for key in found[0]["stage_s"]},
                    "wall_s_of_runs": [run["wall_s"] for run in found],
                }
            )
    ours = next(row["frames_per_s"] for row in rows if row["arm"] == "lipdub")
    return [row | {"lipdub_is_faster": ours / row["frames_per_s"]} for row in rows]


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the two tables."""
    common.table(
        title,
        ["", "frames", "frames/s", "x real time", "wall s", "of it scaled", "peak MiB", "lipdub is faster by"],
        [
            [
                row["arm"], row["frames"], f"{row['frames_per_s']:.2f}", f"{row['times_real_time']:.2f}", f"{row['wall_s']:.1f}",
                f"{row['extrapolated_s']:.1f}", round(row["peak_mib"]), f"{row['lipdub_is_faster']:.2f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    for row in rows:
        stages = ", ".join(f"{stage} {1000 * seconds / row['frames']:.1f}" for stage, seconds in row["stage_s"].items())
        common.CONSOLE.print(f"{row['arm']}, ms per frame: {stages}")
    if any(row["extrapolated_s"] for row in rows):
        row = next(row for row in rows if row["extrapolated_s"])
        common.CONSOLE.print(
            f"The S3FD-shaped detector ran on {row['detector_frames']} of {row['frames']} frames; 'of it scaled' is the rest."
        )


def _wall_s(run: dict[str, Any]) -> float:
    return float(run["report"]["wall_s"] if "report" in run else run["wall_s"])
