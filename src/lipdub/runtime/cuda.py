"""Sessions on CUDA, proved by a run; and where there is none, why, with what to do about it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import io
import sys
import warnings
from typing import Final

import numpy as np
import onnxruntime as ort

from lipdub.runtime.onnx_runtime import (
    CUDA,
    DTYPES,
    FREE_THE_GPU,
    ORT_ERRORS,
    Array,
    OrtSession,
    Shapes,
    new_session,
    out_of_memory,
    shortened,
)

_INSTALL: Final = 'pip install "lipdub[cuda]"'


def open_cuda(graph: bytes, threads: int | None, inputs: Shapes) -> tuple[OrtSession | None, str]:
    """An ORT session on CUDA that has run once on zeros; or None, and why not with what to do about it."""
    missing = _not_compiled_in() or _no_driver()
    if missing:
        return None, missing
    load_error = _preload_cuda()
    why = ""
    try:
        session = new_session(graph, CUDA, threads)
        if session.get_providers()[0] == CUDA:
            session.run(None, _zeros(session, inputs))
            if _took_a_node(session):
                return session, ""
            why = "it took no node of this graph"
    except ORT_ERRORS as error:
        why = str(error)
    return None, _reason(why, load_error)


def _zeros(session: OrtSession, inputs: Shapes) -> dict[str, Array]:
    """One row for the graph; what does not fit it fails when it is run."""
    dtypes = {tensor.name: DTYPES.get(tensor.type, np.float32) for tensor in session.get_inputs()}
    return {
        name: np.zeros([axis if isinstance(axis, int) else 1 for axis in shape], dtypes.get(name, np.float32))
        for name, shape in inputs.items()
    }


def _took_a_node(session: OrtSession) -> bool:
    """Whether ORT gave CUDA any part of the graph. Older releases do not say; what ran is then taken for it."""
    assignment = getattr(session, "get_provider_graph_assignment_info", None)
    return assignment is None or any(part.ep_name == CUDA for part in assignment())


def _reason(why: str, load_error: str) -> str:
    """Why CUDA is not used, and the fix. why: what ORT said, if anything. load_error: the library that did not load."""
    short = shortened(why)
    if out_of_memory(why):
        return f"CUDA did not load: {short}; {FREE_THE_GPU}, or use --device cpu"
    if "cudnn" in load_error.lower():
        return f"CUDA did not load: cuDNN 9 is missing ({load_error}); {_INSTALL}, or use --device cpu"
    if load_error:
        return f"CUDA did not load: a library of the CUDA runtime is missing ({load_error}); {_INSTALL}, or use --device cpu"
    if any(sign in why.lower() for sign in ("driver version is insufficient", "cuda failure 35", "no kernel image")):
        return f"CUDA did not load: {short}; update the NVIDIA driver to one for CUDA {ort.cuda_version or '12'}, or use --device cpu"
    return f"CUDA did not load: {short or 'no usable GPU'}; check the driver with nvidia-smi, or use --device cpu"


def _not_compiled_in() -> str:
    """Why the installed onnxruntime cannot have CUDA, with the fix; or ''."""
    if CUDA in ort.get_available_providers():
        return ""
    if sys.platform == "darwin":
        return "CUDA did not load: macOS has none; use --device cpu"
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        return (
            "CUDA did not load: onnxruntime and onnxruntime-gpu are both installed and overwrite each other; pip uninstall -y "
            f"onnxruntime onnxruntime-gpu, then {_INSTALL}, or use --device cpu"
        )
    return f"CUDA did not load: this onnxruntime was built without it; pip uninstall -y onnxruntime, then {_INSTALL}, or use --device cpu"


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _no_driver() -> str:
    """That no NVIDIA driver is installed, with the fix; or ''."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return (
            f"CUDA did not load: there is no NVIDIA driver ({name} not found); install it until nvidia-smi lists the GPU (a container "
            "is started with --gpus all), or use --device cpu"
        )
    return ""


@functools.cache
def _preload_cuda() -> str:
    """Load the CUDA libraries that pip installed, once. What went wrong in a few words, or ''.

    ORT prints here, where only the CLI may: so its words are caught, and kept for the error message.
    """
    if not hasattr(ort, "preload_dlls"):
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ort.preload_dlls()
    return next((shortened(line) for line in said.getvalue().splitlines() if line.startswith("Failed to load")), "")
