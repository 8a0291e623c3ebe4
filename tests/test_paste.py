"""paste: the mask covers what speech moves, nothing outside it is ever touched, and what was copied is as fine as the video."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from faces_for_tests import (
    CHIN,
    LOWER_LIP,
    NOSE_TIP,
    UPPER_LIP,
    chunk_of,
    crops_of,
    face_at,
    portrait,
    portrait_face,
    smooth_picture,
    textured_picture,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.faces import crop
from lipdub.faces.landmarks import LIPS
from lipdub.media.planes import TEN_BITS, YuvChunk, YuvColor, planes_of
from lipdub.paste.blend import paste
from lipdub.paste.detail import FineReference, LitReference
from lipdub.paste.light import LEAST_RED, Light, match_colour, without_green
from lipdub.paste.mask import mask_of
from lipdub.records import ColorTags, Copied, Crops, CropSpec, Drawn, Face, Own, Reference
from lipdub.references.store import LEAST_GAIN

SPEC = CropSpec(size=128, drawn=(56, 128, 16, 112), masked_from=64)


def planes_chunk(*frames: NDArray[np.uint8]) -> YuvChunk:
    """Frames as most videos have them, in limited range of BT.709."""
    return chunk_of(*frames, color=ColorTags(1, 1, 1, 1))


def crops_in(chunk: YuvChunk, face: Face) -> Crops:
    return crops_of(chunk, face, SPEC.size)


def pasted(chunk: YuvChunk, crops: Crops, drawn: NDArray[np.uint8], strength: float = 1.0) -> list[NDArray[np.int16]]:
    """Draw into `chunk`; by how many levels each plane of its first frame changed."""
    before = chunk.data.copy()
    paste(chunk, crops, Drawn(drawn), np.full(len(crops), strength, np.float32), SPEC)
    return list(planes_of(chunk.data[0].astype(np.int16) - before[0], chunk.height, chunk.width))  # type: ignore[arg-type]


def mask_in_frame(crops: Crops, shape: tuple[int, ...]) -> NDArray[np.float32]:
    mask = mask_of(crops.outline[0], SPEC)
    return np.asarray(cv2.warpAffine(mask, crops.to_frame[0], (shape[1], shape[0]), flags=cv2.INTER_LINEAR), np.float32)


def outside(crops: Crops, chunk: YuvChunk) -> list[NDArray[np.bool_]]:
    """Where a paste must leave each plane of the frame alone."""
    mask = mask_in_frame(crops, (chunk.height, chunk.width))
    # Chroma that shares a pixel with the mask, or touches one that does, may change.
    near = cv2.resize(cv2.dilate(mask, np.ones((5, 5))), (chunk.width // 2, chunk.height // 2), interpolation=cv2.INTER_AREA)
    return [mask == 0, near == 0, near == 0]


def at(mask: NDArray[np.float32], point: NDArray[np.float32]) -> float:
    """The mask at a point in crop px (pixel i spans [i, i + 1))."""
    return float(mask[tuple(np.clip(np.floor(point[::-1]).astype(int), 0, len(mask) - 1))])


# ------------------------------------------------------------------------------------------------------------- paste


@given(height=st.floats(60, 300), roll_deg=st.floats(-40, 40), x=st.floats(150, 360), y=st.floats(150, 360), strength=st.floats(0.1, 1.0))
@settings(max_examples=15, deadline=None)
def test_pasting_what_was_taken_changes_almost_nothing_and_nothing_at_all_outside(
    height: float, roll_deg: float, x: float, y: float, strength: float
) -> None:
    chunk = planes_chunk(smooth_picture())
    crops = crops_in(chunk, face_at((x, y), height=height, roll_deg=roll_deg))
    for change, where in zip(pasted(chunk, crops, crops.pixels, strength), outside(crops, chunk), strict=True):
        assert np.abs(change).max() <= 4
        assert (change[where] == 0).all()


def test_where_the_mask_is_zero_every_bit_stays() -> None:
    rng = np.random.default_rng(0)
    chunk = planes_chunk(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    crops = crops_in(chunk, face_at(roll_deg=12))
    drawn = rng.integers(0, 256, crops.pixels.shape, dtype=np.uint8)
    for change, where in zip(pasted(chunk, crops, drawn), outside(crops, chunk), strict=True):
        assert (change[where] == 0).all()
        assert 0.85 < where.mean() < 0.99
        assert (change[~where] != 0).mean() > 0.5


@given(height=st.floats(60, 400), roll_deg=st.floats(-40, 40), x=st.floats(0, 511), y=st.floats(0, 511))
@settings(max_examples=20, deadline=None)
def test_a_drawing_shows_in_its_own_colours_as_far_as_the_mask_takes_it(height: float, roll_deg: float, x: float, y: float) -> None:
    frame = smooth_picture()
    chunk = planes_chunk(frame)
    crops = crops_in(chunk, face_at((x, y), height=height, roll_deg=roll_deg))
    drawn = cv2.GaussianBlur(255 - crops.pixels[0], (0, 0), 3)
    # The picture is so smooth that a crop holds all of it: the frame's own detail adds nothing.
    matched = match_colour(drawn, crops.pixels[0], mask_of(crops.outline[0], SPEC))
    new = cv2.warpAffine(matched, crops.to_frame[0], (512, 512), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    wanted = frame + mask_in_frame(crops, frame.shape)[..., None] * (new - frame)
    for change, where in zip(pasted(chunk, crops, drawn[None]), outside(crops, chunk), strict=True):
        assert (change[where] == 0).all()
    shown = chunk.picture(0).rgb(0, 0, 512, 512)
    # Chroma of half the sides blurs the mask's edge by a pixel.
    assert np.abs(shown - wanted).mean() < 1.5
    assert np.percentile(np.abs(shown - wanted), 99.5) <= 16


def test_inside_the_mask_the_new_picture_is_taken() -> None:
    chunk, face = planes_chunk(smooth_picture()), face_at()
    crops = crops_in(chunk, face)
    drawn = crops.pixels.copy()
    middle = face.landmarks[[UPPER_LIP, LOWER_LIP], :2].mean(axis=0)
    unit = crop.to_unit(middle, crop.fit_similarity(face.landmarks)) * SPEC.size
    drawn[0, int(unit[1]) - 8 : int(unit[1]) + 9, int(unit[0]) - 8 : int(unit[0]) + 9] = (250, 10, 10)
    pasted(chunk, crops, drawn)
    x, y = int(middle[0]), int(middle[1])
    np.testing.assert_allclose(chunk.picture(0).rgb(x, y, x + 1, y + 1)[0, 0], (250, 10, 10), atol=12)


def test_ten_bits_are_pasted_as_eight_are() -> None:
    """The same drawing, from a page with light and detail of its own, but finer; outside of it every bit stays."""
    face = face_at((256, 256), height=280)
    eight, reference = planes_chunk(np.roll(textured_picture(), 37, axis=1)), reference_of(planes_chunk(textured_picture()), face)
    color = replace(eight.color, depth=TEN_BITS)
    lowest = np.random.default_rng(0).integers(0, 4, eight.data.shape, np.uint16)
    ten = replace(eight, data=4 * eight.data.astype(np.uint16) + lowest, color=color)
    results = []
    for chunk in (eight, ten):
        before, crops = chunk.data.copy(), crops_in(chunk, face)
        similarity = crop.fit_similarity(face.landmarks)
        lit = LitReference.of(FineReference(reference, chunk.color), crops.pixels[0], chunk.picture(0), similarity)
        assert lit.planes is not None
        assert lit.planes[0].dtype == chunk.data.dtype
        drawn = drawn_as_copied(crops, replace(reference, pixels=lit.pixels), all_copied((0.02, -0.01)))
        paste(chunk, crops, drawn, np.ones(1, np.float32), SPEC, [lit])
        for old, new, where in zip(*(planes_of(data[0], 512, 512) for data in (before, chunk.data)), outside(crops, chunk), strict=True):
            assert (old[where] == new[where]).all()
            assert (old[~where] != new[~where]).mean() > 0.5
        results.append(chunk.data.astype(np.float64) / chunk.color.depth.step)
    away = np.abs(results[0] - results[1])
    assert away.mean() < 0.5
    assert np.percentile(away, 99.9) < 4


@pytest.mark.parametrize("brighter", [0, 3])
def test_a_gradient_of_ten_bits_has_no_bands_where_little_changed(brighter: int) -> None:
    """A ramp of which one level of 8 bits is 16 px wide keeps all of its steps under the mask, and over the mask's edge."""
    planar = planes_chunk(np.zeros((512, 512, 3), np.uint8))
    data = np.full(planar.data.shape, 512, np.uint16)
    planes_of(data[0], 512, 512)[0][...] = 400 + np.arange(512) // 4
    chunk = replace(planar, data=data, color=replace(planar.color, depth=TEN_BITS))
    crops = crops_in(chunk, face_at((256, 256), height=280))
    pasted(chunk, crops, np.clip(crops.pixels.astype(int) + brighter, 0, 255).astype(np.uint8))
    assert np.abs(np.diff(chunk.picture(0).y.astype(int), axis=1)).max() <= 2


