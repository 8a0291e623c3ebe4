"""Copied pixels at the video's own resolution: where a generator copied from a reference, the paste looks the pixel up again, finely.

A generator works on crops of S px, in which a close-up has a third of its size. Where it says from where it copied a pixel
(``records.Copied``), the paste takes that pixel from the reference, which is as sharp as the video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.faces.crop import crop_to_frame, unit_px
from lipdub.media.planes import Depth, Levels, YuvColor, YuvPicture
from lipdub.paste.light import Light
from lipdub.records import Reference
from lipdub.references.pages import still_box, still_part, still_sharpness
from lipdub.references.store import FINER_THAN_FRAME, LEAST_GAIN, ReferenceStore

HELD_REFERENCES = 48
"""References that are held with their planes, at most 3 MB each; a face of 300 px takes a third of one."""
SHARPER = 0.6
"""Frames count as less sharp than a page where they have less than this share of its fine contrast."""
MOST_BLUR, LEAST_BLUR_PX = 0.06, 0.3
"""Sigma at most, in widths of still skin, and from which on it is applied to a crop."""
SIDE_STEP_PX = 32
"""A face that comes and goes is looked up in pictures whose sides are multiples of this."""


_Level = TypeVar("_Level", np.uint8, np.uint16, np.float32)


class FineReference:
    """A reference in the planes of a video, as finely as a frame can show it. Made once for many frames; threads may share it.

    pixels: uint8 (S, S, 3) RGB, what the generator sees. coarse: float32 (S, S, 3), the same as luma and chroma levels.
    """

    def __init__(self, reference: Reference, color: YuvColor) -> None:
        self._detail, self._matrix, self._dtype = reference.detail, color.from_rgb(), color.depth.dtype
        self._at: dict[int, tuple[Levels, Levels]] = {}
        self.pixels = reference.pixels
        self.coarse = np.asarray(cv2.transform(reference.pixels.astype(np.float32), self._matrix), np.float32)

    def planes(self, crop_px: float) -> tuple[Levels, Levels] | None:
        """Luma (D, D) and chroma (D / 2, D / 2, 2) for a frame in which the crop's side measures `crop_px`, both levels of the video's
        depth; None where that frame is no finer than the crop, or the reference is not."""
        if self._detail is None or crop_px < LEAST_GAIN * len(self.pixels):
            return None
        # Averaged down to the frame's own scale, so that nothing aliases; even, for chroma.
        side = min(len(self._detail) // 2 * 2, SIDE_STEP_PX * math.ceil(FINER_THAN_FRAME * crop_px / SIDE_STEP_PX))
        found = self._at.get(side)
        if found is None:
            # Two threads that come at once make the same planes.
            found = self._at[side] = self._made(self._detail, side)
        return found

    def _made(self, detail: NDArray[np.uint8], side: int) -> tuple[Levels, Levels]:
        resized = cv2.resize(detail, (side, side), interpolation=cv2.INTER_AREA)
        yuv = cv2.transform(resized.astype(self._dtype, copy=False), self._matrix)
        chroma = cv2.resize(yuv[..., 1:], (side // 2, side // 2), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(yuv[..., 0], self._dtype), np.asarray(chroma, self._dtype)


def warp_by_flow(
    plane: Levels,
    flow: NDArray[np.float32],
    to_region: NDArray[np.float64],
    extent: tuple[int, int],
    *,
    box: tuple[int, int, int, int],
    size: int,
) -> NDArray[np.float32]:
    """What the flow brings to each px of a region of a frame: float32 (H, W) or (H, W, C), as the plane has channels.

    plane: levels (D, D[, C]) of the whole crop, whose side is `size` px. box: (y0, y1, x0, x1) of the crop that was drawn. flow: float32
    (h, w, 2), (x, y) in crop sides, where a px of the box was copied from relative to its own place. to_region: (2, 3), px of the box to
    px of the region of `extent` (W, H).
    """
    width, height = extent
    here = cv2.warpAffine(flow, to_region, extent, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    (a, b, tx), (c, d, ty) = cv2.invertAffineTransform(to_region)
    side = np.float32(plane.shape[0])
    scale = float(side) / size
    x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    # Pixel centres: the middle of crop px i lies at (i + 0.5) / S of the side.
    across = side * here[..., 0] + (np.float32(a * scale) * x + np.float32(b * scale) * y + np.float32((tx + box[2] + 0.5) * scale - 0.5))
    down = side * here[..., 1] + (np.float32(c * scale) * x + np.float32(d * scale) * y + np.float32((ty + box[0] + 0.5) * scale - 0.5))
    return np.asarray(cv2.remap(plane, across, down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), np.float32)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LitReference:
    """A reference as it looks in one frame, in its light and as blurred as it is.

    pixels: uint8 (S, S, 3) RGB. plain: float32 (S, S, 3), luma and chroma levels without the light. planes: luma and chroma as
    ``FineReference.planes`` has them, without the light; None where they are no finer.
    """

    light: Light
    pixels: NDArray[np.uint8]
    plain: NDArray[np.float32]
    planes: tuple[Levels, Levels] | None

    @classmethod
    def of(cls, fine: FineReference, taken: NDArray[np.uint8], frame: YuvPicture, similarity: NDArray[np.float64]) -> LitReference:
        """As it looks in a frame, by its aligned crop `taken`, uint8 (S, S, 3) RGB, and the frame-to-unit similarity (4,)."""
        color, size = frame.color, len(taken)
        levels = np.asarray(cv2.transform(taken.astype(np.float32), color.from_rgb()), np.float32)
        depth, planes = color.depth, fine.planes(float(unit_px(similarity[None])[0]))
        plain = fine.coarse
        if planes is None:
            blur = blur_between(plain[..., 0], still_part(levels[..., 0]), depth) / size
        else:
            side = len(planes[0])
            y0, y1, x0, x1 = still_box(side)
            there = crop_to_frame(similarity[None], side)[0]
            there[:, 2] += there[:, :2] @ [x0, y0]
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            seen = cv2.warpAffine(frame.y, there, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE)
            blur = blur_between(planes[0], np.asarray(seen, depth.dtype), depth) / side
            if blur > 0:
                luma, chroma = planes
                planes = _blurred(luma, blur * side), _blurred(chroma, blur * side / 2)
        if blur * size > LEAST_BLUR_PX:
            plain = _blurred(plain, blur * size)
        light = Light.between(plain, levels, depth)
        pixels = np.clip(np.rint(cv2.transform(light.upon(plain), color.to_rgb())), 0, 255).astype(np.uint8)
        return cls(light, pixels, plain, planes)


def blur_between(page: NDArray[_Level], frame_still: NDArray[_Level], depth: Depth) -> float:
    """By how much a page is to be blurred to be no sharper than a frame: sigma in px, 0 where it is about as sharp.

    page: (S, S), luma of an aligned crop. frame_still: luma of the frame's ``still_part``; there they are compared. depth: of both.
    """
    wanted = still_sharpness(frame_still.astype(np.float32), step=depth.step)
    if still_sharpness(still_part(page).astype(np.float32), step=depth.step) * SHARPER <= wanted:
        return 0.0
    page = page.astype(np.float32)
    low, high = 0.0, MOST_BLUR * still_part(page).shape[1]
    for _ in range(7):
        middle = (low + high) / 2
        sharper = still_sharpness(still_part(_blurred(page, middle)), step=depth.step) > wanted
        low, high = (middle, high) if sharper else (low, middle)
    return (low + high) / 2


def _blurred(picture: NDArray[_Level], sigma_px: float) -> NDArray[_Level]:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px), picture.dtype)


class FineReferences:
    """The references of a track in the planes of its video; the ones that were used last are held."""

    def __init__(self, store: ReferenceStore) -> None:
        self._store = store
        self._held: dict[tuple[int, YuvColor], FineReference] = {}

    def get(self, number: int, color: YuvColor) -> FineReference:
        """The reference of that number for frames of that colour."""
        key = number, color
        found = self._held.pop(key, None) or FineReference(self._store.get(number), color)
        self._held[key] = found
        while len(self._held) > HELD_REFERENCES:
            del self._held[next(iter(self._held))]
        return found
