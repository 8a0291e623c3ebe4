"""Preparing clips: what is kept, what is dropped and why, and that training sees what inference will see."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
from drawn import draw_video, sine
from numpy.typing import NDArray

from lipdub import media
from lipdub.cli.prepare import prepare as prepare_command
from lipdub.errors import OutputRefused, TrainingDataError
from lipdub.faces import crop
from lipdub.faces.analysis import analyse
from lipdub.faces.detector import MediapipeDetector
from lipdub.records import MelSpec
from lipdub.speech.mel import MelTrack
from lipdub.train import prepare as preparing
from lipdub.train.data import load_clips
from lipdub.train.memory_stage import central
from lipdub.train.prepare import GRID_HZ, Prepared, PrepareSettings, find_clips, prepare, read_speakers, require_some, widen

EXAMPLES = Path(__file__).parent.parent / "examples"
SETTINGS = PrepareSettings(size=64)


@pytest.fixture(scope="module")
def portrait() -> list[NDArray[np.uint8]]:
    """One and a half seconds of a real face at 25 frames/s."""
    return [picture for chunk in media.read_frames(EXAMPLES / "portrait.mp4") for picture in chunk.pixels][:36]


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    return np.concatenate(list(media.read_audio(EXAMPLES / "speech.wav", 16000)))[: 16000 * 3 // 2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, portrait: list[NDArray[np.uint8]], speech: NDArray[np.float32]) -> Path:
    """Two good clips, and one of each kind that cannot be used; a broken file stands in the middle."""
    folder = tmp_path_factory.mktemp("clips")
    draw_video(folder / "a_good.mp4", pictures=portrait, audio=speech)
    draw_video(folder / "b_faceless.mp4", size=(128, 96), frames=30, audio_s=1.2)
    (folder / "c_broken.mp4").write_bytes((folder / "a_good.mp4").read_bytes()[:5000])
    (folder / "d_text.mp4").write_text("no video")
    draw_video(folder / "e_mute.mp4", pictures=portrait[:20])
    draw_video(folder / "f_silent.mp4", pictures=portrait[:20], audio=np.zeros(12800, np.float32))
    draw_video(folder / "g_brief.mp4", pictures=portrait[:10], audio=sine(0.4))
    (folder / "notes.txt").write_text("not looked at")
    (folder / "h").mkdir()
    draw_video(folder / "h" / "good.mkv", pictures=portrait[:20][::-1], audio=speech[:12800])
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> tuple[Path, list[Prepared], list[Prepared]]:
    """The folder, what `prepare` gave back and what it told on the way. Half-written files of a run that was killed lie there at first."""
    out = tmp_path_factory.mktemp("prepared") / "new"
    out.mkdir()
    for leftover in (
        ".abc.crops.0123456789ab.lipdub-part.npy",
        ".abc.0123456789ab.lipdub-part.npz",
        ".index.0123456789ab.lipdub-part.json",
    ):
        (out / leftover).write_bytes(b"half")
    told: list[Prepared] = []
    results = prepare(find_clips([clips]), out, SETTINGS, workers=1, on_clip=told.append, speakers={"a_good.mp4": "Ann"})
    return out, results, told


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def named(results: list[Prepared], name: str) -> Prepared:
    return next(item for item in results if item.source.endswith(name))


def test_what_is_kept_and_what_is_dropped_and_why(done: tuple[Path, list[Prepared], list[Prepared]]) -> None:
    out, results, told = done
    assert [Path(item.source).name for item in results if item.why is None] == ["a_good.mp4", "good.mkv"]
    why = {Path(item.source).name: item.why or "" for item in results}
    assert "no usable face" in why["b_faceless.mp4"] or "a usable face for 0.0 s only" in why["b_faceless.mp4"]
    assert "c_broken.mp4" in why["c_broken.mp4"]
    assert "d_text.mp4" in why["d_text.mp4"]
    assert "no sound" in why["e_mute.mp4"]
    assert "silent" in why["f_silent.mp4"]
    assert why["g_brief.mp4"] == "a usable face for 0.4 s only"
    assert not any("\n" in reason for reason in why.values())
    assert sorted(item.source for item in told) == [item.source for item in results] == sorted(item.source for item in results)
    index = json.loads((out / "index.json").read_text())
    assert [Prepared(**entry) for entry in index["clips"]] == results
    assert named(results, "a_good.mp4").speaker == "Ann"
    assert named(results, "a_good.mp4").frames >= 34


def test_nothing_half_written_lies_there(done: tuple[Path, list[Prepared], list[Prepared]]) -> None:
    out, results, _ = done
    kept = {item.clip_id for item in results if item.why is None}
    expected = {"index.json"} | {f"{item.clip_id}.json" for item in results}
    expected |= {f"{clip}{ending}" for clip in kept for ending in (".npz", ".crops.npy")}
    assert {file.name for file in out.iterdir()} == expected


def test_a_second_call_does_nothing(clips: Path, done: tuple[Path, list[Prepared], list[Prepared]]) -> None:
    out, results, _ = done
    before = stamps(out)
    told: list[Prepared] = []
    again = prepare(find_clips([clips]), out, SETTINGS, workers=1, on_clip=told.append, speakers={"a_good.mp4": "Ann"})
    assert again == results
    assert len(told) == len(results)
    after = stamps(out)
    assert {name: content for name, (_, content) in after.items()} == {name: content for name, (_, content) in before.items()}
    assert {name for name in after if after[name][0] != before[name][0]} <= {"index.json"}


def test_another_size_or_a_changed_clip_is_prepared_anew(clips: Path) -> None:
    clip = clips / "g_brief.mp4"
    ids = {preparing._clip_id(clip, SETTINGS), preparing._clip_id(clip, PrepareSettings(size=96))}
    content = clip.read_bytes()
    clip.write_bytes(content + b"\0")
    try:
        ids.add(preparing._clip_id(clip, SETTINGS))
    finally:
        clip.write_bytes(content)
    assert len(ids) == 3


def test_crops_are_those_of_inference(clips: Path, done: tuple[Path, list[Prepared], list[Prepared]]) -> None:
    """The middle of the stored crops is what the runtime cuts for the same frames."""
    out, results, _ = done
    clip = next(clip for clip in load_clips(out) if clip.source.endswith("a_good.mp4"))
    assert clip.crops.dtype == np.uint8
    assert clip.crops.shape == (named(results, "a_good.mp4").frames, 80, 80, 3)
    with MediapipeDetector(max_faces=2) as detector:
        track = analyse(media.read_planes(clips / "a_good.mp4"), detector, size=SETTINGS.size)
    track.references.close()
    rows = np.searchsorted(track.times_s, clip.times_s - 1e-6)
    np.testing.assert_allclose(track.times_s[rows], clip.times_s)
    taken = []
    for chunk in media.read_planes(clips / "a_good.mp4"):
        here = rows[(rows >= chunk.index) & (rows < chunk.index + len(chunk))]
        outlines = track.outline[here].astype(np.float32)
        taken.append(crop.take(chunk, here - chunk.index, track.similarity[here], outlines, SETTINGS.size).pixels)
    inference = np.concatenate(taken)
    middle = central(clip, 0, len(clip), _Size())  # type: ignore[arg-type]
    assert middle.shape == inference.shape
    # They are averaged down from other regions, so single pixels differ a little; what must not differ is the place.
    assert np.abs(middle.astype(int) - inference.astype(int)).mean() < 3
    for row in (0, len(clip) // 2, len(clip) - 1):
        shift, _ = cv2.phaseCorrelate(*(np.ascontiguousarray(crops[row].mean(axis=2), np.float32) for crops in (middle, inference)))
        assert np.hypot(*shift) < 0.25, "px"
    np.testing.assert_allclose(clip.opening, track.opening[rows], atol=1e-6)


class _Size:
    """What `central` reads of a network's config."""

    size = SETTINGS.size


