"""generators.warp: a page's mouth goes where it is wanted, smoothly, and is never turned inside out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.generators.warp import CELL_PX, SHUT, SMOOTHING, STILL_FROM, Warp, conic, folds, spline, thin_plate
from lipdub.records import CropSpec, Drawn

CROP = CropSpec(128, (64, 128, 16, 112), 64)
seeds = st.integers(0, 10**6)


def ring(count: int, width: float, height: float) -> NDArray[np.float32]:
    angle = np.arange(count) / count * 2 * np.pi + np.pi
    return np.stack([0.5 + width * np.cos(angle), 0.72 - height * np.sin(angle)], axis=1).astype(np.float32)


def face(opening: float = 0.02, width: float = 0.12) -> NDArray[np.float32]:
    """40 lip points and 24 of an outline: two rings of lips in a ring of a jaw; an opening of 0 has both inner lips in one place."""
    return np.concatenate([ring(20, width, 0.03 + opening), ring(20, 0.8 * width, opening), ring(24, 0.3, 0.24)])


def flow_of(shown: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    (flow,) = Warp(CROP).flows(shown[None], wanted)
    return flow


def skin_flow_of(own: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    return Warp(CROP).skin_flow(own, wanted)


def drawn_by(target: NDArray[np.uint8], page: NDArray[np.uint8], shown: NDArray[np.float32], wanted: NDArray[np.float32]) -> Drawn:
    return Warp(CROP).draw(target[None], page[None], flow_of(shown, wanted)[None])


@given(openings=st.lists(st.floats(0, 0.12), min_size=2, max_size=3), wanted=st.floats(0, 0.12))
@settings(max_examples=20, deadline=None)
def test_pictures_that_are_moved_together_move_as_each_would_alone(openings: list[float], wanted: float) -> None:
    together = Warp(CROP).flows(np.stack([face(opening) for opening in openings]), face(wanted))
    for flow, opening in zip(together, openings, strict=True):
        assert np.abs(flow - flow_of(face(opening), face(wanted))).max() < 1e-4


@pytest.mark.parametrize(("kernel", "named"), [(thin_plate, "thin_plate_spline"), (conic, "linear")])
def test_it_is_the_smoothing_spline_of_scipy_twice(kernel: Callable[[NDArray[Any]], NDArray[Any]], named: str) -> None:
    """The second one takes the residuals of the first."""
    interpolate = pytest.importorskip("scipy.interpolate")
    shown, wanted = face(0.0), face(0.05)
    where = np.random.default_rng(0).uniform(0.2, 1.0, (200, 2))
    for smoothing in (SMOOTHING, 0.1):
        at, values = wanted.astype(float), (shown - wanted).astype(float)
        fitted = partial(interpolate.RBFInterpolator, at, smoothing=smoothing, kernel=named, degree=1)
        reference = fitted(2 * values - fitted(values)(at))(where)
        assert np.abs(spline(wanted, shown - wanted, where, smoothing, kernel) - reference).max() < 1e-4


@given(opening=st.floats(0, 0.1), across=st.floats(-0.1, 0.1), down=st.floats(-0.1, 0.1))
@settings(max_examples=30, deadline=None)
def test_what_is_moved_as_a_whole_moves_by_that(opening: float, across: float, down: float) -> None:
    """Nothing moves where nothing is asked for, and a shift is a shift everywhere."""
    flow = flow_of(face(opening), face(opening) + np.array([across, down], np.float32))
    assert np.abs(flow[0] + across).max() < 1e-3
    assert np.abs(flow[1] + down).max() < 1e-3


@given(shown=st.floats(0, 0.12), wanted=st.floats(0, 0.12), widths=st.tuples(st.floats(0.08, 0.15), st.floats(0.08, 0.15)), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_no_mouth_is_turned_inside_out(shown: float, wanted: float, widths: tuple[float, float], seed: int) -> None:
    """Whatever is asked for, with the noise of a face mesh on both sides: the Jacobian of the flow stays positive."""
    rng = np.random.default_rng(seed)
    one, other = (
        face(opening, width) + rng.normal(0, 0.002, (64, 2)).astype(np.float32)
        for opening, width in zip((shown, wanted), widths, strict=True)
    )
    assert not folds(flow_of(one, other), CELL_PX / CROP.size)


def test_a_fold_is_known() -> None:
    flow = np.zeros((2, 8, 8), np.float32)
    assert not folds(flow, 0.1)
    flow[0, :, 4] = -0.2  # this column is copied from left of the one before
    assert folds(flow, 0.1)


@given(shown=st.floats(0.005, 0.06), wanted=st.floats(0.005, 0.06))
@settings(max_examples=30, deadline=None)
def test_lips_land_where_they_are_wanted(shown: float, wanted: float) -> None:
    """Read back at the wanted inner lips, the flow leads to the page's inner lips, to a fifth of the way that they have to go."""
    one, other = face(shown), face(wanted)
    landed = spline(other, one - other, other.astype(float), SMOOTHING, thin_plate) + other
    away = np.linalg.norm(landed[20:40] - one[20:40], axis=1).max()
    assert away <= 0.2 * np.linalg.norm(other - one, axis=1).max() + 0.002


