"""ONNX Runtime: its names, types and exceptions, and a session as lipdub sets it up."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from lipdub.stages import cores

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

Shapes = Mapping[str, tuple[int | str, ...]]
"""Tensor name to the sizes of its axes; a name in place of a size stands for a dynamic axis."""
Array = NDArray[Any]

FLOAT32: Final = "tensor(float)"
DTYPES: Final[Mapping[str, type[np.generic]]] = {FLOAT32: np.float32, "tensor(uint8)": np.uint8}
"""ORT's names of the types that tensors may have here."""

# ORT's exceptions have no base of their own but Exception; RuntimeError is what it throws for anything it has no class for.
ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
FREE_THE_GPU: Final = "stop what else uses the GPU (nvidia-smi lists it)"
LOG_FATAL_ONLY: Final = 4
_OUT_OF_MEMORY: Final = ("out of memory", "failed to allocate", "alloc_failed", "allocation failed", "bad_alloc")

CUDA_OPTIONS: Final[Mapping[str, str]] = {
    # EXHAUSTIVE would try all convolutions of cuDNN anew for each batch size.
    "cudnn_conv_algo_search": "HEURISTIC",
    "cudnn_conv_use_max_workspace": "1",
    # A copy in a stream of its own has data races (onnxruntime issue 4829). What overlaps are whole batches, each on its own stream.
    "do_copy_in_default_stream": "1",
    # Doubling the arena would take the memory of whoever else works on the card.
    "arena_extend_strategy": "kSameAsRequested",
    # Holds for graphs that stay float32.
    "use_tf32": "1",
}
"""https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#configuration-options"""


class OrtTensor(Protocol):
    """What an ORT session says of one of its inputs or outputs."""

    name: str
    type: str
    shape: list[int | str | None]


class OrtSession(Protocol):
    """What is used of ``onnxruntime.InferenceSession``, which has no types of its own."""

    def get_providers(self) -> list[str]:
        """Providers in use, the first one before the others."""
        ...

    def get_inputs(self) -> list[OrtTensor]:
        """What the graph takes."""
        ...

    def get_outputs(self) -> list[OrtTensor]:
        """What the graph gives."""
        ...

    def run(self, names: list[str] | None, feeds: dict[str, Array]) -> list[Array]:
        """The outputs of that name, or all, as new arrays."""
        ...

    def io_binding(self) -> Any:
        """A new ``onnxruntime.IOBinding``."""
        ...

    def run_with_iobinding(self, binding: Any) -> None:
        """Run on what is bound. Other threads of Python go on meanwhile."""
        ...


def new_session(graph: bytes, provider: str, threads: int | None) -> OrtSession:
    """An ORT session on ``CPU`` or ``CUDA`` from the bytes of a graph: from bytes, weights in a second file cannot be pulled in.

    threads: inside one operator; None for ORT's choice of one per physical core, or fewer where this process may use fewer.

    Raises one of `ORT_ERRORS`.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL_ONLY  # what ORT logs as an error, it raises as well
    options.intra_op_num_threads = threads or _cores_if_fewer()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # Idle threads that wait in a loop would take the cores from decoder and encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", str(int(provider != CPU)))
    providers = [CPU] if provider == CPU else [(provider, dict(CUDA_OPTIONS)), CPU]
    # The keyword is `sess_options`; ORT ignores unknown keywords. Its own fallback prints, and hides that the device failed.
    session: OrtSession = ort.InferenceSession(graph, sess_options=options, providers=providers, enable_fallback=0)
    return session


def _cores_if_fewer() -> int:
    """Cores that this process may use, where it may not use all of them; else 0, ORT's own choice."""
    usable = cores()
    return usable if usable < (os.cpu_count() or usable) else 0


def in_half_precision(model: Any, *, kept_float32: tuple[str, ...] = (), kept_nodes: tuple[str, ...] = ()) -> Any:
    """An ``onnx.ModelProto`` with float16 arithmetic and weights in the place of float32, which the operators `kept_float32`, the nodes
    named `kept_nodes` and the graph's own inputs and outputs keep. Needs the package onnx."""
    before = list(sys.path)
    try:
        # Importing this subpackage puts its folder, which holds a benchmark.py and a metrics.py, on the path of all imports.
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    finally:
        sys.path[:] = before
    blocked = sorted({*DEFAULT_OP_BLOCK_LIST, *kept_float32})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers below float16's smallest become that; what comes of it is compared
        return convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked, node_block_list=list(kept_nodes))


def out_of_memory(words: str) -> bool:
    """Whether that is how ORT, CUDA, cuDNN or cuBLAS says that memory ran out."""
    return any(sign in words.lower() for sign in _OUT_OF_MEMORY)


def one_line(error: BaseException) -> str:
    """ORT's words, which run over many lines, on one."""
    return shortened(str(error))


def shortened(text: str) -> str:
    """`text` on one line of at most 200 characters."""
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:197] + "..."
