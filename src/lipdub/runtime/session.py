"""One graph on one device: a call at a time, or many rows in batches."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final

from lipdub.errors import BundleInvalid, ModelError
from lipdub.runtime.buffers import Buffers, Lane
from lipdub.runtime.ort_words import CPU, ORT_ERRORS, Array, OrtSession, Shapes, one_line, out_of_memory
from lipdub.runtime.tuning import CPU_BATCH, CUDA_BATCH, TUNING, Tuning

Fill = Callable[[slice, Mapping[str, Array]], None]
"""Writes the rows of that slice into the session's input arrays, as many rows as the slice has."""
Collect = Callable[[slice, Mapping[str, Array]], None]
"""Takes the rows of that slice out of the session's output arrays, which the next batch overwrites; it may change them."""

FREE_THE_GPU: Final = "stop what else uses the GPU (nvidia-smi lists it)"
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

    def __init__(
        self, path: Path, session: OrtSession, inputs: Shapes, outputs: Shapes, *, tuning: Tuning = TUNING, notes: tuple[str, ...] = ()
    ) -> None:
        self.path = path
        self.provider: str = session.get_providers()[0]
        self.notes = notes
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        on_cpu = self.provider == CPU
        self._batch = tuning.batch or (CPU_BATCH if on_cpu else CUDA_BATCH)
        # A GPU looks for its convolutions anew for each batch size, so it meets few; a CPU would work for the rows nobody asked for.
        self._rounds_up = not on_cpu
        self._lanes = [Lane(session, inputs, outputs, self.provider) for _ in range(1 if on_cpu else tuning.lanes)]
        # Kept from call to call: CUDA has handles of its own for each thread.
        self._pool = ThreadPoolExecutor(len(self._lanes), "lipdub-lane") if len(self._lanes) > 1 else None
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
        """Rows that `stream` likes to get in one call: a batch for each that can be on its way at once."""
        return self._batch * len(self._lanes)

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
                    for lane in self._lanes:
                        lane.clear()

    def _flow(self, start: int, count: int, fill: Fill, collect: Collect) -> Iterator[slice]:
        """Batch after batch from row `start` on, those that were collected; several on their way at once where there are lanes."""
        slices = self._slices(start, count)
        if self._pool is None or len(slices) < 2:
            for rows in slices:
                buffers = self._buffers(self._lanes[0], rows)
                fill(rows, buffers.first(rows, buffers.inputs))
                with self._mapped_errors():
                    buffers.run()
                collect(rows, buffers.first(rows, buffers.outputs))
                yield rows
            return
        under_way: deque[tuple[slice, Buffers, Future[None]]] = deque()
        try:
            for number, rows in enumerate(slices):
                if len(under_way) == len(self._lanes):
                    yield self._collected(*under_way.popleft(), collect)
                buffers = self._buffers(self._lanes[number % len(self._lanes)], rows)
                fill(rows, buffers.first(rows, buffers.inputs))
                under_way.append((rows, buffers, self._pool.submit(buffers.run)))
            while under_way:
                yield self._collected(*under_way.popleft(), collect)
        finally:  # nobody may fill, or free, what a batch still reads
            wait([future for _, _, future in under_way])

    def _slices(self, start: int, count: int) -> list[slice]:
        """The rows from `start` on, cut into batches: on the CPU equal ones, for a rest of one row costs a quarter more than a row among
        others; on a GPU full ones, which it has met before."""
        size = self._batch
        if not self._rounds_up and count > start:
            size = -(-(count - start) // -(-(count - start) // self._batch))
        return [slice(first, min(first + size, count)) for first in range(start, count, size)]

    def _collected(self, rows: slice, buffers: Buffers, running: Future[None], collect: Collect) -> slice:
        with self._mapped_errors():
            running.result()
        collect(rows, buffers.first(rows, buffers.outputs))
        return rows

    def _buffers(self, lane: Lane, rows: slice) -> Buffers:
        size = rows.stop - rows.start
        if self._rounds_up:
            size = min(self._batch, 1 << (size - 1).bit_length())
        with self._mapped_errors():
            return lane.buffers(size)

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
