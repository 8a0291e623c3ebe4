"""lipdub.media: exact times and colours there and back, every kind of file that people have, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
from drawn import burst, draw_photo, draw_sound, draw_video, picture, sine, write_wav
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.errors import EncodingFailed, MediaError, NoAudioStream, NoVideoStream, OutputRefused, UnreadableMedia, WriteFailed
from lipdub.media import (
    COMMENT,
    Writer,
    audio_duration_s,
    check_output,
    facts,
    has_sound,
    mux,
    probe,
    read_audio,
    read_frames,
    read_planes,
    to_planes,
)
from lipdub.media import program as ffmpeg_program
from lipdub.media.planes import YuvChunk
from lipdub.records import ColorTags, FrameChunk, VideoInfo

FAST = "ultrafast"
BUNDLED = imageio_ffmpeg.get_ffmpeg_exe()


def times(path: Path) -> list[Fraction]:
    return [tick * chunk.time_base for chunk in read_frames(path) for tick in chunk.pts.tolist()]


def pictures(path: Path) -> NDArray[np.int16]:
    return np.concatenate([chunk.pixels for chunk in read_frames(path)]).astype(np.int16)


def heard(path: Path, rate: int = 16000) -> NDArray[np.float32]:
    return np.concatenate(list(read_audio(path, rate)))


def rewrite(source: Path, out: Path, *, crf: int = 18, preset: str = FAST) -> VideoInfo:
    info = probe(source)
    with Writer(out, info, crf=crf, preset=preset) as writer:
        for chunk in read_planes(source):
            writer.write(chunk)
    return info


def lag(samples: NDArray[np.float32], reference: NDArray[np.float32]) -> int:
    """How many samples later `samples` is than `reference`."""
    size = 2 * max(len(samples), len(reference))
    product = np.fft.irfft(np.fft.rfft(samples, size) * np.conj(np.fft.rfft(reference, size)))
    return int((np.argmax(product) + size // 2) % size - size // 2)


def stream_facts(path: Path) -> tuple[str, int, int]:
    with av.open(str(path)) as container:
        context = container.streams.audio[0].codec_context
        return context.name, context.sample_rate, context.channels


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "lipdub-part" in path.name]


@pytest.fixture(params=["path", "bundled"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mux with the FFmpeg on PATH, and with the one that imageio-ffmpeg brings."""
    if request.param == "bundled":
        monkeypatch.setattr(facts.shutil, "which", lambda name: None)


# ------------------------------------------------------------------------------------------------------------- times


RATES = [(Fraction(24000, 1001), Fraction(1, 24000)), (Fraction(30000, 1001), Fraction(1, 30000)), (60, Fraction(1, 15360))]


@pytest.mark.parametrize(("fps", "time_base"), RATES)
def test_timestamps_survive_tick_for_tick(tmp_path: Path, fps: Fraction, time_base: Fraction) -> None:
    source, silent, out = tmp_path / "in.mp4", tmp_path / "silent.mp4", tmp_path / "out.mp4"
    draw_video(source, fps=fps, time_base=time_base, frames=40)
    write_wav(tmp_path / "speech.wav", sine(1))
    expected = [k / Fraction(fps) for k in range(40)]
    assert times(source) == expected
    info = rewrite(source, silent, preset="medium")  # with B-frames
    mux(silent, tmp_path / "speech.wav", out, duration_s=info.duration_s or Fraction(0), force=False)
    assert times(silent) == times(out) == expected
    assert probe(out).time_base == time_base
    assert info.duration_s == probe(silent).duration_s == probe(out).duration_s == 40 / Fraction(fps)


