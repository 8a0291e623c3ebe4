"""pipeline.py: whole dubs with the fake bundle, followed from the sound into the pixels; and what an interruption leaves: nothing."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from drawn import draw_video, sine, write_wav
from faces_for_tests import LOWER_LIP, PHOTO, UPPER_LIP, ScriptedDetector, face_at, portrait_face, portrait_frames, scaled
from fakes import rewrite_spec, write_fake_bundle
from numpy.typing import NDArray

from lipdub import media
from lipdub import render as rendering
from lipdub.bundles import bundle
from lipdub.errors import CurvesInvalid, LipdubError, NoAudioStream, NoFaceFound, OutputRefused, UnreadableMedia
from lipdub.faces import crop
from lipdub.faces.cache import AnalysisCache
from lipdub.faces.track import WHY
from lipdub.media import playback
from lipdub.media.planes import YuvChunk, YuvColor
from lipdub.model import open_model
from lipdub.options import DubOptions, dub_options
from lipdub.pipeline import dub
from lipdub.records import DubReport
from lipdub.references.shapes import inner_opening
from lipdub.stages import Clock

FRAMES, SIDE, RATE = 25, 256, 16000
MARK = 8  # px: frame k has a white square at column k * MARK of the dark strip on top


def marked(pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    pixels = pixels.copy()
    pixels[: 2 * MARK] = 20
    pixels[: 2 * MARK, index * MARK : (index + 1) * MARK] = 240
    return pixels


def index_of(pixels: NDArray[np.uint8]) -> int:
    """Which frame of the clip this is, read off its mark."""
    strip = pixels[2 : 2 * MARK - 2, :, 1].mean(axis=0)
    return int(strip[: FRAMES * MARK].reshape(FRAMES, MARK).mean(axis=1).argmax())


def frames_of(path: Path) -> NDArray[np.uint8]:
    return np.concatenate([chunk.pixels for chunk in media.read_frames(path)])


def times_of(path: Path) -> list[Fraction]:
    return [tick * chunk.time_base for chunk in media.read_frames(path) for tick in chunk.pts.tolist()]


def mouths(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean brightness of a patch on the mouth, one per frame."""
    middle = portrait_face().landmarks[[UPPER_LIP, LOWER_LIP], :2].mean(axis=0) * SIDE / 512
    x, y = middle.astype(int)
    return pixels[:, y - 4 : y + 5, x - 6 : x + 7].mean(axis=(1, 2, 3))


def loud(seconds: float, rate: int = RATE) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(-0.9, 0.9, round(seconds * rate)).astype(np.float32)