def test_a_wider_crop_keeps_its_centre() -> None:
    similarities = np.array([[0.002, 0.0005, -0.1, 0.3], [0.004, -0.001, 0.2, -0.4]])
    for narrow, wide in zip(crop.unit_to_frame(similarities), crop.unit_to_frame(widen(similarities, 1.25)), strict=True):
        for point in np.random.default_rng(0).random((5, 2)):
            # The same frame position, seen from the wider crop, lies nearer to the middle.
            nearer = 0.5 + (point - 0.5) / 1.25
            np.testing.assert_allclose(narrow @ [*point, 1], wide @ [*nearer, 1], atol=1e-6)


def test_mel_windows_are_those_that_inference_cuts(clips: Path, done: tuple[Path, list[Prepared], list[Prepared]]) -> None:
    """No skew between training and inference: the same columns at the same times, but for the half precision of the stored ones."""
    spec = MelSpec()
    for clip in load_clips(done[0]):
        trained = clip.windows(np.arange(len(clip)), spec)
        track = MelTrack(media.read_audio(Path(clip.source), spec.sample_rate_hz), spec)
        dubbed = np.concatenate([track.windows(times) for times in np.array_split(clip.times_s, 3)])
        np.testing.assert_allclose(trained, dubbed, atol=2e-3)
        assert dubbed.std() > 0.3


