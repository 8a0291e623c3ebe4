"""references.unit_selection: the cheapest way through the pages, in blocks, and always the same one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.references import unit_selection
from lipdub.references.pages import Pages
from lipdub.references.shapes import shape_of, speed_of
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


def choosing(pages: Pages, usable: NDArray[np.bool_] | None = None, speed: NDArray[np.float32] | None = None) -> UnitSelection:
    """Among pages that are all usable, with lips that rest, where nothing else is said."""
    count = len(pages)
    return UnitSelection(pages, np.ones(count, bool) if usable is None else usable, np.zeros(count, np.float32) if speed is None else speed)


def costs_of(
    selection: UnitSelection, lips: NDArray[np.float32], pose: NDArray[np.float32], side_px: float = SIDE_PX
) -> NDArray[np.float32]:
    """Of lips that rest."""
    return selection.costs(lips, np.zeros(len(lips), np.float32), pose, np.full(len(lips), side_px))


def cost_of(selection: UnitSelection, way: NDArray[np.int64], costs: NDArray[np.float32]) -> float:
    steps = selection._step[way[:-1], way[1:]].sum()
    return float(costs[np.arange(len(way)), way].sum() + steps)


def way_of(selection: UnitSelection, costs: NDArray[np.float32], *, piece: int = 7) -> NDArray[np.int64]:
    pieces = (costs[first : first + piece] for first in range(0, len(costs), piece))
    return np.concatenate(list(selection.cheapest(pieces)))


@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), frames=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_no_way_is_cheaper(seed: int, count: int, frames: int) -> None:
    selection = choosing(pages_of(count, seed))
    costs = np.random.default_rng(seed).uniform(0, 0.01, (frames, count)).astype(np.float32)
    found = cost_of(selection, way_of(selection, costs), costs)
    least = min(cost_of(selection, np.array(way), costs) for way in product(range(count), repeat=frames))
    assert found == pytest.approx(least, abs=1e-6)


def test_blocks_give_about_the_way_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided in blocks of 16 that look 8 ahead it costs hardly more, and how the frames come changes nothing."""
    selection = choosing(pages_of(20))
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
    selection = choosing(pages, usable)
    costs = costs_of(selection, pages.lips[[1, 3, 1, 3]], pages.pose[[1, 3, 1, 3]])
    assert set(way_of(selection, costs).tolist()) <= {0, 2, 4, 5}


def test_a_mouth_that_the_pages_hold_is_found() -> None:
    pages = pages_of(30, apart=9)
    selection = choosing(pages)
    wanted = np.repeat([4, 17, 8], 10)
    costs = costs_of(selection, pages.lips[wanted], pages.pose[wanted])
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
    selection = choosing(pages)
    costs = costs_of(selection, mouth(opening)[None], np.zeros((1, 2), np.float32))
    assert costs[0, 1] < costs[0, 0]
    # A page that is open enough costs what its lips differ by, no more.
    same = costs_of(selection, mouth(opening + off)[None], np.zeros((1, 2), np.float32))
    assert same[0, 1] == pytest.approx(0, abs=1e-6)


def test_what_follows_in_the_video_follows_at_no_cost() -> None:
    """Successors are preferred over staying where both fit alike."""
    pages = pages_of(5, apart=1)
    selection = choosing(pages)
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
    costs = costs_of(choosing(pages), rest[None], np.zeros((1, 2), np.float32))
    assert costs[0].argmin() == 1


@given(factor=st.floats(0.4, 5), usual=st.floats(0.003, 0.1))
@settings(max_examples=30, deadline=None)
def test_of_two_mouths_that_are_alike_the_sharper_one_is_taken(factor: float, usual: float) -> None:
    """Fine detail of a page beyond what the person's pages usually have gains nothing."""
    pages = pages_of(5)
    lips, sharpness = pages.lips[np.array([0, 1, 2, 3, 3])], np.full(5, usual, np.float32)
    sharpness[4] *= factor
    pages = replace(pages, lips=lips, pose=np.zeros((5, 2), np.float32), sharpness=sharpness)
    blurred, plain = pages.blur()[4], pages.blur()[:4]
    assert (plain == pytest.approx(np.zeros(4), abs=1e-6)) if factor <= 1 else (plain >= 0).all()
    assert (blurred > 0) == (factor < 1)
    costs = costs_of(choosing(pages), lips[3:4], np.zeros((1, 2), np.float32))
    assert costs[0, 4] - costs[0, 3] == pytest.approx(unit_selection.BLURRED * (blurred - plain[3]), abs=1e-6)
    assert not replace(pages, person=np.arange(5, dtype=np.int32)).blur().any()


@given(speed=st.floats(0, 1), wanted=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_lips_that_rest_are_not_drawn_from_lips_that_moved(speed: float, wanted: float) -> None:
    """Of two mouths that are alike the one whose lips moved costs more, by what it moved faster than is wanted."""
    pages = pages_of(2)
    pages = replace(pages, lips=pages.lips[[0, 0]], pose=np.zeros((2, 2), np.float32))
    selection = choosing(pages, speed=np.array([0, speed], np.float32))
    costs = selection.costs(pages.lips[:1], np.array([wanted], np.float32), np.zeros((1, 2), np.float32), np.array([SIDE_PX]))
    assert costs[0, 0] == pytest.approx(0, abs=1e-6)
    assert costs[0, 1] == pytest.approx(unit_selection.SMEARED_S * max(0, speed - wanted), abs=1e-6)


@given(rate=st.floats(5, 60), opened=st.floats(0.1, 1), count=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_the_speed_of_lips_does_not_depend_on_the_frame_rate(rate: float, opened: float, count: int) -> None:
    times_s = np.arange(count) / rate
    lips = np.tile(np.array([0.5, 0.7]), (count, 40, 1))
    lips[:, 20:31, 1] += opened * times_s[:, None]
    found = speed_of(lips.astype(np.float32), times_s)
    assert found == pytest.approx(np.full(count, np.abs(shape_of((lips[1:2] - lips[:1]).astype(np.float32))).mean() * rate), rel=0.02)
    assert speed_of(lips[:1].astype(np.float32), times_s[:1]) == [0]


@given(factor=st.floats(0.2, 5))
@settings(max_examples=30, deadline=None)
def test_a_page_that_is_coarser_than_the_frame_costs_more_and_a_finer_one_nothing(factor: float) -> None:
    pages = pages_of(5)
    selection = choosing(pages)
    plain, sized = (costs_of(selection, pages.lips, pages.pose, side) for side in (SIDE_PX, SIDE_PX * factor))
    more = sized - plain
    assert np.ptp(more) < 1e-6
    assert (more[0, 0] > 1e-7) == (factor > COARSER * 1.0001)
