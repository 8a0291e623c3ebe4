"""timeline.py: the `--fit` rule as properties, over sources of any rhythm."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.options import Fit
from lipdub.timeline import LEAST_STRETCH, MOST_STRETCH, STILL_HZ, Timeline, plan, tempo_for
from lipdub.times import Range

FITS: tuple[Fit, ...] = ("longest", "video", "speech", "stretch")
TIME_BASES = [Fraction(1, 12800), Fraction(1, 25), Fraction(1, 1000), Fraction(1001, 30000), Fraction(1, 90000)]

time_bases = st.sampled_from(TIME_BASES)
speeches = st.fractions(Fraction(1, 100), 20, max_denominator=44100)


@st.composite
def sources(draw: st.DrawFn) -> tuple[NDArray[np.int64], Fraction, Fraction | None]:
    """Ticks of 2 to 40 frames, constant or variable, the time base, and when the video ends (or None)."""
    time_base = draw(time_bases)
    usual = max(1, round(Fraction(1, 25) / time_base))
    steps = draw(st.lists(st.integers(max(1, usual // 2), 2 * usual), min_size=1, max_size=39))
    if draw(st.booleans()):
        steps = [usual] * len(steps)
    start = draw(st.sampled_from([0, 0, usual]))
    pts = start + np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    last = draw(st.integers(1, usual))
    video_s = draw(st.sampled_from([None, (int(pts[-1]) + last) * time_base, (int(pts[-1]) + last) * time_base]))
    return pts, time_base, video_s


def last_step(pts: NDArray[np.int64], time_base: Fraction, video_s: Fraction | None) -> Fraction:
    """How long the source's last frame is shown, seconds."""
    return (int(np.median(np.diff(pts))) * time_base) if video_s is None else video_s - int(pts[-1]) * time_base


@given(source=sources(), speech_s=speeches, fit=st.sampled_from(FITS))
def test_times_increase_and_every_frame_lasts(
    source: tuple[NDArray[np.int64], Fraction, Fraction | None], speech_s: Fraction, fit: Fit
) -> None:
    pts, time_base, video_s = source
    timeline = plan(pts, time_base, video_s=video_s, speech_s=speech_s, fit=fit, is_still=False)
    assert (np.diff(timeline.pts) > 0).all()
    assert timeline.end > timeline.pts[-1]
    assert timeline.time_base == time_base
    assert timeline.source.min() >= 0
    assert timeline.source.max() < len(pts)
    assert timeline.pts.dtype == timeline.source.dtype == np.int64


@given(source=sources(), speech_s=speeches)
def test_longest_keeps_all_of_the_picture_and_all_of_the_speech(
    source: tuple[NDArray[np.int64], Fraction, Fraction | None], speech_s: Fraction
) -> None:
    pts, time_base, video_s = source
    timeline = plan(pts, time_base, video_s=video_s, speech_s=speech_s, fit="longest", is_still=False)
    assert (timeline.source[: len(pts)] == np.arange(len(pts))).all()
    assert (timeline.pts[: len(pts)] == pts).all()
    picture_s = int(pts[-1]) * time_base + last_step(pts, time_base, video_s)
    assert max(picture_s, speech_s) <= timeline.duration_s < max(picture_s, speech_s) + time_base


@given(source=sources(), speech_s=speeches)
def test_video_is_the_source_exactly(source: tuple[NDArray[np.int64], Fraction, Fraction | None], speech_s: Fraction) -> None:
    pts, time_base, video_s = source
    timeline = plan(pts, time_base, video_s=video_s, speech_s=speech_s, fit="video", is_still=False)
    assert (timeline.source == np.arange(len(pts))).all()
    assert (timeline.pts == pts).all()
    assert timeline.duration_s == int(pts[-1]) * time_base + last_step(pts, time_base, video_s)


@given(source=sources(), speech_s=speeches)
def test_speech_is_as_long_as_the_speech(source: tuple[NDArray[np.int64], Fraction, Fraction | None], speech_s: Fraction) -> None:
    pts, time_base, video_s = source
    timeline = plan(pts, time_base, video_s=video_s, speech_s=speech_s, fit="speech", is_still=False)
    first_s = (int(pts[0]) + 1) * time_base  # there is always one frame, however short the speech
    assert max(speech_s, first_s) <= timeline.duration_s < max(speech_s, first_s) + time_base
    count = min(len(pts), len(timeline))
    assert (timeline.pts[:count] == pts[:count]).all()
    # No frame is left out that starts within the speech.
    if len(timeline) < len(pts):
        assert int(pts[len(timeline)]) * time_base >= speech_s


@given(source=sources(), speech_s=st.fractions(3, 60, max_denominator=48000), fit=st.sampled_from(["longest", "speech"]))
def test_beyond_its_end_the_picture_goes_back_and_forth(
    source: tuple[NDArray[np.int64], Fraction, Fraction | None], speech_s: Fraction, fit: Fit
) -> None:
    pts, time_base, video_s = source
    timeline = plan(pts, time_base, video_s=video_s, speech_s=speech_s, fit=fit, is_still=False)
    assert (np.abs(np.diff(timeline.source)) == 1).all()
    # It turns at the ends and nowhere else.
    turns = np.flatnonzero(np.diff(np.diff(timeline.source))) + 1
    assert set(timeline.source[turns].tolist()) <= {0, len(pts) - 1}
    steps = np.diff(pts)
    for k, (one, other) in enumerate(pairwise(timeline.source)):
        shown = int(timeline.pts[k + 1] - timeline.pts[k])
        if k == len(pts) - 1:  # the source's last frame, for as long as the source showed it
            assert shown * time_base == last_step(pts, time_base, video_s)
        else:
            assert shown == steps[min(one, other)]


