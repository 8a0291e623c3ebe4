"""Landmark distance (LMD): how far the drawn lips are from the true ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FACE_PX = 128
"""Side of the aligned crop that distances and pictures are given in."""
LANDMARK_SET = "mediapipe face mesh, 40 lip points (20 outer, 20 inner)"


def lmd(drawn: NDArray[np.float32], truth: NDArray[np.float32], *, relative: bool = False) -> float:
    """Mean Euclidean distance between drawn and true lip points, over points and over the frames where both are known.

    drawn, truth: float32 (N, 40, 2) in the unit crop (``LANDMARK_SET``), NaN where there was no face. In px of the aligned 128-px crop
    (forehead to below the chin; the outer eye corners are 49 px apart), 0 and more, lower is better. ``relative``: the mean point of the
    lips is taken off both sets first, as Chen et al. 2018 ("Lip Movements Generation at a Glance", ECCV) define it; without it the place
    of the mouth in the face counts, too. Published values use other landmarks (dlib's 20) and other crops: compare rows of one
    scorecard, not papers. NaN where no frame has both.
    """
    if drawn.shape != truth.shape:
        raise ValueError(f"lips must come in pairs, got {drawn.shape = }, {truth.shape = }")
    one, other = drawn.astype(np.float64), truth.astype(np.float64)
    if relative:
        one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
    distances = np.linalg.norm(one - other, axis=2).mean(axis=1)
    known = np.isfinite(distances)
    return float(distances[known].mean()) * FACE_PX if known.any() else float("nan")
