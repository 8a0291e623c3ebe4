"""``lipdub train hearing``: features of sounds and their variants, the bottleneck, the audio side on top, and the bundle it becomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from commands import Run, in_this_process
from drawn import write_wav
from fakes import TAPS, write_fake_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toys import COMPACT, rest_lips, write_clips, write_sounds

from lipdub import __version__
from lipdub.bundles import bundle, encoder
from lipdub.bundles.encoder import EncoderSpec
from lipdub.bundles.network import EncoderUse, NetworkConfig
from lipdub.errors import BundleNotFound, OutputRefused, TrainingDataError, TrainingError
from lipdub.model import open_model
from lipdub.phonetics.classes import CLASSES
from lipdub.speech.encoder import SpeechEncoder, feature_track
from lipdub.speech.lip_track import lips_at
from lipdub.speech.mel import SILENCE
from lipdub.speech.whisper_mel import RATE_HZ
from lipdub.train import checkpoints, export, features, hearing_bundle, networks, sound_variants, weights
from lipdub.train.bottleneck import Bottleneck, fit_bottleneck, lip_scale, speaker_weights
from lipdub.train.data import Clip, load_clips, opening_from_lips
from lipdub.train.features import PreparedFeatures, load_features, prepare_features
from lipdub.train.hearing import POINTS_HIDDEN, HearingSettings, hearing_config, train_hearing
from lipdub.train.hearing_bundle import HearingJob, resting_windows, train_bundle
from lipdub.train.labelled_speech import SpokenFeatures
from lipdub.train.lip_side import LipSettings
from lipdub.train.memory_stage import drawn_boxes, lip_windows
from lipdub.train.networks import LIP_COMPONENTS, FaceGenerator, LipMemory
from lipdub.train.sound_variants import FASTEST, SLOWEST, speed_of, varied

SLOTS = 24
QUICK = HearingSettings(steps=120, batch=256, lips=LipSettings(steps=500, batch=128, rate=1e-2, picture_steps=200))
HELD_OUT = 2


class Here:
    """A ``ProcessPoolExecutor`` that works in this process, at once."""

    def __init__(self, workers: int, *, mp_context: object) -> None:
        assert workers >= 1

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to do."""

    def submit(self, work: Callable[..., None], *arguments: object) -> Future[None]:
        future: Future[None] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: object) -> None:
        """Nothing runs."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are prepared in this process."""
    monkeypatch.setattr(features, "ProcessPoolExecutor", Here)


def nothing(*_: object) -> None:
    """Told of progress."""


def one_line(error: BaseException) -> str:
    said = str(error)
    assert said
    assert "\n" not in said
    return said


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake speech encoder, toy clips whose sound is as loud as the mouth is open, and features of them."""
    folder = tmp_path_factory.mktemp("house")
    write_fake_encoder(folder / "ear")
    prepared = write_clips(folder / "prepared", clips=6, frames=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "ProcessPoolExecutor", Here)
        prepare_features(prepared, write_sounds(prepared), folder / "ear", voices=1, workers=1, on_clip=nothing)
    return folder


@pytest.fixture(scope="module")
def ear(house: Path) -> SpeechEncoder:
    return SpeechEncoder(house / "ear", encoder.load_spec(house / "ear"), device="cpu", threads=1)


@pytest.fixture(scope="module")
def clips(house: Path) -> list[Clip]:
    return load_clips(house / "prepared")


@pytest.fixture(scope="module")
def config(ear: SpeechEncoder) -> NetworkConfig:
    return hearing_config(COMPACT, ear.spec, slots=SLOTS, drawn_kappa=18.0)


@pytest.fixture(scope="module")
def base() -> LipMemory:
    """A memory whose slots hold mouths from closed to open: channel 0 of a recall opens the toy lips."""
    torch.manual_seed(2)
    memory = LipMemory(COMPACT).eval()
    angle = torch.linspace(torch.pi / 2, 0, COMPACT.slots)
    memory.memory.values.data = torch.zeros_like(memory.memory.values)
    memory.memory.values.data[:, 0], memory.memory.values.data[:, 1] = angle.cos(), angle.sin()
    lower = torch.from_numpy(rest_lips()[:, 1] > 0.69 + 1e-5)
    weight = torch.zeros(40, 2, COMPACT.channels)
    weight[lower, 1, 0] = 0.06 / 0.05 / COMPACT.channels**0.5
    memory.landmark_head.weight.data, memory.landmark_head.bias.data = weight.flatten(0, 1), torch.zeros(80)
    return memory


@torch.no_grad()
def opening(memory: LipMemory, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the recalled lips are open at windows of speech."""
    recall = memory.memory.by_audio_sharpened(memory.audio_encoder(torch.from_numpy(windows)))
    return opening_from_lips(memory.landmarks(recall.recalled)).numpy()


# ------------------------------------------------------------------------------------------------------------- variants


