"""What a device can do at its best, measured: matrix products, convolutions and memory traffic, through ONNX Runtime and PyTorch.

The graphs are a single node on tensors that stay on the device (IO binding), large enough that starting it costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

OPSET, IR_VERSION = 17, 8
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
MEASURED_S = 0.5
WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the graphs are. side: of the square matrices; batch, channels, pixels (side): of the convolution with kernels of 3x3;
    traffic: numbers in each of the two tensors that are added."""

    side: int
    batch: int
    channels: int
    pixels: int
    traffic: int


SIZES = {"cuda": Sizes(8192, 64, 256, 64, 2**28), "cpu": Sizes(1024, 2, 128, 64, 2**24)}


@dataclass(frozen=True, slots=True)
class Precision:
    """How a graph is computed. name: of the row; kind: of `TYPES`; options: of ONNX Runtime's CUDA provider."""

    name: str
    kind: str
    options: tuple[tuple[str, str], ...] = ()


CUDA_PRECISIONS = (
    Precision("float32", "float32", (("use_tf32", "0"),)),
    Precision("float32, TF32 allowed", "float32", (("use_tf32", "1"),)),
    Precision("float16", "float16"),
    Precision("float16, channels last", "float16", (("prefer_nhwc", "1"),)),
)
CPU_PRECISIONS = (Precision("float32", "float32"),)


def precisions(device: str) -> tuple[Precision, ...]:
    """What is measured on ``cuda`` and on ``cpu``."""
    return CUDA_PRECISIONS if device == "cuda" else CPU_PRECISIONS


class Bound:
    """A graph with its inputs and outputs resident on the device; ``run`` returns when the device is done.

    Raises what ONNX Runtime raises where the graph does not load or run. threads: of the CPU.
    """

    def __init__(
        self, model: onnx.ModelProto, feeds: dict[str, NDArray[Any]], *, device: str, precision: Precision, threads: int | None = None,
        profile: str | None = None,
    ) -> None:  # fmt: skip
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or 0
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        cuda: list[Any] = [("CUDAExecutionProvider", dict(precision.options))] if device == "cuda" else []
        self.session = ort.InferenceSession(
            model.SerializeToString(), sess_options=options, providers=[*cuda, "CPUExecutionProvider"], enable_fallback=0
        )
        if device == "cuda" and self.session.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeError("ONNX Runtime did not load CUDA")
        self.binding = self.session.io_binding()
        for name, array in feeds.items():
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        for tensor in self.session.get_outputs():
            self.binding.bind_output(tensor.name, device, 0)

    def run(self) -> None:
        """Once."""
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()


def seconds_of(run: Callable[[], None], *, measured_s: float = MEASURED_S, warm_up: int = WARM_UP) -> float:
    """Median seconds of one call, over at least three and at least `measured_s`."""
    for _ in range(warm_up):
        run()
    found: list[float] = []
    while len(found) < 3 or sum(found) < measured_s:
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return median(found)


def measure_device(
    device: str, *, threads: int | None = None, sizes: Sizes | None = None, measured_s: float = MEASURED_S
) -> list[dict[str, Any]]:
    """One row for each engine, precision and task: flops_per_s or bytes_per_s, or why it could not be measured."""
    sizes = sizes or SIZES[device]
    rows = []
    for precision in precisions(device):
        for task, (model, feeds, flops, moved) in _graphs(sizes, precision.kind).items():
            row = {"engine": "ONNX Runtime", "precision": precision.name, "task": task, "flops_per_s": None, "bytes_per_s": None, "why": ""}
            try:
                took_s = seconds_of(Bound(model, feeds, device=device, precision=precision, threads=threads).run, measured_s=measured_s)
            except Exception as error:
                rows.append(row | {"why": " ".join(str(error).split())[:160]})
            else:
                rows.append(row | ({"flops_per_s": flops / took_s} if flops else {"bytes_per_s": moved / took_s}))
    return rows + _with_torch(device, sizes, measured_s)


