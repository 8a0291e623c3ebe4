"""What lies between the lips of a warped mouth, painted by a network of its own at twice the density of the crop.

It sees the mouth with lips where they are wanted, and a hole between them (see ``lipdub.bundles.interior``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.bundles import bundle, interior
from lipdub.bundles.bundle import BundleSpec
from lipdub.bundles.interior import FINER, GRAPH, PAINTED, SEEN, SIZE, TENSORS, WINDOW
from lipdub.errors import BundleInvalid
from lipdub.generators.warp import OUTER_LIPS, opening, seen_inside
from lipdub.options import Device
from lipdub.records import Copied, CropSpec, Drawn
from lipdub.runtime import open_session

GROWN_PX: Final = 1.5
"""The hole reaches so far onto the lips, px of the crop: their wet edges, which shut lips hide, are painted, too."""
STEP_PX: Final = 4
"""The window moves by so many px at once, which are one of the network's coarsest: what it paints stays the same when it moves."""
EDGE_PX: Final = 2
"""So far beyond the hole the paint ends, softly, in px of what is painted."""
_BITS: Final = 4


def corner_of(points: NDArray[np.float32]) -> tuple[int, int]:
    """Row and column of the window's corner in the crop, by points (P, 2), unit crop, the 20 outer and 20 inner ones of the lips first."""
    middle = SIZE * points[OUTER_LIPS : 2 * OUTER_LIPS].mean(axis=0)
    y, x = (STEP_PX * round((float(at) - extent / 2) / STEP_PX) for at, extent in zip(middle[::-1], WINDOW, strict=True))
    return min(max(y, 0), SIZE - WINDOW[0]), min(max(x, 0), SIZE - WINDOW[1])


def hole_of(points: NDArray[np.float32], corner: tuple[int, int]) -> NDArray[np.float32]:
    """What of the window lies between the lips, or on their inner edge: float32 (FINER rows, FINER columns), 1 for all of a px."""
    return _within(points[OUTER_LIPS : 2 * OUTER_LIPS], corner, grown_px=GROWN_PX)


def _within(ring: NDArray[np.float32], corner: tuple[int, int], *, grown_px: float = 0.0) -> NDArray[np.float32]:
    """What of the window lies within a ring of points (P, 2), or at most `grown_px` away from it, as for `hole_of`."""
    rows, columns = (FINER * extent for extent in WINDOW)
    inside = np.zeros((rows, columns), np.uint8)
    fixed = [np.round((FINER * (ring * SIZE - np.array(corner[::-1])) - 0.5) * 2**_BITS).astype(np.int32)]
    cv2.fillPoly(inside, fixed, (255,), cv2.LINE_AA, _BITS)
    if grown_px > 0:
        cv2.polylines(inside, fixed, True, (255,), round(2 * FINER * grown_px), cv2.LINE_AA, _BITS)
    return np.asarray(inside.astype(np.float32) / 255, np.float32)