@given(seed=st.integers(0, 10_000))
@settings(max_examples=200)
def test_speeds_are_ratios_that_are_played_exactly(seed: int) -> None:
    speed = speed_of(np.random.default_rng(seed))
    assert SLOWEST - 0.01 < speed < FASTEST + 0.01
    ratio = Fraction(1 / speed).limit_denominator(60)
    assert float(1 / ratio) == speed


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_a_click_lies_at_its_time_over_the_speed(seed: int) -> None:
    random = np.random.default_rng(seed)
    samples, at_s = np.zeros(2 * RATE_HZ, np.float32), np.array([0.1, 0.53, 1.07, 1.4, 1.9])
    samples[np.round(at_s * RATE_HZ).astype(int)] = 0.9
    speed = speed_of(random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sound_variants, "SUNG", 0.0)  # a voice on a melody has no clicks
        sound = varied(samples, speed, random)
    assert abs(len(sound) - len(samples) / speed) <= 1
    for click_s in at_s / speed:
        first = round((click_s - 0.03) * RATE_HZ)
        near = np.abs(sound[first : first + round(0.06 * RATE_HZ)])
        assert abs((first + near.argmax()) / RATE_HZ - click_s) <= 0.001


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_a_sung_sound_is_loud_when_the_sound_is_and_on_another_pitch(seed: int) -> None:
    random = np.random.default_rng(seed)
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    loud = np.repeat(random.random(20) < 0.5, RATE_HZ // 10)
    voice = np.sign(np.sin(2 * np.pi * 90 * time_s)) * np.where(loud, 0.3, 0.003)
    sung = sound_variants._sung(voice, random)
    assert sung.shape == voice.shape
    assert np.sqrt(np.square(sung).mean()) == pytest.approx(np.sqrt(np.square(voice).mean()), rel=1e-3)
    level = [np.sqrt(np.convolve(np.square(sound), np.ones(800) / 800, mode="same"))[400::800] for sound in (voice, sung)]
    if loud.any() and not loud.all():
        assert correlation(np.log(level[0]), np.log(level[1] + 1e-5)) > 0.7


@given(seed=st.integers(0, 10_000), count=st.integers(1, 20_000))
@settings(max_examples=15)
def test_a_song_is_sound_of_any_length(seed: int, count: int) -> None:
    for make in (sound_variants._song, sound_variants._music):
        sound = make(count, np.random.default_rng(seed))
        assert sound.shape == (count,)
        assert np.isfinite(sound).all()


@given(seed=st.integers(0, 10_000), level=st.sampled_from([0.0, 1e-4, 0.3, 1.0]), count=st.integers(2000, 20_000))
@settings(max_examples=25)
def test_variants_are_sound_and_the_same_for_a_seed(seed: int, level: float, count: int) -> None:
    samples = np.clip(level * np.random.default_rng(1).normal(size=count), -1, 1).astype(np.float32)
    one, again, other = (varied(samples, 1.0, np.random.default_rng(key)) for key in (seed, seed, seed + 1))
    assert one.dtype == np.float32
    assert one.shape == (count,)
    assert np.isfinite(one).all()
    assert np.abs(one).max() <= 1
    np.testing.assert_array_equal(one, again)
    if level:
        assert not np.array_equal(one, other)


# ------------------------------------------------------------------------------------------------------------- features


@pytest.fixture
def sounds(tmp_path: Path) -> list[tuple[str, Path]]:
    """Two sounds, each with a burst in the middle."""
    found = []
    for number in range(2):
        samples = np.zeros(RATE_HZ, np.float32)
        samples[8000:8400] = 0.9 * np.sign(np.random.default_rng(number).normal(size=400))
        write_wav(tmp_path / f"{number}.wav", samples)
        found.append((f"clip{number}", tmp_path / f"{number}.wav"))
    return found


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.features.*")}


@pytest.mark.usefixtures("here")
def test_features_are_those_of_the_sound_and_of_its_variants(tmp_path: Path, sounds: list[tuple[str, Path]], ear: SpeechEncoder) -> None:
    write_fake_encoder(tmp_path / "ear")
    heard: list[int] = []
    prepare_features(tmp_path, sounds, tmp_path / "ear", voices=3, workers=1, on_clip=lambda: heard.append(1))
    assert len(heard) == 2
    speeds = set()
    for clip_id, source in sounds:
        found = load_features(tmp_path, clip_id)
        assert found is not None
        assert found.voices == 4
        assert found.values.dtype == np.float16
        assert isinstance(found.values, np.memmap)
        assert found.sha256 == ear.spec.graphs[encoder.GRAPH]
        samples = np.frombuffer(source.read_bytes()[44:], "<i2").astype(np.float32) / 32768
        as_it_is = feature_track(samples, ear)
        np.testing.assert_allclose(found.values[: found.starts[1]], as_it_is, atol=2e-3)
        assert found.speeds[0] == 1.0
        times_s = np.arange(0.1, 0.9, 0.01)
        for voice in range(4):
            length_s = len(samples) / RATE_HZ / found.speeds[voice]
            assert found.starts[voice + 1] - found.starts[voice] == pytest.approx(length_s * 50 + 1, abs=1)
            windows = found.windows(times_s, TAPS, voice)
            assert windows.shape == (80, 3, 6)
            # The burst lies from 0.5 to 0.525 s of the sound as it is, in every voice.
            assert abs(times_s[windows[:, 1, 0].argmax()] - 0.5125) < 0.03
        speeds |= set(found.speeds)
    assert len(speeds) == 7  # every clip its own


@pytest.mark.usefixtures("here")
def test_what_is_there_is_not_done_again(tmp_path: Path, sounds: list[tuple[str, Path]]) -> None:
    write_fake_encoder(tmp_path / "ear")

    def again(voices: int) -> list[str]:
        before, heard = stamps(tmp_path), []
        prepare_features(tmp_path, sounds, tmp_path / "ear", voices=voices, workers=1, on_clip=lambda: heard.append(1))
        assert len(heard) == len(sounds)
        return [name for name, stamp in stamps(tmp_path).items() if before.get(name) != stamp and name.endswith(".json")]

    both = ["clip0.features.json", "clip1.features.json"]
    assert sorted(again(1)) == both
    assert again(1) == again(0) == []
    assert sorted(again(2)) == both
    # One that was cut off, one that is gone.
    for name in ("clip0.features.npy", "clip1.features.json"):
        file = tmp_path / name
        if name.startswith("clip0"):
            file.write_bytes(file.read_bytes()[:200])
        else:
            file.unlink()
    assert sorted(again(2)) == both
    (tmp_path / "clip0.features.json").write_text('{"starts": [0]}')
    with pytest.raises(TrainingDataError, match="prepare them again") as caught:
        load_features(tmp_path, "clip0")
    one_line(caught.value)
    assert again(2) == ["clip0.features.json"]
    # Another encoder says other things.
    features._opened.cache_clear()
    write_fake_encoder(tmp_path / "ear", core_s=0.5)
    assert sorted(again(2)) == both
    assert again(2) == []


@pytest.mark.usefixtures("here")
def test_a_source_that_is_gone_is_told(tmp_path: Path, sounds: list[tuple[str, Path]]) -> None:
    write_fake_encoder(tmp_path / "ear")
    sounds[1][1].unlink()
    with pytest.raises(TrainingDataError, match="cannot be read any more") as caught:
        prepare_features(tmp_path, sounds, tmp_path / "ear", voices=0, workers=1, on_clip=nothing)
    assert str(sounds[1][1]) in one_line(caught.value)
    assert load_features(tmp_path, "clip0") is not None
    assert load_features(tmp_path, "clip1") is None


def test_processes_share_the_work_and_their_errors_come_back(tmp_path: Path, sounds: list[tuple[str, Path]]) -> None:
    write_fake_encoder(tmp_path / "ear")
    both = [sounds[0], ("other", tmp_path / "absent.wav")]
    with pytest.raises(TrainingDataError, match="absent"):
        prepare_features(tmp_path, both, tmp_path / "ear", voices=0, workers=1, on_clip=nothing)
    assert load_features(tmp_path, "clip0") is not None


def test_an_encoder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound):
        features.find_encoder(str(tmp_path / "absent"))


