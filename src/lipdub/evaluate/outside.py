"""Pixels outside the mask: they are to stay as they were."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.evaluate.pixels import LUMA, psnr_of
from lipdub.faces import crop
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.paste.mask import mask_of
from lipdub.records import CropSpec

GROW_PX = 8
"""A codec spreads a change within its blocks: this far around the mask no pixel is counted."""


@dataclass(slots=True)
class OutsideError:
    """Squared differences between frames and their dubs, summed over pixels, in RGB and in luma."""

    rgb: float = 0.0
    luma: float = 0.0
    pixels: int = 0
    worst_frame_rgb: float = 0.0

    def add(self, one: NDArray[np.uint8], other: NDArray[np.uint8], where: NDArray[np.bool_]) -> None:
        """Count the pixels `where` (H, W) of one frame (H, W, 3)."""
        difference = one[where].astype(np.float32) - other[where].astype(np.float32)
        if len(difference) == 0:
            return
        rgb = float(np.square(difference, dtype=np.float64).sum())
        self.rgb += rgb
        self.luma += float(np.square(difference @ LUMA, dtype=np.float64).sum())
        self.pixels += len(difference)
        self.worst_frame_rgb = max(self.worst_frame_rgb, rgb / (3 * len(difference)))

    def rgb_db(self) -> float:
        """PSNR in dB over RGB and all counted pixels of all frames, higher is better; what encoding alone costs is in it. NaN: none."""
        return psnr_of(self.rgb / (3 * self.pixels)) if self.pixels else float("nan")

    def luma_db(self) -> float:
        """The same of the brightness alone."""
        return psnr_of(self.luma / self.pixels) if self.pixels else float("nan")

    def worst_frame_rgb_db(self) -> float:
        """``rgb_db`` of the worst single frame."""
        return psnr_of(self.worst_frame_rgb) if self.pixels else float("nan")


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
