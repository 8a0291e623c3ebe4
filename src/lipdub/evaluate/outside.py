"""Pixels outside the mask: they are to stay as they were."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.evaluate.pixels import psnr_of
from lipdub.faces import crop
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.paste.mask import mask_of
from lipdub.records import CropSpec

GROW_PX = 8
"""A codec spreads a change within its blocks: this far around the mask no pixel is counted."""


@dataclass(slots=True)
class OutsideError:
    """Squared differences between frames and their dubs, summed over RGB values."""

    squares: float = 0.0
    values: int = 0

    def add(self, one: NDArray[np.uint8], other: NDArray[np.uint8], where: NDArray[np.bool_]) -> None:
        """Count the pixels `where` (H, W) of one frame (H, W, 3)."""
        difference = one[where].astype(np.float32) - other[where].astype(np.float32)
        self.squares += float(np.square(difference, dtype=np.float64).sum())
        self.values += difference.size

    def rgb_db(self) -> float:
        """PSNR in dB over RGB and all counted pixels of all frames, higher is better; what encoding alone costs is in it. NaN: none."""
        return psnr_of(self.squares / self.values) if self.values else float("nan")


def outside_mask(track: FaceTrack, number: int, spec: CropSpec, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels (H, W) of a frame the paste does not reach, `GROW_PX` away from the mask."""
    if track.status[number] != DUBBED:
        return np.ones(shape, bool)
    mask = mask_of((track.outline[number].astype(np.float32) * spec.size).astype(np.float32), spec)
    to_frame = crop.crop_to_frame(track.similarity[number][None], spec.size)[0]
    height, width = shape
    reached = (cv2.warpAffine(mask, to_frame, (width, height), flags=cv2.INTER_LINEAR) > 0).astype(np.uint8)
    side = 2 * GROW_PX + 1
    grown = cv2.dilate(reached, cv2.getStructuringElement(cv2.MORPH_RECT, (side, side)))
    return np.asarray(grown == 0)
