"""times.py and media/cues.py: times as people write them, and when subtitles are shown."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub import media
from lipdub.errors import UnreadableMedia
from lipdub.timeline import EDGE_FRAMES, amounts
from lipdub.times import Range, joined, parsed_ranges, seconds_of, written

milliseconds = st.integers(0, 10**7)
ranges = st.lists(st.tuples(milliseconds, st.integers(1, 10**5)), min_size=1, max_size=6).map(
    lambda pairs: [Range(start / 1000, (start + length) / 1000) for start, length in pairs]
)


@given(milliseconds)
def test_a_time_means_the_same_however_it_is_written(ms: int) -> None:
    seconds = ms / 1000
    minutes, rest = divmod(ms, 60_000)
    assert seconds_of(f"{seconds:.3f}") == pytest.approx(seconds)
    assert seconds_of(f"{minutes}:{rest / 1000:06.3f}") == pytest.approx(seconds)
    assert seconds_of(f" {minutes // 60}:{minutes % 60:02d}:{rest / 1000:06.3f}") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-1", "1.", "1:", ":5", "1e3", "nan", "inf", "0:5,5"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0:05-0:12,1:00-", (Range(5, 12), Range(60, math.inf))),
        ("-3", (Range(0, 3),)),
        (" 1 - 2 , 2-3 ", (Range(1, 3),)),
        ("5-6,1-2,1.5-4", (Range(1, 4), Range(5, 6))),
    ],
)
def test_ranges_as_they_are_written(text: str, found: tuple[Range, ...]) -> None:
    assert parsed_ranges(text) == found


@pytest.mark.parametrize("text", ["", "5", "-", "3-3", "4-2", "1-2,", "1-2-3", "a-b"])
def test_what_are_no_ranges(text: str) -> None:
    with pytest.raises(ValueError, match=r"no range|no time|ends after it begins"):
        parsed_ranges(text)


@given(ranges, milliseconds)
def test_joined_ranges_hold_the_same_times_and_lie_apart(found: list[Range], at_ms: int) -> None:
    apart = joined(found)
    assert all(one.end_s < other.start_s for one, other in pairwise(apart))
    at_s = at_ms / 1000
    assert any(one.start_s <= at_s < one.end_s for one in found) == any(one.start_s <= at_s < one.end_s for one in apart)


# ---------------------------------------------------------------------------------------------------------------- amounts


@given(ranges, st.integers(1, 200), st.floats(0.01, 0.2))
def test_frames_are_redrawn_within_the_ranges_alone_and_come_and_go_smoothly(found: list[Range], count: int, step_s: float) -> None:
    times_s: NDArray[np.float64] = np.arange(count) * step_s
    amount = amounts(times_s, found)
    inside = np.array([any(one.start_s <= at < one.end_s for one in found) for at in times_s])
    assert ((amount > 0) == inside).all()
    assert amount.max(initial=0) <= 1
    assert (np.abs(np.diff(amount)) <= 1 / (EDGE_FRAMES + 1) + 1e-6).all()


def test_the_pictures_own_ends_do_not_fade() -> None:
    times_s: NDArray[np.float64] = np.arange(20) / 25
    assert (amounts(times_s, parsed_ranges("0-")) == 1).all()
    np.testing.assert_allclose(amounts(times_s, parsed_ranges("0-0.4"))[:12], [1] * 6 + [0.8, 0.6, 0.4, 0.2, 0, 0], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------- cues

SRT = (
    "1\n00:00:00,200 --> 00:00:00,500\nHello <i>you</i>\n\n2\n00:01:01,000 --> 00:01:02,250\ntwo\nlines\n\n"
    "3\n00:00:00,500 --> 00:00:00,700\nx\n"
)
VTT = "WEBVTT\n\nNOTE a remark\n\n00:00.200 --> 00:00.700 align:start\nHello\n\nid\n00:01:01.000 --> 00:01:02.250\nmore\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.srt", SRT.encode()), ("a.SRT", SRT.replace("\n", "\r\n").encode("utf-8-sig")), ("a.srt", SRT.encode("utf-16")),
        ("a.vtt", VTT.encode()), ("a%d b.vtt", VTT.encode("utf-8-sig")),
    ],
)  # fmt: skip
def test_when_cues_are_shown(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert media.ranges_in(tmp_path / name) == (Range(0.2, 0.7), Range(61, 62.25))


SPOKEN_SRT = (
    "1\n00:00:01,000 --> 00:00:02,000\nANNA: Hello\nthere\n\n2\n00:00:03,000 --> 00:00:04,000\n- Anna: Hi\n- [Ben  Lee]: At 5:30\n\n"
    "3\n00:00:05,000 --> 00:00:06,000\n<i>ben lee:</i> See\n\n4\n00:00:07,000 --> 00:00:08,000\nnobody\n"
)
SPOKEN_VTT = (
    "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Anna>Hello <b>there</b></v>\n\n00:03.000 --> 00:04.000\n<i><v Anna>Hi</v></i>\n"
    "<v.loud Ben Lee>At 5:30\n\n00:05.000 --> 00:06.000\nBen Lee: See\n\n00:07.000 --> 00:08.000\nnobody\n"
)


@pytest.mark.parametrize(("name", "content"), [("a#b.srt", SPOKEN_SRT), ("a.vtt", SPOKEN_VTT)])
def test_cues_of_one_speaker(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    both = media.ranges_of(f"{path}#Anna; {path}#BEN LEE;0:05-;{path}")
    assert both == [
        (Range(1, 2), Range(3, 4)), (Range(3, 4), Range(5, 6)), parsed_ranges("5-"),
        (Range(1, 2), Range(3, 4), Range(5, 6), Range(7, 8)),
    ]  # fmt: skip
    with pytest.raises(UnreadableMedia, match=r"no cue of the speaker 'Carl'; there are cues of (ANNA|Anna|anna), [Bb]en [Ll]ee$"):
        media.ranges_of(f"{path}#Carl")


def test_cues_without_speakers_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text(SRT)
    with pytest.raises(UnreadableMedia, match="cues of nobody by name"):
        media.ranges_of(f"{tmp_path / 'a.srt'}#Anna")


@pytest.mark.parametrize("content", [None, b"", b"nothing to see\n", b"WEBVTT\n\n", b"\0" * 1000])
@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_what_holds_no_cues_is_one_line(tmp_path: Path, content: bytes | None, suffix: str) -> None:
    if content is not None:
        (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(UnreadableMedia) as caught:
        media.ranges_in(tmp_path / f"a{suffix}")
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 300)), min_size=1, max_size=5), st.integers(0, 900), st.booleans())
def test_written_ranges_read_the_same_so_much_earlier(spans: list[tuple[int, int]], earlier_s: int, is_open: bool) -> None:
    ranges = [Range(start, start + lasts) for start, lasts in spans]
    if is_open:
        ranges.append(Range(700, math.inf))
    assert parsed_ranges(written(ranges)) == joined(ranges)
    moved = written(ranges, earlier_s=earlier_s)
    found = parsed_ranges(moved) if moved else ()
    for time_s in (0.5, 3.5, 100.5, 400.5, 799.5):
        inside = any(one.start_s <= time_s + earlier_s < one.end_s for one in ranges)
        assert any(one.start_s <= time_s < one.end_s for one in found) == inside
