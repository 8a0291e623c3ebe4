"""media/arranging.py: a speech that begins later or earlier, and what lies under it, to the sample."""

from __future__ import annotations

from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import sine, write_wav
from numpy.typing import NDArray

from lipdub import media
from lipdub.errors import UnreadableMedia
from lipdub.media.arranging import loudness_of
from lipdub.options import DubOptions, Mix

RATE = 16000


def click(at: int, count: int = RATE) -> NDArray[np.float32]:
    found = np.zeros(count, np.float32)
    found[at] = 0.8
    return found


def heard(path: Path, rate_hz: int = RATE) -> NDArray[np.float32]:
    with closing(media.read_audio(path, rate_hz)) as blocks:
        return np.concatenate(list(blocks))


def arranged(
    folder: Path, speech: NDArray[np.float32], *, offset_ms: int = 0, mix: str | None = None, until_s: Fraction = Fraction(1)
) -> Any:
    write_wav(folder / "speech.wav", speech)
    info = media.probe_sound(folder / "speech.wav")
    under = [] if mix is None else [media.Laid(Path(Mix.of(mix).path), Mix.of(mix).gain_db)]
    offset_s = Fraction(offset_ms, 1000)
    return media.arranged(folder / "speech.wav", info, folder / "out.mp4", offset_s=offset_s, under=under, until_s=until_s)


@pytest.mark.parametrize("offset_ms", [-250, -1, 1, 40, 333])
def test_an_offset_moves_every_sample(tmp_path: Path, offset_ms: int) -> None:
    with arranged(tmp_path, click(8000), offset_ms=offset_ms) as (path, info):
        found = heard(path)
        assert int(np.abs(found).argmax()) == 8000 + offset_ms * RATE // 1000
        assert np.abs(found).max() == pytest.approx(0.8, abs=1e-3)
        assert info.end_s == pytest.approx(min(1.0, 1 + offset_ms / 1000))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["speech.wav"]


@pytest.mark.parametrize("tempo", [Fraction(9, 10), Fraction(23, 20)])
def test_a_stretched_sound_keeps_its_pitch(tmp_path: Path, tempo: Fraction) -> None:
    write_wav(tmp_path / "a.wav", sine(3.0, hz=400))
    info = media.probe_sound(tmp_path / "a.wav")
    with media.stretched(tmp_path / "a.wav", info, tmp_path / "out.mp4", tempo=tempo) as (path, now):
        assert float(now.end_s) == pytest.approx(3 / tempo, abs=0.06)
        middle = heard(path)[RATE : 2 * RATE]
        assert int(np.abs(np.fft.rfft(middle)).argmax()) == pytest.approx(400, abs=4)
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


def test_nothing_to_arrange_is_the_speech_as_it_is(tmp_path: Path) -> None:
    with arranged(tmp_path, click(5)) as (path, _):
        assert path == tmp_path / "speech.wav"


@pytest.mark.parametrize(("gain", "level"), [("", 0.5), (":-6", 0.25), (":+3.5", 0.75)])
def test_what_is_laid_under_has_the_level_that_is_asked_for(tmp_path: Path, gain: str, level: float) -> None:
    write_wav(tmp_path / "music.wav", np.full(2 * RATE, 0.5, np.float32))
    with arranged(tmp_path, np.zeros(RATE, np.float32), mix=f"{tmp_path / 'music.wav'}{gain}") as (path, info):
        found = heard(path)
        assert len(found) == RATE
        assert info.end_s == 1
        np.testing.assert_allclose(found[1000:-1000], level, atol=0.01)


def test_the_mix_goes_on_when_the_speech_has_ended_and_does_not_move_with_it(tmp_path: Path) -> None:
    write_wav(tmp_path / "music.wav", click(12000, 2 * RATE))
    with arranged(tmp_path, click(2000, 4000), offset_ms=100, mix=str(tmp_path / "music.wav"), until_s=Fraction(3, 2)) as (path, _):
        found = heard(path)
    assert np.flatnonzero(np.abs(found) > 0.5).tolist() == [3600, 12000]
    assert len(found) == 24000