ODD_TICKS = [507, 1531, 2043, 2044, 4000, 9001, 9500, 15360, 15361, 30000, 30007, 33333, 40001]


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_variable_rate_survives(tmp_path: Path, suffix: str) -> None:
    source, silent, out = tmp_path / "in.mp4", tmp_path / f"silent{suffix}", tmp_path / f"out{suffix}"
    draw_video(source, pts=ODD_TICKS, time_base=Fraction(1, 15360), last_duration=700)
    write_wav(tmp_path / "speech.wav", sine(1))
    expected = [Fraction(tick, 15360) for tick in ODD_TICKS]
    assert times(source) == expected
    assert probe(source).duration_s == Fraction(40001 + 700, 15360)
    if suffix in (".mkv", ".webm"):  # they count in milliseconds, and two of these frames are closer than that
        expected = expected[:2] + expected[4:7] + expected[8:10] + expected[11:]
        info = probe(source)
        with Writer(silent, info, preset="veryfast", crf=14) as writer:
            for chunk in read_planes(source, chunk_bytes=1):
                if chunk.pts[0] * chunk.time_base in expected:
                    writer.write(chunk)
    else:
        rewrite(source, silent, preset="medium")
    mux(silent, tmp_path / "speech.wav", out, duration_s=Fraction(3), force=False)
    for path in (silent, out):
        if suffix in (".mkv", ".webm"):
            assert [round(t * 1000) for t in times(path)] == [round(t * 1000) for t in expected]
        else:
            assert times(path) == expected


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_crf_0_loses_nothing(tmp_path: Path, suffix: str) -> None:
    draw_video(tmp_path / "in.mp4", frames=8)
    info, out = probe(tmp_path / "in.mp4"), tmp_path / f"out{suffix}"
    with Writer(out, info, crf=0, preset="veryfast") as writer:
        for chunk in read_planes(tmp_path / "in.mp4"):
            writer.write(chunk)
    one, other = (np.concatenate([chunk.data for chunk in read_planes(path)]) for path in (tmp_path / "in.mp4", out))
    np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("last", [200, 512, 900, 3000])
@pytest.mark.parametrize("skipping", ["jitter", "frames left out"])
def test_the_last_frame_keeps_its_duration(tmp_path: Path, last: int, skipping: str) -> None:
    """With frame times as phones make them. A plain copy of an .mp4 with B-frames takes another frame's duration for it."""
    source, silent, out = tmp_path / "in.mp4", tmp_path / "silent.mp4", tmp_path / "out.mp4"
    random = np.random.default_rng(last)
    gaps = random.integers(440, 590, 40) if skipping == "jitter" else 512 * random.integers(1, 4, 40)
    ticks = np.cumsum([100, *gaps]).tolist()
    draw_video(source, pts=ticks, time_base=Fraction(1, 15360), fps=30, last_duration=last)
    info = probe(source)
    assert info.duration_s == Fraction(ticks[-1] + last, 15360)
    with Writer(silent, info, crf=14, preset="medium") as writer:
        writer.end_s = info.duration_s
        for chunk in read_planes(source):
            writer.write(chunk)
    write_wav(tmp_path / "speech.wav", sine(1))
    mux(silent, tmp_path / "speech.wav", out, duration_s=Fraction(3), force=False)
    assert times(out) == times(silent) == [Fraction(tick, 15360) for tick in ticks]
    for path in (silent, out):
        assert probe(path).duration_s == info.duration_s


def test_last_frame_may_be_told_its_end(tmp_path: Path) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    draw_video(source, frames=10)
    info = probe(source)
    with Writer(out, info, preset=FAST, crf=14) as writer:
        for chunk in read_planes(source, chunk_bytes=1):
            if chunk.index < 3:
                writer.write(chunk)
    assert probe(out).duration_s == Fraction(3, 25), "a shortened video must not show its last frame to the source's end"
    with Writer(out, info, preset=FAST, crf=14) as writer:
        writer.write(next(read_planes(source, chunk_bytes=1)))
        writer.end_s = Fraction(2)
    assert probe(out).duration_s == 2


@pytest.mark.parametrize(
    ("suffix", "codec", "first"),
    [(".avi", "mpeg4", 0), (".avi", "libx264", 0), (".h264", "libx264", 0), (".ts", "libx264", 0), (".mpg", "mpeg2video", 0)],
)
def test_formats_without_good_times(tmp_path: Path, suffix: str, codec: str, first: int) -> None:
    """H.264 in AVI lost a third of its frames: the times PyAV gives there go back and forth."""
    path = tmp_path / f"in{suffix}"
    drawn = draw_video(path, codec=codec, options={"bf": "2", "b": "4000000"})
    assert times(path) == [Fraction(k, 25) for k in range(first, first + 25)]
    assert np.abs(pictures(path) - np.stack(drawn)).mean() < 5, "pictures and times must not be mixed up"


@settings(max_examples=8, deadline=None)
@given(gaps=st.lists(st.integers(1, 4000), min_size=1, max_size=12), start=st.integers(0, 9000), spare=st.integers(1, 3))
def test_every_pts_once_in_order(tmp_path_factory: pytest.TempPathFactory, gaps: list[int], start: int, spare: int) -> None:
    folder = tmp_path_factory.mktemp("pts")
    ticks = np.cumsum([start, *gaps]).tolist()
    draw_video(folder / "in.mp4", pts=ticks, time_base=Fraction(1, 12345), last_duration=gaps[-1], size=(32, 32))
    chunks = list(read_frames(folder / "in.mp4", chunk_bytes=3 * 32 * 32 * spare))
    assert [tick for chunk in chunks for tick in chunk.pts.tolist()] == ticks
    assert [chunk.index for chunk in chunks] == list(range(0, len(ticks), spare))
    rewrite(folder / "in.mp4", folder / "out.mov", preset="veryfast")
    assert times(folder / "out.mov") == [Fraction(tick, 12345) for tick in ticks]


