"""How well the lips of a clip agree with its sound at every shift, as the sync expert sees it: what validation and offsets read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lipdub.bundles.encoder import POSITIONS_PER_S
from lipdub.records import MelSpec
from lipdub.speech.silence import silence_weight
from lipdub.train.data import Clip, to_network
from lipdub.train.expert_network import SyncNet
from lipdub.train.pairs import SILENT
from lipdub.train.prepare import GRID_HZ, MARGIN

FURTHEST = 15
"""Shifts are looked at up to so many frames at 25 Hz in both directions."""
FAR_FRAMES = 10
"""Sound this far away, or farther, is far."""
SECOND_FRAMES = 25
"""Windows whose cosines are averaged for the figures of one second, as the field does."""


@dataclass(frozen=True, slots=True)
class ShiftCosines:
    """Cosines of one clip of N frames, over shifts of up to R = ``FURTHEST`` frames."""

    cosine: NDArray[np.float32]
    """float32 (N, 2 R + 1): column R + k is the sound k frames at 25 Hz after the frame's own; NaN where there is no such sound."""
    own: NDArray[np.float32]
    """float32 (N, N): the lips of a row's frame with the sound of a column's frame."""
    sounding: NDArray[np.bool_]
    """bool (N,)"""

    def __len__(self) -> int:
        return len(self.sounding)

    def at(self, shift: int) -> NDArray[np.float32]:
        """Each frame's cosine with the sound `shift` frames later than its own: (N,), NaN where there is none. shift: -R..R."""
        return self.cosine[:, FURTHEST + shift]

    def curve(self) -> NDArray[np.float64]:
        """Mean cosine over the sounding frames at the shifts -R..R: (2 R + 1,). Shifts with less than half of those frames are NaN."""
        rows = [self.at(shift)[self.sounding] for shift in range(-FURTHEST, FURTHEST + 1)]
        enough = max(1, int(self.sounding.sum()) / 2)
        return np.array([np.nanmean(row) if np.isfinite(row).sum() >= enough else np.nan for row in rows])

    def best(self) -> tuple[int, float]:
        """(shift of the highest mean cosine, confidence: how far it rises above the median shift). (0, 0) where nothing sounds."""
        curve = self.curve()
        if not np.isfinite(curve).any():
            return 0, 0.0
        at = int(np.nanargmax(curve))
        return at - FURTHEST, float(curve[at] - np.nanmedian(curve))


@torch.no_grad()
def shift_cosines(expert: SyncNet, clip: Clip, *, longest: int = 1000) -> ShiftCosines:
    """Compare the first `longest` frames of a clip with its sound, offsets applied."""
    device, use = next(expert.parameters()).device, expert.config.encoder
    count = min(longest, len(clip))
    prepared = clip.features_of(use)
    heard_s = clip.times_s[:count, None] + clip.offset_s + np.arange(-FURTHEST, FURTHEST + 1) / GRID_HZ
    # To half a position: most frames share their windows, however their times lie.
    middle = np.round(heard_s * POSITIONS_PER_S * 2).astype(np.int64)
    there = (middle >= -2 * use.taps[0]) & (middle <= 2 * (prepared.starts[1] - 1 - use.taps[-1]))
    middles, slot = np.unique(middle, return_inverse=True)
    windows = torch.from_numpy(prepared.windows(middles / (2 * POSITIONS_PER_S), use.taps))
    sounds = torch.cat([expert.embed_sound(part.to(device)) for part in torch.split(windows, 256)])
    lips = torch.cat([expert.embed_lips(part.to(device)) for part in clip_lip_windows(clip, count, expert)])
    every = (lips @ sounds.t()).cpu().numpy()
    slot = slot.reshape(middle.shape)
    cosine = np.where(there, np.take_along_axis(every, slot, axis=1), np.nan)
    own = np.where(there[:, FURTHEST][None], every[:, slot[:, FURTHEST]], np.nan)
    sounding = silence_weight(clip.windows(np.arange(count), MelSpec())) <= SILENT
    return ShiftCosines(cosine.astype(np.float32), own.astype(np.float32), sounding & there[:, FURTHEST])


