"""Arrays that are bound to a session once and used for one batch after the other, on the CPU and on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import weakref
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from lipdub.runtime.onnx_runtime import CPU, CUDA, DTYPES, Array, OrtSession, Shapes

_DEVICES: Final = {CPU: "cpu", CUDA: "cuda"}


class BufferSet:
    """The buffers that one batch after the other goes through, kept for each number of rows that was met."""

    def __init__(self, session: OrtSession, inputs: Shapes, outputs: Shapes, provider: str) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._provider = provider
        self._of_size: dict[int, Buffers] = {}

    def buffers(self, size: int) -> Buffers:
        """Buffers of `size` rows. On the CPU smaller ones lie within the largest, where the same rows are warm."""
        if size not in self._of_size:
            largest = max(self._of_size, default=0)
            share = self._of_size[largest] if size < largest and self._provider == CPU else None
            self._of_size[size] = Buffers(self._session, self._inputs, self._outputs, size, self._provider, share)
        return self._of_size[size]

    def clear(self) -> None:
        """Let go of all memory."""
        self._of_size.clear()


class Buffers:
    """Inputs and outputs of a session for one number of rows, bound to it once; nothing is allocated from then on.

    inputs, outputs: host arrays by name, all rows, 0 at first. On a GPU they are page-locked where that can be had, the inputs
    are copied to arrays that stay on the device, and ORT copies the outputs back. share: larger buffers whose memory is used.
    """

    def __init__(
        self, session: OrtSession, inputs: Shapes, outputs: Shapes, size: int, provider: str, share: Buffers | None = None
    ) -> None:
        on_cpu = provider == CPU
        if share is None:
            dtypes = {tensor.name: DTYPES[tensor.type] for tensor in (*session.get_inputs(), *session.get_outputs())}
            self.inputs, self.outputs = _zeros(inputs, size, dtypes), _zeros(outputs, size, dtypes)
        else:
            self.inputs = {name: array[:size] for name, array in share.inputs.items()}
            self.outputs = {name: array[:size] for name, array in share.outputs.items()}
        self._locks = [] if on_cpu else [page_locked(array) for array in (*self.inputs.values(), *self.outputs.values())]
        self._session = session
        self._binding = session.io_binding()
        self._on_device: list[tuple[Any, Array]] = []
        for name, array in self.inputs.items():
            if on_cpu:
                value = ort.OrtValue.ortvalue_from_numpy(array)
            else:
                value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype.type, _DEVICES[provider], 0)
                self._on_device.append((value, array))
            self._binding.bind_ortvalue_input(name, value)
        for name, array in self.outputs.items():
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def first(self, rows: slice, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """As many rows of the arrays as the slice has."""
        return {name: array[: rows.stop - rows.start] for name, array in arrays.items()}

    def run(self) -> None:
        """`outputs` for what lies in `inputs`. ORT lets other threads work meanwhile.

        A run ends when its own stream has, copies into host outputs included; the binding's synchronize_* would wait for the whole
        device, and so for the batches of other buffer sets.
        """
        for value, array in self._on_device:
            value.update_inplace(array)
        self._session.run_with_iobinding(self._binding)


def _zeros(shapes: Shapes, rows: int, dtypes: Mapping[str, type[np.generic]]) -> dict[str, Array]:
    """Arrays of these names and shapes, the first axis being `rows`."""
    return {name: np.zeros([rows, *(int(axis) for axis in shape[1:])], dtypes[name]) for name, shape in shapes.items()}


class _PageLock:
    """Host memory that the GPU copies from and to directly, which takes half the time; unlocked when this object is dropped."""

    def __init__(self, runtime: Any, array: Array) -> None:
        weakref.finalize(self, _unlock, runtime, array).atexit = False  # by then CUDA may be gone; the end of the process unlocks, too


def page_locked(array: Array) -> _PageLock | None:
    """Lock the array's memory in place, or None where the CUDA runtime is missing or refuses (mostly a limit of the system):
    copies then only take longer."""
    runtime = _cuda_runtime()
    portable = 1
    if runtime is None or array.nbytes == 0:
        return None
    if runtime.cudaHostRegister(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), ctypes.c_uint(portable)) != 0:
        runtime.cudaGetLastError()  # else ORT would take this error for one of its own kernels'
        return None
    return _PageLock(runtime, array)


def _unlock(runtime: Any, array: Array) -> None:
    if runtime.cudaHostUnregister(ctypes.c_void_p(array.ctypes.data)) != 0:
        runtime.cudaGetLastError()


@functools.cache
def _cuda_runtime() -> Any | None:
    """The CUDA runtime library that ORT's provider has loaded before; ORT itself locks no host memory for Python."""
    major = str(ort.cuda_version or "12").split(".", maxsplit=1)[0]
    for name in (f"cudart64_{major}.dll",) if sys.platform == "win32" else (f"libcudart.so.{major}",):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None