def test_strength_fades_from_the_frame_to_the_drawing() -> None:
    def change(strength: float) -> NDArray[np.float64]:
        chunk = planes_chunk(smooth_picture())
        crops = crops_in(chunk, face_at())
        planes = pasted(chunk, crops, np.full_like(crops.pixels, 30), strength)
        return np.concatenate([plane.ravel() for plane in planes]).astype(np.float64)

    assert (change(0.0) == 0).all()
    np.testing.assert_allclose(change(0.5), change(1.0) / 2, atol=1.1)


def test_no_crops_no_change_and_each_crop_goes_into_its_own_frame() -> None:
    chunk = planes_chunk(*[smooth_picture()] * 3)
    before = chunk.data.copy()
    face = face_at()
    similarity = crop.fit_similarity(face.landmarks)[None]
    outline = crop.to_unit(face.landmarks[crop.OUTLINE, :2], similarity[0])[None]
    none = crop.take(chunk, np.zeros(0, np.int64), similarity[:0], outline[:0], SPEC.size)
    paste(chunk, none, Drawn(none.pixels), np.zeros(0, np.float32), SPEC)
    assert (chunk.data == before).all()
    one = crop.take(chunk, np.array([1]), similarity, outline, SPEC.size)
    paste(chunk, one, Drawn(np.zeros_like(one.pixels)), np.ones(1, np.float32), SPEC)
    assert (chunk.data != before).any(axis=1).tolist() == [False, True, False]


