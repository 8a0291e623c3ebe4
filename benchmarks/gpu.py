"""How well is the card kept busy? Its roofline as measured here, the generator's share of it, and whole dubs with more and more cores.

1. ``--device cuda`` must really load: the generator is opened with it, and ONNX Runtime's own profile says where each node ran.
2. The roofline: large matrix products, convolutions and memory traffic in float32 and float16, through ONNX Runtime and, where it is
   installed, PyTorch.
3. The generator at growing batches: through ``draw`` (uint8 in host memory to uint8 in host memory, as a dub uses it) and as a raw session
   on tensors that stay on the card. Operations are counted from the graph's shapes. `roofline` is the least time that its convolutions and
   matrix products can take, each at the better of the measured compute and memory limits, over the time it took (wanted:
   0.60); `compute` is the share of the measured compute alone.
4. Whole dubs at 720p with 1, 2, 4 ... cores (wanted: 20 times real time with all of them).

``--device cpu`` runs all of it on the processor, small: a test of itself where there is no card.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import common, roofline
from benchmarks.dub_once import NO_CACHE, cache_is_there, measure_dub, summary
from benchmarks.footage import looped, looped_sound, resized, size_of
from benchmarks.onnx_cost import NodeCost, costs, with_plain_weights
from benchmarks.record import record
from lipdub import media
from lipdub.bundles import bundle
from lipdub.errors import LipdubError
from lipdub.generators import Generator, open_generator
from lipdub.stages import cores as usable_cores

TARGET_REAL_TIME, TARGET_ROOFLINE = 20.0, 0.60
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
WANTED_PROVIDER = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
KEPT_IN_FLOAT32 = ["GridSample", "Resize"]
"""Operators without a float16 kernel in ONNX Runtime's CUDA provider, or that lose places in it."""


def main(arguments: list[str]) -> int:
    """Measure, print the tables, write the JSON; exit code 1 where CUDA did not load, or a target is missed on it."""
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
    parser.add_argument("--skip", choices=("roofline", "generator", "end-to-end"), nargs="+", default=[])
    parser.add_argument("--threads", type=int, help="CPU threads of the networks in parts 2 and 3")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    on_cuda = options.device == "cuda"
    facts = card_facts() if on_cuda else {}
    try:
        generator = open_generator(options.model, device=options.device, threads=options.threads)
    except LipdubError as error:
        common.CONSOLE.print(f"--device {options.device}: {error}", markup=False)
        return 1
    if generator.provider != WANTED_PROVIDER[options.device]:
        common.CONSOLE.print(f"--device {options.device} was asked for and {generator.provider} loaded: this is a bug of lipdub")
        return 1
    common.CONSOLE.print(f"--device {options.device} loaded {generator.provider}" + (f" on {facts.get('name')}" if facts else ""))
    graph = with_plain_weights(onnx.load(bundle.resolve(options.model) / bundle.GENERATOR_GRAPH))
    found: dict[str, Any] = {"device": options.device, "card": facts, "provider": generator.provider, "roofline": [], "generator": []}
    # What else lipdub says of how it draws; older ones say nothing.
    found |= {"precision": getattr(generator, "precision", None), "notes": list(getattr(generator, "notes", ()))}
    found["nodes_by_provider"] = where_nodes_run(graph, options)

    def keep(rows: list[dict[str, Any]]) -> None:
        common.write_json(options.json, record("gpu", arguments, rows, **found))

    if "roofline" not in options.skip:
        found["roofline"] = roofline.measure_device(options.device, threads=options.threads)
        show_roofline(found["roofline"])
        keep([])
    if "generator" not in options.skip:
        batches = options.batches or (BATCHES if on_cuda else [1, 16])
        found["generator"] = measure_generator(graph, generator, batches, found["roofline"], options)
        show_generator(found["generator"], found["nodes_by_provider"])
        keep([])
    rows = [] if "end-to-end" in options.skip else measure_end_to_end(options)
    keep(rows)
    return verdict(rows, found["generator"], on_cuda=on_cuda)


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


def feeds_of(graph: onnx.ModelProto, batch: int) -> dict[str, NDArray[Any]]:
    """Noise for every input of the graph: grey levels where it takes uint8, else numbers in [-1, 1]."""
    noise = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    for tensor in graph.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
        shape = [axis.dim_value or batch for axis in tensor.type.tensor_type.shape.dim]
        feeds[tensor.name] = noise.integers(0, 256, shape, np.uint8) if dtype == np.uint8 else noise.uniform(-1, 1, shape).astype(dtype)
    return feeds


