"""How the sound of a dub goes into its file: what the muxer takes, what is coded anew, and what is never lost."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from drawn import draw_sound, draw_video, sine, write_wav
from numpy.typing import NDArray

from lipdub.errors import EncodingFailed
from lipdub.media import Writer, facts, mux, plan_sound, probe, probe_sound, read_audio, read_planes, sound_plan
from lipdub.media.sound_plan import SoundWay
from lipdub.records import DubWarning

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A silent video in H.264, and beside it the same in VP9."""
    path = tmp_path_factory.mktemp("silent") / "silent.mp4"
    draw_video(path, frames=50)
    with Writer(path.with_suffix(".webm"), probe(path), crf=20, preset="ultrafast") as writer:
        for chunk in read_planes(path):
            writer.write(chunk)
    return path


def heard(path: Path, rate: int = 16000) -> NDArray[np.float32]:
    return np.concatenate(list(read_audio(path, rate)))


def muxed(silent: Path, speech: Path, out: Path, duration_s: Fraction = Fraction(2)) -> list[DubWarning]:
    """Mux as a dub does: the plan first. What there was to warn of."""
    warnings: list[DubWarning] = []
    plan = plan_sound(speech, out, duration_s=duration_s, warn=warnings.append)
    mux(
        silent.with_suffix(".webm") if out.suffix == ".webm" else silent,
        speech,
        out,
        duration_s=duration_s,
        force=False,
        sound=plan,
        warn=warnings.append,
    )
    return warnings


def same_sound(out: Path, speech: Path, *, within_s: float = 0.06) -> None:
    """Both give the same samples to the ear: the same length, and nothing that differs."""
    got, wanted = heard(out), heard(speech)
    assert len(got) / 16000 == pytest.approx(len(wanted) / 16000, abs=within_s)
    cut = min(len(got), len(wanted))
    parts = zip(np.array_split(got[:cut], 8), np.array_split(wanted[:cut], 8), strict=True)
    for number, (one, other) in enumerate(parts):
        assert np.std(one) == pytest.approx(np.std(other), rel=0.15, abs=0.01), f"part {number} of 8"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 44100, 48000])
def test_mp3_of_any_rate_goes_into_every_container(tmp_path: Path, silent: Path, suffix: str, rate: int) -> None:
    speech, out = tmp_path / "speech.mp3", tmp_path / f"out{suffix}"
    draw_sound(speech, sine(1.5, rate), rate, codec="libmp3lame")
    assert muxed(silent, speech, out) == []
    same_sound(out, speech, within_s=0.06 + 1024 / rate)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 10, 12, 16])
@pytest.mark.parametrize("rate", [8000, 96000])
def test_wav_of_any_channels_goes_into_every_container(tmp_path: Path, silent: Path, suffix: str, channels: int, rate: int) -> None:
    speech, out = tmp_path / "speech.wav", tmp_path / f"out{suffix}"
    write_wav(speech, np.repeat(sine(1.5, rate)[:, None], channels, axis=1), rate)
    warnings = muxed(silent, speech, out)
    kept = probe_sound(out).channels
    assert [warning.kind for warning in warnings] == (["sound-mixed-down"] if kept < channels else [])
    assert kept in (channels, 2)
    assert channels > 8 or kept == channels or (suffix, channels) == (".webm", 3)  # Opus knows no 2.1
    if kept <= 2:  # what many channels sound like together depends on where a player takes them to be
        same_sound(out, speech)
    assert 0.1 < np.std(heard(out)) < 0.4


@pytest.mark.parametrize("duration_s", [Fraction(2), Fraction(1)])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("codec", ["libopus", "ac3", "pcm_mulaw", "pcm_alaw", "adpcm_ms", "mp2", "pcm_s24le", "pcm_f64le"])
def test_sound_of_any_codec_goes_into_every_container(tmp_path: Path, silent: Path, codec: str, suffix: str, duration_s: Fraction) -> None:
    speech, out = tmp_path / ("speech.wav" if codec == "adpcm_ms" else "speech.mka"), tmp_path / f"out{suffix}"
    draw_coded(speech, codec, 8000 if codec in ("pcm_mulaw", "pcm_alaw") else 48000)
    assert muxed(silent, speech, out, duration_s) == []
    assert len(heard(out)) / 16000 == pytest.approx(min(float(duration_s), len(heard(speech)) / 16000), abs=0.06)