def test_features_check_themselves() -> None:
    values = np.zeros((5, 2), np.float16)
    for starts, speeds in (((0, 4), (1.0,)), ((0, 5), (1.0, 1.0)), ((5,), (1.0,))):
        with pytest.raises(ValueError, match="variants must make up"):
            PreparedFeatures(values, starts, speeds, "0" * 64)


def test_a_clip_hears_its_features_at_its_offset(clips: list[Clip], config: NetworkConfig) -> None:
    clip = clips[0]
    found = clip.features
    assert found is not None
    frames = np.array([0, 5, 60])
    windows = clip.heard(frames, config)
    np.testing.assert_array_equal(windows, found.windows(clip.times_s[frames], TAPS))
    late = replace(clip, offset_s=0.1)
    np.testing.assert_array_equal(late.heard(frames, config), found.windows(clip.times_s[frames] + 0.1, TAPS))
    other = late.heard_at(clip.times_s[frames], config, voice=1)
    np.testing.assert_array_equal(other, found.windows(clip.times_s[frames] + 0.1, TAPS, 1))


@pytest.mark.parametrize("which", ["none", "another encoder's"])
def test_a_clip_without_the_encoders_features_is_told(clips: list[Clip], config: NetworkConfig, which: str) -> None:
    assert clips[0].features is not None
    wrong = replace(clips[0], features=None if which == "none" else replace(clips[0].features, sha256="1" * 64))
    assert config.encoder is not None
    for use in (
        lambda: wrong.heard(np.array([0]), config),
        lambda: fit_bottleneck([*clips[:2], wrong], None, config.encoder, 2, balance=0.5, on_clip=nothing),  # type: ignore[arg-type]
    ):
        with pytest.raises(TrainingDataError, match=r"lipdub prepare .*--encoder") as caught:
            use()
        assert wrong.source in one_line(caught.value)


# ------------------------------------------------------------------------------------------------------- labelled speech

SPOKEN = (("", 30), ("m", 12), ("a", 24), ("m", 12), ("a", 20), ("", 31))
"""One utterance: symbol and columns. Its length is no whole number of positions."""
KINDS = {"": "silence", "m": "bilabial", "a": "open"}


def write_speech(file: Path, *, utterances: int = 6, with_samples: bool = True) -> Path:
    """m buzzes below 1 kHz, a hisses."""
    symbols = list(KINDS)
    letters = [letter for letter, columns in SPOKEN for _ in range(columns)]
    random = np.random.default_rng(4)
    parts = []
    for number in range(utterances):
        time_s = np.arange(200 * len(letters)) / RATE_HZ
        hiss = 0.3 * random.normal(size=len(time_s))
        hum = 0.1 * sum(np.sin(2 * np.pi * (110 + 10 * number) * harmonic * time_s) for harmonic in range(1, 7)) + 0.03 * hiss
        of = np.repeat(letters, 200)
        parts.append(np.where(of == "m", hum, np.where(of == "a", hiss, 0)))
    content: dict[str, Any] = {
        "mel": np.full((utterances * len(letters), 80), SILENCE, np.float16),
        "kind": np.tile(np.array([CLASSES.index(KINDS[letter]) for letter in letters], np.uint8), utterances),
        "symbol": np.tile(np.array([symbols.index(letter) for letter in letters], np.uint16), utterances), "symbols": np.array(symbols),
        "classes": np.array(CLASSES), "first": np.arange(utterances + 1) * len(letters),
        "held_out": np.array([0] * (utterances - 2) + [1, 2], np.uint8), "columns_per_s": np.array(80),
    }  # fmt: skip
    if with_samples:
        content["samples"] = (np.clip(np.concatenate(parts), -1, 1) * 32767).astype(np.int16)
    np.savez(file, **content)
    return file


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, ear: SpeechEncoder) -> SpokenFeatures:
    return SpokenFeatures(write_speech(tmp_path_factory.mktemp("speech") / "speech.npz"), ear, TAPS)


