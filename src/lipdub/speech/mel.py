"""Log-mel of speech and the window that drives one frame: one convention, used by training and inference alike.

16 kHz mono, pre-emphasis 0.97, centred STFT (n_fft 800, hop 200, zeros outside the sound), 80 Slaney mel bands
55-7600 Hz, decibels with a floor of -100 and a reference of 20 mapped to [-4, 4] (the Wav2Lip convention). Column j is
centred on sample ``200 j``, that is on ``j / 80`` seconds. No statistic runs over the clip, so a stream equals the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lipdub.records import MelSpec
from lipdub.speech.filterbank import hann, slaney_filters

SILENCE = -4.0
"""Mel value of digital silence, and of everything outside the sound."""


class MelStream:
    """Turns blocks of samples into mel columns as they come: ``push`` any number of blocks, then ``flush`` once."""

    def __init__(self, spec: MelSpec) -> None:
        self._spec = spec
        self._filters = slaney_filters(spec.sample_rate_hz, spec.n_fft, spec.bands, spec.fmin_hz, spec.fmax_hz)
        # A window shorter than the transform stands in its middle.
        before = (spec.n_fft - spec.win) // 2
        self._window = np.pad(hann(spec.win), (before, spec.n_fft - spec.win - before))
        # Centred STFT: half a window of zeros stands before the first sample.
        self._pending: NDArray[np.float32] = np.zeros(spec.n_fft // 2, np.float32)
        self._previous = np.float32(0.0)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Columns that `samples` (float32 (n,), mono, [-1, 1]) complete: float32 (bands, columns), possibly none."""
        if len(samples) == 0:
            return np.zeros((self._spec.bands, 0), np.float32)
        shifted = np.concatenate([[self._previous], samples[:-1]]).astype(np.float32)
        self._previous = np.float32(samples[-1])
        emphasised = samples - np.float32(self._spec.preemphasis) * shifted
        self._pending = np.concatenate([self._pending, emphasised.astype(np.float32)])
        return self._drain()

    def flush(self) -> NDArray[np.float32]:
        """The last columns, with half a window of zeros after the last sample."""
        self._pending = np.concatenate([self._pending, np.zeros(self._spec.n_fft // 2, np.float32)])
        return self._drain()

    def _drain(self) -> NDArray[np.float32]:
        spec = self._spec
        columns = max(0, (len(self._pending) - spec.n_fft) // spec.hop + 1)
        if columns == 0:
            return np.zeros((spec.bands, 0), np.float32)
        used = self._pending[: (columns - 1) * spec.hop + spec.n_fft]
        framed = np.lib.stride_tricks.sliding_window_view(used, spec.n_fft)[:: spec.hop]
        # Reckoned in float64 and kept in complex64, as librosa does, whose columns these are to the bit.
        spectrum = np.abs(np.fft.rfft(framed * self._window, axis=1).astype(np.complex64)).T
        self._pending = self._pending[columns * spec.hop :]
        floor = 10.0 ** (spec.floor_db / 20.0)
        decibels = 20.0 * np.log10(np.maximum(floor, self._filters @ spectrum)) - spec.reference_db
        scaled = 8.0 * (decibels - spec.floor_db) / -spec.floor_db - 4.0
        return np.clip(scaled, -4.0, 4.0).astype(np.float32)


def log_mel(samples: NDArray[np.float32], spec: MelSpec) -> NDArray[np.float32]:
    """Mel of a whole sound: `samples` float32 (n,) mono at ``spec.sample_rate_hz`` in [-1, 1]; float32 (bands, 1 + n // hop) in [-4, 4]."""
    stream = MelStream(spec)
    return np.concatenate([stream.push(np.asarray(samples, np.float32)), stream.flush()], axis=1)


def first_column(times_s: NDArray[np.float64], spec: MelSpec) -> NDArray[np.int64]:
    """Index of the first of the ``spec.window`` columns whose middle lies nearest to each time; may be negative. int64 (n,)."""
    middle = (spec.window - 1) / 2.0
    # The last term settles times halfway between two columns (every fifth frame at 25 fps) for the later one, whatever the float says.
    return np.floor(np.asarray(times_s, np.float64) * spec.columns_per_s - middle + 0.5 + 1e-6).astype(np.int64)


def cut_windows(mel: NDArray[np.float32], times_s: NDArray[np.float64], spec: MelSpec) -> NDArray[np.float32]:
    """Windows of a whole mel (bands, columns) centred on `times_s` (n,): float32 (n, bands, window); silence outside the sound."""
    return _cut(mel, first_column(times_s, spec), spec)


def _cut(mel: NDArray[np.float32], first: NDArray[np.int64], spec: MelSpec) -> NDArray[np.float32]:
    """Windows of `mel` (bands, columns) that start at the columns `first` (n,): float32 (n, bands, window)."""
    index = first[:, None] + np.arange(spec.window)[None, :]
    inside = (index >= 0) & (index < mel.shape[1])
    gathered = mel[:, np.clip(index, 0, max(0, mel.shape[1] - 1))] if mel.shape[1] else np.zeros((spec.bands, *index.shape))
    windows = np.where(inside[None], gathered, SILENCE)
    return np.ascontiguousarray(windows.transpose(1, 0, 2), dtype=np.float32)


class MelTrack:
    """Mel windows of a streamed sound at times that only go forward. Holds a second or so of columns, never the whole."""

    def __init__(self, blocks: Iterable[NDArray[np.float32]], spec: MelSpec) -> None:
        """`blocks`: mono float32 samples at ``spec.sample_rate_hz``, as ``media.read_audio`` yields them."""
        self._spec = spec
        self._stream = MelStream(spec)
        self._blocks: Iterator[NDArray[np.float32]] | None = iter(blocks)
        self._columns = np.zeros((spec.bands, 0), np.float32)
        self._start = 0

    def windows(self, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """Windows centred on `times_s` (n,): float32 (n, bands, window). Times may go back by at most one second from call to call."""
        if len(times_s) == 0:
            return np.zeros((0, self._spec.bands, self._spec.window), np.float32)
        first = first_column(times_s, self._spec)
        self._pull(int(first.max()) + self._spec.window)
        keep_from = int(first.min()) - self._spec.columns_per_s
        if keep_from > self._start:
            self._columns = self._columns[:, keep_from - self._start :]
            self._start = keep_from
        # Counted in columns: a shift in seconds would round a time between two columns the other way.
        return _cut(self._columns, first - self._start, self._spec)

    def _pull(self, end: int) -> None:
        fresh = [self._columns]
        have = self._start + self._columns.shape[1]
        while have < end and self._blocks is not None:
            block = next(self._blocks, None)
            columns = self._stream.flush() if block is None else self._stream.push(block)
            if block is None:
                self._blocks = None
            fresh.append(columns)
            have += columns.shape[1]
        self._columns = np.concatenate(fresh, axis=1)