def test_a_broken_clock_is_mended(tmp_path: Path) -> None:
    """Joined recordings start their clock again; repeated times are left out."""
    first, second = tmp_path / "a.ts", tmp_path / "b.ts"
    draw_video(first, frames=50)
    draw_video(second, frames=10)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    got = times(joined)
    assert got == sorted(set(got))
    assert len(got) >= 58


# --------------------------------------------------------------------------------------------------- shape and chunks


def test_chunks_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    drawn = draw_video(path, frames=37)
    one = 96 * 64 * 3
    for chunk_bytes, longest in ((1, 1), (one, 1), (5 * one, 5), (6 * one - 1, 5), (2**40, 16)):
        chunks = list(read_frames(path, chunk_bytes=chunk_bytes))
        assert [len(chunk) for chunk in chunks[:-1]] == [longest] * (len(chunks) - 1)
        assert 0 < len(chunks[-1]) <= longest
        assert sum(map(len, chunks)) == 37
    assert np.abs(pictures(path) - np.stack(drawn)).mean() < 5


def test_a_chunk_is_not_written_over(tmp_path: Path) -> None:
    draw_video(tmp_path / "in.mp4", frames=20)
    reader = read_frames(tmp_path / "in.mp4", chunk_bytes=1)
    first = next(reader)
    kept = first.pixels.copy()
    assert len(list(reader)) == 19
    np.testing.assert_array_equal(first.pixels, kept)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
