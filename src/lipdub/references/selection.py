"""Which reference each frame is drawn from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipdub.references.pages import Pages

REFERENCE_BIN_DEG = 15.0
REFERENCE_HOLD = 0.8
"""A reference is kept until the head is this many bins away from its pose; half a bin would change it at every edge."""
REFERENCE_OPENING = 0.08
"""References may be more open than the person's most closed one by this."""


def references_of(yaws: NDArray[np.float64], pages: Pages, mine: NDArray[np.int64]) -> NDArray[np.int32]:
    """The reference of each frame of a person, int32 (n,): of the pages `mine` that of the most closed mouth of about the frame's own pose.

    It changes only when the head has turned well beyond the pose of the one in use, so that the texture does not flicker; poses in
    which the mouth was never about as closed as at its best are left out.
    """
    openings, bins = pages.openings[mine], np.round(pages.pose[mine, 0] / REFERENCE_BIN_DEG).astype(int)
    usable = {}
    for pose in np.unique(bins).tolist():
        here = np.flatnonzero(bins == pose)
        best = here[openings[here].argmin()]
        if openings[best] <= openings.min() + REFERENCE_OPENING:
            usable[pose] = int(mine[best])
    poses = np.array(sorted(usable))
    nearest = poses[np.abs(yaws[:, None] / REFERENCE_BIN_DEG - poses[None]).argmin(axis=1)]
    chosen = np.empty(len(yaws), np.int32)
    pose = int(nearest[0])
    for frame, yaw in enumerate(yaws):
        if abs(yaw / REFERENCE_BIN_DEG - pose) > REFERENCE_HOLD:
            pose = int(nearest[frame])
        chosen[frame] = usable[pose]
    return chosen
