"""One graph on one device: opened where its tensors are the expected ones, then run a call at a time or many rows in batches."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final

from lipdub.errors import BundleInvalid, ModelError, ProviderUnavailable
from lipdub.options import Device
from lipdub.runtime.buffers import Buffers, BufferSet
from lipdub.runtime.cuda import open_cuda
from lipdub.runtime.onnx_runtime import (
    CPU,
    DTYPES,
    FLOAT32,
    FREE_THE_GPU,
    ORT_ERRORS,
    Array,
    OrtSession,
    Shapes,
    new_session,
    one_line,
    out_of_memory,
)

CPU_BATCH: Final = 8
"""Rows that go through a CPU session together: beyond that a batch only needs more memory, each row being work for all threads."""
CUDA_BATCH: Final = 128
"""Rows that go through a GPU session together; a quarter of it, once, where the GPU's memory does not hold them."""
CUDA_BATCHES_IN_FLIGHT: Final = 2
"""Batches in flight on a GPU at once: one is copied while the other is worked on, each on a stream of its own."""

Fill = Callable[[slice, Mapping[str, Array]], None]
"""Writes the rows of that slice into the session's input arrays, as many rows as the slice has."""
Collect = Callable[[slice, Mapping[str, Array]], None]
"""Takes the rows of that slice out of the session's output arrays, which the next batch overwrites; it may change them."""

_WRONG_SHAPE: Final = ("invalid dimensions for output", "computed output shape", "shape verification failed")
SHRINK: Final = 4
"""What a batch is divided by when memory did not hold it."""


class DeviceMemoryFull(ModelError):
    """A graph did not run because the device's memory does not hold its batch."""