def roof(rows: Sequence[dict[str, Any]], figure: str, precision: str) -> float:
    """The best that was measured of ``flops_per_s`` or ``bytes_per_s``, in any way of computing in the type that `precision` begins
    with (``float16``). Traffic counts in any type."""
    kind = precision.split(",", maxsplit=1)[0]
    allowed = [row for row in rows if row[figure] and (figure == "bytes_per_s" or row["precision"].split(",", maxsplit=1)[0] == kind)]
    if "TF32" not in precision:
        allowed = [row for row in allowed if "TF32" not in row["precision"]] if figure == "flops_per_s" else allowed
    return max((row[figure] for row in allowed), default=0.0)


def _graphs(sizes: Sizes, kind: str) -> dict[str, tuple[onnx.ModelProto, dict[str, NDArray[Any]], float, float]]:
    """Task to its graph, inputs, operations and bytes moved."""
    dtype = np.dtype(kind)
    noise = np.random.default_rng(0)

    def filled(*shape: int) -> NDArray[Any]:
        return (noise.standard_normal(shape, np.float32) / 16).astype(dtype)

    square = (sizes.side, sizes.side)
    pictures, kernels = (sizes.batch, sizes.channels, sizes.pixels, sizes.pixels), (sizes.channels, sizes.channels, 3, 3)
    found = {
        "matrix product": (("MatMul", {}), {"a": filled(*square), "b": filled(*square)}, square, 2.0 * sizes.side**3),
        "convolution 3x3": (
            ("Conv", {"pads": [1, 1, 1, 1]}),
            {"a": filled(*pictures), "b": filled(*kernels)},
            pictures,
            2.0 * np.prod(pictures) * sizes.channels * 9,
        ),
        "memory": (("Add", {}), {"a": np.ones(sizes.traffic, dtype), "b": np.ones(sizes.traffic, dtype)}, (sizes.traffic,), 0.0),
    }
    graphs = {}
    for task, ((op, attributes), feeds, out, flops) in found.items():
        moved = float(sum(array.nbytes for array in feeds.values()) + np.prod(out) * dtype.itemsize)
        graphs[task] = (_one_node(op, attributes, feeds, out, TYPES[kind]), feeds, float(flops), moved)
    return graphs


def _one_node(op: str, attributes: dict[str, Any], feeds: dict[str, NDArray[Any]], out: tuple[int, ...], kind: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, list(feeds), ["c"], **attributes)],
        op.lower(),
        [helper.make_tensor_value_info(name, kind, array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info("c", kind, out)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _with_torch(device: str, sizes: Sizes, measured_s: float) -> list[dict[str, Any]]:
    """The same through PyTorch; nothing where it is not installed or sees no such device."""
    if find_spec("torch") is None:
        return []
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return []
    place = torch.device(device)

    def finished(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            work()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    rows = []
    for precision in precisions(device):
        if "channels last" in precision.name:
            continue
        dtype = {"float32": torch.float32, "float16": torch.float16}[precision.kind]
        if device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "TF32" in precision.name
        a = torch.randn(sizes.side, sizes.side, dtype=dtype, device=place)
        x = torch.randn(sizes.batch, sizes.channels, sizes.pixels, sizes.pixels, dtype=dtype, device=place)
        x = x.to(memory_format=torch.channels_last)
        w = torch.randn(sizes.channels, sizes.channels, 3, 3, dtype=dtype, device=place).to(memory_format=torch.channels_last)
        t = torch.ones(sizes.traffic, dtype=dtype, device=place)
        out = torch.empty_like(t)
        tasks: dict[str, tuple[Callable[[], Any], float, float]] = {
            "matrix product": (lambda a=a: a @ a, 2.0 * sizes.side**3, 0.0),
            "convolution 3x3": (lambda x=x, w=w: torch.nn.functional.conv2d(x, w, padding=1), 2.0 * x.numel() * sizes.channels * 9, 0.0),
            "memory": (lambda t=t, out=out: torch.add(t, t, out=out), 0.0, 2.0 * t.numel() * t.element_size()),
        }
        for task, (work, flops, moved) in tasks.items():
            took_s = seconds_of(finished(work), measured_s=measured_s)
            rows.append(
                {
                    "engine": "PyTorch", "precision": precision.name, "task": task, "flops_per_s": flops / took_s if flops else None,
                    "bytes_per_s": moved / took_s if moved else None, "why": "",
                }
            )  # fmt: skip
    return rows