def test_it_copies_from_the_page_into_the_drawn_box_alone() -> None:
    """All is copied, nothing painted; outside of the box is the target; the same lips give the page's own pixels."""
    rng = np.random.default_rng(1)
    targets, pages = rng.integers(0, 256, (2, 3, 128, 128, 3), dtype=np.uint8)
    before = targets.copy()
    drawn = Warp(CROP).draw(targets, pages, np.repeat(flow_of(face(), face())[None], 3, axis=0))
    assert (targets == before).all()
    assert drawn.copied is not None
    assert not drawn.copied.paint_mask.any()
    assert np.abs(drawn.pixels[:, 64:, 16:112].astype(int) - pages[:, 64:, 16:112]).max() <= 1
    outside = np.ones((128, 128), bool)
    outside[64:, 16:112] = False
    assert (drawn.pixels[:, outside] == targets[:, outside]).all()


def test_an_open_mouth_is_opened_and_a_shut_one_shut() -> None:
    """The dark inside of a drawn page grows and shrinks with what is wanted."""

    def page(opening: float) -> NDArray[np.uint8]:
        y, x = np.mgrid[0:128, 0:128] / 128
        inside = ((x - 0.5) / 0.096) ** 2 + ((y - 0.72) / max(opening, 1e-3)) ** 2 <= 1
        return np.where(inside[..., None], 20, 180).astype(np.uint8).repeat(3, axis=2)

    def dark(shown: float, wanted: float) -> int:
        drawn = drawn_by(page(0), page(shown), face(shown), face(wanted))
        return int((drawn.pixels[0, 64:, :, 0] < 100).sum())

    assert dark(0.03, 0.06) == pytest.approx(2 * dark(0.03, 0.03), rel=0.25)
    assert dark(0.05, 0.005) < 0.35 * dark(0.05, 0.05)


@given(opening=st.floats(0, 0.08), wanted=st.floats(0, 0.08), chin=st.floats(-0.03, 0.03))
@settings(max_examples=40, deadline=None)
def test_a_mouth_that_shuts_does_not_smear_the_chin(opening: float, wanted: float, chin: float) -> None:
    """No skin within the jaw is stretched more than twice as far as all that lies between chin and lip."""
    own, here = face(opening), face(wanted)
    here[40:, 1] += chin
    warp = Warp(CROP)
    flow = warp.skin_flow(own, here)
    rows, columns = flow.shape[1:]
    jaw = warp._filled(here[40:]).reshape(rows, CELL_PX, columns, CELL_PX).mean(axis=(1, 3)) == 1
    skin = warp._skin(here[:20]).reshape(rows, CELL_PX, columns, CELL_PX).mean(axis=(1, 3)) > 0.25
    below = jaw & skin & (np.arange(rows)[:, None] * CELL_PX + 64 > 0.72 * 128)
    copied = 1 + np.diff(flow[1], axis=0) * CROP.size / CELL_PX  # crop px of the source for each that is drawn
    gap = [points[40:, 1].max() - points[:20, 1].max() for points in (own, here)]
    assert copied[below[1:] & below[:-1]].min() >= 0.5 * min(1.0, gap[0] / gap[1])


