"""The light on the face: a drawn crop is brought to the colours around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.media.planes import Depth
from lipdub.references.pages import still_part

COLOUR_REACH = 0.16
"""Sigma over which colour differences on static skin are carried into the mask, unit crop."""
COLOUR_PX = 32
"""Side of the picture in which colour differences are carried."""
LEAST_RED = 0.5
"""Red over green in painted lips, teeth and tongue, at least, as a share of the skin's. Three quarters of 936 open mouths of our footage
have almost no pixel below it, one in a hundred has pixels below half of it."""


MOST_GAIN = 3.0
LEAST_SPREAD = 2.0
"""Levels of 8 bits: skin that is flatter than this (a frame that has faded out) tells no gain."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Light:
    """What brings a page into the light of a frame: gain and offset of luma and of both chromas, float32 (3,) each, in levels."""

    gain: NDArray[np.float32]
    offset: NDArray[np.float32]

    @classmethod
    def between(cls, page: NDArray[np.float32], frame: NDArray[np.float32], depth: Depth) -> Light:
        """From a page's crop to a frame's, float32 (S, S, 3) luma and chroma levels of `depth`, by skin that does not move."""
        one, other = (cv2.blur(still_part(levels), (3, 3)).reshape(-1, 3) for levels in (page, frame))
        mean, wanted = one.mean(axis=0), other.mean(axis=0)
        spread = np.maximum(float(one[:, 0].std()), LEAST_SPREAD * depth.step)
        luma = float(np.clip(float(other[:, 0].std()) / spread, 0.0, MOST_GAIN))
        # Chroma is a distance from grey: how much of the page's colour is left in the frame.
        colour, left = mean[1:] - depth.grey, wanted[1:] - depth.grey
        chroma = float(np.clip(float(colour @ left) / max(depth.step**2, float(colour @ colour)), 0.0, MOST_GAIN))
        gain = np.array([luma, chroma, chroma], np.float32)
        return cls(gain, np.asarray(wanted - gain * mean, np.float32))

    def upon(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Luma and chroma levels (..., 3) in this light."""
        return levels * self.gain + self.offset


def match_colour(drawn: NDArray[np.uint8], target: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """The drawn crop with its skin brought to the colour around it: float32 (S, S, 3) in [0, 255].

    Differences are read on a ring of static skin at the mask's upper edge (cheeks and beside the nose, where drawn and target
    show the same thing) and carried smoothly into the mask.
    """
    size = len(mask)
    half = size // 2  # what is carried is so smooth that coarse pictures hold it
    shrunk = [cv2.resize(picture, (half, half), interpolation=cv2.INTER_AREA) for picture in (target, drawn, mask)]
    ring = cv2.GaussianBlur(shrunk[2], (0, 0), 0.05 * half) * (1 - shrunk[2])
    ring[int(0.64 * half) :] = 0
    ring[:, : int(0.2 * half)] = 0
    ring[:, int(0.8 * half) :] = 0
    difference = cv2.subtract(shrunk[0], shrunk[1], dtype=cv2.CV_32F)
    # Where the two differ much they do not show the same thing (hair, a hand): leave it out. The worst of the pixels around counts.
    worst = largest(cv2.dilate(cv2.absdiff(target, drawn), np.ones((3, 3), np.uint8)))[: 2 * half : 2, : 2 * half : 2]
    ring *= np.exp(-((worst.astype(np.float32) / 40) ** 2))
    if 4 * float(ring.sum()) < 1.0:
        return drawn.astype(np.float32)
    coarse = min(half, COLOUR_PX)
    weighted = cv2.resize(np.dstack([difference * ring[..., None], ring]), (coarse, coarse), interpolation=cv2.INTER_AREA)
    mean = weighted[..., :3].sum(axis=(0, 1)) / weighted[..., 3].sum()
    local = cv2.GaussianBlur(weighted, (0, 0), COLOUR_REACH * coarse)
    # Far from the ring the mean takes over.
    trust = 0.02
    offset = (local[..., :3] + trust * mean) / (local[..., 3:] + trust)
    carried = cv2.resize(offset, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(cv2.add(carried, drawn, dtype=cv2.CV_32F), 0, 255, out=carried), np.float32)


def without_green(drawn: NDArray[np.float32], paint_mask: NDArray[np.uint8], taken: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A drawn box (h, w, 3), float32 levels, whose paint is nowhere greener than the light on the face allows; brightness stays.

    paint_mask: uint8 (h, w), 255 for all paint; from half on it counts as that. taken: uint8 (S, S, 3), the whole crop as it was. Teeth
    that are painted in the grey of another light look green beside reddish skin.
    """
    size = len(taken)
    skin = taken[int(0.45 * size) : int(0.6 * size), int(0.25 * size) : int(0.75 * size)].astype(np.float32)
    least = LEAST_RED * max(0.0, float(np.median(skin[..., 0] - skin[..., 1])))
    missing = np.clip(least - (drawn[..., 0] - drawn[..., 1]), 0, None) * np.minimum(1, paint_mask * np.float32(2 / 255))
    result = drawn.copy()
    # Shares that leave luma as it is (ITU-R BT.601: 0.299 R + 0.587 G).
    result[..., 0] += np.float32(0.66) * missing
    result[..., 1] -= np.float32(0.34) * missing
    return np.asarray(np.clip(result, 0, 255, out=result), np.float32)


def largest(picture: NDArray[Any]) -> NDArray[Any]:
    """The largest of each pixel's three channels, (H, W): in a tenth of the time that numpy takes along an axis of three."""
    red, green, blue = cv2.split(picture)
    return np.asarray(cv2.max(cv2.max(red, green), blue))
