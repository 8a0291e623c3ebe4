"""Speech with known phonemes (``lipdub.train.synthetic_speech``) as training windows: it teaches the audio side what is said, not by whom.

Footage of few people teaches their voices along with their phonemes. Synthetic speech has no lips, but many voices and true labels: its
windows train a phoneme head on the audio feature, and at closures of /p b m/ the recalled mouth is to be shut.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdub.errors import TrainingDataError
from lipdub.phonetics.classes import CLASSES
from lipdub.records import MelSpec

CLOSED_SHARE = 0.6
"""Lips are shut in the first part of /p b/ (then comes the burst), and throughout /m/."""
FEWEST_CLOSED_COLUMNS = 3
"""Shorter bilabials are not surely closed."""
_BILABIAL = "bilabial"


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
        # Classes are drawn by the square root of how frequent they are: closures are rare, and are what is wanted.
        counts = np.maximum(np.bincount(self._kind[self._train], minlength=len(CLASSES)), 1)
        self._cumulative = np.cumsum(1.0 / np.sqrt(counts[self._kind[self._train]]))
        self._cumulative /= self._cumulative[-1]

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
