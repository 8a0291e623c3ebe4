"""ONNX Runtime's settings on the generator: threads, spinning, batch size, graph level, memory, precision; one change at a time.

Each row is a process of its own that draws real crops through ``MemoryGenerator.draw``, uint8 to uint8, as a dub does. `wall` and `CPU` are
milliseconds for one crop, back to back; `paced` is the CPU's milliseconds for one crop where the drawing thread sleeps between two batches
as long as a batch takes, as in a pipeline that waits for its other stages: threads that spin then burn the cores of the others.
PSNR (dB) and the largest difference (levels of 255) are of the drawn box against float32, on crops that no calibration saw.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from lipdub.generators.memory import MemoryGenerator
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.fresh import run_fresh
from benchmarks.record import record
from lipdub.bundles import bundle
from lipdub.runtime import Tuning
from lipdub.speech.mel import cut_windows
from lipdub.stages import cores as usable_cores

HEADS: Final = ("setting", "threads", "batch", "crops/s", "wall ms", "CPU ms", "paced ms", "PSNR dB", "max", "peak MiB", "runs as")
CROPS: Final = Path("../prepared/val")
CALIBRATION_ROWS: Final = 64
HELD_OUT_ROWS: Final = 64
CPU_CHANGES: Final[tuple[dict[str, Any], ...]] = (
    {}, {"spin": True}, {"batch": 1}, {"batch": 4}, {"batch": 16}, {"batch": 32}, {"graph_level": "basic"}, {"graph_level": "extended"},
    {"arena": False}, {"dynamic_block_base": 4}, {"flush_denormals": True},
)  # fmt: skip
CUDA_CHANGES: Final[tuple[dict[str, Any], ...]] = (
    {}, {"lanes": 1}, {"lanes": 3}, {"batch": 32}, {"batch": 64}, {"batch": 256}, {"nhwc": True}, {"conv_search": "EXHAUSTIVE"},
    {"conv_search": "DEFAULT"}, {"nhwc": True, "conv_search": "EXHAUSTIVE"}, {"tensorrt": True},
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Measure, print the tables, write the JSON; exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ort", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--crops", type=Path, default=CROPS, help="folder of `lipdub prepare`: where the crops come from")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and as many as there are cores")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each figure")
    parser.add_argument("--precisions", nargs="*", help="which, of benchmarks/ort_precisions.py (default: all on the CPU, none on CUDA)")
    parser.add_argument("--only-precisions", action="store_true", help="leave the other settings as they are")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    on_cpu = options.device == "cpu"
    threads = options.threads or (sorted({1, usable_cores()}) if on_cpu else [1])
    changes = [{}] if options.only_precisions else list(CPU_CHANGES if on_cpu else CUDA_CHANGES)
    with tempfile.TemporaryDirectory(prefix="lipdub-ort-") as name:
        folder = Path(name)
        source = bundle.resolve(options.model)
        write_crops(options.crops, source, folder)
        tasks = list(_tasks(source, folder, threads, changes, options))
        rows = []
        for task in tasks:
            rows.append(_figures(task))
            if "why" in rows[0]:
                raise SystemExit(rows[0]["why"])  # the settings as they are; nothing else would run either
            common.CONSOLE.print(f"{len(rows)}/{len(tasks)} {rows[-1]['setting']}, {rows[-1]['threads']} threads: {_said(rows[-1])}")
    common.table(
        f"model {options.model} on {options.device}, {usable_cores()} cores",
        HEADS,
        [columns(row) for row in rows],
    )
    common.write_json(options.json, record("ort", arguments, rows, model=options.model, device=options.device))
    return 0


def _tasks(
    source: Path, folder: Path, threads: Sequence[int], changes: Sequence[dict[str, Any]], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """What each row measures: every change to the settings, then every precision; for each number of threads. The first one gives the
    picture that all others are compared with."""
    common_facts = {"crops": str(folder), "device": options.device, "seconds": options.seconds}
    models = [(change, source) for change in changes]
    wanted = options.precisions
    if wanted is None:
        wanted = list(_precisions()) if options.device == "cpu" else []
    for precision in wanted:
        models.append(({"precision": precision}, _in_precision(source, folder, precision)))
    for count in threads:
        for change, model in models:
            tuning = {key: value for key, value in change.items() if key != "precision"}
            yield common_facts | {
                "setting": ", ".join(f"{key} {value}" for key, value in change.items()) or "as lipdub does",
                "threads": count, "tuning": tuning, "model": str(model), "spec": str(source),
            }  # fmt: skip


def _precisions() -> tuple[str, ...]:
    from benchmarks.ort_precisions import PRECISIONS

    return PRECISIONS


def _in_precision(source: Path, folder: Path, precision: str) -> Path:
    """A folder with the bundle's graphs, the generator's in that precision."""
    from benchmarks.ort_precisions import write_in_precision

    target = folder / precision
    target.mkdir()
    shutil.copyfile(source / bundle.MEMORY_GRAPH, target / bundle.MEMORY_GRAPH)
    with np.load(folder / "crops.npz") as stored:
        rows = slice(0, CALIBRATION_ROWS)
        feeds = {
            bundle.TARGET: _to_network(stored["targets"][rows]), bundle.REFERENCE: _to_network(stored["references"][rows]),
            bundle.LIP_FEATURE: stored["features"][rows],
        }  # fmt: skip
    feeds[bundle.TARGET][:, :, bundle.load_spec(source).crop.masked_from :] = 0.0
    write_in_precision(source / bundle.GENERATOR_GRAPH, target / bundle.GENERATOR_GRAPH, precision, feeds)
    return target


def _to_network(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1.0)


def write_crops(prepared: Path, model: Path, folder: Path) -> None:
    """``crops.npz`` in `folder`: targets, references (another frame of the clip) and lip features recalled from the clip's own speech.

    The first `CALIBRATION_ROWS` are of other clips than the last `HELD_OUT_ROWS`. Raises SystemExit where `prepared` holds no clips.
    """
    spec = bundle.load_spec(model)
    generator = MemoryGenerator(model, spec, device="cpu")
    clips = [file for file in sorted(prepared.glob("*.crops.npy")) if len(np.load(file, mmap_mode="r")) >= 2]
    if len(clips) < 2:
        raise SystemExit(
            f"{prepared} holds fewer than two prepared clips; make them with lipdub prepare, or name their folder with --crops"
        )
    half = len(clips) // 2
    parts = [_rows_of(clips[:half], CALIBRATION_ROWS, generator), _rows_of(clips[half:], HELD_OUT_ROWS, generator)]
    np.savez(folder / "crops.npz", **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def _rows_of(clips: Sequence[Path], count: int, generator: MemoryGenerator) -> dict[str, NDArray[Any]]:
    """`count` rows, as many of each clip as go round."""
    spec, size = generator.spec, generator.spec.crop.size
    rows: dict[str, list[NDArray[Any]]] = {"targets": [], "references": [], "features": []}
    each = -(-count // len(clips))
    for file in clips:
        crops = np.load(file, mmap_mode="r")
        with np.load(file.with_name(file.name.replace(".crops.npy", ".npz"))) as facts:
            windows = cut_windows(facts["mel"].astype(np.float32), facts["times_s"], spec.mel)
        at = np.linspace(0, len(crops) - 1, each).astype(int)
        margin = (crops.shape[1] - size) // 2
        inner = crops[:, margin : margin + size, margin : margin + size]
        rows["targets"].append(inner[at])
        rows["references"].append(inner[(at + len(crops) // 2) % len(crops)])
        rows["features"].append(generator.recall(np.ascontiguousarray(windows[at])).lip_feature)
    return {key: np.concatenate(values)[:count] for key, values in rows.items()}


def _figures(task: dict[str, Any]) -> dict[str, Any]:
    """The row of a task; a setting that does not run is a row that says why."""
    try:
        measured = run_fresh("benchmarks.ort:measure", task)
    except SystemExit as error:
        measured = {"why": str(error)}
    return {key: task[key] for key in ("setting", "threads", "tuning")} | measured


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Draw the crops with the task's settings; runs in a process of its own."""
    spec = bundle.load_spec(Path(task["spec"]))
    tuning = replace(Tuning(), **task["tuning"])
    generator = MemoryGenerator(Path(task["model"]), spec, device=task["device"], threads=task["threads"], tuning=tuning)
    with np.load(Path(task["crops"]) / "crops.npz") as stored:
        rows = {key: stored[key] for key in ("targets", "references", "features")}
    turn = np.resize(np.arange(len(rows["targets"])), generator.batch)
    batch = {key: np.ascontiguousarray(values[turn]) for key, values in rows.items()}

    def draw() -> None:
        generator.draw(batch["targets"], batch["references"], batch["features"])

    draw()
    back_to_back = _timed(draw, task["seconds"], pause=False)
    paced = _timed(draw, task["seconds"], pause=True)
    held_out = {key: values[-HELD_OUT_ROWS:] for key, values in rows.items()}
    return {
        "batch": generator.batch,
        "crops_per_s": len(turn) / back_to_back["wall_s"],
        "wall_ms": back_to_back["wall_s"] / len(turn) * 1e3,
        "cpu_ms": back_to_back["cpu_s"] / len(turn) * 1e3,
        "paced_ms": paced["cpu_s"] / len(turn) * 1e3,
        "runs_as": f"{generator.provider.removesuffix('ExecutionProvider')} {generator.precision}",
        "notes": list(generator.notes),
    } | _difference(generator.draw(held_out["targets"], held_out["references"], held_out["features"]).pixels, task, spec.crop.drawn)