def seen_with_hole(window: NDArray[np.uint8], hole: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's input, float32 (CHANNELS, rows, columns): a window, uint8 (rows, columns, 3) RGB, without the `hole` in it."""
    rows, columns = WINDOW
    coarse = cv2.resize(hole, (columns, rows), interpolation=cv2.INTER_AREA)
    shown = (window.astype(np.float32) / 127.5 - 1) * (1 - coarse[..., None])
    return np.ascontiguousarray(np.concatenate([shown.transpose(2, 0, 1), coarse[None]]), np.float32)


class InteriorPainter:
    """Paints what lies between the lips. Any thread may call `paint`."""

    def __init__(self, folder: Path, crop: CropSpec, *, device: Device = "auto", threads: int | None = None) -> None:
        self._crop = crop
        self._session = open_session(folder / GRAPH, device=device, threads=threads, inputs=TENSORS.inputs, outputs=TENSORS.outputs)

    def __repr__(self) -> str:
        return f"InteriorPainter({self._session.provider})"

    def paint(self, drawn: Drawn, wanted: NDArray[np.float32]) -> Drawn:
        """`drawn`, warped from pages, with what lies between the lips painted; lips and skin stay as they are.

        wanted: float32 (M, P, 2), unit crop: where the points lie, the outer lips and then the inner ones first. Raises BundleInvalid where
        the network paints no picture.
        """
        assert drawn.copied is not None
        y0, y1, x0, x1 = self._crop.drawn
        size, fine, (rows, columns) = self._crop.size, FINER * SIZE, WINDOW
        times = fine // size if fine % size == 0 and fine > size else 0
        pixels, mask = drawn.pixels.copy(), np.zeros_like(drawn.copied.paint_mask)
        finer = np.zeros((len(drawn), times * (y1 - y0), times * (x1 - x0), 3), np.float32) if times else None
        apart = [seen_inside(opening(points)) for points in wanted]
        slots = [slot for slot, share in enumerate(apart) if share > 0]
        corners = [corner_of(wanted[slot]) for slot in slots]
        holes = [hole_of(wanted[slot], corner) for slot, corner in zip(slots, corners, strict=True)]
        seen = []
        for slot, (y, x), hole in zip(slots, corners, holes, strict=True):
            shown = pixels[slot] if size == SIZE else cv2.resize(pixels[slot], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            seen.append(seen_with_hole(np.asarray(shown[y : y + rows, x : x + columns], np.uint8), hole))
        grown = np.ones((2 * EDGE_PX + 1, 2 * EDGE_PX + 1), np.uint8)
        for slot, (y, x), hole, painted in zip(slots, corners, holes, self._painted(seen), strict=True):
            whole = cv2.resize(pixels[slot].astype(np.float32), (fine, fine), interpolation=cv2.INTER_CUBIC)
            share = np.zeros((fine, fine), np.float32)
            here = slice(FINER * y, FINER * (y + rows)), slice(FINER * x, FINER * (x + columns))
            # Nothing but the hole is the network's: where its soft edge reaches beyond, it is what is there.
            whole[here] += hole[..., None] * (painted - whole[here])
            lips = _within(wanted[slot, :OUTER_LIPS], (y, x))
            share[here] = apart[slot] * lips * cv2.GaussianBlur(cv2.dilate(hole, grown), (0, 0), EDGE_PX / 2)
            coarse, part = (cv2.resize(one, (size, size), interpolation=cv2.INTER_AREA) for one in (whole, share))
            pixels[slot] = np.clip(np.rint(pixels[slot] + part[..., None] * (coarse - pixels[slot])), 0, 255)
            mask[slot] = np.rint(255 * part[y0:y1, x0:x1])
            if finer is not None:
                whole -= cv2.resize(coarse, (fine, fine), interpolation=cv2.INTER_CUBIC)
                finer[slot] = (share[..., None] * whole)[times * y0 : times * y1, times * x0 : times * x1]
        return Drawn(pixels, Copied(mask, drawn.copied.flow, drawn.copied.own), finer)

    def _painted(self, seen: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Windows as the network paints them, RGB levels, float32 (FINER rows, FINER columns, 3) each."""
        found: list[NDArray[np.float32]] = []
        for first in range(0, len(seen), self._session.batch):
            planes = self._session.run({SEEN: np.stack(seen[first : first + self._session.batch])})[PAINTED]
            if not np.isfinite(planes).all():
                raise BundleInvalid(f"{self._session.path} painted no picture but NaN or infinity: install lipdub again")
            found += list(127.5 * (np.clip(planes, -1, 1).transpose(0, 2, 3, 1) + 1))
        return found


def open_interior(spec: BundleSpec, *, device: Device = "auto", threads: int | None = None) -> InteriorPainter | None:
    """The network that came with lipdub, for mouths of a bundle; None where the bundle does not tell where lips lie.

    Raises BundleNotFound, BundleInvalid, ProviderUnavailable.
    """
    if not spec.points:
        return None
    folder = bundle.resolve(interior.NAME, spec_file=interior.SPEC_FILE)
    interior.load_spec(folder)
    return InteriorPainter(folder, spec.crop, device=device, threads=threads)
