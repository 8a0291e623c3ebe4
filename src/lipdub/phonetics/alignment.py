"""Which phoneme of a sound is spoken when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lipdub.phonetics.classes import SILENCE, classes_of


@dataclass(frozen=True, slots=True)
class Phoneme:
    """One phoneme: seconds from the start of the sound, half-open; symbol in IPA, empty for silence."""

    start_s: float
    end_s: float
    symbol: str

    def __post_init__(self) -> None:
        if not (0 <= self.start_s < self.end_s < float("inf")):
            raise ValueError(f"a phoneme must have a start and a later end, got {self.start_s} to {self.end_s} s for {self.symbol!r}")

    @property
    def kind(self) -> int:
        """Its class, an index into ``CLASSES``; for a diphthong that of its first part."""
        return classes_of(self.symbol)[0]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Phonemes of one sound in order, not overlapping; what lies between and around them is silence."""

    phonemes: tuple[Phoneme, ...]

    def __post_init__(self) -> None:
        for before, after in pairwise(self.phonemes):
            if after.start_s < before.end_s - 1e-6:
                raise ValueError(f"phonemes must not overlap: {before} and {after}")

    def __len__(self) -> int:
        return len(self.phonemes)

    def __iter__(self) -> Iterator[Phoneme]:
        return iter(self.phonemes)

    @property
    def end_s(self) -> float:
        """When the last phoneme ends, seconds; 0 without any."""
        return self.phonemes[-1].end_s if self.phonemes else 0.0

    def index_at(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number of the phoneme that sounds at each time, -1 where none does. int64, the shape of `times_s`."""
        starts = [phoneme.start_s for phoneme in self.phonemes]
        found = np.array([bisect_right(starts, float(time)) - 1 for time in times_s], np.int64)
        ends = np.array([phoneme.end_s for phoneme in self.phonemes] or [0.0])
        return np.where((found >= 0) & (np.asarray(times_s) < ends[np.maximum(found, 0)]), found, -1)

    def classes_at(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Class at each time, int64 indices into ``CLASSES``. A diphthong has its first class for one half and its last for the other."""
        classes = np.full(len(times_s), SILENCE, np.int64)
        for at, number in enumerate(self.index_at(times_s)):
            if number >= 0:
                phoneme = self.phonemes[number]
                first, last = classes_of(phoneme.symbol)
                classes[at] = first if times_s[at] < (phoneme.start_s + phoneme.end_s) / 2 else last
        return classes

    def spans_of(self, kind: int) -> list[tuple[float, float]]:
        """(start_s, end_s) of every phoneme of a class; neighbours of that class (as in "top part") are one span."""
        spans: list[tuple[float, float]] = []
        for phoneme in self.phonemes:
            if phoneme.kind == kind:
                if spans and phoneme.start_s - spans[-1][1] < 1e-6:
                    spans[-1] = (spans[-1][0], phoneme.end_s)
                else:
                    spans.append((phoneme.start_s, phoneme.end_s))
        return spans
