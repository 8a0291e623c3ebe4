"""Opening a graph: on the device that was asked for, and only where its tensors are the expected ones."""

from __future__ import annotations

from pathlib import Path

from lipdub.errors import BundleInvalid, ProviderUnavailable
from lipdub.options import Device
from lipdub.runtime.gpu import open_gpu
from lipdub.runtime.ort_words import CPU, CUDA, FLOAT32, KINDS, ORT_ERRORS, TENSORRT, OrtSession, Shapes, one_line
from lipdub.runtime.session import Session
from lipdub.runtime.tuning import TUNING, Tuning, built


def open_session(
    path: Path,
    *,
    device: Device,
    threads: int | None = None,
    inputs: Shapes,
    outputs: Shapes,
    tuning: Tuning = TUNING,
    graph: bytes | None = None,
) -> Session:
    """The graph at `path`, ready to run on `device`, after checking that its tensors are `inputs` and `outputs`.

    device: ``cpu``; ``cuda``, or an error; ``auto`` for CUDA where it really loads and runs this graph, else the CPU, without
    a word. threads: CPU threads inside one operator, None for as many as there are physical cores, or fewer where this process
    may use fewer. graph: bytes to run in the place of the file's, a rewriting of it; its tensors may be uint8.

    Raises BundleInvalid: no such file, no ONNX graph, weights kept in a second file (which no hash covers), other tensors than
    expected. ProviderUnavailable: ``cuda`` did not load, or TensorRT did not where `tuning` and ``cuda`` ask for it.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be positive, got {threads = }")
    kinds: tuple[str, ...] = (FLOAT32,) if graph is None else tuple(KINDS)
    try:
        graph = path.read_bytes() if graph is None else graph
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read ({error.strerror}): export or copy the bundle again") from error
    session: OrtSession | None = None
    notes: list[str] = []
    for provider in _wanted(device, tuning):
        session, why_not = open_gpu(graph, provider, threads, inputs, tuning)
        if session is not None:
            break
        notes.append(why_not)
    if session is None:
        try:
            session = built(graph, CPU, threads, tuning, inputs)
        except ORT_ERRORS as error:
            raise BundleInvalid(f"{path} is no usable ONNX graph ({one_line(error)}): export the bundle again") from error
    _check(path, session, inputs, outputs, kinds)
    if device == "cuda" and notes:
        raise ProviderUnavailable(notes[-1])
    return Session(path, session, inputs, outputs, tuning=tuning, notes=tuple(dict.fromkeys(notes)))


def _wanted(device: Device, tuning: Tuning) -> list[str]:
    """GPU providers to try, the best first."""
    if device == "cpu":
        return []
    return [TENSORRT, CUDA] if tuning.tensorrt else [CUDA]


def _check(path: Path, session: OrtSession, inputs: Shapes, outputs: Shapes, kinds: tuple[str, ...]) -> None:
    """Raise BundleInvalid unless the graph's tensors have the expected names, sizes and one of the types `kinds`.

    An output may leave open a size that is expected (exporters cannot always infer it; `Session.run` looks again); no tensor
    may fix an axis that is expected to be dynamic.
    """
    for verb, found, expected, open_sizes in (
        ("takes", session.get_inputs(), inputs, False),
        ("gives", session.get_outputs(), outputs, True),
    ):
        fits = {tensor.name for tensor in found} == set(expected) and all(
            tensor.type in kinds and _matches(tensor.shape, expected[tensor.name], open_sizes) for tensor in found
        )
        if not fits:
            has = ", ".join(_described(tensor.name, tensor.shape, tensor.type) for tensor in found)
            wants = ", ".join(_described(name, shape, FLOAT32) for name, shape in expected.items())
            raise BundleInvalid(f"{path} {verb} {has}; expected {wants}: graphs swapped, or of another export?")


def _matches(found: list[int | str | None], expected: tuple[int | str, ...], open_sizes: bool) -> bool:
    """Whether the declared sizes `found` fit `expected`; `open_sizes` lets a declared name stand for an expected size."""
    return len(found) == len(expected) and all(
        has == wants if isinstance(has, int) else isinstance(wants, str) or open_sizes for has, wants in zip(found, expected, strict=True)
    )


def _described(name: str, shape: list[int | str | None] | tuple[int | str, ...], kind: str) -> str:
    """A tensor in a message: ``mel float (B, 1, 80, 16)``."""
    return f"{name} {kind.removeprefix('tensor(').removesuffix(')')} ({', '.join(str(axis) for axis in shape)})"