@given(source=sources(), speech_s=st.fractions(0, 30, max_denominator=1000).filter(bool), fit=st.sampled_from(FITS))
def test_runs_are_the_stretches_that_go_one_way(
    source: tuple[NDArray[np.int64], Fraction, Fraction | None], speech_s: Fraction, fit: Fit
) -> None:
    pts, time_base, video_s = source
    timeline = plan(pts, time_base, video_s=video_s, speech_s=speech_s, fit=fit, is_still=False)
    runs = list(timeline.runs())
    assert runs[0][0] == 0
    assert runs[-1][1] == len(timeline)
    assert all(one[1] == other[0] for one, other in pairwise(runs))
    ways = []
    for first, end in runs:
        assert first < end
        steps = set(np.diff(timeline.source[first:end]).tolist())
        assert len(steps) <= 1
        ways.append(steps.pop() if steps else None)
    assert all(one != other for one, other in pairwise(ways) if one is not None and other is not None)


@given(speech_s=speeches, fit=st.sampled_from(FITS), time_base=time_bases)
def test_a_photo_is_shown_as_long_as_the_speech_lasts(speech_s: Fraction, fit: Fit, time_base: Fraction) -> None:
    timeline = plan(np.zeros(1, np.int64), time_base, video_s=None, speech_s=speech_s, fit=fit, is_still=True)
    assert (timeline.source == 0).all()
    assert timeline.time_base == Fraction(1, STILL_HZ)
    assert speech_s <= timeline.duration_s < speech_s + Fraction(1, STILL_HZ)
    assert len(timeline) == timeline.end
    assert list(timeline.runs()) == [(0, len(timeline))]


@pytest.mark.parametrize(("fit", "expected_s"), [("longest", Fraction(3)), ("video", Fraction(1, 2)), ("speech", Fraction(3))])
def test_a_video_of_one_frame_keeps_the_rule(fit: Fit, expected_s: Fraction) -> None:
    timeline = plan(np.zeros(1, np.int64), Fraction(1, 1000), video_s=Fraction(1, 2), speech_s=Fraction(3), fit=fit, is_still=False)
    assert timeline.duration_s == expected_s


def test_a_video_of_one_frame_is_never_cut_under_longest() -> None:
    timeline = plan(np.zeros(1, np.int64), Fraction(1, 1000), video_s=Fraction(2), speech_s=Fraction(1), fit="longest", is_still=False)
    assert timeline.duration_s == 2


def test_an_end_that_cannot_be_true_is_not_believed() -> None:
    pts = np.arange(10, dtype=np.int64) * 512
    for video_s in (Fraction(1, 100), Fraction(3600)):
        timeline = plan(pts, Fraction(1, 12800), video_s=video_s, speech_s=Fraction(1, 10), fit="video", is_still=False)
        assert timeline.duration_s == Fraction(10, 25)


def test_hours_of_ping_pong_do_not_drift() -> None:
    pts = np.arange(30, dtype=np.int64) * 1001
    base = Fraction(1, 30000)
    timeline = plan(pts, base, video_s=30 * 1001 * base, speech_s=Fraction(7200), fit="longest", is_still=False)
    assert (np.diff(timeline.pts) == 1001).all()
    assert 7200 <= timeline.duration_s < 7200 + base


def test_a_wrong_timeline_is_refused() -> None:
    one = np.zeros(1, np.int64)
    for source, pts, end in (
        (one[:0], one[:0], 1),
        (one, np.zeros(2, np.int64), 1),
        (one, one, 0),
        (np.zeros(2, np.int64), np.zeros(2, np.int64), 3),
    ):
        with pytest.raises(ValueError, match="pts"):
            Timeline(source, pts, Fraction(1, 25), end)
    assert "frames=1" in repr(Timeline(one, one, Fraction(1, 25), 1))


@given(speech_s=speeches, room_s=st.fractions(-1, 20, max_denominator=1000))
def test_a_speech_is_stretched_to_the_room_that_there_is_but_not_far(speech_s: Fraction, room_s: Fraction) -> None:
    tempo = tempo_for(speech_s, room_s)
    assert 1 / (1 + MOST_STRETCH) <= tempo <= 1 + MOST_STRETCH
    if room_s > 0 and 1 / (1 + MOST_STRETCH) <= speech_s / room_s <= 1 + MOST_STRETCH:
        assert abs(speech_s / tempo - room_s) <= LEAST_STRETCH * room_s * 2
    assert (tempo >= 1) == (speech_s >= room_s) or tempo == 1


@given(source=sources(), speech_s=speeches, first=st.integers(0, 80), count=st.integers(1, 80))
def test_a_part_of_a_timeline_shows_the_same_frames_for_as_long(
    source: tuple[NDArray[np.int64], Fraction, Fraction | None], speech_s: Fraction, first: int, count: int
) -> None:
    pts, time_base, video_s = source
    whole = plan(pts, time_base, video_s=video_s, speech_s=speech_s, fit="longest", is_still=False)
    first = min(first, len(whole) - 1)
    end = min(first + count, len(whole))
    part = whole.part(first, end)
    assert part.pts[0] == 0
    np.testing.assert_array_equal(part.source, whole.source[first:end])
    np.testing.assert_array_equal(np.append(part.pts, part.end), np.append(whole.pts, whole.end)[first : end + 1] - whole.pts[first])
    times = whole.times_s
    found = whole.within(Range(max(0.0, float(times[first])), float(times[end - 1]) + 1e-9))
    assert found == (first, end)