def draw_coded(path: Path, codec: str, rate: int) -> None:
    """A tone of 1.5 s in a codec whose sample format is its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(sine(1.5, rate)[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def joined(folder: Path, name: str, kinds: list[tuple[int, int, float]], codec: str, suffix: str) -> Path:
    """Recordings of (rate, channels, level) joined as ``cat`` does, a second each."""
    whole = b""
    for number, (rate, channels, level) in enumerate(kinds):
        piece = folder / f"{number}{suffix}"
        draw_sound(piece, np.repeat(sine(1, rate, level=level)[None], channels, axis=0), rate, codec=codec)
        whole += piece.read_bytes()
    path = folder / f"{name}{suffix}"
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("codec", "kind"), [("libmp3lame", ".mp3"), ("aac", ".aac"), ("aac", ".ts")])
@pytest.mark.parametrize(
    "kinds",
    [
        [(44100, 1, 0.5), (22050, 1, 0.2)],
        [(22050, 1, 0.2), (44100, 1, 0.5)],
        [(44100, 1, 0.5), (44100, 2, 0.2)],
        [(24000, 2, 0.2), (48000, 1, 0.5), (24000, 2, 0.3)],
    ],
)
def test_speech_that_changes_its_format_is_whole(tmp_path: Path, silent: Path, codec: str, kind: str, kinds, suffix: str) -> None:
    speech, out = joined(tmp_path, "joined", kinds, codec, kind), tmp_path / f"out{suffix}"
    info = probe_sound(speech)
    assert len(info.changes_s) >= len(kinds) - 1
    assert (info.sample_rate_hz, info.channels) == (max(rate for rate, _, _ in kinds), max(channels for _, channels, _ in kinds))
    assert float(info.end_s) == pytest.approx(len(kinds), abs=0.1 * len(kinds))
    warnings = muxed(silent, speech, out, Fraction(4))
    assert [warning.kind for warning in warnings] == ["sound-changes-format"]
    same_sound(out, speech)
    for number, (_, _, level) in enumerate(kinds):  # each of them is heard, at its own level
        middle = heard(out)[round((number + 0.4) * 16000) : round((number + 0.6) * 16000)]
        assert np.std(middle) == pytest.approx(level / np.sqrt(2), rel=0.1)


def test_what_is_heard_is_what_goes_into_the_file_sample_by_sample(tmp_path: Path, silent: Path) -> None:
    kinds = [(16000, 1, 0.5), (8000, 1, 0.2), (16000, 1, 0.3)]
    speech = joined(tmp_path, "joined", kinds, "libmp3lame", ".mp3")
    muxed(silent, speech, tmp_path / "out.mkv", Fraction(4))  # FLAC
    got, wanted = heard(tmp_path / "out.mkv"), heard(speech)
    assert len(got) == len(wanted)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_nothing_is_left_beside_the_output(tmp_path: Path, silent: Path) -> None:
    speech = joined(tmp_path, "joined", [(44100, 1, 0.5), (22050, 1, 0.2)], "libmp3lame", ".mp3")
    before = set(tmp_path.iterdir())
    muxed(silent, speech, tmp_path / "out.mp4")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out.mp4"}


def test_a_way_that_fails_after_all_loses_no_pictures(tmp_path: Path, silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech, out = tmp_path / "speech.wav", tmp_path / "out.mp4"
    write_wav(speech, sine(1.5))
    plan = plan_sound(speech, out, duration_s=Fraction(2))
    plan = sound_plan.SoundPlan(plan.info, (SoundWay("no_such_codec"), *plan.ways))
    warnings: list[DubWarning] = []
    mux(silent, speech, out, duration_s=Fraction(2), force=False, sound=plan, warn=warnings.append)
    assert [warning.kind for warning in warnings] == ["sound-coded-anew"]
    assert "no_such_codec" in warnings[0].text
    same_sound(out, speech)


def test_sound_that_goes_in_no_way_is_said_before_the_first_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "speech.wav", sine(1))
    failing = tmp_path / "ffmpeg"
    failing.write_text("#!/bin/sh\ncase \"$*\" in *-version*) echo 'ffmpeg version 7.0'; exit;; esac\necho 'no muxing today' >&2; exit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(failing))
    monkeypatch.setattr(facts.imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(failing))  # which is tried next
    with pytest.raises(EncodingFailed, match="no muxing today"):
        plan_sound(tmp_path / "speech.wav", tmp_path / "out.mp4", duration_s=Fraction(2))
    assert {path.name for path in tmp_path.iterdir()} == {"speech.wav", "ffmpeg"}
