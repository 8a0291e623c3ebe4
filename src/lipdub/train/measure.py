"""Mouth openings in drawn crops, measured by a face detector: a judge that none of our networks can learn to please."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.faces.detector import FaceDetector
from lipdub.faces.landmarks import opening_of
from lipdub.media.planes import RgbPicture

ENLARGED = 3
"""Crops are enlarged by this before the mouth is measured: the detector sees small faces badly."""


def measured(crops: NDArray[np.uint8], detector: FaceDetector) -> NDArray[np.float32]:
    """Mouth opening over eye distance in each crop (N, S, S, 3), float32 (N,), NaN where there is no face."""
    detector.reset()
    found = np.full(len(crops), np.nan, np.float32)
    side = crops.shape[1] * ENLARGED
    for row, pixels in enumerate(crops):
        faces = detector.detect(RgbPicture(np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)))
        if faces:
            found[row] = opening_of(faces[0].landmarks)
    return found
