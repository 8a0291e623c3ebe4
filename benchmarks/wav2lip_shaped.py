"""How fast is lipdub beside a chain in the shape of Wav2Lip's?

A baseline written for the purpose (36.3 M parameters, 96 px, PyTorch, batch 128, all frames in memory, a light detector on every frame,
the face pasted as a rectangle; random weights, since only its time counts) and lipdub dub the same video with the same speech, in
turn, each time in a process of its own; medians. Wav2Lip's own detector, S3FD at full size on every frame, takes far longer.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.dub_once import measure_dub, measured, summary
from benchmarks.footage import looped, looped_sound
from benchmarks.record import record
from lipdub import media

ARMS = ("baseline, detector mediapipe", "lipdub")


def main(arguments: list[str]) -> int:
    """Run both in turn, print the tables, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks wav2lip-shaped", description=__doc__)
    parser.add_argument("video", type=Path, nargs="?", default=Path("examples/portrait.mp4"))
    parser.add_argument(
        "speech", type=Path, nargs="?", default=Path("examples/speech.wav"), help="repeated until it is as long as the video"
    )
    parser.add_argument("--model", default="base", help="lipdub's bundle, by name or folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both")
    parser.add_argument("--threads", type=int, help="cores that each may use, and threads of its networks; default: all")
    parser.add_argument("--seconds", type=float, help="loop or cut the video to so many seconds")
    parser.add_argument("--repeat", type=int, default=3, help="times that each is run, in turn")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    if find_spec("torch") is None:
        parser.error("the baseline needs PyTorch: pip install 'lipdub[train]'")
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(prefix="lipdub-wav2lip-") as name:
        info = media.probe(options.video)
        seconds = options.seconds or float(info.duration_s or 0)
        video = looped(options.video, Path(name) / "video.mp4", seconds) if options.seconds else options.video
        speech = looped_sound(options.speech, Path(name) / "speech.wav", seconds)
        task = {
            "video": str(video.resolve()), "speech": str(speech.resolve()), "out": str(Path(name) / "baseline.mp4"),
            "device": options.device, "threads": options.threads,
        }  # fmt: skip
        for turn in range(options.repeat):
            runs[ARMS[0]].append(measured("benchmarks.wav2lip_baseline:baseline_once", task, cores=options.threads))
            runs[ARMS[1]].append(
                measure_dub(video, speech, model=options.model, device=options.device, threads=options.threads, cores=options.threads)
            )
            common.CONSOLE.print(f"{turn + 1}/{options.repeat}")
    rows = comparison(runs)
    show(rows, f"{options.video.name}, {info.width}x{info.height}, {seconds:g} s")
    settings = {
        "video": options.video.name, "size": f"{info.width}x{info.height}", "seconds": seconds, "device": options.device,
        "threads": options.threads, "repeat": options.repeat, "model": options.model, "torch": version("torch"),
    }  # fmt: skip
    common.write_json(options.json, record("wav2lip-shaped", arguments, rows, settings=settings))
    return 0


def comparison(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each of `ARMS`, medians; ``lipdub_is_faster`` is lipdub's frames per second over the arm's (1 for itself)."""
    found = runs[ARMS[0]]
    wall_s = median(run["wall_s"] for run in found)
    baseline = {
        "arm": ARMS[0],
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
    ours = {"arm": ARMS[1]} | summary(runs[ARMS[1]])
    return [row | {"lipdub_is_faster": ours["frames_per_s"] / row["frames_per_s"]} for row in (baseline, ours)]


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the table and the stages."""
    common.table(title, HEADS, cells(rows))
    for row in rows:
        stages = ", ".join(f"{stage} {1000 * seconds / row['frames']:.1f}" for stage, seconds in row["stage_s"].items())
        common.CONSOLE.print(f"{row['arm']}, ms per frame: {stages}")


HEADS = ["", "frames", "frames/s", "x real time", "wall s", "peak MiB", "lipdub is faster by"]


def cells(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """The rows under `HEADS`."""
    return [
        [
            row["arm"], row["frames"], f"{row['frames_per_s']:.2f}", f"{row['times_real_time']:.2f}", f"{row['wall_s']:.1f}",
            round(row["peak_mib"]), f"{row['lipdub_is_faster']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
