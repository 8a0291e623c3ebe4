"""How speed and memory go with the size of the picture, the length, the cores, and with the analysis of an earlier dub at hand.

Every combination is dubbed in new processes: first with an empty analysis cache (cold), then again with what the first dub left
there (warm), as a second language would be. The footage is made from one source: scaled to each size (as many pixels as a 16:9 picture
of that name, in the source's own shape, coded again), then looped to each length without coding it again. Cores tie the process to so many
cores and set the threads of the networks, too. Times are of the dub, the opening of the model included and Python's start not.
The figures are written after every row, so a run that is broken off leaves what it had.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.dub_once import measure_dub, summary
from benchmarks.footage import LINES, looped, looped_sound, resized, size_of
from benchmarks.record import record
from lipdub import media
from lipdub.stages import cores as usable_cores

DEFAULT_SECONDS = 20.0
STATES = ("cold", "warm")


@dataclass(frozen=True, slots=True)
class Case:
    """One combination. size: of `LINES`; seconds: of video; cores: that the process may use."""

    size: str
    seconds: float
    cores: int


def cases(sizes: list[str], seconds: list[float], cores: list[int]) -> list[Case]:
    """All combinations, small and short ones first."""
    found = [Case(*one) for one in product(sizes, seconds, cores)]
    return sorted(found, key=lambda case: (LINES[case.size] ** 2 * case.seconds, case.cores))


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    parser.add_argument("video", type=Path, nargs="?", default=Path("examples/portrait.mp4"), help="with a face")
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"), help="looped to each length")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", choices=LINES, nargs="+", default=["360p", "720p", "1080p", "1440p", "4k"])
    parser.add_argument("--minutes", type=float, nargs="+", default=[], help="lengths of video, 1 to 60")
    parser.add_argument("--seconds", type=float, nargs="+", default=[], help=f"more lengths (default: {DEFAULT_SECONDS:g})")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="cores and threads")
    parser.add_argument("--states", choices=STATES, nargs="+", default=list(STATES), help="a warm dub needs the cold one before it, too")
    parser.add_argument("--repeat", type=int, default=3, help="times that each is run; figures are medians")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    cores = [count for count in options.threads if count <= usable_cores()]
    if cores != options.threads:
        common.CONSOLE.print(f"this process may use {usable_cores()} cores: {sorted(set(options.threads) - set(cores))} left out")
    seconds = [60 * minutes for minutes in options.minutes] + options.seconds or [DEFAULT_SECONDS]
    settings = {
        "video": options.video.name, "speech": options.speech.name, "model": options.model, "device": options.device,
        "repeat": options.repeat, "states": options.states,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    info = media.probe(options.video)
    with tempfile.TemporaryDirectory(prefix="lipdub-scale-") as folder:
        for case in cases(options.sizes, sorted(seconds), cores):
            scaled = Path(folder) / f"{case.size}.mp4"
            if not scaled.exists():
                size = size_of(case.size, width=info.width, height=info.height)
                resized(options.video, scaled, size, seconds=max(seconds))
            for row in measure_case(case, scaled, options, options.states):
                rows.append(row)
                common.CONSOLE.print(
                    f"{row['size']} {row['seconds']:g} s, {row['threads']} cores, {row['state']}: {row['frames_per_s']:.1f} frames/s, "
                    f"{row['times_real_time']:.2f} x real time, {row['peak_mib']:.0f} MiB"
                )
            common.write_json(options.json, record("scale", arguments, rows, settings=settings))
    show(rows)
    return 0


def measure_case(case: Case, scaled: Path, options: argparse.Namespace, states: list[str]) -> list[dict[str, Any]]:
    """One row for each state: cold and warm take turns, each turn with a cache of its own. scaled: the pictures at the case's size."""
    runs: dict[str, list[dict[str, Any]]] = {state: [] for state in STATES}
    with tempfile.TemporaryDirectory(prefix="lipdub-scale-") as name:
        folder = Path(name)
        video = looped(scaled, folder / "video.mp4", case.seconds)
        speech = looped_sound(options.speech, folder / "speech.wav", case.seconds)
        for turn in range(options.repeat):
            for state in STATES[: 1 + ("warm" in states)]:
                run = measure_dub(
                    video, speech, model=options.model, device=options.device, threads=case.cores, cores=case.cores,
                    cache=folder / f"cache{turn}",
                )  # fmt: skip
                runs[state].append(run)
    info = media.probe(scaled)
    about = {"size": case.size, "width": info.width, "height": info.height, "seconds": case.seconds, "threads": case.cores}
    rows = []
    for state in states:
        found = summary(runs[state])
        if found["analysis_cached"] is not (state == "warm"):
            raise SystemExit(f"the {state} dub said analysis_cached={found['analysis_cached']}: the cache does not do what it should")
        rows.append(about | {"state": state} | found)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    stages = sorted({stage for row in rows for stage in row["stage_s"]})
    common.table(
        "medians; stages in busy ms per frame",
        ["size", "px", "s", "cores", "state", "frames/s", "x real", "cores busy", "MiB", *stages],
        [
            [
                row["size"], f"{row['width']}x{row['height']}", f"{row['seconds']:g}", row["threads"], row["state"],
                f"{row['frames_per_s']:.1f}", f"{row['times_real_time']:.2f}", f"{row['cpu_s']['all'] / row['wall_s']:.2f}",
                round(row["peak_mib"]), *(f"{1000 * row['stage_s'].get(stage, 0.0) / row['frames']:.1f}" for stage in stages),
            ]
            for row in rows
        ],
    )  # fmt: skip
