"""Does the GPU draw, and how fast? The generator at growing batches, and whole dubs with more and more cores.

1. The generator is opened with ``--device cuda``, which is an error where CUDA does not load.
2. `draw` of the generator at growing batches, uint8 in host memory to uint8 in host memory, as a dub calls it.
3. Whole dubs at 720p with 1, 2, 4 ... cores (wanted: 20 times real time with all of them).

``--device cpu`` runs all of it on the processor: a test of itself where there is no card.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.dub_once import measure_dub, summary
from benchmarks.footage import looped, looped_sound, resized, size_of
from benchmarks.record import record
from lipdub import media
from lipdub.bundles.bundle import BundleSpec, load_spec, resolve
from lipdub.errors import LipdubError
from lipdub.generators import Generator
from lipdub.model import open_model
from lipdub.stages import cores

TARGET_REAL_TIME = 20.0
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
MEASURED_S = 1.0
"""Seconds for which each batch is drawn again and again."""


def main(arguments: list[str]) -> int:
    """Measure, print the tables, write the JSON; exit code 1 where CUDA did not load, or the target is missed on it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path, nargs="?", default=Path("examples/portrait.mp4"), help="with a face")
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"), help="looped to the length of the video")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", help="of the generator (default: 1 to 512 on CUDA, 1 and 16 on the CPU)")
    parser.add_argument("--size", default="720p", help="of the dubbed video: 360p, 720p, 1080p, 1440p, 4k")
    parser.add_argument("--seconds", type=float, help="of the dubbed video (default: 120 on CUDA, 4 on the CPU)")
    parser.add_argument("--cores", type=int, nargs="+", help="for the dubs (default: 1, 2, 4 ... and all)")
    parser.add_argument("--repeat", type=int, default=3, help="times that each dub is run; figures are medians")
    parser.add_argument("--skip", choices=("generator", "end-to-end"), nargs="+", default=[])
    parser.add_argument("--threads", type=int, help="CPU threads of the generator in part 2")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    on_cuda = options.device == "cuda"
    try:
        generator = open_model(options.model, device=options.device, threads=options.threads).generator
    except LipdubError as error:
        common.CONSOLE.print(f"--device {options.device}: {error}", markup=False)
        return 1
    facts: dict[str, Any] = {
        "device": options.device, "card": card_facts() if on_cuda else {}, "provider": generator.provider,
        # Not every backend tells these two.
        "precision": getattr(generator, "precision", ""), "notes": list(getattr(generator, "notes", ())), "generator": [],
    }  # fmt: skip
    common.CONSOLE.print(f"{facts['provider']}, {facts['precision']}", *facts["notes"], sep="\n", markup=False)
    if "generator" not in options.skip:
        spec = load_spec(resolve(options.model))
        batches = options.batches or (BATCHES if on_cuda else [1, 16])
        facts["generator"] = [{"batch": batch} | seconds_of_draw(generator, spec, batch) for batch in batches]
        common.table(
            "generator, host to host",
            ["batch", "ms", "faces/s"],
            [[row["batch"], f"{1000 * row['seconds']:.2f}", round(row["faces_per_s"])] for row in facts["generator"]],
        )
    rows = [] if "end-to-end" in options.skip else measure_end_to_end(options)
    common.write_json(options.json, record("gpu", arguments, rows, **facts))
    return verdict(rows, on_cuda=on_cuda)


def card_facts() -> dict[str, str]:
    """Name, driver, memory and highest clocks as nvidia-smi tells them; nothing where it is not there."""
    names = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory", "power.limit")
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(names, values, strict=True)) if done.returncode == 0 and len(values) == len(names) else {}


def seconds_of_draw(generator: Generator, spec: BundleSpec, batch: int) -> dict[str, float]:
    """Median seconds of `draw` for `batch` faces, over at least three calls after two that are not counted, and faces per second."""
    noise = np.random.default_rng(0)
    faces = noise.integers(0, 256, (batch, spec.crop.size, spec.crop.size, 3), np.uint8)
    lips = noise.standard_normal((batch, spec.lip_channels)).astype(np.float32)
    taken: list[float] = []
    while len(taken) < 5 or sum(taken[2:]) < MEASURED_S:
        started = time.perf_counter()
        generator.draw(faces, faces, lips)
        taken.append(time.perf_counter() - started)
    seconds = median(taken[2:])
    return {"seconds": seconds, "faces_per_s": batch / seconds}


def measure_end_to_end(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Dubs with more and more cores, first and second ones."""
    seconds = options.seconds or (120.0 if options.device == "cuda" else 4.0)
    most = cores()
    counts = options.cores or sorted({*(2**power for power in range(10) if 2**power < most), most})
    rows = []
    with tempfile.TemporaryDirectory(prefix="lipdub-gpu-") as name:
        folder = Path(name)
        info = media.probe(options.video)
        size = size_of(options.size, width=info.width, height=info.height)
        video = looped(resized(options.video, folder / "scaled.mp4", size, seconds=seconds), folder / "video.mp4", seconds)
        speech = looped_sound(options.speech, folder / "speech.wav", seconds)
        for count in (count for count in counts if count <= most):
            runs: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
            for turn in range(options.repeat):
                for of_state in runs.values():
                    of_state.append(
                        measure_dub(
                            video, speech, model=options.model, device=options.device, threads=count, cores=count,
                            cache=folder / f"cache-{count}-{turn}",
                        )
                    )  # fmt: skip
            for state, of_state in runs.items():
                row = {"size": options.size, "width": size[0], "height": size[1], "seconds": seconds, "state": state}
                rows.append(row | {"threads": count} | summary(of_state))
                common.CONSOLE.print(
                    f"{options.size} {seconds:g} s, {count} cores, {state}: {rows[-1]['frames_per_s']:.1f} frames/s, "
                    f"{rows[-1]['times_real_time']:.2f} x real time on {rows[-1]['provider']}"
                )
    return rows


def verdict(rows: list[dict[str, Any]], *, on_cuda: bool) -> int:
    """Say whether the target is met; 1 where it is missed on CUDA. On the CPU it does not apply."""
    best = max((row["times_real_time"] for row in rows if row["state"] == "cold"), default=None)
    if not on_cuda or best is None:
        return 0
    common.CONSOLE.print(f"x real time, end to end, first dub, best: {best:.2f} (target: at least {TARGET_REAL_TIME:g})")
    return int(best < TARGET_REAL_TIME)
