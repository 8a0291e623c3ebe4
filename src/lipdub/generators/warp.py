"""Mouths drawn without a network: a page of the person's own mouth, warped from its lips and jaw to those that are wanted.

Thin-plate splines (Bookstein 1989) with a little smoothing (Wahba 1990): exact ones tear where inner lips coincide. Where a warp would
fold, it is smoothed more until it does not.
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.records import Copied, CropSpec, Drawn

SMOOTHING = 0.0001
"""Of the spline, in squared unit crop."""
STIFFER, STIFFEST = 4.0, 1.0
"""A warp that folds is smoothed more by this factor, up to this."""
CELL_PX = 2
"""The flow is computed at the middles of cells of this many crop px."""
FINE = 0.012
"""Detail is what is finer than this, sigma, in sides of the crop."""

_Float = TypeVar("_Float", np.float32, np.float64)


class Warp:
    """Draws by copying every pixel from the page."""

    def __init__(self, crop: CropSpec) -> None:
        self._crop = crop
        y0, y1, x0, x1 = crop.drawn
        self._cells = (y1 - y0) // CELL_PX, (x1 - x0) // CELL_PX
        rows = (y0 + CELL_PX * (np.arange(self._cells[0]) + 0.5)) / crop.size
        columns = (x0 + CELL_PX * (np.arange(self._cells[1]) + 0.5)) / crop.size
        self._grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)

    def draw(self, targets: NDArray[np.uint8], pages: NDArray[np.uint8], shown: NDArray[np.float32], wanted: NDArray[np.float32]) -> Drawn:
        """The targets, uint8 (M, S, S, 3) RGB, with the `drawn` box of the `pages` (M, S, S, 3) moved into it.

        shown, wanted: float32 (M, P, 2), unit crop: points of the page, and where each of them is to lie.
        """
        y0, y1, x0, x1 = self._crop.drawn
        drawn = targets.copy()
        flow = np.empty((len(targets), 2, *self._cells), np.float32)
        x, y = np.meshgrid(np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32))
        for slot in range(len(targets)):
            flow[slot] = self.flow(shown[slot], wanted[slot])
            fine = self._crop.size * cv2.resize(np.moveaxis(flow[slot], 0, 2), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
            drawn[slot, y0:y1, x0:x1] = cv2.remap(
                pages[slot], x + fine[..., 0], y + fine[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
        return Drawn(drawn, Copied(np.zeros((len(targets), y1 - y0, x1 - x0), np.uint8), flow))

    def blended(self, one: NDArray[np.uint8], other: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
        """The drawn crops `one`, uint8 (M, S, S, 3), brought nearer to `other` by `share`, in all but fine detail: two pictures of a mouth
        that are laid on each other blur it."""
        y0, y1, x0, x1 = self._crop.drawn
        blended = one.copy()
        for slot, (here, there) in enumerate(zip(one[:, y0:y1, x0:x1], other[:, y0:y1, x0:x1], strict=True)):
            apart = cv2.GaussianBlur(cv2.subtract(there, here, dtype=cv2.CV_32F), (0, 0), FINE * self._crop.size)
            blended[slot, y0:y1, x0:x1] = np.clip(np.rint(here + share * apart), 0, 255)
        return blended

    def flow(self, shown: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
        """From where each cell of the drawn box is copied relative to its own place, (x, y) in crop sides: float32 (2, h, w)."""
        smoothing = SMOOTHING
        while True:
            flow = thin_plate(wanted, shown - wanted, self._grid, smoothing).T.reshape(2, *self._cells)
            if smoothing >= STIFFEST or not folds(flow, CELL_PX / self._crop.size):
                return flow
            smoothing *= STIFFER


def thin_plate(at: NDArray[np.float32], values: NDArray[np.float32], where: NDArray[np.float64], smoothing: float) -> NDArray[np.float32]:
    """The smoothed thin-plate spline through `values` (P, 2) at `at` (P, 2), twice, read off at `where` (G, 2): float32 (G, 2)."""
    points, wanted = np.asarray(at, np.float64), np.asarray(values, np.float64)
    count = len(points)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _kernel(points, points)
    system[np.arange(count), np.arange(count)] += smoothing
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = points
    system[count + 1 :, :count] = points.T
    inverse = np.linalg.inv(system)[:, :count]
    weights = inverse @ wanted
    # What smoothing kept away from the points is asked for once more ("twicing", Tukey 1977): lips meet, and nothing tears all the same.
    weights = inverse @ (wanted + smoothing * weights[:count])
    bent = _kernel(np.asarray(where, np.float32), points.astype(np.float32)) @ weights[:count].astype(np.float32)
    return np.asarray(bent + (weights[count] + where @ weights[count + 1 :]), np.float32)


def folds(flow: NDArray[np.float32], cell: float) -> bool:
    """Whether a flow (2, h, w), its cells `cell` crop sides apart, turns the picture inside out: its Jacobian is not positive somewhere."""
    across, down = np.diff(flow, axis=2)[:, :-1] / cell, np.diff(flow, axis=1)[:, :, :-1] / cell
    return bool(((1 + across[0]) * (1 + down[1]) - across[1] * down[0] <= 0).any())


def _kernel(one: NDArray[_Float], other: NDArray[_Float]) -> NDArray[_Float]:
    """r^2 log r between points (N, 2) and (P, 2): (N, P), 0 where they coincide."""
    squared = np.maximum((one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * (one @ other.T), 1e-12)
    return np.asarray(0.5 * squared * np.log(squared), one.dtype)
