"""What is not redrawn, copied as the source has it coded: the same times as without, not a byte altered, and no player can tell."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
from av.packet import PacketSideData
from av.video.frame import PictureType
from drawn import draw_video, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_pipeline import SIDE, dubbed, frames_of, house, times_of

from lipdub import media
from lipdub.errors import UnreadableMedia
from lipdub.media import playback
from lipdub.media.encoders import ENCODERS
from lipdub.media.h264 import Head
from lipdub.media.joining import _Coded
from lipdub.options import Encoder
from lipdub.records import DubWarning
from lipdub.timeline import Timeline, plan

__all__ = ["house"]  # a fixture
FRAMES = 40
NEW_HEAD = 1
"""FFmpeg's AV_PKT_DATA_NEW_EXTRADATA."""
GOPS = {
    "short": "keyint=5:min-keyint=1:bframes=3",
    "of one": "keyint=1",
    "of two, reordered": "keyint=2:min-keyint=1:bframes=2",
    "without B": "keyint=7:bframes=0",
    "open": "keyint=6:min-keyint=1:bframes=3:open-gop=1:scenecut=0",
    "cut up": "keyint=9:bframes=3:slices=4:repeat-headers=1:aud=1",
    "whole": "keyint=250",
}
FILES = [(name, suffix) for name in GOPS for suffix in (".mp4", ".mkv")] + [("short", ".mov"), ("uneven", ".mp4")]
UNEVEN = [*range(507, 507 + 300 * (FRAMES // 2), 300), *range(9000, 9000 + 411 * (FRAMES // 2), 411)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder, found = tmp_path_factory.mktemp("sources"), {}
    for name, suffix in FILES:
        found[name, suffix] = folder / f"{name}{suffix}"
        options = {"preset": "medium", "x264-params": GOPS.get(name, GOPS["short"])}
        pts = UNEVEN if name == "uneven" else None
        base = Fraction(1, 1000 if suffix == ".mkv" else 12800)
        draw_video(found[name, suffix], frames=FRAMES, options=options, pts=pts, time_base=base, last_duration=base.denominator // 25)
    return found


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def begins_anew(packet: bytes) -> bool:
    """Whether a coded picture is an IDR picture, by the types of its units."""
    at, kinds = 0, set()
    while at < len(packet):
        kinds.add(packet[at + 4] & 31)
        at += 4 + int.from_bytes(packet[at : at + 4], "big")
    return 5 in kinds


def planes_of(path: Path) -> NDArray[np.uint8]:
    return np.concatenate([chunk.data for chunk in media.read_planes(path)])


def planned(
    source: Path, untouched: NDArray[np.bool_], *, encoder: Encoder = "libx264", crf: int = 1
) -> tuple[media.Copies, NDArray[np.int64], Timeline]:
    info, pts = media.probe(source), np.concatenate([chunk.pts for chunk in media.read_planes(source)])
    shown = plan(pts, info.time_base, video_s=info.duration_s, speech_s=Fraction(1), fit="video", is_still=False)
    return media.plan_copies(info, pts, shown, untouched, encoder=ENCODERS[encoder], crf=crf), pts, shown


def joined(source: Path, out: Path, untouched: NDArray[np.bool_]) -> media.Copies:
    """Write `source` with every frame that is not untouched turned into its negative."""
    (copies, pts, shown), info = planned(source, untouched), media.probe(source)
    with media.Joiner(out, info, copies, shown, crf=1, preset="veryfast", encoder=ENCODERS["libx264"]) as writer:
        writer.end_s = shown.duration_s
        for chunk, _ in media.play(source, pts, shown, without=copies.stretches):
            chunk.data[~untouched[chunk.index : chunk.index + len(chunk)]] ^= 255
            writer.write(chunk)
    return copies


def expected(source: Path, untouched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which frames can be copied: those of groups that begin with an IDR picture and of which none is touched."""
    begins = np.array([begins_anew(packet) for packet in packets_of(source)])
    groups = np.cumsum(begins)
    return np.isin(groups, groups[~untouched], invert=True)


def complaints(path: Path) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-f", "framecrc", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(FILES),
    st.sampled_from([".mp4", ".mov", ".mkv"]),
    st.lists(st.tuples(st.integers(0, 39), st.integers(1, 6)), max_size=3),
)
def test_copied_frames_keep_every_byte_and_all_frames_their_times(
    sources: dict[tuple[str, str], Path], tmp_path: Path, file: tuple[str, str], suffix: str, touched: list[tuple[int, int]]
) -> None:
    source, out = sources[file], tmp_path / f"out{suffix}"
    untouched = np.ones(FRAMES, bool)
    for first, count in touched:
        untouched[first : first + count] = False
    copied = expected(source, untouched)
    if not copied.any():
        with pytest.raises(media.CannotCopy, match="between any two key frames"):
            joined(source, out, untouched)
        return
    copies = joined(source, out, untouched)
    assert len(copies) == copied.sum()
    before, after = packets_of(source), packets_of(out)
    assert len(after) == FRAMES
    assert [after[k] == before[k] for k in np.flatnonzero(copied)] == [True] * len(copies)
    wanted = planes_of(source)
    wanted[~untouched] ^= 255
    differences = np.abs(planes_of(out).astype(int) - wanted)
    assert not differences[copied].any()
    assert differences.max() <= 6
    coarse = 0 if suffix != ".mkv" else Fraction(1, 1000)
    assert all(abs(one - other) <= coarse for one, other in zip(times_of(out), times_of(source), strict=True))
    assert complaints(out) == ""
    pts = np.concatenate([chunk.pts for chunk in media.read_planes(out)])
    for row in (*np.flatnonzero(np.diff(copied)), *(np.flatnonzero(np.diff(copied)) + 1), FRAMES - 1):
        np.testing.assert_array_equal(media.read_span(out, pts, row, row + 1).data[0], planes_of(out)[row])


def test_what_was_joined_can_be_joined_again(sources: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    for number, first in enumerate((7, 21, 33)):
        untouched = np.arange(FRAMES) != first
        source = sources["short", ".mp4"] if number == 0 else tmp_path / f"{number - 1}.mp4"
        assert len(joined(source, tmp_path / f"{number}.mp4", untouched)) >= 30
    with av.open(str(tmp_path / "2.mp4")) as container:
        head = Head.of(container.streams.video[0].codec_context.extradata)
    assert (len(head.sps), len(head.pps), head.free_id) == (4, 4, 4)
    wanted = planes_of(sources["short", ".mp4"])
    wanted[[7, 21, 33]] ^= 255
    assert np.abs(planes_of(tmp_path / "2.mp4").astype(int) - wanted).max() <= 8
    assert complaints(tmp_path / "2.mp4") == ""


sets = st.lists(st.binary(min_size=5, max_size=20), min_size=1, max_size=4).map(tuple)
heads = st.builds(Head, *[st.integers(0, 255)] * 3, sets, sets, st.sampled_from([b"", b"\xfd\xf8\xf8\0"]))


@given(heads, st.data())
def test_a_head_is_read_as_it_was_written_and_damage_is_found(head: Head, data: st.DataObject) -> None:
    assert Head.of(head.written) == head
    cut = data.draw(st.integers(0, len(head.written) - len(head.rest) - 1))
    with pytest.raises(ValueError, match="do not stand at the head"):
        Head.of(head.written[:cut])
    with pytest.raises(ValueError, match="do not stand at the head"):
        Head.of(None if cut % 2 else b"\0\0\0\1" + head.written)


def test_a_head_that_is_full_takes_no_more() -> None:
    """31 parameter sets of sequences are all that a head can count."""
    numbered = [bytes([0x67, 100, 0, 10, *_exponential(number)]) for number in range(31)]
    assert Head(100, 0, 10, tuple(numbered[:30]), (b"\x68\x80\0\0\0",)).free_id == 30
    assert Head(100, 0, 10, tuple(numbered), (b"\x68\x80\0\0\0",)).free_id is None
    with pytest.raises(ValueError, match="a parameter set is damaged"):
        _ = Head(100, 0, 10, (b"\x67\0\0\0\0\0",), (b"\x68\x80\0\0\0",)).free_id


def _exponential(number: int) -> bytes:
    """A number in Exp-Golomb code, filled up with ones."""
    bits = f"{number + 1:b}"
    return int(f"{'0' * (len(bits) - 1)}{bits}".ljust(16, "1"), 2).to_bytes(2, "big")


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=0, max_size=8))
def test_groups_that_are_not_shown_part_what_is_copied(groups: list[tuple[int, bool]]) -> None:
    """An edit list, or damage, hides pictures that are in the file."""
    sizes, are_shown = np.array([size for size, _ in groups], np.int64), np.array([shown for _, shown in groups], bool)
    begins, is_shown = np.cumsum(sizes) - sizes, np.repeat(are_shown, sizes)
    ticks = np.where(is_shown, np.arange(sizes.sum()), -(2**63))
    pts = ticks[is_shown]
    stretches, _ = _Coded(Head(66, 0, 10, (), ()), ticks, begins).stretches(pts, np.ones(len(pts), bool))
    assert all(one.end < two.first for one, two in pairwise(stretches))
    for one in stretches:
        np.testing.assert_array_equal(ticks[one.packet : one.packet + len(one)], pts[one.first : one.end])


def test_a_cut_without_an_idr_picture_is_not_copied(sources: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    """A video with open groups that was trimmed begins at a key frame that is none."""
    for suffix in (".mp4", ".mkv"):
        cut = tmp_path / f"cut{suffix}"
        with av.open(str(sources["open", suffix])) as source, av.open(str(cut), "w") as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            packets = [packet for packet in source.demux(video=0) if packet.size]
            for packet in packets[[at for at, packet in enumerate(packets) if packet.is_keyframe][1] :]:
                packet.stream = stream
                out.mux(packet)
        count = len(planes_of(cut))
        with pytest.raises(media.CannotCopy, match="between any two key frames"):
            joined(cut, tmp_path / f"out{suffix}", np.arange(count) != 9)


@pytest.mark.parametrize("steps", [[40] * 39, [33] * 9 + [67] * 30])
@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize("edited", ["0", "1"])
def test_key_frames_that_lie_close_together_are_told_apart(tmp_path: Path, steps: list[int], movflags: str, edited: str) -> None:
    """FFmpeg looks in .mp4 for the time when a picture is decoded, which lies before that when it is shown."""
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    pts = np.concatenate([[0], np.cumsum(steps)]).tolist()
    container = {"video_track_timescale": "1000", "movflags": movflags, "use_editlist": edited}
    with av.open(str(source), "w", options=container) as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "10", "forced-idr": "1", "x264-params": "bframes=3:scenecut=0"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 96, 64, "yuv420p", Fraction(1, 1000)
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(number, (96, 64)), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            frame.pict_type = PictureType.I if number in (0, 15, 20, 21, 22, 30) else PictureType.NONE
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    for touched in ([20, 21], [21, 22], [21, 25]):
        untouched = np.ones(FRAMES, bool)
        untouched[touched] = False
        joined(source, out, untouched)
        wanted = planes_of(source)
        wanted[~untouched] ^= 255
        assert np.abs(planes_of(out).astype(int) - wanted).max() <= 12


def test_a_file_with_two_sample_descriptions_is_not_copied(tmp_path: Path) -> None:
    """What editors write that join clips: the parameter sets change, and no unit of any picture tells."""
    for name, coding in (("one", "cabac=1"), ("other", "cabac=0:8x8dct=0")):
        draw_video(
            tmp_path / f"{name}.mp4", frames=20, time_base=Fraction(1, 12800), options={"x264-params": f"keyint=5:bframes=0:{coding}"}
        )
    source = tmp_path / "in.mp4"
    with av.open(str(tmp_path / "one.mp4")) as one, av.open(str(tmp_path / "other.mp4")) as other, av.open(str(source), "w") as out:
        stream = out.add_stream_from_template(one.streams.video[0])
        head = other.streams.video[0].codec_context.extradata
        assert head is not None
        for late, clip in ((0, one), (20 * 512, other)):
            for number, packet in enumerate(packet for packet in clip.demux(video=0) if packet.size):
                assert packet.pts is not None
                assert packet.dts is not None
                if clip is other and number == 0:
                    changed = PacketSideData(NEW_HEAD, len(head))  # type: ignore[call-arg]
                    changed.update(head)
                    packet.set_sidedata(changed)
                packet.stream, packet.pts, packet.dts = stream, packet.pts + late, packet.dts + late
                out.mux(packet)
    assert source.read_bytes().count(b"avc1") == 3  # in the brands, and twice
    with pytest.raises(media.CannotCopy, match="coding changes on the way"):
        planned(source, np.arange(40) != 2)


@pytest.mark.parametrize("keyint", [1, 2, 3])
@pytest.mark.parametrize("steps", [[33] * 25 + [100, 100, 33, 33], [33] * 22 + [500, 500] + [33] * 5, [500] * 17 + [33] * 12])
def test_no_last_frame_is_lost_where_all_are_key_frames(tmp_path: Path, keyint: int, steps: list[int]) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    pts = np.concatenate([[0], np.cumsum(steps)]).tolist()
    options = {"x264-params": f"keyint={keyint}:bframes=0"}
    draw_video(source, frames=30, pts=pts, time_base=Fraction(1, 1000), last_duration=33, options=options)
    joined(source, out, np.arange(30) != 6)
    assert times_of(out) == times_of(source)


def test_a_pause_after_a_copy_is_no_jump_of_the_clock(tmp_path: Path) -> None:
    """A slide show: what lies before the place where reading begins is not known there."""
    pts = np.concatenate([[0], np.cumsum([2000] * 30 + [40] * 20 + [30000] + [40] * 20)]).tolist()
    options = {"x264-params": "keyint=10:min-keyint=10:bframes=0:scenecut=0"}
    draw_video(tmp_path / "in.mp4", pts=pts, time_base=Fraction(1, 1000), last_duration=40, options=options)
    untouched = ~np.isin(np.arange(72), (46, 55))
    copies, ticks, shown = planned(tmp_path / "in.mp4", untouched)
    warned: list[DubWarning] = []
    assert sum(len(chunk) for chunk, _ in media.play(tmp_path / "in.mp4", ticks, shown, warned.append, without=copies.stretches))
    assert not warned


FRESH: dict[str, Any] = {"frames": FRAMES, "options": {"x264-params": "keyint=5"}}


@pytest.mark.parametrize(
    ("name", "drawn", "why"),
    [
        ("in.mp4", {"codec": "libx265", "options": {"x265-params": "keyint=5:log-level=none"}}, "the video is hevc in"),
        ("in.avi", {}, "only H.264 in .mp4, .mov and .mkv is copied"),
        ("in.ts", {"time_base": Fraction(1, 90000)}, "the video is h264 in MPEG-TS"),
        ("in.mp4", {"display": (90.0, False)}, "stored turned"),
        ("in.mp4", {"display": (0.0, True)}, "stored turned"),
        ("in.mp4", {"options": {"x264-params": "keyint=5:interlaced=1"}}, "interlaced"),
        ("in.mp4", {"pix_fmt": "yuv420p10le"}, "an unusual profile"),
        ("in.mp4", {"options": {"crf": "0"}}, "an unusual profile"),
        ("in.mp4", {"options": {"x264-params": "keyint=250"}}, "between any two key frames"),
    ],
)
def test_what_cannot_be_copied_is_said(tmp_path: Path, name: str, drawn: dict[str, Any], why: str) -> None:
    draw_video(tmp_path / name, **(FRESH | drawn))
    with pytest.raises(media.CannotCopy, match=why):
        planned(tmp_path / name, np.arange(FRAMES) != 12)


@pytest.mark.parametrize(("how", "why"), [({"encoder": "libx265"}, "not those of libx265"), ({"crf": 0}, "without loss")])
def test_what_does_not_go_with_copies_is_said(tmp_path: Path, how: dict[str, Any], why: str) -> None:
    draw_video(tmp_path / "in.mp4", **FRESH)
    with pytest.raises(media.CannotCopy, match=why):
        planned(tmp_path / "in.mp4", np.ones(FRAMES, bool), **how)


def test_times_that_had_to_be_mended_are_not_copied(tmp_path: Path) -> None:
    draw_video(tmp_path / "in.mp4", **FRESH)
    info = media.probe(tmp_path / "in.mp4")
    pts = np.arange(FRAMES) + (np.arange(FRAMES) > 20)
    shown = Timeline(np.arange(FRAMES), pts, info.time_base, FRAMES + 1)
    with pytest.raises(media.CannotCopy, match="mended"):
        media.plan_copies(info, pts, shown, np.ones(FRAMES, bool), encoder=ENCODERS["libx264"], crf=12)


def test_a_source_that_gets_shorter_meanwhile_leaves_nothing(sources: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    shutil.copy(sources["short", ".mp4"], source)
    copies, pts, shown = planned(source, np.arange(FRAMES) < 20)
    draw_video(source, frames=12)
    writer = media.Joiner(tmp_path / "out.mp4", media.probe(source), copies, shown, crf=1, preset="veryfast", encoder=ENCODERS["libx264"])
    with pytest.raises(UnreadableMedia, match="changed meanwhile"), writer:
        writer.write(next(media.read_planes(sources["short", ".mp4"])).timed(20, pts[20:36], shown.time_base))
    assert [file.name for file in tmp_path.iterdir()] == ["in.mp4"]


def test_frames_that_nobody_gives_are_an_error(sources: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    source = sources["short", ".mp4"]
    copies, pts, shown = planned(source, np.arange(FRAMES) < 20)
    writer = media.Joiner(tmp_path / "out.mp4", media.probe(source), copies, shown, crf=1, preset="veryfast", encoder=ENCODERS["libx264"])
    with pytest.raises(ValueError, match="neither copied nor given"), writer:
        writer.write(next(media.read_planes(source)).timed(21, pts[21:37], shown.time_base))
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------- whole dubs


@pytest.fixture(scope="module")
def grouped(house: Path) -> Path:
    """The portrait with a key frame every five frames."""
    draw_video(
        house / "grouped.mp4", pictures=[*frames_of(house / "clip.mp4")], fps=25, time_base=Fraction(1, 12800),
        options={"preset": "medium", "x264-params": "keyint=5:min-keyint=5:bframes=2"},
    )  # fmt: skip
    return house


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        ({"ranges": "0.32-0.48"}, 15),
        ({"ranges": "0.32-0.48", "speech": "long.wav"}, 15),
        ({"ranges": "0.32-0.48", "speech": "short.wav", "fit": "speech"}, 5),
        ({"ranges": "5-"}, 25),
        ({"speech": "half.wav", "silence": "keep"}, 5),
    ],
)
def test_a_dub_copies_what_it_leaves_alone(grouped: Path, tmp_path: Path, options: dict[str, Any], copied: int) -> None:
    chosen: dict[str, Any] = {"video": "grouped.mp4"} | options
    dubbed(grouped, tmp_path / "plain.mp4", **chosen)
    report = dubbed(grouped, tmp_path / "out.mp4", copy_outside=True, **chosen)
    assert report.copied == copied
    assert times_of(tmp_path / "out.mp4") == times_of(tmp_path / "plain.mp4")
    assert media.probe(tmp_path / "out.mp4").duration_s == media.probe(tmp_path / "plain.mp4").duration_s
    before, after = planes_of(grouped / "grouped.mp4"), planes_of(tmp_path / "out.mp4")
    plain = planes_of(tmp_path / "plain.mp4").astype(int)
    count = min(len(before), len(after))
    assert (after[:count] == before[:count]).all(axis=1).sum() == copied
    assert np.abs(after - plain).mean(axis=1).max() < 1
    assert complaints(tmp_path / "out.mp4") == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.mp4", "plain.mp4"]


def test_what_is_copied_is_not_decoded(grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def read(path: Path, **more: Any) -> Any:
        for chunk in media.read_planes(path, chunk_bytes=SIDE * SIDE * 3, **more):  # two frames
            given.extend(range(chunk.index, chunk.index + len(chunk)))
            yield chunk

    monkeypatch.setattr(playback, "read_planes", read)
    assert dubbed(grouped, tmp_path / "out.mp4", video="grouped.mp4", ranges="0.52-0.56,0.84-0.88", copy_outside=True).copied == 15
    assert given == [*range(10, 16), *range(20, 25)]


def test_a_dub_that_cannot_copy_says_why_and_is_the_same(grouped: Path, tmp_path: Path) -> None:
    for more in ({"label": "AI"}, {"side_by_side": True}):
        chosen: dict[str, Any] = {"video": "grouped.mp4", "ranges": "0.32-0.48", **more}
        dubbed(grouped, tmp_path / "plain.mp4", force=True, **chosen)
        report = dubbed(grouped, tmp_path / "out.mp4", copy_outside=True, force=True, **chosen)
        assert (report.copied, [warning.kind for warning in report.warnings]) == (0, ["not-copied"])
        assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
