"""Single pictures: as the bytes of a file, and photos brought to a size that a video can have."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.errors import EncodingFailed
from lipdub.media.copies import fitted
from lipdub.media.pictures import probe, read_frames
from lipdub.records import DubWarning, VideoInfo, Warn

LARGE_PHOTO_PX = 4_000_000
FITTED_PX = 1920
"""A photo of more pixels than that is scaled so that its longer side has this many: few players take H.264 of 24 megapixels, and no face
needs them."""


def fitted_photo(video: Path, info: VideoInfo, warn: Warn = lambda _: None) -> tuple[Path, VideoInfo]:
    """The file to read in the place of `video`, and what it says of itself: the same, but for photos of more than 4 megapixels, which are
    scaled to fit 1920 x 1920 px, their sides even.

    Raises UnreadableMedia, NoVideoStream; WriteFailed: there is no room for the smaller picture.
    """
    if not info.is_still or info.width * info.height <= LARGE_PHOTO_PX:
        return video, info
    scale = FITTED_PX / max(info.width, info.height)
    width, height = (max(2, 2 * round(scale * side / 2)) for side in (info.width, info.height))
    with closing(read_frames(video)) as chunks:
        pixels = np.asarray(cv2.resize(next(chunks).pixels[0], (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    smaller = fitted(video, pixels)
    text = f"the photo of {info.width} x {info.height} px is scaled to {width} x {height} px; --full-size keeps its size"
    warn(DubWarning("photo-scaled", text))
    return smaller, replace(probe(smaller), path=video, has_audio=info.has_audio, is_transparent=info.is_transparent)


def encode_picture(pixels: NDArray[np.uint8], suffix: str, options: Sequence[int] = ()) -> bytes:
    """A picture (H, W, 3) RGB as a .png or .jpg file; options: OpenCV's ``IMWRITE_*`` pairs. Raises EncodingFailed."""
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    except cv2.error:
        done = False
    if not done:
        raise EncodingFailed(f"a picture of {pixels.shape[1]} x {pixels.shape[0]} px cannot be encoded as {suffix}; make it smaller")
    return data.tobytes()
