"""mel.py: a stream equals the whole, the whole equals librosa's own, and a frame's window is centred on its time to the column."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import librosa
import numpy as np
import pytest
from faces_for_tests import SPEECH
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub import media
from lipdub.records import MelSpec
from lipdub.speech.mel import SILENCE, MelStream, MelTrack, cut_windows, first_column, log_mel
from lipdub.speech.silence import silence_weight

SPEC = MelSpec()
RATE = SPEC.sample_rate_hz
FRAME_RATES = [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)]
TWO_HOURS_S = 7200


def noise(count: int, seed: int = 0, level: float = 0.3) -> NDArray[np.float32]:
    return np.clip(level * np.random.default_rng(seed).normal(size=count), -1, 1).astype(np.float32)


def blocks_of(samples: NDArray[np.float32], sizes: list[int]) -> Iterator[NDArray[np.float32]]:
    """`samples` in blocks of `sizes`, the rest in one."""
    start = 0
    for size in sizes:
        yield samples[start : start + size]
        start += size
    yield samples[start:]


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    return np.concatenate(list(media.read_audio(SPEECH, RATE)))


# -------------------------------------------------------------------------------------------------- stream and whole


@given(count=st.integers(0, 6000), sizes=st.lists(st.integers(0, 1500), max_size=8), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_stream_equals_the_whole_however_it_is_cut(count: int, sizes: list[int], seed: int) -> None:
    samples = noise(count, seed)
    stream = MelStream(SPEC)
    pieces = [stream.push(block) for block in blocks_of(samples, sizes)]
    streamed = np.concatenate([*pieces, stream.flush()], axis=1)
    whole = log_mel(samples, SPEC)
    assert streamed.shape == whole.shape == (SPEC.bands, 1 + count // SPEC.hop)
    np.testing.assert_allclose(streamed, whole, atol=1e-4)


@pytest.mark.parametrize("size", [1, 199, 200, 201, 65536])
def test_blocks_of_one_size_give_the_same_columns(size: int, speech: NDArray[np.float32]) -> None:
    samples = speech[8000:11000] if size == 1 else speech
    stream = MelStream(SPEC)
    pieces = [stream.push(samples[start : start + size]) for start in range(0, len(samples), size)]
    np.testing.assert_allclose(np.concatenate([*pieces, stream.flush()], axis=1), log_mel(samples, SPEC), atol=1e-4)


@given(count=st.integers(1000, 8000), seed=st.integers(0, 9), level=st.floats(1e-5, 1.0))
@settings(max_examples=20, deadline=None)
def test_it_is_librosas_mel_of_the_pre_emphasised_sound_in_decibels(count: int, seed: int, level: float) -> None:
    samples = noise(count, seed, level)
    np.testing.assert_allclose(log_mel(samples, SPEC), by_librosa(samples), atol=2e-3)


def test_speech_is_librosas_mel_too(speech: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(log_mel(speech, SPEC), by_librosa(speech), atol=2e-3)


def test_in_single_precision_it_is_librosas_to_the_last_digit(speech: NDArray[np.float32]) -> None:
    """Dubs through older bundles stay what they were when librosa made the columns."""
    emphasised = speech - np.float32(0.97) * np.concatenate([np.zeros(1, np.float32), speech[:-1]])
    spectrum = np.abs(librosa.stft(emphasised, n_fft=800, hop_length=200, win_length=800, window="hann", center=True, pad_mode="constant"))
    mel = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600) @ spectrum
    decibels = 20.0 * np.log10(np.maximum(1e-5, mel)) - 20.0
    scaled = 8.0 * (decibels + 100.0) / 100.0 - 4.0
    np.testing.assert_allclose(log_mel(speech, SPEC), np.clip(scaled, -4.0, 4.0).astype(np.float32), rtol=0, atol=1e-6)


def by_librosa(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """The convention of docs/architecture.md in librosa's own words, in double precision."""
    emphasised = samples.astype(np.float64).copy()
    emphasised[1:] -= 0.97 * samples[:-1].astype(np.float64)
    spectrum = np.abs(librosa.stft(emphasised, n_fft=800, hop_length=200, win_length=800, window="hann", center=True, pad_mode="constant"))
    mel = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600) @ spectrum
    decibels = 20 * np.log10(np.maximum(1e-5, mel)) - 20
    return np.clip(8 * (decibels + 100) / 100 - 4, -4, 4)


