"""Zero-phase smoothing of a track over time: the alignment, and the points of outline and lips."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lipdub.faces import crop
from lipdub.faces.landmarks import LIPS
from lipdub.row_file import RowFile

SMOOTH_S = 0.05
"""Sigma of the zero-phase smoothing of the alignment."""
OUTLINE_SMOOTH_S = 0.6
"""Sigma for the mask outline: slow, so that the mask does not move with the source's own speech."""
POSE_SMOOTH_S = 0.08
"""Sigma of the pose that moves it."""
POSE_RIDGE_DEG, OPENING_RIDGE = 2.0, 0.02
"""Turns and openings up to about this are too small to tell how the outline follows them."""
FITTED_FRAMES = 1000
BLOCK_FRAMES = 4096
"""Points are smoothed in blocks of this many frames."""
OUTLINE_COLUMNS = slice(0, 2 * len(crop.OUTLINE))
LIP_COLUMNS = slice(OUTLINE_COLUMNS.stop, OUTLINE_COLUMNS.stop + 2 * len(LIPS))
"""Columns of a face's points."""
POINT_COLUMNS = LIP_COLUMNS.stop


def smooth_similarity(similarity: NDArray[np.float64], step_s: float) -> NDArray[np.float64]:
    """The alignment (n, 4) of one unbroken stretch, smoothed in what is geometric: where the crop's centre lies, its scale, its angle."""
    a, b = similarity.T[:2]
    centre = crop.unit_to_frame(similarity) @ np.array([0.5, 0.5, 1.0])
    geometry = np.column_stack([centre, 0.5 * np.log(a * a + b * b), np.unwrap(np.arctan2(b, a))])
    geometry = smooth(geometry, SMOOTH_S / step_s, odd=True)
    scale, angle = np.exp(geometry[:, 2]), geometry[:, 3]
    new = np.column_stack([scale * np.cos(angle), scale * np.sin(angle), np.zeros((len(a), 2))])
    rotated = np.column_stack(
        [new[:, 0] * geometry[:, 0] - new[:, 1] * geometry[:, 1], new[:, 1] * geometry[:, 0] + new[:, 0] * geometry[:, 1]]
    )
    new[:, 2:] = 0.5 - rotated
    return new


def smooth_points(
    points: RowFile,
    between: NDArray[np.float64],
    similarity: NDArray[np.float64],
    smoothed: NDArray[np.float64],
    motion: NDArray[np.float64],
    step_s: float,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Outline and lips of one unbroken stretch in its smoothed alignment, the outline smoothed, block by block: the first frame of each,
    counted from the stretch's, and its points (n, POINT_COLUMNS).

    The outline goes with the turning head at once, and with nothing else that is fast. between: as ``_bridge`` has it. motion: (n, 3), yaw,
    pitch in degrees, and opening.
    """
    sigma = OUTLINE_SMOOTH_S / step_s
    margin = int(np.ceil(3 * sigma))

    def aligned(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points of these frames (n,) of the stretch in its smoothed alignment, (n, POINT_COLUMNS)."""
        places, share = between[rows, :2].astype(np.int64), between[rows, 2:]
        shape = (1 - share) * points.rows(places[:, 0]) + share * points.rows(places[:, 1])
        to_frame = crop.unit_to_frame(similarity[rows])
        new = smoothed[rows]
        matrix = np.stack([np.stack([new[:, 0], -new[:, 1]], 1), np.stack([new[:, 1], new[:, 0]], 1)], 1)
        in_frame = np.einsum("nij,npj->npi", to_frame[:, :, :2], shape.reshape(len(shape), -1, 2)) + to_frame[:, None, :, 2]
        return (np.einsum("nij,npj->npi", matrix, in_frame) + new[:, None, 2:]).reshape(len(shape), -1)

    turning = _turning(aligned, motion)
    pose = smooth(motion[:, :2], POSE_SMOOTH_S / step_s, odd=True)
    for first in range(0, len(between), BLOCK_FRAMES):
        end = min(len(between), first + BLOCK_FRAMES)
        low, high = max(0, first - margin), min(len(between), end + margin)
        shape = aligned(np.arange(low, high))
        turned = pose[low:high] @ turning
        shape[:, OUTLINE_COLUMNS] = smooth(shape[:, OUTLINE_COLUMNS] - turned, sigma, odd=False) + turned
        yield first, shape[first - low : len(shape) - (high - end)]


def _turning(aligned: Callable[[NDArray[np.int64]], NDArray[np.float64]], motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """How the outline changes with a degree of yaw and of pitch, (2, outline numbers): least squares with a ridge over evenly spaced
    frames. What the opening explains is left to it, so that the jaw's speech is not taken for pitch."""
    step = max(1, len(motion) // FITTED_FRAMES)
    rows = np.arange(0, len(motion), step)
    outline = np.concatenate([aligned(rows[first : first + 64])[:, OUTLINE_COLUMNS] for first in range(0, len(rows), 64)])
    causes = motion[rows] - motion[rows].mean(axis=0)
    ridge = len(rows) * np.diag([POSE_RIDGE_DEG**2, POSE_RIDGE_DEG**2, OPENING_RIDGE**2])
    return np.linalg.solve(causes.T @ causes + ridge, causes.T @ (outline - outline.mean(axis=0)))[:2]


def smooth(values: NDArray[np.float64], sigma: float, *, odd: bool) -> NDArray[np.float64]:
    """Zero-phase Gaussian smoothing along the first axis, `sigma` in rows. At the ends the values are mirrored, `odd` about the
    end value (a steady motion stays one), else evenly."""
    reach = min(len(values) - 1, int(np.ceil(3 * sigma)))
    if sigma <= 0 or reach < 1:
        return values.copy()
    padded = np.pad(values, [(reach, reach)] + [(0, 0)] * (values.ndim - 1), mode="reflect", reflect_type="odd" if odd else "even")
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    result = np.zeros_like(values)
    for offset, weight in enumerate(kernel):
        result += weight * padded[offset : offset + len(values)]
    return result
