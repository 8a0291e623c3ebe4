"""Which reference each frame is drawn from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REFERENCE_BIN_DEG = 15.0
REFERENCE_HOLD = 0.8
"""A reference is kept until the head is this many bins away from its pose; half a bin would change it at every edge."""
REFERENCE_OPENING = 0.08
"""References may be more open than the person's most closed one by this."""


def references_of(track: int, yaws: NDArray[np.float64], candidates: dict[tuple[int, int], tuple[float, int]]) -> NDArray[np.int32]:
    """The reference of each frame, int32 (n,): the most closed mouth of about the frame's own pose.

    It changes only when the head has turned well beyond the pose of the one in use, so that the texture does not flicker; poses in
    which the mouth was never about as closed as at its best are left out.
    """
    known = {pose: found for (owner, pose), found in candidates.items() if owner == track}
    closed = min(opening for opening, _ in known.values())
    usable = {pose: number for pose, (opening, number) in known.items() if opening <= closed + REFERENCE_OPENING}
    poses = np.array(sorted(usable))
    nearest = poses[np.abs(yaws[:, None] / REFERENCE_BIN_DEG - poses[None]).argmin(axis=1)]
    chosen = np.empty(len(yaws), np.int32)
    pose = int(nearest[0])
    for frame, yaw in enumerate(yaws):
        if abs(yaw / REFERENCE_BIN_DEG - pose) > REFERENCE_HOLD:
            pose = int(nearest[frame])
        chosen[frame] = usable[pose]
    return chosen
