"""faces.analysis: one person's face over time, from a detector that plays a script: gaps, cuts, who is dubbed, smoothing, references."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from faces_for_tests import VIDEO, ScriptedDetector, chunks_of, face_at, portrait_face, portrait_frames, scaled
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub import media
from lipdub.faces import analysis, crop, smoothing
from lipdub.faces.analysis import analyse, analyse_each
from lipdub.faces.detector import MediapipeDetector
from lipdub.faces.follow import held_still
from lipdub.faces.landmarks import LIPS, opening_of, pose_of
from lipdub.faces.smoothing import smooth
from lipdub.faces.track import DUBBED, NO_FACE, TOO_SMALL, TURNED_AWAY, WHY, FaceTrack
from lipdub.faces.track_file import read_track, write_track
from lipdub.media.planes import Picture
from lipdub.options import FaceLimits
from lipdub.records import Face
from lipdub.references.store import DETAIL_PX, LEAST_GAIN, ReferenceStore, detail_px

SIZE = (320, 240)
FACE = face_at((160, 120), height=90)
Script = Sequence[Sequence[Face]]
sigmas = st.just(0.0) | st.floats(0.05, 8.0)


def grey(index: int = 0) -> NDArray[np.uint8]:
    return np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)


def stripes(index: int, *, upright: bool) -> NDArray[np.uint8]:
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    wave = 128 + 100 * np.sin((x if upright else y) / 25)
    return np.repeat(wave.astype(np.uint8)[..., None], 3, axis=2)


@contextmanager
def tracked(script: Script, **arguments: object) -> Iterator[FaceTrack]:
    """The track of a script, one list of faces per frame; its temporary file is closed at the end."""
    draw = arguments.pop("draw", grey)
    size = arguments.pop("size", 32)
    detector = arguments.pop("detector", None) or ScriptedDetector(script)
    track = analyse(chunks_of(len(script), draw, **arguments), detector, size=size)  # type: ignore[arg-type]
    try:
        yield track
    finally:
        track.references.close()


def centres(track: FaceTrack) -> NDArray[np.float64]:
    """Where the middle of the crop lies in each frame, px."""
    return crop.unit_to_frame(track.similarity) @ np.array([0.5, 0.5, 1.0])


def middle_of(face: Face) -> NDArray[np.float64]:
    return crop.unit_to_frame(crop.fit_similarity(face.landmarks))[0] @ np.array([0.5, 0.5, 1.0])


# -------------------------------------------------------------------------------------------------------------- gaps


@given(gap=st.integers(1, 25), before=st.integers(1, 20), after=st.integers(1, 20), fps=st.sampled_from([25, 30]))
@settings(max_examples=25, deadline=None)
def test_short_gaps_are_bridged_and_longer_ones_passed_through(gap: int, before: int, after: int, fps: int) -> None:
    script = [[FACE]] * before + [[]] * gap + [[FACE]] * after
    with tracked(script, time_base=Fraction(1, fps)) as track:
        hole = track.status[before : before + gap]
        if gap / fps <= 0.4:
            assert (track.status == DUBBED).all()
            assert (track.strength == 1).all()
            assert track.spans() == ()
        else:
            assert (hole == NO_FACE).all()
            assert (track.strength[before : before + gap] == 0).all()
            assert (track.reference[before : before + gap] == -1).all()
            (span,) = track.spans()
            assert (span.first, span.end, span.why) == (before, before + gap, WHY[NO_FACE])
            assert span.start_s == pytest.approx(before / fps)
        assert (track.status[:before] == DUBBED).all()
        assert (track.status[before + gap :] == DUBBED).all()


def test_a_bridged_face_moves_evenly_from_one_side_of_the_gap_to_the_other() -> None:
    faces = [face_at((100 + 3 * k, 120), height=90) for k in range(40)]
    script = [[] if 15 <= k < 23 else [face] for k, face in enumerate(faces)]
    with tracked(script) as track:
        np.testing.assert_allclose(centres(track), [middle_of(face) for face in faces], atol=0.2)


def test_missing_faces_at_both_ends_are_not_made_up() -> None:
    with tracked([[]] * 3 + [[FACE]] * 20 + [[]] * 4) as track:
        assert track.status.tolist() == [NO_FACE] * 3 + [DUBBED] * 20 + [NO_FACE] * 4
        assert [(span.first, span.end) for span in track.spans()] == [(0, 3), (23, 27)]


def test_nobody_at_all_is_no_error_here() -> None:
    with tracked([[]] * 5) as track:
        assert (track.status == NO_FACE).all()
        assert len(track.spans()) == 1
    with tracked([[FACE]]) as track:
        assert track.status.tolist() == [DUBBED]
        assert track.strength.tolist() == [1.0]


# -------------------------------------------------------------------------------------------------------------- cuts


def test_a_cut_ends_a_shot_and_smoothing_does_not_cross_it() -> None:
    left, right = face_at((90, 120), height=90), face_at((230, 100), height=110, roll_deg=8)
    detector = ScriptedDetector([[left]] * 20 + [[right]] * 20)
    with tracked([[left]] * 20 + [[right]] * 20, draw=lambda k: stripes(k, upright=k < 20), detector=detector) as track:
        assert track.shot.tolist() == [0] * 20 + [1] * 20
        assert detector.reset_before == [20]
        np.testing.assert_allclose(track.similarity[:20], np.tile(crop.fit_similarity(left.landmarks), (20, 1)), atol=1e-6)
        np.testing.assert_allclose(track.similarity[20:], np.tile(crop.fit_similarity(right.landmarks), (20, 1)), atol=1e-6)
        assert (track.strength == 1).all()
        assert len(set(track.reference[:20])) == len(set(track.reference[20:])) == 1
        assert track.reference[0] != track.reference[20]


def test_gaps_are_not_bridged_across_a_cut() -> None:
    script = [[FACE]] * 20 + [[]] * 4 + [[FACE]] * 20
    with tracked(script, draw=lambda k: stripes(k, upright=k < 22)) as track:
        assert track.status[20:24].tolist() == [NO_FACE] * 4


@pytest.mark.parametrize("what", ["still", "flash", "fade", "pan", "noise"])
def test_what_is_no_cut(what: str) -> None:
    rng = np.random.default_rng(0)

    def draw(index: int) -> NDArray[np.uint8]:
        pixels = stripes(index, upright=True).astype(np.float64)
        if what == "flash" and index == 10:
            pixels = 0.5 * pixels + 127
        if what == "fade":
            pixels *= 1 - index / 24
        if what == "pan":
            pixels = np.roll(pixels, 2 * index, axis=1)
        if what == "noise":
            pixels += rng.normal(0, 12, pixels.shape)
        return pixels.clip(0, 255).astype(np.uint8)

    with tracked([[FACE]] * 24, draw=draw) as track:
        assert (track.shot == 0).all()


# --------------------------------------------------------------------------------------------------- who and whether


def test_a_face_that_is_too_small_is_passed_through_and_says_so() -> None:
    small = face_at((160, 120), height=30)
    with tracked([[FACE]] * 20 + [[face_at((160, 120), height=90 - 4 * k)] for k in range(15)] + [[small]] * 20) as track:
        assert (track.status[:20] == DUBBED).all()
        assert (track.status[-20:] == TOO_SMALL).all()
        assert track.spans()[-1].why == WHY[TOO_SMALL]
    with tracked([[small]] * 10) as track:
        assert (track.status == TOO_SMALL).all()


def test_a_face_that_is_turned_away_is_passed_through_and_says_so() -> None:
    yaws = [*np.linspace(0, 70, 30), *[70] * 10]
    with tracked([[face_at((160, 120), height=90, yaw_deg=float(yaw))] for yaw in yaws]) as track:
        for yaw, status, measured in zip(yaws, track.status, track.pose[:, 0], strict=True):
            assert abs(abs(float(measured)) - yaw) < 4
            if abs(yaw - FaceLimits().max_yaw_deg) > 3:
                assert status == (TURNED_AWAY if yaw > FaceLimits().max_yaw_deg else DUBBED)


@pytest.mark.parametrize(
    ("limits", "dubbed"),
    [
        (FaceLimits(), {"near": True, "far": False, "aside": False}),
        (FaceLimits(min_height_px=30), {"near": True, "far": True, "aside": False}),
        (FaceLimits(min_height_px=200), {"near": False, "far": False, "aside": False}),
        (FaceLimits(max_yaw_deg=70), {"near": True, "far": False, "aside": True}),
        (FaceLimits(max_yaw_deg=0), {"near": False, "far": False, "aside": False}),
    ],
)
def test_how_small_and_how_far_turned_a_face_may_be_can_be_set(limits: FaceLimits, dubbed: dict[str, bool]) -> None:
    faces = {
        "near": face_at((160, 120), height=90, yaw_deg=5), "far": face_at((160, 120), height=36, yaw_deg=5),
        "aside": face_at((160, 120), height=90, yaw_deg=60),
    }  # fmt: skip
    for name, face in faces.items():
        chunks = chunks_of(12, lambda frame: np.full((240, 320, 3), 90, np.uint8))
        (track,) = analyse_each(chunks, ScriptedDetector([[face]] * 12), [None], size=16, limits=limits)
        track.references.close()
        assert (track.status == DUBBED).all() == dubbed[name]
        assert (track.status == DUBBED).any() == dubbed[name]


@pytest.mark.parametrize("order", [1, -1])
def test_the_more_prominent_of_two_people_is_chosen_and_followed(order: int) -> None:
    def at(index: int) -> list[Face]:
        large, small = face_at((80 + index, 120), height=100), face_at((260 - index, 120), height=60)
        # Detectors promise no order, and lose somebody now and then.
        return [large, small][:: order if index % 3 else -order] if index != 11 else [small]

    with tracked([at(index) for index in range(40)]) as track:
        assert (track.status == DUBBED).all()
        expected = np.array([middle_of(face_at((80 + index, 120), height=100)) for index in range(40)])
        np.testing.assert_allclose(centres(track), expected, atol=0.5)
        assert len(set(track.reference)) == 1


def test_somebody_who_is_there_for_long_wins_over_a_larger_face_that_passes_by() -> None:
    passing = face_at((260, 120), height=110)
    with tracked([[FACE, passing] if 10 <= k < 16 else [FACE] for k in range(50)]) as track:
        np.testing.assert_allclose(centres(track), np.tile(middle_of(FACE), (50, 1)), atol=0.1)


def test_another_person_is_not_taken_for_the_one_who_left() -> None:
    other = face_at((280, 120), height=55)
    with tracked([[FACE]] * 30 + [[other]] * 15) as track:
        assert (track.status[:30] == DUBBED).all()
        assert (track.status[30:] == NO_FACE).all()


def test_a_person_who_comes_back_elsewhere_in_the_shot_is_the_same_one() -> None:
    back = face_at((250, 120), height=80)
    with tracked([[FACE]] * 30 + [[]] * 20 + [[back]] * 20) as track:
        assert (track.status[:30] == DUBBED).all()
        assert (track.status[30:50] == NO_FACE).all()
        assert (track.status[50:] == DUBBED).all()


# --------------------------------------------------------------------------------------------------------- smoothing


@given(sigma=sigmas, slope=st.floats(-5, 5), start=st.floats(-100, 100), count=st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_a_steady_motion_stays_as_it_is_to_its_ends(sigma: float, slope: float, start: float, count: int) -> None:
    values = start + slope * np.arange(count, dtype=np.float64)[:, None]
    np.testing.assert_allclose(smooth(values, sigma, odd=True), values, atol=1e-6)


@given(seed=st.integers(0, 20), sigma=sigmas, odd=st.booleans(), count=st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_smoothing_has_no_direction(seed: int, sigma: float, odd: bool, count: int) -> None:
    values = np.random.default_rng(seed).normal(size=(count, 3))
    np.testing.assert_allclose(smooth(values[::-1], sigma, odd=odd)[::-1], smooth(values, sigma, odd=odd), atol=1e-9)
    assert smooth(values, sigma, odd=odd).shape == values.shape


@given(sigma=st.floats(0.5, 6.0), at=st.integers(20, 40))
@settings(max_examples=20, deadline=None)
def test_smoothing_moves_nothing_in_time(sigma: float, at: int) -> None:
    values = np.zeros((61, 1))
    values[at] = 1
    smoothed = smooth(values, sigma, odd=False)[:, 0]
    assert int(np.argmax(smoothed)) == at
    assert (smoothed * np.arange(61)).sum() / smoothed.sum() == pytest.approx(at, abs=0.05)


def test_a_moving_face_is_followed_without_lag_and_with_less_jitter() -> None:
    rng = np.random.default_rng(4)
    count = 80
    path = np.stack([160 + 60 * np.sin(np.arange(count) / 12), 120 + 0.3 * np.arange(count)], axis=1)
    clean = [face_at((x, y), height=90) for x, y in path]
    script = [[Face(face.landmarks + np.array([*rng.normal(0, 1.0, 2), 0], np.float32))] for face in clean]
    wanted = np.array([middle_of(face) for face in clean])
    with tracked(script) as track:
        found = centres(track)
    raw = np.array([middle_of(faces[0]) for faces in script])

    def jitter(values: NDArray[np.float64]) -> float:
        return float(np.diff(values - wanted, axis=0).std())

    assert jitter(found) < 0.5 * jitter(raw)
    assert np.abs(found - wanted).mean() < np.abs(raw - wanted).mean()
    errors = [np.abs(found[5 + lag : count - 5 + lag] - wanted[5 : count - 5]).mean() for lag in (-2, -1, 0, 1, 2)]
    assert int(np.argmin(errors)) == 2


def test_turning_past_half_a_turn_is_no_jump() -> None:
    faces = [face_at((160, 120), height=90, roll_deg=160 + 2 * k) for k in range(30)]
    with tracked([[face] for face in faces]) as track:
        wanted = np.array([crop.fit_similarity(face.landmarks) for face in faces])
        np.testing.assert_allclose(track.similarity, wanted, atol=0.02)


def test_lips_and_outline_stay_where_they_are_in_the_picture() -> None:
    rng = np.random.default_rng(5)
    faces = [face_at((160 + float(rng.normal()), 120), height=90, opening=0.05 * (k % 4)) for k in range(40)]
    with tracked([[face] for face in faces]) as track:
        matrices = crop.unit_to_frame(track.similarity)
        for k, face in enumerate(faces):
            lips = track.lips[k].astype(np.float64) @ matrices[k, :, :2].T + matrices[k, :, 2]
            np.testing.assert_allclose(lips, face.landmarks[LIPS, :2], atol=0.15)
            outline = track.outline[k].astype(np.float64) @ matrices[k, :, :2].T + matrices[k, :, 2]
            np.testing.assert_allclose(outline, face.landmarks[crop.OUTLINE, :2], atol=3)
            assert track.opening[k] == pytest.approx(opening_of(face.landmarks))


def test_strength_fades_beside_what_is_passed_through_and_nowhere_else() -> None:
    with tracked([[FACE]] * 30 + [[]] * 20 + [[FACE]] * 30) as track:
        assert (track.strength[:25] == 1).all()
        assert (track.strength[55:] == 1).all()
        assert (track.strength[30:50] == 0).all()
        assert (np.diff(track.strength[25:30]) < 0).all()
        assert (np.diff(track.strength[50:54]) > 0).all()
        assert track.strength[29] == pytest.approx(1 / 5, abs=0.01)
        np.testing.assert_allclose(track.strength, track.strength[::-1])


def test_a_photos_strength_is_whole() -> None:
    with tracked([[FACE]]) as track:
        assert held_still(track).strength.tolist() == [1.0]


# -------------------------------------------------------------------------------------------------------- references


def shade(index: int) -> NDArray[np.uint8]:
    """A frame that tells its number."""
    return np.full((SIZE[1], SIZE[0], 3), 120 + 2 * index, np.uint8)


def turned(*poses: tuple[float, float]) -> list[list[Face]]:
    """A script of one person: yaw in degrees and mouth opening, frame by frame."""
    return [[face_at((160, 120), height=90, yaw_deg=yaw, opening=opening)] for yaw, opening in poses]


def test_the_reference_is_the_most_closed_mouth_of_the_own_pose() -> None:
    ahead = [(0.0, 0.20), (0.0, 0.30), (0.0, 0.05), (0.0, 0.25), *[(0.0, 0.22)] * 20]
    with tracked(turned(*ahead, (32.0, 0.1), (32.0, 0.02)), draw=shade) as track:
        shown = [int(track.references.get(int(number)).pixels[0, 0, 0]) for number in track.reference]
        assert shown == [120 + 2 * 2] * 24 + [120 + 2 * 25] * 2
        assert track.references.get(0).pixels.shape == (32, 32, 3)


def test_a_pose_that_was_never_closed_borrows_the_nearest_reference_that_was() -> None:
    with tracked(turned(*[(0.0, 0.02)] * 10, *[(32.0, 0.3)] * 5), draw=shade) as track:
        assert len(set(track.reference)) == 1


def test_the_reference_does_not_flicker_at_the_edge_of_a_pose() -> None:
    with tracked(turned(*[(6.0 if k % 2 else 9.0, 0.02) for k in range(20)]), draw=shade) as track:
        assert len(set(track.reference)) == 1


@given(openings=st.lists(st.floats(0.0, 0.4), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_no_frame_of_the_pose_is_much_more_closed_than_the_reference(openings: list[float]) -> None:
    script = [[face_at((160, 120), height=90, opening=opening)] for opening in openings]

    def draw(index: int) -> NDArray[np.uint8]:
        return np.full((SIZE[1], SIZE[0], 3), 120 + 3 * index, np.uint8)

    with tracked(script, draw=draw) as track:
        chosen = (int(track.references.get(int(track.reference[0])).pixels[0, 0, 0]) - 120) // 3
        measured = [opening_of(faces[0].landmarks) for faces in script]
        assert 0.9 * measured[chosen] <= min(measured) + 1e-6


def test_the_detail_is_of_the_frame_that_the_crop_is_of() -> None:
    """Replaced together, whichever frame was the most closed one."""
    openings = (0.3, 0.2, 0.25, 0.05, 0.1)
    with tracked(turned(*[(0.0, opening) for opening in openings]), draw=shade) as track:
        (number,) = set(track.reference.tolist())
        reference = track.references.get(number)
        assert reference.number == number
        assert (reference.pixels == 120 + 2 * 3).all()
        assert reference.detail is not None
        assert np.abs(reference.detail.astype(int) - (120 + 2 * 3)).max() <= 1


@given(height=st.floats(45, 230), size=st.sampled_from([16, 64, 96, 128, 256]))
@settings(max_examples=25, deadline=None)
def test_a_detail_is_as_fine_as_the_frame_and_small_faces_have_none(height: float, size: int) -> None:
    face = face_at((160, 120), height=height)
    native = float(np.linalg.norm(np.diff(crop.unit_to_frame(crop.fit_similarity(face.landmarks))[0] @ [[0, 1], [0, 0], [1, 1]], axis=1)))
    with tracked([[face]], size=size) as track:
        detail = track.references.get(0).detail
        assert track.references.get(0).pixels.shape == (size, size, 3)
        if native < LEAST_GAIN * size:
            assert detail is None
        else:
            assert detail is not None
            assert len(detail) == detail_px(crop.fit_similarity(face.landmarks), size)
            assert len(detail) == size + 2 or round(1.5 * native) <= len(detail) <= 1.5 * native + 2


@pytest.mark.parametrize("face", [portrait_face(), face_at((200, 230), height=190, roll_deg=35), face_at((60, 420), height=240)])
def test_the_detail_shows_the_square_that_the_crop_shows(face: Face) -> None:
    """The example's frames; the last face reaches out of the frame."""
    with closing(media.read_planes(VIDEO)) as chunks:
        chunk = next(chunks)
    track = analyse([chunk], ScriptedDetector([[face]] * len(chunk)), size=64)
    with closing(track.references):
        reference = track.references.get(int(track.reference[0]))
    assert reference.detail is not None
    side = len(reference.detail)
    assert side > 128

    def difference(right: float, down: float) -> float:
        """Levels between the crop and the detail moved by so many px of the crop, then averaged down."""
        matrix = np.array([[1, 0, right * side / 64], [0, 1, down * side / 64]])
        moved = cv2.warpAffine(reference.detail, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return float(np.abs(scaled(moved, (64, 64)).astype(int) - reference.pixels).mean())

    assert difference(0, 0) < 5
    assert all(difference(*shift) > difference(0, 0) + 0.3 for shift in [(0.25, 0), (-0.25, 0), (0, 0.25), (0, -0.25)])


def test_a_photos_references_are_those_of_its_one_frame() -> None:
    with tracked([[FACE]], draw=shade) as track:
        still = held_still(track)
        assert still.references is track.references
        assert still.references.get(0).detail is not None


@pytest.mark.parametrize("height", [150.0, 5000.0])
def test_no_detail_is_larger_than_it_may_be(height: float) -> None:
    with tracked([[face_at((160, 120), height=height)]], size=16) as track:
        detail = track.references.get(0).detail
        assert detail is not None
        assert (len(detail) == DETAIL_PX) == (height > 1000)


# ---------------------------------------------------------------------------------------------------- the track itself


def test_variable_rate_times_are_kept() -> None:
    pts = [0, 1, 3, 4, 8, 9, 10, 14]
    with tracked([[FACE]] * len(pts), pts=pts, time_base=Fraction(1, 30)) as track:
        assert track.pts.tolist() == pts
        np.testing.assert_allclose(track.times_s, np.array(pts) / 30)


def test_a_track_can_be_saved_and_loaded(tmp_path: Path) -> None:
    script = [[FACE]] * 12 + [[]] * 14 + [[face_at((150, 120), height=90, opening=0.3)]] * 12
    with tracked(script, time_base=Fraction(1001, 30000)) as track:
        write_track(track, tmp_path / "track.npz")
        again = read_track(tmp_path / "track.npz")
        try:
            assert again.time_base == track.time_base
            for name in ("pts", "status", "shot", "similarity", "outline", "lips", "opening", "pose", "strength", "person", "reference"):
                one, other = getattr(track, name), getattr(again, name)
                assert one.dtype == other.dtype
                assert (one == other).all()
            assert again.references.count == track.references.count
            for number in range(track.references.count):
                one, other = track.references.get(number), again.references.get(number)
                assert (other.pixels == one.pixels).all()
                assert one.detail is not None
                assert (other.detail == one.detail).all()
            assert again.spans() == track.spans()
        finally:
            again.references.close()


def test_spans_partition_what_is_not_dubbed() -> None:
    script = [[]] * 2 + [[FACE]] * 15 + [[face_at((160, 120), height=90, yaw_deg=65)]] * 6 + [[FACE]] * 15 + [[]] * 20
    with tracked(script) as track:
        covered = np.zeros(len(track), bool)
        for span in track.spans():
            assert span.first < span.end
            assert not covered[span.first : span.end].any()
            assert {WHY[int(status)] for status in track.status[span.first : span.end]} == {span.why}
            covered[span.first : span.end] = True
        assert (covered == (track.status != DUBBED)).all()


def test_progress_counts_every_frame() -> None:
    told: list[int] = []
    track = analyse(chunks_of(20, grey), ScriptedDetector([[FACE]] * 20), size=16, on_frames=told.append)
    track.references.close()
    assert sum(told) == 20


def test_a_detector_that_fails_leaves_no_open_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(ScriptedDetector):
        def detect(self, picture: Picture) -> list[Face]:
            if self.seen == 3:
                raise KeyboardInterrupt
            return super().detect(picture)

    stores: list[ReferenceStore] = []

    def noted(size: int) -> ReferenceStore:
        stores.append(ReferenceStore(size))
        return stores[-1]

    monkeypatch.setattr(analysis, "ReferenceStore", noted)
    with pytest.raises(KeyboardInterrupt):
        analyse(chunks_of(20, grey), Failing([[FACE]] * 20), size=16)
    assert [store._file.closed for store in stores] == [True]


@pytest.mark.parametrize("yaw_deg", [-40.0, 0.0, 25.0])
def test_pose_is_that_of_the_mesh(yaw_deg: float) -> None:
    assert pose_of(face_at(yaw_deg=yaw_deg).landmarks)[0] == pytest.approx(yaw_deg, abs=2)


# --------------------------------------------------------------------------------------------- several detectors


def test_detectors_that_take_turns_see_what_one_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real landmarks of the example, watched in stretches of five frames by two detectors, and as a whole by one."""
    monkeypatch.setattr(analysis, "STRETCH_FRAMES", 5)
    frames = portrait_frames(22)
    with MediapipeDetector() as one, MediapipeDetector() as two, MediapipeDetector() as three:
        alone = analyse(chunks_of(len(frames), lambda k: frames[k]), one, size=64)
        together = analyse(chunks_of(len(frames), lambda k: frames[k]), two, size=64, more=[three])
    assert (together.status == alone.status).all()
    assert (together.pts == alone.pts).all()
    assert together.shot.tolist() == alone.shot.tolist()
    # Corners of the crop in the frame, px: apart by less than half of one.
    corners = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], np.float64)
    places = [crop.unit_to_frame(track.similarity) @ corners.T for track in (alone, together)]
    assert np.abs(places[0] - places[1]).max() < 0.01 * np.ptp(places[0], axis=(1, 2)).max()
    for track in (alone, together):
        track.references.close()


@pytest.mark.parametrize("more", [0, 2])
def test_cuts_are_numbered_and_detectors_forget_at_them(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "STRETCH_FRAMES", 4)
    resets: list[int] = []

    class Counting(ScriptedDetector):
        def reset(self) -> None:
            resets.append(1)

    def draw(k: int) -> NDArray[np.uint8]:
        return np.full((64, 64, 3), 20 if (k // 8) % 2 else 220, np.uint8)

    script = [[FACE]] * 24
    detectors = [Counting(script) for _ in range(1 + more)]
    track = analyse(chunks_of(24, draw), detectors[0], size=16, more=detectors[1:])
    assert track.shot.tolist() == [k // 8 for k in range(24)]
    assert len(resets) >= 2
    track.references.close()


# -------------------------------------------------------------------------------------------------------- long videos


@given(seed=st.integers(0, 30), block=st.integers(1, 60))
@settings(max_examples=8)
def test_blocks_give_the_track_that_the_whole_gives(seed: int, block: int) -> None:
    """Gaps, two people and a cut, smoothed as a whole and in blocks of a few frames."""
    rng = np.random.default_rng(seed)
    script = [
        [face_at((200 + 60 * np.sin(k / 9), 220), height=150, opening=float(rng.uniform(0, 0.3)))] * int(rng.random() > 0.15)
        + [face_at((420, 100), height=60)] * int(rng.random() > 0.5)
        for k in range(90)
    ]

    def track() -> FaceTrack:
        return analyse(chunks_of(90, lambda k: np.full((512, 512, 3), 40 if k < 55 else 210, np.uint8)), ScriptedDetector(script), size=16)

    whole, kept = track(), smoothing.BLOCK_FRAMES
    smoothing.BLOCK_FRAMES = block
    try:
        pieces = track()
    finally:
        smoothing.BLOCK_FRAMES = kept
    for name in ("status", "shot", "similarity", "outline", "lips", "opening", "strength", "person", "reference"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-3, err_msg=name)
    assert (pieces.status == whole.status).all()
    for one in (whole, pieces):
        one.references.close()


def test_no_thread_looks_through_a_detector_once_the_analysis_was_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detectors are closed next; a thread that still looked through one would crash the process."""
    monkeypatch.setattr(analysis, "STRETCH_FRAMES", 4)

    class Slow(ScriptedDetector):
        def detect(self, picture: Picture) -> list[Face]:
            time.sleep(0.005)
            return super().detect(picture)

    def stop(frames: int) -> None:
        raise KeyboardInterrupt

    detectors = [Slow([[FACE]] * 400) for _ in range(3)]
    with pytest.raises(KeyboardInterrupt) as held:
        analyse(chunks_of(400, grey), detectors[0], size=16, more=detectors[1:], on_frames=stop)
    # The exception, and with it every frame of the call, is still held.
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("lipdub-stage")] == []
    assert held is not None
