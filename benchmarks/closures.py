"""Bilabials close the lips: how far a drawn mouth does so at /p b m/, beside what any other moments of it would show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipdub.phonetics.alignment import Alignment
from lipdub.phonetics.classes import BILABIAL, SILENCE

CLOSED_BELOW = 0.5
"""A bilabial closes where the lowest opening within it is below this share of the utterance's mean."""
DRAWS = 200


@dataclass(frozen=True, slots=True)
class Closures:
    """Bilabials of one utterance, K of them measured.

    spans_s: their starts and ends, float64 (K, 2), seconds. lowest: float64 (K,), least opening within each, one frame more on either
    side. mean_opening: of the frames in which something is spoken. unmeasured: spans without a measured frame.
    """

    spans_s: NDArray[np.float64]
    lowest: NDArray[np.float64]
    mean_opening: float
    unmeasured: int

    @property
    def closed(self) -> NDArray[np.bool_]:
        """Which of them close, bool (K,)."""
        return self.lowest < CLOSED_BELOW * self.mean_opening

    @property
    def share(self) -> float:
        """Share of them that close; NaN without any."""
        return float(self.closed.mean()) if len(self.lowest) else float("nan")


def closures(times_s: NDArray[np.float64], opening: NDArray[np.float64], alignment: Alignment) -> Closures:
    """The bilabials of `alignment` in a mouth whose `opening` (N,), NaN where unknown, was measured at `times_s` (N,), rising."""
    if times_s.shape != opening.shape:
        raise ValueError(f"one opening per time, got {times_s.shape = } and {opening.shape = }")
    spans = np.array(alignment.spans_of(BILABIAL), np.float64).reshape(-1, 2)
    lowest = _lowest(spans, times_s, opening)
    spoken = np.isfinite(opening) & (alignment.classes_at(times_s) != SILENCE)
    measured = np.isfinite(lowest)
    return Closures(
        spans_s=spans[measured],
        lowest=lowest[measured],
        mean_opening=float(opening[spoken].mean()) if spoken.any() else float("nan"),
        unmeasured=int((~measured).sum()),
    )


def random_closures(
    times_s: NDArray[np.float64], opening: NDArray[np.float64], alignment: Alignment, *, seed: int = 0, draws: int = DRAWS
) -> float:
    """Chance: share of spans that would close if the bilabials lay elsewhere, as many and as long, evenly drawn over the utterance."""
    found = closures(times_s, opening, alignment)
    if len(found.lowest) == 0:
        return float("nan")
    random = np.random.default_rng(seed)
    lengths = np.tile(np.diff(found.spans_s, axis=1)[:, 0], draws)
    first_s = alignment.phonemes[0].start_s
    starts = first_s + random.random(len(lengths)) * np.maximum(alignment.end_s - first_s - lengths, 0)
    lowest = _lowest(np.stack([starts, starts + lengths], axis=1), times_s, opening)
    known = np.isfinite(lowest)
    return float((lowest[known] < CLOSED_BELOW * found.mean_opening).mean()) if known.any() else float("nan")


def _lowest(spans: NDArray[np.float64], times_s: NDArray[np.float64], opening: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least opening within each of `spans` (K, 2) and one frame more on either side: float64 (K,), NaN where nothing was measured."""
    step_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.04
    known = np.where(np.isfinite(opening), opening, np.inf)
    firsts = np.searchsorted(times_s, spans[:, 0] - step_s - 1e-9)
    ends = np.searchsorted(times_s, spans[:, 1] + step_s + 1e-9)
    lowest = np.array([known[first:end].min(initial=np.inf) for first, end in zip(firsts, ends, strict=True)], np.float64)
    return np.where(np.isfinite(lowest), lowest, np.nan)
