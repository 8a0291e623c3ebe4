"""ONNX Runtime as the rest of this package sees it: names, types, its exceptions and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"

Shapes = Mapping[str, tuple[int | str, ...]]
"""Tensor name to the sizes of its axes; a name in place of a size stands for a dynamic axis."""
Array = NDArray[Any]

FLOAT32: Final = "tensor(float)"
KINDS: Final[Mapping[str, type[np.generic]]] = {FLOAT32: np.float32, "tensor(uint8)": np.uint8}
"""ORT's names of the types that tensors may have here."""

# ORT's exceptions have no base of their own but Exception; RuntimeError is what it throws for anything it has no class for.
ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
_OUT_OF_MEMORY: Final = ("out of memory", "failed to allocate", "alloc_failed", "allocation failed", "bad_alloc")


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
