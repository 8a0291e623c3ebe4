"""checkup/preview.py: a moment of a dub shows what the whole dub would, and looks at no more than it needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from commands import Run, in_this_process
from drawn import draw_video, write_wav
from faces_for_tests import PHOTO, portrait_frames, scaled
from fakes import write_fake_bundle
from test_pipeline import RATE, dubbed, frames_of, loud, mouths, quiet

from lipdub import media
from lipdub.checkup.preview import AROUND_S, _stretch, preview
from lipdub.errors import LipdubError, OutputRefused
from lipdub.options import DubOptions, FaceChoice, Voice
from lipdub.records import DubWarning
from lipdub.speech.lip_curves import read_curves
from lipdub.times import Range

SECONDS, KEY_FRAMES = 16, 20


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 16 s with a key frame every 0.8 s, speech that sounds every other 0.6 s, and the fake bundle."""
    folder = tmp_path_factory.mktemp("film")
    pictures = [scaled(pixels, (256, 256)) for pixels in portrait_frames(25)]
    way = (pictures + pictures[::-1]) * (SECONDS // 2)
    draw_video(folder / "clip.mkv", pictures=way, fps=25, options={"g": str(KEY_FRAMES), "crf": "18", "sc_threshold": "0"})
    write_wav(folder / "speech.wav", np.concatenate([loud(0.6), quiet(0.6)] * 13 + [loud(0.4)]))
    write_wav(folder / "short.wav", np.concatenate([loud(0.6), quiet(0.6)] * 11 + [loud(0.4)]))
    write_fake_bundle(folder / "fake")
    return folder


def options(film: Path, **more: object) -> DubOptions:
    return DubOptions(device="cpu", preset="ultrafast", crf=4, threads=1, model=str(film / "fake"), **more)  # type: ignore[arg-type]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever lies in the folder for temporary files is gone at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert [*folder.iterdir()] == []


# ------------------------------------------------------------------------------------------------------------- excerpts


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("at_s", [0.0, 0.79, 0.8, 7.3])
def test_an_excerpt_begins_with_the_key_frame_before_a_time(film: Path, tmp_path: Path, suffix: str, at_s: float) -> None:
    source = film / "clip.mkv"
    if suffix == ".mp4":
        source = tmp_path / "clip.mp4"
        draw_video(
            source, frames=250, time_base=Fraction(1, 12800),
            options={"g": str(KEY_FRAMES), "sc_threshold": "0", "bf": "3", "b_strategy": "0"},
        )  # fmt: skip
    start_s = media.key_frame_s(source, at_s)
    assert start_s == Fraction(4, 5) * int(Fraction(str(at_s)) / Fraction(4, 5))
    (tmp_path / "out").mkdir()
    short = media.excerpt(source, tmp_path / "out", seconds=2, start_s=start_s)
    first = int(start_s * 25)
    np.testing.assert_array_equal(frames_of(short)[:40], frames_of(source)[first : first + 40])
    with closing(media.read_frames(short)) as chunks:
        assert next(chunks).times_s[0] == pytest.approx(0, abs=1e-6)


def test_a_sound_is_cut_to_the_sample(tmp_path: Path) -> None:
    samples = np.zeros(5 * RATE, np.float32)
    samples[3 * RATE] = 0.8
    write_wav(tmp_path / "a.wav", samples)
    media.sound_excerpt(tmp_path / "a.wav", tmp_path / "b.wav", start_s=Fraction(5, 4), seconds=3)
    with closing(media.read_audio(tmp_path / "b.wav", RATE)) as blocks:
        found = np.concatenate([*blocks])
    assert len(found) == 3 * RATE
    assert int(np.abs(found).argmax()) == round(1.75 * RATE)


# -------------------------------------------------------------------------------------------------------------- preview


@pytest.mark.parametrize(
    ("speech", "fit", "offset_ms"),
    [("speech.wav", "video", 0), ("speech.wav", "longest", 470), ("speech.wav", "speech", -330), ("short.wav", "stretch", 470)],
)
def test_a_range_is_what_the_whole_dub_shows_there(
    film: Path, tmp_path: Path, temporary: None, speech: str, fit: str, offset_ms: int
) -> None:
    span = Range(9.0, 10.6)
    dubbed(film, tmp_path / "whole.mp4", video="clip.mkv", speech=speech, fit=fit, offset_ms=offset_ms)
    report = preview(film / "clip.mkv", film / speech, tmp_path / "part.mp4", span, options(film, fit=fit, offset_ms=offset_ms))
    whole, part = frames_of(tmp_path / "whole.mp4")[225:265], frames_of(tmp_path / "part.mp4")
    assert report.frames == report.dubbed == len(part) == 40
    assert report.output == str(tmp_path / "part.mp4")
    # Pauses are judged by less sound, so an edge may differ a little; a shift by one frame would give 0.9.
    assert np.corrcoef(mouths(whole), mouths(part))[0, 1] > 0.99
    assert np.median(np.abs(mouths(whole) - mouths(part))) < 1.5
    assert np.ptp(mouths(part)) > 25  # it speaks and pauses
    with closing(media.read_audio(tmp_path / "whole.mp4", RATE)) as one, closing(media.read_audio(tmp_path / "part.mp4", RATE)) as other:
        heard, cut = np.concatenate([*one])[9 * RATE : 9 * RATE + 25000], np.concatenate([*other])[:25000]
    loudness = [np.abs(sound[: len(sound) // 400 * 400]).reshape(-1, 400).mean(axis=1) for sound in (heard, cut)]
    assert np.corrcoef(*loudness)[0, 1] > 0.95


@pytest.mark.parametrize(("fit", "offset_ms"), [("longest", 0), ("longest", 470), ("stretch", -330)])
def test_curves_are_those_of_the_whole_speech(film: Path, tmp_path: Path, fit: str, offset_ms: int) -> None:
    times_s = np.arange(0, 14, 0.1)
    values = np.random.default_rng(0).random(len(times_s))
    (tmp_path / "lips.csv").write_text("time_s,jawOpen\n" + "".join(f"{t},{v}\n" for t, v in zip(times_s, values, strict=True)))
    chosen = options(film, fit=fit, offset_ms=offset_ms, lips=str(tmp_path / "lips.csv"))
    cut = _stretch(film / "clip.mkv", film / "short.wav", tmp_path, Range(9.0, 10.6), chosen, lambda _: None)
    shown_s = np.arange(0, 1.6, 0.04)
    tempo = 13.6 / (SECONDS + 0.33) if fit == "stretch" else 1  # slower by 15 % at most
    wanted = read_curves(tmp_path / "lips.csv").at((9 + shown_s - offset_ms / 1000) * max(tempo, 1 / 1.15))
    assert cut.options.lips is not None
    found = read_curves(Path(cut.options.lips)).at(cut.span.start_s + shown_s - cut.options.offset_ms / 1000)
    np.testing.assert_allclose(found, wanted, atol=0.01)


def test_a_place_names_the_same_face_in_the_excerpt(film: Path, tmp_path: Path) -> None:
    video, speech, span = film / "clip.mkv", film / "speech.wav", Range(9.0, 10.6)
    warned: list[DubWarning] = []
    chosen = options(film, face="128,120@8.5", also=f"anna.png={speech};2={speech}")
    cut = _stretch(video, speech, tmp_path, span, chosen, warned.append)
    assert cut.options.face is not None
    face, others = FaceChoice.of(cut.options.face), Voice.others(cut.options.also or "")
    assert face.place_px == (128, 120)
    assert face.at_s - cut.span.start_s == pytest.approx(8.5 - span.start_s)
    assert [other.face for other in others] == [FaceChoice(picture="anna.png"), FaceChoice(2)]
    assert len({cut.speech, *(Path(other.speech) for other in others)}) == 3
    assert [warning.kind for warning in warned] == ["faces-near"]
    with pytest.raises(OutputRefused, match=r"a preview looks at 4\.0 to 15\.6 s alone"):
        _stretch(video, speech, tmp_path, span, options(film, face="128,120@2"), warned.append)


def test_after_the_speech_the_mouth_rests(film: Path, tmp_path: Path, temporary: None) -> None:
    write_wav(film / "second.wav", loud(1.0))
    report = preview(
        film / "clip.mkv", film / "second.wav", tmp_path / "part.mp4", Range(9.0, 9.6), options(film, mix=str(film / "second.wav"))
    )
    assert (report.frames, report.silent_frames) == (15, 15)


def test_a_picture_shows_the_dub_alone(film: Path, tmp_path: Path, temporary: None) -> None:
    """What is for a file of video changes nothing in it."""
    for name, more in (("a.png", {}), ("b.png", {"side_by_side": True, "encoder": "libvpx-vp9"})):
        preview(film / "clip.mkv", film / "speech.wav", tmp_path / name, 3.2, options(film, **more))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(OutputRefused, match="input"):
        preview(film / "clip.mkv", film / "speech.wav", tmp_path / "a.png", 3.2, options(film, face=str(tmp_path / "a.png"), force=True))


def test_ranges_are_those_of_the_whole_video(film: Path, tmp_path: Path, temporary: None) -> None:
    span = Range(9.0, 10.6)
    for ranges, inside in (("9.6-10.2", slice(15, 30)), ("1-2", slice(0, 0)), ("0-9.4,10.4-", None)):
        chosen = options(film, ranges=ranges, force=True, copy_outside=True)
        report = preview(film / "clip.mkv", film / "speech.wav", tmp_path / "part.mp4", span, chosen)
        assert not any(warning.kind == "not-copied" for warning in report.warnings)  # an excerpt is another video
        touched = np.ones(40, bool)
        for one in report.spans:
            touched[one.first : one.end] = False
        wanted = np.zeros(40, bool)
        if inside is None:
            wanted[:10] = wanted[35:] = True
        else:
            wanted[inside] = True
        np.testing.assert_array_equal(touched, wanted)


def test_only_the_seconds_around_are_looked_at(film: Path, tmp_path: Path) -> None:
    looked: list[int] = []
    preview(
        film / "clip.mkv", film / "speech.wav", tmp_path / "part.mp4", Range(14.0, 14.5), options(film),
        on_progress=lambda stage, done, total: looked.append(done) if stage == "finding faces" else None,
    )  # fmt: skip
    assert max(looked) <= (2 * AROUND_S + 0.5 + KEY_FRAMES / 25) * 25 + 2


@pytest.mark.parametrize("video", ["clip.mkv", str(PHOTO)])
def test_a_moment_is_a_picture(film: Path, tmp_path: Path, temporary: None, video: str) -> None:
    report = preview(film / video, film / "speech.wav", tmp_path / "moment.png", 3.2, options(film))
    assert report.frames == report.dubbed > 10
    (picture,) = [chunk.pixels[0] for chunk in media.read_frames(tmp_path / "moment.png")]
    height, width = picture.shape[:2]
    assert width == 990
    assert np.abs(picture[:480, :480].astype(int) - picture[:480, 492:972]).max() > 40  # the mouth
    assert np.abs(picture[30:150, :480].astype(int) - picture[30:150, 492:972]).mean() < 3  # not the hair
    assert picture[height - 200 : height - 50].std() > 20


@pytest.mark.parametrize(
    ("moment", "out", "error"),
    [
        (3.2, "a.mp4", OutputRefused),
        (Range(3, 4), "a.png", OutputRefused),
        (99.0, "a.png", OutputRefused),
        (Range(16.5, 17), "a.mp4", OutputRefused),
        (14.5, "a.png", OutputRefused),  # the output ends with the speech
    ],
)
def test_what_cannot_be_shown_is_one_line(
    film: Path, tmp_path: Path, temporary: None, moment: Range | float, out: str, error: type[LipdubError]
) -> None:
    with pytest.raises(error) as caught:
        preview(film / "clip.mkv", film / "short.wav", tmp_path / out, moment, options(film, fit="speech"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / out).exists()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    with in_this_process(monkeypatch, capfd) as lipdub:
        yield lipdub


@pytest.mark.parametrize(("time", "code"), [("3-", 2), ("x", 2), ("3-4,6-7", 2), ("0:03", 0)])
def test_the_command(film: Path, tmp_path: Path, run: Run, time: str, code: int) -> None:
    words = ["--model", film / "fake", "--device", "cpu", "-q"]
    assert run("preview", film / "clip.mkv", film / "speech.wav", time, "-o", tmp_path / "a.png", *words).code == code
    assert (tmp_path / "a.png").exists() == (code == 0)