def clip_lip_windows(clip: Clip, count: int, expert: SyncNet) -> list[torch.Tensor]:
    """Batches of the lip windows (b, 3, T, h, w) of the first `count` frames, ends repeated, never across a cut."""
    config = expert.config
    y0, y1, x0, x1 = config.box
    margin = round((clip.crops.shape[1] - clip.crops.shape[1] / MARGIN) / 2)
    reach = config.frames // 2
    parts = []
    for first in range(0, count, 128):
        rows = np.arange(first, min(count, first + 128))
        around = clip.around(rows, np.arange(-reach, reach + 1), end=count)
        low, high = int(around.min()), int(around.max()) + 1
        box = to_network(torch.from_numpy(clip.crops[low:high, margin + y0 : margin + y1, margin + x0 : margin + x1].copy()))
        parts.append(box[torch.from_numpy(around - low)].transpose(1, 2))
    return parts


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Shares of pairs in which the true sound fits better than another one, over all clips."""

    single: dict[int, float]
    """Of windows alone, by shift in frames, both directions together."""
    second: dict[int, float]
    """Of cosines averaged over a second, likewise."""
    single_far: float
    """Of windows alone, against sounds at least ``FAR_FRAMES`` away."""
    second_far: float
    """The same, averaged over a second."""


def accuracies(found: list[ShiftCosines], shifts: tuple[int, ...] = (1, 2, 3, 4, 5)) -> Accuracies:
    """Accuracies over all clips; 0.5 where there is nothing to compare."""
    single: dict[int, list[NDArray[np.bool_]]] = {shift: [] for shift in shifts}
    second: dict[int, list[NDArray[np.bool_]]] = {shift: [] for shift in shifts}
    single_far: list[NDArray[np.bool_]] = []
    second_far: list[NDArray[np.bool_]] = []
    for clip in found:
        true = np.where(clip.sounding, clip.at(0), np.nan)
        true_second = _averaged(clip.at(0), clip.sounding)
        for shift in shifts:
            for way in (-shift, shift):
                other = clip.at(way)
                single[shift].append(_wins(true, other))
                second[shift].append(_wins(true_second, _averaged(other, clip.sounding)))
        count = len(clip)
        own = clip.own
        for gap in range(FAR_FRAMES, count):
            for way in (-gap, gap):
                rows = np.arange(max(0, -way), min(count, count - way))
                single_far.append(_wins(true[rows], own[rows, rows + way]))
                sounding = clip.sounding[rows]
                second_far.append(_wins(_averaged(clip.at(0)[rows], sounding), _averaged(own[rows, rows + way], sounding)))
    return Accuracies(
        {shift: _share(wins) for shift, wins in single.items()}, {shift: _share(wins) for shift, wins in second.items()},
        _share(single_far), _share(second_far),
    )  # fmt: skip


def _wins(true: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.bool_]:
    both = np.isfinite(true) & np.isfinite(other)
    return np.asarray(true[both] > other[both])


def _averaged(values: NDArray[np.float32], sounding: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Means over a second, NaN where one value is missing or less than half of the second sounds; (n - 24,), or none."""
    if len(values) < SECOND_FRAMES:
        return np.zeros(0, np.float32)
    means = sliding_window_view(values, SECOND_FRAMES).mean(axis=1)
    enough = sliding_window_view(sounding, SECOND_FRAMES).mean(axis=1) >= 0.5
    return np.where(enough, means, np.nan).astype(np.float32)


def _share(wins: list[NDArray[np.bool_]]) -> float:
    every = np.concatenate(wins) if wins else np.zeros(0, bool)
    return float(every.mean()) if len(every) else 0.5
