"""Where the time of a dub goes: busy seconds of each stage, CPU seconds of the process, per frame; two such profiles side by side.

A stage is busy while it works, not while it waits for the one before or behind it. Stages that overlap add up to more than the wall's time:
`overlap` is their sum over it, and `cores busy` the CPU's seconds over it. For a profile of an earlier version, take its sources out
(``git archive COMMIT src models | tar -x -C DIR``) and name them: ``--source DIR/src --label before``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.dub_once import measure_dub, summary
from benchmarks.footage import looped, looped_sound, resized, size_of
from benchmarks.record import commit, record
from lipdub import media


def main(arguments: list[str]) -> int:
    """Measure or compare, print the table, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description=__doc__)
    parser.add_argument("video", type=Path, nargs="?", default=Path("examples/portrait.mp4"))
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"), help="looped until as long as the video")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="cores and threads; default: all cores, and ONNX Runtime's choice of threads")
    parser.add_argument("--size", help="scale the video first: 360p, 720p, 1080p, 1440p, 4k")
    parser.add_argument("--seconds", type=float, help="loop or cut the video to so many seconds")
    parser.add_argument("--warm", action="store_true", help="profile the second dub, with the analysis of the first at hand")
    parser.add_argument("--repeat", type=int, default=3, help="times that it is run; figures are medians")
    parser.add_argument("--label", default="now", help="name of this profile in tables")
    parser.add_argument("--source", type=Path, help="src folder of another checkout to profile in the place of this one")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="JSON", help="run nothing: put these profiles side by side")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    if options.compare:
        if options.json is not None:
            parser.error("--compare measures nothing: leave --json away")
        rows = [row for file in options.compare for row in read(file)]
    else:
        if options.warm and options.source is not None:
            parser.error("--warm needs the analysis cache of this checkout: leave --source away")
        rows = [measure(options)]
        about = commit(options.source.parent) if options.source is not None else None
        common.write_json(options.json, record("profile", arguments, rows, source=str(options.source or "src"), source_commit=about))
    show(rows)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The profile of one video: `summary` of its runs, with its label, size and length."""
    with tempfile.TemporaryDirectory(prefix="lipdub-profile-") as name:
        folder = Path(name)
        info = media.probe(options.video)
        size, seconds = (info.width, info.height), options.seconds or float(info.duration_s or 0)
        video = options.video
        if options.size:
            size = size_of(options.size, width=info.width, height=info.height)
            video = resized(video, folder / "scaled.mp4", size, seconds=seconds)
        if options.seconds:
            video = looped(video, folder / "video.mp4", seconds)
        speech = looped_sound(options.speech, folder / "speech.wav", seconds)
        runs = []
        for turn in range(options.repeat + options.warm):
            run = measure_dub(
                video, speech, model=options.model, device=options.device, threads=options.threads, cores=options.threads,
                cache=folder / "cache" if options.warm else None, source=options.source,
            )  # fmt: skip
            if turn or not options.warm:
                runs.append(run)
    found = summary(runs)
    if options.warm and found["analysis_cached"] is not True:
        raise SystemExit("the second dub did not take its analysis from the cache")
    return {
        "label": options.label, "video": options.video.name, "width": size[0], "height": size[1], "seconds": seconds,
        "state": "warm" if options.warm else "cold", "threads": options.threads,
    } | found  # fmt: skip


def read(file: Path) -> list[dict[str, Any]]:
    """The profiles that an earlier run wrote. Raises SystemExit for a file that is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["benchmark"] != "profile":
            raise ValueError(f"it is of {found['benchmark']!r}")
        rows: list[dict[str, Any]] = found["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"'{file}' is no profile ({error}); make one with: python -m benchmarks profile VIDEO --json FILE") from error
    return rows


def per_frame_ms(row: dict[str, Any]) -> dict[str, float]:
    """Busy milliseconds of each stage in one frame."""
    return {stage: 1000 * seconds / row["frames"] for stage, seconds in row["stage_s"].items()}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table: stages down, profiles across."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row["stage_s"]))
    found = [per_frame_ms(row) for row in rows]
    body = [[stage, *(f"{one[stage]:.2f}" if stage in one else "-" for one in found)] for stage in stages]
    body += [
        ["all stages", *(f"{sum(one.values()):.2f}" for one in found)],
        ["wall", *(f"{1000 * row['wall_s'] / row['frames']:.2f}" for row in rows)],
        ["CPU, user", *(f"{1000 * row['cpu_s']['user'] / row['frames']:.2f}" for row in rows)],
        ["CPU, system", *(f"{1000 * row['cpu_s']['system'] / row['frames']:.2f}" for row in rows)],
        ["CPU, programs started", *(f"{1000 * row['cpu_s']['children'] / row['frames']:.2f}" for row in rows)],
        ["overlap", *(f"{sum(row['stage_s'].values()) / row['wall_s']:.2f}" for row in rows)],
        ["cores busy", *(f"{row['cpu_s']['all'] / row['wall_s']:.2f}" for row in rows)],
        ["frames/s", *(f"{row['frames_per_s']:.2f}" for row in rows)],
        ["x real time", *(f"{row['times_real_time']:.2f}" for row in rows)],
        ["peak MiB", *(f"{row['peak_mib']:.0f}" for row in rows)],
    ]
    common.table("ms per frame", ["", *(title_of(row) for row in rows)], body)


def title_of(row: dict[str, Any]) -> str:
    """A profile's name: label, size, cores, and that it was a second dub."""
    return f"{row['label']}, {row['width']}x{row['height']}, {cores_text(row['cores'])}" + (", second" if row["state"] == "warm" else "")


def cores_text(cores: int) -> str:
    """``1 core``, ``2 cores``."""
    return f"{cores} core" + ("" if cores == 1 else "s")
