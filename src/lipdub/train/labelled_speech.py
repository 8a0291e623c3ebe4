"""Speech with known phonemes (``lipdub.train.synthetic_speech``) as training windows: it teaches the audio side what is said, not by whom.

Footage of few people teaches their voices along with their phonemes. Synthetic speech has no lips, but many voices and true labels: its
windows train a phoneme head on the audio feature, and at closures of /p b m/ the recalled mouth is to be shut.
"""

from __future__ import annotations

import zipfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdub.bundles.encoder import POSITIONS_PER_S
from lipdub.errors import TrainingDataError
from lipdub.phonetics.classes import CLASSES
from lipdub.records import MelSpec
from lipdub.speech.encoder import SpeechEncoder
from lipdub.speech.whisper_mel import RATE_HZ
from lipdub.train.features import tracks_together
from lipdub.train.sound_variants import varied

CLOSED_SHARE = 0.6
"""Lips are shut in the first part of /p b/ (then comes the burst), and throughout /m/."""
FEWEST_CLOSED_COLUMNS = 3
"""Shorter bilabials are not surely closed."""
_BILABIAL = "bilabial"
_TOGETHER = 32
"""Utterances that are heard together."""


class PhonemeWindows(NamedTuple):
    """n windows of labelled speech."""

    mel: Tensor
    """float32 (n, 1, 80, 16)"""
    kind: Tensor
    """int64 (n,), index into ``CLASSES``"""
    closed: Tensor
    """bool (n,): the lips are surely shut."""


