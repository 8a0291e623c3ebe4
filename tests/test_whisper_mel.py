"""whisper_mel.py and its filters: librosa's own numbers, a stream equals the whole, and a column is centred on its time."""

from __future__ import annotations

from collections.abc import Iterator

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.bundles.encoder import BANDS
from lipdub.records import MelSpec
from lipdub.speech import whisper_mel
from lipdub.speech.filterbank import hann, slaney_filters
from lipdub.speech.whisper_mel import FLOOR, HOP, RATE_HZ, WhisperMelStream, columns_of, log_mel

SILENCE = (FLOOR + 4) / 4


def noise(count: int, seed: int = 0, level: float = 0.3) -> NDArray[np.float32]:
    return np.clip(level * np.random.default_rng(seed).normal(size=count), -1, 1).astype(np.float32)


def glide(seconds: float) -> NDArray[np.float32]:
    """A tone that rises from 100 Hz to 7 kHz, over faint noise: most of the bands lie near the floor at any moment."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(100 + 6900 * time_s / seconds) / RATE_HZ
    return (0.6 * np.sin(phase) + 1e-4 * noise(len(time_s), 1)).astype(np.float32)


def blocks_of(samples: NDArray[np.float32], sizes: list[int]) -> Iterator[NDArray[np.float32]]:
    """`samples` in blocks of `sizes`, the rest in one."""
    start = 0
    for size in sizes:
        yield samples[start : start + size]
        start += size
    yield samples[start:]


def power_by_librosa(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Power per band in librosa's own words, in double precision."""
    spectrum = librosa.stft(samples.astype(np.float64), n_fft=400, hop_length=160, window="hann", center=True, pad_mode="constant")
    return librosa.filters.mel(sr=16000, n_fft=400, n_mels=80, dtype=np.float64) @ np.abs(spectrum) ** 2


# --------------------------------------------------------------------------------------------------- librosa


@given(count=st.integers(400, 8000), seed=st.integers(0, 9), level=st.floats(1e-4, 1.0))
@settings(max_examples=12)
def test_it_is_librosas_power_in_log10(count: int, seed: int, level: float) -> None:
    samples = noise(count, seed, level)
    power = power_by_librosa(samples)
    found = log_mel(samples)
    assert found.dtype == np.float32
    assert found.shape == power.shape == (BANDS, 1 + count // HOP)
    np.testing.assert_allclose(found, (np.log10(np.maximum(power, 10**FLOOR)) + 4) / 4, atol=1e-4)
    np.testing.assert_allclose(10 ** (4.0 * found - 4.0), np.maximum(power, 10**FLOOR), rtol=1e-3, atol=1e-5)


def test_a_tone_that_glides_through_all_bands_is_librosas_too() -> None:
    samples = glide(1.0)
    power = power_by_librosa(samples)
    sounding = power > 10 ** (FLOOR + 1)  # below, single precision shows: rfft in float32 leaks 1e-7 of the loudest band
    assert 0.1 < sounding.mean() < 1
    expected = (np.log10(np.maximum(power, 10**FLOOR)) + 4) / 4
    np.testing.assert_allclose(log_mel(samples)[sounding], expected[sounding], atol=1e-4)
    np.testing.assert_allclose(log_mel(samples), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("n_fft", "low_hz", "high_hz"), [(400, 0.0, 8000.0), (MelSpec().n_fft, MelSpec().fmin_hz, MelSpec().fmax_hz)], ids=["whisper", "mel"]
)
def test_both_filterbanks_are_librosas(n_fft: int, low_hz: float, high_hz: float) -> None:
    ours = slaney_filters(RATE_HZ, n_fft, 80, low_hz, high_hz)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, librosa.filters.mel(sr=16000, n_fft=n_fft, n_mels=80, fmin=low_hz, fmax=high_hz))


@pytest.mark.parametrize("length", [400, 800])
def test_the_window_is_the_periodic_hann_window(length: int) -> None:
    np.testing.assert_allclose(hann(length), librosa.filters.get_window("hann", length, fftbins=True), atol=1e-7)


# -------------------------------------------------------------------------------------------------- stream and whole