def test_frames_lie_on_a_25_hz_grid_and_lips_in_the_lower_face(done: tuple[Path, list[Prepared], list[Prepared]]) -> None:
    for clip in load_clips(done[0]):
        np.testing.assert_allclose(np.diff(clip.times_s), 1 / GRID_HZ, atol=1e-6)
        assert clip.lips.shape == (len(clip), 40, 2)
        assert np.abs(clip.lips).max() < 0.2
        assert np.isfinite(clip.lips).all()
    with np.load(next(done[0].glob("*.npz"))) as facts:
        lips = facts["lips"].mean(axis=(0, 1))
    assert lips == pytest.approx([0.5, 0.69], abs=0.1)


def test_the_command_says_why_nothing_can_be_used(clips: Path, done: tuple[Path, list[Prepared], list[Prepared]]) -> None:
    out = done[0]
    before = (out / "index.json").read_bytes()
    try:
        with pytest.raises(TrainingDataError, match=r"none of the 1 clips can be used; the first, .*e_mute\.mp4.*no sound"):
            prepare_command([clips / "e_mute.mp4"], out, size=64, workers=1)
    finally:
        (out / "index.json").write_bytes(before)


# ---- bad input


def test_none_usable() -> None:
    with pytest.raises(TrainingDataError, match="none of the 2 clips can be used; the first, 'a': no sound"):
        require_some([Prepared("a", "1", 0, "no sound"), Prepared("b", "2", 0, "a photo")])
    require_some([Prepared("a", "1", 0, "no sound"), Prepared("b", "2", 30, None)])


def test_sources_without_clips_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with pytest.raises(TrainingDataError, match="no video files in"):
        find_clips([tmp_path])
    with pytest.raises(TrainingDataError, match="does not exist"):
        find_clips([tmp_path / "missing"])


def test_clips_are_found_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.mov", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_clips([tmp_path, tmp_path / "a.mov"]) == [tmp_path / "a.mov", tmp_path / "b.MP4"]


def test_speakers_come_from_a_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("file,speaker\ntrain/a.mp4,Ann\nb.mp4,Bob\n")
    assert read_speakers(manifest) == {"a.mp4": "Ann", "b.mp4": "Bob"}
    for content in ("", "file,person\na.mp4,Ann\n"):
        manifest.write_text(content)
        with pytest.raises(TrainingDataError, match="lacks the columns file and speaker"):
            read_speakers(manifest)
    manifest.write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(TrainingDataError, match="cannot read"):
        read_speakers(manifest)
    with pytest.raises(TrainingDataError, match="cannot read"):
        read_speakers(tmp_path / "missing.csv")


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputRefused, match="cannot write into"):
        prepare([], tmp_path / "file", SETTINGS, workers=1, on_clip=lambda _: None)
    assert (tmp_path / "file").read_text() == "mine"
