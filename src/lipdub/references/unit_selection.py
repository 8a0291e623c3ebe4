"""Which page each frame is drawn from: unit selection over a whole shot (Hunt and Black 1996; Video Rewrite, Bregler et al. 1997).

A page costs what it differs from the wish in lips and pose; going from one page to another costs what the two differ by. The cheapest way
through a shot is found by dynamic programming (Viterbi 1967), in blocks that look ahead, so that memory does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lipdub.references.bank import LIGHT_WEIGHT, POSE_PER_DEG
from lipdub.references.pages import Pages
from lipdub.references.shapes import inner_opening, shape_of

SWITCH = 0.003
"""What any change of page costs, in mean distance of lip points (unit crop)."""
UNLIKE = 0.8
"""And this share of what the two pages differ by."""
SHORT = 0.4
"""How much further open than a page the mouth is to be costs this share of it: shut lips that are drawn apart look swollen, while teeth
that a lip moves over do not."""
COARSE, COARSER = 0.03, 1.25
"""The logarithm of how much coarser than its frame a page is costs this, from this factor on: it would be drawn blurred."""
BLURRED = 0.015
"""And that of how much less sharp it is than the person's sharper pages, this: a head that moved leaves a smear on one that did not."""
SMEARED_S = 0.01
"""And how much faster its lips move than the wanted ones costs so many seconds of that: a smear, which is seen on lips that rest."""
BLOCK_FRAMES, AHEAD_FRAMES = 256, 32
"""A decision is made for so many frames when so many more have been seen."""


class UnitSelection:
    """Chooses among the pages of one person. speed: float32 (P,), how fast the lips of each move, as ``speed_of`` gives it."""

    def __init__(self, pages: Pages, usable: NDArray[np.bool_], speed: NDArray[np.float32]) -> None:
        self._shape = shape_of(pages.lips)
        self._pose, self._opening = pages.pose, inner_opening(pages.lips)
        self._side, self._speed = np.log(pages.side_px), speed
        self._always = np.where(usable, BLURRED * pages.blur(), np.inf).astype(np.float32)
        apart = np.abs(self._shape[:, None] - self._shape[None]).mean(axis=2)
        apart += POSE_PER_DEG * np.abs(pages.pose[:, None] - pages.pose[None]).sum(axis=2)
        light = np.log1p(pages.skin[:, 0])
        apart += LIGHT_WEIGHT * np.abs(light[:, None] - light[None])
        self._step = np.where(np.eye(len(pages), dtype=bool), 0, SWITCH + UNLIKE * apart).astype(np.float32)
        # The frame after a page's own goes on where it left off.
        follows = np.flatnonzero(np.diff(pages.frame) == 1)
        self._step[follows, follows + 1] = 0

    def costs(
        self, lips: NDArray[np.float32], speed: NDArray[np.float32], pose: NDArray[np.float32], side_px: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """What each page costs at each of n frames, float32 (n, P): lips (n, 40, 2) wished for in unit crop, their speed (n,),
        pose (n, 2) in degrees, side_px (n,) of the unit crop in the frame."""
        found = np.empty((len(lips), len(self._shape)), np.float32)
        for row, (shape, turned) in enumerate(zip(shape_of(lips), pose, strict=True)):
            found[row] = np.abs(self._shape - shape).mean(axis=1) + POSE_PER_DEG * np.abs(self._pose - turned).sum(axis=1)
        found += SHORT * np.maximum(0, inner_opening(lips)[:, None] - self._opening)
        found += SMEARED_S * np.maximum(0, self._speed - speed[:, None])
        coarser = np.log(side_px)[:, None] - self._side - np.log(COARSER)
        return np.asarray(found + COARSE * np.maximum(coarser, 0) + self._always, np.float32)

    def cheapest(self, costs: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.int64]]:
        """The page of every frame of a shot, in pieces. costs: (n, P) each, in order."""
        total: NDArray[np.float32] | None = None
        back: list[NDArray[np.int16]] = []
        waiting = 0
        for piece in costs:
            for cost in piece:
                if total is None:
                    total = cost.copy()
                    back.append(np.arange(len(cost), dtype=np.int16))
                else:
                    ways = total[:, None] + self._step
                    best = ways.argmin(axis=0)
                    total = ways[best, np.arange(len(cost))] + cost
                    total -= total.min()
                    back.append(best.astype(np.int16))
                waiting += 1
                if waiting == BLOCK_FRAMES + AHEAD_FRAMES:
                    way = _walked(back, int(total.argmin()))
                    yield way[:BLOCK_FRAMES]
                    # Only ways that go through the page that was decided on are left.
                    through = _came_through(back, BLOCK_FRAMES, int(way[BLOCK_FRAMES - 1]))
                    total = np.where(through, total, np.inf).astype(np.float32)
                    back, waiting = back[BLOCK_FRAMES:], AHEAD_FRAMES
        if total is not None and waiting:
            yield _walked(back, int(total.argmin()))


def _walked(back: list[NDArray[np.int16]], last: int) -> NDArray[np.int64]:
    """The way that ends at page `last`, int64 (n,). back: of each frame, from which page each page was reached."""
    way = np.empty(len(back), np.int64)
    for at in range(len(back) - 1, -1, -1):
        way[at] = last
        last = int(back[at][last])
    return way


def _came_through(back: list[NDArray[np.int16]], at: int, page: int) -> NDArray[np.bool_]:
    """Which of the last frame's pages were reached by a way whose frame before `at` had `page`: bool (P,)."""
    source = np.arange(len(back[0]))
    for one in range(len(back) - 1, at - 1, -1):
        source = back[one][source]
    return np.asarray(source == page)