def test_a_half_read_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    draw_video(path, frames=40, audio_s=2)

    def open_here() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(tmp_path)) for fd in os.listdir("/proc/self/fd"))

    for reader in (read_frames(path, chunk_bytes=1), read_audio(path, 16000)):
        next(reader)
        assert open_here() == 1
        reader.close()
        assert open_here() == 0
    with pytest.raises(ZeroDivisionError):
        fail_to_write(path, tmp_path / "out.mp4", ZeroDivisionError)
    assert open_here() == 0


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_video_comes_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = tmp_path / "in.mp4"
    draw_video(path, frames=3, display=(degrees, mirrored), pixel_aspect=Fraction(4, 3), options={"crf": "1"})
    info = probe(path)
    ours = pictures(path)
    assert (info.height, info.width) == ours.shape[1:3] == ((64, 96) if degrees % 180 == 0 else (96, 64))
    assert info.sample_aspect_ratio == (Fraction(4, 3) if degrees % 180 == 0 else Fraction(3, 4))
    # the FFmpeg program turns by itself
    command = [BUNDLED, "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    theirs = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8).reshape(ours.shape)
    assert np.abs(ours - theirs).mean() < 4
    rewrite(path, tmp_path / "out.mp4")
    after = probe(tmp_path / "out.mp4")
    assert (after.width, after.height, after.rotation) == (info.width, info.height, 0)
    assert after.sample_aspect_ratio == info.sample_aspect_ratio
    assert np.abs(pictures(tmp_path / "out.mp4") - ours).mean() < 3


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_counter_clockwise(tmp_path: Path, degrees: int) -> None:
    """As the FFmpeg program writes it from ``-display_rotation``."""
    plain, path = tmp_path / "plain.mp4", tmp_path / "in.mp4"
    draw_video(plain, frames=2, options={"crf": "1"})
    subprocess.run([BUNDLED, "-v", "error", "-display_rotation", str(degrees), "-i", plain, "-c", "copy", path], check=True)
    assert probe(path).rotation == degrees
    np.testing.assert_array_equal(pictures(path)[0], np.rot90(pictures(plain)[0], degrees // 90))


@pytest.mark.parametrize("size", [(97, 64), (96, 63), (97, 63), (1, 1)])
def test_odd_sizes_keep_every_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.stack([picture(k, (98, 64))[:height, :width] for k in range(3)])
    info = VideoInfo(tmp_path / "x", width, height, Fraction(1, 25), Fraction(25), None)
    out = tmp_path / "out.mp4"
    with Writer(out, info, crf=1, preset=FAST) as writer:
        writer.write(to_planes(FrameChunk(0, pixels, np.arange(3), Fraction(1, 25)), info))
    back = pictures(out)
    assert back.shape[1:3] == (height + height % 2, width + width % 2)
    assert np.abs(back[:, :height, :width] - pixels).mean() < 6
    with av.open(str(out)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"


def test_odd_sizes_are_read(tmp_path: Path) -> None:
    drawn = draw_video(tmp_path / "in.webm", codec="libvpx", size=(97, 63), frames=5, options={"b": "2000000"})
    assert np.abs(pictures(tmp_path / "in.webm") - np.stack(drawn)).mean() < 6


def test_size_change_is_scaled_to_the_first(tmp_path: Path) -> None:
    draw_video(tmp_path / "a.h264", size=(96, 64), frames=5)
    draw_video(tmp_path / "b.h264", size=(128, 128), frames=5)
    path = tmp_path / "joined.h264"
    path.write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    assert pictures(path).shape == (10, 64, 96, 3)


def test_stills(tmp_path: Path) -> None:
    for name in ("photo %03d.png", "photo.jpg", "photo.webp"):
        drawn = draw_photo(tmp_path / name, size=(97, 63))
        info = probe(tmp_path / name)
        (chunk,) = read_frames(tmp_path / name)
        assert info.is_still
        assert info.duration_s is None
        assert (info.width, info.height, chunk.pts.tolist()) == (97, 63, [0])
        assert np.abs(chunk.pixels[0].astype(int) - drawn).mean() < 4
        with Writer(tmp_path / "out.mp4", info, crf=1, preset=FAST, time_base=Fraction(1, 25)) as writer:
            for k in range(3):
                writer.write(to_planes(FrameChunk(k, chunk.pixels, np.array([k]), Fraction(1, 25)), info))
        assert probe(tmp_path / "out.mp4").color == ColorTags(6, 1, 6, 6)
        assert np.abs(pictures(tmp_path / "out.mp4")[0, :63, :97] - chunk.pixels[0]).mean() < 3
    draw_video(tmp_path / "one.gif", codec="gif", pix_fmt="rgb8", frames=1)
    draw_video(tmp_path / "many.gif", codec="gif", pix_fmt="rgb8", frames=5, fps=10)
    assert [probe(tmp_path / f"{name}.gif").is_still for name in ("one", "many")] == [True, False]
    assert len(times(tmp_path / "many.gif")) == 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_of_phones_come_upright(tmp_path: Path, orientation: int) -> None:
    """PyAV cannot list the side data of a frame with EXIF: every photo of a phone failed with a ValueError."""
    cv2 = pytest.importorskip("cv2")
    draw_photo(tmp_path / "photo.jpg", orientation=orientation)
    expected = cv2.imread(str(tmp_path / "photo.jpg"))[:, :, ::-1]
    (chunk,) = read_frames(tmp_path / "photo.jpg")
    assert chunk.pixels[0].shape == expected.shape == (probe(tmp_path / "photo.jpg").height, probe(tmp_path / "photo.jpg").width, 3)
    assert np.abs(chunk.pixels[0].astype(int) - expected).mean() < 2


# ------------------------------------------------------------------------------------------------------------ colour


@pytest.mark.parametrize(
    ("tags", "size"),
    [
        ((1, 1, 1, 1), (96, 64)),
        ((1, 2, 1, 1), (96, 64)),
        ((6, 1, 6, 6), (96, 64)),
        ((5, 1, 5, 1), (96, 64)),
        ((6, 2, 6, 6), (96, 64)),
        ((9, 1, 9, 14), (96, 64)),
        (None, (96, 64)),
        (None, (96, 720)),
    ],
)
def test_colours_come_back(tmp_path: Path, tags: tuple[int, int, int, int] | None, size: tuple[int, int]) -> None:
    """By way of RGB. Untagged or wrongly converted colours shift by some ten levels; swscale's quick way darkens by one."""
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    y, x = np.mgrid[0 : size[1], 0 : size[0]]  # soft, so that halved chroma costs little
    soft = np.stack([128 + 90 * np.sin(x / 40), 128 + 60 * np.cos(y / 35), 120 + 80 * np.sin((x + y) / 50)], -1).astype(np.uint8)
    draw_video(source, pictures=[soft] * 3, tags=tags, options={"crf": "1"})
    expected = ColorTags(*tags) if tags else ColorTags()
    info = probe(source)
    with Writer(out, info, crf=1, preset=FAST) as writer:
        for chunk in read_frames(source):
            writer.write(to_planes(chunk, info))
    assert info.color == probe(out).color == expected
    read, back = pictures(source), pictures(out)
    assert np.abs(read - soft).mean() < 1.5
    assert np.abs(read - soft).mean(axis=(0, 1, 2)).max() < 2
    assert np.abs(back - read).mean() < 1.2
    assert abs((back - read).mean()) < 0.5, "a picture must not get darker or lighter"


# -------------------------------------------------------------------------------------------------- what cannot be read


def unreadable(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "missing.mp4", "no such file"
    (folder / "empty.mp4").touch()
    yield folder / "empty.mp4", "empty"
    yield folder, "folder"
    (folder / "text.mp4").write_text("hello, world\n" * 200)
    yield folder / "text.mp4", "cannot read"
    (folder / "text.txt").write_text("hello, world\n" * 200)
    yield folder / "text.txt", "cannot read"
    (folder / "zeros.mp4").write_bytes(bytes(100_000))
    yield folder / "zeros.mp4", "cannot read"
    draw_video(folder / "whole.mp4", frames=5)
    (folder / "cut.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:1000])
    yield folder / "cut.mp4", "cannot read"
    draw_photo(folder / "photo.png")
    (folder / "cut.png").write_bytes((folder / "photo.png").read_bytes()[:30])
    yield folder / "cut.png", "cannot read"
    (folder / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile {folder / 'whole.mp4'}\n")


def test_unreadable_inputs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path, says in unreadable(tmp_path):
        for use in (probe, has_sound if "cut.png" not in path.name else probe, lambda p: list(read_frames(p))):
            with pytest.raises(UnreadableMedia, match=says) as caught:
                use(path)
            assert "\n" not in str(caught.value)
            assert str(path) in str(caught.value)
            assert ";" in str(caught.value), "a message says what to do next"
    for path in (tmp_path / "missing.wav", tmp_path / "text.mp4"):
        with pytest.raises(UnreadableMedia):
            list(read_audio(path, 16000))
    assert capfd.readouterr() == ("", ""), "FFmpeg must not talk to the user"


def test_sound_is_no_video(tmp_path: Path) -> None:
    write_wav(tmp_path / "speech.wav", sine(0.2))
    with pytest.raises(NoVideoStream, match="no pictures"):
        probe(tmp_path / "speech.wav")
    with pytest.raises(NoVideoStream):
        next(read_frames(tmp_path / "speech.wav"))
    draw_photo(tmp_path / "cover.png")
    command = [BUNDLED, "-v", "error", "-i", tmp_path / "speech.wav", "-i", tmp_path / "cover.png", "-map", "0", "-map", "1"]
    subprocess.run([*command, "-c:v", "copy", "-disposition:v", "attached_pic", tmp_path / "cover.mp3"], check=True)
    with pytest.raises(NoVideoStream):
        probe(tmp_path / "cover.mp3")
    assert has_sound(tmp_path / "cover.mp3")
    assert abs(lag(heard(tmp_path / "cover.mp3"), sine(0.2))) <= 20


def test_damaged_files_give_what_they_have(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.mkv"
    draw_video(path, frames=60, options={"g": "10"})
    data, whole = path.read_bytes(), times(path)
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 6 // 10])
    cut = times(tmp_path / "cut.mkv")
    assert 20 <= len(cut) < 60
    assert cut == whole[: len(cut)]
    assert probe(tmp_path / "cut.mkv").width == 96
    holed = bytearray(data)
    for place in range(len(data) // 3, len(data) // 2, 700):
        holed[place : place + 40] = os.urandom(40)
    (tmp_path / "holed.mkv").write_bytes(holed)
    holed_times = times(tmp_path / "holed.mkv")
    assert holed_times[-1] == whole[-1]
    assert set(holed_times) <= set(whole)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------- sound


def test_sound_is_resampled_and_mixed_down(tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    for rate in (8000, 22050, 44100, 48000):
        loud = sine(1, rate, level=0.95)
        write_wav(path, np.stack([loud, loud], axis=1), rate)
        got = heard(path)
        assert got.dtype == np.float32
        assert len(got) == 16000
        assert np.abs(got[200:-200] - sine(1, level=0.95)[200:-200]).max() < 0.01, "two equal channels must not get louder"
    left = np.stack([sine(1), np.zeros(16000, np.float32)], axis=1)
    write_wav(path, left)
    assert np.abs(heard(path)).max() == pytest.approx(0.25, abs=0.01)
    draw_sound(tmp_path / "surround.flac", np.stack([0.9 * sine(0.5, 48000)] * 6), 48000, codec="flac")
    assert np.abs(heard(tmp_path / "surround.flac")).max() <= 0.46
    write_wav(path, 4 * sine(1), floats=True)
    assert np.abs(heard(path)).max() == 1, "samples stay in [-1, 1]"


def test_blocks_are_bounded_and_durations_exact(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", sine(15, 22050), 22050)
    blocks = list(read_audio(tmp_path / "long.wav", 16000))
    assert [len(block) for block in blocks] == [65536] * 3 + [240000 - 3 * 65536]
    assert audio_duration_s(tmp_path / "long.wav") == 15
    write_wav(tmp_path / "odd.wav", sine(0.1, 44100)[:4409], 44100)
    assert audio_duration_s(tmp_path / "odd.wav") == Fraction(4409, 44100)


@pytest.mark.parametrize(("suffix", "codec"), [(".m4a", "aac"), (".mp3", "libmp3lame"), (".flac", "flac"), (".ogg", "libopus")])
def test_encoders_lead_in_is_not_heard(tmp_path: Path, suffix: str, codec: str) -> None:
    path, drawn = tmp_path / f"speech{suffix}", burst(1.5, 48000)
    draw_sound(path, drawn, 48000, codec=codec)
    assert abs(lag(heard(path, 48000), drawn)) <= 48  # 1 ms


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_late_sound_begins_with_silence(tmp_path: Path, suffix: str) -> None:
    path, drawn = tmp_path / f"in{suffix}", burst(1.0, 48000, at_s=0.3)
    draw_video(path, audio=drawn, audio_rate=48000, audio_start_s=0.5, frames=50)
    assert times(path)[0] == 0
    got = heard(path, 48000)
    assert abs(lag(got, drawn) - 24000) <= (48 if suffix != ".mkv" else 96)
    assert float(audio_duration_s(path)) == pytest.approx(len(got) / 48000, abs=1e-4)


def test_sound_that_is_none(tmp_path: Path) -> None:
    draw_video(tmp_path / "silent.mp4", frames=5)
    assert not has_sound(tmp_path / "silent.mp4")
    assert not probe(tmp_path / "silent.mp4").has_audio
    write_wav(tmp_path / "zero.wav", np.zeros(0, np.float32))
    for bad in (np.nan, np.inf, -np.inf):
        samples = sine(0.5, 44100)
        samples[7000] = bad
        write_wav(tmp_path / f"{bad}.wav", samples, 44100, floats=True)
        with pytest.raises(NoAudioStream, match="not finite numbers"):
            heard(tmp_path / f"{bad}.wav")
    for path in (tmp_path / "silent.mp4", tmp_path / "zero.wav"):
        with pytest.raises(NoAudioStream, match="sound"):
            heard(path)
        with pytest.raises(NoAudioStream):
            audio_duration_s(path)


# --------------------------------------------------------------------------------------------------------------- mux


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A silent video of two seconds, as `Writer` makes it, with B-frames."""
    folder = tmp_path_factory.mktemp("silent")
    draw_video(folder / "in.mp4", frames=50)
    rewrite(folder / "in.mp4", folder / "silent.mp4", preset="medium")
    return folder / "silent.mp4"


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    ("suffix", "speech", "codec"),
    [
        (".mp4", "wav", "aac"),
        (".mp4", "m4a", "aac"),
        (".mp4", "mp3", "mp3float"),
        (".mov", "wav", "pcm_s16le"),
        (".mov", "flac", "aac"),
        (".mkv", "wav", "pcm_s16le"),
        (".mkv", "flac", "flac"),
        (".mkv", "m4a", "flac"),
    ],
)
@pytest.mark.parametrize("seconds", [1.5, 3.0])
def test_mux_keeps_the_sound(tmp_path: Path, silent: Path, suffix: str, speech: str, codec: str, seconds: float) -> None:
    path, out = tmp_path / f"speech.{speech}", tmp_path / f"out{suffix}"
    drawn = np.stack([burst(seconds, 44100), burst(seconds, 44100, seed=1)])
    if speech == "wav":
        write_wav(path, drawn.T, 44100)
    else:
        draw_sound(path, drawn, 44100, codec={"m4a": "aac", "mp3": "libmp3lame", "flac": "flac"}[speech], bit_rate=192000)
    mux(silent, path, out, duration_s=Fraction(2), force=False)
    if seconds > 2:
        codec = {"mp3float": "aac"}.get(codec, codec)
    assert stream_facts(out) == (codec, 44100, 2)
    got = heard(out, 44100)
    assert abs(lag(got, drawn.mean(axis=0))) <= 44, "the onset must not move by more than 1 ms"
    assert len(got) / 44100 == pytest.approx(min(seconds, 2), abs=0.06)
    if speech in ("flac", "wav") and codec != "aac":
        assert audio_duration_s(out) == min(audio_duration_s(path), Fraction(2))
    assert times(out) == times(silent)
    assert probe(out).duration_s == 2
    with av.open(str(out)) as container:
        assert {key.lower(): value for key, value in container.metadata.items()}["comment"] == COMMENT
        assert len(container.streams) == 2
    assert leftovers(tmp_path) == []


def test_mux_copies_bit_for_bit(tmp_path: Path, silent: Path) -> None:
    draw_sound(tmp_path / "speech.m4a", burst(1.5, 48000), 48000, codec="aac")
    mux(silent, tmp_path / "speech.m4a", tmp_path / "out.mp4", duration_s=Fraction(2), force=False)

    def packets(path: Path, kind: str) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]

    assert packets(tmp_path / "out.mp4", "audio") == packets(tmp_path / "speech.m4a", "audio")
    assert packets(tmp_path / "out.mp4", "video") == packets(silent, "video")


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("audio_start_s", [0.0, 0.25])
def test_mux_takes_the_sound_of_a_video(tmp_path: Path, silent: Path, suffix: str, audio_start_s: float) -> None:
    speech, out = tmp_path / "speech.mp4", tmp_path / f"out{suffix}"
    draw_video(speech, audio=burst(2.5, 48000), audio_rate=48000, audio_start_s=audio_start_s, frames=10)
    for duration_s in (Fraction(2), Fraction(4)):
        mux(silent, speech, out, duration_s=duration_s, force=True)
        assert abs(lag(heard(out, 48000), heard(speech, 48000))) <= 48
        assert times(out) == times(silent)
        assert len(heard(out)) / 16000 <= float(min(duration_s, 3)) + 0.06


def test_mux_low_rates(tmp_path: Path, silent: Path) -> None:
    write_wav(tmp_path / "speech.wav", sine(1, 16000))
    mux(silent, tmp_path / "speech.wav", tmp_path / "out.mp4", duration_s=Fraction(2), force=False)
    assert stream_facts(tmp_path / "out.mp4") == ("aac", 16000, 1)


def test_mux_errors_leave_nothing(tmp_path: Path, silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech, out = tmp_path / "speech.wav", tmp_path / "out.mp4"
    write_wav(speech, sine(1))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NoAudioStream):
        mux(silent, silent, out, duration_s=Fraction(2), force=False)
    with pytest.raises(NoVideoStream):
        mux(speech, speech, out, duration_s=Fraction(2), force=False)
    started: list[subprocess.Popen[bytes]] = []
    communicate = subprocess.Popen.communicate

    def interrupted(process: subprocess.Popen[bytes], *given: object) -> object:
        if process.args[0] == ffmpeg_program.programs_to_try()[0] and not started:  # type: ignore[index]
            started.append(process)
            raise KeyboardInterrupt
        return communicate(process)

    ffmpeg_program.programs_to_try()  # asks for the version once
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mux(silent, speech, out, duration_s=Fraction(2), force=False)
    assert started[0].poll() is not None, "the program must be gone"
    assert sorted(tmp_path.iterdir()) == before


def test_old_or_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "ffmpeg"
    old.write_text("#!/bin/sh\necho 'ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright'\n")
    old.chmod(0o755)
    monkeypatch.setattr(facts.shutil, "which", lambda name: str(old))
    assert ffmpeg_program.programs_to_try() == [BUNDLED]
    monkeypatch.setattr(facts.shutil, "which", lambda name: str(tmp_path / "gone"))
    monkeypatch.setattr(facts.imageio_ffmpeg, "get_ffmpeg_exe", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    with pytest.raises(EncodingFailed, match="install FFmpeg"):
        ffmpeg_program.programs_to_try()


# ------------------------------------------------------------------------------------------------------------ output


def test_output_is_checked(tmp_path: Path) -> None:
    video = tmp_path / "in.mp4"
    video.touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(video)
    (tmp_path / "hard.mp4").hardlink_to(video)
    (tmp_path / "there.mp4").touch()
    for out, says in (
        (tmp_path / "none" / "out.mp4", "create it"),
        (tmp_path / "folder.mp4", "give a file name"),
        (video, "is the input"),
        (tmp_path / "link.mp4", "is the input"),
        (tmp_path / "hard.mp4", "is the input"),
        (tmp_path / "." / "folder.mp4" / ".." / "in.mp4", "is the input"),
        (tmp_path / "out.avi", ".mkv"),
        (tmp_path / "out", ".mkv"),
    ):
        for force in (False, True):
            with pytest.raises(OutputRefused, match=says):
                check_output(out, inputs=[video, tmp_path / "absent.wav"], force=force)
    with pytest.raises(OutputRefused, match="--force"):
        check_output(tmp_path / "there.mp4", inputs=[video], force=False)
    check_output(tmp_path / "there.mp4", inputs=[video], force=True)
    check_output(tmp_path / "new.MOV", inputs=[video], force=False)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OutputRefused, match="permission"):
            check_output(tmp_path / "new.mp4", inputs=[video], force=False)
        tmp_path.chmod(0o700)


def fail_to_write(source: Path, out: Path, error: type[BaseException]) -> None:
    with Writer(out, probe(source), preset=FAST, crf=14) as writer:
        for chunk in read_planes(source, chunk_bytes=2**15):
            writer.write(chunk)
            if chunk.index > 10:
                assert len(leftovers(out.parent)) == 1
                raise error("stop")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, MediaError])
def test_a_failed_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    draw_video(source, frames=30)
    out.write_text("kept")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match="stop"):
        fail_to_write(source, out, error)
    assert sorted(tmp_path.iterdir()) == before
    assert out.read_text() == "kept"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3)).astype(np.uint8)
    info = VideoInfo(tmp_path / "x", 96, 64, Fraction(1, 25), Fraction(25), None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(WriteFailed, match="free space"), Writer(tmp_path / "out.mp4", info, crf=1, preset="medium") as writer:
            writer.write(to_planes(FrameChunk(0, noise, np.arange(20), Fraction(1, 25)), info))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    info = VideoInfo(tmp_path / "x", 96, 64, Fraction(1, 25), Fraction(25), None)

    def black(tick: int, time_base: Fraction, height: int = 64) -> YuvChunk:
        return to_planes(FrameChunk(0, np.zeros((1, height, 96, 3), np.uint8), np.array([tick]), time_base), info)

    with pytest.raises(EncodingFailed, match="no pictures"), Writer(tmp_path / "out.mp4", info, crf=14, preset="medium"):
        pass
    with pytest.raises(WriteFailed, match="cannot write"), Writer(tmp_path / "none" / "out.mp4", info, crf=14, preset=FAST):
        pass
    with pytest.raises(EncodingFailed, match="cannot write"), Writer(tmp_path / "out.mp4", info, crf=14, preset="sluggish"):
        pass
    for chunk, says in (
        (black(0, Fraction(1, 25), height=32), "64 x 96"),
        (black(1, Fraction(1, 30)), "no whole tick"),
        (black(0, Fraction(1, 25)), "increase"),
    ):
        with Writer(tmp_path / "fine.mp4", info, preset=FAST, crf=14) as writer:
            writer.write(black(0, Fraction(1, 25)))
            with pytest.raises(ValueError, match=says):
                writer.write(chunk)
    with Writer(tmp_path / "fine.mp4", info, time_base=Fraction(1, 75), preset=FAST, crf=14) as writer:
        writer.write(black(3, Fraction(1, 25)))
        writer.write(black(14, Fraction(1, 75)))
    assert times(tmp_path / "fine.mp4") == [Fraction(9, 75), Fraction(14, 75)]
    assert [path.name for path in tmp_path.iterdir()] == ["fine.mp4"]


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    "name",
    [
        "-x",
        "with space",
        'quo\'te "s"',
        "唇語 губы",
        "per%03dcent%",
        "co:lon",
        "a,b;c[d]=e\\f|g",
        "file:x",
        "$HOME `x`",
        "new\nline",
    ],
)
def test_strange_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    draw_video(tmp_path / "plain.mp4", frames=5)
    write_wav(tmp_path / "plain.wav", sine(0.2))
    source, speech = (tmp_path / "plain.mp4").rename(f"{name}.mp4"), (tmp_path / "plain.wav").rename(f"{name}.wav")
    silent, out = Path(f"{name} silent.mp4"), Path(f"{name} out.mp4")
    info = rewrite(source, silent)
    mux(silent, speech, out, duration_s=info.duration_s or Fraction(0), force=False)
    assert times(out) == times(source)
    assert len(heard(out)) > 0
    assert leftovers(tmp_path) == []


def test_the_encoder_is_quiet(tmp_path: Path) -> None:
    """In a process of its own, where pytest does not catch what libraries print."""
    draw_video(tmp_path / "in.mp4", frames=5)
    code = f"""
from pathlib import Path
from lipdub.media import Writer, probe, read_planes
path = Path({str(tmp_path / "in.mp4")!r})
with Writer(path.with_name("out.mp4"), probe(path), crf=14, preset="medium") as writer:
    for chunk in read_planes(path):
        writer.write(chunk)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, check=True, env={**os.environ})
    assert (done.stdout, done.stderr) == (b"", b"")


def test_ctrl_c_while_ffmpeg_is_started_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        """Ctrl-C comes when the program runs and nobody has been told yet."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            begun.append(self)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        ffmpeg_program.run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "out.mp4")
    assert begun[0].poll() is not None
