"""Pictures of a scorecard: strips of faces, the address heat map, curves as SVG points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.media import encode_picture

SLOT_PX = 3
HEAT_WIDTH = (600, 1500)
"""Narrowest and widest heat map, px."""
MOST_POINTS = 1200
CURVE_WIDTH, CURVE_HEIGHT = 900.0, 160.0


def strip(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rows of faces, uint8 (n, S, S, 3) each, as one picture: one row under the other, the same moments below each other."""
    columns = min(len(row) for row in rows)
    return np.concatenate([np.concatenate(list(row[:columns]), axis=1) for row in rows], axis=0)


def heat_map(address: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Address track, float32 (N, slots), as a picture uint8 (H, W, 3) RGB: a row per slot, time to the right, brighter is more.

    The largest share there is gets the brightest colour; shares are shown by their square root, so that small ones are seen, too.
    """
    levels = np.rint(np.sqrt(np.clip(address.T / max(1e-6, float(address.max())), 0, 1)) * 255).astype(np.uint8)
    width = int(np.clip(4 * levels.shape[1], *HEAT_WIDTH))
    method = cv2.INTER_AREA if width < levels.shape[1] else cv2.INTER_NEAREST
    large = cv2.resize(levels, (width, SLOT_PX * levels.shape[0]), interpolation=method)
    return np.asarray(cv2.applyColorMap(np.asarray(large, np.uint8), cv2.COLORMAP_VIRIDIS)[:, :, ::-1], np.uint8)


def pictures_of(strips: Sequence[NDArray[np.uint8]], address: NDArray[np.float32]) -> dict[str, bytes]:
    """A clip's pictures by the ending of their file names: strip and heat map, where there are frames for them. Raises EncodingFailed."""
    pictures = {}
    if len(strips[0]):
        pictures[".strip.jpg"] = encode_picture(strip(strips), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 88])
    if len(address):
        pictures[".address.png"] = encode_picture(heat_map(address), ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return pictures


@dataclass(frozen=True, slots=True)
class Axis:
    """A tick of an axis: where it lies in the drawing, and its label."""

    at: float
    label: str


def curve(times_s: Sequence[float | None], values: Sequence[float | None], *, seconds: float, top: float) -> list[str]:
    """Pieces of a curve as SVG polyline points, broken where a value is missing; `seconds` and `top` are the right and upper edges."""
    step = max(1, math.ceil(len(values) / MOST_POINTS))
    pieces: list[list[str]] = [[]]
    for time_s, value in list(zip(times_s, values, strict=True))[::step]:
        if value is None or time_s is None or not math.isfinite(value):
            if pieces[-1]:
                pieces.append([])
            continue
        x = CURVE_WIDTH * time_s / max(seconds, 1e-6)
        y = CURVE_HEIGHT * (1 - min(1.0, max(0.0, value / max(top, 1e-6))))
        pieces[-1].append(f"{x:.1f},{y:.1f}")
    return [" ".join(piece) for piece in pieces if len(piece) > 1]


def ticks(end: float, length: float, *, most: int = 10) -> list[Axis]:
    """Round ticks from 0 to `end`, laid out over `length` drawing units; at most `most` steps."""
    if not end > 0:
        return [Axis(0.0, "0")]
    rough = end / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [Axis(length * k * step / end, f"{k * step:g}") for k in range(int(end / step + 1e-9) + 1)]
