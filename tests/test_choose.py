"""choose: whose page a frame is drawn from, and where its lips go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from fakes import fake_spec
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub import choose as choosing
from lipdub.choose import FEWEST_PAGES, LEAST_GAIN, MOST_GAIN, MOST_PARTED, PARTED, UNSURE_S, Choices, Mouth, choose
from lipdub.faces import crop
from lipdub.faces.track import DUBBED, NO_FACE, FaceTrack
from lipdub.references.pages import Pages
from lipdub.references.shapes import LOWER_INNER_LIP, inner_opening, mouth_width
from lipdub.references.store import ReferenceStore
from lipdub.speech.lip_track import Lips, LipTrack
from lipdub.speech.mouth_shapes import SHAPES
from lipdub.timeline import Timeline

SIZE = 16


def lips_of(openings: NDArray[np.float64], *, yaw: NDArray[np.float64] | float = 0.0) -> NDArray[np.float32]:
    """A mouth that opens downwards, (n, 40, 2), and goes aside by a thousandth of the crop for a degree of yaw."""
    angle = np.arange(20) / 20 * 2 * np.pi + np.pi
    ring = np.stack([0.5 + 0.1 * np.cos(angle), 0.72 - 0.02 * np.sin(angle)], axis=1)
    lips = np.repeat(np.concatenate([ring, 0.8 * (ring - [0.5, 0.72]) * [1, 0] + [0.5, 0.72]])[None], len(openings), axis=0)
    for lower in (4, 5, 6, LOWER_INNER_LIP - 1, LOWER_INNER_LIP, LOWER_INNER_LIP + 1):
        lips[:, lower, 1] += openings
    lips[..., 0] += 0.001 * np.broadcast_to(yaw, len(openings))[:, None]
    return lips.astype(np.float32)


def outline() -> NDArray[np.float32]:
    jaw = np.stack([np.linspace(0.2, 0.8, 17), 0.6 + 0.3 * np.sin(np.linspace(0, np.pi, 17))], axis=1)
    upper = np.stack([np.linspace(0.75, 0.25, 7), np.full(7, 0.55)], axis=1)
    return np.concatenate([jaw, upper]).astype(np.float32)


@contextmanager
def track_of(openings: NDArray[np.float64], *, person: NDArray[np.int32] | None = None, pages: NDArray[np.int64] | None = None,
             yaw: NDArray[np.float64] | float = 0.0) -> Iterator[FaceTrack]:  # fmt: skip
    """A video of one shot in which the mouth opens so far; all frames are pages, or those named."""
    count = len(openings)
    person = np.zeros(count, np.int32) if person is None else person
    pages = np.arange(count) if pages is None else pages
    lips = lips_of(openings, yaw=yaw)
    pose = np.stack([np.broadcast_to(yaw, count), np.zeros(count)], axis=1).astype(np.float32)
    store = ReferenceStore(SIZE)
    for _ in pages:
        store.add(np.zeros((SIZE, SIZE, 3), np.uint8))
    track = FaceTrack(
        pts=np.arange(count), time_base=Fraction(1, 25), status=np.where(person < 0, NO_FACE, DUBBED).astype(np.uint8),
        shot=np.zeros(count, np.int32), similarity=np.tile([0.01, 0, 0, 0], (count, 1)),
        outline=np.repeat(outline()[None], count, axis=0).astype(np.float16), lips=lips.astype(np.float16),
        opening=(inner_opening(lips) / 0.38).astype(np.float32), pose=pose, strength=np.ones(count, np.float32), person=person,
        reference=np.where(person < 0, -1, 0).astype(np.int32),
        pages=Pages(person[pages], pages, lips[pages], np.repeat(outline()[None], len(pages), axis=0), pose[pages],
                    np.full((len(pages), 2), 100, np.float32), np.ones(len(pages), np.float32),
                    np.tile([0.01, 0, 0, 0], (len(pages), 1))),
        references=store,
    )  # fmt: skip
    with closing(store):
        yield track


@contextmanager
def heard(openings: NDArray[np.float64], shapes: NDArray[np.float32] | None = None, *, rests: bool = False) -> Iterator[LipTrack]:
    """Lips that are recalled: how far they open beyond rest in each frame, and the shapes that they shall have instead; 0 is a pause."""
    spec = fake_spec(points=True)
    count = len(openings)
    found = LipTrack(spec, 1.0, shapes, rests=rests)
    points = lips_of(openings) - lips_of(np.zeros(count))
    found.add(Lips(np.zeros((count, spec.lip_channels), np.float32), (openings == 0).astype(np.float32), points))
    with closing(found):
        yield found


def shown(count: int) -> Timeline:
    return Timeline(np.arange(count), np.arange(count), Fraction(1, 25), count)


def of_photo(count: int) -> Timeline:
    """So many frames of one picture."""
    return Timeline(np.zeros(count, np.int64), np.arange(count), Fraction(1, 25), count)


def speaking(count: int, *, most: float = 0.06, seed: int = 0, hz: float = 22.5 / np.pi) -> NDArray[np.float64]:
    """A mouth that opens so often a second, at 25 frames a second."""
    return np.abs(most * np.sin(np.arange(count) * np.pi * hz / 25 + seed))


def drawn(track: FaceTrack, lips: LipTrack, **options: object) -> choosing.Chosen:
    choices = choose(track, shown(len(lips)), lips, **options)  # type: ignore[arg-type]
    try:
        return choices.frames(0, len(choices))
    finally:
        choices.close()


def test_at_rest_the_lips_are_the_persons_resting_ones() -> None:
    with track_of(speaking(60)) as track, heard(np.zeros(60)) as lips:
        chosen = drawn(track, lips, draw="warp")
        assert np.abs(inner_opening(chosen.points[:, :40])).max() < 0.008
        assert np.median(track.pages.openings[chosen.page]) < 0.03


@given(apart=st.floats(0.0, 0.06))
@settings(max_examples=12, deadline=None)
def test_in_pauses_the_lips_are_apart_as_the_persons_are_when_silent(apart: float) -> None:
    """Of who has them apart, and as far as a shut mouth may. In speech, and where the mouth does not rest in pauses, nothing changes."""
    recalled = np.concatenate([np.zeros(50), speaking(50, seed=1) + 1e-6])

    def openings(track: FaceTrack, *, rests: bool) -> NDArray[np.float32]:
        with heard(recalled, rests=rests) as lips:
            return inner_opening(drawn(track, lips, draw="warp").points[:, :40])

    with track_of(np.concatenate([np.full(100, apart), speaking(100)])) as track:
        plain, resting = openings(track, rests=False), openings(track, rests=True)
    assume(abs(apart - PARTED) > 0.002)
    assert resting[:50] == pytest.approx(np.maximum(plain[:50], MOST_PARTED * (apart > PARTED)), abs=0.002)
    assert (resting[50:] == plain[50:]).all()


def test_who_is_never_still_rests_with_lips_that_meet() -> None:
    with track_of(speaking(200)) as track, heard(np.zeros(60), rests=True) as lips:
        assert np.abs(inner_opening(drawn(track, lips, draw="warp").points[:, :40])).max() < 0.01


@pytest.mark.parametrize("range_ratio", [0.2, 0.8, 1.0, 1.3, 3.0])
def test_the_recalled_range_becomes_the_persons(range_ratio: float) -> None:
    assert gain_of(range_ratio, frames=1000) == pytest.approx(np.clip(range_ratio, LEAST_GAIN, MOST_GAIN), rel=0.1)


@given(seen_s=st.integers(2, 40), range_ratio=st.floats(0.6, 1.6))
@settings(max_examples=12, deadline=None)
def test_the_less_is_seen_of_a_person_the_nearer_the_range_is_to_the_recalled_one(seen_s: int, range_ratio: float) -> None:
    sure = 1 / (1 + UNSURE_S * (1 / seen_s + 1 / 8))
    assert gain_of(range_ratio, frames=25 * seen_s, recalled=200) == pytest.approx(range_ratio**sure, rel=0.1)


def gain_of(range_ratio: float, *, frames: int, recalled: int | None = None) -> float:
    """How many times as far as is recalled a person opens who in these frames is seen to open `range_ratio` times as far."""
    heard_openings = speaking(recalled or frames, most=0.05, seed=1)
    pages = np.arange(min(frames, 100))
    with track_of(speaking(frames, most=0.05 * range_ratio), pages=pages) as track, heard(heard_openings) as lips:
        source = np.arange(len(lips)) % frames
        with closing(choose(track, Timeline(source, np.arange(len(lips)), Fraction(1, 25), len(lips)), lips, draw="warp")) as choices:
            wanted = inner_opening(choices.frames(0, len(choices)).points[:, :40])
    return float(np.subtract(*np.quantile(wanted, [0.9, 0.1])) / np.subtract(*np.quantile(heard_openings, [0.9, 0.1])))


def test_who_listens_for_most_of_a_video_speaks_no_smaller() -> None:
    recalled = speaking(100, most=0.05, seed=1)
    listening = np.concatenate([speaking(100, most=0.05), np.zeros(600)])
    with track_of(listening) as track, heard(recalled) as lips:
        wanted = inner_opening(drawn(track, lips, draw="warp").points[:, :40])
    gain = (np.quantile(wanted, 0.9) - np.quantile(wanted, 0.1)) / (np.quantile(recalled, 0.9) - np.quantile(recalled, 0.1))
    assert gain == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("most", [0.04, 0.075])
def test_a_style_sets_how_far_the_mouth_opens(most: float) -> None:
    """As far as in the other footage, whatever the person does in this one."""
    with track_of(speaking(300)) as track, track_of(speaking(200, most=most, seed=3)) as style, heard(speaking(300, seed=1)) as lips:
        plain, styled = (drawn(track, lips, draw="warp", style=one) for one in (None, style))
        wanted = np.subtract(*np.quantile(inner_opening(style.lips.astype(np.float32)), [0.9, 0.1]))
    spread = [np.subtract(*np.quantile(inner_opening(one.points[:, :40]), [0.9, 0.1])) for one in (plain, styled)]
    assert spread[1] == pytest.approx(wanted, rel=0.1)
    assert (spread[1] > spread[0]) == (most > 0.06)


def test_pages_of_the_wanted_mouth_are_found_and_the_chin_follows() -> None:
    # As often as syllables come: within fewer frames it costs less to stay on a page than to change it twice.
    recalled = speaking(80, seed=2, hz=4.5)
    with track_of(speaking(80, hz=4.5)) as track, heard(recalled) as lips:
        chosen = drawn(track, lips)
        assert (chosen.page >= 0).all()
        openings = inner_opening(chosen.points[:, :40])
        assert np.corrcoef(track.pages.openings[chosen.page], openings)[0, 1] > 0.9
        chin = chosen.points[:, 40 + len(crop.JAW) // 2, 1]
        assert np.corrcoef(chin, openings)[0, 1] > 0.99
        ear = chosen.points[:, 40]
        assert np.ptp(ear[:, 1]) < 0.1 * np.ptp(chin)


def test_a_turned_mouth_rests_where_it_rests_when_turned() -> None:
    yaw = np.linspace(-30, 30, 100)
    with track_of(speaking(100), yaw=yaw) as track:
        rest = Mouth.of(track.pages, 0.02).at(track.pose)
    middle = rest[:, :, 0].mean(axis=1)
    assert np.corrcoef(middle, yaw)[0, 1] > 0.99
    assert middle[-1] - middle[0] == pytest.approx(0.06, rel=0.2)


def test_another_persons_page_is_never_chosen() -> None:
    person = np.repeat([0, 1, -1], 40).astype(np.int32)
    pages = np.arange(80)
    with track_of(speaking(120), person=person, pages=pages) as track, heard(speaking(120, seed=5)) as lips:
        chosen = drawn(track, lips)
        assert (track.pages.person[chosen.page[:80]] == person[:80]).all()
        assert (chosen.page[80:] == -1).all()


@pytest.mark.parametrize("pages", [np.arange(1), np.arange(FEWEST_PAGES - 1)])
def test_with_few_pages_the_network_paints(pages: NDArray[np.int64]) -> None:
    """Between lips that open as far as is heard."""
    recalled = speaking(60, seed=1)
    with track_of(speaking(60, most=0.03), pages=pages) as track, heard(recalled) as lips:
        painted = drawn(track, lips)
        assert (painted.page == -1).all()
        assert np.ptp(inner_opening(painted.points[:, :40])) == pytest.approx(np.ptp(recalled), rel=0.02)
        assert (drawn(track, lips, draw="warp").page >= 0).all()


def test_a_photo_that_shows_teeth_is_drawn_from_itself() -> None:
    """As far open as is heard; one with shut lips is painted."""
    recalled = speaking(60, most=0.06, seed=1)
    with track_of(np.full(1, 0.04)) as track, heard(recalled) as lips, closing(choose(track, of_photo(60), lips)) as choices:
        chosen = choices.frames(0, 60)
    assert (chosen.page == 0).all()
    assert np.ptp(inner_opening(chosen.points[:, :40])) == pytest.approx(np.ptp(recalled), rel=0.1)
    with track_of(np.zeros(1)) as track, heard(recalled) as lips, closing(choose(track, of_photo(60), lips)) as choices:
        assert (choices.frames(0, 60).page == -1).all()


def test_a_mouth_that_hardly_opens_is_drawn_from_what_it_shows() -> None:
    """The line between its lips may be stretched; nothing could be where they are shut."""
    with track_of(speaking(60, most=0.02)) as track, heard(speaking(60, most=0.1, seed=1)) as lips:
        assert (drawn(track, lips).page >= 0).all()


def test_a_smile_that_never_shuts_rests_shut() -> None:
    """As far open as the others in the video, it could say no p, b or m."""
    with track_of(0.03 + speaking(60, most=0.01)) as track, heard(np.zeros(60)) as lips:
        points = drawn(track, lips, draw="warp").points[:, :40]
    assert np.abs(inner_opening(points)).max() < 0.003
    with track_of(speaking(60, most=0.01)) as track, heard(np.zeros(60)) as lips:
        shut = drawn(track, lips, draw="warp").points[:, :40]
    # Its corners stay, and its lips keep their thickness.
    assert np.abs(mouth_width(points) - mouth_width(shut)).max() < 0.01
    assert np.abs((points[:, 5] - points[:, 25]) - (shut[:, 5] - shut[:, 25])).max() < 0.01


def test_a_mouth_that_never_opens_is_painted_open() -> None:
    """Many pages, but none shows the inside of the mouth."""
    with track_of(np.full(60, 0.001) + speaking(60, most=0.002)) as track, heard(speaking(60, seed=1)) as lips:
        assert (drawn(track, lips).page == -1).all()
    with track_of(speaking(60)) as track, heard(speaking(60, seed=1)) as lips:
        assert (drawn(track, lips).page >= 0).all()
        assert (drawn(track, lips, draw="paint").page == -1).all()


def test_shapes_that_are_asked_for_change_nothing_where_they_are_not() -> None:
    """Neither how far all else is moved, nor what the mouth is drawn from."""
    shapes = np.full((60, len(SHAPES)), np.nan, np.float32)
    shapes[20:50, 0] = 1
    with track_of(speaking(60)) as track, heard(speaking(60, seed=1)) as lips, heard(speaking(60, seed=1), shapes) as others:
        plain, shaped = drawn(track, lips), drawn(track, others)
    assert (shaped.page >= 0).all()
    np.testing.assert_array_equal(np.delete(shaped.points, slice(20, 50), axis=0), np.delete(plain.points, slice(20, 50), axis=0))
    assert (inner_opening(shaped.points[20:50]) > inner_opening(plain.points[20:50]) + 0.02).all()


def test_a_page_moves_as_fast_as_the_lips_around_it() -> None:
    """Of frames of the same person and shot; pages of other footage, whose frames are not known, rest."""
    openings = np.repeat([0.0, 0.05, 0.01], [10, 1, 20])
    openings[20:] += 0.002 * np.arange(11)
    with track_of(openings) as track:
        frame = track.pages.frame.copy()
        frame[-1] = len(track) + 5
        track = replace(track, pages=replace(track.pages, frame=frame), shot=(np.arange(31) >= 25).astype(np.int32))
        speed = choosing._speed_of_pages(track, np.arange(31))
    assert speed[[0, 5, 15, -1]] == pytest.approx(np.zeros(4), abs=1e-6)
    assert speed[9] > 5 * speed[22] > 0
    assert speed[[24, 25]] == pytest.approx(speed[[22, 22]], rel=0.05)


def test_own_frames_can_be_forbidden() -> None:
    recalled = np.random.default_rng(0).uniform(0, 0.06, 100)  # no two are alike
    with track_of(recalled) as track, heard(recalled) as lips:
        near = np.abs(track.pages.frame[drawn(track, lips).page] - np.arange(100)) < 5
        assert near.any()
        far = np.abs(track.pages.frame[drawn(track, lips, exclude_s=0.2).page] - np.arange(100))
        assert (far >= 5).all()


@given(
    stretches=st.lists(st.lists(st.integers(-1, 6), min_size=1, max_size=12), min_size=1, max_size=5),
    cut=st.integers(0, 60),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_what_is_blended_in_is_the_page_before_of_the_same_stretch(stretches: list[list[int]], cut: int, seed: int) -> None:
    """And nothing where a page's own successor follows it, or where the mouth is painted; whatever frames are asked for at a time."""
    of = np.sort(np.random.default_rng(seed).choice(12, 7, replace=False))
    choices = Choices(of)
    with closing(choices):
        for number, pages in enumerate(stretches):
            choices.decide(np.array(pages), number)
            choices.want(np.zeros((len(pages), 64, 2), np.float32))
        cut = min(cut, len(choices))
        parts = [choices.frames(*piece) for piece in ((0, cut), (cut, len(choices))) if piece[1] > piece[0]]
    beside = np.concatenate([part.beside for part in parts]).tolist()
    assert np.concatenate([part.page for part in parts]).tolist() == [page for pages in stretches for page in pages]
    for pages in stretches:
        here, beside = beside[: len(pages)], beside[len(pages) :]
        assert here[0] == -1
        for before, now, other in zip(pages[:-1], pages[1:], here[1:], strict=True):
            seen = before >= 0 and now >= 0 and before != now and of[now] != of[before] + 1
            assert other == (before if seen else -1)


def test_blocks_change_no_lips(monkeypatch: pytest.MonkeyPatch) -> None:
    with track_of(speaking(100)) as track, heard(speaking(100, seed=1)) as lips:
        whole = drawn(track, lips)
        monkeypatch.setattr(choosing, "BLOCK_FRAMES", 16)
        blocks = drawn(track, lips)
    assert np.abs(whole.points - blocks.points).max() < 1e-5
    assert (whole.page == blocks.page).mean() > 0.95
