"""Does peak memory stay the same when the video gets longer, and below 1 GiB?

A clip is scaled to one size (1080p, unless told otherwise; ``--size source`` leaves it as it is), looped to several lengths without
coding it again, and each length is dubbed by a process of its own; its peak resident memory, with that of the programs it starts,
is compared.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.dub_once import measure_dub
from benchmarks.footage import LINES, looped, looped_sound, resized, size_of
from benchmarks.record import record
from lipdub import media

TARGET_RATIO = 1.10
TARGET_MIB = 1024.0


def main(arguments: list[str]) -> int:
    """Measure, print, write the JSON; exit code 1 where memory grew beyond the target, or is above it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory-growth", description=__doc__)
    parser.add_argument("video", type=Path, nargs="?", default=Path("examples/portrait.mp4"), help="clip to loop")
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"), help="sound to loop")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="cores and threads; default: all cores, and ONNX Runtime's choice of threads")
    parser.add_argument("--size", choices=("source", *LINES), default="1080p", help="as many pixels as a 16:9 picture of that size")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 5.0])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lipdub-memory-") as name:
        folder = Path(name)
        info = media.probe(options.video)
        source, size = options.video, (info.width, info.height)
        if options.size != "source":
            size = size_of(options.size, width=info.width, height=info.height)
            source = resized(options.video, folder / "scaled.mp4", size)
        for minutes in sorted(options.minutes):
            video = looped(source, folder / "video.mp4", 60 * minutes)
            speech = looped_sound(options.speech, folder / "speech.wav", 60 * minutes)
            run = measure_dub(video, speech, model=options.model, device=options.device, threads=options.threads, cores=options.threads)
            rows.append(
                {
                    "minutes": minutes, "width": size[0], "height": size[1], "frames": run["report"]["frames"],
                    "peak_mib": round(run["peak_mib"], 1), "wall_s": round(run["report"]["wall_s"], 1),
                }
            )  # fmt: skip
            print(f"{minutes:g} min of {size[0]}x{size[1]}: peak {run['peak_mib']:.0f} MiB, {rows[-1]['wall_s']:.0f} s", flush=True)
            common.write_json(options.json, _record(arguments, rows, options))
    ratio, most_mib = figures(rows)
    print(f"{rows[-1]['minutes']:g} min over {rows[0]['minutes']:g} min: {ratio:.3f} (target: at most {TARGET_RATIO:.2f})")
    print(f"largest: {most_mib:.0f} MiB (target: at most {TARGET_MIB:.0f} up to 1080p)")
    return 0 if met(rows) else 1


def figures(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Peak at the longest over that at the shortest, and the largest peak in MiB."""
    ordered = sorted(rows, key=lambda row: row["minutes"])
    return ordered[-1]["peak_mib"] / ordered[0]["peak_mib"], max(row["peak_mib"] for row in rows)


def met(rows: list[dict[str, Any]]) -> bool:
    """Whether memory stays the same with length, and, up to 1080p, within its limit."""
    ratio, most_mib = figures(rows)
    limited = all(row["width"] * row["height"] <= 1.01 * 1920 * 1080 for row in rows)
    return ratio <= TARGET_RATIO and (most_mib <= TARGET_MIB or not limited)


def _record(arguments: list[str], rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    return record("memory-growth", arguments, rows, video=options.video.name, size=options.size, model=options.model)