def quiet(seconds: float, rate: int = RATE) -> NDArray[np.float32]:
    return np.zeros(round(seconds * rate), np.float32)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake bundle, one second of the portrait, and speech of several lengths."""
    folder = tmp_path_factory.mktemp("house")
    write_fake_bundle(folder / "fake")
    write_fake_bundle(folder / "bright")
    rewrite_spec(folder / "bright", rest_feature=(1.0, 0.0, 0.0, 0.0))
    pictures = [marked(scaled(pixels, (SIDE, SIDE)), k) for k, pixels in enumerate(portrait_frames(FRAMES))]
    draw_video(folder / "clip.mp4", pictures=pictures, fps=25, time_base=Fraction(1, 12800))
    for name, samples in {"second": loud(1.0), "long": loud(1.62), "short": loud(0.5), "silent": quiet(1.0)}.items():
        write_wav(folder / f"{name}.wav", samples)
    write_wav(folder / "half.wav", np.concatenate([loud(0.52), quiet(0.48)]))
    return folder


def dubbed(
    house: Path, out: Path, *, video: str = "clip.mp4", speech: str = "second.wav", model: str = "fake", **options: Any
) -> DubReport:
    chosen: dict[str, Any] = {"device": "cpu", "preset": "ultrafast", "crf": 4, "threads": 1, "model": str(house / model)}
    chosen |= {name: options.pop(name) for name in [*options] if name in {option.name for option in dub_options()}}
    return dub(house / video, house / speech, out, DubOptions(**chosen), **options)


@pytest.fixture
def clip(house: Path) -> NDArray[np.uint8]:
    return frames_of(house / "clip.mp4")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------------------------------------- length and times


@pytest.mark.parametrize(
    ("speech", "fit", "frames", "seconds"),
    [
        ("second.wav", "longest", 25, Fraction(1)),
        ("long.wav", "longest", 41, Fraction(162, 100)),
        ("long.wav", "video", 25, Fraction(1)),
        ("long.wav", "speech", 41, Fraction(162, 100)),
        ("short.wav", "longest", 25, Fraction(1)),
        ("short.wav", "video", 25, Fraction(1)),
        ("short.wav", "speech", 13, Fraction(1, 2)),
    ],
)
def test_frames_times_and_length_follow_the_fit_rule(
    house: Path, tmp_path: Path, speech: str, fit: Any, frames: int, seconds: Fraction
) -> None:
    out = tmp_path / "out.mp4"
    report = dubbed(house, out, speech=speech, fit=fit)
    assert report.frames == report.dubbed == frames
    assert times_of(out) == [Fraction(k, 25) for k in range(frames)]
    info = media.probe(out)
    assert info.duration_s == seconds
    assert float(seconds) == report.output_s
    # AAC comes in whole packets of 1024 samples.
    assert abs(media.audio_duration_s(out) - min(seconds, media.audio_duration_s(house / speech))) <= Fraction(1024, RATE)
    back_and_forth = [*range(25), *range(23, -1, -1)]
    assert [index_of(pixels) for pixels in frames_of(out)] == back_and_forth[:frames]


def test_variable_rate_video_keeps_its_ticks(house: Path, tmp_path: Path) -> None:
    pts = [0, 20, 41, 59, 100, 121, 139, 160, 220, 241, 260, 281, 300]
    draw_video(tmp_path / "vfr.mp4", pictures=list(frames_of(house / "clip.mp4")[: len(pts)]), pts=pts, time_base=Fraction(1, 600))
    source = times_of(tmp_path / "vfr.mp4")
    out = tmp_path / "out.mp4"
    dubbed(house, out, video=str(tmp_path / "vfr.mp4"))
    assert len(source) == len(pts)
    times = times_of(out)
    assert times[: len(source)] == source
    # Beyond the end the same distances, backwards.
    extra = np.diff(np.array(times[len(source) :], float))
    np.testing.assert_allclose(extra, np.diff(np.array(source, float))[::-1][1 : 1 + len(extra)], atol=1e-6)
    assert media.probe(out).duration_s == 1


def test_a_photo_speaks_as_long_as_the_speech_lasts(house: Path, tmp_path: Path) -> None:
    report = dubbed(house, tmp_path / "out.mp4", video=str(PHOTO), speech="half.wav")
    pixels = frames_of(tmp_path / "out.mp4")
    assert report.frames == report.dubbed == len(pixels) == 25
    assert pixels.shape[1:3] == (512, 512)
    assert times_of(tmp_path / "out.mp4") == [Fraction(k, 25) for k in range(25)]
    # Only the mouth is alive.
    assert np.abs(pixels[3, :200].astype(int) - pixels[20, :200]).mean() < 1
    assert np.abs(pixels[3].astype(int) - pixels[20]).max() > 40


@pytest.mark.parametrize(("full_size", "side"), [(False, 1920), (True, 2048)])
def test_a_large_photo_is_scaled_unless_its_size_is_asked_for(house: Path, tmp_path: Path, full_size: bool, side: int) -> None:
    large = scaled(portrait_frames(1)[0], (2048, 2048))
    (tmp_path / "photo.jpg").write_bytes(media.encode_picture(large, ".jpg"))
    write_wav(tmp_path / "speech.wav", loud(0.16))
    video, speech = str(tmp_path / "photo.jpg"), str(tmp_path / "speech.wav")
    report = dubbed(house, tmp_path / "out.mp4", video=video, speech=speech, full_size=full_size)
    pixels = frames_of(tmp_path / "out.mp4")
    assert (report.video, report.dubbed) == (video, 4)
    assert ("photo-scaled" in {warning.kind for warning in report.warnings}) != full_size
    assert pixels.shape == (4, side, side, 3)
    assert np.abs(pixels[0, :600].astype(int) - scaled(large, (side, side))[:600]).mean() < 3


def test_transparent_parts_are_said(house: Path, tmp_path: Path) -> None:
    from PIL import Image

    cut_out = Image.fromarray(portrait_frames(1)[0])
    cut_out.putalpha(Image.new("L", cut_out.size, 255))
    cut_out.paste((250, 0, 120, 0), (0, 0, 60, 60))
    cut_out.save(tmp_path / "photo.webp", lossless=True, exact=True)
    report = dubbed(house, tmp_path / "out.mp4", video=str(tmp_path / "photo.webp"), speech="half.wav")
    assert "transparency" in {warning.kind for warning in report.warnings}
    assert frames_of(tmp_path / "out.mp4")[0, 8:50, 8:50].min() > 245


def test_speech_may_be_a_video(house: Path, tmp_path: Path) -> None:
    draw_video(tmp_path / "talk.mp4", frames=20, audio=loud(0.8))
    report = dubbed(house, tmp_path / "out.mp4", speech=str(tmp_path / "talk.mp4"), fit="speech")
    assert report.speech_s == pytest.approx(0.8, abs=0.05)
    assert report.frames == pytest.approx(20, abs=1)
    assert mouths(frames_of(tmp_path / "out.mp4"))[5] > mouths(frames_of(house / "clip.mp4"))[5] + 20


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".webm"])
def test_other_containers(house: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    assert dubbed(house, out).frames == 25
    assert len(frames_of(out)) == 25
    assert media.has_sound(out)


# ------------------------------------------------------------------------------------------------------------ pixels


def test_the_mouth_follows_the_sound(house: Path, tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    dubbed(house, tmp_path / "out.mp4", speech="half.wav")
    change = mouths(frames_of(tmp_path / "out.mp4")) - mouths(clip)
    assert (change[1:11] > 25).all()
    assert np.abs(change[16:]).max() < 12
    # Half of the sound has gone from a window that is centred on the end of the sound.
    assert 11 <= int(np.argmax(change < change[:11].mean() / 2)) <= 16


def test_nothing_outside_the_mask_changes(house: Path, tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    dubbed(house, tmp_path / "out.mp4", crf=0)
    after = frames_of(tmp_path / "out.mp4")
    face = portrait_face()
    similarity = crop.fit_similarity(face.landmarks * SIDE / 512)
    # The widest that the mask can reach in any frame: the drawn box of the crop, and a little for the motion of the head.
    to_frame = crop.unit_to_frame(similarity)[0]
    box = np.array([[4 / 32, 16 / 32], [28 / 32, 1]]) @ to_frame[:, :2].T + to_frame[:, 2]
    outside = np.ones((SIDE, SIDE), bool)
    outside[int(box[0, 1]) - 6 : int(box[1, 1]) + 7, int(box[0, 0]) - 6 : int(box[1, 0]) + 7] = False
    assert outside.mean() > 0.5
    # Planes that nobody draws into reach the encoder as they are, and crf 0 loses nothing.
    assert (after[:, outside] == clip[:, outside]).all()
    assert np.abs(after[:, ~outside].astype(int) - clip[:, ~outside]).max() > 60


def test_ranges_leave_all_other_frames_as_they_are(house: Path, tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    (tmp_path / "cues.srt").write_text("1\n00:00:00,320 --> 00:00:00,680\nHi\n")
    for ranges in ("0.32-0.68", str(tmp_path / "cues.srt")):
        report = dubbed(house, tmp_path / "out.mp4", crf=0, ranges=ranges, strict=True, force=True)
        after = frames_of(tmp_path / "out.mp4")
        changed = (after != clip).any(axis=(1, 2, 3))
        assert np.flatnonzero(changed).tolist() == list(range(8, 17))
        change = mouths(after) - mouths(clip)
        assert (np.diff(change[7:12]) > 3).all()  # it comes over four frames
        assert (report.dubbed, report.passed_through, report.silent_frames) == (9, 16, 0)
        assert [(span.first, span.end, span.why) for span in report.spans] == [
            (0, 8, "outside of the ranges"), (17, 25, "outside of the ranges"),
        ]  # fmt: skip


def test_ranges_beyond_the_video_dub_nothing_and_it_is_said(house: Path, tmp_path: Path) -> None:
    report = dubbed(house, tmp_path / "out.mp4", ranges="1:00-")
    assert report.nothing_dubbed
    assert "outside of the ranges" in report.warnings[-1].text


def test_the_strength_scales_what_the_sound_does_to_the_mouth(house: Path, tmp_path: Path) -> None:
    change = {}
    for strength in (0.0, 0.5, 1.0, 1.5):
        dubbed(house, tmp_path / "out.mp4", strength=strength, force=True)
        change[strength] = mouths(frames_of(tmp_path / "out.mp4"))
    dubbed(house, tmp_path / "out.mp4", speech="silent.wav", silence="close", force=True)
    rest = mouths(frames_of(tmp_path / "out.mp4"))
    np.testing.assert_allclose(change[0.0], rest, atol=2)
    full = change[1.0] - rest
    assert (full > 25).all()
    half = change[0.5] - rest
    assert (half > 0.25 * full).all()
    assert (half < 0.9 * full).all()
    assert (change[1.5][:2] > change[1.0][:2] + 5).all()  # later it is as white as can be


def test_a_style_that_shows_nobody_is_one_line_and_leaves_nothing(house: Path, tmp_path: Path) -> None:
    draw_video(house / "bars.mp4", size=(256, 256), frames=5)
    with pytest.raises(NoFaceFound, match="no face in") as caught:
        dubbed(house, tmp_path / "out.mp4", style=str(house / "bars.mp4"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    report = dubbed(house, tmp_path / "out.mp4", style=str(house / "clip.mp4"))
    assert report.dubbed == FRAMES


@pytest.mark.parametrize(("offset_ms", "sounding"), [(320, slice(10, 20)), (-280, slice(1, 5))])
def test_an_offset_moves_lips_and_sound(house: Path, tmp_path: Path, clip: NDArray[np.uint8], offset_ms: int, sounding: slice) -> None:
    report = dubbed(house, tmp_path / "out.mp4", speech="half.wav", offset_ms=offset_ms, fit="video")
    change = mouths(frames_of(tmp_path / "out.mp4")) - mouths(clip)
    assert (change[sounding] > 25).all()
    assert np.abs(np.delete(change, slice(max(0, sounding.start - 3), sounding.stop + 4))).max() < 12
    (sound,) = ([*media.read_audio(tmp_path / "out.mp4", RATE)],)
    loudness = np.abs(np.concatenate(sound)[: RATE * 24 // 25]).reshape(24, -1).mean(axis=1)
    begins, ends = max(0.0, offset_ms / 1000) * 25, (0.52 + offset_ms / 1000) * 25
    assert (loudness[int(begins) + 1 : int(ends)] > 0.3).all()
    assert np.delete(loudness, slice(max(0, int(begins) - 1), int(ends) + 2)).max() < 0.05
    assert report.speech_s == pytest.approx(1 + offset_ms / 1000)


def test_an_offset_that_leaves_nothing_of_the_speech_is_one_line(house: Path, tmp_path: Path) -> None:
    with pytest.raises(NoAudioStream, match="--offset-ms -1000 leaves nothing"):
        dubbed(house, tmp_path / "out.mp4", offset_ms=-1000)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("seconds", "lasts", "fits"), [(1.1, 1.0, True), (0.92, 1.0, True), (1.62, 1.62 / 1.15, False), (0.5, 1.0, False)])
def test_a_stretched_speech_lasts_as_long_as_the_picture(
    house: Path, tmp_path: Path, clip: NDArray[np.uint8], seconds: float, lasts: float, fits: bool
) -> None:
    write_wav(tmp_path / "speech.wav", loud(seconds))
    (tmp_path / "out").mkdir()
    report = dubbed(house, tmp_path / "out" / "out.mp4", speech=str(tmp_path / "speech.wav"), fit="stretch")
    assert report.output_s == pytest.approx(lasts, abs=0.045)
    assert ("speech-stretched" not in {warning.kind for warning in report.warnings}) == fits
    change = mouths(frames_of(tmp_path / "out" / "out.mp4"))[:25] - mouths(clip)
    if fits:
        assert (change[1:-1] > 25).all()
        assert report.speech_s == pytest.approx(1.0, abs=0.04)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["out.mp4"]


def test_a_driver_moves_the_lips_and_the_speech_is_heard(house: Path, tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    dubbed(house, tmp_path / "out.mp4", speech="silent.wav", driver=str(house / "half.wav"))
    change = mouths(frames_of(tmp_path / "out.mp4")) - mouths(clip)
    assert (change[1:11] > 25).all()
    assert np.abs(change[16:]).max() < 12
    assert np.abs(np.concatenate([*media.read_audio(tmp_path / "out.mp4", RATE)])).max() < 0.01


@pytest.mark.parametrize(("fit", "speech", "offset_ms", "opened"), [("video", 1.0, 200, (13, 19)), ("stretch", 0.92, 0, (9, 15))])
def test_curves_move_the_lips_at_the_times_of_the_speech(
    house: Path, tmp_path: Path, fit: str, speech: float, offset_ms: int, opened: tuple[int, int]
) -> None:
    """Also where it begins later, or is spoken slower; all other frames are as heard."""
    (tmp_path / "lips.csv").write_text("time_s;jawOpen\n0,31;1\n0,53;1\n")
    write_wav(tmp_path / "speech.wav", np.concatenate([loud(speech / 2), quiet(speech / 2)]))
    chosen: dict[str, Any] = {"model": str(bundle.resolve("base")), "draw": "warp", "fit": fit, "offset_ms": offset_ms, "force": True}
    points: list[NDArray[np.float32]] = []
    for lips in (None, str(tmp_path / "lips.csv")):
        dubbed(
            house, tmp_path / "out.mp4", speech=str(tmp_path / "speech.wav"), lips=lips, **chosen,
            on_scene=lambda scene: points.append(scene.speakers[0].choices.frames(0, FRAMES).points),
        )  # fmt: skip
    wider = inner_opening(points[1]) - inner_opening(points[0])
    assert (wider[slice(*opened)] > 0.02).all()
    assert np.abs(np.delete(wider, slice(*opened))).max() == 0


def test_curves_that_move_nothing_are_said(house: Path, tmp_path: Path) -> None:
    (tmp_path / "lips.csv").write_text("time_s,jawOpen\n0,1\n")
    lips = str(tmp_path / "lips.csv")
    with pytest.raises(OutputRefused, match="leave out one of --lips and --draw paint"):
        dubbed(house, tmp_path / "out.mp4", lips=lips, draw="paint")
    with pytest.raises(CurvesInvalid, match="cannot read the lip motion"):
        dubbed(house, tmp_path / "out.mp4", lips=str(tmp_path / "none.csv"))
    assert [file.name for file in tmp_path.iterdir()] == ["lips.csv"]
    report = dubbed(house, tmp_path / "out.mp4", lips=lips)
    assert [warning.kind for warning in report.warnings] == ["lips-painted"]
    assert f"in {FRAMES} frames" in report.warnings[0].text


def test_a_mix_is_heard_and_moves_no_lips(house: Path, tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    dubbed(house, tmp_path / "out.mp4", speech="silent.wav", mix=f"{house / 'second.wav'}:-6")
    assert np.abs(mouths(frames_of(tmp_path / "out.mp4")) - mouths(clip)).max() < 12
    assert np.abs(np.concatenate([*media.read_audio(tmp_path / "out.mp4", RATE)])).mean() > 0.15
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_every_frame_of_a_dub_has_it_also_those_that_are_passed_through(
    house: Path,
    tmp_path: Path,
    clip: NDArray[np.uint8],
) -> None:
    dubbed(house, tmp_path / "plain.mp4", crf=0, ranges="0.4-0.8")
    dubbed(house, tmp_path / "out.mp4", crf=0, ranges="0.4-0.8", label="Dubbed by AI")
    plain, labelled = frames_of(tmp_path / "plain.mp4"), frames_of(tmp_path / "out.mp4")
    changed = (plain != labelled).any(axis=3)
    where = changed.any(axis=0)
    assert (changed.sum(axis=(1, 2)) > 200).all()
    assert not where[: 3 * len(where) // 4].any()


@pytest.mark.parametrize("side", [SIDE, SIDE - 1])
def test_source_and_dub_side_by_side(house: Path, tmp_path: Path, side: int) -> None:
    if side != SIDE:
        pictures = [marked(scaled(pixels, (SIDE, SIDE)), k)[:side, :side] for k, pixels in enumerate(portrait_frames(FRAMES))]
        draw_video(house / "odd.mp4", pictures=pictures, fps=25, pix_fmt="yuv444p")
    video = "clip.mp4" if side == SIDE else "odd.mp4"
    dubbed(house, tmp_path / "alone.mp4", video=video, crf=0)
    dubbed(house, tmp_path / "both.mp4", video=video, crf=0, side_by_side=True)
    both, alone = ([chunk.data for chunk in media.read_planes(tmp_path / name)] for name in ("both.mp4", "alone.mp4"))
    source = [chunk.data for chunk in media.read_planes(house / video)]
    luma = np.concatenate(both)[:, : 2 * SIDE * SIDE].reshape(-1, SIDE, 2 * SIDE)
    np.testing.assert_array_equal(luma[:, :, SIDE:], np.concatenate(alone)[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE))
    np.testing.assert_array_equal(luma[:, :, :SIDE], np.concatenate(source)[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE))
    chroma = np.concatenate(both)[:, 2 * SIDE * SIDE :].reshape(-1, 2, SIDE // 2, SIDE)
    wanted = np.concatenate(alone)[:, SIDE * SIDE :].reshape(-1, 2, SIDE // 2, SIDE // 2)
    np.testing.assert_array_equal(chroma[..., SIDE // 2 :], wanted)
    assert times_of(tmp_path / "both.mp4") == times_of(tmp_path / "alone.mp4")


@pytest.mark.parametrize("still", [True, False])
def test_only_while_somebody_speaks_the_mouth_is_redrawn(house: Path, tmp_path: Path, still: bool) -> None:
    """The speech sounds for half a second of two; the source's mouth is still, or moves at the end."""
    pictures = [marked(scaled(pixels, (SIDE, SIDE)), 0) for pixels in portrait_frames(1)] * 50
    write_wav(house / "once.wav", np.concatenate([loud(0.5), quiet(1.5)]))
    draw_video(house / "still.mp4", pictures=pictures, fps=25)
    script = [[face_at(opening=0.02 + (0 if still or k < 44 else 0.1 * (k % 4 < 2)))] for k in range(50)]
    report = dubbed(
        house, tmp_path / "out.mp4", video="still.mp4", speech="once.wav", crf=0, only_when_speaking=True, silence="off",
        detectors=lambda: ScriptedDetector(script),
    )  # fmt: skip
    before, after = frames_of(house / "still.mp4"), frames_of(tmp_path / "out.mp4")
    changed = (before != after).any(axis=(1, 2, 3))
    assert changed[:10].all()
    assert not changed[25:29].any()
    assert changed[46:].any() == (not still)
    assert [span.why for span in report.spans] == ["nobody speaks"]


