"""The figures of the scorecard: what each one is blind to, what it answers to, and where it lies for a perfect dub."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import draw_video, sine, write_wav
from faces_for_tests import ScriptedDetector, chunk_of, face_at
from fakes import fake_spec
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub import media
from lipdub.errors import UnreadableMedia
from lipdub.evaluate import clips, drawings, openings, pixels, scorecard, sync
from lipdub.evaluate.frozen import FrozenMouth, with_one_reference
from lipdub.evaluate.openings import Openings, lmd
from lipdub.evaluate.pixels import GROW_PX, OutsideError, outside_mask
from lipdub.evaluate.scoring import public_crop
from lipdub.evaluate.watch import same_file, side_by_side, tracked
from lipdub.faces import crop, follow
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.media.planes import Picture
from lipdub.paste.blend import paste
from lipdub.records import CropSpec, Drawn
from lipdub.references.pages import PAGE_ROWS, Pages
from lipdub.references.store import ReferenceStore
from lipdub.reports import plain

SEEDS = st.integers(0, 2**32 - 1)


def talk(frames: int = 100, seed: int = 0, step_s: float = 0.04) -> Openings:
    random = np.random.default_rng(seed)
    smooth = np.convolve(random.normal(size=frames + 8), np.hanning(9), mode="valid")
    return Openings(np.arange(frames) * step_s, 0.1 + 0.03 * smooth)


def textured(size: int = 128, seed: int = 0) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).uniform(0, 255, (size, size)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.0), np.float32)


# ------------------------------------------------------------------------------------------------------------- openings


@given(SEEDS, st.floats(0.1, 5), st.floats(-1, 1))
def test_r_cross_asks_for_the_shape_and_articulation_for_the_size(seed, factor, offset):
    truth = talk(seed=seed)
    drawn = Openings(truth.times_s, factor * truth.opening + offset)
    assert openings.r_cross(drawn, truth) == pytest.approx(1)
    assert openings.r_cross(Openings(truth.times_s, -truth.opening), truth) == pytest.approx(-1)
    assert openings.articulation(drawn, truth) == pytest.approx(factor)
    assert openings.bias(drawn, truth) == pytest.approx(float(np.mean(drawn.opening - truth.opening)))


@pytest.mark.parametrize("late", [-5, -2, 0, 3, 5])
def test_the_best_shift_is_found_and_its_sign_says_who_comes_first(late):
    """A mouth that is `late` frames late shows what the truth showed earlier."""
    truth = talk(200)
    drawn = Openings(truth.times_s, np.roll(truth.opening, late))
    best, shift = openings.r_cross_best(drawn, truth)
    assert (best, shift) == (pytest.approx(1, abs=0.01), -late)
    assert openings.r_cross(drawn, truth) <= best + 1e-12


def test_frames_without_a_face_are_not_counted_and_too_few_are_no_correlation():
    truth = talk()
    drawn = truth.opening.copy()
    drawn[::3] = np.nan
    assert openings.r_cross(Openings(truth.times_s, drawn), truth) == pytest.approx(1)
    drawn[9:] = np.nan
    assert math.isnan(openings.r_cross(Openings(truth.times_s, drawn), truth))
    assert math.isnan(openings.r_cross(Openings(truth.times_s, np.full(100, 0.1)), truth))
    still = Openings(truth.times_s, np.full(100, 0.1))
    assert math.isnan(openings.articulation(truth, still))


def test_openings_are_matched_by_time_not_by_number():
    truth = talk(200)
    half = Openings(truth.times_s[::2], truth.opening[::2])
    assert openings.r_cross(half, truth) == pytest.approx(1)
    beyond = Openings(truth.times_s + 100, truth.opening)
    assert math.isnan(openings.r_cross(beyond, truth))
    assert openings.nearest(truth.times_s, np.array([-1.0, 0.019, 0.021, 99.0]), 0.02).tolist() == [-1, 0, 1, -1]


def test_open_share_counts_open_mouths_among_known_ones():
    drawn = Openings(np.arange(5) / 25, np.array([0.0, 0.07, np.nan, 0.2, 0.05]))
    assert openings.open_share(drawn) == pytest.approx(0.5)
    assert openings.open_share(drawn, np.array([True, True, True, False, False])) == pytest.approx(0.5)
    assert math.isnan(openings.open_share(drawn, np.array([False, False, True, False, False])))


# ----------------------------------------------------------------------------------------------------------------- lips


@given(SEEDS, st.floats(-0.2, 0.2), st.floats(-0.2, 0.2))
def test_lmd_is_in_px_of_the_128_crop_and_the_relative_one_is_blind_to_place(seed, dx, dy):
    truth = np.random.default_rng(seed).uniform(0.3, 0.8, (20, 40, 2)).astype(np.float32)
    moved = (truth + np.array([dx, dy], np.float32)).astype(np.float32)
    moved[3] = np.nan
    assert lmd(truth, truth) == 0
    assert lmd(moved, truth) == pytest.approx(128 * math.hypot(dx, dy), abs=1e-3)
    assert lmd(moved, truth, relative=True) == pytest.approx(0, abs=1e-3)


def test_lmd_of_one_point_and_of_no_frame():
    truth = np.zeros((2, 40, 2), np.float32)
    drawn = truth.copy()
    drawn[:, 0] = 1.0
    assert lmd(drawn, truth) == pytest.approx(128 * math.sqrt(2) / 40)
    assert math.isnan(lmd(np.full_like(truth, np.nan), truth))
    with pytest.raises(ValueError, match="pairs"):
        lmd(drawn[:1], truth)


# --------------------------------------------------------------------------------------------------------------- pixels


def test_psnr_is_taken_in_floats():
    """uint8 differences wrap: 0 - 255 would be 1, and the worst pair of pictures would get 48 dB."""
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert pixels.psnr(black, white) == pytest.approx(0)
    assert pixels.psnr(black, black) == pixels.PSNR_MAX
    assert pixels.psnr(black, black + np.uint8(16)) == pytest.approx(10 * math.log10(255**2 / 256))


@given(SEEDS, st.floats(1, 40))
def test_ssim_is_the_published_one(seed, noise):
    metrics = pytest.importorskip("skimage.metrics")
    one = textured(48, seed)
    other = one + np.random.default_rng(seed).normal(0, noise, one.shape).astype(np.float32)
    expected = metrics.structural_similarity(
        one.astype(float), other.astype(float), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert pixels.ssim_face(pixels.ssim_map(one, other)) == pytest.approx(expected, abs=1e-6)
    assert pixels.ssim_map(one, other) == pytest.approx(pixels.ssim_map(other, one))
    assert pixels.ssim_face(pixels.ssim_map(one, one)) == pytest.approx(1)


def test_ssim_is_that_of_its_paper():
    """Against the formula written out with SciPy's Gaussian of 11 px, border included."""
    ndimage = pytest.importorskip("scipy.ndimage")
    one = textured(64)
    other = one + np.random.default_rng(1).normal(0, 9, one.shape).astype(np.float32)
    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y, xx, yy, xy = (ndimage.gaussian_filter(each, 1.5, radius=5, mode="mirror") for each in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast_and_structure = (2 * (xy - mean_x * mean_y) + c2) / ((xx - mean_x**2) + (yy - mean_y**2) + c2)
    assert np.abs(pixels.ssim_map(one, other) - luminance * contrast_and_structure).max() < 1e-9


def test_only_the_mouth_box_counts_for_the_mouth():
    one = textured()
    other = one.copy()
    pixels.mouth_of(other)[:] = 128
    around = one.copy()
    around[:40] = 0
    assert pixels.mouth_of(one).shape == (38, 52)
    assert pixels.ssim_mouth(pixels.ssim_map(one, other)) < 0.5
    assert pixels.ssim_mouth(pixels.ssim_map(one, around)) == pytest.approx(1)
    assert pixels.sharpness(around) == pytest.approx(pixels.sharpness(one))
    assert pixels.gradient_energy(around) == pytest.approx(pixels.gradient_energy(one))


@given(SEEDS)
def test_blur_takes_sharpness_and_light_does_not(seed):
    one = textured(64, seed)
    for measure in (pixels.sharpness, pixels.gradient_energy):
        blurred = [measure(np.asarray(cv2.GaussianBlur(one, (0, 0), sigma), np.float32)) for sigma in (0.5, 1.0, 2.0)]
        assert measure(one) > blurred[0] > blurred[1] > blurred[2] > 0
        assert measure(one + 20) == pytest.approx(measure(one), rel=1e-3)
        assert measure(one * 2) == pytest.approx(4 * measure(one), rel=1e-3)


def disc(size: int = 128, radius: float = 30) -> NDArray[np.float32]:
    y, x = np.mgrid[:size, :size] - size / 2
    return np.clip((radius - np.hypot(x, y)) / 4 + 0.5, 0, 1).astype(np.float32)


def test_a_step_at_the_masks_border_is_a_seam_and_one_elsewhere_is_none():
    mask = disc()
    source = textured()

    def seam(picture: NDArray[np.float32]) -> float:
        across, beside = pixels.seam_steps(picture, mask)
        own_across, own_beside = pixels.seam_steps(source, mask)
        return (across / beside) / (own_across / own_beside)

    assert seam(source) == pytest.approx(1)
    assert seam(source + 10) == pytest.approx(1, abs=1e-3)
    steps = [seam(source + level * mask) for level in (10, 30, 60)]
    assert 1 < steps[0] < steps[1] < steps[2]
    assert steps[2] > 1.8
    deep = source + 60 * disc(radius=12)
    assert seam(deep) == pytest.approx(1, abs=0.05)
    assert pixels.seam_steps(source, np.zeros_like(mask)) == (0.0, 0.0)


@given(SEEDS)
def test_steady_changes_do_not_flicker(seed):
    one, change = textured(32, seed), textured(32, seed + 1)
    assert pixels.flicker(one, one + change, one + 2 * change) == pytest.approx(0, abs=1e-3)
    assert pixels.flicker(one, one + change, one) == pytest.approx(2 * float(np.abs(change).mean()), rel=1e-4)


def open_mouth(teeth: tuple[int, int, int], light: float, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A crop of skin with an open mouth full of teeth, in a light, and its lips."""
    angle = np.arange(20) / 20 * 2 * np.pi + np.pi
    ring = np.stack([0.5 + 0.1 * np.cos(angle), 0.7 + 0.05 * np.sin(angle)], axis=1)
    picture = np.full((128, 128, 3), (180, 130, 110), np.float32)
    cv2.fillPoly(picture, [np.round(128 * ring).astype(np.int32)], teeth)
    noise = np.random.default_rng(seed).normal(0, 3, picture.shape)
    return np.clip(light * (picture + noise), 0, 255).astype(np.uint8), np.concatenate([ring, ring]).astype(np.float32)


@given(SEEDS, st.floats(0.5, 1.2))
def test_green_and_grey_teeth_are_off_colour_and_another_light_is_not(seed, light):
    own = np.concatenate([pixels.mouth_tints(*open_mouth((190, 170, 150), 1.0, one)) for one in range(20)])

    def off(teeth: tuple[int, int, int], light: float = 1.0) -> float:
        return pixels.off_colour(pixels.mouth_tints(*open_mouth(teeth, light, seed)), own)

    assert off((190, 170, 150), light) < 0.1
    assert off((170, 190, 150)) > 0.9
    assert off((150, 170, 165)) > 0.9
    assert math.isnan(pixels.off_colour(own, own[:10]))
    assert math.isnan(pixels.off_colour(own[:0], own))
    assert len(pixels.mouth_tints(open_mouth((10, 8, 8), 1.0, seed)[0], open_mouth((0, 0, 0), 1.0, 0)[1])) == 0


# -------------------------------------------------------------------------------------------------------------- outside


STORES: list[ReferenceStore] = []


@pytest.fixture(autouse=True)
def _stores_are_closed() -> Iterator[None]:
    yield
    while STORES:
        STORES.pop().close()


def steady_track(frames: int = 4, *, references: int = 1, size: int = 32) -> FaceTrack:
    """A face that keeps still in the middle of 160 x 160 px."""
    face = face_at((80, 80), height=90)
    similarity = crop.fit_similarity(face.landmarks)
    store = ReferenceStore(size)
    STORES.append(store)
    for level in range(references):
        store.add(np.full((size, size, 3), 10 * level, np.uint8))
    from lipdub.faces.landmarks import LIPS

    def repeated(points: NDArray[np.float32]) -> NDArray[np.float16]:
        return np.repeat(crop.to_unit(points, similarity)[None], frames, axis=0).astype(np.float16)

    return FaceTrack(
        pts=np.arange(frames),
        time_base=Fraction(1, 25),
        status=np.full(frames, DUBBED, np.uint8),
        shot=np.zeros(frames, np.int32),
        similarity=np.repeat(similarity[None], frames, axis=0),
        outline=repeated(face.landmarks[crop.OUTLINE, :2]),
        lips=repeated(face.landmarks[LIPS, :2]),
        opening=np.full(frames, 0.1, np.float32),
        pose=np.zeros((frames, 2), np.float32),
        strength=np.ones(frames, np.float32),
        person=np.zeros(frames, np.int32),
        reference=np.arange(frames, dtype=np.int32) % references,
        pages=Pages(**{name: np.zeros((references, *tail), dtype) for name, (dtype, tail) in PAGE_ROWS.items()}),
        references=store,
    )


def test_changes_by_the_paste_alone_leave_the_outside_alone():
    track, spec = steady_track(), CropSpec(32, (16, 32, 4, 28), 16)
    frame = np.random.default_rng(0).integers(0, 256, (160, 160, 3)).astype(np.uint8)
    where = outside_mask(track, 0, spec, (160, 160))
    chunk = chunk_of(frame)
    crops = crop.take(chunk, np.array([0]), track.similarity[:1], track.outline[:1].astype(np.float32), 32)
    frame = chunk.picture(0).rgb(0, 0, 160, 160)
    paste(chunk, crops, Drawn(255 - crops.pixels), np.ones(1, np.float32), spec)
    pasted = chunk.picture(0).rgb(0, 0, 160, 160)
    assert (pasted != frame).any()
    error = OutsideError()
    error.add(frame, pasted, where)
    assert error.rgb_db() == pixels.PSNR_MAX
    error.add(frame, 255 - frame, where)
    assert error.rgb_db() < 15
    # It is grown, but not to the whole picture.
    assert 0.5 < where.mean() < 0.98
    changed = cv2.dilate((pasted != frame).any(axis=2).astype(np.uint8), np.ones((2 * GROW_PX - 1,) * 2, np.uint8))
    assert not (where & (changed > 0)).any()
    assert math.isnan(OutsideError().rgb_db())


# ----------------------------------------------------------------------------------------------------------------- sync


@pytest.mark.parametrize("late", [-15, -7, 0, 1, 15])
def test_the_offset_is_how_late_the_lips_are(late):
    random = np.random.default_rng(0)
    sound = random.normal(size=(120, 32)).astype(np.float32)
    lips = np.roll(sound, late, axis=0) + 0.3 * random.normal(size=sound.shape).astype(np.float32)
    found = sync.sync_of(lips, sound)
    assert found.offset == late
    assert found.confidence > 0.7
    assert (found.cosine > 0.8) == (late == 0)
    curve = sync.shift_curve(lips, sound)
    assert len(curve) == 31
    assert np.nanmax(np.abs(curve)) <= 1


def test_lips_that_nobody_saw_do_not_count_and_too_few_give_nothing():
    random = np.random.default_rng(0)
    sound = random.normal(size=(120, 32)).astype(np.float32)
    lips, valid = sound.copy(), np.ones(120, bool)
    lips[40:], valid[40:] = -sound[40:], False
    assert sync.sync_of(lips, sound, valid).cosine == pytest.approx(1)
    assert sync.sync_of(lips, sound).cosine < 0
    nothing = sync.sync_of(lips[:9], sound[:9])
    assert all(math.isnan(value) for value in (nothing.offset, nothing.confidence, nothing.cosine))
    # Of a short one some shifts overlap too little: the others count.
    short = sync.sync_of(sound[:14], sound[:14])
    assert short.offset == 0
    with pytest.raises(ValueError, match="alike"):
        sync.shift_curve(lips, sound[:5])


def numbered(number: int) -> NDArray[np.uint8]:
    return np.full((4, 4, 3), number, np.uint8)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([k / 25 for k in range(5)], [0, 1, 2, 3, 4]),
        ([k / 50 for k in range(6)], [0, 2, 4]),
        ([k / 12.5 for k in range(3)], [0, 1, 1, 2, 2]),
        ([0.0, 0.01, 0.2], [0, 1, 1, 2, 2, 2]),
    ],
)
def test_every_slot_of_the_grid_gets_a_frame_that_lies_near(times, expected):
    with sync.GridCrops(4) as grid:
        for number, time_s in enumerate(times):
            grid.add(time_s, numbered(number))
        grid.finish()
        found = grid.read(0, len(grid))[:, 0, 0, 0].tolist()
        assert np.abs(np.array([times[k] for k in found]) - grid.times_s).max() <= 0.101
        assert abs(len(found) - len(expected)) <= 1
        assert set(found) <= set(range(len(times)))
        assert found[:3] == expected[:3]


def test_a_frame_without_a_face_repeats_the_last_one_and_is_marked():
    with sync.GridCrops(4) as grid:
        for number in range(6):
            grid.add(number / 25, None if number == 3 else numbered(number))
        grid.finish()
        assert grid.read(0, 6)[:, 0, 0, 0].tolist() == [0, 1, 2, 2, 4, 5]
        assert grid.valid == [True, True, True, False, True, True]
        assert grid.near_valid(1, 1).tolist() == [True, True, False, False, False, True]
        assert grid.near_valid(0, 2).tolist() == [True, False, False, False, True, True]


@given(st.integers(1, 150), st.integers(0, 3))
def test_pieces_are_embedded_as_if_they_were_one(frames, context):
    def centred(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = np.pad(crops[:, 0, 0, 0].astype(np.float32), context, mode="edge")
        return np.lib.stride_tricks.sliding_window_view(values, 2 * context + 1).copy()

    def forward(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.lib.stride_tricks.sliding_window_view(crops[:, 0, 0, 0].astype(np.float32), context + 1).copy()

    with sync.GridCrops(4) as grid:
        for number in range(frames):
            grid.add(number / 25, numbered(number))
        grid.finish()
        whole = grid.read(0, frames)
        assert np.array_equal(sync.embed_centred(grid, centred, context=context), centred(whole))
        if frames > context:
            assert np.array_equal(sync.embed_forward(grid, forward, frames=context + 1), forward(whole))


def test_the_public_crop_stands_upright_around_the_face():
    for roll in (0, 20):
        face = face_at((80, 80), height=90, roll_deg=roll)
        aligned = crop.fit_similarity(face.landmarks)
        upright = public_crop(aligned)
        assert upright[1] == 0
        inside = crop.to_unit(face.landmarks[:, :2], upright)
        # All of the face, with room at the sides and below the chin, as the published pipeline crops it.
        assert inside.min() > 0
        assert inside.max() < 0.9
        assert inside[152, 1] == pytest.approx(0.7, abs=0.03)
        assert inside[:, 0].mean() == pytest.approx(0.5, abs=0.05)
        side = 1 / upright[0]
        assert side == pytest.approx(1.05 / math.hypot(aligned[0], aligned[1]))


# ----------------------------------------------------------------------------------------------------- numbers in tables


def test_worst_is_the_wrong_way_for_every_kind_of_figure():
    values = [0.2, 1.3, -0.9, 0.8]
    assert scorecard.worst("higher", values) == -0.9
    assert scorecard.worst("lower", values) == 1.3
    assert scorecard.worst("zero", values) == 1.3
    assert scorecard.worst("one", values) == -0.9


def test_statistics_leave_out_what_is_not_known():
    found = scorecard.statistics("zero", [1.0, math.nan, -3.0])
    assert (found["mean"], found["mean_abs"], found["median"], found["worst"], found["clips"]) == (-1, 2, -1, -3, 2)
    assert all(math.isnan(scorecard.statistics("one", [math.nan])[name]) for name in scorecard.STATISTICS)


def clip_rows(**rows: dict[str, float]) -> dict[str, dict[str, float]]:
    return {row: {figure.name: values.get(figure.name, math.nan) for figure in scorecard.FIGURES} for row, values in rows.items()}


def test_targets_are_met_missed_or_left_out():
    clips_rows = [
        clip_rows(cross={"r_cross": 0.9, "articulation": 1.2, "lmd": 1.0, "r_leak": -0.3}, frozen={"lmd": 2.0}),
        clip_rows(cross={"r_cross": 0.2, "articulation": 1.0, "lmd": 1.6, "r_leak": 0.1}, frozen={"lmd": 2.0}),
    ]
    found = {
        (v.target.row, v.target.figure, v.target.statistic): (v.value, v.met) for v in scorecard.verdicts(scorecard.summarise(clips_rows))
    }
    assert found["cross", "r_cross", "mean"] == (pytest.approx(0.55), True)
    assert found["cross", "r_cross", "worst"] == (0.2, False)
    assert found["cross", "r_leak", "mean_abs"] == (pytest.approx(0.2), False)
    assert found["cross", "articulation", "mean"] == (pytest.approx(1.1), True)
    assert found["cross", "lmd", "mean"] == (pytest.approx(0.65), True)
    assert found["own", "lmd", "mean"] == (None, None)
    assert found["cross", "sharpness", "mean"] == (None, None)
    alone = {v.target.figure: v.met for v in scorecard.dub_verdicts(clips_rows[1]["cross"])}
    assert alone["r_cross"] is False
    assert alone["r_leak"] is True
    assert alone["sync_offset"] is None


def test_a_clip_that_lacks_a_row_does_not_cost_the_others_theirs():
    summary = scorecard.summarise([clip_rows(cross={"r_cross": 0.5}), clip_rows(cross={"r_cross": 0.7}, wrong_audio={"r_cross": 0.1})])
    assert summary["cross"]["r_cross"]["clips"] == 2
    assert summary["wrong_audio"]["r_cross"]["mean"] == 0.1
    assert scorecard.summarise([]) == {}


def test_numbers_for_json_and_for_people():
    import json

    value = plain({"a": math.nan, "b": [1.23456789, float("inf")], "c": {"d": True, "e": None}})
    assert json.dumps(value, allow_nan=False) == '{"a": null, "b": [1.23457, null], "c": {"d": true, "e": null}}'
    assert [scorecard.shown(number) for number in (None, math.nan, 0.0, -0.0001, 0.12345, -12.345, 100.0)] == [
        "-", "-", "0", "0.000", "0.123", "-12.35", "100.00",
    ]  # fmt: skip
    assert scorecard.shown(44.4444, scorecard.BY_NAME["psnr_face"]) == "44.4"


def test_curves_break_where_nothing_is_known_and_stay_inside():
    pieces = drawings.curve([0, 1, 2, 3, 4], [0.0, 0.5, None, 9.0, 1.0], seconds=4, top=1.0)
    assert pieces == ["0.0,160.0 225.0,80.0", "675.0,0.0 900.0,0.0"]
    assert drawings.curve([], [], seconds=0, top=0) == []
    long = drawings.curve(list(np.arange(50_000) / 25), [0.1] * 50_000, seconds=2000, top=1)
    assert long[0].count(" ") < 1300
    assert [tick.label for tick in drawings.ticks(10, 100)] == [str(k) for k in range(11)]
    assert [tick.label for tick in drawings.ticks(0.31, 100, most=4)] == ["0", "0.1", "0.2", "0.3"]
    assert len(drawings.ticks(0, 100)) == 1


def test_the_heat_map_shows_slots_below_each_other_and_time_to_the_right():
    address = np.zeros((200, 8), np.float32)
    address[:100, 1], address[100:, 6] = 1.0, 1.0
    picture = drawings.heat_map(address)
    assert picture.shape == (8 * drawings.SLOT_PX, 800, 3)
    light = picture.astype(int).sum(axis=2)
    assert light[4, 100] > 2 * light[4, 700]
    assert light[19, 700] > 2 * light[19, 100]
    for suffix in (".jpg", ".png"):
        decoded = cv2.imdecode(np.frombuffer(media.encode_picture(picture, suffix), np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(decoded[:, :, ::-1].astype(int) - picture).mean() < 12


# ----------------------------------------------------------------------------------------------------- clips, other mouths


def test_clips_come_from_the_manifest_and_else_from_the_folder(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    draw_video(folder / "long.mp4", frames=30)
    draw_video(folder / "short.mp4", frames=5)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no clip")
    found, left_out = clips.list_clips(folder, seconds_min=1.0)
    assert [clip.path.name for clip in found] == ["long.mp4"]
    assert list(left_out) == ["broken.mp4"]
    rows = [
        "file,use,speaker,seconds",
        "val/short.mp4,measure,ann,9",
        "val/long.mp4,other,bob,9",
        "val/late.mp4,measure,cat,2",
        "x/y.mp4,measure,d,9",
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    assert clips.list_clips(folder, seconds_min=8.0) == ([clips.ListedClip(folder / "short.mp4", "ann")], {})
    assert [clip.path.name for clip in clips.list_clips(folder, seconds_min=1.0)[0]] == ["short.mp4", "late.mp4"]
    (tmp_path / "manifest.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnreadableMedia, match=r"manifest\.csv"):
        clips.list_clips(folder, seconds_min=1.0)


def test_sound_is_cut_where_it_was_asked_for_and_filled_with_silence(tmp_path):
    samples = sine(1.0)
    write_wav(tmp_path / "tone.wav", samples)
    clips.cut_sound(tmp_path / "tone.wav", tmp_path / "cut.wav", 0.8, start_s=0.5)
    found = np.concatenate(list(media.read_audio(tmp_path / "cut.wav", 16000)))
    assert len(found) == 12800
    assert np.abs(found[:8000] - samples[8000:]).max() < 1e-3
    assert np.abs(found[8000:]).max() == 0


def test_pictures_are_cut_as_they_are_and_start_at_zero(tmp_path):
    drawn = draw_video(tmp_path / "v.mp4", frames=20, options={"crf": "0"})
    clips.cut_pictures(tmp_path / "v.mp4", tmp_path / "cut.mp4", 5, 12)
    (chunk,) = media.read_frames(tmp_path / "cut.mp4")
    assert (len(chunk), int(chunk.pts[0])) == (7, 0)
    (whole, *_rest) = media.read_frames(tmp_path / "v.mp4")
    # But for the way to yuv420p and back, at the edges of colours.
    apart = [np.abs(chunk.pixels.astype(int) - whole.pixels[first : first + 7].astype(int)) for first in (5, 6)]
    assert np.median(apart[0]) <= 1
    assert apart[0].mean() < apart[1].mean() / 3
    assert len(drawn) == 20
    assert float(media.probe(tmp_path / "cut.mp4").duration_s) == pytest.approx(7 / 25)


def test_a_frozen_mouth_is_the_references_box_and_hears_nothing():
    spec = fake_spec()
    mouth = FrozenMouth(spec)
    random = np.random.default_rng(0)
    targets, references = (random.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8) for _ in range(2))
    before = targets.copy()
    lip_features = random.normal(size=(3, spec.lip_channels)).astype(np.float32)
    found = mouth.draw(targets, references, lip_features)
    drawn, copied = found.pixels, found.copied
    assert copied is not None
    assert (copied.paint_mask == 0).all()
    assert (copied.flow == 0).all()
    y0, y1, x0, x1 = spec.crop.drawn
    assert np.array_equal(drawn[:, y0:y1, x0:x1], references[:, y0:y1, x0:x1])
    assert np.array_equal(mouth.draw(targets, references, -lip_features).pixels, drawn)
    drawn[:, y0:y1, x0:x1] = targets[:, y0:y1, x0:x1]
    assert np.array_equal(drawn, before)
    assert np.array_equal(targets, before)
    assert len(mouth.draw(targets[:0], references[:0], lip_features[:0])) == 0


def test_one_reference_for_all_frames():
    track = steady_track(5, references=3)
    assert track.reference.tolist() == [0, 1, 2, 0, 1]
    assert with_one_reference(track).reference.tolist() == [0] * 5
    track.reference[:] = -1
    assert with_one_reference(track).reference.tolist() == [-1] * 5


def test_a_copy_is_the_same_file(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "c")
    pairs = (("a", "b"), ("c", "link"), ("a", "c"), ("a", "gone"))
    assert [same_file(tmp_path / one, tmp_path / other) for one, other in pairs] == [True, True, False, False]


class Nobody:
    """A detector that sees the given faces in every frame."""

    def __init__(self, *faces: object) -> None:
        self.faces = list(faces)
        self.closed = False

    def detect(self, picture: Picture) -> list[object]:
        return self.faces

    def reset(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_the_face_that_lies_where_the_sources_is_gets_looked_at(tmp_path):
    """A larger stranger beside the dubbed person does not speak for them."""
    draw_video(tmp_path / "v.mp4", size=(160, 160), frames=4)
    mine, stranger = face_at((80, 80), height=90, opening=0.2), face_at((20, 90), height=120, opening=0.01)
    seen = list(side_by_side(tmp_path / "v.mp4", tmp_path / "v.mp4", steady_track(), detectors=lambda: Nobody(stranger, mine)))
    assert [pair.row for pair in seen] == [0, 1, 2, 3]
    assert [round(pair.opening, 3) for pair in seen] == [0.2] * 4
    assert all(np.array_equal(pair.dub.pixels, pair.source.pixels) for pair in seen)
    only_a_stranger = list(side_by_side(tmp_path / "v.mp4", tmp_path / "v.mp4", steady_track(), detectors=lambda: Nobody(stranger)))
    assert all(math.isnan(pair.opening) and np.isnan(pair.lips).all() for pair in only_a_stranger)


def test_a_dub_that_is_longer_than_its_source_has_frames_without_one(tmp_path):
    draw_video(tmp_path / "v.mp4", size=(160, 160), frames=4)
    draw_video(tmp_path / "long.mp4", size=(160, 160), frames=7)
    detector = Nobody(face_at((80, 80), height=90))
    seen = list(side_by_side(tmp_path / "long.mp4", tmp_path / "v.mp4", steady_track(), detectors=lambda: detector))
    assert [pair.row for pair in seen] == [0, 1, 2, 3, -1, -1, -1]
    assert [pair.source is None for pair in seen] == [False] * 4 + [True] * 3
    assert detector.closed


def test_an_analysis_is_kept_until_the_file_changes(tmp_path):
    made: list[ScriptedDetector] = []

    def detectors() -> ScriptedDetector:
        made.append(ScriptedDetector([[face_at((48, 32), height=50)]] * 5))
        return made[-1]

    def analysed() -> list[int]:
        """Frames that were looked at, each time that they were."""
        return [detector.seen for detector in made if detector.seen]

    video, cache = tmp_path / "v.mp4", tmp_path / "cache"
    draw_video(video, frames=4)

    def again() -> FaceTrack:
        track = tracked(video, size=32, cache=cache, detectors=detectors)
        STORES.append(track.references)
        return track

    first, second = again(), again()
    assert analysed() == [4]
    assert all(detector.closed for detector in made)
    assert np.array_equal(first.similarity, second.similarity)
    (kept,) = cache.glob("*.npz")
    kept.write_bytes(b"cut off")
    assert len(again()) == 4
    draw_video(video, frames=5)
    again()
    assert analysed() == [4, 4, 5]
    with pytest.raises(UnreadableMedia, match="check the path"):
        tracked(Path(tmp_path / "gone.mp4"), size=32, cache=cache)


@pytest.mark.parametrize(("threads", "watching"), [(None, 4), (1, 1), (2, 1), (6, 3)])
def test_a_worker_looks_through_no_more_detectors_than_its_cores_carry(tmp_path, monkeypatch, threads, watching):
    monkeypatch.setattr(follow, "cores", lambda: 8)
    made: list[ScriptedDetector] = []

    def detectors() -> ScriptedDetector:
        made.append(ScriptedDetector([[face_at((48, 32), height=50)]] * 4))
        return made[-1]

    draw_video(tmp_path / "v.mp4", frames=4)
    STORES.append(tracked(tmp_path / "v.mp4", size=32, detectors=detectors, threads=threads).references)
    assert len(made) == watching