def test_labels_lie_where_their_sound_is(spoken: SpokenFeatures) -> None:
    rows = np.arange(len(spoken.kind))
    columns = sum(count for _, count in SPOKEN)
    assert len(rows) == 6 * (columns * 200 // 320)
    loudness = spoken.windows(rows, 0)[:, 1, 0]
    silent = spoken.kind == CLASSES.index("silence")
    steady = np.convolve(np.abs(np.diff(silent, prepend=silent[0])), np.ones(3), mode="same") == 0
    assert (loudness[silent & steady] < -0.7).all()
    assert (loudness[~silent & steady] > -0.6).all()
    # In the last utterance, too: nothing drifts.
    changes = np.flatnonzero(np.diff(silent))
    sounding = np.diff((loudness > -0.65).astype(int)).nonzero()[0]
    assert len(changes) == len(sounding)
    assert np.abs(changes - sounding).max() <= 2  # a window of sound reaches 12.5 ms to either side, the encoder 10 more
    assert np.ptp((changes - sounding).reshape(-1, 2), axis=0).max() <= 1


def test_lips_are_shut_throughout_m(spoken: SpokenFeatures) -> None:
    np.testing.assert_array_equal(spoken.closed, spoken.kind == CLASSES.index("bilabial"))


def test_variants_of_speech_keep_its_time(spoken: SpokenFeatures) -> None:
    assert spoken.voices == 2
    rows = np.flatnonzero(spoken.kind == CLASSES.index("open"))
    quiet = np.flatnonzero(spoken.kind == CLASSES.index("silence"))
    for voice in range(2):
        assert spoken.windows(rows, voice)[:, 1, 0].mean() > spoken.windows(quiet, voice)[:, 1, 0].mean() + 0.2


def test_held_out_speech_is_never_drawn(spoken: SpokenFeatures) -> None:
    drawn = spoken.drawn(np.random.default_rng(0), 5000)
    per_utterance = len(spoken.kind) // 6
    assert set(drawn) <= set(spoken.train)
    assert drawn.max() < 4 * per_utterance
    # Rare classes are drawn as often as common ones to the square root.
    counts, told = (np.bincount(spoken.kind[rows], minlength=len(CLASSES)) for rows in (spoken.train, drawn))
    expected = np.sqrt(counts) / np.sqrt(counts).sum()
    np.testing.assert_allclose(told / len(drawn), expected, atol=0.03)


def test_speech_of_before_it_kept_its_samples_is_told(tmp_path: Path, ear: SpeechEncoder) -> None:
    with pytest.raises(TrainingDataError, match="synthetic_speech") as caught:
        SpokenFeatures(write_speech(tmp_path / "old.npz", with_samples=False), ear, TAPS)
    assert "old.npz" in one_line(caught.value)
    with pytest.raises(TrainingDataError, match="no labelled speech") as caught:
        SpokenFeatures(tmp_path / "absent.npz", ear, TAPS)
    one_line(caught.value)


# ----------------------------------------------------------------------------------------------------------- bottleneck

PLAIN = EncoderUse("plain", "0" * 64, 4, (0,))


def heard_clip(count: int, speaker: str, seed: int, carrier: int) -> Clip:
    """A clip without pictures whose opening is heard in channel `carrier`; the other channels are noise. Frame k is position k."""
    random = np.random.default_rng(seed)
    openness = random.standard_normal(count).astype(np.float32)
    values = random.standard_normal((count, PLAIN.channels)).astype(np.float32)
    values[:, carrier] = openness
    lips = np.zeros((count, 40, 2), np.float32)
    lips[:, 20:30, 1] = 0.02 * openness[:, None]
    return Clip(
        source=f"{speaker}.mp4",
        clip_id=speaker,
        speaker=speaker,
        crops=np.zeros((count, 1, 1, 3), np.uint8),
        mel=np.zeros((80, 1), np.float16),
        times_s=np.arange(count) / 50,
        lips=lips,
        rest=np.zeros((40, 2), np.float32),
        opening=(0.06 * openness).astype(np.float32),
        pose=np.zeros((count, 2), np.float32),
        shot=np.zeros(count, np.int32),
        features=PreparedFeatures(values.astype(np.float16), (0, count), (1.0,), PLAIN.sha256),
    )


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def first_lips(found: Bottleneck, clip: Clip) -> NDArray[np.float32]:
    """The first lip component, of the sign of the opening."""
    assert clip.features is not None
    return found(clip.features.windows(clip.times_s, PLAIN.taps))[:, 0]


@given(lengths=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 3)), min_size=1, max_size=6), balance=st.floats(0, 1))
def test_speakers_weigh_by_a_power_of_their_frames(lengths: list[tuple[int, int]], balance: float) -> None:
    clips = [heard_clip(count, str(speaker), 0, 0) for count, speaker in lengths]
    weights = speaker_weights(clips, balance)
    owner = np.concatenate([np.full(count, speaker) for count, speaker in lengths])
    assert len(weights) == len(owner)
    for speaker in set(owner.tolist()):
        frames = int((owner == speaker).sum())
        assert float(weights[owner == speaker].sum()) == pytest.approx(frames**balance, rel=1e-4)


