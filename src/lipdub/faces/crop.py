"""Aligned crops: the similarity that brings a face to the template, and ``take``, which cuts it out.

*Unit crop* coordinates are crop px divided by the crop side S, so they hold for every model. A frame-to-unit transform is a
similarity, stored as four numbers (a, b, tx, ty): ``unit = [[a, -b], [b, a]] @ frame + [tx, ty]``.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.media.planes import Picture, YuvChunk
from lipdub.records import Crops

# Points that speech does not move (eye corners, brows, nose bridge; no eyelids, no nose tip, no jaw) and where they lie in
# the unit crop: the mean of 93 near-frontal people of the training footage, made symmetric, outer eye corners 0.38 apart at
# height 0.35. The chin then lies at 0.86 at rest and above 0.98 with the mouth wide open.
_TEMPLATE = {
    33: (0.3100, 0.3500), 263: (0.6900, 0.3500), 133: (0.4276, 0.3562), 362: (0.5724, 0.3562),
    70: (0.2559, 0.2855), 300: (0.7441, 0.2855), 105: (0.3235, 0.2454), 334: (0.6765, 0.2454),
    107: (0.4382, 0.2551), 336: (0.5618, 0.2551), 168: (0.5000, 0.3300), 6: (0.5000, 0.3628),
    197: (0.5000, 0.3930), 195: (0.5000, 0.4213), 8: (0.5000, 0.2977), 9: (0.5000, 0.2598),
}  # fmt: skip
ANCHORS = np.array(list(_TEMPLATE), np.int64)
ANCHOR_TARGETS = np.array(list(_TEMPLATE.values()), np.float64)

JAW = (132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361)
"""Jaw outline of the face mesh, from ear to ear over the chin."""
UPPER_EDGE = (352, 425, 327, 2, 98, 205, 123)
"""Closes the outline above: cheek, beside the nose, under the nose, and back. The nose stays the source's own."""
OUTLINE = np.array(JAW + UPPER_EDGE, np.int64)


def fit_similarity(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Frame-to-unit similarity (a, b, tx, ty), float64 (4,), from the mesh (478, 2 or 3) in frame px: least squares over the
    static points (Umeyama 1991 without reflection)."""
    source = np.asarray(landmarks[ANCHORS, :2], np.float64)
    source_mean, target_mean = source.mean(axis=0), ANCHOR_TARGETS.mean(axis=0)
    centred, wanted = source - source_mean, ANCHOR_TARGETS - target_mean
    spread = float((centred**2).sum())
    a = float((centred * wanted).sum()) / spread
    b = float((centred[:, 0] * wanted[:, 1] - centred[:, 1] * wanted[:, 0]).sum()) / spread
    tx, ty = target_mean - np.array([[a, -b], [b, a]]) @ source_mean
    return np.array([a, b, tx, ty])


def to_unit(points: NDArray[np.float32], similarity: NDArray[np.float64]) -> NDArray[np.float32]:
    """Points (..., 2) in frame px to unit crop coordinates."""
    a, b, tx, ty = similarity
    return (np.asarray(points, np.float64) @ np.array([[a, b], [-b, a]]) + [tx, ty]).astype(np.float32)


def unit_to_frame(similarities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of frame-to-unit similarities (M, 4): matrices (M, 2, 3) from unit crop to frame px."""
    a, b, tx, ty = np.asarray(similarities, np.float64).reshape(-1, 4).T
    norm = a * a + b * b
    ia, ib = a / norm, -b / norm
    inverse = np.empty((len(a), 2, 3))
    inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 0, 2] = ia, -ib, -(ia * tx - ib * ty)
    inverse[:, 1, 0], inverse[:, 1, 1], inverse[:, 1, 2] = ib, ia, -(ib * tx + ia * ty)
    return inverse


def unit_px(similarities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Side in frame px of the aligned crops of frame-to-unit similarities (N, 4): float64 (N,)."""
    return 1 / np.hypot(similarities[:, 0], similarities[:, 1])


def take(chunk: YuvChunk, rows: NDArray[np.int64], similarities: NDArray[np.float64], outlines: NDArray[np.float32], size: int) -> Crops:
    """Aligned crops of side `size` px of the chunk's frames `rows` (M,), by frame-to-unit `similarities` (M, 4) with unit
    `outlines` (M, P, 2). Where the crop reaches outside the frame, the border is repeated."""
    pixels = np.empty((len(rows), size, size, 3), np.uint8)
    for slot, row in enumerate(rows):
        pixels[slot] = take_one(chunk.picture(int(row)), similarities[slot], size)
    return Crops(pixels, crop_to_frame(similarities, size), np.asarray(rows, np.int64), np.asarray(outlines * size, np.float32))


def crop_to_frame(similarities: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Matrices (M, 2, 3) from px of a crop of side `size` to frame px, for frame-to-unit similarities (M, 4)."""
    matrices = unit_to_frame(similarities)
    matrices[:, :, :2] /= size
    # Pixel centres: crop px (i + 0.5) / size is the unit coordinate, and frame px likewise.
    matrices[:, :, 2] += (matrices[:, :, :2] @ np.array([0.5, 0.5])) - 0.5
    return matrices


def take_one(picture: Picture, similarity: NDArray[np.float64], size: int, *, sharp: bool = False) -> NDArray[np.uint8]:
    """One aligned crop of side `size` px, uint8 (S, S, 3) RGB, by a frame-to-unit similarity (4,); the border is repeated outside.

    sharp: interpolate with cubics, for crops about as fine as the frame, which linear weights blur; networks are fed with linear ones.
    """
    return _warp_in(picture, crop_to_frame(similarity[np.newaxis], size)[0], size, cv2.INTER_CUBIC if sharp else cv2.INTER_LINEAR)


def _warp_in(picture: Picture, to_frame: NDArray[np.float64], size: int, interpolation: int) -> NDArray[np.uint8]:
    """One crop; a face larger than the crop is averaged down first, so that nothing aliases."""
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]], np.float64) @ to_frame.T
    height, width = picture.height, picture.width
    low = np.clip(np.floor(corners.min(axis=0)) - 2, 0, [width - 1, height - 1]).astype(int)
    low -= low % 2
    high = np.clip(np.ceil(corners.max(axis=0)) + 2, low + 1, [width, height]).astype(int)
    high = np.minimum(high + high % 2, [width, height])
    matrix = to_frame.copy()
    matrix[:, 2] -= low
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    columns, rows = (high - low).tolist()
    small = None
    if scale > 1.2 and min(columns, rows) > 4:
        small = (max(2, round(columns / scale)), max(2, round(rows / scale)))
        factor = np.array([small[0] / columns, small[1] / rows])
        matrix = matrix * factor[:, None]
        matrix[:, 2] += 0.5 * (factor - 1)
    region = picture.rgb(int(low[0]), int(low[1]), int(high[0]), int(high[1]), size=small)
    warped = cv2.warpAffine(region, matrix, (size, size), flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.uint8)
