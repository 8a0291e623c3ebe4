"""What a face rig calls mouth shapes, told of lips and asked of them.

Names are those of ARKit's blend shapes (developer.apple.com, ``ARFaceAnchor.BlendShapeLocation``) where the meaning is equal: 0 is the
resting mouth, 1 as far as people move it. What lips do behind closed teeth is not heard: ``mouthClose``, ``mouthRoll`` and their like are
left out.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.references.shapes import CORNERS, EYE_DISTANCE, LOWER_INNER_LIP, UPPER_INNER_LIP

FULLY_OPEN: Final = 0.35 * EYE_DISTANCE
"""Gap of the inner lips that is a fully open jaw of speech, unit crop: footage passes 0.7 of it in one frame of a thousand."""
FULLY_NARROW, FULLY_WIDE = 0.052, 0.027
"""How much narrower the mouth gets, and how far out a corner goes, in one frame of a thousand; unit crop."""
FULLY_UP, FULLY_DOWN = 0.03, 0.06
"""How far the upper lip is raised and the lower one drops, likewise."""
SHAPES: Final = {
    "jawOpen": (1 / FULLY_OPEN, -1 / FULLY_OPEN, 0, 0),
    "mouthPucker": (0, 0, -1 / FULLY_NARROW, 1 / FULLY_NARROW),
    "mouthStretchLeft": (0, 0, 1 / FULLY_WIDE, 0),
    "mouthStretchRight": (0, 0, 0, -1 / FULLY_WIDE),
    "mouthUpperUpLeft": (0, -1 / FULLY_UP, 0, 0),
    "mouthUpperUpRight": (0, -1 / FULLY_UP, 0, 0),
    "mouthLowerDownLeft": (1 / FULLY_DOWN, 0, 0, 0),
    "mouthLowerDownRight": (1 / FULLY_DOWN, 0, 0, 0),
}
"""Each shape, before it is cut to [0, 1], by how far these have moved: the lower lip down, the upper one down, the person's left corner to
the right of the picture, and the right one."""
_MOVED: Final = (slice(None), [LOWER_INNER_LIP, UPPER_INNER_LIP, CORNERS[1], CORNERS[0]], [1, 1, 0, 0])
"""Where lips (n, 40, 2) tell it."""
_OF_MOVES: Final = np.array([*SHAPES.values()])
_CLEAR: Final = 0.1
"""A shape that changes by this is meant to; by a fifth of it, it may just have been read between two moments of a file."""
_MEANT: Final = 3000.0
"""What the one counts, where the other counts 1."""
_RIDGE: Final = 0.01
_ROUNDS: Final = 5
"""Three have been enough for each of 20,000 mouths."""


def shapes_of(points: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """ARKit's shapes of lips (n, 40, 2) relative to the resting mouth, unit crop; each float32 (n,) in [0, 1]."""
    curves = np.clip(points[_MOVED] @ _OF_MOVES.T, 0, 1).astype(np.float32)
    return dict(zip(SHAPES, curves.T, strict=True))


def reshaped(points: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lips (n, 40, 2) relative to the resting mouth, unit crop, moved as little as it takes to have the shapes `wanted`, float32 (n, 8) in
    the order of ``SHAPES``, NaN for one that may stay; float32 (n, 40, 2).

    Where shapes contradict each other (an open jaw, and lips that neither rise nor drop) those count that clearly have to change.
    """
    now = points[_MOVED] @ _OF_MOVES.T
    # A shape of 0 is any at or below it, and 1 likewise.
    low = np.where(np.isnan(wanted), now, np.where(wanted <= 0, -np.inf, wanted))
    high = np.where(np.isnan(wanted), now, np.where(wanted >= 1, np.inf, wanted))
    changed = np.nan_to_num(np.abs(wanted - np.clip(now, 0, 1)))
    counts = 1 + _MEANT * np.minimum(1, changed / _CLEAR) ** 6
    move = np.zeros((len(points), _OF_MOVES.shape[1]))
    for _ in range(_ROUNDS):  # Newton's method: which bounds are touched changes on the way
        moved = now + move @ _OF_MOVES.T
        held = counts * ((moved < low) | (moved > high) | (low == high))
        left = np.einsum("ns,sa,sb->nab", held, _OF_MOVES, _OF_MOVES) + _RIDGE * np.eye(move.shape[1])
        right = (held * (np.clip(moved, low, high) - now)) @ _OF_MOVES
        move = np.linalg.solve(left, right[..., None])[..., 0]
    return points + np.einsum("nm,mpc->npc", move, _FIELDS).astype(np.float32)


def _fields() -> NDArray[np.float64]:
    """How all lip points follow each of the four moves, (4, 40, 2): a lip bends between the corners, which stay; a corner draws the others
    along, the less the nearer they are to the other corner."""
    along = np.arange(1, 10) / 10
    fields = np.zeros((4, 2, 20, 2))
    fields[0, :, 1:10, 1] = fields[1, :, 11:, 1] = np.sin(np.pi * along)
    # Both lips are counted from the person's right corner to the left one.
    fields[2, ..., 0] = [0, *along, 1, *along]
    fields[3, ..., 0] = 1 - fields[2, ..., 0]
    return fields.reshape(4, 40, 2)


_FIELDS: Final = _fields()
