"""Constant offsets between sound and picture of prepared clips, found to 0.02 s and stored beside the data.

Positive where the sound comes later than the lips show it. A ridge from features of the speech encoder to lip motion, in closed form, is
fitted on other people; a clip's offset is where what it hears correlates best with what the clip shows. Clips whose lips agree with no
offset of their sound (dubbed footage, a voice from elsewhere, music) are found, too, and left out of training.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub.atomic import write_whole
from lipdub.bundles.encoder import POSITIONS_PER_S
from lipdub.bundles.network import EncoderUse
from lipdub.errors import TrainingDataError
from lipdub.speech.encoder import interpolated
from lipdub.train.bottleneck import Basis, Sums, by_clip, lip_components, speaker_weights
from lipdub.train.data import OFFSETS_FILE, Clip
from lipdub.train.prepare import GRID_HZ

STEP_S, FURTHEST_S = 0.02, 0.32
"""Offsets are looked for in steps of the first, up to the second in both directions."""
SHORTEST_S = 2.0
"""Shorter clips say too little: those of one speaker are taken together, and share what is found."""
LEAST_R = 0.15
"""A clip whose lips nowhere agree with its sound by this much agrees with no offset."""
ROUNDS = 3
"""Each round learns from clips whose offsets the round before has corrected."""
FOLDS = 5
MOTIONS = 3
"""Principal components of lip motion that are compared: opening, width and rounding, roughly."""
LIKELY_S = 0.1
"""Offsets are about so large: a larger one needs more evidence."""
AHEAD_S = 0.04
"""Footage as people have it has its sound so much later than an anchor's, which is surely in sync (the median of the 16 speakers of our own
that are not GRID's). Lips are drawn into such footage, so offsets count from there."""
FRAMES_ALIKE = 5
"""So many neighbouring frames of a mouth say as much as one."""


@dataclass(frozen=True, slots=True)
class Offset:
    """What was found for one clip."""

    source: str
    clip_id: str
    offset_s: float
    """Positive when the sound comes later than the lips show it."""
    r: float
    """Correlation of the first lip motion heard and seen, at that offset."""
    r_at_zero: float
    """The same without an offset."""
    best_r: float
    """The highest one at any offset."""

    @property
    def agrees(self) -> bool:
        """Some offset fits; else the clip is left out of training."""
        return self.best_r >= LEAST_R


def estimate(
    clips: list[Clip], use: EncoderUse, layers: int, *, balance: float, anchor: str | None, on_clip: Callable[[], None]
) -> list[Offset]:
    """The offset of each clip, loaded without offsets but with features. on_clip: told of each clip in each of the ``ROUNDS``.

    layers: hidden states that a position is made of. balance: see `speaker_weights`. anchor: a speaker whose clips are known to be in
    sync, so that their median offset is -``AHEAD_S``; without one, offsets are right but for a constant that all clips share.

    Raises TrainingDataError: a clip without features, or no clip of the anchor.
    """
    if anchor is not None and not any(clip.speaker == anchor for clip in clips):
        raise TrainingDataError(f"no clip is of the speaker '{anchor}'; name one of the manifest's whose sound and picture agree")
    heard = _Heard(clips, use, layers, balance)
    shifts_s = np.arange(-round(FURTHEST_S / STEP_S), round(FURTHEST_S / STEP_S) + 1) * STEP_S
    found_s = np.zeros(len(clips))
    rs = np.zeros((len(clips), len(shifts_s), MOTIONS))
    for _ in range(ROUNDS):
        for number, curve in heard.curves(found_s, shifts_s):
            rs[number] = curve
            on_clip()
        found_s = _likeliest(clips, rs, shifts_s)
    if anchor is not None:
        shared_s = float(np.median([s for s, clip in zip(found_s, clips, strict=True) if clip.speaker == anchor])) + AHEAD_S
        found_s = found_s - shared_s
        shifts_s = shifts_s - shared_s
    at = np.abs(shifts_s[None] - found_s[:, None]).argmin(axis=1)
    zero = int(np.abs(shifts_s).argmin())
    return [
        Offset(
            clip.source, clip.clip_id, round(float(found_s[n]), 3), float(rs[n, at[n], 0]), float(rs[n, zero, 0]), float(rs[n, :, 0].max())
        )
        for n, clip in enumerate(clips)
    ]