@given(opening=st.floats(0.02, 0.06), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_nothing_shines_through_the_teeth(opening: float, seed: int) -> None:
    """Another page is blended in around the mouth alone."""
    rng = np.random.default_rng(seed)
    one, other = (rng.integers(0, 256, (1, 128, 128, 3), dtype=np.uint8) for _ in range(2))
    warp, points = Warp(CROP), face(opening)
    blended = warp.blended(one, other, 0.5, points[None])[0, 64:, 16:112]
    inside = warp._filled(points[20:40]) == 1
    assert inside.sum() > 100
    assert (blended[inside] == one[0, 64:, 16:112][inside]).all()
    # Nor does what lies between the lips of the other colour the skin.
    there = other.copy()
    there[0, 64:, 16:112][inside] = 255
    assert (warp.blended(one, there, 0.5, points[None])[0, 64:, 16:112] == blended).all()


@given(share=st.floats(0, 1), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_blending_takes_the_light_of_one_and_the_detail_of_the_other(share: float, seed: int) -> None:
    rng, shut = np.random.default_rng(seed), np.zeros((64, 2), np.float32)  # no lips in the box
    grain = rng.integers(-20, 21, (2, 128, 128, 3))
    one, other = (np.asarray(level + grain[0], np.uint8) for level in (100, 140))
    bright = Warp(CROP).blended(one[None], other[None], share, shut[None])[0]
    y0, y1, x0, x1 = CROP.drawn
    outside = np.ones((128, 128), bool)
    outside[y0:y1, x0:x1] = False
    assert (bright[outside] == one[outside]).all()
    assert np.abs(bright[~outside].astype(int) - one[~outside] - 40 * share).max() <= 0.6
    other = np.asarray(100 + grain[1], np.uint8)
    kept = Warp(CROP).blended(one[None], other[None], share, shut[None])[0]
    assert np.std(kept[~outside].astype(int) - one[~outside]) < 0.25 * np.std(other[~outside].astype(int) - one[~outside])


def around(target: NDArray[np.uint8], page: NDArray[np.uint8], own: NDArray[np.float32], wanted: NDArray[np.float32]) -> Drawn:
    """A target with the mouth of a page in which the points lie where they are wanted."""
    return Warp(CROP).around(drawn_by(target, page, wanted, wanted), target[None], skin_flow_of(own, wanted)[None], wanted[None])


@given(opening=st.floats(0.005, 0.06), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_skin_is_the_frames_own_and_lips_are_the_pages(opening: float, seed: int) -> None:
    """Where nothing moves, the skin is the target's to the level; inside of the lips all is of the page, in the light of that skin."""
    rng = np.random.default_rng(seed)
    grain = rng.integers(-12, 13, (2, 128, 128, 3))
    target, page = np.asarray(120 + grain[0], np.uint8), np.asarray(80 + grain[1], np.uint8)
    points = face(opening)
    drawn = around(target, page, points, points)
    y0, y1, x0, x1 = CROP.drawn
    box = drawn.pixels[0, y0:y1, x0:x1].astype(int)
    assert drawn.copied is not None
    assert drawn.copied.own is not None
    share = drawn.copied.own.share[0]
    assert set(np.unique(share[[0, -1]])) == {1.0}
    assert np.abs(box - target[y0:y1, x0:x1])[share == 1].max() <= 1
    inside = share == 0
    assert inside.sum() > 100
    of_page = page[y0:y1, x0:x1].astype(int) + 40
    assert np.abs(box - of_page)[inside].mean() < 0.3 * np.abs(box - target[y0:y1, x0:x1])[inside].mean()


@given(red=st.integers(-30, 30), level=st.integers(60, 120))
@settings(max_examples=15, deadline=None)
def test_teeth_take_as_much_of_a_tint_as_they_are_bright(red: int, level: int) -> None:
    """Skin of another tint than the page's: what is half as bright as skin between the lips is tinted half as much."""
    points = face(0.05)
    page = np.full((128, 128, 3), 120, np.uint8)
    target = page.copy()
    target[..., 0] += np.uint8(red % 256)
    inside = Warp(CROP)._filled(points[20:40]) == 1
    page[64:128, 16:112][inside] = level
    drawn = around(target, page, points, points).pixels[0, 64:128, 16:112]
    deep = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert deep.sum() > 50
    tints = drawn[deep].astype(float) - drawn[deep].mean(axis=1, keepdims=True)
    wanted = red * np.array([2 / 3, -1 / 3, -1 / 3]) * level / 120
    assert np.abs(tints - wanted).max() <= 2


@given(opening=st.floats(0.02, 0.06))
@settings(max_examples=10, deadline=None)
def test_the_old_mouth_is_nowhere_left(opening: float) -> None:
    """A target whose mouth is wide open, a page whose mouth is shut: the dark inside has gone from the skin as well."""
    y, x = np.mgrid[0:128, 0:128] / 128
    inside = ((x - 0.5) / 0.096) ** 2 + ((y - 0.72) / opening) ** 2 <= 1
    target = np.where(inside[..., None], 20, 180).astype(np.uint8).repeat(3, axis=2)
    drawn = around(target, np.full_like(target, 180), face(opening), face(0.001))
    assert drawn.pixels[0, 64:, 16:112].min() > 150


def test_a_jaw_that_drops_takes_the_skin_along() -> None:
    """A mole on the chin goes where the chin goes."""
    target = np.full((128, 128, 3), 180, np.uint8)
    target[118:121, 63:66] = 20
    own = face(0.01)
    wanted = own.copy()
    wanted[40:, 1] += 0.04
    drawn = around(target, target, own, wanted)
    rows = np.flatnonzero(drawn.pixels[0, :, 64, 0] < 100)
    assert rows.mean() == pytest.approx(119 + 0.04 * 128, abs=1.5)


@given(shown=st.floats(0, 0.08), wanted=st.floats(0, 0.08), shift=st.floats(-0.03, 0.03))
@settings(max_examples=40, deadline=None)
def test_teeth_stay_where_they_are_while_lips_shut_over_them(shown: float, wanted: float, shift: float) -> None:
    """Deep between the lips of a page further open the flow is that of the nose; elsewhere, and where lips meet, it is as before."""
    page, here = face(shown), face(wanted) + np.array([0, shift], np.float32)
    warp, flow = Warp(CROP), flow_of(page, here)
    found = warp.behind_lips(flow, page, here)
    if shown <= wanted or 2 * wanted <= SHUT:
        assert (found == flow).all()
    between = np.minimum(*(warp._filled(ring[20:40] - [0, lower]) for ring, lower in ((here, 0), (page, -shift))))
    rows, columns = flow.shape[1:]
    cells = between.reshape(rows, CELL_PX, columns, CELL_PX).mean(axis=(1, 3))
    assert (found[:, cells == 0] == flow[:, cells == 0]).all()
    if shown - wanted > STILL_FROM and wanted >= SHUT:
        assert np.abs(found[1][cells == 1] + shift).max(initial=0) < 1e-3


def test_lips_that_shut_hide_teeth_and_do_not_squeeze_them() -> None:
    """Teeth in the upper third of a wide mouth: a mouth of three eighths of that shows none of them but at the edge of the lip."""
    warp = Warp(CropSpec(256, (128, 256, 32, 224), 128))
    shown, wanted = face(0.08), face(0.03)
    page = np.full((256, 256, 3), 120, np.uint8)
    inside, box = warp._filled(shown[20:40]) > 0, page[128:, 32:224]
    box[inside] = 20
    teeth = round(0.69 * 256) - 128
    box[:teeth][inside[:teeth]] = 250

    def white(flow: NDArray[np.float32]) -> int:
        return int((warp.draw(page[None], page[None], flow[None]).pixels[..., 0] > 200).sum())

    (flow,) = warp.flows(shown[None], wanted)
    assert white(warp.behind_lips(flow, shown, wanted)) < 0.5 * white(flow)


@given(opening=st.floats(0.02, 0.08))
@settings(max_examples=20, deadline=None)
def test_lips_that_are_painted_between_open_as_far_as_is_wanted(opening: float) -> None:
    """Shut lips that are drawn apart fold between them: where that is not shown, they are smoothed no more."""
    warp, shown, wanted = Warp(CROP), face(0.0005), face(opening)
    inside = warp.mouth(wanted)
    stiff, free = (warp.flows(shown[None], wanted, unseen)[0] for unseen in (None, inside))
    assert not folds(free, CELL_PX / CROP.size, inside)
    assert warp.mouth(wanted)[warp.lips(wanted)].any()
    assert not (inside & ~warp.lips(wanted)).any()

    def missed(flow: NDArray[np.float32]) -> float:
        """By how much the middle of the outer lips is copied from elsewhere, in crop sides."""
        cells = np.floor((wanted[[5, 15]] * CROP.size - [16, 64]) / CELL_PX).astype(int)
        there = flow[:, cells[:, 1], cells[:, 0]].T
        return float(np.abs(there - (shown - wanted)[[5, 15]]).max())

    assert missed(free) < 0.01
    assert missed(free) <= missed(stiff) + 1e-3


def painted_mouth(points: NDArray[np.float32], inside: int) -> NDArray[np.uint8]:
    """A face of skin 180 with lips of 100 and so bright an inside."""
    warp, picture = Warp(CROP), np.full((128, 128, 3), 180, np.uint8)
    box = picture[64:128, 16:112]
    box[warp._filled(points[:20]) > 0] = 100
    box[warp._filled(points[20:40]) > 0] = inside
    return picture
