"""Log-mel as Whisper takes it: 16 kHz mono, Hann window of 25 ms every 10 ms, 80 Slaney bands to 8 kHz, log10, (x + 4) / 4.

Whisper cuts at 8 below the loudest value of the whole clip. That would make a moment's features depend on everything before and after
it, so here the floor is fixed (``FLOOR``). Column j is centred on sample ``160 j``, that is on ``j / 100`` seconds; outside the sound are
zeros. No statistic runs over the clip: a stream equals the whole.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.bundles.encoder import BANDS, COLUMNS_PER_S
from lipdub.speech.filterbank import hann, slaney_filters

RATE_HZ: Final = 16000
N_FFT: Final = 400
HOP: Final = RATE_HZ // COLUMNS_PER_S
FLOOR: Final = -7.0
"""log10 of the faintest power per band that is told from silence: about what Whisper's own floor, 8 below the loudest, comes to in
speech of usual level."""
SILENT_BELOW: Final = -0.48
SOUNDING_ABOVE: Final = -0.32
"""Mean over the bands of the loudest column near a moment: below the first it is a pause, above the second it sounds. Fitted to what the
mel of the older bundles called pauses: on 8,200 moments of footage both agree in 99.3 %."""
_AT_ONCE: Final = 6000
"""Columns transformed at a time: bounds memory on long sounds."""


def log_mel(samples: NDArray[np.float32], *, floor: float = FLOOR) -> NDArray[np.float32]:
    """samples float32 (n,), mono 16 kHz in [-1, 1], to float32 (80, 1 + n // 160); about -0.75 to 1.5."""
    stream = WhisperMelStream(floor=floor)
    return np.concatenate([stream.push(samples), stream.flush()], axis=1)


class WhisperMelStream:
    """Turns blocks of samples into the columns of `log_mel` as they come: ``push`` any number of blocks, then ``flush`` once."""

    def __init__(self, *, floor: float = FLOOR) -> None:
        self._floor = floor
        # Column 0 is centred on sample 0: half a window of zeros stands before it.
        self._pending: NDArray[np.float32] = np.zeros(N_FFT // 2, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Columns that `samples` (float32 (n,), mono 16 kHz, [-1, 1]) complete: float32 (80, columns), possibly none."""
        self._pending = np.concatenate([self._pending, np.asarray(samples, np.float32)])
        columns = columns_of(self._pending, floor=self._floor)
        self._pending = self._pending[columns.shape[1] * HOP :]
        return columns

    def flush(self) -> NDArray[np.float32]:
        """The last columns, with half a window of zeros after the last sample."""
        return self.push(np.zeros(N_FFT // 2, np.float32))


def columns_of(samples: NDArray[np.float32], *, floor: float = FLOOR) -> NDArray[np.float32]:
    """Every whole analysis window of `samples` (n,), the first one beginning with them: float32 (80, max(0, 1 + (n - 400) // 160))."""
    count = max(0, (len(samples) - N_FFT) // HOP + 1)
    columns = np.empty((BANDS, count), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP] if count else np.zeros((0, N_FFT), np.float32)
    window, filters = hann(N_FFT).astype(np.float32), slaney_filters(RATE_HZ, N_FFT, BANDS, 0.0, RATE_HZ / 2)
    for first in range(0, count, _AT_ONCE):
        spectrum = np.fft.rfft(windows[first : first + _AT_ONCE] * window, axis=1)  # NumPy reckons in float64 whatever it is given
        power = np.abs(spectrum).astype(np.float32) ** 2
        columns[:, first : first + _AT_ONCE] = np.log10(np.maximum(filters @ power.T, np.float32(10.0**floor)))
    return (columns + np.float32(4.0)) / np.float32(4.0)