@given(seed=st.integers(0, 9), level=st.sampled_from([0.0, 1e-30, 1e-4, 0.1, 1.0, 100.0]))
@settings(max_examples=20, deadline=None)
def test_values_lie_between_minus_and_plus_4(seed: int, level: float) -> None:
    samples = (level * np.sign(noise(3000, seed))).astype(np.float32)
    mel = log_mel(samples, SPEC)
    assert mel.dtype == np.float32
    assert np.isfinite(mel).all()
    assert mel.min() >= -4
    assert mel.max() <= 4


@pytest.mark.parametrize("count", [0, 1, 799, 16000])
def test_digital_silence_is_minus_4(count: int) -> None:
    assert (log_mel(np.zeros(count, np.float32), SPEC) == SILENCE).all()


# ----------------------------------------------------------------------------------------------------------- windows


@given(rate=st.sampled_from(FRAME_RATES), second=st.integers(0, TWO_HOURS_S), frame=st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_the_window_is_centred_on_the_frame_without_drift(rate: Fraction, second: int, frame: int) -> None:
    time_s = (round(second * rate) + frame) / rate
    first = int(first_column(np.array([float(time_s)]), SPEC)[0])
    middle_s = Fraction(first + first + SPEC.window - 1, 2 * SPEC.columns_per_s)
    # Half a column at most, and a hair for the floating point of the time.
    assert abs(middle_s - time_s) <= Fraction(1, 2 * SPEC.columns_per_s) + Fraction(1, 10**9)


def test_column_numbers_hold_beyond_every_integer_of_a_frame_track() -> None:
    # 409.6 s is where 32767 columns end; 2**31 samples are 37 hours.
    times = np.array([0.0, 409.59, 409.6, 409.61, 7200.0, 200_000.0])
    first = first_column(times, SPEC)
    assert first.dtype == np.int64
    np.testing.assert_allclose((first + 7.5) / 80, times, atol=0.5 / 80 + 1e-6)
    assert (first_column(times.astype(np.float32)[:2], SPEC) == first[:2]).all()


@pytest.mark.parametrize("rate", FRAME_RATES)
@pytest.mark.parametrize("near_s", [0.5, 600.25])
def test_a_click_lies_in_the_middle_of_its_frames_window(rate: Fraction, near_s: float) -> None:
    frame = round(near_s * rate)
    time_s = float(frame / rate)
    # The second before the click is enough of the sound: the mel has no memory beyond 50 ms.
    start = max(0, int(time_s) - 1)
    samples = np.zeros(3 * RATE, np.float32)
    samples[round((time_s - start) * RATE)] = 1.0
    mel = log_mel(samples, SPEC)
    # A whole number of seconds is a whole number of columns.
    window = cut_windows(mel, np.array([time_s - start]), SPEC)[0]
    energy = 10 ** (window.mean(axis=0).astype(np.float64))
    energy -= 10.0**SILENCE
    middle = float((energy * np.arange(SPEC.window)).sum() / energy.sum())
    assert abs(middle - (SPEC.window - 1) / 2) <= 0.75
    assert (energy[[0, 1, 2, -3, -2, -1]] < 1e-9).all()


def test_outside_the_sound_there_is_silence(speech: NDArray[np.float32]) -> None:
    mel = log_mel(speech, SPEC)
    end_s = len(speech) / RATE
    before, at_zero, at_end, after = cut_windows(mel, np.array([-5.0, 0.0, end_s, end_s + 60]), SPEC)
    assert (before == SILENCE).all()
    assert (after == SILENCE).all()
    assert (at_zero[:, :7] == SILENCE).all()
    assert (at_end[:, 10:] == SILENCE).all()
    assert (cut_windows(np.zeros((80, 0), np.float32), np.array([0.0, 1.0]), SPEC) == SILENCE).all()
    assert cut_windows(mel, np.zeros(0), SPEC).shape == (0, 80, 16)


# ------------------------------------------------------------------------------------------------------------- track


@given(
    rate=st.sampled_from(FRAME_RATES),
    start=st.integers(0, 40),
    calls=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    sizes=st.lists(st.integers(0, 20_000), max_size=6),
    reach_s=st.sampled_from([0.0, 0.03]),
)
@settings(max_examples=40, deadline=None)
def test_the_streamed_track_gives_the_windows_of_the_whole(
    speech: NDArray[np.float32], rate: Fraction, start: int, calls: list[int], sizes: list[int], reach_s: float
) -> None:
    mel = log_mel(speech, SPEC)
    track = MelTrack(blocks_of(speech, sizes), SPEC)
    frame = start
    for count in calls:
        times = np.array([float((frame + k) / rate) for k in range(count)])
        times = np.concatenate([times - reach_s, times, times + reach_s])
        windows = track.windows(times)
        assert windows.shape == (3 * count, SPEC.bands, SPEC.window)
        np.testing.assert_allclose(windows, cut_windows(mel, times, SPEC), atol=1e-4)
        frame += count


def test_the_streamed_track_agrees_after_a_quarter_of_an_hour_on_times_that_fall_between_two_columns() -> None:
    # Every 5th frame of 25 a second lies exactly between two columns: the smallest rounding would move the window.
    blocks = 250  # of 4 s: the same 4 s over and over, but for its edges
    block = noise(4 * RATE, seed=3)
    track = MelTrack((block for _ in range(blocks)), SPEC)
    reference = log_mel(np.concatenate([block] * 3), SPEC)
    for at_s in [*range(2, 4 * blocks - 4, 97)]:
        times = at_s + np.arange(25) * 0.04
        # The phase within the repeating 4 s, taken in the middle of the three.
        expected = first_column(times, SPEC) - at_s * 80 + (4 + at_s % 4) * 80
        windows = track.windows(times)
        wanted = np.stack([reference[:, first : first + 16] for first in expected])
        np.testing.assert_allclose(windows, wanted, atol=1e-3)


def test_the_streamed_track_holds_seconds_not_hours() -> None:
    block = np.zeros(65536, np.float32)
    track = MelTrack((block for _ in range(150)), SPEC)
    most = 0
    for at_s in np.arange(0, 600, 0.64):
        track.windows(at_s + np.arange(16) * 0.04)
        most = max(most, track._columns.shape[1])
    held = track._columns if track._columns.base is None else track._columns.base
    assert most <= 10 * SPEC.columns_per_s
    assert held.shape[1] <= 10 * SPEC.columns_per_s


def test_no_times_ask_for_no_sound() -> None:
    def never() -> Iterator[NDArray[np.float32]]:
        raise AssertionError("the sound was read")
        yield

    assert MelTrack(never(), SPEC).windows(np.zeros(0)).shape == (0, 80, 16)


# ----------------------------------------------------------------------------------------------------------- silence


def test_digital_silence_is_a_pause_and_speech_is_not(speech: NDArray[np.float32]) -> None:
    assert (silence_weight(np.full((3, 80, 16), SILENCE, np.float32)) == 1).all()
    assert silence_weight(np.zeros((0, 80, 16), np.float32)).shape == (0,)
    mel = log_mel(speech, SPEC)
    times = np.arange(0.1, len(speech) / RATE - 0.1, 0.04)
    weights = silence_weight(cut_windows(mel, times, SPEC))
    assert ((weights >= 0) & (weights <= 1)).all()
    loudness = np.array([np.abs(speech[max(0, int((t - 0.1) * RATE)) : int((t + 0.1) * RATE)]).max() for t in times])
    assert (weights[loudness > 0.1] == 0).all()
    assert (loudness > 0.1).mean() > 0.5


@given(seed=st.integers(0, 5), quieter=st.floats(0.0, 1.0))
@settings(max_examples=20, deadline=None)
def test_a_quieter_sound_is_no_less_of_a_pause(seed: int, quieter: float) -> None:
    samples = noise(RATE // 2, seed, 0.01)
    times = np.array([0.25])
    loud = silence_weight(cut_windows(log_mel(samples, SPEC), times, SPEC))
    soft = silence_weight(cut_windows(log_mel((quieter * samples).astype(np.float32), SPEC), times, SPEC))
    assert (soft >= loud).all()
