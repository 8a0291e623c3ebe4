"""ONNX Runtime sessions: which device they really run on, how many threads, and whether the graph is the expected one.

The only importer of onnxruntime, and the one place where its exceptions become ours. Two of its habits shape this file:
asked for a device that it cannot load, it logs a warning and runs on the CPU; and ``get_available_providers`` lists what
was compiled in, not what loads. So a device counts only after a session on it has run once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from lipdub.errors import BundleInvalid, ModelError, ProviderUnavailable
from lipdub.records import Device

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

Shapes = Mapping[str, tuple[int | str, ...]]
"""Tensor name to the sizes of its axes; a name in place of a size stands for a dynamic axis. Every tensor is float32."""

_FATAL: Final = 4
_WARNING: Final = 2
_FLOAT32: Final = "tensor(float)"

# ORT's exceptions have no base of their own but Exception; RuntimeError is what it throws for anything it has no class for.
_ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


class _Tensor(Protocol):
    """What an ORT session says of one of its inputs or outputs."""

    name: str
    type: str
    shape: list[int | str | None]


class _OrtSession(Protocol):
    """What is used of ``onnxruntime.InferenceSession``, which has no types of its own."""

    def get_providers(self) -> list[str]: ...
    def get_inputs(self) -> list[_Tensor]: ...
    def get_outputs(self) -> list[_Tensor]: ...
    def run(self, names: list[str] | None, feeds: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]: ...


class Session:
    """One graph on one device. Made by `open_session`; holds no file open, and frees its memory when it is dropped.

    path: the graph. provider: ORT's name of the device that it runs on.
    """

    def __init__(self, path: Path, session: _OrtSession, inputs: Shapes, outputs: Shapes) -> None:
        self.path = path
        self.provider: str = session.get_providers()[0]
        self._session = session
        self._inputs = inputs
        self._outputs = outputs

    def __repr__(self) -> str:
        return f"Session({self.path.name}, {self.provider})"

    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """All outputs by name for one batch of inputs by name, float32, in the shapes that were checked on opening.

        Raises ModelError where the graph did not run (a GPU out of memory, mostly), BundleInvalid where an output has
        another shape than the graph was opened for.
        """
        try:
            results = self._session.run(list(self._outputs), dict(feeds))
        except _ORT_ERRORS as error:
            raise ModelError(f"{self.path} failed on {self.provider} ({_one_line(error)}); try --device cpu") from error
        sizes = {axis: size for name, value in feeds.items() for axis, size in zip(self._inputs[name], value.shape, strict=True)}
        for (name, shape), value in zip(self._outputs.items(), results, strict=True):
            expected = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in shape)
            if value.shape != expected:
                raise BundleInvalid(f"{self.path} gave {name} of shape {value.shape}, not {expected}: export the bundle again")
        return dict(zip(self._outputs, results, strict=True))


def open_session(path: Path, *, device: Device, threads: int | None = None, inputs: Shapes, outputs: Shapes) -> Session:
    """The graph at `path`, ready to run on `device`, after checking that its tensors are `inputs` and `outputs`.

    device: ``cpu``; ``cuda``, or an error; ``auto`` for CUDA where it really loads and runs this graph, else the CPU, without
    a word. threads: CPU threads inside one operator, None for ORT's choice (one per physical core).

    Raises BundleInvalid: no such file, no ONNX graph, weights kept in a second file (which no hash covers), other tensors than
    expected. ProviderUnavailable: ``cuda`` did not load.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be positive, got {threads = }")
    try:
        graph = path.read_bytes()
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read ({error.strerror}): export or copy the bundle again") from error
    session, why_not = (None, "") if device == "cpu" else _open_cuda(graph, threads, inputs)
    if session is None:
        try:
            session = _build(graph, CPU, threads)
        except _ORT_ERRORS as error:
            raise BundleInvalid(f"{path} is no usable ONNX graph ({_one_line(error)}): export the bundle again") from error
        _check(path, session, inputs, outputs)
        if device == "cuda":
            raise ProviderUnavailable(f"CUDA did not load: {why_not}, or use --device cpu")
    else:
        _check(path, session, inputs, outputs)
    return Session(path, session, inputs, outputs)