def _timed(work: Any, seconds: float, *, pause: bool) -> dict[str, float]:
    """Mean wall and CPU seconds of one turn; with `pause`, the sleep between two turns counts for the CPU's seconds alone."""
    turns, working_s = 0, 0.0
    started, cpu_started = time.perf_counter(), time.process_time()
    while turns < 2 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        work()
        took = time.perf_counter() - before
        working_s += took
        turns += 1
        if pause:
            time.sleep(took)
    return {"wall_s": working_s / turns, "cpu_s": (time.process_time() - cpu_started) / turns}


def _difference(drawn: NDArray[np.uint8], task: dict[str, Any], box: tuple[int, int, int, int]) -> dict[str, float | None]:
    """PSNR and largest difference from what the first row drew, which is kept for the rows after it."""
    y0, y1, x0, x1 = box
    kept = Path(task["crops"]) / "drawn.npy"
    inside = drawn[:, y0:y1, x0:x1]
    if not kept.exists():
        np.save(kept, inside)
    difference = inside.astype(np.float64) - np.load(kept)
    error = float((difference**2).mean())
    return {"psnr_db": 10.0 * float(np.log10(255.0**2 / error)) if error > 0 else None, "max_levels": float(np.abs(difference).max())}


def _said(row: dict[str, Any]) -> str:
    return row["why"] if "why" in row else f"{row['crops_per_s']:.1f} crops/s"


def columns(row: dict[str, Any]) -> list[Any]:
    """One measured row as the table shows it."""
    if "why" in row:
        return [row["setting"], row["threads"], *["-"] * 8, row["why"][:60]]
    return [
        row["setting"], row["threads"], row["batch"], round(row["crops_per_s"], 1),
        *(round(row[key], 2) for key in ("wall_ms", "cpu_ms", "paced_ms")),
        "same" if row["psnr_db"] is None else round(row["psnr_db"], 1), int(row["max_levels"]), round(row["peak_mib"]), row["runs_as"],
    ]  # fmt: skip
