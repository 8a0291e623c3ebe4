"""Mouths drawn from a page of the person's own, warped from its lips and jaw to those that are wanted.

Thin-plate splines (Bookstein 1989) with a little smoothing (Wahba 1990): exact ones tear where inner lips coincide. Where a warp would
fold, it is smoothed more until it does not. The frame's own skin around goes with the outer lips and the jaw alone, by splines of r in the
place of r^2 log r (Duchon 1977): what keeps its slope beyond the lips smears a chin, where a wide mouth shuts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.records import Copied, CropSpec, Drawn, Own
from lipdub.references.shapes import inner_opening

SMOOTHING = 0.0001
"""Of the spline, in squared unit crop."""
STIFFER, STIFFEST = 4.0, 1.0
"""A warp that folds is smoothed more by this factor, up to this."""
CELL_PX = 2
"""The flow is computed at the middles of cells of this many crop px."""
FINE = 0.012
"""Detail is what is finer than this, sigma, in sides of the crop."""
LIPS_REACH, SKIN_REACH = 0.025, 0.085
"""The page is seen as far as the first of these around the lips, the frame's own skin from the second on; unit crop."""
COLOUR_REACH = 0.1
"""Sigma over which the colour between lips and skin is carried inwards, unit crop."""
COARSE = 4
"""Crop px of a pixel of the picture in which it is carried."""
_MEAN = np.full(3, 1 / 3, np.float32)
OUTER_LIPS, _NOSE_BASE = 20, slice(59, 62)
"""Where the outer lips end among the points, and where the base of the nose stands."""
STILL_FROM, SHUT = 0.008, 0.012
"""Of a page that is further open than is wanted by the first, unit crop, the inside of the mouth does not move at all, if twice the second
is wanted or more; up to that once it is squeezed, for cells are too coarse to hide it behind lips that meet."""

_Float = TypeVar("_Float", np.float32, np.float64)
_Kernel = Callable[[NDArray[Any]], NDArray[Any]]