@given(spread=st.floats(0.0, 0.5))
def test_lips_that_move_little_are_enlarged_and_noise_is_not(spread: float) -> None:
    clip = heard_clip(50, "a", 0, 0)
    opening_of = (clip.opening - clip.opening.mean()) / clip.opening.std() * spread
    scale = lip_scale(replace(clip, opening=opening_of))
    assert scale == pytest.approx((0.06 / max(spread, 0.012)) ** 0.75, rel=1e-3)


def test_it_hears_the_opening_in_closed_form() -> None:
    clips = [heard_clip(600, name, number, 2) for number, name in enumerate("abc")]
    found = fit_bottleneck(clips[:2], None, PLAIN, 2, balance=0.45, on_clip=nothing)
    assert found.weight.shape == (4, LIP_COMPONENTS + len(CLASSES))
    assert abs(correlation(first_lips(found, clips[2]), clips[2].opening)) > 0.99
    # Over footage the outputs have mean 0 and variance 1; what nothing was learned of is 0.
    z = np.concatenate([found(clip.features.windows(clip.times_s, (0,))) for clip in clips[:2] if clip.features is not None])
    assert abs(z[:, 0].mean()) < 0.2
    assert z[:, 0].std() == pytest.approx(1, abs=0.2)
    assert np.abs(z[:, LIP_COMPONENTS:]).max() < 1e-6


def test_a_speaker_with_many_frames_does_not_drown_another_one() -> None:
    """The many frames tell the opening in channel 0, the few in channel 1: the weights of the channels are as documented."""
    many, few = heard_clip(4000, "many", 0, 0), heard_clip(40, "few", 1, 1)
    by_balance = {}
    for balance in (0.0, 0.5, 1.0):
        found = fit_bottleneck([many, few], None, PLAIN, 2, balance=balance, on_clip=nothing)
        by_balance[balance] = abs(float(found.weight[1, 0] / found.weight[0, 0]))
    assert by_balance[0.0] == pytest.approx(1.0, abs=0.35)
    assert by_balance[0.5] == pytest.approx(0.1, abs=0.06)
    assert by_balance[1.0] < 0.04


def test_it_tells_phonemes_of_labelled_speech(clips: list[Clip], spoken: SpokenFeatures, config: NetworkConfig) -> None:
    assert config.encoder is not None
    heard: list[int] = []
    found = fit_bottleneck(clips, spoken, config.encoder, 2, balance=0.45, on_clip=lambda: heard.append(1))
    assert len(heard) == len(clips)
    z = found(spoken.windows(np.arange(len(spoken.kind)), 0))[:, LIP_COMPONENTS:]
    m, a = (z[spoken.kind == CLASSES.index(kind)][:, CLASSES.index("bilabial")] for kind in ("bilabial", "open"))
    assert m.mean() > a.mean() + a.std()


# ------------------------------------------------------------------------------------------------------------- training


@dataclass
class Trained:
    memory: LipMemory
    told: list[tuple[str, int, int | None]]


@pytest.fixture(scope="module")
def trained(base: LipMemory, config: NetworkConfig, clips: list[Clip], spoken: SpokenFeatures, ear: SpeechEncoder) -> Trained:
    told: list[tuple[str, int, int | None]] = []
    memory = train_hearing(
        base, COMPACT, config, 2, clips[HELD_OUT:], spoken, resting_windows(ear, TAPS), QUICK, lambda *step: told.append(step)
    )
    return Trained(memory, told)


def test_the_opening_of_people_never_heard_is_recalled(trained: Trained, clips: list[Clip], config: NetworkConfig) -> None:
    for clip in clips[:HELD_OUT]:
        found = opening(trained.memory, clip.heard(np.arange(len(clip)), config))
        assert correlation(found, clip.opening) > 0.8
        assert found.std() > 0.4 * clip.opening.std()
    assert not trained.memory.training


def test_silence_and_faint_noise_recall_closed_lips(trained: Trained, clips: list[Clip], ear: SpeechEncoder, config: NetworkConfig) -> None:
    heard = opening(trained.memory, clips[0].heard(np.arange(len(clips[0])), config))
    windows = resting_windows(ear, TAPS)
    silent = opening(trained.memory, windows)
    assert windows.shape[1:] == (3, ear.spec.channels)
    assert abs(silent).mean() < 0.25 * heard.max()
    np.testing.assert_allclose(silent[:50], silent[0], atol=1e-4)  # digital silence is one thing, lips do not quiver


def test_lips_are_less_open_at_closures_of_labelled_speech(trained: Trained, spoken: SpokenFeatures) -> None:
    rows = [np.flatnonzero(spoken.kind == CLASSES.index(kind)) for kind in ("bilabial", "open")]
    shut, wide = (opening(trained.memory, spoken.windows(at, 0)).mean() for at in rows)
    assert shut < 0.6 * wide


def test_progress_is_told(trained: Trained) -> None:
    stages = [stage for stage, _, _ in trained.told]
    assert list(dict.fromkeys(stages)) == ["fitting", "learning lips", "looking at lips", "training"]
    assert trained.told[-1] == ("training", QUICK.steps, QUICK.steps)


