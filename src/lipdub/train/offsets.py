"""Constant offsets between sound and picture of prepared clips: found with the sync expert, or with a memory, and stored beside the data.

Positive where the sound comes later than the lips show it. With the expert, clips whose lips agree with no offset of their sound (dubbed
footage, a voice from elsewhere, music) are found, too, and left out of training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lipdub.atomic import write_whole
from lipdub.bundles.network import NetworkConfig
from lipdub.train.data import OFFSETS_FILE, Clip, opening_from_lips
from lipdub.train.expert_network import SyncNet
from lipdub.train.memory_stage import correlation
from lipdub.train.networks import LipMemory
from lipdub.train.prepare import GRID_HZ
from lipdub.train.shifts import FURTHEST, ShiftCosines, shift_cosines

FURTHEST_FRAMES = 6
"""A memory looks for offsets up to this; the expert up to ``shifts.FURTHEST``."""
SHORTEST_S = 4.0
"""Shorter clips say too little. The expert takes those of one speaker together; a memory takes them as they are."""
CLEAR_R = 0.35
CLEARLY_BETTER_R = 0.05
"""By a memory, an offset is believed when the correlation there is at least the first, and beats the one at zero by the second."""
SURE = 3.0
"""By the expert, an offset is believed when its cosines beat those at zero by so many standard errors."""
DOUBTFUL = 2.0
FAINT_SHARE = 0.25
"""A clip agrees with no offset when its best one beats the usual ones by less than ``DOUBTFUL`` standard errors, and its confidence is
below this share of the median one."""


@dataclass(frozen=True, slots=True)
class Offset:
    """One clip's estimate."""

    source: str
    clip_id: str
    frames: int
    """At 25 Hz; positive when the sound comes later than the lips show it."""
    there: float
    """Correlation (by a memory) or mean cosine (by the expert) at that offset."""
    at_zero: float
    """The same without an offset."""
    believed: bool
    """Used in training."""
    agrees: bool = True
    """Some offset fits; else the clip is left out of training."""


@torch.no_grad()
def estimate(memory: LipMemory, clips: list[Clip], config: NetworkConfig) -> list[Offset]:
    """Offset of each clip of at least ``SHORTEST_S``: where the opening heard by `memory` correlates best with the opening seen."""
    memory.eval()
    device = next(memory.parameters()).device
    found = []
    for clip in clips:
        if len(clip) < SHORTEST_S * GRID_HZ:
            continue
        rs = []
        for frames in range(-FURTHEST_FRAMES, FURTHEST_FRAMES + 1):
            times = clip.times_s + frames / GRID_HZ
            windows = torch.from_numpy(clip.heard_at(times - clip.offset_s, config)).to(device)
            heard = memory.landmarks(memory.memory.by_audio(memory.audio_encoder(windows)).recalled)
            rs.append(correlation(opening_from_lips(heard).float().cpu().numpy(), clip.opening))
        best = int(np.argmax(rs))
        zero = rs[FURTHEST_FRAMES]
        believed = rs[best] >= CLEAR_R and rs[best] - zero >= CLEARLY_BETTER_R and 0 < best < 2 * FURTHEST_FRAMES
        found.append(Offset(clip.source, clip.clip_id, best - FURTHEST_FRAMES, rs[best], zero, believed))
    return found


def estimate_by_expert(expert: SyncNet, clips: Sequence[Clip]) -> list[Offset]:
    """Offset of each clip (loaded without offsets): where the mean cosine of its lips and its sound is highest.

    Clips shorter than ``SHORTEST_S`` are taken together with the other short ones of their speaker, and share what is found; where
    even together they are shorter, they are left as they are.
    """
    groups: dict[tuple[str, str], list[Clip]] = {}
    for clip in clips:
        short = len(clip) < SHORTEST_S * GRID_HZ
        groups.setdefault(("speaker", clip.speaker) if short else ("clip", clip.clip_id), []).append(clip)
    groups = {key: group for key, group in groups.items() if sum(len(clip) for clip in group) >= SHORTEST_S * GRID_HZ}
    found = {key: _Curve.of([shift_cosines(expert, clip) for clip in group]) for key, group in groups.items()}
    confidences = [curve.confidence for curve in found.values() if curve is not None]
    faint = FAINT_SHARE * float(np.median(confidences)) if confidences else 0.0
    offsets = []
    for key, group in groups.items():
        curve = found[key]
        if curve is None:
            continue
        for clip in group:
            offsets.append(
                Offset(
                    clip.source, clip.clip_id, curve.best, curve.there, curve.at_zero,
                    believed=curve.best != 0 and abs(curve.best) < FURTHEST and curve.errors_above_zero >= SURE,
                    # Short clips stand or fall with their speaker's others, which says nothing about one of them.
                    agrees=key[0] == "speaker" or curve.errors_above_usual >= DOUBTFUL or curve.confidence >= faint,
                )
            )  # fmt: skip
    return offsets


@dataclass(frozen=True, slots=True)
class _Curve:
    """Mean cosines of some clips over all shifts."""

    best: int
    """Shift with the highest mean cosine."""
    there: float
    """That cosine."""
    at_zero: float
    confidence: float
    """How far it is above the median one."""
    errors_above_zero: float
    """How far it is above that of no shift, in standard errors."""
    errors_above_usual: float
    """How far it is above the mean of all, in standard errors."""

    @classmethod
    def of(cls, found: Sequence[ShiftCosines]) -> _Curve | None:
        """None where nothing sounds long enough."""
        rows = [np.stack([clip.at(shift) for shift in range(-FURTHEST, FURTHEST + 1)], axis=1)[clip.sounding] for clip in found]
        cosines = np.concatenate(rows) if rows else np.zeros((0, 2 * FURTHEST + 1), np.float32)
        known = np.isfinite(cosines).sum(axis=0)
        if len(cosines) < SHORTEST_S * GRID_HZ / 2 or known[FURTHEST] < len(cosines) / 2:
            return None
        enough = known >= len(cosines) / 2
        curve = np.full(len(known), np.nan)
        curve[enough] = np.nanmean(cosines[:, enough], axis=0)
        at = int(np.nanargmax(curve))
        usual = np.nanmean(cosines, axis=1)
        return cls(
            at - FURTHEST, float(curve[at]), float(curve[FURTHEST]), float(curve[at] - np.nanmedian(curve)),
            _errors(cosines[:, at] - cosines[:, FURTHEST]), _errors(cosines[:, at] - usual),
        )  # fmt: skip


def _errors(differences: NDArray[np.float32]) -> float:
    """How many standard errors the mean of these differences is above 0; windows of five frames share four with the next one."""
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2 or differences.std() < 1e-9:
        return 0.0
    return float(differences.mean() / (differences.std() / np.sqrt(len(differences) / 5)))


def store(folder: Path, offsets: Sequence[Offset]) -> None:
    """Write the believed offsets, in seconds, beside the prepared clips, and null for each clip that agrees with none; ``load_clips``
    applies the former and leaves out the latter. Raises WriteFailed."""
    seconds = {offset.clip_id: offset.frames / GRID_HZ for offset in offsets if offset.believed}
    left_out = {offset.clip_id: None for offset in offsets if not offset.agrees}
    write_whole(folder / OFFSETS_FILE, json.dumps(seconds | left_out, indent=1))