class Session:
    """One graph on one device. Made by `open_session`; holds no file open, and frees its memory when it is dropped.

    path: the graph. provider: ORT's name of the device that it runs on. notes: what was asked for and is not used, and why,
    one line each. Any number of threads may call `run`; those that call `stream` wait for each other.
    """

    def __init__(self, path: Path, session: OrtSession, inputs: Shapes, outputs: Shapes, *, notes: tuple[str, ...] = ()) -> None:
        self.path = path
        self.provider: str = session.get_providers()[0]
        self.notes = notes
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        on_cpu = self.provider == CPU
        self._batch = CPU_BATCH if on_cpu else CUDA_BATCH
        # A GPU looks for its convolutions anew for each batch size, so it meets few; a CPU would work for the rows nobody asked for.
        self._rounds_up = not on_cpu
        self._buffer_sets = [BufferSet(session, inputs, outputs, self.provider) for _ in range(1 if on_cpu else CUDA_BATCHES_IN_FLIGHT)]
        # Kept from call to call: CUDA has handles of its own for each thread.
        self._pool = ThreadPoolExecutor(len(self._buffer_sets), "lipdub-batch") if len(self._buffer_sets) > 1 else None
        self._may_shrink = True
        self._streaming = threading.Lock()

    def __repr__(self) -> str:
        return f"Session({self.path.name}, {self.provider})"

    @property
    def batch(self) -> int:
        """Rows that `stream` sends through the graph together."""
        return self._batch

    @property
    def preferred_batch(self) -> int:
        """Rows in one call of `stream` that keep the device busy: a batch for each that can be in flight at once."""
        return self._batch * len(self._buffer_sets)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name for one batch of inputs by name, in the shapes and types that were checked on opening.

        Raises ModelError where the graph did not run, DeviceMemoryFull where the device's memory was too small, BundleInvalid
        where an output has another shape than the graph was opened for.
        """
        with self._mapped_errors():
            results = self._session.run(list(self._outputs), dict(feeds))
        sizes = {axis: size for name, value in feeds.items() for axis, size in zip(self._inputs[name], value.shape, strict=True)}
        for (name, shape), value in zip(self._outputs.items(), results, strict=True):
            expected = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in shape)
            if value.shape != expected:
                raise BundleInvalid(f"{self.path} gave {name} of shape {value.shape}, not {expected}: export the bundle again")
        return dict(zip(self._outputs, results, strict=True))

    def stream(self, count: int, *, fill: Fill, collect: Collect) -> None:
        """Send `count` rows through the graph in batches, in order, in arrays that are bound once and used again.

        fill, collect: called in this thread for one batch after the other; on a GPU the next batch is filled while the one
        before is worked on. Where a GPU's memory does not hold a batch, a smaller one is tried, once, from then on. The graph's
        one dynamic axis is the first of every tensor.

        Raises what `run` raises, and what `fill` and `collect` raise.
        """
        with self._streaming:
            done = 0
            while True:
                try:
                    for rows in self._flow(done, count, fill, collect):
                        done = rows.stop
                    return
                except DeviceMemoryFull:
                    if not self._may_shrink or self._batch == 1:
                        raise
                    self._may_shrink = False
                    self._batch = max(1, self._batch // SHRINK)
                    for buffer_set in self._buffer_sets:
                        buffer_set.clear()

    def _flow(self, start: int, count: int, fill: Fill, collect: Collect) -> Iterator[slice]:
        """Batch after batch from row `start` on, those that were collected; several in flight at once on a GPU."""
        slices = self._slices(start, count)
        if self._pool is None or len(slices) < 2:
            for rows in slices:
                buffers = self._buffers(self._buffer_sets[0], rows)
                fill(rows, buffers.first(rows, buffers.inputs))
                with self._mapped_errors():
                    buffers.run()
                collect(rows, buffers.first(rows, buffers.outputs))
                yield rows
            return
        in_flight: deque[tuple[slice, Buffers, Future[None]]] = deque()
        try:
            for number, rows in enumerate(slices):
                if len(in_flight) == len(self._buffer_sets):
                    yield self._collected(*in_flight.popleft(), collect)
                buffers = self._buffers(self._buffer_sets[number % len(self._buffer_sets)], rows)
                fill(rows, buffers.first(rows, buffers.inputs))
                in_flight.append((rows, buffers, self._pool.submit(buffers.run)))
            while in_flight:
                yield self._collected(*in_flight.popleft(), collect)
        finally:  # nobody may fill, or free, what a batch still reads
            wait([future for _, _, future in in_flight])

    def _slices(self, start: int, count: int) -> list[slice]:
        """The rows from `start` on, cut into batches.

        On the CPU they have about the same size: a row alone at the end costs a quarter more than one among others.
        On a GPU they are full: a size that it has met before is fast.
        """
        size = self._batch
        if not self._rounds_up and count > start:
            size = -(-(count - start) // -(-(count - start) // self._batch))
        return [slice(first, min(first + size, count)) for first in range(start, count, size)]

    def _collected(self, rows: slice, buffers: Buffers, running: Future[None], collect: Collect) -> slice:
        with self._mapped_errors():
            running.result()
        collect(rows, buffers.first(rows, buffers.outputs))
        return rows

    def _buffers(self, buffer_set: BufferSet, rows: slice) -> Buffers:
        size = rows.stop - rows.start
        if self._rounds_up:
            size = min(self._batch, 1 << (size - 1).bit_length())
        with self._mapped_errors():
            return buffer_set.buffers(size)

    @contextlib.contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except ORT_ERRORS as error:
            words = one_line(error)
            if out_of_memory(str(error)):
                fix = "close other programs" if self.provider == CPU else f"{FREE_THE_GPU}, or use --device cpu"
                raise DeviceMemoryFull(f"{self.path} needs more memory than {self.provider} has left ({words}); {fix}") from error
            if any(sign in str(error) for sign in _WRONG_SHAPE):
                raise BundleInvalid(f"{self.path} gave an output of another shape than expected: export the bundle again") from error
            raise ModelError(f"{self.path} failed on {self.provider} ({words}); try --device cpu") from error


def open_session(
    path: Path,
    *,
    device: Device,
    threads: int | None = None,
    inputs: Shapes,
    outputs: Shapes,
    graph: bytes | None = None,
) -> Session:
    """The graph at `path`, ready to run on `device`, after checking that its tensors are `inputs` and `outputs`.

    device: ``cpu``; ``cuda``, or an error; ``auto`` for CUDA where it really loads and runs this graph, else the CPU, without
    a word. threads: CPU threads inside one operator, None for as many as there are physical cores, or fewer where this process
    may use fewer. graph: bytes to run in the place of the file's, a rewriting of it; its tensors may be uint8.

    Raises BundleInvalid: no such file, no ONNX graph, weights kept in a second file (which no hash covers), other tensors than
    expected. ProviderUnavailable: ``cuda`` did not load.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be positive, got {threads = }")
    dtypes: tuple[str, ...] = (FLOAT32,) if graph is None else tuple(DTYPES)
    try:
        graph = path.read_bytes() if graph is None else graph
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read ({error.strerror}): export or copy the bundle again") from error
    session: OrtSession | None = None
    why_not = ""
    if device != "cpu":
        session, why_not = open_cuda(graph, threads, inputs)
    if session is None:
        try:
            session = new_session(graph, CPU, threads)
        except ORT_ERRORS as error:
            raise BundleInvalid(f"{path} is no usable ONNX graph ({one_line(error)}): export the bundle again") from error
    _check(path, session, inputs, outputs, dtypes)
    if device == "cuda" and why_not:
        raise ProviderUnavailable(why_not)
    return Session(path, session, inputs, outputs, notes=(why_not,) if why_not else ())


def _check(path: Path, session: OrtSession, inputs: Shapes, outputs: Shapes, dtypes: tuple[str, ...]) -> None:
    """Raise BundleInvalid unless the graph's tensors have the expected names, sizes and one of the types `dtypes`.

    An output may leave open a size that is expected (exporters cannot always infer it; `Session.run` looks again); no tensor
    may fix an axis that is expected to be dynamic.
    """
    for verb, found, expected, open_sizes in (
        ("takes", session.get_inputs(), inputs, False),
        ("gives", session.get_outputs(), outputs, True),
    ):
        fits = {tensor.name for tensor in found} == set(expected) and all(
            tensor.type in dtypes and _matches(tensor.shape, expected[tensor.name], open_sizes) for tensor in found
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
