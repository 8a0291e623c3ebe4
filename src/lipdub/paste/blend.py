"""Drawn crops into frames: only where the mask reaches, with the frame's own detail where nothing changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.faces.overlays import Overlay, covering
from lipdub.media.planes import Depth, Levels, Size, YuvChunk, planes_of
from lipdub.paste.detail import LitReference, warp_by_flow
from lipdub.paste.light import largest, match_colour, without_green
from lipdub.paste.mask import mask_of
from lipdub.records import Copied, Crops, CropSpec, Drawn

SAME_LEVELS = 10.0
"""A drawn pixel this many levels from what was there shows something else."""
SAME_REACH = 0.016
"""As far as this around it (unit crop), the frame's own fine detail is given up, too."""


def paste(
    chunk: YuvChunk,
    crops: Crops,
    drawn: Drawn,
    strength: NDArray[np.float32],
    spec: CropSpec,
    references: Sequence[LitReference] = (),
    on_top: Sequence[OnTop] = (),
) -> None:
    """Draw the mouths into the chunk itself. Only the pixels under the mask are touched: in luma those of the mask, in chroma those that
    share a pixel with it.

    crops: what ``faces.crop.take`` gave for the chunk. drawn: the same crops with new mouths. strength: float32 (M,) in [0, 1], fades a
    crop in.

    references: of each crop the one that it was drawn from. Where the generator copied its pixels, they are copied once more here, as
    finely as the frame can show them; without references the crop's own are enlarged. on_top: what lies upon each crop and its page: the
    frame's own pixels stay there, and nothing of it is copied.
    """
    to_yuv = chunk.color.from_rgb()
    y0, y1, x0, x1 = spec.drawn
    for slot, row in enumerate(crops.rows):
        if strength[slot] <= 0:
            continue
        to_frame = crops.to_frame[slot]
        own = None if drawn.copied is None else _Copied.of_own(drawn.copied, slot, spec)
        upon = on_top[slot] if on_top else OnTop()
        patch = _patch(crops, slot, drawn.pixels[slot], float(strength[slot]), spec, lit=own is not None)
        if drawn.copied is not None:
            box = patch.drawn[y0:y1, x0:x1]
            box[...] = without_green(box, drawn.copied.paint_mask[slot], crops.pixels[slot])
        new, old = (np.asarray(cv2.transform(picture, to_yuv), np.float32) for picture in (patch.drawn, patch.taken))
        change = new - old
        half = 0.5 * to_frame
        half[:, 2] -= 0.25  # a chroma pixel lies in the middle of its four
        luma, *chroma = planes_of(chunk.data[row], chunk.height, chunk.width)
        seen = references[slot] if references else None
        fine = seen.planes if seen else None
        copied = None if drawn.copied is None else _Copied.of_page(drawn.copied, slot, spec)
        for source, cover in ((copied, upon.page), (own, upon.taken)):
            if source is not None and cover is not None:
                patch.weights[y0:y1, x0:x1, 0] *= 1 - source.from_crop(cover)
        if seen is not None and fine is not None and copied is not None:
            # What is taken from the fine planes is in the page's own light; the frame's comes on top.
            new[y0:y1, x0:x1] -= copied.from_crop(seen.plain) * seen.light.gain
        if own is not None:
            new[y0:y1, x0:x1] -= own.from_crop(old)
        for planes, channels, matrix in (([luma], slice(0, 1), to_frame), (chroma, slice(1, 3), half)):
            brought = None
            if seen is not None and fine is not None and copied is not None:
                brought = _Brought(copied, fine[min(1, channels.start)], seen.light.gain[channels])
            onto = _Onto(tuple(planes), matrix, to_frame, chunk.color.depth, upon.frame)
            _blend(onto, new[..., channels], change[..., channels], patch, brought, own, _Finer.of(drawn, slot, to_yuv, channels, spec))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class OnTop:
    """What lies upon a mouth. frame: overlays of the frame. taken, page: float32 (S, S) in [0, 1], how far they cover each px of its crop,
    and others each px of the page that the mouth is drawn from; None where nothing lies on it."""

    frame: tuple[Overlay, ...] = ()
    taken: NDArray[np.float32] | None = None
    page: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, repr=False)
