"""Single pictures as the bytes of a file."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.errors import EncodingFailed


def encode_picture(pixels: NDArray[np.uint8], suffix: str, options: Sequence[int] = ()) -> bytes:
    """A picture (H, W, 3) RGB as a .png or .jpg file; options: OpenCV's ``IMWRITE_*`` pairs. Raises EncodingFailed."""
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    except cv2.error:
        done = False
    if not done:
        raise EncodingFailed(f"a picture of {pixels.shape[1]} x {pixels.shape[0]} px cannot be encoded as {suffix}; make it smaller")
    return data.tobytes()