@given(count=st.integers(0, 6000), sizes=st.lists(st.integers(0, 1500), max_size=8), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_a_stream_equals_the_whole_however_it_is_cut(count: int, sizes: list[int], seed: int) -> None:
    samples = noise(count, seed)
    stream = WhisperMelStream()
    streamed = np.concatenate([*(stream.push(block) for block in blocks_of(samples, sizes)), stream.flush()], axis=1)
    whole = log_mel(samples)
    assert streamed.shape == whole.shape == (BANDS, 1 + count // HOP)
    np.testing.assert_allclose(streamed, whole, atol=1e-5)


@pytest.mark.parametrize("size", [1, 159, 160, 161, 400])
def test_blocks_of_one_size_give_the_same_columns(size: int) -> None:
    samples = noise(3000)
    stream = WhisperMelStream()
    pieces = [stream.push(samples[start : start + size]) for start in range(0, len(samples), size)]
    np.testing.assert_allclose(np.concatenate([*pieces, stream.flush()], axis=1), log_mel(samples), atol=1e-5)


@given(seed=st.integers(0, 9), before=st.integers(0, 20), after=st.integers(0, 3000), louder=st.sampled_from([0.0, 0.01, 1.0]))
@settings(max_examples=25)
def test_a_moment_sounds_the_same_whatever_stands_before_and_after_it(seed: int, before: int, after: int, louder: float) -> None:
    """No statistic runs over the clip, as Whisper's own floor does."""
    samples = noise(3200, seed, 0.01)
    around = np.concatenate([noise(before * HOP, 11, louder), samples, noise(after, 12, louder)])
    # A window reaches 200 samples to either side.
    np.testing.assert_allclose(log_mel(around)[:, before + 2 : before + 18], log_mel(samples)[:, 2:18], atol=1e-5)


def test_columns_are_the_same_however_many_are_transformed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = noise(4000)
    whole = columns_of(samples)
    monkeypatch.setattr(whisper_mel, "_AT_ONCE", 7)
    np.testing.assert_allclose(columns_of(samples), whole, atol=1e-5)


@pytest.mark.parametrize(("count", "columns"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2)])
def test_only_whole_windows_are_columns(count: int, columns: int) -> None:
    assert columns_of(noise(count)).shape == (BANDS, columns)


# ------------------------------------------------------------------------------------------------------ time and silence


@given(column=st.integers(0, 50))
@settings(max_examples=20)
def test_column_j_is_centred_on_sample_160_j(column: int) -> None:
    samples = np.zeros(51 * HOP, np.float32)
    samples[column * HOP] = 1.0
    energy = (10 ** (4.0 * log_mel(samples) - 4.0) - 10.0**FLOOR).sum(axis=0)
    assert energy.argmax() == column
    # The same on both sides of it: a Hann window falls off evenly.
    reach = min(3, column, 51 - column)
    np.testing.assert_allclose(energy[column - reach : column + reach + 1], energy[column - reach : column + reach + 1][::-1], rtol=1e-3)
    assert (energy[: max(0, column - 1)] < 1e-6).all()
    assert (energy[column + 2 :] < 1e-6).all()


@pytest.mark.parametrize("count", [0, 1, 399, 16000])
def test_digital_silence_is_the_floor(count: int) -> None:
    found = log_mel(np.zeros(count, np.float32))
    assert found.shape == (BANDS, 1 + count // HOP)
    np.testing.assert_allclose(found, SILENCE, atol=1e-6)


@given(seed=st.integers(0, 9), level=st.sampled_from([0.0, 1e-30, 1e-4, 0.1, 1.0]), floor=st.floats(-9, -3))
@settings(max_examples=25)
def test_values_lie_between_the_floor_and_the_loudest_sound(seed: int, level: float, floor: float) -> None:
    samples = (level * np.sign(noise(3000, seed))).astype(np.float32)
    found = log_mel(samples, floor=floor)
    assert np.isfinite(found).all()
    assert found.min() >= (floor + 4) / 4 - 1e-5
    assert found.max() <= 2
    # A higher floor only cuts.
    np.testing.assert_allclose(found, np.maximum(log_mel(samples, floor=-9), (floor + 4) / 4), atol=1e-5)