@given(height=st.floats(90, 400), roll_deg=st.floats(-40, 40), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_what_did_not_change_keeps_the_detail_that_a_crop_cannot_hold(height: float, roll_deg: float, seed: int) -> None:
    """Noise in every pixel of a large face: gone in a 128-px crop, and there again once the same crop is pasted."""
    chunk = planes_chunk(np.random.default_rng(seed).integers(0, 256, (512, 512, 3), dtype=np.uint8))
    crops = crops_in(chunk, face_at(height=height, roll_deg=roll_deg))
    # A drawing is matched in colour, which here may move it by a level or so.
    assert max(np.abs(change).max() for change in pasted(chunk, crops, crops.pixels)) <= 2


def test_detail_of_the_old_mouth_does_not_survive_in_the_new_one() -> None:
    stripes = np.where(np.arange(512) % 2, 160, 90).astype(np.uint8)
    chunk = planes_chunk(np.repeat(np.repeat(stripes[:, None, None], 512, axis=1), 3, axis=2))
    face = face_at(height=380)
    crops = crops_in(chunk, face)
    drawn = crops.pixels.copy()
    middle = face.landmarks[[UPPER_LIP, LOWER_LIP], :2].mean(axis=0)
    x, y = (crop.to_unit(middle, crop.fit_similarity(face.landmarks)) * SPEC.size).astype(int)
    drawn[0, y - 10 : y + 11, x - 10 : x + 11] = 20
    luma, *_ = pasted(chunk, crops, drawn)
    px, py = middle.astype(int)
    inside = chunk.picture(0).y[py - 12 : py + 13, px - 12 : px + 13].astype(int)
    assert np.ptp(inside) <= 4
    # Beside it, where nothing was drawn anew, the stripes stand as before.
    assert (luma[py + 100 : py + 110, px] == 0).all()


@pytest.mark.parametrize("centre", [(0, 200), (511, 200), (256, 0), (256, 511), (0, 0), (511, 511)])
@pytest.mark.parametrize("height", [80, 300])
def test_a_face_that_is_half_outside_the_frame_works(centre: tuple[float, float], height: float) -> None:
    chunk = planes_chunk(smooth_picture())
    crops = crops_in(chunk, face_at(centre, height=height))
    for change, where in zip(pasted(chunk, crops, crops.pixels), outside(crops, chunk), strict=True):
        assert np.abs(change).max() <= 8
        assert (change[where] == 0).all()


def test_a_face_that_is_wholly_outside_the_frame_changes_nothing() -> None:
    chunk = planes_chunk(smooth_picture())
    crops = crops_in(chunk, face_at((-900, 2000)))
    assert all((change == 0).all() for change in pasted(chunk, crops, np.zeros_like(crops.pixels)))


# -------------------------------------------------------------------------------------------------------------- mask


def portrait_mask() -> tuple[NDArray[np.float32], Crops, NDArray[np.float32]]:
    """Mask, crops and all landmarks in crop px of the example face."""
    face = portrait_face()
    crops = crops_in(chunk_of(portrait()), face)
    points = crop.to_unit(face.landmarks[:, :2], crop.fit_similarity(face.landmarks)) * SPEC.size
    return mask_of(crops.outline[0], SPEC), crops, points


def test_the_mask_covers_mouth_jaw_and_chin_of_the_example_and_leaves_the_nose() -> None:
    mask, _, points = portrait_mask()
    assert mask.dtype == np.float32
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert min(at(mask, points[index]) for index in LIPS) > 0.9
    assert at(mask, points[CHIN]) > 0.9
    # From the height of the mouth down, all the jaw; up at the ears it may thin out.
    low = [index for index in crop.JAW if points[index, 1] > points[UPPER_LIP, 1]]
    assert len(low) >= 9
    assert min(at(mask, points[index]) for index in low) > 0.5
    assert at(mask, points[NOSE_TIP]) < 0.1
    assert max(at(mask, points[index]) for index in crop.ANCHORS) == 0


def test_the_mask_covers_a_chin_that_drops_below_the_sources() -> None:
    mask, _, points = portrait_mask()
    face_height = float(np.ptp(points[:, 1]))
    lower = points[CHIN] + [0, 0.03 * face_height]
    assert at(mask, lower.astype(np.float32)) > 0.4


@given(drawn=st.tuples(st.integers(30, 70), st.integers(100, 128), st.integers(0, 40), st.integers(90, 128)), jitter=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_the_mask_is_zero_outside_the_drawn_box(drawn: tuple[int, int, int, int], jitter: int) -> None:
    _, crops, _ = portrait_mask()
    spec = CropSpec(128, drawn, 64)
    mask = mask_of(crops.outline[0] + np.float32(jitter - 10), spec)
    y0, y1, x0, x1 = drawn
    inside = np.zeros_like(mask, bool)
    inside[y0:y1, x0:x1] = True
    assert (mask[~inside] == 0).all()
    assert mask.max() <= 1


def test_the_mask_has_soft_edges() -> None:
    mask, _, _ = portrait_mask()
    assert max(np.abs(np.diff(mask, axis=0)).max(), np.abs(np.diff(mask, axis=1)).max()) < 0.3


@pytest.mark.parametrize("size", [96, 128, 256])
def test_the_mask_is_the_same_at_every_crop_side(size: int) -> None:
    spec = CropSpec(size, (56 * size // 128, size, 16 * size // 128, 112 * size // 128), size // 2)
    mask, crops, _ = portrait_mask()
    other = mask_of(crops.outline[0] * np.float32(size / 128), spec)
    shrunk = cv2.resize(other, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk - mask).mean() < 0.01


# ------------------------------------------------------------------------------------------------------------ colour


@given(offset=st.tuples(*[st.integers(-25, 25)] * 3))
@settings(max_examples=15, deadline=None)
def test_a_constant_difference_of_colour_is_taken_out(offset: tuple[int, int, int]) -> None:
    mask, crops, _ = portrait_mask()
    target = crops.pixels[0].clip(30, 225)
    drawn = (target.astype(int) + offset).astype(np.uint8)
    matched = match_colour(drawn, target, mask)
    inside = mask > 0.5
    assert np.abs(matched - target)[inside].mean() < 0.05 * max(1, *np.abs(offset)) + 0.5


def test_a_mouth_that_was_drawn_differently_keeps_its_own_colour() -> None:
    mask, crops, points = portrait_mask()
    target = crops.pixels[0]
    drawn = target.copy()
    x, y = points[[UPPER_LIP, LOWER_LIP]].mean(axis=0).astype(int)
    drawn[y - 6 : y + 7, x - 12 : x + 13] = (60, 10, 10)
    matched = match_colour(drawn, target, mask)
    assert np.abs(matched - drawn).max() < 6


def test_nothing_to_compare_leaves_the_drawing_as_it_is() -> None:
    mask, crops, _ = portrait_mask()
    drawn = np.where(crops.pixels[0] > 127, 0, 255).astype(np.uint8)
    empty = match_colour(drawn, crops.pixels[0], np.zeros_like(mask))
    assert (empty == drawn).all()
    assert np.isfinite(match_colour(drawn, crops.pixels[0], mask)).all()


# ------------------------------------------------------------------------------------------------------------ copied pixels


def reference_of(chunk: YuvChunk, face: Face, number: int = 0) -> Reference:
    """The face as a reference, with all the detail that the frame has."""
    similarity = crop.fit_similarity(face.landmarks)
    side = 2 * round(0.5 / float(np.hypot(*similarity[:2])))
    pixels, detail = (crop.take_one(chunk.picture(0), similarity, px, sharp=px > SPEC.size) for px in (SPEC.size, side))
    return Reference(number, pixels, detail)


def all_copied(flow: tuple[float, float] = (0.0, 0.0), painted: int = 0) -> Copied:
    y0, y1, x0, x1 = SPEC.drawn
    box = (y1 - y0, x1 - x0)
    moved = np.empty((1, 2, box[0] // 4, box[1] // 4), np.float32)
    moved[:, 0], moved[:, 1] = flow
    return Copied(np.full((1, *box), painted, np.uint8), moved)


def drawn_as_copied(crops: Crops, reference: Reference, copied: Copied) -> Drawn:
    """What a generator draws that copies as `copied` says: looked up in the reference's crop, and black paint."""
    y0, y1, x0, x1 = SPEC.drawn
    shift = copied.flow[0, :, 0, 0] * SPEC.size
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(reference.pixels, matrix, (SPEC.size, SPEC.size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    pixels = crops.pixels.copy()
    share = 1 - copied.paint_mask[0, :, :, None] / 255
    pixels[0, y0:y1, x0:x1] = np.rint(moved[y0:y1, x0:x1] * share)
    return Drawn(pixels, copied)


def as_it_is(reference: Reference, crops: Crops, color: YuvColor) -> LitReference:
    """A reference for the first of the crops, in its own light and as sharp as it is."""
    fine, crop_px = FineReference(reference, color), SPEC.size * float(np.hypot(*crops.to_frame[0, :, 0]))
    return LitReference(Light(np.ones(3, np.float32), np.zeros(3, np.float32)), reference.pixels, fine.coarse, fine.planes(crop_px))


def fine_energy(picture: NDArray[np.uint8], weight: NDArray[np.float32]) -> float:
    luma = picture.astype(np.float32)
    return float(np.abs(luma - cv2.GaussianBlur(luma, (0, 0), 2.5))[weight > 0.9].mean())


@given(roll_deg=st.floats(-30, 30), x=st.floats(200, 312), y=st.floats(200, 300), away=st.floats(-0.03, 0.03))
@settings(max_examples=15, deadline=None)
def test_what_was_copied_is_as_fine_as_the_video(roll_deg: float, x: float, y: float, away: float) -> None:
    face, old_face = face_at((x, y), height=260, roll_deg=roll_deg), face_at((256, 256), height=280)
    shown, other = textured_picture(), np.roll(255 - textured_picture(), 37, axis=1)
    chunk, reference = planes_chunk(other), reference_of(planes_chunk(shown), old_face)
    crops = crops_in(chunk, face)
    drawn = drawn_as_copied(crops, reference, all_copied((away, -away)))
    mask = mask_in_frame(crops, other.shape)
    coarse, fine = (planes_chunk(other) for _ in range(2))
    one = np.ones(1, np.float32)
    paste(coarse, crops, drawn, one, SPEC)
    paste(fine, crops, drawn, one, SPEC, [as_it_is(reference, crops, fine.color)])
    before, enlarged, copied = (fine_energy(each.picture(0).y, mask) for each in (chunk, coarse, fine))
    assert enlarged < 0.5 * before
    assert copied > 0.7 * before
    # Broadly they show the same, and outside the mask nothing is touched.
    broad = [cv2.GaussianBlur(each.picture(0).y.astype(np.float32), (0, 0), 6) for each in (coarse, fine)]
    assert np.abs(broad[0] - broad[1]).max() < 6
    away_from_it = outside(crops, chunk)[0]
    assert (fine.picture(0).y[away_from_it] == chunk.picture(0).y[away_from_it]).all()


@given(roll_deg=st.floats(-30, 30), height=st.floats(70, 300))
@settings(max_examples=15, deadline=None)
def test_what_is_the_frames_own_and_stays_is_the_same_to_the_level(roll_deg: float, height: float) -> None:
    """Below and above the crop's own size."""
    chunk = planes_chunk(textured_picture())
    crops = crops_in(chunk, face_at((256, 256), height=height, roll_deg=roll_deg))
    still = all_copied()
    share = np.ones(still.paint_mask.shape, np.float32)
    drawn = Drawn(crops.pixels.copy(), Copied(still.paint_mask, still.flow, Own(share, still.flow)))
    before = chunk.data.copy()
    paste(chunk, crops, drawn, np.ones(1, np.float32), SPEC)
    assert np.abs(chunk.data.astype(int) - before).max() <= 1


def test_what_is_the_frames_own_and_moves_is_as_sharp_as_the_frame() -> None:
    """All of a frame's skin down by a tenth of the crop's side."""
    away = 0.1
    chunk = planes_chunk(textured_picture())
    crops = crops_in(chunk, face_at((256, 256), height=280))
    page, own = all_copied(), all_copied((0.0, -away))
    picture = drawn_as_copied(crops, Reference(0, crops.pixels[0], None), own).pixels
    drawn = Drawn(picture, Copied(page.paint_mask, page.flow, Own(np.ones(page.paint_mask.shape, np.float32), own.flow)))
    before = chunk.picture(0).y.copy()
    paste(chunk, crops, drawn, np.ones(1, np.float32), SPEC)
    shift = np.column_stack([np.eye(2), crops.to_frame[0, :, 1] * away * SPEC.size])
    wanted = cv2.warpAffine(before, shift, before.shape[::-1], flags=cv2.INTER_CUBIC).astype(int)
    deep = mask_in_frame(crops, before.shape) > 0.99
    assert np.abs(chunk.picture(0).y - wanted)[deep].mean() < 0.2 * np.abs(before - wanted)[deep].mean()


def test_copied_detail_lies_where_the_flow_says() -> None:
    face = face_at((256, 256), height=280)
    shown = textured_picture()
    reference = reference_of(planes_chunk(shown), face)
    crops = crops_in(planes_chunk(shown), face)
    scale_px = SPEC.size * float(np.hypot(*crops.to_frame[0, :, 0]))
    flow = (6 / scale_px, 0.0)
    fine = planes_chunk(np.full_like(shown, 128))
    plain = crops_in(fine, face)
    drawn = drawn_as_copied(plain, reference, all_copied(flow))
    paste(fine, plain, drawn, np.ones(1, np.float32), SPEC, [as_it_is(reference, plain, fine.color)])
    mask = mask_in_frame(crops, shown.shape) > 0.98
    wanted = np.roll(planes_chunk(shown).picture(0).y, -6, axis=1).astype(np.float32)
    wanted -= cv2.GaussianBlur(wanted, (0, 0), 3)
    got = fine.picture(0).y.astype(np.float32)
    got -= cv2.GaussianBlur(got, (0, 0), 3)
    assert np.corrcoef(wanted[mask], got[mask])[0, 1] > 0.95


@pytest.mark.parametrize("height", [30.0, 280.0])
def test_what_was_painted_or_cannot_be_finer_is_pasted_as_ever(height: float) -> None:
    """Nothing copied, a face much smaller than the crop, a reference without detail: the drawing, enlarged."""
    face = face_at((256, 256), height=height)
    frame = textured_picture()
    chunk = planes_chunk(frame)
    crops = crops_in(chunk, face)
    reference = reference_of(chunk, face_at((256, 256), height=300))
    copied = all_copied(painted=255 if height > 100 else 0)
    drawn = drawn_as_copied(crops, reference, copied)
    bare = Reference(0, reference.pixels)
    found = []
    for one in (None, as_it_is(reference, crops, chunk.color), as_it_is(bare, crops, chunk.color)):
        fresh = planes_chunk(frame)
        paste(fresh, crops, drawn, np.ones(1, np.float32), SPEC, [] if one is None else [one])
        found.append(fresh.data.astype(int))
    assert np.abs(found[1] - found[0]).max() <= 1
    assert (found[2] == found[0]).all()


def test_what_stands_still_keeps_the_frames_own_detail_not_the_references() -> None:
    """Drawn as it was: neither twice the detail nor another frame's."""
    face = face_at((256, 256), height=280)
    frame = textured_picture()
    chunk = planes_chunk(frame)
    crops = crops_in(chunk, face)
    reference = reference_of(chunk, face)
    drawn = Drawn(crops.pixels, all_copied())
    before = chunk.data.copy()
    paste(chunk, crops, drawn, np.ones(1, np.float32), SPEC, [as_it_is(reference, crops, chunk.color)])
    assert np.abs(chunk.data.astype(int) - before).max() <= 2


def test_fine_references_are_averaged_down_to_the_frames_scale() -> None:
    face = face_at((256, 256), height=300)
    reference = reference_of(planes_chunk(textured_picture()), face)
    assert reference.detail is not None
    fine = FineReference(reference, YuvColor(0.2126, 0.0722, False))
    sides = [planes[0].shape[0] for crop_px in range(40, 900, 7) if (planes := fine.planes(crop_px)) is not None]
    assert sides == sorted(sides)
    assert sides[-1] == len(reference.detail)
    assert min(sides) < 300
    assert fine.planes(SPEC.size * LEAST_GAIN - 0.1) is None
    assert fine.planes(SPEC.size * LEAST_GAIN + 0.1) is not None
    assert fine.planes(10_000.0) is fine.planes(9_000.0)
    luma, chroma = fine.planes(9_000.0) or (np.empty(0), np.empty(0))
    assert chroma.shape == (luma.shape[0] // 2, luma.shape[1] // 2, 2)


@given(seed=st.integers(0, 1000), red=st.integers(-30, 80))
@settings(max_examples=30, deadline=None)
def test_paint_is_nowhere_greener_than_the_skin_allows(seed: int, red: int) -> None:
    random = np.random.default_rng(seed)
    taken = np.empty((SPEC.size, SPEC.size, 3), np.uint8)
    taken[...] = (120 + red, 120, 90)
    drawn = random.uniform(60, 190, (40, 50, 3)).astype(np.float32)
    painted = random.integers(0, 256, (40, 50)).astype(np.uint8)
    before = drawn.copy()
    found = without_green(drawn, painted, taken)
    assert (drawn == before).all()
    least = LEAST_RED * max(0, red)
    over_green, was = found[..., 0] - found[..., 1], drawn[..., 0] - drawn[..., 1]
    assert (over_green[painted >= 128] >= least - 1e-3).all()
    # What is red enough, and what was not painted, stays; blue and brightness stay everywhere.
    same = (was >= least) | (painted == 0)
    assert (found[same] == drawn[same]).all()
    assert (over_green >= was - 1e-3).all()
    assert (found[..., 2] == drawn[..., 2]).all()
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    assert np.abs(found @ luma - drawn @ luma).max() < 0.5


# ------------------------------------------------------------------------------------------------------------- finer than the crop


@given(height=st.floats(200, 300), roll_deg=st.floats(-30, 30), levels=st.floats(-60, 60))
@settings(max_examples=10, deadline=None)
def test_what_a_crop_cannot_hold_is_added_where_it_lies(height: float, roll_deg: float, levels: float) -> None:
    """A grey patch in the middle of the drawn box, in px half as large: it lands there, and nowhere else."""
    y0, y1, x0, x1 = SPEC.drawn
    finer = np.zeros((1, 2 * (y1 - y0), 2 * (x1 - x0), 3), np.float32)
    # Crop px 84 to 100 down and 56 to 72 across.
    finer[0, 2 * (84 - y0) : 2 * (100 - y0), 2 * (56 - x0) : 2 * (72 - x0)] = levels
    shown = []
    for more in (None, finer):
        chunk = planes_chunk(smooth_picture())
        crops = crops_in(chunk, face_at((256, 256), height=height, roll_deg=roll_deg))
        # Grey, and so unlike the frame that nothing of its own detail is kept.
        paste(chunk, crops, Drawn(np.full_like(crops.pixels, 128), None, more), np.ones(1, np.float32), SPEC)
        shown.append(chunk.picture(0).y.astype(float))
    change = shown[1] - shown[0]
    patch = np.zeros((SPEC.size, SPEC.size), np.float32)
    patch[84:100, 56:72] = 1
    near, there = (
        cv2.warpAffine(one, crops.to_frame[0], change.shape[::-1], flags=cv2.INTER_LINEAR)
        for one in (cv2.dilate(patch, np.ones((5, 5))), patch)
    )
    assert np.abs(change[near == 0]).max() <= 1
    deep = (cv2.erode(there, np.ones((7, 7))) > 0.99) & (mask_in_frame(crops, (*change.shape, 3)) > 0.99)
    assert deep.sum() > 50
    assert np.percentile(np.abs(change[deep] - levels * 219 / 255), 90) < 8


def test_finer_stripes_show_in_a_frame_that_is_fine_enough_and_not_in_a_coarse_one() -> None:
    y0, y1, x0, x1 = SPEC.drawn
    finer = np.zeros((1, 2 * (y1 - y0), 2 * (x1 - x0), 3), np.float32)
    finer[0, :, ::2], finer[0, :, 1::2] = 40, -40
    contrast = []
    for height in (60, 380):
        chunk = planes_chunk(smooth_picture())
        crops = crops_in(chunk, face_at((256, 256), height=height))
        drawn = 255 - crops.pixels  # something else than the frame, so that nothing of the frame's own is kept
        before, after = chunk, planes_chunk(smooth_picture())
        paste(before, crops, Drawn(drawn), np.ones(1, np.float32), SPEC)
        paste(after, crops, Drawn(drawn, None, finer), np.ones(1, np.float32), SPEC)
        contrast.append(float(np.abs(after.picture(0).y.astype(float) - before.picture(0).y).max()))
    assert contrast[1] > 20
    assert contrast[0] < 0.6 * contrast[1]