def few_steps(base: LipMemory, config: NetworkConfig, clips: list[Clip], seed: int, spoken: SpokenFeatures | None) -> LipMemory:
    silence = np.zeros((4, 3, 6), np.float32)
    few = HearingSettings(steps=4, batch=32, seed=seed, lips=LipSettings(steps=4, batch=32, picture_steps=4))
    return train_hearing(base, COMPACT, config, 2, clips[:3], spoken, silence, few, nothing)


def test_the_same_seed_gives_the_same_weights(base: LipMemory, config: NetworkConfig, clips: list[Clip], spoken: SpokenFeatures) -> None:
    before = {name: value.clone() for name, value in base.state_dict().items()}
    one = few_steps(base, config, clips, 3, spoken).state_dict()
    torch.manual_seed(99)
    np.random.default_rng(1).random()
    again, other = (few_steps(base, config, clips, seed, spoken).state_dict() for seed in (3, 4))
    for name, value in one.items():
        assert torch.equal(value, again[name]), name
    assert not torch.equal(one["memory.keys"], other["memory.keys"])
    # What sees pictures stays what it was, and so does the memory that was given.
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name])
        if name.startswith("lip_encoder."):
            assert torch.equal(one[name], value), name


def test_what_was_fitted_in_closed_form_is_not_trained(base: LipMemory, config: NetworkConfig, clips: list[Clip]) -> None:
    assert config.encoder is not None
    found = fit_bottleneck(clips[:3], None, config.encoder, 2, balance=HearingSettings().balance, on_clip=nothing)
    state = few_steps(base, config, clips, 0, None).state_dict()
    np.testing.assert_array_equal(state["audio_encoder.bottleneck.weight"].numpy(), found.weight.T)
    np.testing.assert_array_equal(state["audio_encoder.bottleneck.bias"].numpy(), found.bias)


@torch.no_grad()
def test_lips_of_people_never_seen_are_recalled_from_points_and_from_pictures(
    trained: Trained, clips: list[Clip], config: NetworkConfig
) -> None:
    for clip in clips[:HELD_OUT]:
        memory, rows = trained.memory, np.arange(len(clip))
        by_points = memory.by_points(torch.from_numpy(clip.lip_windows(rows, config.frames)))
        assert by_points.address.shape == (len(clip), SLOTS)
        found = opening_from_lips(memory.landmarks(by_points.recalled)).numpy()
        assert correlation(found, clip.opening) > 0.95
        boxes = lip_windows(drawn_boxes(clip, 0, len(clip), config), config.frames)
        seen = memory.memory.by_lips(memory.lip_encoder(boxes))
        # The toy's lip encoder is random, so pictures tell less.
        assert correlation(opening_from_lips(memory.landmarks(seen.recalled)).numpy(), clip.opening) > 0.3


@torch.no_grad()
def test_a_slot_brings_the_lip_feature_that_the_generator_knows_for_its_lips(
    trained: Trained, base: LipMemory, clips: list[Clip], config: NetworkConfig
) -> None:
    memory, channels = trained.memory, COMPACT.channels
    fusion = memory.fusion[1]
    assert isinstance(fusion, torch.nn.Linear)
    assert (fusion.weight[:, :channels] == 0).all()
    some = torch.randn(7, channels)
    torch.testing.assert_close(memory.fuse(some, some), memory.fuse(-3 * some, some))
    for clip in clips[HELD_OUT:]:
        rows = np.arange(len(clip))
        boxes = lip_windows(drawn_boxes(clip, 0, len(clip), COMPACT), COMPACT.frames)
        recalled = base.memory.by_lips(base.lip_encoder(boxes)).recalled
        wanted = base.fuse(base.audio_encoder(torch.from_numpy(clip.heard(rows, COMPACT))), recalled)
        found = memory.fuse(torch.zeros(len(clip), channels), memory.by_points(torch.from_numpy(clip.lip_windows(rows, 5))).recalled)
        assert (found - wanted).square().mean() < 0.95 * (wanted.mean(dim=0) - wanted).square().mean()


def test_a_memory_on_points_is_trained_again_from_what_it_is(base: LipMemory, config: NetworkConfig, clips: list[Clip]) -> None:
    once = few_steps(base, config, clips, 0, None)
    some = HearingSettings(steps=2, batch=16, lips=LipSettings(steps=200, batch=64, picture_steps=2))
    twice = train_hearing(once, config, config, 2, clips[:3], None, np.zeros((4, 3, 6), np.float32), some, nothing)
    clip = clips[0]
    points, silent = torch.from_numpy(clip.lip_windows(np.arange(len(clip)), 5)), torch.zeros(len(clip), COMPACT.channels)
    with torch.no_grad():
        wanted, found = (memory.fuse(silent, memory.by_points(points).recalled) for memory in (once, twice))
    assert (found - wanted).square().mean() < 0.3 * (wanted.mean(dim=0) - wanted).square().mean()


# --------------------------------------------------------------------------------------------------------------- bundle


