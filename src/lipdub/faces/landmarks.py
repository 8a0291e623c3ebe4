"""What is read off the points of a face mesh: lips, opening of the mouth, pose of the head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_OUTER_RING = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409)
_INNER_RING = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415)
LIPS = np.array([*_OUTER_RING, *_INNER_RING], np.int64)
"""The 40 lip points of the face mesh: outer ring, then inner ring."""


def opening_of(landmarks: NDArray[np.float32]) -> float:
    """Mouth opening: distance of the inner lips (13, 14) over the distance of the outer eye corners (33, 263)."""
    lips = float(np.linalg.norm(landmarks[13, :2] - landmarks[14, :2]))
    return lips / max(1e-6, float(np.linalg.norm(landmarks[33, :2] - landmarks[263, :2])))


def pose_of(landmarks: NDArray[np.float32]) -> tuple[float, float]:
    """Yaw and pitch in degrees from the mesh's depth: cheek to cheek, and forehead to under the nose."""
    across, down = landmarks[454] - landmarks[234], landmarks[2] - landmarks[10]
    return float(np.degrees(np.arctan2(across[2], across[0]))), float(np.degrees(np.arctan2(down[2], down[1])))
