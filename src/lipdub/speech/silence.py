"""Where the speech pauses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SILENT_BELOW = -3.4
SOUNDING_ABOVE = -2.9
"""Mean over the bands of the loudest column near a frame: below the first it is a pause, above the second it sounds.
Digital silence is -4, recorded pauses lie around -3.2 (quiet rooms) to -2.9, the quietest voiced frames above -2.5."""


def silence_weight(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each mel window (n, bands, window) is a pause: float32 (n,) from 0 (sounding) to 1 (silent)."""
    loudness = windows.mean(axis=1).max(axis=1) if len(windows) else np.zeros(0, np.float32)
    return pause_weight(loudness, SILENT_BELOW, SOUNDING_ABOVE)


def pause_weight(loudness: NDArray[np.float32], silent_below: float, sounding_above: float) -> NDArray[np.float32]:
    """How far moments of this loudness (n,) are pauses: float32 (n,) from 0 (above `sounding_above`) to 1 (below `silent_below`)."""
    weight = (sounding_above - loudness) / (sounding_above - silent_below)
    return np.clip(weight, 0.0, 1.0).astype(np.float32)
