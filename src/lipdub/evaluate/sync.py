"""Sound against lips: offset, confidence and cosine of two embedding tracks, and what an expert has to be able to do.

Both tracks lie on one 25 Hz grid that starts at time zero. The figures are those of SyncNet (Chung & Zisserman 2016, "Out of time:
automated lip sync in the wild"), with cosines in the place of distances, since our expert's embeddings are unit vectors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

GRID_HZ = 25
REACH = 15
"""Offsets are looked for from -15 to 15 frames, as in SyncNet's evaluation."""
FEWEST = 10
"""An offset at which fewer frames than this overlap is not counted."""
PIECE = 64
"""Frames that are embedded together."""


class PublicSync(Protocol):
    """The public SyncNet behind LSE-D and LSE-C (``lipdub.train.public_syncnet``); the command hands it in, so that nothing here
    needs torch."""

    @property
    def size(self) -> int:
        """Side of the crops, px."""

    @property
    def frames(self) -> int:
        """Crops that one window looks at."""

    def embed_lips(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One row per window of `frames` successive crops, uint8 (N, size, size, 3) RGB at 25 Hz: (N - frames + 1, E)."""

    def scores(self, lips: NDArray[np.float32], samples: NDArray[np.float32]) -> tuple[float, float, float]:
        """LSE-D, LSE-C and offset in frames of the windows' rows (N, E) and the sound, mono float32 at 16 kHz in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class SyncFigures:
    """How sound and lips belong together; NaN where there is too little to go by.

    offset: frames at 25 Hz by which the lips come after the sound (negative: before it): the shift with the highest mean cosine. 0 is
    right, but for the clip's own offset. The sign is SyncNet's; training counts how late the sound is.
    confidence: that mean cosine less the median over all shifts, 0 to 2, higher is better (SyncNet's "median less minimum distance").
    cosine: mean cosine at no shift, -1 to 1, higher is better.
    """

    offset: float
    confidence: float
    cosine: float


def shift_curve(
    lips: NDArray[np.float32], sound: NDArray[np.float32], valid: NDArray[np.bool_] | None = None, *, reach: int = REACH
) -> NDArray[np.float64]:
    """Mean cosine of the lips of frame i with the sound of frame i - d, for each d from -reach to reach: float64 (2 reach + 1,).

    lips, sound: (N, E), any length of rows. valid: bool (N,), frames whose lips count. NaN where fewer than ``FEWEST`` frames overlap.
    """
    if lips.ndim != 2 or lips.shape != sound.shape:
        raise ValueError(f"lips and sound must be (N, E) alike, got {lips.shape = }, {sound.shape = }")
    one, other = _unit(lips), _unit(sound)
    counted = np.ones(len(one), bool) if valid is None else valid
    found = np.full(2 * reach + 1, np.nan)
    for slot, shift in enumerate(range(-reach, reach + 1)):
        low, high = max(0, shift), min(len(one), len(one) + shift)
        rows = np.arange(low, max(low, high))
        rows = rows[counted[rows]]
        if len(rows) >= FEWEST:
            found[slot] = float(np.einsum("ne,ne->n", one[rows], other[rows - shift]).mean())
    return found


def sync_of(lips: NDArray[np.float32], sound: NDArray[np.float32], valid: NDArray[np.bool_] | None = None) -> SyncFigures:
    """The sync figures of two embedding tracks (N, E); `valid`, bool (N,): frames whose lips count."""
    curve = shift_curve(lips, sound, valid)
    reach = len(curve) // 2
    if not np.isfinite(curve).any():
        return SyncFigures(float("nan"), float("nan"), float("nan"))
    best = int(np.nanargmax(curve))
    return SyncFigures(float(best - reach), float(curve[best] - np.nanmedian(curve)), float(curve[reach]))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    rows64 = rows.astype(np.float64)
    return rows64 / np.maximum(np.linalg.norm(rows64, axis=1, keepdims=True), 1e-12)


class GridCrops:
    """The crops of a video on the 25 Hz grid, in an unnamed temporary file: of any length, nothing of it in memory.

    ``add`` takes the frames as they come, each with its time; the grid slots that lie nearest to a frame get it. A context manager.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.valid: list[bool] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._held: tuple[float, NDArray[np.uint8], bool] | None = None

    def __enter__(self) -> GridCrops:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.valid)

    def add(self, time_s: float, crop: NDArray[np.uint8] | None) -> None:
        """The next frame: its crop, uint8 (size, size, 3), or None where there is no face."""
        previous = self._held
        pixels = crop if crop is not None else previous[1] if previous is not None else np.zeros((self.size, self.size, 3), np.uint8)
        if previous is not None:
            self._fill(previous, (previous[0] + time_s) / 2)
        self._held = (time_s, pixels, crop is not None)

    def finish(self) -> None:
        """No frame follows: the last one gets its slot."""
        if self._held is not None:
            self._fill(self._held, self._held[0] + 0.5 / GRID_HZ)
            self._held = None

    def _fill(self, frame: tuple[float, NDArray[np.uint8], bool], until_s: float) -> None:
        while len(self.valid) / GRID_HZ < until_s - 1e-9:
            self._file.write(np.ascontiguousarray(frame[1]).tobytes())
            self.valid.append(frame[2])

    @property
    def times_s(self) -> NDArray[np.float64]:
        """Times of the slots, float64 (N,)."""
        return np.arange(len(self)) / GRID_HZ

    def read(self, first: int, end: int) -> NDArray[np.uint8]:
        """The crops [first, end), uint8 (n, size, size, 3)."""
        length = self.size * self.size * 3
        self._file.seek(first * length)
        data = self._file.read((end - first) * length)
        return np.frombuffer(data, np.uint8).reshape(-1, self.size, self.size, 3)

    def near_valid(self, before: int, after: int) -> NDArray[np.bool_]:
        """Slots all of whose neighbours from `before` slots before to `after` slots after have a face: bool (N,)."""
        valid = np.pad(np.array(self.valid, bool), (before, after), constant_values=True)
        return np.lib.stride_tricks.sliding_window_view(valid, before + after + 1).all(axis=1)


def embed_centred(crops: GridCrops, embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]], *, context: int) -> NDArray[np.float32]:
    """Rows of all slots by an `embed` whose row looks `context` slots both ways; a piece at a time, as if all at once."""
    rows = []
    for first in range(0, len(crops), PIECE):
        low, end = max(0, first - context), min(len(crops), first + PIECE)
        rows.append(embed(crops.read(low, min(len(crops), end + context)))[first - low : end - low])
    return np.concatenate(rows)


def embed_forward(crops: GridCrops, embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]], *, frames: int) -> NDArray[np.float32]:
    """Rows of all windows of `frames` successive slots by an `embed` that gives one row per window; a piece at a time."""
    starts = range(0, len(crops) - frames + 1, PIECE)
    return np.concatenate([embed(crops.read(first, min(len(crops), first + PIECE + frames - 1))) for first in starts])
