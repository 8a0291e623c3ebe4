"""Variants of a sound: other voices, sung, in rooms, noise, music, songs and codecs, so that a memory learns what is said, not by whom and
where.

Everything is exact in time: a moment of a variant that plays at `speed` is that of the original at `speed` times its own time.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_toeplitz
from scipy.signal import butter, fftconvolve, lfilter, resample_poly, sosfilt

from lipdub.speech.whisper_mel import RATE_HZ

SLOWEST, FASTEST = 0.88, 1.14
"""Resampled by this, pitch, formants and speed change together, as from person to person."""
SUNG, EQUALISED, REVERBERANT, NOISY, CODED = 0.15, 0.6, 0.4, 0.7, 0.35
"""Shares of the variants that get each change."""
SNR_DB = (5.0, 30.0)
_MOST_TERMS = 60
_LPC_ORDER, _LPC_HOP, _LPC_WINDOW = 18, 160, 480
"""Of the vocal tract that a sung variant keeps, in samples."""
_VOWELS_HZ = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
"""Formants of a, e, i, o, u."""


def speed_of(random: np.random.Generator) -> float:
    """A random speed, a ratio of small numbers, that `varied` plays exactly."""
    wanted = float(np.exp(random.uniform(np.log(SLOWEST), np.log(FASTEST))))
    return float(1 / Fraction(1 / wanted).limit_denominator(_MOST_TERMS))


def varied(samples: NDArray[np.float32], speed: float, random: np.random.Generator) -> NDArray[np.float32]:
    """A sound, float32 (n,) at 16 kHz, played at `speed` and changed at random: float32 (about n / speed,) in [-1, 1]."""
    ratio = Fraction(1 / speed).limit_denominator(_MOST_TERMS)
    sound = resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float64)
    count, (sung, equalised, reverberant, noisy, coded) = len(sound), random.random(5)
    if sung < SUNG:
        sound = _sung(sound, random)
    if equalised < EQUALISED:
        frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE_HZ), 50)
        gain_db = np.interp(np.log(frequency), np.log([50, 150, 400, 1000, 2500, 5000, 8000]), random.normal(0, 4, 7))
        sound = np.fft.irfft(np.fft.rfft(sound) * _factor(gain_db), count)
    if reverberant < REVERBERANT:
        sound = fftconvolve(sound, _room(random))[:count]
    if noisy < NOISY:
        noise = (_coloured_noise, _coloured_noise, _music, _song)[random.integers(4)](count, random)
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


def _melody(count: int, random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A voiced sound of pulses on a melody with vibrato and glides, (count,), and the number of the note at each sample, (count,)."""
    root_hz, long_s = random.uniform(110, 420), random.uniform(0.2, 0.7)
    lengths = np.maximum(random.uniform(0.5, 2, max(2, round(2 * count / (long_s * RATE_HZ)))) * long_s * RATE_HZ, 1600).astype(np.int64)
    note = np.repeat(np.arange(len(lengths)), lengths)
    note = np.pad(note, (0, max(0, count - len(note))), mode="edge")[:count]
    steps = random.choice([-5, -3, -1, 0, 0, 2, 4, 5, 7, 9], size=len(lengths))[note].astype(np.float64)
    glide = np.ones(round(0.06 * RATE_HZ)) / round(0.06 * RATE_HZ)
    steps = np.convolve(np.pad(steps, len(glide) // 2, mode="edge"), glide, mode="same")[len(glide) // 2 :][:count]
    vibrato = random.uniform(0.1, 0.6) * np.sin(2 * np.pi * random.uniform(4.5, 6.5) * np.arange(count) / RATE_HZ)
    turns = np.cumsum(root_hz * 2 ** ((steps + vibrato) / 12)) / RATE_HZ
    return np.maximum(0, np.diff(np.floor(turns), prepend=0)), note


def _sung(sound: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """The same words at the same moments on a melody: the vocal tract (linear prediction) is kept, the voice is another one."""
    count = len(sound)
    pulses, _ = _melody(count, random)
    emphasised = lfilter([1, -0.97], [1], sound)
    window, sung, state = np.hanning(_LPC_WINDOW), np.zeros(count), np.zeros(_LPC_ORDER)
    reach = (_LPC_WINDOW - _LPC_HOP) // 2
    around = np.pad(emphasised, (reach, _LPC_WINDOW))
    breath = 0.05 * random.standard_normal(count)
    for first in range(0, count, _LPC_HOP):
        heard = around[first : first + _LPC_WINDOW] * window
        likeness = np.correlate(heard, heard, mode="full")[_LPC_WINDOW - 1 :][: _LPC_ORDER + 1]
        likeness[0] = likeness[0] * 1.001 + 1e-7
        tract = np.concatenate([[1.0], -solve_toeplitz(likeness[:-1], likeness[1:])])
        rest = float(np.sqrt(max(tract @ likeness, 1e-12) / _LPC_WINDOW))
        here = slice(first, min(count, first + _LPC_HOP))
        # What hisses (the second value of the correlation is low) stays noise.
        voiced = float(np.clip(2.5 * likeness[1] / likeness[0] + 0.5, 0, 1))
        source = voiced * pulses[here] * np.sqrt(RATE_HZ / 200) + (1 - voiced) * 20 * breath[here] + breath[here]
        sung[here], state = lfilter([rest], tract, source, zi=state)
    voice = np.asarray(lfilter([1], [1, -0.97], sung))
    return voice * float(np.sqrt(np.mean(np.square(sound)) + 1e-12) / np.sqrt(np.mean(np.square(voice)) + 1e-12))


def _song(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Somebody who sings vowels to music."""
    pulses, note = _melody(count, random)
    voice = np.zeros(count)
    vowels = random.integers(len(_VOWELS_HZ), size=note[-1] + 1)
    rests = random.random(note[-1] + 1) < 0.2
    scale = random.uniform(0.9, 1.2)
    breathy = pulses + 0.02 * random.standard_normal(count)
    for vowel, formants_hz in enumerate(_VOWELS_HZ):
        heard = np.where((vowels[note] == vowel) & ~rests[note], breathy, 0)
        for hz in formants_hz:
            radius, turn = np.exp(-np.pi * 90 / RATE_HZ), 2 * np.pi * hz * scale / RATE_HZ
            heard = lfilter([1 - radius], [1, -2 * radius * np.cos(turn), radius**2], heard)
        voice += heard
    music = _music(count, random)
    return voice / (voice.std() + 1e-6) + music / (music.std() + 1e-6) * random.uniform(0.2, 1.5)


def _through_codec(sound: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """What a telephone leaves of a sound: a limited band, half of the time in few logarithmic levels."""
    sound = np.asarray(sosfilt(butter(4, random.uniform(3200, 7000) / (RATE_HZ / 2), output="sos"), sound))
    if random.random() < 0.4:
        peak = float(np.abs(sound).max()) + 1e-6
        levels = 2 ** random.integers(4, 8)
        coded = np.round(np.sign(sound) * np.log1p(255 * np.abs(sound) / peak) / np.log(256) * levels) / levels
        sound = np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255 * peak
    return sound