def test_speech_in_one_channel_over_music_in_two_at_another_rate(tmp_path: Path) -> None:
    music = np.stack([sine(1.0, 48000), np.zeros(48000, np.float32)], axis=1)
    write_wav(tmp_path / "music.wav", 0.5 * music, 48000)
    with arranged(tmp_path, click(8000), mix=str(tmp_path / "music.wav")) as (_, info):
        assert (info.sample_rate_hz, info.channels) == (48000, 2)


def test_a_mix_that_is_too_loud_is_turned_down_and_not_clipped(tmp_path: Path) -> None:
    write_wav(tmp_path / "music.wav", sine(1.0, hz=300, level=0.9))
    with arranged(tmp_path, sine(1.0, hz=300, level=0.9), mix=str(tmp_path / "music.wav")) as (path, _):
        assert 0.9 < np.abs(heard(path)).max() < 0.99


@pytest.mark.parametrize("offset_ms", [-100, 0, 250])
def test_speeches_that_are_laid_together_each_begin_in_their_time(tmp_path: Path, offset_ms: int) -> None:
    write_wav(tmp_path / "one.wav", click(4000))
    write_wav(tmp_path / "other.wav", click(10000))
    info, offset_s = media.probe_sound(tmp_path / "one.wav"), Fraction(offset_ms, 1000)
    under = [media.Laid(tmp_path / "other.wav", offset_s=offset_s)]
    with media.arranged(tmp_path / "one.wav", info, tmp_path / "out.mp4", offset_s=offset_s, under=under, until_s=Fraction(1)) as (path, _):
        loud = np.flatnonzero(np.abs(heard(path)) > 0.4)
    assert loud.tolist() == [4000 + offset_ms * RATE // 1000, 10000 + offset_ms * RATE // 1000]


def test_a_mix_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnreadableMedia, match="no such file"), arranged(tmp_path, click(5), mix="missing.wav"):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["speech.wav"]


@pytest.mark.parametrize(
    ("text", "mix"),
    [("a.wav", Mix("a.wav")), ("a.wav:-12", Mix("a.wav", -12)), (r"C:\a.wav:+1.5", Mix(r"C:\a.wav", 1.5)), ("a:b", Mix("a:b"))],
)
def test_a_mix_as_it_is_written(text: str, mix: Mix) -> None:
    assert Mix.of(text) == mix


def test_a_level_beyond_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="60 dB"):
        DubOptions(mix="a.wav:-90")


@pytest.mark.parametrize("level", [0.02, 0.3])
@pytest.mark.parametrize("wanted", [-16.0, -23.0])
def test_the_output_is_as_loud_as_was_asked_for(tmp_path: Path, level: float, wanted: float) -> None:
    write_wav(tmp_path / "speech.wav", sine(3.0, hz=997, level=level))
    info, out = media.probe_sound(tmp_path / "speech.wav"), tmp_path / "out.mp4"
    with media.arranged(tmp_path / "speech.wav", info, out, offset_s=Fraction(0), until_s=Fraction(3), lufs=wanted) as (path, now):
        assert loudness_of(path, out) == pytest.approx(wanted, abs=0.3)
        assert now.end_s == 3
        assert np.abs(heard(path)).max() <= 0.98
    assert [file.name for file in tmp_path.iterdir()] == ["speech.wav"]


def test_silence_stays_silence(tmp_path: Path) -> None:
    write_wav(tmp_path / "speech.wav", np.zeros(RATE, np.float32))
    info = media.probe_sound(tmp_path / "speech.wav")
    with media.arranged(tmp_path / "speech.wav", info, tmp_path / "o.mp4", offset_s=Fraction(0), until_s=Fraction(1), lufs=-16) as (
        path,
        _,
    ):
        assert np.abs(heard(path)).max() == 0


def test_loudness_is_that_of_the_standard(tmp_path: Path) -> None:
    """ITU-R BS.1770: a full sine of 997 Hz in one channel is -3.01 LUFS. In a folder with a name that filters would read."""
    folder = tmp_path / "a:b,c'd[x]"
    folder.mkdir()
    write_wav(tmp_path / "a.wav", sine(3.0, rate=48000, hz=997, level=10 ** (-20 / 20)), 48000)
    assert loudness_of(tmp_path / "a.wav", folder / "o.mp4") == pytest.approx(-23.01, abs=0.1)
    assert not list(folder.iterdir())
