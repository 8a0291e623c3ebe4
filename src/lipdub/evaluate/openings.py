"""Mouth opening and lips over time, and how well drawn ones follow those that belong to the sound.

The opening is the distance of the inner lips over the distance of the outer eye corners (``landmarks.opening_of``): 0 is closed, about
0.1 an ordinary vowel, 0.3 wide open. It is measured by the same detector in every video that is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipdub.faces.track import NO_FACE, FaceTrack

FACE_PX = 128
"""Side of the aligned crop that distances and pictures are given in."""
LANDMARK_SET = "mediapipe face mesh, 40 lip points (20 outer, 20 inner)"
OPEN_ABOVE = 0.06
"""Above this opening a mouth counts as open."""
MEASURABLE = 0.9
"""Where perfect lips, coded as a dub is, reach a lower ``r_cross`` than this (a mouth that hardly moves, a tiny face), a clip says
little about a model."""
SHIFTS = range(-5, 6)
"""Frames by which the truth is moved for ``r_cross_best``: some clips have a constant offset of sound and picture."""
FEWEST = 10
"""A correlation over fewer frames than this is none."""


@dataclass(frozen=True, slots=True, repr=False)
class Openings:
    """Mouth opening in each of N frames. times_s: float64 (N,), rising. opening: float64 (N,), NaN where no face was found."""

    times_s: NDArray[np.float64]
    opening: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.times_s.ndim != 1 or self.times_s.shape != self.opening.shape:
            raise ValueError(f"one opening per time, got {self.times_s.shape = }, {self.opening.shape = }")

    def __len__(self) -> int:
        return len(self.times_s)

    def __repr__(self) -> str:
        return f"Openings(frames={len(self)}, faceless={int(np.isnan(self.opening).sum())})"

    @property
    def step_s(self) -> float:
        """Usual time from one frame to the next, seconds."""
        return float(np.median(np.diff(self.times_s))) if len(self) > 1 else 0.04

    def at(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Opening of the frame nearest to each time, NaN where none is within one frame's time."""
        rows = nearest(self.times_s, times_s, self.step_s)
        return np.where(rows >= 0, self.opening[rows], np.nan)


def openings_of(track: FaceTrack) -> Openings:
    """The openings of an analysed video; gaps that the analysis bridged are bridged here, too."""
    return Openings(track.times_s, np.where(track.status == NO_FACE, np.nan, track.opening.astype(np.float64)))


def nearest(times_s: NDArray[np.float64], wanted_s: NDArray[np.float64], within_s: float) -> NDArray[np.int64]:
    """Index into rising `times_s` of the one nearest to each wanted time, -1 where none is as near as `within_s`: int64 (n,)."""
    if len(times_s) == 0:
        return np.full(len(wanted_s), -1, np.int64)
    after = np.clip(np.searchsorted(times_s, wanted_s), 0, len(times_s) - 1)
    before = np.maximum(after - 1, 0)
    rows = np.where(np.abs(wanted_s - times_s[before]) <= np.abs(times_s[after] - wanted_s), before, after)
    # A hair more than asked for: times a whole frame apart differ by rounding.
    return np.where(np.abs(times_s[rows] - wanted_s) <= within_s + 1e-6, rows, -1).astype(np.int64)


def pearson(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Correlation over the frames where both are known, in [-1, 1]; NaN for fewer than ``FEWEST`` of them or for a constant."""
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < FEWEST or one[both].std() < 1e-9 or other[both].std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(one[both], other[both])[0, 1])


def r_cross(drawn: Openings, truth: Openings) -> float:
    """Correlation of the drawn opening with the one of the mouth that really spoke the sound, at the same times.

    In [-1, 1], higher is better; 1 is the true mouth, about 0 a mouth that does not hear.
    """
    return pearson(drawn.opening, truth.at(drawn.times_s))


def r_cross_best(drawn: Openings, truth: Openings, shifts: Sequence[int] = SHIFTS) -> tuple[float, float]:
    """The highest ``r_cross`` with the truth moved by up to five frames, and that shift in frames.

    A positive shift: the drawn mouth comes before the true one. In [-1, 1], higher is better; the shift should be 0, unless the clip
    itself has an offset of sound and picture. NaN twice where no correlation is defined.
    """
    found = [pearson(drawn.opening, truth.at(drawn.times_s + shift * drawn.step_s)) for shift in shifts]
    if not np.isfinite(found).any():
        return float("nan"), float("nan")
    best = int(np.nanargmax(found))
    return found[best], float(shifts[best])


def r_leak(drawn: Openings, unwanted: Openings) -> float:
    """Correlation of the drawn opening with the source's own, which the new picture must not show.

    In [-1, 1], nearer to 0 is better. Two halves of one person's talk resemble each other by chance; read it beside the ground truth's.
    """
    return pearson(drawn.opening, unwanted.at(drawn.times_s))


def articulation(drawn: Openings, truth: Openings) -> float:
    """Spread (standard deviation) of the drawn opening over that of the true one, over the frames where both are known.

    0 and more, 1 is right: below it the mouth mumbles, above it exaggerates. NaN where the true mouth does not move.
    """
    wanted = truth.at(drawn.times_s)
    both = np.isfinite(drawn.opening) & np.isfinite(wanted)
    spread = float(wanted[both].std()) if both.any() else 0.0
    return float(drawn.opening[both].std()) / spread if spread > 1e-9 else float("nan")


def bias(drawn: Openings, truth: Openings) -> float:
    """Mean of the drawn opening less the true one, in eye distances; 0 is right, positive is too open. NaN where never both are known."""
    difference = drawn.opening - truth.at(drawn.times_s)
    return float(np.nanmean(difference)) if np.isfinite(difference).any() else float("nan")


def open_share(drawn: Openings, where: NDArray[np.bool_] | None = None) -> float:
    """Share of the frames with a face (of those `where`, bool (N,)) whose opening is above ``OPEN_ABOVE``.

    In [0, 1]; over frames in digital silence it is the *silent leak*, and lower is better (KeySync's LipLeak
    asks the same of a mouth aspect ratio). NaN where there is no such frame.
    """
    known = np.isfinite(drawn.opening) if where is None else np.isfinite(drawn.opening) & where
    return float((drawn.opening[known] > OPEN_ABOVE).mean()) if known.any() else float("nan")


def lmd(drawn: NDArray[np.float32], truth: NDArray[np.float32], *, relative: bool = False) -> float:
    """Mean Euclidean distance between drawn and true lip points, over points and over the frames where both are known.

    drawn, truth: float32 (N, 40, 2) in the unit crop (``LANDMARK_SET``), NaN where there was no face. In px of the aligned 128-px crop
    (forehead to below the chin; the outer eye corners are 49 px apart), 0 and more, lower is better. ``relative``: the mean point of the
    lips is taken off both sets first, as Chen et al. 2018 ("Lip Movements Generation at a Glance", ECCV) define it; without it the place
    of the mouth in the face counts, too. Published values use other landmarks (dlib's 20) and other crops: compare rows of one
    scorecard, not papers. NaN where no frame has both.
    """
    if drawn.shape != truth.shape:
        raise ValueError(f"lips must come in pairs, got {drawn.shape = }, {truth.shape = }")
    one, other = drawn.astype(np.float64), truth.astype(np.float64)
    if relative:
        one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
    distances = np.linalg.norm(one - other, axis=2).mean(axis=1)
    known = np.isfinite(distances)
    return float(distances[known].mean()) * FACE_PX if known.any() else float("nan")
