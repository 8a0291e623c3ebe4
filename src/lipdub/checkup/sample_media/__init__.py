"""Media to try a dub on where there are none: a portrait that moves a little, and sound that is made like speech."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.records import ColorTags, FrameChunk, VideoInfo

PORTRAIT = Path(__file__).parent / "portrait.jpg"
"""448 x 448 px, face in the middle; origin and licence: README.md beside it."""

_BESIDE = Path(__file__).parent / "speech.wav"
SPEECH = _BESIDE if _BESIDE.is_file() else Path(__file__).parents[4] / "examples" / "speech.wav"
"""8 s of an espeak-ng voice: a wheel holds it beside this file, a checkout in ``examples/``."""

FRAMES_PER_S = 25
SAMPLE_RATE_HZ = 16000
_CHUNK_FRAMES = 8

_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""First three formants in Hz of a, i, u, e, o (Peterson & Barney 1952, men)."""
_SYLLABLE_S, _CLOSURE_S = 0.24, 0.07
_PHRASE_S, _PAUSE_S = 2.6, 0.5


def write_video(
    path: Path, *, seconds: float, width: int = 1280, height: int = 720, on_frames: Callable[[int, int], None] | None = None
) -> None:
    """Write `seconds` of the portrait at 25 frames/s, its head swaying; the picture beside it is mirrored.

    on_frames: told (frames done, frames in all). Raises EncodingFailed.
    """
    count = max(1, round(seconds * FRAMES_PER_S))
    info = VideoInfo(
        path=path, width=width, height=height, time_base=Fraction(1, FRAMES_PER_S), frame_rate=Fraction(FRAMES_PER_S),
        duration_s=Fraction(count, FRAMES_PER_S), color=ColorTags(matrix=1, range=1, primaries=1, transfer=1),
    )  # fmt: skip
    portrait = _portrait()
    with media.Writer(path, info, crf=18, preset="veryfast") as writer:
        for first in range(0, count, _CHUNK_FRAMES):
            pts = np.arange(first, min(count, first + _CHUNK_FRAMES), dtype=np.int64)
            pixels = np.stack([_frame(portrait, int(k) / FRAMES_PER_S, width, height) for k in pts])
            writer.write(media.to_planes(FrameChunk(first, pixels, pts, info.time_base), info))
            if on_frames is not None:
                on_frames(int(pts[-1]) + 1, count)


def write_speech(path: Path, *, seconds: float) -> None:
    """Write `seconds` of sound as .wav, 16 kHz mono: vowels between closed lips, with pauses, in one voice. It says nothing."""
    media.write_wav(path, _voice(max(1, round(seconds * SAMPLE_RATE_HZ))), SAMPLE_RATE_HZ)


def _portrait() -> NDArray[np.uint8]:
    coded = np.frombuffer(PORTRAIT.read_bytes(), np.uint8)
    return np.asarray(cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)


def _frame(portrait: NDArray[np.uint8], t: float, width: int, height: int) -> NDArray[np.uint8]:
    """The picture at time `t` s, uint8 (height, width, 3): the portrait fills the shorter side, turns and drifts a little."""
    side = portrait.shape[0]
    scale = min(width, height) / side * (1.02 + 0.01 * np.sin(2 * np.pi * 0.31 * t))
    turn_deg = 1.2 * np.sin(2 * np.pi * 0.23 * t)
    to_frame = np.asarray(cv2.getRotationMatrix2D((side / 2, side / 2), turn_deg, scale), np.float64)
    drift = np.array([np.sin(2 * np.pi * 0.29 * t), np.sin(2 * np.pi * 0.37 * t + 1)]) * 0.006 * min(width, height)
    to_frame[:, 2] += np.array([width - side, height - side]) / 2 + drift
    shown = cv2.warpAffine(portrait, to_frame, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(shown, np.uint8)


def _voice(count: int) -> NDArray[np.float64]:
    """Sound, float64 (count,) in [-1, 1]: harmonics of a gliding pitch, weighted by the formants of one vowel per syllable."""
    t = np.arange(count) / SAMPLE_RATE_HZ
    pitch_hz = 118 + 14 * np.sin(2 * np.pi * 0.43 * t) - 9 * (t % _PHRASE_S)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    syllable = (t / _SYLLABLE_S).astype(np.int64)
    formants_hz = np.array(_VOWELS)[(syllable * 7 + syllable // 3) % len(_VOWELS)]  # a fixed order that does not repeat soon
    sound = np.zeros(count)
    for harmonic in range(1, 32):
        hz = harmonic * pitch_hz
        gain = (1 / (1 + ((hz[:, None] - formants_hz) / (60 + 0.05 * formants_hz)) ** 2)).sum(axis=1)
        sound += gain / harmonic**0.7 * np.sin(harmonic * phase)
    within_s = t - syllable * _SYLLABLE_S
    voiced = np.clip((within_s - _CLOSURE_S) / 0.03, 0, 1) * np.clip((_SYLLABLE_S - within_s) / 0.03, 0, 1)
    speaking = (t % _PHRASE_S) < _PHRASE_S - _PAUSE_S
    return 0.5 * sound * voiced * speaking / max(1e-9, float(np.abs(sound).max()))
