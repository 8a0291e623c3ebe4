"""Frames in which something covers the lower face, or another picture is mixed in: a hand, a microphone, a dissolve.

Each face is kept as a few cells of colour below the eyes, in the light of its own brows and nose. A frame is compared with what this person
looks like in about the same pose: the median of all such frames, so that a cover that is there for less than half of the time is found.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.references.bank import THUMB_PX, UPPER_FACE
from lipdub.row_file import RowFile

ROWS, COLUMNS = 7, 9
_REGION = (slice(10, THUMB_PX), slice(3, 21))
"""Cheeks to chin, in the small picture of a face."""
CELL_NUMBERS = ROWS * COLUMNS * 3
POSE_BIN_DEG = 10.0
FEWEST_FRAMES = 12
"""Fewer frames of about one pose say nothing."""
MOST_FRAMES = 400
UNLIKE = np.tile(np.array([1.2, 0.5, 0.5], np.float32), ROWS * COLUMNS)
"""Luma and chroma of a cell are unlike others by this at least, in spreads of the upper face's luma."""
UNLIKE_USUAL = 9.0
"""And by this many times what the cell usually varies by (the 35th percentile of its deviations, which a cover of a third leaves alone)."""
COVERED, PARTLY = 0.15, 0.08
"""Share of cells that are unlike from which on a frame is covered, and, beside a covered one, still counts as such."""
LASTING_FRAMES, BESIDE_FRAMES = 5, 10
"""Beside so many such frames every frame counts in which any cell is unlike, up to so many: the tips of fingers."""
LEAST_SPREAD = 4.0
"""Levels: a face that is flatter than this, in a picture that has faded out, says nothing."""
OUTLINE_REACH, LIPS_REACH = 0.9, 1.2
"""The outline is drawn in to this share, so that no background is taken for the face; lips reach somewhat further than their points."""
BLOCK_FRAMES = 4096


def cells_of(thumb: NDArray[np.uint8], outline: NDArray[np.float32], lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cells of a face, float32 (CELL_NUMBERS,), from its small picture, uint8 (THUMB_PX, THUMB_PX, 3) RGB; NaN outside of its `outline`
    (P, 2), unit crop, and inside of its outer `lips` (L, 2), since a mouth that opens is no cover; all NaN where there is no picture."""
    levels = cv2.cvtColor(thumb, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    upper = levels[UPPER_FACE].reshape(-1, 3)
    lower = cv2.resize(levels[_REGION], (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)
    spread = float(upper[:, 0].std())
    if spread < LEAST_SPREAD:
        return np.full(CELL_NUMBERS, np.nan, np.float32)
    cells = (lower - upper.mean(axis=0)) / spread
    inside = np.zeros((ROWS, COLUMNS), np.uint8)
    for points, reach, value in ((outline, OUTLINE_REACH, 1), (lips, LIPS_REACH, 0)):
        middle = points.mean(axis=0)
        corners = (middle + reach * (points - middle)) * THUMB_PX - [_REGION[1].start, _REGION[0].start]
        corners = corners * [COLUMNS / (_REGION[1].stop - _REGION[1].start), ROWS / (_REGION[0].stop - _REGION[0].start)] - 0.5
        cv2.fillPoly(inside, [np.round(corners * 16).astype(np.int32)], (value,), cv2.LINE_8, 4)
    return np.asarray(np.where(inside[..., None] > 0, cells, np.nan).ravel(), np.float32)


def cells_under(covering: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which numbers of a face's cells something lies on, bool (CELL_NUMBERS,), by how far each px of its crop is covered, (S, S)."""
    side = len(covering) / THUMB_PX
    y0, y1, x0, x1 = (round(side * edge) for part in _REGION for edge in (part.start, part.stop))
    return np.repeat(cv2.resize(covering[y0:y1, x0:x1], (COLUMNS, ROWS), interpolation=cv2.INTER_AREA).ravel() > 0, 3)


def covered(
    cells: RowFile,
    places: NDArray[np.int64],
    poses: NDArray[np.float32],
    aside: Callable[[int], NDArray[np.bool_] | None] = lambda _: None,
) -> NDArray[np.bool_]:
    """Which of N frames of one person, in order, are covered: bool (N,).

    places: int64 (N,), rising, which row of `cells` each frame is. poses: float32 (N, 2), yaw and pitch in degrees. aside: says of one of
    the N frames which numbers of its cells do not count, bool (CELL_NUMBERS,), None for all of them count.
    """

    def read(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = cells.rows(places[rows])
        for cell, row in zip(found, rows.tolist(), strict=True):
            if (left := aside(row)) is not None:
                cell[left] = np.nan
        return found

    bins = np.round(poses / POSE_BIN_DEG).astype(np.int64)
    share = np.zeros(len(places), np.float32)
    for yaw, pitch in np.unique(bins, axis=0):
        near = np.flatnonzero((np.abs(bins - [yaw, pitch]) <= 1).all(axis=1))
        if len(near) < FEWEST_FRAMES:
            continue
        some = near[:: max(1, len(near) // MOST_FRAMES)]
        seen = np.concatenate([read(some[[one]]) for one in range(len(some))])
        # Cells that are on the face in most frames of the pose.
        known = np.isfinite(seen).mean(axis=0) > 0.5
        if not known.any():
            continue
        seen = seen[:, known]
        usual = np.nanmedian(seen, axis=0)
        limit = np.maximum(UNLIKE_USUAL * np.nanquantile(np.abs(seen - usual), 0.35, axis=0), UNLIKE[known])
        here = np.flatnonzero((bins == [yaw, pitch]).all(axis=1))
        for first in range(0, len(here), BLOCK_FRAMES):
            rows = here[first : first + BLOCK_FRAMES]
            for block in np.split(rows, np.flatnonzero(np.diff(rows) > BLOCK_FRAMES) + 1):
                unlike = np.abs(read(block)[:, known] - usual) > limit
                share[block] = unlike.reshape(len(block), -1, 3).any(axis=2).mean(axis=1)
    found = share > COVERED
    # Going both ways from every covered frame: as long as something of the cover is there, and one frame more, for the mask reaches further
    # than the cells do.
    for step in (1, -1):
        length = left = 0
        for at in range(len(found))[::step]:
            if found[at] or (length and share[at] > PARTLY):
                found[at], length = True, length + 1
                left = BESIDE_FRAMES if length >= LASTING_FRAMES else 0
            elif left:
                found[at], left = True, left - 1 if share[at] > 0 else 0
            else:
                length = 0
    return found
