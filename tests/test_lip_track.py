"""A speech as lip motion: what is heard at which time, pauses and the resting mouth, and what is left when it ends early."""

from __future__ import annotations

import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import draw_video, write_wav
from fakes import MelSound, fake_spec, write_fake_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub import media
from lipdub.bundles.bundle import POINTS, BundleSpec
from lipdub.errors import BundleInvalid, MediaError, NoAudioStream
from lipdub.speech import lip_track
from lipdub.speech.lip_track import BLOCK_FRAMES, PAUSE, Lips, LipTrack, lips_at, lips_of, listen, pauses_in
from lipdub.speech.mel import log_mel
from lipdub.speech.memory import OnnxMemory, Recall
from lipdub.speech.mouth_shapes import SHAPES, shapes_of
from lipdub.speech.pauses import Pauses
from lipdub.speech.windows import windows_of

SPEC = fake_spec()
RATE = SPEC.mel.sample_rate_hz
REST = np.array([5.0, -3.0, 2.0, 1.0], np.float32)
"""Nothing that the fake recalls."""
SECONDS = 6
TIMES_S = np.arange(25 * (SECONDS + 2)) / 25
"""Two seconds more than there is sound."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fake bundle, and `speech.wav`: noise of many levels with pauses."""
    folder = tmp_path_factory.mktemp("speech")
    write_fake_bundle(folder)
    random = np.random.default_rng(0)
    level = np.repeat(random.choice([0.0, 0.0, 0.0004, 0.01, 0.1, 0.7], 10 * SECONDS), RATE // 10)
    write_wav(folder / "speech.wav", level * random.uniform(-1, 1, len(level)))
    return folder


@pytest.fixture(scope="module")
def speech(folder: Path) -> Path:
    return folder / "speech.wav"


@pytest.fixture(scope="module")
def mel(speech: Path) -> NDArray[np.float32]:
    return log_mel(np.concatenate(list(media.read_audio(speech, RATE))), SPEC.mel)


@pytest.fixture(scope="module")
def pauses(speech: Path) -> Pauses:
    return pauses_in(speech)


@pytest.fixture(scope="module")
def memory(folder: Path) -> OnnxMemory:
    return OnnxMemory(folder, other_spec(), device="cpu")


def other_spec(smoothing_s: float = 0.03, voice_bands: int = 2) -> BundleSpec:
    return replace(SPEC, tap_distance_s=smoothing_s, voice_bands=voice_bands, rest_feature=tuple(REST.tolist()))


def joined(pieces: Iterator[Lips]) -> Lips:
    found = list(pieces)

    def column(name: str) -> NDArray[np.float32] | None:
        rows = [getattr(lips, name) for lips in found]
        return None if rows[0] is None else np.concatenate(rows)

    feature, silence = column("feature"), column("silence")
    assert feature is not None
    assert silence is not None
    return Lips(feature, silence, column("points"), column("address"))


def heard(speech: Path, memory: OnnxMemory, times_s: NDArray[np.float64] = TIMES_S, *, rest: bool = False) -> Lips:
    """All rows of a `LipTrack`; the addresses are not kept there."""
    with closing(listen(speech, memory, times_s, rest_in_pauses=rest)) as track:
        assert len(track) == len(times_s)
        return track.frames(0, len(track))


def no_thread_is_left() -> bool:
    return not any(thread.name.startswith("lipdub-stage") for thread in threading.enumerate())


# ---- what is heard


@given(
    start_s=st.floats(0, 2),
    steps_s=st.lists(st.floats(0.001, 0.3), max_size=150),
    smoothing_s=st.sampled_from([0.0, 0.03]),
    voice_bands=st.sampled_from([0, 2]),
)
@settings(max_examples=25)
def test_at_any_times_it_is_what_the_memory_recalls_for_their_windows(
    folder: Path,
    speech: Path,
    mel: NDArray[np.float32],
    pauses: Pauses,
    start_s: float,
    steps_s: list[float],
    smoothing_s: float,
    voice_bands: int,
) -> None:
    memory = OnnxMemory(folder, other_spec(smoothing_s, voice_bands), device="cpu")
    times_s = start_s + np.cumsum([0.0, *steps_s])
    windows = windows_of(times_s, memory.spec, MelSound(mel, SPEC.mel), pauses)
    recall = memory.recall(windows.windows)
    lips = joined(lips_at(speech, memory, times_s, pauses))
    assert len(lips) == len(times_s)
    np.testing.assert_allclose(lips.feature, windows.mean(recall.lip_feature), atol=2e-3)
    assert lips.address is not None
    np.testing.assert_allclose(lips.address, windows.mean(recall.address), atol=2e-3)
    np.testing.assert_allclose(lips.silence, windows.silence, atol=1e-3)
    np.testing.assert_allclose(lips.address.sum(axis=1), 1, atol=1e-5)
    with closing(listen(speech, memory, times_s, pauses=pauses, rest_in_pauses=False)) as track:
        kept = track.frames(0, len(track))
    np.testing.assert_array_equal(kept.feature, lips.feature)
    np.testing.assert_array_equal(kept.silence, lips.silence)


def test_a_moment_is_the_mean_of_its_windows(memory: OnnxMemory, mel: NDArray[np.float32]) -> None:
    """A window before it and one after it count half as much as its own."""
    windows = windows_of(TIMES_S, memory.spec, sound := MelSound(mel, SPEC.mel), sound)
    before, now, after = (memory.recall(part) for part in np.split(windows.windows, 3))
    lips = lips_of(windows, memory)
    np.testing.assert_allclose(lips.feature, 0.25 * before.lip_feature + 0.5 * now.lip_feature + 0.25 * after.lip_feature, atol=1e-5)
    np.testing.assert_allclose(lips.address, 0.25 * before.address + 0.5 * now.address + 0.25 * after.address, atol=1e-5)


@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize("block", [1, 7, BLOCK_FRAMES, 10_000])
def test_neither_blocks_nor_cores_make_a_difference(
    speech: Path, memory: OnnxMemory, monkeypatch: pytest.MonkeyPatch, block: int, cores: int
) -> None:
    expected = heard(speech, memory, rest=True)
    monkeypatch.setattr(lip_track, "BLOCK_FRAMES", block)
    monkeypatch.setattr(lip_track, "cores", lambda: cores)
    told: list[int] = []
    with closing(listen(speech, memory, TIMES_S, rest_in_pauses=True, on_frames=told.append)) as track:
        lips = track.frames(0, len(track))
    np.testing.assert_allclose(lips.feature, expected.feature, atol=1e-5)
    np.testing.assert_allclose(lips.silence, expected.silence, atol=1e-6)
    assert sum(told) == len(TIMES_S)
    assert max(told) <= block


def test_no_times_are_no_lips(speech: Path, memory: OnnxMemory) -> None:
    assert list(lips_at(speech, memory, np.zeros(0))) == []
    with closing(listen(speech, memory, np.zeros(0), rest_in_pauses=True)) as track:
        assert (len(track), track.pauses) == (0, 0)
        none = track.frames(0, 0)
        assert (none.feature.shape, none.silence.shape) == ((0, SPEC.lip_channels), (0,))


def test_the_sound_is_read_as_far_as_it_is_asked_for(memory: OnnxMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def endless(path: Path, rate: int) -> Iterator[NDArray[np.float32]]:
        while True:
            read.append(rate)
            yield np.zeros(rate, np.float32)

    monkeypatch.setattr(media, "read_audio", endless)
    no_pauses = Pauses(np.zeros(0, np.float32))
    assert len(joined(lips_at(Path("endless.wav"), memory, TIMES_S, no_pauses))) == len(TIMES_S)
    assert read == [RATE] * len(read)
    assert len(read) <= TIMES_S[-1] + 3


def test_a_quiet_speech_is_heard_as_the_speech_that_it_is(speech: Path, memory: OnnxMemory, tmp_path: Path) -> None:
    samples = np.concatenate(list(media.read_audio(speech, RATE)))
    write_wav(tmp_path / "quiet.wav", samples * 10 ** (-45 / 20))
    loud, quiet = heard(speech, memory, rest=True), heard(tmp_path / "quiet.wav", memory, rest=True)
    np.testing.assert_allclose(quiet.silence, loud.silence, atol=0.15)
    brought = np.clip(samples * 10 ** (-45 / 20) * pauses_in(tmp_path / "quiet.wav").gain, -1, 1)
    assert 20 * np.log10(np.abs(brought).max() / np.abs(samples).max()) > -25, "or little would be heard"


# ---- pauses


def test_the_resting_mouth_takes_over_as_far_as_the_speech_pauses(speech: Path, memory: OnnxMemory) -> None:
    plain, rested = heard(speech, memory), heard(speech, memory, rest=True)
    np.testing.assert_array_equal(plain.silence, rested.silence)
    np.testing.assert_array_equal(rested.feature, plain.feature + plain.silence[:, None] * (REST - plain.feature))
    sounding, silent = plain.silence == 0, plain.silence == 1
    between = ~sounding & ~silent
    assert min(sounding.sum(), silent.sum(), between.sum()) > 5
    np.testing.assert_array_equal(rested.feature[sounding], plain.feature[sounding])
    np.testing.assert_allclose(rested.feature[silent], np.broadcast_to(REST, (silent.sum(), 4)), atol=1e-6)
    assert np.abs(plain.feature - REST).min(axis=0).max() > 0.5, "or nobody would see the difference"
    # After the sound has ended there is a pause, too.
    assert silent[TIMES_S > SECONDS + 0.3].all()


@pytest.mark.parametrize("rest", [True, False])
def test_pauses_are_counted(speech: Path, memory: OnnxMemory, rest: bool) -> None:
    with closing(listen(speech, memory, TIMES_S, rest_in_pauses=rest)) as track:
        assert track.pauses == (track.frames(0, len(track)).silence > PAUSE).sum()
        assert 0.2 * len(track) < track.pauses < 0.8 * len(track)
        assert repr(track) == f"LipTrack(frames={len(TIMES_S)}, pauses={track.pauses})"


# ---- curves in the place of what is heard


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_shapes_stand_in_for_what_was_heard_and_the_strength_is_theirs_too(strength: float) -> None:
    shapes = np.full((30, len(SHAPES)), np.nan, np.float32)
    shapes[10:20, 0] = 0.7
    lips = replace(some_lips(30, points=True), points=0.02 * some_lips(30, points=True).points)
    with closing(LipTrack(replace(SPEC, points=True), strength, shapes)) as track:
        track.add(lips.moved(strength, REST))
        heard, found = track.heard(5, 25), track.frames(5, 25)
    assert lips.points is not None
    np.testing.assert_array_equal(heard.points, np.float32(strength) * lips.points[5:25])
    moved = np.abs(found.points - heard.points).max(axis=(1, 2)) > 1e-4
    assert moved.tolist() == [5 <= frame < 15 and strength > 0 for frame in range(20)]
    np.testing.assert_allclose(shapes_of(found.points)["jawOpen"][5:15], 0.7 * strength, atol=5e-3)
    np.testing.assert_array_equal(found.feature, heard.feature)


def test_a_pause_of_the_curves_brings_the_lips_to_rest(speech: Path, memory: OnnxMemory) -> None:
    plain = heard(speech, memory)
    curves = np.full((len(TIMES_S), 1 + len(SHAPES)), np.nan, np.float32)
    curves[::2, 0] = 1 - plain.silence[::2]
    silence = plain.silence.copy()
    silence[::2] = curves[::2, 0]
    with closing(listen(speech, memory, TIMES_S, rest_in_pauses=True, curves=curves)) as track:
        lips = track.frames(0, len(track))
        np.testing.assert_array_equal(track.in_pause, silence > PAUSE)
    np.testing.assert_array_equal(lips.silence, silence)
    np.testing.assert_array_equal(lips.feature, plain.feature + silence[:, None] * (REST - plain.feature))


# ---- where it is kept


def some_lips(count: int, seed: int = 0, channels: int = SPEC.lip_channels, *, points: bool = False) -> Lips:
    random = np.random.default_rng(seed)
    feature = random.normal(size=(count, channels)).astype(np.float32)
    silence = random.uniform(0, 1, count).astype(np.float32)
    return Lips(feature, silence, random.normal(size=(count, POINTS, 2)).astype(np.float32) if points else None)


@given(counts=st.lists(st.integers(0, 300), min_size=1, max_size=5), points=st.booleans(), data=st.data())
@settings(max_examples=30)
def test_any_stretch_is_given_back_as_it_was_added(counts: list[int], points: bool, data: st.DataObject) -> None:
    pieces = [some_lips(count, seed, points=points) for seed, count in enumerate(counts)]
    whole = joined(iter(pieces))
    with closing(LipTrack(replace(SPEC, points=points))) as track:
        for piece in pieces:
            track.add(piece)
        assert len(track) == len(whole)
        assert track.pauses == (whole.silence > PAUSE).sum()
        for _ in range(3):
            first = data.draw(st.integers(0, len(whole)))
            end = data.draw(st.integers(first, len(whole)))
            lips = track.frames(first, end)
            np.testing.assert_array_equal(lips.feature, whole.feature[first:end])
            np.testing.assert_array_equal(lips.silence, whole.silence[first:end])
            if whole.points is None:
                assert lips.points is None
            else:
                np.testing.assert_array_equal(lips.points, whole.points[first:end])
        with pytest.raises(IndexError, match=f"there are {len(whole)}"):
            track.frames(0, len(whole) + 1)


@pytest.mark.parametrize("silence", [0.0, 0.25, 1.0])
def test_a_pause_brings_the_lips_to_rest_as_far_as_it_is_one(silence: float) -> None:
    lips = replace(some_lips(5, points=True), silence=np.full(5, silence, np.float32))
    at_rest = lips.at_rest_in_pauses(REST)
    np.testing.assert_allclose(at_rest.feature, (1 - silence) * lips.feature + silence * REST, atol=1e-6)
    assert lips.points is not None
    assert at_rest.points is not None
    np.testing.assert_allclose(at_rest.points, (1 - silence) * lips.points, atol=1e-6)


def test_memory_does_not_grow_with_the_speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour at 25 frames a second, 46 MB of lip motion, lies in a file that has no name."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lips = some_lips(BLOCK_FRAMES, channels=128)
    with closing(LipTrack(replace(SPEC, lip_channels=128, rest_feature=(0.0,) * 128))) as track:
        tracemalloc.start()
        try:
            while len(track) < 3600 * 25:
                track.add(lips)
            feature = track.frames(50 * BLOCK_FRAMES, 51 * BLOCK_FRAMES).feature
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2**20
        np.testing.assert_array_equal(feature, lips.feature)
        assert list(tmp_path.iterdir()) == []


# ---- however it ends


class Failing:
    """A memory that answers so many times."""

    def __init__(self, memory: OnnxMemory, answers: int) -> None:
        self.spec = memory.spec
        self.track = memory.track
        self._memory = memory
        self._left = answers

    def recall(self, windows: NDArray[np.float32]) -> Recall:
        self._left -= 1
        if self._left < 0:
            raise BundleInvalid("no lip feature")
        return self._memory.recall(windows)


@pytest.fixture
def tracks(monkeypatch: pytest.MonkeyPatch) -> list[LipTrack]:
    """All that are made from here on, with four cores and small blocks."""
    made: list[LipTrack] = []

    def noted(spec: BundleSpec, strength: float = 1.0, shapes: NDArray[np.float32] | None = None, *, rests: bool = False) -> LipTrack:
        made.append(LipTrack(spec, strength, shapes, rests=rests))
        return made[-1]

    monkeypatch.setattr(lip_track, "LipTrack", noted)
    monkeypatch.setattr(lip_track, "cores", lambda: 4)
    monkeypatch.setattr(lip_track, "BLOCK_FRAMES", 5)
    return made


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_who_stops_asking_leaves_no_thread_and_no_open_sound(
    memory: OnnxMemory, tracks: list[LipTrack], monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    ends: list[str] = []

    def sound(path: Path, rate: int) -> Iterator[NDArray[np.float32]]:
        try:
            while True:
                yield np.zeros(rate, np.float32)
        finally:
            ends.append("closed")

    monkeypatch.setattr(media, "read_audio", sound)
    pieces = lips_at(Path("speech.wav"), memory, TIMES_S, Pauses(np.zeros(0, np.float32)))
    assert [len(next(pieces)) for _ in range(taken)] == [5] * taken
    assert no_thread_is_left() == (taken == 0)
    pieces.close()
    assert no_thread_is_left()
    assert ends == ["closed"] * min(taken, 1)


def stopped(frames: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("answers", "on_frames", "error"), [(0, None, BundleInvalid), (2, None, BundleInvalid), (99, stopped, KeyboardInterrupt)]
)
def test_what_goes_wrong_closes_the_track_and_leaves_no_thread(
    speech: Path,
    memory: OnnxMemory,
    tracks: list[LipTrack],
    answers: int,
    on_frames: Callable[[int], None] | None,
    error: type[BaseException],
) -> None:
    with pytest.raises(error) as caught:  # which keeps all that was under way alive
        listen(speech, Failing(memory, answers), TIMES_S, rest_in_pauses=True, on_frames=on_frames)
    assert no_thread_is_left(), caught
    (track,) = tracks
    with pytest.raises(ValueError, match="closed file"):
        track._rows._file.seek(0)


def test_speech_that_cannot_be_heard_is_one_line(tmp_path: Path, memory: OnnxMemory, tracks: list[LipTrack]) -> None:
    draw_video(tmp_path / "mute.mp4", frames=3)
    (tmp_path / "text.wav").write_text("no sound")
    for name, error in (("gone.wav", MediaError), ("text.wav", MediaError), ("mute.mp4", NoAudioStream)):
        with pytest.raises(error, match=name) as caught:
            listen(tmp_path / name, memory, TIMES_S, rest_in_pauses=True)
        assert "\n" not in str(caught.value)
    assert all(track._rows._file.closed for track in tracks)