class _Patch:
    """What one crop brings to its frame, all float32 and in crop px: drawn and taken (S, S, 3) levels, the picture now and before;
    weights (S, S, 2): how far the frame is replaced, and where its own fine detail stays. box: x0, y0, x1, y1 that the mask reaches."""

    drawn: NDArray[np.float32]
    taken: NDArray[np.float32]
    weights: NDArray[np.float32]
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True, repr=False)
class _Copied:
    """What of one drawn box was copied, px by px. share: float32 (h, w) in [0, 1]. flow: float32 (h, w, 2) in crop sides, from where."""

    share: NDArray[np.float32]
    flow: NDArray[np.float32]
    spec: CropSpec

    @classmethod
    def of_page(cls, copied: Copied, slot: int, spec: CropSpec) -> _Copied:
        """What comes from the page."""
        share = np.float32(1) - copied.paint_mask[slot] * np.float32(1 / 255)
        if copied.own is not None:
            share = share * (1 - copied.own.share[slot])
        return cls._of(share, copied.flow[slot], spec)

    @classmethod
    def of_own(cls, copied: Copied, slot: int, spec: CropSpec) -> _Copied | None:
        """What comes from the frame itself."""
        return None if copied.own is None else cls._of(copied.own.share[slot], copied.own.flow[slot], spec)

    @classmethod
    def _of(cls, share: NDArray[np.float32], cells: NDArray[np.float32], spec: CropSpec) -> _Copied:
        flow = cv2.resize(np.moveaxis(cells, 0, 2), share.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return cls(share, np.asarray(flow, np.float32), spec)

    def from_crop(self, coarse: NDArray[np.float32]) -> NDArray[np.float32]:
        """Its share of the drawn box in crop px: float32 (h, w[, 3]) of a crop (S, S[, 3])."""
        y0, y1, x0, x1 = self.spec.drawn
        x = np.arange(x0, x1, dtype=np.float32)[None, :] + np.float32(self.spec.size) * self.flow[..., 0]
        y = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(self.spec.size) * self.flow[..., 1]
        moved = cv2.remap(coarse, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray((self.share if coarse.ndim == 2 else self.share[..., None]) * moved, np.float32)

    def from_px(self, to_region: NDArray[np.float64], extent: Size) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`flow` as it lies in a region of a frame, in its px: across and down, float32 (H, W) each."""
        moved = self.flow @ (self.spec.size * to_region[:, :2].T).astype(np.float32)
        found = cv2.warpAffine(moved, self.of_box(to_region), extent, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        across, down = cv2.split(np.asarray(found, np.float32))
        return np.asarray(across, np.float32), np.asarray(down, np.float32)

    def over(self, to_region: NDArray[np.float64], extent: Size, interpolation: int) -> NDArray[np.float32]:
        """`share` as it lies in a region of a frame, enlarged as the drawing is, so that all shares of a pixel still make up the whole."""
        found = cv2.warpAffine(self.share, self.of_box(to_region), extent, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(found, np.float32)

    def of_box(self, to_region: NDArray[np.float64]) -> NDArray[np.float64]:
        """`to_region` (2, 3), crop px to px of a region, for px of the drawn box."""
        y0, _, x0, _ = self.spec.drawn
        matrix = to_region.copy()
        matrix[:, 2] += matrix[:, :2] @ [x0, y0]
        return matrix


@dataclass(frozen=True, slots=True, repr=False)
class _Brought:
    """Fine planes of one kind, levels (D, D[, C]), what is copied from them, and the gain (C,) that they are copied with."""

    copied: _Copied
    fine: Levels
    gain: NDArray[np.float32]


@dataclass(frozen=True, slots=True, repr=False)
class _Finer:
    """What a drawn box of a crop cannot hold: levels (k h, k w, C) of some channels. box: (y0, x0), its corner in the crop. times: k."""

    levels: NDArray[np.float32]
    box: tuple[int, int]
    times: int

    @classmethod
    def of(cls, drawn: Drawn, slot: int, to_yuv: NDArray[np.float64], channels: slice, spec: CropSpec) -> _Finer | None:
        """That of one crop; None where nothing is finer."""
        if drawn.finer is None or not drawn.finer[slot].any():
            return None
        y0, y1, x0, _ = spec.drawn
        levels = drawn.finer[slot] @ to_yuv[channels, :3].T.astype(np.float32)
        return cls(np.asarray(levels, np.float32), (y0, x0), len(levels) // (y1 - y0))

    def over(self, to_region: NDArray[np.float64], extent: Size, flags: int) -> NDArray[np.float32]:
        """As it lies in a region of a frame, float32 (H, W, C). to_region: (2, 3), crop px to px of the region."""
        matrix = to_region.copy()
        # The middle of its px i lies at (i + 0.5) / k - 0.5 of the box.
        matrix[:, 2] += matrix[:, :2] @ (np.array(self.box[::-1]) + 0.5 / self.times - 0.5)
        matrix[:, :2] /= self.times
        found = cv2.warpAffine(self.levels, matrix, extent, flags=flags)
        return np.asarray(found.reshape(*extent[::-1], -1), np.float32)


def _patch(crops: Crops, slot: int, drawn: NDArray[np.uint8], strength: float, spec: CropSpec, *, lit: bool) -> _Patch:
    """lit: the drawing is in the frame's own light."""
    mask = mask_of(crops.outline[slot], spec)
    taken = crops.pixels[slot]
    matched = drawn.astype(np.float32) if lit else match_colour(drawn, taken, mask)
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    box = None if len(columns) == 0 else (int(columns[0]) - 1, int(rows[0]) - 1, int(columns[-1]) + 1, int(rows[-1]) + 1)
    weights = np.stack([mask * np.float32(strength), unchanged(matched, taken)], axis=-1)
    return _Patch(matched, taken.astype(np.float32), weights, box)


def unchanged(drawn: NDArray[np.float32], taken: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Where the drawn crop shows what was there before: float32 (S, S), 1 for the same, falling to 0 within about ``SAME_LEVELS``.

    drawn: float32 (S, S, 3), colour-matched. taken: uint8 (S, S, 3), the crop as it was. Skin, beard and chin that did not move keep the
    frame's own fine detail, which is too fine for a crop of S px. The mouth that changed keeps nothing of the old one.
    """
    difference = largest(cv2.absdiff(drawn, taken.astype(np.float32)))
    near = max(1, round(SAME_REACH * len(taken)))
    # The largest difference nearby counts: fine detail of a lip's old edge must not survive beside the new one.
    widest = cv2.dilate(difference, np.ones((2 * near + 1, 2 * near + 1), np.uint8))
    smooth = np.asarray(cv2.GaussianBlur(widest, (0, 0), near), np.float32)
    return np.asarray(np.exp(-((smooth / SAME_LEVELS) ** 2)), np.float32)


@dataclass(frozen=True, slots=True, repr=False)
class _Onto:
    """Where in a frame a crop goes. planes: C of one size, levels (H, W) of a depth. to_plane, to_frame: float64 (2, 3), crop px to px of
    the planes and of the frame. overlays: what lies on top in the frame."""

    planes: tuple[Levels, ...]
    to_plane: NDArray[np.float64]
    to_frame: NDArray[np.float64]
    depth: Depth
    overlays: tuple[Overlay, ...]


def _blend(
    onto: _Onto,
    drawn: NDArray[np.float32],
    change: NDArray[np.float32],
    patch: _Patch,
    brought: _Brought | None = None,
    own: _Copied | None = None,
    finer: _Finer | None = None,
) -> None:
    """Blend the channels of a crop into planes in place, only where the mask reaches; where the picture is as it was, with the plane's own
    detail upon it. finer: what is added to the drawing.

    drawn: float32 (S, S, C), less what is `brought` and what is the planes' `own`, moved. change: float32 (S, S, C), the whole
    drawing less what was there before.
    """
    if patch.box is None:
        return
    x0, y0, x1, y1 = patch.box
    corners = np.array([[x, y, 1] for x in (x0, x1) for y in (y0, y1)], np.float64) @ onto.to_plane.T
    height, width = onto.planes[0].shape
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, [width, height])
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, 0, [width, height])
    if (high <= low).any():
        return
    extent = (int(high[0] - low[0]), int(high[1] - low[1]))
    matrix = onto.to_plane.copy()
    matrix[:, 2] -= low
    # A crop px wider than a frame px is interpolated smoothly; a narrower one is averaged by the area filter's stand-in, linear.
    flags = cv2.INTER_CUBIC if float(np.hypot(matrix[0, 0], matrix[1, 0])) > 1 else cv2.INTER_LINEAR
    weights = cv2.warpAffine(patch.weights, matrix, extent, flags=cv2.INTER_LINEAR)
    alpha, same = weights[..., 0], weights[..., 1]
    if onto.overlays:
        from_region = np.vstack([cv2.invertAffineTransform(matrix), [0, 0, 1]])
        alpha = alpha * (1 - covering(onto.overlays, onto.to_frame @ from_region, extent))
    share, fine, own_share = None, None, None
    across = down = np.empty((0, 0), np.float32)
    if brought is not None:
        copied = brought.copied
        share, spec = copied.over(matrix, extent, flags), copied.spec
        found = warp_by_flow(brought.fine, copied.flow, copied.of_box(matrix), extent, box=spec.drawn, size=spec.size)
        fine = found.reshape(*extent[::-1], len(onto.planes)) * brought.gain
    if own is not None:
        own_share = own.over(matrix, extent, flags)
        across, down = own.from_px(matrix, extent)
        across += np.arange(low[0], high[0], dtype=np.float32)[None]
        down += np.arange(low[1], high[1], dtype=np.float32)[:, None]
    # A frame that is no finer than the crop shows nothing of it.
    more = finer.over(matrix, extent, flags) if finer is not None and flags == cv2.INTER_CUBIC else None
    for channel, plane in enumerate(onto.planes):
        pair = np.dstack([drawn[..., channel], change[..., channel]])
        levels = cv2.warpAffine(pair, matrix, extent, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        new = levels[..., 0]
        if share is not None and fine is not None:
            new = new + share * fine[..., channel]
        if more is not None:
            new = new + more[..., channel]
        if own_share is not None:
            new = new + own_share * cv2.remap(plane, across, down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        region = plane[low[1] : high[1], low[0] : high[0]]
        # Where nothing changed the frame stays, but for that change: what the crop could not hold is there still.
        kept = region + levels[..., 1]
        kept -= new
        kept *= same
        kept += new
        np.clip(kept, 0, onto.depth.top, out=kept)
        kept -= region
        kept *= alpha
        kept += region
        np.copyto(region, np.rint(kept, out=kept), where=alpha > 0, casting="unsafe")
