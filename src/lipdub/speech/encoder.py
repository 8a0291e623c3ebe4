"""Features of a speech by the pretrained encoder, in windows on a fixed grid.

Window k begins at ``k core - context`` seconds, ends at ``(k + 1) core + context``, and gives the positions of its core alone; the grid
begins at 0, and outside the sound is silence. So the same moment gives the same features whatever comes before or after it, a stream equals
the whole, and memory is flat. Positions are 20 ms apart, the first one at 0; between two of them features are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub.bundles import encoder
from lipdub.bundles.encoder import COLUMNS_PER_POSITION, FEATURES, LOG_MEL, POSITIONS_PER_S, EncoderSpec
from lipdub.errors import BundleInvalid
from lipdub.options import Device
from lipdub.runtime import open_session
from lipdub.speech.whisper_mel import RATE_HZ, WhisperMelStream

_BEHIND = 10
"""Columns of silence after the sound that its last window has at least."""


class SpeechEncoder:
    """An encoder that is ready to run. Several threads may use it at once."""

    def __init__(self, folder: Path, spec: EncoderSpec, *, device: Device = "auto", threads: int | None = None) -> None:
        self.spec = spec
        self._session = open_session(
            folder / encoder.GRAPH, device=device, threads=threads, inputs=spec.tensors.inputs, outputs=spec.tensors.outputs
        )

    def __repr__(self) -> str:
        return f"SpeechEncoder({self.spec.name}, {self._session.provider})"

    def encode(self, log_mel: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states of one window: log-mel float32 (bands, columns) to float32 (T, D).

        Raises BundleInvalid where the network answers no numbers.
        """
        features = self._session.run({LOG_MEL: log_mel[np.newaxis]})[FEATURES][0]
        if not np.isfinite(features).all():
            raise BundleInvalid(f"{self._session.path} gave no features but NaN or infinity: copy the encoder again")
        return np.asarray(features, np.float32)


def grid_windows(blocks: Iterable[NDArray[np.float32]], spec: EncoderSpec) -> Iterator[NDArray[np.float32]]:
    """Log-mel windows of a streamed sound on the encoder's grid, one after the other: float32 (bands, columns); at least one. The last core
    ends in silence, which goes on.

    blocks: mono float32 samples at 16 kHz in [-1, 1], as ``media.read_audio`` yields them.
    """
    stream, step, context = WhisperMelStream(floor=spec.floor), spec.core * COLUMNS_PER_POSITION, spec.context * COLUMNS_PER_POSITION
    source: Iterator[NDArray[np.float32]] | None = iter(blocks)
    silence = np.float32((spec.floor + 4.0) / 4.0)
    held, behind = np.full((spec.bands, context), silence, np.float32), ((0, 0), (0, _BEHIND))
    while True:
        fresh, have = [held], held.shape[1]
        while have < spec.columns and source is not None:
            block = next(source, None)
            columns = np.pad(stream.flush(), behind, constant_values=silence) if block is None else stream.push(block)
            source = None if block is None else source
            fresh.append(columns)
            have += columns.shape[1]
        held = np.concatenate(fresh, axis=1)
        window = held[:, : spec.columns]
        yield np.pad(window, ((0, 0), (0, spec.columns - window.shape[1])), constant_values=silence)
        held = held[:, step:]
        if source is None and held.shape[1] <= context:
            return


class FeatureTrack:
    """Feature windows of a streamed sound at times that only go forward. Holds a window and a second, never the whole."""

    def __init__(self, blocks: Iterable[NDArray[np.float32]], speech_encoder: SpeechEncoder, taps: tuple[int, ...]) -> None:
        """blocks: mono float32 samples at 16 kHz, as ``media.read_audio`` yields them. taps: positions around a moment that make up its
        window, 0 for the moment itself."""
        self._encoder, self._taps = speech_encoder, np.array(taps, np.int64)
        spec = speech_encoder.spec
        self._windows: Iterator[NDArray[np.float32]] | None = grid_windows(blocks, spec)
        self._features = np.zeros((0, spec.channels), np.float32)
        self._first = 0
        # Times may go back by a second.
        self._kept = POSITIONS_PER_S + max(0, -taps[0])

    def windows(self, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """Feature windows around `times_s` (n,): float32 (n, taps, D). They may lie at most one second before the latest that were
        asked for. Before the sound its first position goes on, after it silence."""
        if len(times_s) == 0:
            return np.zeros((0, len(self._taps), self._features.shape[1]), np.float32)
        exact = np.asarray(times_s, np.float64)[:, None] * POSITIONS_PER_S + self._taps
        self._reach(exact)
        return interpolated(self._features, exact - self._first)

    def _reach(self, positions: NDArray[np.float64]) -> None:
        """Have the features up to the last of these positions, and let go of what lies well before the first."""
        spec, last = self._encoder.spec, max(0, int(np.floor(positions.max())) + 1)
        while self._windows is not None and self._first + len(self._features) <= last:
            window = next(self._windows, None)
            if window is None:
                self._windows = None
                break
            self._features = np.concatenate([self._features, self._encoder.encode(window)[spec.inside]])
        keep_from = int(np.floor(positions.min())) - self._kept
        if keep_from > self._first:
            gone = min(keep_from - self._first, len(self._features) - 1)
            self._features, self._first = self._features[gone:], self._first + gone


def interpolated(track: NDArray[np.floating], positions: NDArray[np.float64]) -> NDArray[np.float32]:  # type: ignore[type-arg]
    """Rows of a track (P, D) at positions of any shape, between two rows linear; the ends go on. float32 (*shape, D)."""
    exact = np.clip(positions, 0, len(track) - 1)
    first = np.minimum(np.floor(exact).astype(np.int64), max(0, len(track) - 2))
    share = (exact - first).astype(np.float32)[..., None]
    return np.asarray((1 - share) * track[first] + share * track[np.minimum(first + 1, len(track) - 1)], np.float32)


def feature_track(samples: NDArray[np.float32], speech_encoder: SpeechEncoder) -> NDArray[np.float32]:
    """All features of a whole sound, float32 (n,) at 16 kHz: float32 (positions, D), the first position at 0 and one behind the end."""
    spec = speech_encoder.spec
    whole = np.concatenate([speech_encoder.encode(window)[spec.inside] for window in grid_windows([samples], spec)])
    return whole[: -(-len(samples) * POSITIONS_PER_S // RATE_HZ) + 1]