class Warp:
    """Draws by copying every pixel from the page."""

    def __init__(self, crop: CropSpec) -> None:
        self._crop = crop
        y0, y1, x0, x1 = crop.drawn
        self._cells = (y1 - y0) // CELL_PX, (x1 - x0) // CELL_PX
        rows = (y0 + CELL_PX * (np.arange(self._cells[0]) + 0.5)) / crop.size
        columns = (x0 + CELL_PX * (np.arange(self._cells[1]) + 0.5)) / crop.size
        self._grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)

    def behind_lips(self, flow: NDArray[np.float32], shown: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
        """A page's flow (2, h, w) by which lips go over its teeth where they shut: upper teeth move with the skull, and no mouth squeezes
        them. shown, wanted: float32 (P, 2), as for `flows`."""
        inner = slice(OUTER_LIPS, 2 * OUTER_LIPS)
        here, of_page = map(opening, (wanted, shown))
        shut = np.clip((of_page - here) / STILL_FROM, 0, 1) * seen_inside(here)
        if shut == 0:
            return flow
        still = (shown[_NOSE_BASE] - wanted[_NOSE_BASE]).mean(axis=0)
        # What lies between the lips both here and on the page.
        inside = np.minimum(self._filled(wanted[inner]), self._filled(shown[inner] - still))
        height, width = flow.shape[1:]
        share = shut * cv2.resize(inside, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(flow + share * (still[:, None, None] - flow), np.float32)

    def _filled(self, ring: NDArray[np.float32]) -> NDArray[np.float32]:
        """Px of the drawn box inside of a ring of points (P, 2), unit crop: float32 (h, w), 1 inside."""
        y0, y1, x0, x1 = self._crop.drawn
        inside = np.zeros((y1 - y0, x1 - x0), np.float32)
        corners = ring * self._crop.size - [x0 + 0.5, y0 + 0.5]
        cv2.fillPoly(inside, [np.round(16 * corners).astype(np.int32)], (1.0,), cv2.LINE_8, 4)
        return inside

    def draw(self, targets: NDArray[np.uint8], pages: NDArray[np.uint8], flow: NDArray[np.float32]) -> Drawn:
        """The targets, uint8 (M, S, S, 3) RGB, with the `drawn` box of the `pages` (M, S, S, 3) moved into it by a `flow` (M, 2, h, w)."""
        y0, y1, x0, x1 = self._crop.drawn
        drawn = targets.copy()
        for slot in range(len(targets)):
            drawn[slot, y0:y1, x0:x1] = self._moved(pages[slot], flow[slot])
        return Drawn(drawn, Copied(np.zeros((len(targets), y1 - y0, x1 - x0), np.uint8), flow))

    def around(self, drawn: Drawn, targets: NDArray[np.uint8], flow: NDArray[np.float32], wanted: NDArray[np.float32]) -> Drawn:
        """`drawn` by `draw`, with the mouth alone of the page: the skin around it is the target's own, moved by a `flow` (M, 2, h, w), and
        the page's colours are brought to it.

        wanted: float32 (M, P, 2), unit crop: where the points lie, the outer lips first.
        """
        assert drawn.copied is not None
        y0, y1, x0, x1 = self._crop.drawn
        pixels = drawn.pixels.copy()
        share = np.empty((len(targets), y1 - y0, x1 - x0), np.float32)
        for slot, target in enumerate(targets):
            share[slot] = self._skin(wanted[slot, :OUTER_LIPS])
            skin, page = self._moved(target, flow[slot]).astype(np.float32), drawn.pixels[slot, y0:y1, x0:x1]
            part = share[slot][..., None]
            lit = self._lit(page, skin - page, share[slot])
            pixels[slot, y0:y1, x0:x1] = np.clip(np.rint(lit + part * (skin - lit)), 0, 255)
        return Drawn(pixels, Copied(drawn.copied.paint_mask, drawn.copied.flow, Own(share, flow)))

    def lips(self, wanted: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which cells of a flow (h, w) lie on the lips, or between them: bool. wanted: float32 (P, 2), as for `flows`."""
        return self._cells_of(wanted[:OUTER_LIPS])

    def mouth(self, wanted: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which of them lie between the lips."""
        return self._cells_of(wanted[OUTER_LIPS : 2 * OUTER_LIPS])

    def _cells_of(self, ring: NDArray[np.float32]) -> NDArray[np.bool_]:
        height, width = self._cells
        return np.asarray(cv2.resize(self._filled(ring), (width, height), interpolation=cv2.INTER_AREA) > 0)

    def _moved(self, picture: NDArray[np.uint8], flow: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The drawn box of a picture (S, S, 3), moved by a flow (2, h, w)."""
        y0, y1, x0, x1 = self._crop.drawn
        fine = self._crop.size * cv2.resize(np.moveaxis(flow, 0, 2), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        fine[..., 0] += np.arange(x0, x1, dtype=np.float32)[None]
        fine[..., 1] += np.arange(y0, y1, dtype=np.float32)[:, None]
        return np.asarray(cv2.remap(picture, fine[..., 0], fine[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)

    def _skin(self, lips: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where the skin is the target's own, around the outer `lips` (P, 2): float32 (h, w), from 0 at the lips to 1."""
        outside = np.asarray(255 * (1 - self._filled(lips)), np.uint8)
        away = cv2.distanceTransform(outside, cv2.DIST_L2, 3) / self._crop.size
        along = np.clip((away - LIPS_REACH) / (SKIN_REACH - LIPS_REACH), 0, 1)
        return np.asarray(along * along * (3 - 2 * along), np.float32)

    def _lit(self, page: NDArray[np.uint8], apart: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
        """The page with what the skin differs by where they meet, `apart`, carried smoothly into the mouth: float32 (h, w, 3). A tint is a
        share of how bright a pixel is: what is darker than the skin takes less of it."""
        ring = 4 * share * (1 - share)
        # What is carried is so smooth that a coarse picture holds it.
        height, width = ring.shape
        coarse = cv2.resize(np.dstack([apart * ring[..., None], ring]), (width // COARSE, height // COARSE), interpolation=cv2.INTER_AREA)
        weighted = cv2.GaussianBlur(coarse, (0, 0), COLOUR_REACH * self._crop.size / COARSE)
        carried = cv2.resize(weighted[..., :3] / (weighted[..., 3:] + 1e-3), (width, height), interpolation=cv2.INTER_LINEAR)
        grey, bright = (carried @ _MEAN)[..., None], page @ _MEAN
        level = float((ring * bright).sum() / (ring.sum() + 1e-3))
        tinted = np.minimum(1, bright / max(1.0, level))[..., None]
        return np.asarray(page + grey + tinted * (carried - grey), np.float32)

    def blended(self, one: NDArray[np.uint8], other: NDArray[np.uint8], share: float, wanted: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The drawn crops `one`, uint8 (M, S, S, 3), brought nearer to `other` by `share`, but for fine detail, which two pictures laid on
        each other blur, and for what lies between the lips, where teeth would shine through others. wanted: float32 (M, P, 2)."""
        y0, y1, x0, x1 = self._crop.drawn
        blended = one.copy()
        for slot, (here, there) in enumerate(zip(one[:, y0:y1, x0:x1], other[:, y0:y1, x0:x1], strict=True)):
            around = 1 - self._filled(wanted[slot, OUTER_LIPS : 2 * OUTER_LIPS])[..., None]
            apart = np.dstack([around * cv2.subtract(there, here, dtype=cv2.CV_32F), around])
            smooth = cv2.GaussianBlur(apart, (0, 0), FINE * self._crop.size)
            brought = share * around * smooth[..., :3] / (smooth[..., 3:] + 1e-3)
            blended[slot, y0:y1, x0:x1] = np.clip(np.rint(here + brought), 0, 255)
        return blended

    def flows(
        self, shown: NDArray[np.float32], wanted: NDArray[np.float32], unseen: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """From where each cell of the drawn box is copied relative to its own place, (x, y) in crop sides: float32 (K, 2, h, w).

        shown, wanted: float32 (K, P, 2) and (P, 2), unit crop: points of K pictures, and where each of them is to lie. unseen: cells (h, w)
        of which nothing is shown, and which may fold.
        """
        return self._unfolded(shown, wanted, unseen, thin_plate)

    def skin_flow(self, own: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
        """Likewise from where the skin around the lips is copied, float32 (2, h, w). own, wanted: float32 (P, 2), where the points of the
        frame lie, and where they are to lie."""
        around = np.r_[:OUTER_LIPS, 2 * OUTER_LIPS : len(wanted)]
        return self._unfolded(own[None, around], wanted[around], self.lips(wanted), conic)[0]

    def _unfolded(
        self, shown: NDArray[np.float32], wanted: NDArray[np.float32], unseen: NDArray[np.bool_] | None, kernel: _Kernel
    ) -> NDArray[np.float32]:
        flows = np.empty((len(shown), 2, *self._cells), np.float32)
        left, smoothing = np.arange(len(shown)), SMOOTHING
        while len(left):
            values = np.moveaxis(shown[left] - wanted, 0, 1).reshape(len(wanted), -1)
            flows[left] = spline(wanted, values, self._grid, smoothing, kernel).T.reshape(len(left), 2, *self._cells)
            if smoothing >= STIFFEST:
                break
            left = left[[folds(flows[one], CELL_PX / self._crop.size, unseen) for one in left]]
            smoothing *= STIFFER
        return flows


def opening(points: NDArray[np.float32]) -> float:
    """How far the inner lips among points (P, 2) are apart."""
    return float(inner_opening(points[None, : 2 * OUTER_LIPS])[0])


def seen_inside(apart: float) -> float:
    """How far lips that are so far apart let the inside be seen, 0 to 1."""
    return min(max(apart / SHUT - 1, 0.0), 1.0)


def spline(
    at: NDArray[np.float32], values: NDArray[np.float32], where: NDArray[np.float64], smoothing: float, kernel: _Kernel
) -> NDArray[np.float32]:
    """The smoothed spline of a `kernel` through `values` (P, V) at `at` (P, 2), twice, read off at `where` (G, 2): float32 (G, V)."""
    points, wanted = np.asarray(at, np.float64), np.asarray(values, np.float64)
    count = len(points)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = kernel(_squared(points, points))
    system[np.arange(count), np.arange(count)] += smoothing
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = points
    system[count + 1 :, :count] = points.T
    inverse = np.linalg.inv(system)[:, :count]
    weights = inverse @ wanted
    # What smoothing kept away from the points is asked for once more ("twicing", Tukey 1977): lips meet, and nothing tears all the same.
    weights = inverse @ (wanted + smoothing * weights[:count])
    bent = kernel(_squared(np.asarray(where, np.float32), points.astype(np.float32))) @ weights[:count].astype(np.float32)
    return np.asarray(bent + (weights[count] + where @ weights[count + 1 :]), np.float32)


def folds(flow: NDArray[np.float32], cell: float, unseen: NDArray[np.bool_] | None = None) -> bool:
    """Whether a flow (2, h, w), its cells `cell` crop sides apart, turns the picture inside out: its Jacobian is not positive somewhere,
    other than beside the `unseen` (h, w)."""
    across, down = np.diff(flow, axis=2)[:, :-1] / cell, np.diff(flow, axis=1)[:, :, :-1] / cell
    folded = (1 + across[0]) * (1 + down[1]) - across[1] * down[0] <= 0
    if unseen is not None:
        folded &= ~(unseen[1:, 1:] | unseen[1:, :-1] | unseen[:-1, 1:] | unseen[:-1, :-1])
    return bool(folded.any())


def _squared(one: NDArray[_Float], other: NDArray[_Float]) -> NDArray[_Float]:
    """Squared distances of points (N, 2) and (P, 2): (N, P), above 0 where they coincide."""
    return np.maximum((one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * (one @ other.T), 1e-12)


def thin_plate(squared: NDArray[_Float]) -> NDArray[_Float]:
    """r^2 log r of squared distances."""
    return np.asarray(0.5 * squared * np.log(squared), squared.dtype)


def conic(squared: NDArray[_Float]) -> NDArray[_Float]:
    """-r of squared distances."""
    return np.asarray(-np.sqrt(squared), squared.dtype)
