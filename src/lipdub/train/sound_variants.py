"""Variants of a sound: other voices, rooms, noise and codecs, so that a memory learns what is said, not by whom and where.

Everything is exact in time: a moment of a variant that plays at `speed` is that of the original at `speed` times its own time.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, resample_poly, sosfilt

from lipdub.speech.whisper_mel import RATE_HZ

SLOWEST, FASTEST = 0.88, 1.14
"""Resampled by this, pitch, formants and speed change together, as from person to person."""
EQUALISED, REVERBERANT, NOISY, CODED = 0.6, 0.4, 0.7, 0.35
"""Shares of the variants that get each change."""
SNR_DB = (5.0, 30.0)
_MOST_TERMS = 60


def speed_of(random: np.random.Generator) -> float:
    """A random speed, a ratio of small numbers, that `varied` plays exactly."""
    wanted = float(np.exp(random.uniform(np.log(SLOWEST), np.log(FASTEST))))
    return float(1 / Fraction(1 / wanted).limit_denominator(_MOST_TERMS))


def varied(samples: NDArray[np.float32], speed: float, random: np.random.Generator) -> NDArray[np.float32]:
    """A sound, float32 (n,) at 16 kHz, played at `speed` and changed at random: float32 (about n / speed,) in [-1, 1]."""
    ratio = Fraction(1 / speed).limit_denominator(_MOST_TERMS)
    sound = resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float64)
    count, (equalised, reverberant, noisy, coded) = len(sound), random.random(4)
    if equalised < EQUALISED:
        frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE_HZ), 50)
        gain_db = np.interp(np.log(frequency), np.log([50, 150, 400, 1000, 2500, 5000, 8000]), random.normal(0, 4, 7))
        sound = np.fft.irfft(np.fft.rfft(sound) * _factor(gain_db), count)
    if reverberant < REVERBERANT:
        sound = fftconvolve(sound, _room(random))[:count]
    if noisy < NOISY:
        noise = _coloured_noise(count, random) if random.random() < 0.5 else _music(count, random)
        loudness = float(np.sqrt(np.mean(np.square(sound)) + 1e-9))
        sound = sound + noise / (noise.std() + 1e-6) * loudness * _factor(-random.uniform(*SNR_DB))
    if coded < CODED:
        sound = _through_codec(sound, random)
    return np.clip(sound * _factor(random.uniform(-12, 6)), -1, 1).astype(np.float32)


def _factor(decibels: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
    return 10 ** (np.asarray(decibels) / 20)


def _room(random: np.random.Generator) -> NDArray[np.float64]:
    """The impulse response of a room: the direct sound, then noise that dies away within 0.12 to 0.7 s."""
    seconds = random.uniform(0.12, 0.7)
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    tail = random.standard_normal(len(time_s)) * np.exp(-6.9 * time_s / seconds)
    tail[: round(0.002 * RATE_HZ)] = 0
    response = tail * _factor(random.uniform(-14, 0)) / np.sqrt(np.square(tail).sum() + 1e-9)
    response[0] = 1
    return np.asarray(response)


def _coloured_noise(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Noise of a random colour, half of the time swelling and ebbing."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE_HZ), 20)
    noise = np.fft.irfft(spectrum * (frequency / 1000) ** random.uniform(-1.2, 0.3), count)
    if random.random() < 0.5:
        time_s = np.arange(count) / RATE_HZ
        noise = noise * (1 + 0.8 * np.sin(2 * np.pi * random.uniform(0.3, 4) * time_s + random.uniform(0, 6)))
    return noise


def _music(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Chords and beats of a random key and tempo."""
    sound = np.zeros(count)
    beat_s, root_hz, begin = random.uniform(0.25, 0.7), random.uniform(80, 260), 0
    while begin < count:
        length = min(int(beat_s * RATE_HZ * random.choice([1, 1, 2])), count - begin)
        time_s = np.arange(length) / RATE_HZ
        for _ in range(random.integers(1, 4)):
            hz = root_hz * 2 ** (random.choice([0, 2, 4, 5, 7, 9, 11, 12, 14, 16]) / 12) * random.choice([1, 2, 2])
            for harmonic in range(1, 8):
                if hz * harmonic < 7500:
                    tone = np.sin(2 * np.pi * hz * harmonic * time_s + random.uniform(0, 6)) / harmonic ** random.uniform(0.7, 2)
                    sound[begin : begin + length] += tone * np.exp(-time_s * random.uniform(0.5, 6))
        if random.random() < 0.7:
            beat = random.standard_normal(length) * np.exp(-time_s * random.uniform(20, 60))
            sound[begin : begin + length] += beat * random.uniform(0.3, 2)
        begin += length
    return sound


def _through_codec(sound: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """What a telephone leaves of a sound: a limited band, half of the time in few logarithmic levels."""
    sound = np.asarray(sosfilt(butter(4, random.uniform(3200, 7000) / (RATE_HZ / 2), output="sos"), sound))
    if random.random() < 0.4:
        peak = float(np.abs(sound).max()) + 1e-6
        levels = 2 ** random.integers(4, 8)
        coded = np.round(np.sign(sound) * np.log1p(255 * np.abs(sound) / peak) / np.log(256) * levels) / levels
        sound = np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255 * peak
    return sound
