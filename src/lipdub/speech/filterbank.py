"""Mel filters: triangles of equal area, evenly spaced on Slaney's mel scale ("Auditory Toolbox", 1998), as ``librosa.filters.mel`` makes
them by default. Here without librosa, which brings numba along and compiles for half a minute when it is used first."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BREAK_HZ: Final = 1000.0
_BREAK_MEL: Final = 15.0
_HZ_PER_MEL: Final = 200.0 / 3
_LOG_STEP: Final = np.log(6.4) / 27.0
"""Slaney's scale: straight up to 1 kHz (15 mel), logarithmic above."""


@lru_cache(maxsize=4)
def slaney_filters(rate_hz: int, n_fft: int, bands: int, low_hz: float, high_hz: float) -> NDArray[np.float32]:
    """Weights of the n_fft // 2 + 1 frequencies of a spectrum in each band from `low_hz` to `high_hz`: float32 (bands, n_fft // 2 + 1)."""
    edges = _mel_to_hz(np.linspace(_hz_to_mel(low_hz), _hz_to_mel(high_hz), bands + 2))
    ramps = edges[:, None] - np.fft.rfftfreq(n_fft, 1 / rate_hz)[None]
    widths = np.diff(edges)
    rising, falling = -ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]
    # Rounded where librosa rounds: its filters to the bit.
    filters = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    return (filters * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def hann(length: int) -> NDArray[np.float64]:
    """Periodic Hann window, float64 (length,)."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length))


def _hz_to_mel(hz: float) -> float:
    return float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP) if hz >= _BREAK_HZ else hz / _HZ_PER_MEL


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel >= _BREAK_MEL, _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL)), _HZ_PER_MEL * mel)