def _likeliest(clips: Sequence[Clip], rs: NDArray[np.float64], shifts_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """The likeliest shift of each clip, (N,): Gaussian errors about what was heard, offsets that scatter by ``LIKELY_S``."""
    frames = np.array([len(clip) for clip in clips]) / FRAMES_ALIKE
    likely = -0.5 * frames[:, None] * np.log(1 - np.clip(rs, 0, 0.999) ** 2).sum(axis=2)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, clip in enumerate(clips):
        groups[("speaker", clip.speaker) if len(clip) < SHORTEST_S * GRID_HZ else ("clip", clip.clip_id)].append(number)
    found = np.zeros(len(clips))
    for members in groups.values():
        found[members] = _peak(likely[members].sum(axis=0) - np.abs(shifts_s) / LIKELY_S, shifts_s)
    return found


def _peak(likely: NDArray[np.float64], shifts_s: NDArray[np.float64]) -> float:
    """Where the curve `likely` (K,) over evenly spaced shifts (K,) is highest: between them, where a parabola through the highest value and
    its two neighbours is."""
    at = int(np.argmax(likely))
    if not 0 < at < len(likely) - 1:
        return float(shifts_s[at])
    before, here, after = likely[at - 1 : at + 2]
    bend = before - 2 * here + after
    return float(shifts_s[at] + (0.5 * (before - after) / bend if bend < 0 else 0.0) * (shifts_s[1] - shifts_s[0]))


class _Heard:
    """What a ridge hears of clips of people that it was not fitted on."""

    def __init__(self, clips: list[Clip], use: EncoderUse, layers: int, balance: float) -> None:
        self._clips, self._use = clips, use
        self._basis = Basis.of(clips, use, layers)
        self._seen = [part[:, :MOTIONS] for part in lip_components(clips, balance)]
        self._fold = _folds(clips)
        self._weights = by_clip(speaker_weights(clips, balance), clips)

    def curves(self, offsets_s: NDArray[np.float64], shifts_s: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """(number of a clip, correlations (shifts, ``MOTIONS``) of what is heard at each shift and what is seen); the ridge is fitted with
        the sound at `offsets_s` (N,)."""
        of_fold = [Sums() for _ in range(FOLDS)]
        for clip, offset_s, seen, weights, fold in zip(self._clips, offsets_s, self._seen, self._weights, self._fold, strict=True):
            windows = clip.features_of(self._use).windows(clip.times_s + offset_s, self._use.taps)
            of_fold[fold].add(self._basis(windows), seen, weights)
        solved = [self._basis.before(Sums.joined(part for k, part in enumerate(of_fold) if k != fold).solved()) for fold in range(FOLDS)]
        for number, clip in enumerate(self._clips):
            hear = solved[self._fold[number]]
            positions = clip.features_of(self._use)
            count = positions.starts[1]
            track = hear(positions.windows(np.arange(count) / POSITIONS_PER_S, self._use.taps))
            heard = interpolated(track, (clip.times_s[:, None] + shifts_s) * POSITIONS_PER_S)
            yield number, _correlations(heard.astype(np.float64), self._seen[number][:, None])


def _folds(clips: Sequence[Clip]) -> NDArray[np.int64]:
    """The fold of each clip, (N,): all clips of a speaker in one, but those of a speaker with more than a fold's share in all of them."""
    count = Counter(clip.speaker for clip in clips)
    of_speaker = {speaker: number % FOLDS for number, speaker in enumerate(sorted(count))}
    seen: Counter[str] = Counter()
    folds = []
    for clip in clips:
        seen[clip.speaker] += 1
        folds.append(seen[clip.speaker] % FOLDS if count[clip.speaker] > len(clips) / FOLDS else of_speaker[clip.speaker])
    return np.array(folds)


def _correlations(one: NDArray[np.float64], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pearson's r over the first axis; 0 where either does not vary."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    product = np.sqrt((one**2).sum(axis=0) * (other**2).sum(axis=0))
    return np.asarray((one * other).sum(axis=0) / np.maximum(product, 1e-9))


def store(folder: Path, offsets: Sequence[Offset]) -> None:
    """Write the offsets, in seconds, beside the prepared clips, and null for each clip that agrees with none; ``load_clips`` applies the
    former and leaves out the latter. Raises WriteFailed."""
    write_whole(folder / OFFSETS_FILE, json.dumps({one.clip_id: one.offset_s if one.agrees else None for one in offsets}, indent=1))