@pytest.mark.parametrize(("options", "why"), [({"min_face": 400}, "face too small"), ({"max_yaw": 0.0}, "face turned away")])
def test_faces_beyond_the_limits_that_are_asked_for_are_left_alone(house: Path, tmp_path: Path, options: dict[str, Any], why: str) -> None:
    report = dubbed(house, tmp_path / "out.mp4", crf=0, **options)
    assert [span.why for span in report.spans] == [why]
    assert report.nothing_dubbed
    np.testing.assert_array_equal(frames_of(tmp_path / "out.mp4"), frames_of(house / "clip.mp4"))


def test_a_label_without_letters_for_it_is_one_line(house: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match="letters without a shape"):
        dubbed(house, tmp_path / "out.mp4", label="\U0001f600 \u65e5")
    assert [*tmp_path.iterdir()] == []


def test_what_the_mouth_does_in_pauses(house: Path, tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    """The resting mouth of this bundle is white, so that closing differs from what silence recalls by itself."""
    after, reports = {}, {}
    for silence in ("close", "keep", "off"):
        out = tmp_path / f"{silence}.mp4"
        reports[silence] = dubbed(house, out, speech="half.wav", model="bright", silence=silence)
        after[silence] = frames_of(out)
    pause = slice(17, 25)
    speaking = slice(1, 9)
    before = mouths(clip)
    assert (mouths(after["close"])[pause] > before[pause] + 40).all()
    assert np.abs(after["keep"][pause].astype(int) - clip[pause]).mean() < 1.5
    assert np.abs(mouths(after["keep"])[pause] - before[pause]).max() < 2
    assert np.abs(mouths(after["off"])[pause] - before[pause]).max() < 12
    for silence in after:
        np.testing.assert_allclose(mouths(after[silence])[speaking], mouths(after["off"])[speaking], atol=3)
        assert reports[silence].silent_frames == pytest.approx(10, abs=2)


def test_digital_silence_is_all_pause(house: Path, tmp_path: Path, clip: NDArray[np.uint8]) -> None:
    report = dubbed(house, tmp_path / "out.mp4", speech="silent.wav", silence="keep")
    assert report.silent_frames == report.frames == 25
    assert np.abs(frames_of(tmp_path / "out.mp4").astype(int) - clip).mean() < 1.5


def test_a_longer_picture_goes_on_with_a_resting_mouth(house: Path, tmp_path: Path) -> None:
    report = dubbed(house, tmp_path / "out.mp4", speech="short.wav", model="bright")
    assert report.silent_frames == pytest.approx(10, abs=2)
    assert (mouths(frames_of(tmp_path / "out.mp4"))[17:] > 180).all()


def test_the_output_says_that_it_is_synthetic(house: Path, tmp_path: Path) -> None:
    dubbed(house, tmp_path / "out.mp4", speech="short.wav", fit="speech")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.metadata["comment"] == media.COMMENT
    assert "ynthetic" in media.COMMENT


def test_the_same_dub_twice_is_the_same_to_the_bit(house: Path, tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        dubbed(house, tmp_path / name, speech="short.wav", fit="speech")
    assert (frames_of(tmp_path / "one.mp4") == frames_of(tmp_path / "two.mp4")).all()


# -------------------------------------------------------------------------------------------- what cannot be dubbed


@pytest.fixture(scope="module")
def film(house: Path) -> Path:
    """Twelve frames of the portrait, fourteen of a landscape, twelve of the portrait."""
    clip = frames_of(house / "clip.mp4")
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    landscape = np.stack([120 + 60 * np.sin(x / 30), 110 + 50 * np.cos(y / 25), 0 * x + 60], axis=-1).astype(np.uint8)
    draw_video(house / "film.mp4", pictures=[*clip[:12], *[landscape] * 14, *clip[12:24]], fps=25)
    return house / "film.mp4"


def test_a_stretch_without_a_face_is_passed_through_and_reported(house: Path, film: Path, tmp_path: Path) -> None:
    report = dubbed(house, tmp_path / "out.mp4", video="film.mp4", speech="long.wav")
    assert (report.frames, report.dubbed, report.passed_through) == (41, 27, 14)
    (span,) = report.spans
    assert (span.first, span.end, span.why) == (12, 26, "no face")
    assert (span.start_s, span.end_s) == (pytest.approx(12 / 25), pytest.approx(26 / 25))
    before, after = frames_of(film), frames_of(tmp_path / "out.mp4")
    assert np.abs(after[12:26].astype(int) - before[12:26]).mean() < 1.5
    assert (mouths(after[4:9]) > mouths(before[4:9]) + 25).all()
    assert (mouths(after[29:33]) > mouths(before[29:33]) + 25).all()


def test_strict_refuses_a_stretch_without_a_face(house: Path, film: Path, tmp_path: Path) -> None:
    with pytest.raises(NoFaceFound, match=r"14 frames that cannot be dubbed, the first at 0\.48 s \(no face\).*--strict"):
        dubbed(house, tmp_path / "out.mp4", video="film.mp4", speech="long.wav", strict=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("face", "why"), [({"height": 25.0}, WHY[2]), ({"height": 90.0, "yaw_deg": 70.0}, WHY[3])], ids=["too small", "turned away"]
)
def test_faces_that_cannot_be_dubbed_are_passed_through_and_counted(
    house: Path, tmp_path: Path, clip: NDArray[np.uint8], face: dict[str, float], why: str
) -> None:
    report = dubbed(house, tmp_path / "out.mp4", detectors=lambda: ScriptedDetector([[face_at((128, 128), **face)]] * FRAMES))
    assert (report.dubbed, report.passed_through) == (0, 25)
    assert [(span.first, span.end, span.why) for span in report.spans] == [(0, 25, why)]
    assert np.abs(frames_of(tmp_path / "out.mp4").astype(int) - clip).mean() < 1.5


def test_no_face_anywhere_is_an_error(house: Path, tmp_path: Path) -> None:
    draw_video(tmp_path / "waves.mp4", size=(160, 120), frames=8)
    with pytest.raises(NoFaceFound, match="no face in"):
        dubbed(house, tmp_path / "out.mp4", video=str(tmp_path / "waves.mp4"))
    assert [path.name for path in tmp_path.iterdir()] == ["waves.mp4"]


def test_a_video_that_changes_between_the_passes_is_an_error(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, passes = media.read_planes, []

    def shrinking(path: Path, **options: Any) -> Any:
        passes.append(path)
        for chunk in whole(path, **options):
            if len(passes) > 1:
                yield chunk.part(0, 4)
                return
            yield chunk

    monkeypatch.setattr(media, "read_planes", shrinking)  # the first pass
    monkeypatch.setattr(playback, "read_planes", shrinking)  # and the second
    with pytest.raises(UnreadableMedia, match="changed meanwhile"):
        dubbed(house, tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


def test_speech_that_holds_no_numbers_is_an_error(house: Path, tmp_path: Path) -> None:
    samples = sine(1.0)
    samples[8000] = np.nan
    write_wav(tmp_path / "nan.wav", samples, floats=True)
    with pytest.raises(NoAudioStream, match="not finite"):
        dubbed(house, tmp_path / "out.mp4", speech=str(tmp_path / "nan.wav"))
    assert [path.name for path in tmp_path.iterdir()] == ["nan.wav"]


def test_an_output_is_replaced_only_by_force_and_only_when_complete(house: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    with pytest.raises(OutputRefused, match="--force"):
        dubbed(house, out)
    with pytest.raises(KeyboardInterrupt):
        dubbed(house, out, force=True, on_progress=interrupt_at("redrawing", 1))
    assert out.read_bytes() == b"precious"
    dubbed(house, out, force=True, speech="short.wav", fit="speech")
    assert len(frames_of(out)) == 13
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


# ---------------------------------------------------------------------------------------------- report and progress


def test_the_report_says_what_was_done(house: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    inputs = [house / "clip.mp4", house / "long.wav"]
    before = [digest(path) for path in inputs]
    report = dubbed(house, out, speech="long.wav")
    assert [digest(path) for path in inputs] == before
    assert (report.video, report.speech, report.output) == (str(inputs[0]), str(inputs[1]), str(out))
    assert (report.model, report.provider) == ("fake", "CPUExecutionProvider")
    assert (report.options.fit, report.options.silence) == ("longest", "close")
    assert (report.frames, report.dubbed, report.passed_through, report.spans, report.silent_frames) == (41, 41, 0, (), 0)
    assert (report.video_s, report.speech_s, report.output_s) == (1.0, 1.62, 1.62)
    assert set(report.stage_s) == {"open", "faces", "decode", "recall", "choose", "crop", "draw", "paste", "encode", "mux"}
    assert all(seconds > 0 for seconds in report.stage_s.values())
    assert max(report.stage_s.values()) <= report.wall_s + 0.01  # they overlap, so together they may be more
    assert report.frames_per_s == pytest.approx(41 / report.wall_s)


@pytest.mark.parametrize("video", ["clip.mp4", "film.mp4"])
def test_progress_runs_forward_to_the_total_of_each_stage(house: Path, film: Path, tmp_path: Path, video: str) -> None:
    told: list[tuple[str, int, int | None]] = []
    report = dubbed(house, tmp_path / "out.mp4", video=video, speech="long.wav", on_progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["finding faces", "listening", "redrawing"]
    for stage in ("finding faces", "listening", "redrawing"):
        steps = [(done, total) for name, done, total in told if name == stage]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1]
    assert told[-1][1] == report.frames


# -------------------------------------------------------------------------------------------------------- interruption


def interrupt_at(stage: str, call: int) -> Callable[[str, int, int | None], None]:
    """A progress callback that presses Ctrl-C at the `call`-th step of `stage`."""
    calls = 0

    def tell(name: str, done: int, total: int | None) -> None:
        nonlocal calls
        calls += name == stage
        if name == stage and calls == call:
            raise KeyboardInterrupt

    return tell


def open_files() -> list[str]:
    """What this process holds open, as paths."""
    held = []
    for number in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return sorted(held)


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("stage", "call"), [("finding faces", 1), ("finding faces", 2), ("finding faces", 3), ("redrawing", 1), ("redrawing", 3)]
)
def test_an_interruption_leaves_nothing_behind(house: Path, tmp_path: Path, stage: str, call: int) -> None:
    def interrupted() -> KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt) as caught:
            dubbed(house, tmp_path / "out.mp4", speech="long.wav", on_progress=interrupt_at(stage, call))
        return caught.value

    first = interrupted()  # what libraries open once and for all stays open
    files, threads, running = open_files(), native_threads(), threading.active_count()
    # The exception, and with it every frame of the call, is still held: files are closed by the code, not by the collector.
    again = interrupted()
    assert open_files() == files
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == running
    del first, again
    gc.collect()
    deadline = time.monotonic() + 5
    while native_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.02)
    assert native_threads() <= threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_dub_that_ends_well_closes_what_it_opened(house: Path, tmp_path: Path) -> None:
    dubbed(house, tmp_path / "one.mp4", fit="video", speech="long.wav")
    files, threads = open_files(), native_threads()
    dubbed(house, tmp_path / "two.mp4", fit="video", speech="long.wav")
    assert open_files() == files
    gc.collect()
    assert native_threads() <= threads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.mp4", "two.mp4"]


def test_an_error_of_the_network_leaves_nothing_behind(house: Path, tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "nan", draws="nan")
    with pytest.raises(LipdubError, match="NaN"):
        dubbed(house, tmp_path / "out.mp4", model=str(tmp_path / "nan"))
    assert [path.name for path in tmp_path.iterdir()] == ["nan"]


# --------------------------------------------------------------------------------------------------------------- cache


def test_a_second_language_is_drawn_from_the_kept_analysis(house: Path, tmp_path: Path) -> None:
    cache = AnalysisCache(tmp_path / "cache")
    first = dubbed(house, tmp_path / "one.mp4", cache=cache)
    plain = dubbed(house, tmp_path / "two.mp4", speech="half.wav")
    again = dubbed(
        house, tmp_path / "three.mp4", speech="half.wav", cache=cache, detectors=lambda: pytest.fail("the face was looked for again")
    )
    assert (first.analysis_cached, plain.analysis_cached, again.analysis_cached) == (False, False, True)
    assert "faces" not in again.stage_s
    # The picture is the same, bit for bit, as without a cache.
    assert (frames_of(tmp_path / "two.mp4") == frames_of(tmp_path / "three.mp4")).all()


def test_another_video_is_another_analysis(house: Path, tmp_path: Path) -> None:
    cache = AnalysisCache(tmp_path / "cache")
    dubbed(house, tmp_path / "one.mp4", cache=cache)
    pictures = [scaled(pixels, (SIDE, SIDE)) for pixels in portrait_frames(9)]
    draw_video(tmp_path / "other.mp4", pictures=pictures, fps=25)
    assert not dubbed(house, tmp_path / "two.mp4", video=str(tmp_path / "other.mp4"), cache=cache).analysis_cached


def test_a_cache_that_cannot_be_written_stops_no_dub(house: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert dubbed(house, tmp_path / "out.mp4", cache=AnalysisCache(tmp_path / "cache")).dubbed == FRAMES


def test_a_video_of_one_size_and_another_than_even_is_dubbed_whole(house: Path, tmp_path: Path) -> None:
    """Planes have even sides; the shown picture need not."""
    pictures = [scaled(pixels, (SIDE, SIDE))[:-1, :-3] for pixels in portrait_frames(9)]
    draw_video(tmp_path / "odd.mp4", pictures=pictures, fps=25, pix_fmt="yuv444p")
    assert frames_of(tmp_path / "odd.mp4").shape[1:3] == (SIDE - 1, SIDE - 3)
    report = dubbed(house, tmp_path / "out.mp4", video=str(tmp_path / "odd.mp4"))
    assert report.dubbed >= 9
    assert frames_of(tmp_path / "out.mp4").shape[1:3] == (SIDE, SIDE - 2)


def test_frames_without_a_face_do_not_pile_up_before_the_generator(house: Path) -> None:
    """They have nothing to draw, so a batch that counted crops would never fill."""
    held: list[int] = []
    model = open_model(str(house / "fake"), device="cpu", threads=1)
    color = YuvColor(0.2126, 0.0722, False)

    def pieces() -> Iterator[rendering._Piece]:
        for first in range(0, 400, 4):
            data = np.zeros((4, 64 * 64 * 3 // 2), np.uint8)
            frames = YuvChunk(first, data, 64, 64, color, np.arange(first, first + 4), Fraction(1, 25))
            held.append(first + 4)
            yield rendering._Piece(frames, ())

    scene = SimpleNamespace(generator=model.generator, spec=model.spec)
    for piece, mouths in rendering._drawn(pieces(), scene, Clock()):
        assert len(mouths) == 0
        assert held[-1] - piece.frames.index <= model.generator.preferred_batch + 4
    assert held[-1] == 400
