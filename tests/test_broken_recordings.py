"""Recordings whose container says what is not so: clocks that jump, files that hold less than they promise."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from drawn import draw_sound, draw_video, sine, write_wav

from lipdub.media import cut_off, play, probe, probe_sound, read_audio, read_planes
from lipdub.records import DubWarning
from lipdub.timeline import pictures_end_s, plan

Warnings = list[DubWarning]


def read(path: Path) -> tuple[list[float], float, Warnings]:
    """When each picture is shown, when the last one ends, and what there was to say: as a dub finds them."""
    warnings: Warnings = []
    chunks = list(read_planes(path, warn=warnings.append))
    pts = np.concatenate([chunk.pts for chunk in chunks])
    info, base = probe(path), chunks[0].time_base
    ends_s = pictures_end_s(pts, base, video_s=info.duration_s)
    if not warnings and (cut := cut_off(info, ends_s)) is not None:
        warnings.append(cut)
    return (pts * float(base)).tolist(), float(ends_s), warnings


def jumping(path: Path, gap_s: int, *, before: int = 25, fps: int = 25, audio: bool = False) -> None:
    """Two seconds of pictures, or so, between which the clock jumps."""
    ticks = [*range(before), *range(before + gap_s * fps, 50 + gap_s * fps)]
    options = {"muxdelay": "0"} if path.suffix == ".ts" else {}
    draw_video(path, pts=ticks, time_base=Fraction(1, fps), fps=fps, audio_s=(2.0 + gap_s) if audio else None, container_options=options)


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4", ".mov"])
@pytest.mark.parametrize("gap_s", [11, 600, 7200])
def test_a_clock_that_jumps_ahead_is_closed_and_it_is_said(tmp_path: Path, suffix: str, gap_s: int) -> None:
    path = tmp_path / f"clip{suffix}"
    jumping(path, gap_s)
    times_s, ends_s, warnings = read(path)
    assert len(times_s) == 50
    np.testing.assert_allclose(np.diff(times_s), 0.04, atol=2e-3)
    assert ends_s == pytest.approx(2, abs=0.05)
    assert [warning.kind for warning in warnings] == ["clock-jump"]
    assert warnings[0].times[0][0] == pytest.approx(1.0, abs=0.05)
    assert f"{gap_s}." in warnings[0].text


@pytest.mark.parametrize("gap_s", [1, 9])
def test_a_picture_that_stays_for_a_while_stays(tmp_path: Path, gap_s: int) -> None:
    path = tmp_path / "clip.mkv"
    jumping(path, gap_s)
    times_s, _, warnings = read(path)
    assert max(np.diff(times_s)) == pytest.approx(gap_s + 0.04, abs=0.01)
    assert warnings == []


def test_slides_are_no_jumps(tmp_path: Path) -> None:
    draw_video(tmp_path / "slides.mkv", pts=[0, 20, 40, 55, 75], time_base=Fraction(1), fps=Fraction(1, 20))
    times_s, _, warnings = read(tmp_path / "slides.mkv")
    assert times_s == [0, 20, 40, 55, 75]
    assert warnings == []


def test_a_jump_is_closed_in_both_directions_of_play(tmp_path: Path) -> None:
    path = tmp_path / "clip.ts"
    jumping(path, 7200)
    chunks = list(read_planes(path))
    pts, base = np.concatenate([chunk.pts for chunk in chunks]), chunks[0].time_base
    shown = plan(pts, base, video_s=probe(path).duration_s, speech_s=Fraction(5), fit="longest", is_still=False)
    warnings: Warnings = []
    played = [tick for chunk, _ in play(path, pts, shown, warnings.append) for tick in chunk.pts.tolist()]
    assert played == shown.pts.tolist()
    assert float(shown.duration_s) == pytest.approx(5, abs=0.05)
    assert {warning.kind for warning in warnings} == {"clock-jump"}


def joined_sound(folder: Path, gap_s: int) -> Path:
    """A second of sound, and a second that its clock says is later, in one file without pictures."""
    path = folder / "joined.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for start in (0, 16000 * (1 + gap_s)):
            frame = av.AudioFrame.from_ndarray(sine(1)[None], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("gap_s", [11, 1800, 7200])
def test_a_gap_in_the_clock_of_a_speech_is_closed(tmp_path: Path, gap_s: int) -> None:
    warnings: Warnings = []
    path = joined_sound(tmp_path, gap_s)
    assert float(probe_sound(path, warnings.append).end_s) == pytest.approx(2, abs=0.05)
    assert [warning.kind for warning in warnings] == ["clock-jump"]
    assert len(np.concatenate(list(read_audio(path, 16000)))) == pytest.approx(32000, abs=800)


def test_a_short_gap_is_silence(tmp_path: Path) -> None:
    assert float(probe_sound(joined_sound(tmp_path, 5)).end_s) == pytest.approx(7, abs=0.05)


@pytest.mark.parametrize("pictures", [True, False])
def test_a_pause_in_the_sound_of_a_video_is_one_where_its_pictures_go_on(tmp_path: Path, pictures: bool) -> None:
    path = tmp_path / "talk.mkv"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=5), container.add_stream("pcm_s16le", rate=16000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.options = {"bf": "0", "tune": "zerolatency"}
        for tick in range(5 * 17):
            if pictures or not 5 <= tick < 80:
                frame = av.VideoFrame(64, 48, "yuv420p")
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                frame.pts, frame.time_base = tick, Fraction(1, 5)
                container.mux(video.encode(frame))
            if tick in (0, 80):
                heard = av.AudioFrame.from_ndarray(sine(1)[None], "fltp", "mono")
                heard.sample_rate, heard.pts, heard.time_base = 16000, 3200 * tick, Fraction(1, 16000)
                container.mux(sound.encode(heard))
        container.mux(video.encode(None))
    assert float(probe_sound(path).end_s) == pytest.approx(17 if pictures else 2, abs=0.1)


# ---- less than was promised


@pytest.mark.parametrize("audio_s", [None, 4.0])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_download_that_broke_off_is_said(tmp_path: Path, share: float, audio_s: float | None) -> None:
    draw_video(tmp_path / "whole.mp4", frames=100, size=(320, 240), audio_s=audio_s, container_options={"movflags": "faststart"})
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: round(len(data) * share)])
    _, ends_s, warnings = read(tmp_path / "cut.mp4")
    assert ends_s < 4 - 0.3
    assert [warning.kind for warning in warnings] == ["video-cut-off"]
    assert warnings[0].times == ((pytest.approx(ends_s), pytest.approx(4.0)),)
    assert read(tmp_path / "whole.mp4")[1:] == (4.0, [])


def test_pictures_that_do_not_decode_at_the_end_are_missing_too(tmp_path: Path) -> None:
    draw_video(tmp_path / "clip.mp4", frames=100, size=(320, 240), container_options={"movflags": "faststart"})
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    (tmp_path / "clip.mp4").write_bytes(data)
    _, ends_s, warnings = read(tmp_path / "clip.mp4")
    assert ends_s < 3
    assert [warning.kind for warning in warnings] == ["video-cut-off"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".webm", ".ts", ".flv"])
@pytest.mark.parametrize("audio_s", [None, 0.5, 1.0, 3.0])
def test_a_whole_file_is_whole_whatever_its_sound_lasts(tmp_path: Path, suffix: str, audio_s: float | None) -> None:
    codec, sound = ("libvpx", "libopus") if suffix == ".webm" else ("libx264", "aac")
    options = {"deadline": "realtime"} if suffix == ".webm" else None
    draw_video(tmp_path / f"clip{suffix}", frames=25, codec=codec, audio_s=audio_s, audio_codec=sound, audio_rate=48000, options=options)
    _, ends_s, warnings = read(tmp_path / f"clip{suffix}")
    assert ends_s == pytest.approx(1, abs=0.05)
    assert warnings == []


def test_length_is_measured_where_nobody_keeps_it(tmp_path: Path) -> None:
    draw_video(tmp_path / "clip.mp4", frames=50)
    with av.open(str(tmp_path / "clip.mp4")) as source, av.open(str(tmp_path / "raw.h264"), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    _, ends_s, warnings = read(tmp_path / "raw.h264")
    assert ends_s == pytest.approx(2, abs=0.05)
    assert warnings == []


@pytest.mark.parametrize(("suffix", "codec"), [(".flac", "flac"), (".m4a", "aac"), (".mka", "pcm_s16le"), (".wav", "pcm_s16le")])
def test_a_speech_that_broke_off_is_said(tmp_path: Path, suffix: str, codec: str) -> None:
    path, warnings = tmp_path / f"speech{suffix}", []
    options = {"movflags": "faststart"} if suffix == ".m4a" else {}
    with av.open(str(path), "w", container_options=options) as container:
        stream = container.add_stream(codec, rate=16000, layout="mono")
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 64000).astype(np.float32)
        for start in range(0, len(noise), 1600):
            frame = av.AudioFrame.from_ndarray(noise[None, start : start + 1600], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    whole = path.read_bytes()
    probe_sound(path, warnings.append)
    assert warnings == []
    path.write_bytes(whole[: len(whole) // 2])
    assert float(probe_sound(path, warnings.append).end_s) < 3
    assert [warning.kind for warning in warnings] == ["speech-cut-off"]


def test_a_wav_that_was_written_into_a_pipe_is_whole(tmp_path: Path) -> None:
    warnings: Warnings = []
    for size in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00"):
        write_wav(tmp_path / "speech.wav", sine(1))
        data = (tmp_path / "speech.wav").read_bytes()
        at = data.index(b"data") + 4
        (tmp_path / "speech.wav").write_bytes(data[:4] + size + data[8:at] + size + data[at + 4 :])
        assert float(probe_sound(tmp_path / "speech.wav", warnings.append).end_s) == pytest.approx(1, abs=0.01)
    assert warnings == []


def test_an_mp3_of_variable_rate_is_not_believed_to_be_longer(tmp_path: Path) -> None:
    warnings: Warnings = []
    draw_sound(tmp_path / "speech.mp3", sine(3, 44100), 44100, codec="libmp3lame")
    probe_sound(tmp_path / "speech.mp3", warnings.append)
    assert warnings == []