def in_precision(graph: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """The graph, computed in float32 or float16 throughout, inputs and outputs included."""
    if kind == "float32":
        return graph
    path = list(sys.path)
    try:
        # This import puts its own folder, full of modules with common names, on the path of all imports.
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    finally:
        sys.path[:] = path
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    half: onnx.ModelProto = convert_float_to_float16(
        copy, keep_io_types=False, op_block_list=sorted({*DEFAULT_OP_BLOCK_LIST, *KEPT_IN_FLOAT32})
    )
    return half


def as_lipdub_runs_it(model: str, generator: Generator, kind: str) -> onnx.ModelProto | None:
    """The graph that lipdub makes of the bundle's for a GPU: pictures as uint8, computed in `kind`. None where this lipdub makes none."""
    try:
        from lipdub.generators.device_graph import rewritten
    except ImportError:
        return None
    graph = (bundle.resolve(model) / bundle.GENERATOR_GRAPH).read_bytes()
    return onnx.load_model_from_string(rewritten(graph, generator.spec, half=kind == "float16"))


def where_nodes_run(graph: onnx.ModelProto, options: argparse.Namespace) -> dict[str, int]:
    """How many nodes of the generator each provider of ONNX Runtime really ran, from its profile of one run."""
    with tempfile.TemporaryDirectory(prefix="lipdub-gpu-") as folder:
        bound = roofline.Bound(
            graph, feeds_of(graph, 1), device=options.device, precision=roofline.precisions(options.device)[0],
            threads=options.threads, profile=str(Path(folder) / "profile"),
        )  # fmt: skip
        bound.run()
        events = json.loads(Path(bound.session.end_profiling()).read_text(encoding="utf-8"))
    ran: dict[str, set[str]] = {}
    for event in events:
        provider = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and provider:
            ran.setdefault(provider, set()).add(event["name"])
    return {provider: len(names) for provider, names in sorted(ran.items())}


def measure_generator(
    graph: onnx.ModelProto, generator: Generator, batches: list[int], roofs: list[dict[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per way of running and batch; a way that does not run has ``why`` in the place of figures."""
    rows: list[dict[str, Any]] = []
    kinds = roofline.precisions(options.device)
    # `draw` chooses its own precision; it is held against the best that the card can do.
    against = kinds[-1].kind
    noise = np.random.default_rng(0)
    raws = [(f"raw, {precision.name}", in_precision(graph, precision.kind), precision) for precision in kinds]
    own = as_lipdub_runs_it(options.model, generator, against)
    if own is not None:
        raws.append((f"raw, uint8 pictures, {kinds[-1].name}", own, kinds[-1]))
    for batch in batches:
        cost = costs(graph, batch=batch)
        faces = noise.integers(0, 256, (batch, generator.spec.crop.size, generator.spec.crop.size, 3), np.uint8)
        lips = noise.standard_normal((batch, generator.spec.lip_channels)).astype(np.float32)
        took_s = roofline.seconds_of(lambda faces=faces, lips=lips: generator.draw(faces, faces, lips))
        rows.append({"how": "draw, host to host", "batch": batch, "why": ""} | judged(cost, batch, took_s, roofs, against))
        for how, raw, precision in raws:
            row = {"how": how, "batch": batch, "why": ""}
            try:
                bound = roofline.Bound(raw, feeds_of(raw, batch), device=options.device, precision=precision, threads=options.threads)
                took_s = roofline.seconds_of(bound.run)
            except Exception as error:
                rows.append(row | {"why": " ".join(str(error).split())[:160]})
            else:
                rows.append(row | judged(cost, batch, took_s, roofs, precision.name))
    return rows


def judged(cost: list[NodeCost], batch: int, took_s: float, roofs: list[dict[str, Any]], precision: str) -> dict[str, Any]:
    """What `took_s` seconds for a batch mean: faces and operations per second, shares of what the device can do (None: not measured)."""
    flops = sum(node.flops for node in cost)
    found: dict[str, Any] = {
        "seconds": took_s,
        "faces_per_s": batch / took_s,
        "flops_per_face": flops / batch,
        "flops_per_s": flops / took_s,
        "of_compute": None,
        "of_roofline": None,
    }
    most_flops, most_bytes = roofline.roof(roofs, "flops_per_s", precision), roofline.roof(roofs, "bytes_per_s", precision)
    if most_flops and most_bytes:
        each = np.dtype(precision.split(",", maxsplit=1)[0]).itemsize
        least_s = sum(node.seconds(flops_per_s=most_flops, bytes_per_s=most_bytes, bytes_each=each) for node in cost)
        found |= {"of_compute": flops / most_flops / took_s, "of_roofline": least_s / took_s}
    return found


def measure_end_to_end(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Dubs with more and more cores, first and second ones."""
    seconds = options.seconds or (120.0 if options.device == "cuda" else 4.0)
    most = usable_cores()
    counts = options.cores or sorted({*(2**power for power in range(10) if 2**power < most), most})
    states = ["cold", "warm"] if cache_is_there() else ["cold"]
    if len(states) == 1:
        common.CONSOLE.print(NO_CACHE)
    rows = []
    with tempfile.TemporaryDirectory(prefix="lipdub-gpu-") as name:
        folder = Path(name)
        info = media.probe(options.video)
        size = size_of(options.size, width=info.width, height=info.height)
        video = looped(resized(options.video, folder / "scaled.mp4", size, seconds=seconds), folder / "video.mp4", seconds)
        speech = looped_sound(options.speech, folder / "speech.wav", seconds)
        for count in (count for count in counts if count <= most):
            runs: dict[str, list[dict[str, Any]]] = {state: [] for state in states}
            for turn in range(options.repeat):
                cache = folder / f"cache-{count}-{turn}" if "warm" in states else None
                for state in states:
                    runs[state].append(
                        measure_dub(video, speech, model=options.model, device=options.device, threads=count, cores=count, cache=cache)
                    )
            for state in states:
                row = {"size": options.size, "width": size[0], "height": size[1], "seconds": seconds, "state": state}
                rows.append(row | {"threads": count} | summary(runs[state]))
                common.CONSOLE.print(
                    f"{options.size} {seconds:g} s, {count} cores, {state}: {rows[-1]['frames_per_s']:.1f} frames/s, "
                    f"{rows[-1]['times_real_time']:.2f} x real time on {rows[-1]['provider']}"
                )
    return rows


def verdict(rows: list[dict[str, Any]], generator: list[dict[str, Any]], *, on_cuda: bool) -> int:
    """Say whether the targets are met; 1 where one is missed on CUDA. On the CPU they do not apply."""
    if not on_cuda:
        return 0
    found = [
        ("generator's share of the roofline, best way and batch", [row.get("of_roofline") for row in generator], TARGET_ROOFLINE),
        ("x real time, end to end, first dub, best", [row["times_real_time"] for row in rows if row["state"] == "cold"], TARGET_REAL_TIME),
    ]
    missed = 0
    for what, figures, target in found:
        best = max((figure for figure in figures if figure is not None), default=None)
        if best is not None:
            common.CONSOLE.print(f"{what}: {best:.2f} (target: at least {target:g})")
            missed |= int(best < target)
    return missed


def show_roofline(rows: list[dict[str, Any]]) -> None:
    """Print what the device can do."""
    common.table(
        "what this device can do",
        ["engine", "precision", "task", "TFLOP/s", "GB/s"],
        [
            [
                row["engine"], row["precision"], f"{row['task']} ({row['why']})" if row["why"] else row["task"],
                _in(row["flops_per_s"], 1e12), _in(row["bytes_per_s"], 1e9),
            ]
            for row in rows
        ],
    )  # fmt: skip


def show_generator(rows: list[dict[str, Any]], nodes: dict[str, int]) -> None:
    """Print how the generator uses it."""
    where = ", ".join(f"{count} on {provider}" for provider, count in nodes.items())
    common.table(
        f"generator; its nodes ran: {where}",
        ["how", "batch", "ms", "faces/s", "TFLOP/s", "of compute", "of roofline"],
        [
            [row["how"], row["batch"], row["why"] or "-", "-", "-", "-", "-"]
            if row["why"]
            else [
                row["how"], row["batch"], f"{1000 * row['seconds']:.2f}", round(row["faces_per_s"]), _in(row["flops_per_s"], 1e12),
                _in(row["of_compute"], 1), _in(row["of_roofline"], 1),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _in(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3g}"