class LabelledSpeech:
    """All utterances of a file that ``synthetic_speech.generate`` wrote, in memory; the held-out ones are only for judging."""

    def __init__(self, file: Path, spec: MelSpec) -> None:
        """Raises TrainingDataError where `file` is no such file, or is of other phoneme classes."""
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
                self._mel, self._kind, first = data["mel"], data["kind"].astype(np.int64), data["first"]
                symbol, held_out = data["symbols"][data["symbol"]], data["held_out"]
                if tuple(data["classes"].tolist()) != tuple(CLASSES):
                    raise ValueError("its phoneme classes are others than this lipdub's")
                if len(self._mel) != len(self._kind) or int(first[-1]) != len(self._mel) or len(held_out) != len(first) - 1:
                    raise ValueError("its parts are of different lengths")
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise TrainingDataError(
                f"'{file}' holds no labelled speech ({error}); make it with: python -m lipdub.train.synthetic_speech FILE"
            ) from error
        self._spec = spec
        position = np.arange(len(self._kind))
        utterance = np.searchsorted(first, position, side="right") - 1
        reach = spec.window // 2 + 1
        whole = (position - first[utterance] >= reach) & (first[utterance + 1] - position > reach)
        self._train = np.flatnonzero(whole & (held_out[utterance] == 0))
        self._held_out = np.flatnonzero(whole & (held_out[utterance] > 0))
        if not len(self._train) or not len(self._held_out):
            raise TrainingDataError(
                f"'{file}' holds too little speech; make more with: python -m lipdub.train.synthetic_speech FILE --minutes 60"
            )
        self._closed = _closed(self._kind, symbol, utterance)
        self._of_held_out = held_out[utterance] > 0
        # Classes are drawn by the square root of how frequent they are: closures are rare, and are what is wanted.
        counts = np.maximum(np.bincount(self._kind[self._train], minlength=len(CLASSES)), 1)
        self._cumulative = np.cumsum(1.0 / np.sqrt(counts[self._kind[self._train]]))
        self._cumulative /= self._cumulative[-1]

    @property
    def kind(self) -> NDArray[np.int64]:
        """(C,), index into ``CLASSES`` of each mel column."""
        return self._kind

    @property
    def closed(self) -> NDArray[np.bool_]:
        """(C,): the lips are surely shut."""
        return self._closed

    @property
    def is_held_out(self) -> NDArray[np.bool_]:
        """(C,): of voices or words that training never draws."""
        return np.asarray(self._of_held_out)

    def draw(self, key: tuple[int, ...], count: int) -> PhonemeWindows:
        """`count` windows to train on, the same ones for the same `key`."""
        chosen = np.searchsorted(self._cumulative, np.random.default_rng(key).random(count)).clip(0, len(self._train) - 1)
        return self._windows(self._train[chosen])

    def held_out(self, count: int) -> PhonemeWindows:
        """About `count` evenly spaced windows of voices and words that training never draws."""
        return self._windows(self._held_out[:: max(1, len(self._held_out) // count)])

    def _windows(self, columns: NDArray[np.int64]) -> PhonemeWindows:
        around = columns[:, None] - self._spec.window // 2 + np.arange(self._spec.window)
        mel = torch.from_numpy(self._mel[around].astype(np.float32)).transpose(1, 2)[:, None].contiguous()
        return PhonemeWindows(mel, torch.from_numpy(self._kind[columns]), torch.from_numpy(self._closed[columns]))


def _closed(kind: NDArray[np.int64], symbol: NDArray[np.str_], utterance: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where lips are surely shut, bool (columns,)."""
    starts = np.r_[True, (symbol[1:] != symbol[:-1]) | (utterance[1:] != utterance[:-1])]
    run = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    length = np.diff(np.r_[first, len(symbol)])
    share = (np.arange(len(symbol)) - first[run]) / length[run]
    shut = (symbol == "m") | (share < CLOSED_SHARE)
    return (kind == CLASSES.index(_BILABIAL)) & shut & (length[run] >= FEWEST_CLOSED_COLUMNS)


class SpokenFeatures:
    """The same speech as features of the speech encoder, position by position (50 a second), of one or more variants of its sound."""

    def __init__(self, file: Path, speech_encoder: SpeechEncoder, taps: tuple[int, ...], *, voices: int = 2) -> None:
        """voices: variants of the sound, the first of them the sound as it is. Raises TrainingDataError; see `LabelledSpeech`."""
        labels = LabelledSpeech(file, MelSpec())
        with np.load(file, allow_pickle=False) as data:
            if "samples" not in data:
                raise TrainingDataError(
                    f"'{file}' is of before speech kept its samples; make it again: python -m lipdub.train.synthetic_speech"
                )
            samples, first, columns_per_s = data["samples"], data["first"], int(data["columns_per_s"])
        hop, per_position = RATE_HZ // columns_per_s, RATE_HZ // POSITIONS_PER_S
        utterances = [(int(low), int(high)) for low, high in pairwise(first)]
        self._taps = np.array(taps)
        self._values: list[NDArray[np.float16]] = []
        for voice in range(voices):
            parts = []
            for some in range(0, len(utterances), _TOGETHER):
                sounds = [samples[low * hop : high * hop].astype(np.float32) / 32767 for low, high in utterances[some : some + _TOGETHER]]
                if voice:
                    sounds = [varied(sound, 1.0, np.random.default_rng((voice, some + at))) for at, sound in enumerate(sounds)]
                for track, sound in zip(tracks_together(sounds, speech_encoder), sounds, strict=True):
                    parts.append(track[: len(sound) // per_position].astype(np.float16))
            self._values.append(np.concatenate(parts))
        lengths = [(high - low) * hop // per_position for low, high in utterances]
        columns = [
            low + np.minimum(np.round(np.arange(length) * per_position / hop).astype(np.int64), high - low - 1)
            for (low, high), length in zip(utterances, lengths, strict=True)
        ]
        column = np.concatenate(columns)
        self.kind = labels.kind[column]
        """int64 (P,), index into ``CLASSES`` of each position."""
        self.closed = labels.closed[column]
        """bool (P,): the lips are surely shut."""
        self.train = np.flatnonzero(~labels.is_held_out[column])
        """Positions of utterances to train on."""
        counts = np.maximum(np.bincount(self.kind[self.train], minlength=len(CLASSES)), 1)
        self._cumulative = np.cumsum(1.0 / np.sqrt(counts[self.kind[self.train]]))

    @property
    def voices(self) -> int:
        """Variants of the sound."""
        return len(self._values)

    def windows(self, rows: NDArray[np.int64], voice: int) -> NDArray[np.float32]:
        """Feature windows around the positions `rows` (n,): float32 (n, taps, D)."""
        values = self._values[voice]
        return values[np.clip(rows[:, None] + self._taps, 0, len(values) - 1)].astype(np.float32)

    def drawn(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` random positions to train on, rare classes as often as common ones to the square root."""
        found = np.searchsorted(self._cumulative, random.random(count) * self._cumulative[-1])
        return self.train[found.clip(0, len(self.train) - 1)]
