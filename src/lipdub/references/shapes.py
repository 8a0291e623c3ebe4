"""Lips as they lie in the unit crop: where the 40 points of both rings stand, how far they open, and how two mouths are compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UPPER_INNER_LIP, LOWER_INNER_LIP = 35, 25
"""Where mesh points 13 and 14 stand among the 40 lip points."""
INNER, CORNERS = slice(20, 40), (0, 10, 20, 30)
"""The inner ring among the 40 lip points, and where each ring has its corners."""
EYE_DISTANCE = 0.38
"""Distance of the outer eye corners in the unit crop: turns a gap of the lips there into the opening that is reported."""
REST_SHARE = 0.2
"""A mouth rests as the mean of this share of its most closed frames."""
OPENING_WEIGHT = 20.0
"""Of the opening, among 80 coordinates."""
SHAPE_NUMBERS = 81


def shape_of(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """What of lips (n, 40, 2) is compared, float32 (n, 81): the points, of which the inside of the mouth and its corners count most, and
    the opening, which decides what is seen inside. The mean absolute difference of two is about that of their points."""
    weights = np.ones((40, 1), np.float32)
    weights[INNER] = 1.5
    weights[list(CORNERS)] *= 1.5
    weights /= weights.mean()
    return np.column_stack([(lips * weights).reshape(len(lips), 80), OPENING_WEIGHT * inner_opening(lips)])


def speed_of(lips: NDArray[np.float32], times_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """How fast lips (n, 40, 2) move, seen at rising times (n,): float32 (n,), per second, in the distance that ``shape_of`` gives."""
    if len(lips) < 2:
        return np.zeros(len(lips), np.float32)
    return np.asarray(np.abs(np.gradient(shape_of(lips), times_s, axis=0)).mean(axis=1), np.float32)


def mouth_width(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the corners of the lips (n, 40, 2) are apart, float32 (n,), unit crop."""
    return lips[:, CORNERS[1], 0] - lips[:, CORNERS[0], 0]


def inner_opening(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the inner lips of (n, 40, 2) are apart, float32 (n,), unit crop."""
    return lips[:, LOWER_INNER_LIP, 1] - lips[:, UPPER_INNER_LIP, 1]