def _open_cuda(graph: bytes, threads: int | None, inputs: Shapes) -> tuple[_OrtSession | None, str]:
    """An ORT session on CUDA that has run once on zeros; or None, and why not with what to do about it."""
    if CUDA not in ort.get_available_providers():
        return None, "this onnxruntime was built without it; install onnxruntime-gpu in place of onnxruntime"
    complaint = _preload_cuda()
    zeros = {name: np.zeros([axis if isinstance(axis, int) else 1 for axis in shape], np.float32) for name, shape in inputs.items()}
    try:
        with _quiet():
            session = _build(graph, CUDA, threads)
            if session.get_providers()[0] == CUDA:
                session.run(None, zeros)
                return session, ""
    except _ORT_ERRORS as error:
        return None, f"{complaint or _one_line(error)}; check the driver with nvidia-smi"
    if complaint:
        return None, f'{complaint}; pip install "onnxruntime-gpu[cuda,cudnn]"'
    return None, "no usable GPU or driver; check with nvidia-smi"


def _build(graph: bytes, provider: str, threads: int | None) -> _OrtSession:
    """An ORT session from the bytes of a graph: from bytes, weights in a second file next to it cannot be pulled in."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL  # what ORT logs as an error, it raises as well
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    providers = [provider] if provider == CPU else [provider, CPU]
    # The keyword is `sess_options`; ORT ignores unknown keywords. Its own fallback prints, and hides that the device failed.
    session: _OrtSession = ort.InferenceSession(graph, sess_options=options, providers=providers, enable_fallback=0)
    return session


def _check(path: Path, session: _OrtSession, inputs: Shapes, outputs: Shapes) -> None:
    """Raise BundleInvalid unless the graph's tensors have the expected names, sizes and type.

    An output may leave open a size that is expected (exporters cannot always infer it; `Session.run` looks again); no tensor
    may fix an axis that is expected to be dynamic.
    """
    for verb, found, expected, open_sizes in (
        ("takes", session.get_inputs(), inputs, False),
        ("gives", session.get_outputs(), outputs, True),
    ):
        fits = {tensor.name for tensor in found} == set(expected) and all(
            tensor.type == _FLOAT32 and _matches(tensor.shape, expected[tensor.name], open_sizes) for tensor in found
        )
        if not fits:
            has = ", ".join(_described(tensor.name, tensor.shape, tensor.type) for tensor in found)
            wants = ", ".join(_described(name, shape, _FLOAT32) for name, shape in expected.items())
            raise BundleInvalid(f"{path} {verb} {has}; expected {wants}: graphs swapped, or of another export?")


def _matches(found: list[int | str | None], expected: tuple[int | str, ...], open_sizes: bool) -> bool:
    """Whether the declared sizes `found` fit `expected`; `open_sizes` lets a declared name stand for an expected size."""
    return len(found) == len(expected) and all(
        has == wants if isinstance(has, int) else isinstance(wants, str) or open_sizes for has, wants in zip(found, expected, strict=True)
    )


def _described(name: str, shape: list[int | str | None] | tuple[int | str, ...], kind: str) -> str:
    """A tensor in a message: ``mel float (B, 1, 80, 16)``."""
    return f"{name} {kind.removeprefix('tensor(').removesuffix(')')} ({', '.join(str(axis) for axis in shape)})"


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
    return next((_shortened(line) for line in said.getvalue().splitlines() if line.startswith("Failed to load")), "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence ORT's own logger, which tells of a provider that does not load on stderr; ORT's default level afterwards."""
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _one_line(error: BaseException) -> str:
    """ORT's words, which run over many lines, on one."""
    return _shortened(str(error))


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:197] + "..."
