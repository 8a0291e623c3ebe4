"""How ONNX Runtime is told to work: threads, graph rewriting, memory, and what CUDA and TensorRT are given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import onnxruntime as ort
import platformdirs

from lipdub.runtime.ort_words import CPU, CUDA, TENSORRT, OrtSession, Shapes
from lipdub.stages import cores

CPU_BATCH: Final = 8
"""Rows that go through a CPU session together: beyond that a batch only needs more memory, each row being work for all threads."""
CUDA_BATCH: Final = 128
"""Rows that go through a GPU session together; a quarter of it, once, where the GPU's memory does not hold them."""
CUDA_LANES: Final = 2
"""Batches on their way on a GPU at once: one is copied while the other is worked on, each on a stream of its own."""
TENSORRT_VARIABLE: Final = "LIPDUB_TENSORRT"
"""Set to 1, TensorRT draws in front of CUDA. Its engines take minutes to build and are kept, so it is nobody's default."""

_FATAL: Final = 4
_LEVELS: Final = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """How ONNX Runtime works, where that does not change what it computes. ``python -m benchmarks ort`` measures all of it.

    spin: whether idle threads of an operator wait in a loop, which saves microseconds between operators and takes the cores
    from decoder and encoder beside it. graph_level: how far the graph is rewritten, ``all`` with the CPU's blocked layouts.
    arena: keep freed memory for the next batch. flush_denormals: count numbers below 1e-38 as 0. dynamic_block_base: pieces
    that an operator's work is cut into per thread, finer towards its end; 0 for equal shares. batch: rows at once, None for the
    device's usual number. conv_search, nhwc, lanes: of CUDA; how cuDNN chooses its convolutions (EXHAUSTIVE tries them all for
    each new batch size), whether they run in channels-last layout, batches on their way at once. tensorrt: in front of CUDA.

    Raises ``ValueError`` when built with values that cannot be.
    """

    spin: bool = False
    graph_level: Literal["off", "basic", "extended", "all"] = "all"
    arena: bool = True
    flush_denormals: bool = False
    dynamic_block_base: int = 0
    batch: int | None = None
    conv_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = "HEURISTIC"
    nhwc: bool = False
    lanes: int = CUDA_LANES
    tensorrt: bool = False

    def __post_init__(self) -> None:
        for holds, message in (
            (self.graph_level in _LEVELS, f"graph_level must be one of {', '.join(_LEVELS)}, got {self.graph_level!r}"),
            (self.dynamic_block_base >= 0, f"dynamic_block_base must be 0 or more, got {self.dynamic_block_base}"),
            (self.batch is None or self.batch > 0, f"batch must be positive, got {self.batch}"),
            (self.conv_search in ("HEURISTIC", "EXHAUSTIVE", "DEFAULT"), f"no such conv_search: {self.conv_search!r}"),
            (self.lanes > 0, f"lanes must be positive, got {self.lanes}"),
        ):
            if not holds:
                raise ValueError(message)


TUNING: Final = Tuning()


def tensorrt_wanted() -> bool:
    """Whether the user asks for TensorRT in front of CUDA, by ``LIPDUB_TENSORRT=1``."""
    return os.environ.get(TENSORRT_VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


def cuda_options(tuning: Tuning) -> dict[str, str]:
    """https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#configuration-options

    A copy in the compute stream is safe (with one of its own, data races are known: onnxruntime issue 4829); what overlaps are
    whole batches, each on its own stream. The arena grows by what is needed: doubling would take the memory of whoever else
    works on the card. TF32 holds for graphs that stay float32.
    """
    return {
        "cudnn_conv_algo_search": tuning.conv_search,
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "1",
        "prefer_nhwc": str(int(tuning.nhwc)),
        "tunable_op_enable": "0",  # tuning of ROCm's GEMMs; on CUDA it finds next to nothing to tune
    }


def tensorrt_options(inputs: Shapes, tuning: Tuning) -> dict[str, str]:
    """https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html#configurations

    Engines are built for 1 to a full batch of rows at once, and kept: without the shapes, each new batch size would cost minutes.
    """
    batch = tuning.batch or CUDA_BATCH
    options = {"trt_fp16_enable": "1", "trt_builder_optimization_level": "3"}
    for key, rows in (("min", 1), ("opt", batch), ("max", batch)):
        options[f"trt_profile_{key}_shapes"] = ",".join(
            f"{name}:{'x'.join(str(rows if isinstance(axis, str) else axis) for axis in shape)}" for name, shape in inputs.items()
        )
    folder = _engine_folder()
    if folder is not None:
        options |= {
            "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder), "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }  # fmt: skip
    return options


def _engine_folder() -> Path | None:
    """Where TensorRT keeps its engines: in the cache folder of lipdub (see `lipdub.faces.cache.default_cache`), None for nowhere."""
    named = os.environ.get("LIPDUB_CACHE")
    if named is not None and named.strip().lower() in ("", "off"):
        return None
    base = platformdirs.user_cache_path("lipdub", appauthor=False) if named is None else Path(os.path.expanduser(named.strip()))
    folder = base / "tensorrt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def _cores_if_fewer() -> int:
    """Cores that this process may use, where it may not use all of them; else 0, ORT's own choice of one thread per physical core."""
    usable = cores()
    return usable if usable < (os.cpu_count() or usable) else 0


def built(graph: bytes, provider: str, threads: int | None, tuning: Tuning, inputs: Shapes) -> OrtSession:
    """An ORT session from the bytes of a graph: from bytes, weights in a second file next to it cannot be pulled in."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL  # what ORT logs as an error, it raises as well
    options.intra_op_num_threads = threads or _cores_if_fewer()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.graph_optimization_level = _LEVELS[tuning.graph_level]
    options.enable_cpu_mem_arena = tuning.arena
    for key, value in (
        ("session.intra_op.allow_spinning", tuning.spin),
        ("session.inter_op.allow_spinning", tuning.spin),
        ("session.set_denormal_as_zero", tuning.flush_denormals),
        ("session.dynamic_block_base", tuning.dynamic_block_base),
        ("session.record_ep_graph_assignment_info", provider != CPU),
    ):
        options.add_session_config_entry(key, str(int(value)))
    cuda = (CUDA, cuda_options(tuning))
    providers = {CPU: [CPU], CUDA: [cuda, CPU], TENSORRT: [(TENSORRT, tensorrt_options(inputs, tuning)), cuda, CPU]}[provider]
    # The keyword is `sess_options`; ORT ignores unknown keywords. Its own fallback prints, and hides that the device failed.
    session: OrtSession = ort.InferenceSession(graph, sess_options=options, providers=providers, enable_fallback=0)
    return session