@pytest.fixture(scope="module")
def toy(house: Path, base: LipMemory) -> Path:
    """The bundle to begin with, which hears mel."""
    torch.manual_seed(3)
    spec = bundle.BundleSpec(
        name="toy", backend="memory", format_version=bundle.FORMAT_VERSION, crop=COMPACT.crop, mel=COMPACT.mel, slots=COMPACT.slots,
        lip_channels=COMPACT.channels, rest_feature=export.rest_feature(COMPACT, base, []), license="CC0-1.0", training_data="toys",
        graphs={}, created_with=__version__, voice_bands=2, tap_distance_s=0.02,
    )  # fmt: skip
    with torch.no_grad():
        export.write_bundle(
            house / "toy", spec, COMPACT, base, FaceGenerator(COMPACT).eval(), half=True, beside={"MODEL_CARD.md": b"# toy\n"}, force=False
        )
    return house / "toy"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `lipdub` with arguments in this process, with toy networks behind its presets."""
    monkeypatch.setitem(networks.PRESETS, "compact", COMPACT)
    with in_this_process(monkeypatch, capfd) as run:
        yield run


def test_the_command_writes_a_bundle_that_hears_through_the_encoder(
    run: Run, house: Path, toy: Path, clips: list[Clip], tmp_path: Path
) -> None:
    out = house / "heard"
    speech = write_speech(tmp_path / "speech.npz")
    wanted = (
        "train",
        "hearing",
        house / "prepared",
        "--model",
        toy,
        "--encoder",
        house / "ear",
        "-o",
        out,
        "--steps",
        "30",
        "--slots",
        str(SLOTS),
    )
    ran = run(*wanted, "--speech", speech, "--kappa", "12", "--smoothing-s", "0.04", "--slots", str(SLOTS))
    assert ran.code == 0, ran.err
    assert f"wrote {out}: " in " ".join(ran.out.split())
    spec, ear = bundle.load_spec(out), encoder.load_spec(house / "ear")
    assert spec.encoder == EncoderUse("ear", ear.graphs[encoder.GRAPH], ear.channels, TAPS)
    assert (spec.name, spec.mel, spec.voice_bands, spec.tap_distance_s, spec.slots) == ("heard", None, 0, 0.04, SLOTS)
    assert spec.network is not None
    assert spec.network.drawn_kappa == 12
    assert (out / "MODEL_CARD.md").read_bytes() == b"# toy\n"
    assert (out / "generator.onnx").read_bytes() == (toy / "generator.onnx").read_bytes()
    # It opens, and what it recalls follows the sound.
    model = open_model(str(out), device="cpu", threads=1)
    clip = clips[1]
    found = list(lips_at(house / "prepared" / f"{clip.clip_id}.wav", model.memory, clip.times_s))
    feature = np.concatenate([lips.feature for lips in found])
    assert feature.shape == (len(clip), COMPACT.channels)
    assert max(abs(correlation(feature[:, channel], clip.opening)) for channel in range(COMPACT.channels)) > 0.7
    write_wav(tmp_path / "silence.wav", np.zeros(RATE_HZ))
    (at_rest,) = lips_at(tmp_path / "silence.wav", model.memory, np.arange(10) / 25)
    assert (at_rest.silence == 1).all()
    rested = at_rest.at_rest_in_pauses(np.asarray(spec.rest_feature, np.float32))
    np.testing.assert_allclose(rested.feature, np.repeat([spec.rest_feature], 10, axis=0), atol=1e-5)
    # It may be trained again: on what it is itself, with force.
    refused = run(*wanted)
    assert refused.code == 1
    assert "--force" in refused.err
    again = run("train", "hearing", house / "prepared", "--model", out, "--encoder", house / "ear", "-o", out, "--steps", "2", "--force")
    assert again.code == 0, again.err


def test_lip_points_address_the_slots_of_a_bundle_that_stays_as_it_is(
    run: Run, house: Path, toy: Path, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing_bundle, "MEASURED_S", 1.0)
    out = tmp_path / "seen"
    ran = run("train", "lips", house / "prepared", "--val", house / "prepared", "--model", toy, "-o", out, "--steps", "150")
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    assert f"wrote {out}: by true lips r " in said
    assert said.endswith(f"worst of {len(clips)} clips")
    assert float(said.partition(" r ")[2].split()[0]) > 0.8
    for graph in bundle.TENSORS:
        assert (out / graph).read_bytes() == (toy / graph).read_bytes()
    config, memory, _ = weights.load_bundle_networks(out, bundle.load_spec(out))
    before = weights.load_bundle_networks(toy, bundle.load_spec(toy))[1].state_dict()
    assert config == replace(COMPACT, points_hidden=POINTS_HIDDEN)
    added = {key for key in memory.state_dict() if key.startswith("point_encoder.")}
    assert memory.state_dict().keys() == before.keys() | added
    assert all(torch.equal(memory.state_dict()[key], value) for key, value in before.items())
    # Without other people nothing is claimed of them.
    ran = run("train", "lips", house / "prepared", "--model", toy, "-o", out, "--steps", "1", "--force")
    assert (ran.code, " ".join(ran.out.split())) == (0, f"wrote {out}")


def test_the_command_finds_offsets_and_stores_them(run: Run, house: Path, clips: list[Clip]) -> None:
    stored = house / "prepared" / "offsets.json"
    assert not stored.exists()
    refused = run("train", "offsets", house / "prepared", "--encoder", house / "ear", "--anchor", "nobody")
    assert refused.code == 1
    assert "'nobody'" in refused.err
    assert not stored.exists()
    ran = run("train", "offsets", house / "prepared", "--encoder", house / "ear")
    assert ran.code == 0, ran.err
    assert f"{len(clips)} clips: " in ran.out
    assert set(json.loads(stored.read_text())) == {clip.clip_id for clip in clips}
    stored.unlink()


def job(house: Path, toy: Path) -> HearingJob:
    return HearingJob(
        model=str(toy), encoder=str(house / "ear"), speech=None, slots=SLOTS, drawn_kappa=18.0, tap_distance_s=0.03, steps=2, seed=0
    )


@pytest.mark.parametrize("name", ["Upper", "with space"])
def test_a_folder_that_cannot_be_a_bundle_is_refused_at_once(house: Path, toy: Path, name: str) -> None:
    told: list[object] = []
    with pytest.raises(OutputRefused, match="name must be lower-case") as caught:
        train_bundle([house / "prepared"], house / name, job(house, toy), force=False, tell=lambda *step: told.append(step))
    one_line(caught.value)
    assert not told
    assert not (house / name).exists()


def test_an_encoder_that_the_bundle_would_not_find_is_told_at_once(house: Path, toy: Path, tmp_path: Path) -> None:
    told: list[object] = []
    with pytest.raises(BundleNotFound, match="'ear'") as caught:
        train_bundle([house / "prepared"], tmp_path / "heard", job(house, toy), force=False, tell=lambda *step: told.append(step))
    one_line(caught.value)
    assert not told


@pytest.mark.parametrize("wrong", ["no encoder", "no bundle", "no clips", "no features", "no speech"])
def test_errors_are_one_line(run: Run, house: Path, toy: Path, tmp_path: Path, wrong: str) -> None:
    given = {"--model": toy, "--encoder": house / "ear", "-o": house / "new", "--steps": "2"}
    prepared = house / "prepared"
    if wrong == "no encoder":
        given["--encoder"] = tmp_path / "absent"
    elif wrong == "no bundle":
        given["--model"] = tmp_path / "absent"
    elif wrong == "no clips":
        prepared = tmp_path
    elif wrong == "no features":
        prepared = write_clips(tmp_path / "prepared")
    else:
        given["--speech"] = tmp_path / "absent.npz"
    ran = run("train", "hearing", prepared, *[word for pair in given.items() for word in pair])
    assert ran.code == 1
    (line,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.err.rstrip().endswith(line)
    assert not (house / "new").exists()


@pytest.mark.usefixtures("here")
def test_prepare_hears_the_clips_that_it_kept(
    run: Run, house: Path, tmp_path: Path, sounds: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faces are not looked for here: two clips were kept, one was dropped."""
    from lipdub.train import prepare as preparing

    found = [preparing.Prepared(str(source), clip_id, 50, None) for clip_id, source in sounds]
    found.append(preparing.Prepared("dropped.mp4", "dropped", 0, "no face"))
    out = tmp_path / "out"
    out.mkdir()

    def prepared(files: Sequence[Path], folder: Path, *_: object, **__: object) -> list[preparing.Prepared]:
        return found

    monkeypatch.setattr(preparing, "find_clips", lambda places: [source for _, source in sounds])
    monkeypatch.setattr(preparing, "prepare", prepared)
    ran = run("prepare", tmp_path, "-o", out, "--encoder", house / "ear", "--voices", "1", "--workers", "1")
    assert ran.code == 0, ran.err
    assert sorted(json.loads(file.read_text())["starts"][0] for file in out.glob("*.features.json")) == [0, 0]
    sounds[0][1].unlink()
    (out / "clip0.features.json").unlink()
    gone = run("prepare", tmp_path, "-o", out, "--encoder", house / "ear", "--voices", "1", "--workers", "1")
    assert gone.code == 1
    assert any(line.startswith("error: ") and str(sounds[0][1]) in line for line in gone.err.splitlines())


