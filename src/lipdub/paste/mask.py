"""Where the new picture is taken: a soft mask that follows the jaw."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.faces.crop import JAW
from lipdub.records import CropSpec

JAW_GROWTH = 0.07
"""The mask reaches this far beyond the chin (share of its distance from the mouth), less and less towards the ears, which it leaves alone:
a strip of true jaw tells the true speech, and beside the cheeks lie hair, ears, collars and the background."""
CHIN_GROWTH = 0.035
"""And this much further down at the chin (unit crop): room for a mouth that opens wider than the source's."""
FEATHER = 0.022
"""Sigma of the mask's soft edge, unit crop."""


def mask_of(outline: NDArray[np.float32], spec: CropSpec) -> NDArray[np.float32]:
    """Where the new picture is taken: float32 (S, S) in [0, 1], soft-edged, zero outside the drawn box.

    outline: float32 (P, 2) in crop px, the jaw from ear to ear, then the upper edge back. Covers mouth, jaw and chin and
    reaches beyond the jaw.
    """
    size = spec.size
    points = np.array(outline, np.float32)
    jaw = points[: len(JAW)]
    mouth = np.array([jaw[:, 0].mean(), points[:, 1].min() + 0.35 * np.ptp(points[:, 1])], np.float32)
    lowness = np.clip((jaw[:, 1] - mouth[1]) / max(1.0, float(np.ptp(points[:, 1]))), 0, 1)
    points[: len(JAW)] = jaw + (jaw - mouth) * (JAW_GROWTH * lowness[:, None])
    points[: len(JAW), 1] += CHIN_GROWTH * size * lowness
    mask = np.zeros((size, size), np.float32)
    fraction_bits = 4
    cv2.fillPoly(mask, [np.round(points * 2**fraction_bits).astype(np.int32)], (1.0,), cv2.LINE_8, fraction_bits)
    mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), FEATHER * size), np.float32)
    return np.asarray(np.clip(mask * 1.04 - 0.02, 0, 1) * _box_ramp(spec), np.float32)


@lru_cache(maxsize=8)
def _box_ramp(spec: CropSpec) -> NDArray[np.float32]:
    """1 inside the drawn box, falling to 0 at those of its edges that are not the crop's own: float32 (S, S)."""
    y0, y1, x0, x1 = spec.drawn
    reach = max(1.0, 0.05 * spec.size)
    along = np.arange(spec.size, dtype=np.float32) + 0.5
    vertical = np.clip(np.minimum(along - y0, y1 - along) / reach, 0, 1)
    horizontal = np.clip(np.minimum(along - x0, x1 - along) / reach, 0, 1)
    return np.asarray(vertical[:, None] * horizontal[None, :], np.float32)
