"""Where one shot of a film ends and the next begins."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.media.planes import Picture

CUT_DIFFERENCE = 0.11
"""Mean absolute difference of two small grey pictures (0 to 1) above which a shot may end here."""
CUT_CORRELATION = 0.75
"""And the correlation of the two pictures must be below this: a flash or a fade is no cut."""


class ShotCounter:
    """Numbers the shots: a cut is a frame that differs much from the one before and does not look like it."""

    def __init__(self) -> None:
        self.shot = 0
        self._previous: NDArray[np.float32] | None = None

    def is_cut(self, picture: Picture) -> bool:
        """Whether the next frame begins a new shot, which is then counted."""
        grey = picture.grey(max(1, min(picture.height, picture.width) // 90))
        small = np.asarray(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA), np.float32)
        previous, self._previous = self._previous, small
        if previous is None or float(np.abs(small - previous).mean()) < CUT_DIFFERENCE:
            return False
        one, other = small - small.mean(), previous - previous.mean()
        scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
        if scale > 1e-6 and float((one * other).sum()) / scale > CUT_CORRELATION:
            return False
        self.shot += 1
        return True
