"""Several people dubbed in one pass, each by a speech of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import Run, in_this_process
from drawn import draw_video, write_wav
from faces_for_tests import portrait_frames, scaled
from fakes import write_fake_bundle
from numpy.typing import NDArray
from test_pipeline import FRAMES, RATE, SIDE, frames_of, loud, mouths, quiet

from lipdub import media
from lipdub.checkup.preview import preview
from lipdub.errors import LipdubError, NoAudioStream, NoFaceFound, OutputRefused, UnreadableMedia
from lipdub.options import DubOptions, FaceChoice, Voice, dub_options
from lipdub.pipeline import dub
from lipdub.records import DubReport
from lipdub.times import Range

LEFT, RIGHT = f"{SIDE // 2},{SIDE // 2}@0", f"{3 * SIDE // 2},{SIDE // 2}@0"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people side by side, and speeches: one sounds first, the other then."""
    folder = tmp_path_factory.mktemp("house")
    write_fake_bundle(folder / "fake")
    one = [scaled(pixels, (SIDE, SIDE)) for pixels in portrait_frames(FRAMES)]
    # Somebody else, by the colour of the face, who looks the other way.
    other = [np.ascontiguousarray(pixels[:, ::-1, ::-1] // 2 + 60) for pixels in one]
    draw_video(folder / "pair.mp4", pictures=[np.concatenate(both, axis=1) for both in zip(one, other, strict=True)], fps=25)
    write_wav(folder / "first.wav", np.concatenate([loud(0.4), quiet(0.6)]))
    write_wav(folder / "then.wav", np.concatenate([quiet(0.6), loud(0.4)]))
    write_wav(folder / "silent.wav", quiet(1.0))
    return folder


def dubbed(house: Path, out: Path, *, speech: str = "first.wav", **options: Any) -> DubReport:
    chosen = DubOptions(device="cpu", preset="ultrafast", threads=1, model=str(house / "fake"), **options)
    return dub(house / "pair.mp4", house / speech, out, chosen)


def changes(house: Path, out: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much the two mouths have changed, frame by frame."""
    before, after = frames_of(house / "pair.mp4"), frames_of(out)
    left = mouths(after[:, :, :SIDE]) - mouths(before[:, :, :SIDE])
    return left, mouths(after[:, :, : SIDE - 1 : -1]) - mouths(before[:, :, : SIDE - 1 : -1])


def test_each_mouth_follows_its_own_speech(house: Path, tmp_path: Path) -> None:
    report = dubbed(house, tmp_path / "out.mp4", face=LEFT, also=f"{RIGHT}={house / 'then.wav'}")
    left, right = changes(house, tmp_path / "out.mp4")
    assert (left[1:8] > 20).all()
    assert np.abs(left[14:]).max() < 12
    assert np.abs(right[:11]).max() < 12
    assert (right[17:24] > 20).all()
    assert (report.dubbed, report.passed_through, report.warnings) == (FRAMES, 0, ())
    # Both are heard, each in its own time.
    sound = np.abs(np.concatenate([*media.read_audio(tmp_path / "out.mp4", RATE)]))
    assert sound[: RATE // 4].mean() > 0.2
    assert sound[9 * RATE // 20 : 11 * RATE // 20].mean() < 0.02
    assert sound[3 * RATE // 4 : 19 * RATE // 20].mean() > 0.2
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_who_is_not_named_keeps_every_pixel(house: Path, tmp_path: Path) -> None:
    dubbed(house, tmp_path / "one.mp4", face=LEFT, crf=0)
    source, out = frames_of(house / "pair.mp4"), frames_of(tmp_path / "one.mp4")
    np.testing.assert_array_equal(out[:, :, SIDE + 16 :], source[:, :, SIDE + 16 :])


def test_two_in_one_pass_are_what_two_passes_give(house: Path, tmp_path: Path) -> None:
    dubbed(house, tmp_path / "both.mp4", face=LEFT, also=f"{RIGHT}={house / 'then.wav'}", crf=0)
    dubbed(house, tmp_path / "one.mp4", face=LEFT, crf=0)
    dubbed(house, tmp_path / "other.mp4", speech="then.wav", face=RIGHT, crf=0)
    both, one, other = (frames_of(tmp_path / f"{name}.mp4") for name in ("both", "one", "other"))
    np.testing.assert_array_equal(both[:, :, : SIDE - 16], one[:, :, : SIDE - 16])
    np.testing.assert_array_equal(both[:, :, SIDE + 16 :], other[:, :, SIDE + 16 :])


def test_each_is_redrawn_in_ranges_of_their_own(house: Path, tmp_path: Path) -> None:
    (tmp_path / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:00,400\nANNA: Hi\n\n2\n00:00:00,600 --> 00:00:01,000\nBEN: Hi\n")
    cues, out = tmp_path / "talk.srt", tmp_path / "out"
    out.mkdir()
    both: dict[str, Any] = {"face": LEFT, "also": f"{RIGHT}={house / 'then.wav'}", "crf": 0}
    report = dubbed(house, out / "own.mp4", ranges=f"{cues}#anna;{cues}#ben", **both)
    assert (report.dubbed, report.passed_through) == (20, 5)
    source, own = frames_of(house / "pair.mp4"), frames_of(out / "own.mp4")
    changed = (source != own).any(axis=3)
    assert np.flatnonzero(changed[:, :, :SIDE].any(axis=(1, 2))).tolist() == list(range(10))
    assert np.flatnonzero(changed[:, :, SIDE:].any(axis=(1, 2))).tolist() == list(range(15, 25))
    # Ranges alone are for everybody.
    dubbed(house, out / "all.mp4", ranges="0-0.4", **both)
    changed = (source != frames_of(out / "all.mp4")).any(axis=3)
    assert changed[1:8, :, SIDE:].any(axis=(1, 2)).all()
    assert not changed[10:].any()


@pytest.mark.parametrize(("ranges", "also"), [("0-1;2-3", None), ("0-1;2-3;4-5", "2=a.wav"), ("0-1;2-3", "2=a.wav;3=b.wav")])
def test_ranges_are_for_everybody_or_one_for_each(ranges: str, also: str | None) -> None:
    with pytest.raises(ValueError, match="ranges are for everybody, or one for each"):
        DubOptions(ranges=ranges, also=also)


def test_the_video_is_watched_once_for_all(house: Path, tmp_path: Path) -> None:
    read: list[Path] = []

    def watched(path: Path, **more: Any) -> Any:
        read.append(path)
        return read_planes(path, **more)

    read_planes = media.read_planes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "read_planes", watched)
        dubbed(house, tmp_path / "out.mp4", face=LEFT, also=f"{RIGHT}={house / 'then.wav'}")
    assert len(read) == 1


@pytest.mark.parametrize("name", ["right.png", "right small.jpg"])
def test_a_picture_cut_out_of_the_video_names_a_face(house: Path, tmp_path: Path, name: str) -> None:
    frame = frames_of(house / "pair.mp4")[12][:, SIDE:]
    shown = frame if name.endswith(".png") else np.asarray(cv2.resize(frame, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(tmp_path / name), shown[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    (tmp_path / "out").mkdir()
    dubbed(house, tmp_path / "out" / "out.mp4", face=str(tmp_path / name), crf=0)
    dubbed(house, tmp_path / "out" / "place.mp4", face=RIGHT, crf=0)
    np.testing.assert_array_equal(frames_of(tmp_path / "out" / "out.mp4"), frames_of(tmp_path / "out" / "place.mp4"))
    both = f"{tmp_path / name}={house / 'then.wav'}"
    assert dubbed(house, tmp_path / "out" / "both.mp4", face=LEFT, also=both).warnings == ()


def test_a_preview_knows_several_people_and_pictures_of_them(house: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "right.png"), frames_of(house / "pair.mp4")[12][:, SIDE:, ::-1])
    both = f"{tmp_path / 'right.png'}={house / 'then.wav'}"
    chosen = DubOptions(
        device="cpu", preset="ultrafast", threads=1, model=str(house / "fake"), face=LEFT, also=both, ranges="0-0.4;0.4-0.52"
    )
    report = preview(house / "pair.mp4", house / "first.wav", tmp_path / "part.mp4", Range(0.2, 0.6), chosen)
    assert (report.frames, report.dubbed) == (10, 8)


def test_a_picture_of_nobody_in_the_video_is_one_line(house: Path, tmp_path: Path) -> None:
    stranger = np.ascontiguousarray(255 - frames_of(house / "pair.mp4")[0][:, :SIDE] // 2)
    empty = np.full((200, 200, 3), 128, np.uint8)
    for name, pixels, says in (("empty.png", empty, "no face in"), ("stranger.png", stranger, "nobody in the video|no face in")):
        cv2.imwrite(str(tmp_path / name), pixels)
        with pytest.raises(NoFaceFound, match=says) as caught:
            dubbed(house, tmp_path / "out.mp4", face=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableMedia, match="missing"):
        dubbed(house, tmp_path / "out.mp4", face=str(tmp_path / "missing.png"))


def test_who_does_not_speak_is_said(house: Path, tmp_path: Path) -> None:
    report = dubbed(house, tmp_path / "out.mp4", face=LEFT, also=f"{RIGHT}={house / 'silent.wav'}", silence="keep")
    assert [warning.kind for warning in report.warnings] == ["face-not-dubbed"]
    assert "silent.wav" in report.warnings[0].text
    assert not report.nothing_dubbed


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"face": LEFT, "also": f"{LEFT}={{then}}"}, OutputRefused, "are one"),
        ({"also": "9={then}"}, NoFaceFound, "no face 9"),
        ({"also": "2=missing.wav"}, UnreadableMedia, "missing.wav"),
        ({"also": "2={then}", "offset_ms": -2000}, NoAudioStream, "leaves nothing"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    house: Path, tmp_path: Path, options: dict[str, Any], error: type[LipdubError], says: str
) -> None:
    options = {name: value.format(then=house / "then.wav") if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(error, match=says) as caught:
        dubbed(house, tmp_path / "out.mp4", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_output_may_be_no_speech_of_anybody(house: Path, tmp_path: Path) -> None:
    speech = tmp_path / "voice.mp4"
    speech.write_bytes((house / "then.wav").read_bytes())
    with pytest.raises(OutputRefused, match="is the input"):
        dubbed(house, speech, also=f"2={speech}", force=True)


def test_others_as_they_are_written() -> None:
    assert Voice.others("2=a.wav; 640,360@12.5 = b=c.wav") == (
        Voice(FaceChoice(2), "a.wav"), Voice(FaceChoice(None, (640, 360), 12.5), "b=c.wav"),
    )  # fmt: skip
    (also,) = [option for option in dub_options() if option.name == "also"]
    assert also.paths("2=a.wav;3=b.wav") == ("a.wav", "b.wav")
    assert also.with_paths("2=a.wav;3=b.wav", lambda path: f"/x/{path}") == "2=/x/a.wav;3=/x/b.wav"
    assert Voice.others("anna.png=a.wav") == (Voice(FaceChoice(picture="anna.png"), "a.wav"),)
    assert also.paths("anna.png=a.wav") == ("anna.png", "a.wav")
    (face,) = [option for option in dub_options() if option.name == "face"]
    assert (face.paths("anna.JPG"), face.paths("2"), face.paths(LEFT)) == (("anna.JPG",), (), ())


@pytest.mark.parametrize("text", ["", "a.wav", "2=", "=a.wav", "x=a.wav", "2=a.wav;"])
def test_what_is_nobody(text: str) -> None:
    with pytest.raises(ValueError, match=r"also is FACE=SPEECH|face is a number"):
        DubOptions(also=text)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    with in_this_process(monkeypatch, capfd) as ready:
        yield ready


def test_pairs_of_face_and_speech_on_the_command_line(run: Run, house: Path, tmp_path: Path) -> None:
    """``--face A --speech a.wav --face B --speech b.wav`` is the first speech, and the others with --also."""
    common = ["--model", str(house / "fake"), "--no-cache", "--preset", "ultrafast"]
    pairs = ["--face", LEFT, "--speech", str(house / "first.wav"), "--face", RIGHT, "--speech", str(house / "then.wav")]
    paired = run("sync", house / "pair.mp4", "-o", tmp_path / "paired.mp4", *common, *pairs)
    also = ["--face", LEFT, "--also", f"{RIGHT}={house / 'then.wav'}"]
    told = run("sync", house / "pair.mp4", house / "first.wav", "-o", tmp_path / "also.mp4", *common, *also)
    assert (paired.code, told.code) == (0, 0), paired.err + told.err
    np.testing.assert_array_equal(frames_of(tmp_path / "paired.mp4"), frames_of(tmp_path / "also.mp4"))


@pytest.mark.parametrize("words", [["--speech", "a.wav", "--speech", "b.wav"], ["--face", "1", "--face", "2", "--speech", "a.wav"]])
def test_pairs_that_are_none_are_wrong_usage(run: Run, house: Path, tmp_path: Path, words: list[str]) -> None:
    ran = run("sync", house / "pair.mp4", "-o", tmp_path / "out.mp4", *words)
    assert ran.code == 2