def test_the_audio_side_stands_on_the_encoder(ear: SpeechEncoder) -> None:
    spec: EncoderSpec = ear.spec
    found = hearing_config(COMPACT, spec, slots=SLOTS, drawn_kappa=20.0)
    assert found.mel is None
    assert found.drawn_kappa == 20
    assert found.encoder == EncoderUse("ear", spec.graphs[encoder.GRAPH], spec.channels, TAPS)
    assert (found.slots, found.points_hidden) == (SLOTS, POINTS_HIDDEN)
    changed = {"mel": COMPACT.mel, "encoder": None, "drawn_kappa": COMPACT.drawn_kappa, "slots": COMPACT.slots, "points_hidden": 0}
    assert replace(found, **changed) == COMPACT


def test_settings_with_an_encoder_are_read_back(config: NetworkConfig) -> None:
    """As a checkpoint holds them, and by way of JSON, as the weights of a bundle do."""
    for values in (config.to_dict(), json.loads(json.dumps(config.to_dict()))):
        assert checkpoints.settings_of(NetworkConfig, values, "here") == config
    damaged = config.to_dict()
    damaged["encoder"]["taps"] = ()
    with pytest.raises(TrainingError, match="unusable settings"):
        checkpoints.settings_of(NetworkConfig, damaged, "here")


def test_a_bundle_on_an_encoder_is_exported_anew(house: Path, toy: Path) -> None:
    """Its encoder lies beside it alone: lipdub came with none of that sha256."""
    train_bundle([house / "prepared"], house / "first", job(house, toy), force=False, tell=nothing)
    done = export.export(house / "first", house / "anew", rest_from=house / "prepared", drawn_kappa=30.0)
    assert done.spec.network is not None
    assert done.spec.network.drawn_kappa == 30
    first = bundle.load_spec(house / "first")
    assert done.spec.encoder == first.encoder
    # The generator that draws the resting mouth is the old one, unless another mouth is asked for.
    assert first.rest_feature == bundle.load_spec(toy).rest_feature
    assert done.spec.rest_feature != first.rest_feature
    open_model(str(house / "anew"), device="cpu", threads=1)
