"""references.unit_selection: the cheapest way through the pages, in blocks, and always the same one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.references import unit_selection
from lipdub.references.pages import Pages
from lipdub.references.unit_selection import COARSER, UnitSelection

SIDE_PX = 120.0


def pages_of(count: int, seed: int = 0, *, apart: int = 5) -> Pages:
    """Pages of random mouths, `apart` frames from each other."""
    rng = np.random.default_rng(seed)
    return Pages(
        np.zeros(count, np.int32), np.arange(count) * apart, rng.normal(0.5, 0.01, (count, 40, 2)).astype(np.float32),
        np.zeros((count, 24, 2), np.float32), rng.normal(0, 5, (count, 2)).astype(np.float32),
        np.full((count, 2), 100, np.float32), np.ones(count, np.float32), np.tile([1 / SIDE_PX, 0.0, 0.0, 0.0], (count, 1)),
    )  # fmt: skip


def cost_of(selection: UnitSelection, way: NDArray[np.int64], costs: NDArray[np.float32]) -> float:
    steps = selection._step[way[:-1], way[1:]].sum()
    return float(costs[np.arange(len(way)), way].sum() + steps)


def way_of(selection: UnitSelection, costs: NDArray[np.float32], *, piece: int = 7) -> NDArray[np.int64]:
    pieces = (costs[first : first + piece] for first in range(0, len(costs), piece))
    return np.concatenate(list(selection.cheapest(pieces)))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), frames=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_no_way_is_cheaper(seed: int, count: int, frames: int) -> None:
    selection = UnitSelection(pages_of(count, seed), np.ones(count, bool))
    costs = np.random.default_rng(seed).uniform(0, 0.01, (frames, count)).astype(np.float32)
    found = cost_of(selection, way_of(selection, costs), costs)
    least = min(cost_of(selection, np.array(way), costs) for way in product(range(count), repeat=frames))
    assert found == pytest.approx(least, abs=1e-6)


def test_blocks_give_about_the_way_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided in blocks of 16 that look 8 ahead it costs hardly more, and how the frames come changes nothing."""
    selection = UnitSelection(pages_of(20), np.ones(20, bool))
    costs = np.random.default_rng(3).uniform(0, 0.01, (200, 20)).astype(np.float32)
    whole = way_of(selection, costs)
    monkeypatch.setattr(unit_selection, "BLOCK_FRAMES", 16)
    monkeypatch.setattr(unit_selection, "AHEAD_FRAMES", 8)
    blocks = way_of(selection, costs)
    assert len(blocks) == len(whole) == 200
    assert (way_of(selection, costs, piece=200) == blocks).all()
    assert cost_of(selection, blocks, costs) <= 1.02 * cost_of(selection, whole, costs)


def test_a_page_that_is_not_usable_is_never_taken() -> None:
    pages, usable = pages_of(6), np.array([True, False, True, False, True, True])
    selection = UnitSelection(pages, usable)
    costs = selection.costs(pages.lips[[1, 3, 1, 3]], pages.pose[[1, 3, 1, 3]], np.full(4, SIDE_PX))
    assert set(way_of(selection, costs).tolist()) <= {0, 2, 4, 5}


def test_a_mouth_that_the_pages_hold_is_found() -> None:
    pages = pages_of(30, apart=9)
    selection = UnitSelection(pages, np.ones(30, bool))
    wanted = np.repeat([4, 17, 8], 10)
    costs = selection.costs(pages.lips[wanted], pages.pose[wanted], np.full(len(wanted), SIDE_PX))
    assert (way_of(selection, costs) == wanted).all()


@given(st.floats(0.01, 0.06), st.floats(0.002, 0.02))
def test_a_mouth_is_drawn_from_one_that_is_open_enough(opening: float, off: float) -> None:
    """Of two pages that are as unlike, one less and one further open than is wanted, the further open one: it has the inside to show."""
    closed = np.tile(np.array([0.5, 0.7], np.float32), (40, 1))

    def mouth(apart: float) -> NDArray[np.float32]:
        lips = closed.copy()
        lips[20:31, 1] += apart / 2
        lips[31:, 1] -= apart / 2
        return lips

    pages = pages_of(2)
    pages = Pages(*(getattr(pages, name) for name in ("person", "frame")), np.stack([mouth(opening - off / 2), mouth(opening + off)]),
                  pages.outline, np.zeros((2, 2), np.float32), pages.skin, pages.sharpness, pages.similarity)  # fmt: skip
    selection = UnitSelection(pages, np.ones(2, bool))
    costs = selection.costs(mouth(opening)[None], np.zeros((1, 2), np.float32), np.full(1, SIDE_PX))
    assert costs[0, 1] < costs[0, 0]
    # A page that is open enough costs what its lips differ by, no more.
    same = selection.costs(mouth(opening + off)[None], np.zeros((1, 2), np.float32), np.full(1, SIDE_PX))
    assert same[0, 1] == pytest.approx(0, abs=1e-6)


def test_what_follows_in_the_video_follows_at_no_cost() -> None:
    """Successors are preferred over staying where both fit alike."""
    pages = pages_of(5, apart=1)
    selection = UnitSelection(pages, np.ones(5, bool))
    assert (np.diag(selection._step, 1) == 0).all()
    assert (np.diag(selection._step) == 0).all()
    assert (selection._step[np.tril_indices(5, -1)] >= unit_selection.SWITCH).all()


def test_the_opening_counts_by_itself() -> None:
    """Of two pages whose points are equally far, the one of the right opening is taken."""
    pages = pages_of(2)
    rest = np.full((40, 2), 0.5, np.float32)
    rest[25, 1] = 0.55  # the lower inner lip
    moved, shut = rest.copy(), rest.copy()
    moved[10, 1] += 0.04
    shut[25, 1] -= 0.04
    lips = np.stack([shut, moved])
    pages = Pages(
        pages.person, pages.frame, lips, pages.outline, np.zeros((2, 2), np.float32), pages.skin, pages.sharpness, pages.similarity
    )
    costs = UnitSelection(pages, np.ones(2, bool)).costs(rest[None], np.zeros((1, 2), np.float32), np.array([SIDE_PX]))
    assert costs[0].argmin() == 1


@given(factor=st.floats(0.2, 5))
@settings(max_examples=30, deadline=None)
def test_a_page_that_is_coarser_than_the_frame_costs_more_and_a_finer_one_nothing(factor: float) -> None:
    pages = pages_of(5)
    selection = UnitSelection(pages, np.ones(5, bool))
    plain, sized = (selection.costs(pages.lips, pages.pose, np.full(5, side)) for side in (SIDE_PX, SIDE_PX * factor))
    more = sized - plain
    assert np.ptp(more) < 1e-6
    assert (more[0, 0] > 1e-7) == (factor > COARSER * 1.0001)
