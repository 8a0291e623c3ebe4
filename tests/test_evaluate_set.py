"""The scorecard from files to page: a drawn person whose mouth is as bright as it is open, so that a fake model can dub them.

The detector of these tests reads the opening off the brightness of the mouth, the fake bundle brightens the mouth with loudness, and the
drawn clips do what the bundle does: so true lips, wrong lips and frozen lips differ as they do with real people.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn import draw_video, write_wav
from faces_for_tests import LOWER_LIP, UPPER_LIP, face_at
from fakes import write_fake_bundle
from numpy.typing import NDArray

from lipdub import cli, media
from lipdub.bundles.encoder import EncoderSpec
from lipdub.bundles.network import EncoderUse
from lipdub.cli.app import main
from lipdub.errors import BundleNotFound, NoAudioStream, NoFaceFound, OutputRefused, UnreadableMedia
from lipdub.evaluate import one_dub, page, scoring, watch, whole_set
from lipdub.evaluate.scoring import Judges, Known, score
from lipdub.evaluate.whole_set import ClipResult, ClipTask, SetOptions
from lipdub.media.planes import Picture
from lipdub.records import CropSpec, Face

SIDE, FRAMES, RATE = 128, 80, 16000
CENTRE, HEIGHT = (64.0, 60.0), 80.0
DARK, LIGHT = 60, 180


@cache
def _mesh(step: int) -> NDArray[np.float32]:
    return face_at(CENTRE, height=HEIGHT, opening=step / 200).landmarks


def _mouth() -> tuple[int, int]:
    x, y = _mesh(0)[[UPPER_LIP, LOWER_LIP], :2].mean(axis=0)
    return round(float(x)), round(float(y))


class BrightMouths:
    """Sees one face where the person always is, with a mouth as open as it is bright; nobody in a dark picture."""

    def detect(self, picture: Picture) -> list[Face]:
        pixels = picture.rgb(0, 0, picture.width, picture.height)
        if pixels.mean() < 8:
            return []
        x, y = _mouth()
        light = float(pixels[y - 3 : y + 4, x - 5 : x + 6].mean())
        return [Face(_mesh(round(np.clip((light - DARK) / (LIGHT - DARK), 0, 1) * 60)))]

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


evaluate_dub = partial(one_dub.evaluate_dub, detectors=BrightMouths)


def loudness(frames: int, seed: int) -> NDArray[np.float64]:
    """0 to 1, a syllable every third of a second or so."""
    random = np.random.default_rng(seed)
    beats = np.repeat(random.uniform(0, 1, frames // 6 + 2), 6)[: frames + 8]
    return np.convolve(beats, np.hanning(9) / np.hanning(9).sum(), mode="valid")[:frames]


def write_person(path: Path, *, seed: int, frames: int = FRAMES, sound: bool = True) -> None:
    """A clip of somebody who talks: noise as loud as the mouth is bright."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    skin = (DARK + 12 * np.sin(x / 5) * np.cos(y / 7) + random.normal(0, 4, (SIDE, SIDE))).clip(20, 120)
    mouth_x, mouth_y = _mouth()
    patch = np.exp(-(((x - mouth_x) / 14) ** 2) - (((y - mouth_y) / 9) ** 2))
    level = loudness(frames, seed)
    pictures = [np.repeat((skin + (LIGHT - DARK) * opened * patch).astype(np.uint8)[..., None], 3, axis=2) for opened in level]
    envelope = np.interp(np.arange(frames * RATE // 25) / RATE * 25, np.arange(frames), level)
    samples = (random.uniform(-1, 1, len(envelope)) * 10 ** (3 * (envelope - 1))).astype(np.float32)
    draw_video(path, pictures=pictures, audio=samples if sound else None, audio_codec="pcm_s16le" if path.suffix == ".mov" else "aac")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, a silent one, a broken file, and the fake bundle."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "val").mkdir()
    for number, name in enumerate(("ann", "bob")):
        write_person(folder / "val" / f"{name}.mov", seed=number)
    write_fake_bundle(folder / "fake", size=64, drawn=(32, 64, 8, 56), slots=24)
    return folder


class Ear:
    """An expert that knows how bright a mouth is and how loud a sound: both on a wheel of 32 spokes."""

    class spec:
        crop = CropSpec(32, (16, 32, 4, 28), 16)
        encoder = EncoderUse("level", "0" * 64, 1, tuple(range(-4, 5)))
        frames = 5

    def embed_lips(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        light = crops[:, 20:26, 12:20].astype(np.float32).mean(axis=(1, 2, 3))
        return self._rows((light - light.mean()) / 40)

    def embed_sound(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        level = windows.mean(axis=(1, 2))
        return self._rows((level - level.mean()) * 1.6)

    @staticmethod
    def _rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([np.cos(values), np.sin(values)], axis=1).astype(np.float32)


class Hearing:
    """A speech encoder whose only feature is the level."""

    spec = EncoderSpec(
        name="level", format_version=1, layers=(0,), channels=1, bands=80, floor=-7.0, core_s=1.0, context_s=0.2, source="", license="none",
        graphs={}, created_with="",
    )  # fmt: skip

    def encode(self, log_mel: NDArray[np.float32]) -> NDArray[np.float32]:
        return log_mel.mean(axis=0).reshape(-1, 2).mean(axis=1)[:, None]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_set, "open_judges", lambda *given, **more: Judges(Ear(), Hearing()))
    whole_set._opened.cache_clear()


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_expert(*given: object, **more: object) -> None:
        raise BundleNotFound("no model bundle at 'expert'")

    monkeypatch.setattr(scoring, "open_expert", no_expert)
    whole_set._opened.cache_clear()


def options_of(made: Path, out: Path) -> SetOptions:
    return SetOptions(model=str(made / "fake"), out=out, pieces=out / "pieces", detectors=BrightMouths)


def measured(made: Path, out: Path, *, only: str = "", force: bool = False) -> tuple[list[ClipResult], dict[str, Any]]:
    options = options_of(made, out)
    clips, left_out = whole_set.find_clips([made / "val"], seconds_min=1.0)
    settings = whole_set.begin(options, force=force)
    found = whole_set.run_set(whole_set.tasks_of(clips, only), options, settings, jobs=1, on_clip=lambda result: None)
    content = whole_set.set_scorecard(found, settings, left_out)
    page.write_scorecard(out, content, whole_set.pictures_of(found, options))
    return found, content


@pytest.fixture(scope="module")
def scored(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ClipResult], dict[str, Any]]:
    """The whole set measured once."""
    out = tmp_path_factory.mktemp("scored") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_set, "open_judges", lambda *given, **more: Judges(Ear(), Hearing()))
        whole_set._opened.cache_clear()
        return out, *measured(made, out)


def test_the_rows_stand_in_the_right_order(scored):
    """Who hears the sound follows it, who hears another or nothing does not, and true lips are best."""
    _, found, content = scored
    assert [result.why for result in found] == ["", ""]
    mean = {row: {name: cell["mean"] for name, cell in figures.items()} for row, figures in content["summary"]["all"].items()}
    assert list(mean) == list(page.ROWS)
    assert mean["ground_truth"]["r_cross"] > 0.97
    assert mean["cross"]["r_cross"] > 0.75
    assert mean["own"]["r_cross"] > 0.75
    assert abs(mean["wrong_audio"]["r_cross"]) < 0.6
    assert not mean["frozen"]["r_cross"] > 0.5  # NaN, where it never moves at all
    assert mean["ground_truth"]["lmd"] < mean["cross"]["lmd"] < mean["frozen"]["lmd"]
    assert mean["frozen"]["articulation"] < 0.3 < mean["cross"]["articulation"]
    assert mean["cross"]["silent_leak"] == 0
    assert mean["ground_truth"]["sync_offset"] == mean["cross"]["sync_offset"] == 0
    assert mean["cross"]["sync_cosine"] > mean["wrong_audio"]["sync_cosine"]
    assert all(clip["measurable"] for clip in content["clips"])


def test_pictures_are_compared_only_with_the_picture_that_they_were(scored):
    _, _, content = scored
    rows = content["clips"][0]["rows"]
    for name in ("psnr_face", "ssim_face", "psnr_mouth", "ssim_mouth"):
        assert all(rows[row][name] is None for row in ("cross", "wrong_audio", "frozen"))
        assert all(rows[row][name] is not None for row in ("own", "ground_truth", "frozen_own"))
    assert rows["ground_truth"]["psnr_face"] > rows["own"]["psnr_face"] > 20
    assert rows["ground_truth"]["sharpness"] == pytest.approx(1, abs=0.15)
    assert rows["ground_truth"]["flicker"] == pytest.approx(1, abs=0.2)
    assert all(row["outside_psnr"] > 38 for row in rows.values())
    assert all(row["frames_more"] == row["duration_more"] == row["times_off"] == row["faceless"] == 0 for row in rows.values())
    reasons = content["clips"][0]["left_out"]["own"]
    assert "r_leak" in reasons
    assert reasons.keys() == {name for name, value in rows["own"].items() if value is None}


def test_pages_are_told_and_drawn(scored):
    out, _, content = scored
    for clip in content["clips"]:
        pages, step_s = clip["pages"], 1 / 25
        assert len(pages["page_s"]) == clip["frames"]
        drawn = [time_s for time_s in pages["page_s"] if time_s is not None]
        if drawn:
            assert 0 < pages["used"] <= pages["known"]
            assert 0 <= pages["switches"] < len(drawn)
            assert pages["used"] == len(set(drawn))
            own = np.arange(clip["frames"]) * step_s
            far = [abs(time_s - here) for time_s, here in zip(pages["page_s"], own, strict=True) if time_s is not None]
            assert np.isfinite(far).all()
        html = (out / "scorecard.html").read_text()
        assert f"of {pages['known']} mouths" in html
        assert ("pages over time" in html) == any(one["pages"]["used"] for one in content["clips"])


def test_the_json_is_whole_and_plain(scored):
    out, _, _ = scored
    told = json.loads((out / "scorecard.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(told["figures"]) == set(told["clips"][0]["rows"]["cross"])
    assert {"landmarks", "targets", "summary", "settings", "rows", "left_out"} <= told.keys()
    assert any(verdict["met"] for verdict in told["targets"]["all clips"])
    curves = told["clips"][0]["curves"]
    assert len({len(values) for values in curves.values()}) == 1
    assert len(curves["drawn"]) == FRAMES // 2


def test_the_page_needs_nothing_but_itself(scored):
    out, _, content = scored
    text = (out / "scorecard.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|https?://|<link|@import|url\(", text)
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 2 * len(content["clips"])
    assert all(source.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for source in sources)
    assert text.count("<polyline") >= 3 * len(content["clips"])
    assert "prefers-color-scheme: dark" in text
    strip = cv2.imread(str(out / "clips" / "ann.strip.jpg"))
    assert strip.shape == (3 * scoring.STRIP_PX, scoring.STRIP_FRAMES * scoring.STRIP_PX, 3)
    assert strip.std() > 5


def test_what_names_hold_is_shown_and_not_run(scored):
    _, _, content = scored
    nasty = "<script>alert('x')</script>"
    clip = {**content["clips"][0], "name": nasty}
    text = page.render({**content, "clips": [clip], "left_out": {nasty: "a & b < c"}}, {})
    assert "<script" not in text
    assert "a &amp; b &lt; c" in text
    assert "<img" not in text


def test_a_second_run_measures_nothing_again(scored, made, monkeypatch, judged):
    out, first, _ = scored
    monkeypatch.setattr(whole_set, "measure_clip", lambda options, task: pytest.fail("measured again"))
    found, _ = measured(made, out)
    assert all(result.kept for result in found)
    assert [result.record for result in found] == [result.record for result in first]


def test_only_changes_no_figure_of_those_that_stay(scored, made, judged, monkeypatch):
    out, _, _ = scored
    monkeypatch.setattr(whole_set, "measure_clip", lambda options, task: pytest.fail("measured again"))
    found, content = measured(made, out, only="bob")
    assert [result.name for result in found] == ["bob"]
    assert content["clips"][0]["wrong_audio_of"] == "ann.mov"


def test_other_settings_are_refused_with_the_difference(scored, made, tmp_path):
    out, _, _ = scored
    write_fake_bundle(tmp_path / "other", size=64, drawn=(32, 64, 8, 56), slots=20)
    options = SetOptions(model=str(tmp_path / "other"), out=out, pieces=out / "pieces")
    with pytest.raises(OutputRefused, match=r"bundle \w+ -> \w+.*--force"):
        whole_set.begin(options, force=False)
    before = (out / whole_set.RUN_FILE).read_bytes()
    assert whole_set.begin(options, force=True)["bundle"] not in before.decode()
    (out / whole_set.RUN_FILE).write_bytes(before)


def test_one_bad_clip_is_named_and_the_others_are_measured(made, tmp_path, monkeypatch, judged):
    """Silent, broken, too short, dark, and one that brings a bug out."""
    folder = tmp_path / "val"
    folder.mkdir()
    write_person(folder / "mute.mp4", seed=3, sound=False)
    (folder / "broken.mp4").write_bytes((made / "val" / "ann.mov").read_bytes()[:2000])
    write_person(folder / "short.mp4", seed=4, frames=20)
    draw_video(folder / "dark.mp4", pictures=[np.zeros((64, 64, 3), np.uint8)] * 60, audio_s=2.4)
    write_person(folder / "good.mp4", seed=5, frames=60)
    write_person(folder / "bug.mp4", seed=6, frames=60)
    real = whole_set.measure_clip

    def measure(options: SetOptions, task: ClipTask) -> Any:
        if task.name == "bug":
            raise ZeroDivisionError("a\nbug")
        if task.name == "good":
            return {"rows": {}, "name": "good", "measurable": True}, {}
        return real(options, task)

    monkeypatch.setattr(whole_set, "measure_clip", measure)
    options = options_of(made, tmp_path / "out")
    clips, left_out = whole_set.find_clips([folder], seconds_min=0.0)
    assert list(left_out) == ["broken.mp4"]
    settings = whole_set.begin(options, force=False)
    told = []
    found = whole_set.run_set(whole_set.tasks_of(clips), options, settings, jobs=1, on_clip=told.append)
    why = {result.name: result.why for result in found}
    assert why["good"] == ""
    assert "no sound" in why["mute"]
    assert "20 frames" in why["short"]
    assert "no face" in why["dark"]
    assert why["bug"] == "ZeroDivisionError: a bug"
    assert len(told) == 5
    content = whole_set.set_scorecard(found, settings, left_out)
    assert len(content["left_out"]) == 5
    assert not list(tmp_path.rglob(".*lipdub-part*"))


def test_wrong_sound_is_anothers_and_one_that_is_heard(made, tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        draw_video(folder / name, frames=5, audio_s=None if name == "c.mp4" else 0.2)
    rows = ["file,use,speaker,seconds", *(f"val/{name}.mp4,measure,{who},9" for name, who in zip("abcd", "xxyy", strict=True))]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    clips, _ = whole_set.find_clips([folder], seconds_min=8.0)
    others = {task.clip.name: task.other and task.other.name for task in whole_set.tasks_of(clips)}
    assert others == {"a.mp4": "d.mp4", "b.mp4": "d.mp4", "c.mp4": "a.mp4", "d.mp4": "b.mp4"}
    alone = whole_set.tasks_of(clips[:1])
    assert alone[0].other is None
    with pytest.raises(UnreadableMedia, match="--only"):
        whole_set.tasks_of(clips, "nobody")
    with pytest.raises(UnreadableMedia, match="--seconds-min"):
        whole_set.find_clips([folder], seconds_min=99)
    with pytest.raises(UnreadableMedia, match="no such file"):
        whole_set.find_clips([folder / "gone"], seconds_min=1)


# ------------------------------------------------------------------------------------------------------- one finished dub


def test_a_copy_of_the_source_is_a_perfect_dub(made):
    """Every figure of a video against itself lies where it says that perfection is."""
    video = made / "val" / "ann.mov"
    known = Known(video, watch.tracked(video, size=32, detectors=BrightMouths))
    try:
        mask, judges = CropSpec(128, (64, 128, 16, 112), 64), Judges(Ear(), Hearing())
        found = score(video, known, video, mask=mask, truth=known, judges=judges, detectors=BrightMouths).figures
    finally:
        known.track.references.close()
    perfect = {
        "r_cross": 1, "r_cross_best": 1, "best_shift": 0, "articulation": 1, "bias": 0, "lmd_relative": 0, "psnr_face": 99, "ssim_face": 1,
        "psnr_mouth": 99, "ssim_mouth": 1, "sharpness": 1, "sharpness_128": 1, "edges": 1, "seam": 1, "flicker": 1, "outside_psnr": 99,
        "faceless": 0, "frames_more": 0, "times_off": 0, "duration_more": 0, "sync_offset": 0,
    }  # fmt: skip
    assert {name: found[name] for name in perfect} == pytest.approx(perfect, abs=0.06)
    assert found["lmd"] < 0.1
    assert math.isnan(found["lse_d"])


def test_without_a_truth_or_an_expert_the_rest_is_told_and_so_is_what_is_not(made, unjudged):
    video = made / "val" / "ann.mov"
    content, pictures = evaluate_dub(video, video, video, model=str(made / "fake"))
    clip = content["clips"][0]
    figures, left_out = clip["rows"]["dub"], clip["left_out"]["dub"]
    assert figures["r_leak"] == pytest.approx(1)
    assert figures["outside_psnr"] == 99
    assert "no truth" in left_out["r_cross"]
    assert "no truth" in left_out["psnr_face"]
    assert "no expert" in left_out["sync_offset"]
    assert "--syncnet" in left_out["lse_c"]
    assert {name for name, value in figures.items() if value is None} == set(left_out)
    assert set(pictures) == {".strip.jpg", ".address.png"}
    text = page.render(content, {clip["name"]: pictures})
    assert "no expert" in text
    assert "truth" not in content["clips"][0]["curves"]


def test_a_truth_of_another_picture_gives_lips_but_no_pixels(made, unjudged):
    """Even where the heads do not move: two halves of one still person looked like one picture once."""
    ann, bob = made / "val" / "ann.mov", made / "val" / "bob.mov"
    content, _ = evaluate_dub(ann, ann, ann, truth=bob, model=str(made / "fake"))
    figures, left_out = content["clips"][0]["rows"]["dub"], content["clips"][0]["left_out"]["dub"]
    assert figures["lmd"] > 0
    assert figures["psnr_face"] is None
    assert "another picture" in left_out["psnr_face"]


def test_a_copy_of_the_source_as_truth_gives_pixels(made, unjudged, tmp_path):
    ann, copy = made / "val" / "ann.mov", tmp_path / "copy.mov"
    copy.write_bytes(ann.read_bytes())
    content, pictures = evaluate_dub(ann, ann, ann, truth=copy, model=str(made / "fake"))
    figures = content["clips"][0]["rows"]["dub"]
    assert figures["psnr_face"] == 99
    assert figures["r_leak"] is None
    strip = cv2.imdecode(np.frombuffer(pictures[".strip.jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape[0] == 2 * scoring.STRIP_PX


def test_lse_comes_from_whoever_is_handed_in(made, monkeypatch, unjudged):
    seen = []

    class Public:
        size, frames = 48, 5

        def embed_lips(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            return crops[: len(crops) - 4, 0, 0].astype(np.float32)

        def scores(self, lips: NDArray[np.float32], samples: NDArray[np.float32]) -> tuple[float, float, float]:
            seen.append((lips.shape, samples.shape))
            return 7.0, 6.0, -1.0

    video = made / "val" / "ann.mov"
    content, _ = evaluate_dub(video, video, video, model=str(made / "fake"), public=Public())
    figures = content["clips"][0]["rows"]["dub"]
    assert (figures["lse_d"], figures["lse_c"], figures["lse_offset"]) == (7, 6, -1)
    assert seen == [((FRAMES - 4, 3), (FRAMES * 640,))]


def test_silence_that_the_speech_itself_has_is_looked_at(made, unjudged, tmp_path):
    video = made / "val" / "ann.mov"
    half = np.zeros(4 * RATE, np.float32)
    half[:RATE] = 0.3
    write_wav(tmp_path / "half.wav", half)
    content, _ = evaluate_dub(video, video, tmp_path / "half.wav", model=str(made / "fake"))
    assert 0 < content["clips"][0]["rows"]["dub"]["silent_leak"] <= 1


def test_nobody_in_the_source_and_no_sound_are_errors(made, tmp_path):
    draw_video(tmp_path / "dark.mp4", pictures=[np.zeros((64, 64, 3), np.uint8)] * 5)
    video = made / "val" / "ann.mov"
    with pytest.raises(NoFaceFound):
        evaluate_dub(video, tmp_path / "dark.mp4", video, model=str(made / "fake"))
    with pytest.raises(NoAudioStream):
        evaluate_dub(video, video, tmp_path / "dark.mp4", model=str(made / "fake"))


# ----------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setattr(one_dub, "evaluate_dub", evaluate_dub)

    def ran(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lipdub", "evaluate", *map(str, arguments)])
        cli.console.results.cache_clear()
        cli.console.errors.cache_clear()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capfd.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return ran


def test_the_command_on_one_dub(run, made, tmp_path, unjudged):
    video = made / "val" / "ann.mov"
    given = (video, "--source", video, "--speech", video, "--truth", video, "--model", made / "fake")
    code, out, err = run(*given, "-o", tmp_path / "card", "--json", tmp_path / "card.json")
    assert (code, err) == (0, "")
    assert re.search(r"r_cross +\S* +↑ +1\.000 +>= 0\.5 +met", re.sub("[│|]", " ", out))
    assert "left out, no expert" in out
    assert json.loads((tmp_path / "card.json").read_text()) == json.loads((tmp_path / "card" / "scorecard.json").read_text())
    code, out, err = run(*given, "-o", tmp_path / "card")
    assert (code, out) == (1, "")
    assert "--force" in err
    assert run(*given, "-o", tmp_path / "card", "--force", "-q") == (0, "", "")
    code, _, err = run(*given, "--json", video, "--force")
    assert code == 1
    assert "input" in err


def test_the_command_on_a_set(run, made, tmp_path, scored, judged):
    out, _, _ = scored
    given = ("--set", made / "val", "--model", made / "fake", "-o", out, "--seconds-min", "1")
    code, shown, err = run(*given, "--json", tmp_path / "set.json")
    assert code == 0
    assert "1/2 ann: measured before" in err
    for word in ("r_cross", "frozen own", "missed", "targets, all clips", "scorecard.html"):
        assert word in shown
    assert json.loads((tmp_path / "set.json").read_text())["summary"]["all"]["cross"]["r_cross"]["clips"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("dub.mp4",),
        ("dub.mp4", "--source", "v.mp4"),
        ("a.mp4", "b.mp4", "--source", "v.mp4", "--speech", "s.wav"),
        ("--set", "clips"),
        ("--set", "clips", "-o", "out", "--truth", "t.mp4"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "--source" in err or "-o FOLDER" in err


def test_a_set_of_nothing_but_bad_clips_is_an_error(run, made, tmp_path):
    draw_video(tmp_path / "mute.mp4", frames=60)
    code, out, err = run("--set", tmp_path / "mute.mp4", "--model", made / "fake", "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "none of the 1 clips could be measured" in err
    assert "no sound" in err


def _die(task: ClipTask) -> ClipResult:
    """A worker that is gone, as by the kernel's hand."""
    import os

    if task.name == "deadly":
        os._exit(9)
    return ClipResult(task.name, {"name": task.name})


@pytest.mark.slow
def test_a_clip_that_kills_its_worker_costs_nobody_else_anything():
    tasks = [ClipTask(Path(name), name, None) for name in ("a", "deadly", "b", "c")]
    booked: list[ClipResult] = []
    undone = whole_set._in_pool(tasks, _die, 2, booked.append)
    for task in undone:
        left = whole_set._in_pool([task], _die, 1, booked.append)
        booked += [ClipResult(one.name, None, "died") for one in left]
    assert {result.name: result.why for result in booked} == {"a": "", "b": "", "c": "", "deadly": "died"}


def test_the_package_needs_no_torch():
    code = "import sys; from lipdub.evaluate import one_dub, page, whole_set; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
    assert media is not None
