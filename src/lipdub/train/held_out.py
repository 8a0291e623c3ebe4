"""The held-out part of one person's video: drawn as inference draws it, and judged."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lipdub.bundles.bundle import BundleSpec
from lipdub.bundles.network import NetworkConfig
from lipdub.faces.detector import FaceDetector
from lipdub.records import MelSpec
from lipdub.references.selection import REFERENCE_BIN_DEG, REFERENCE_OPENING
from lipdub.speech.lip_track import lips_of
from lipdub.speech.mel import cut_windows
from lipdub.speech.memory import Recall
from lipdub.speech.silence import silence_weight
from lipdub.speech.windows import SpeechWindows, windows_of
from lipdub.train.data import Clip, to_network, to_pixels
from lipdub.train.generator_stage import _around_mouth
from lipdub.train.measure import measured
from lipdub.train.memory_stage import JUDGED_FRAMES, central, correlation
from lipdub.train.networks import FaceGenerator, FeatureEncoder, LipMemory
from lipdub.train.prepare import GRID_HZ, SHORTEST_S

HELD_OUT_SHARE = 0.2
GAP_S = 1.0
"""Nothing of this time before the held-out part is learned from: neighbouring frames show the same mouth."""
MOST_JUDGED = 150
"""Held-out frames that are drawn for a validation, evenly spread."""
AT_ONCE = 16
FRAMES_ALIKE = 5
"""The opening of a speaking mouth is much the same for so many frames."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A held-out part as inference draws it. l1: around the mouth, grey levels. r: correlation of the drawn opening with the true one;
    articulation: spread of the drawn opening over the true one's; both None where too few frames can be measured."""

    l1: float
    r: float | None
    articulation: float | None
    frames: int = 0
    """That were measured."""

    @property
    def chance_r(self) -> float:
        """How far r is off by chance: one standard error of Fisher's z, with a few neighbouring frames of a mouth as good as one."""
        return 1 / math.sqrt(max(1.0, self.frames / FRAMES_ALIKE - 3))


def split(clip: Clip) -> tuple[list[Clip], int, int]:
    """(what is learned from, one clip per shot; first held-out frame; how many frames lie before the gap).

    A shot too short for a clip is left out, unless there are only such shots.
    """
    first = len(clip) - max(1, round(HELD_OUT_SHARE * len(clip)))
    end = int(np.searchsorted(clip.times_s, clip.times_s[first] - GAP_S))
    edges = [0, *(np.flatnonzero(np.diff(clip.shot[:end])) + 1).tolist(), end]
    shots = [(low, high) for low, high in pairwise(edges) if high - low >= SHORTEST_S * GRID_HZ]
    return [_part(clip, low, high) for low, high in shots or [(0, end)]], first, end


def _part(clip: Clip, first: int, end: int) -> Clip:
    """The frames [first, end) as a clip; the sound stays whole, since times do. To a loader's process it would not go: the name of the
    file of crops stands for all of them there."""
    here = slice(first, end)
    return replace(
        clip, crops=clip.crops[here], times_s=clip.times_s[here], lips=clip.lips[here], opening=clip.opening[here], pose=clip.pose[here],
        shot=clip.shot[here],
    )  # fmt: skip


def references(clip: Clip, rows: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """The reference frame of each of the frames `rows`: chosen as inference does (``tracks``), among the frames [0, end) of the same shot,
    or, where there is none of them, among all of the shot."""
    chosen = np.empty(len(rows), np.int64)
    for shot in np.unique(clip.shot[rows]):
        here = clip.shot[rows] == shot
        candidates = np.flatnonzero(clip.shot == shot)
        known = candidates[candidates < end]
        candidates = known if len(known) else candidates
        poses = np.round(clip.pose[candidates, 0] / REFERENCE_BIN_DEG)
        closed = np.array([of[np.argmin(clip.opening[of])] for of in (candidates[poses == pose] for pose in np.unique(poses))])
        closed = closed[clip.opening[closed] <= clip.opening[closed].min() + REFERENCE_OPENING]
        away = np.abs(clip.pose[rows[here], 0][:, None] - np.round(clip.pose[closed, 0] / REFERENCE_BIN_DEG) * REFERENCE_BIN_DEG)
        chosen[here] = closed[away.argmin(axis=1)]
    return chosen


class ClipSound:
    """The sound of a prepared clip as a `SpeechTrack` and a `PauseTrack` of ``lipdub.speech.windows``; times are the picture's."""

    def __init__(self, clip: Clip, config: NetworkConfig) -> None:
        self._clip, self._config = clip, config

    def windows(self, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """Windows of speech; mel without its axis of one channel."""
        windows = self._clip.heard_at(times_s, self._config)
        return windows if self._config.encoder is not None else windows[:, 0]

    def at(self, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """How far each moment is a pause, (n,)."""
        return silence_weight(cut_windows(self._clip.mel.astype(np.float32), times_s + self._clip.offset_s, MelSpec()))


class TorchMemory:
    """A memory in training, asked as `lipdub.speech.memory.Memory` is."""

    def __init__(self, memory: LipMemory) -> None:
        self._memory = memory

    @torch.no_grad()
    def recall(self, windows: NDArray[np.float32]) -> Recall:
        """See `lipdub.speech.memory.Memory`."""
        self._memory.eval()
        device = next(self._memory.parameters()).device
        asked = torch.from_numpy(windows if isinstance(self._memory.audio_encoder, FeatureEncoder) else windows[:, None])
        parts = [self._memory(part.to(device)) for part in torch.split(asked, AT_ONCE)]
        return Recall(*(torch.cat([part[which] for part in parts]).float().cpu().numpy() for which in range(3)))


@dataclass(frozen=True, slots=True, repr=False)
class HeldOut:
    """What of a held-out part stays the same from one validation to the next; N frames.

    crops: uint8 (N, S, S, 3), the truth. references: uint8 (N, S, S, 3). speech: the windows of the N moments. opening: float32 (N,) as the
    detector measures it, NaN where it finds no face. beside: the bundle whose networks draw, where its speech encoder is looked for first.
    """

    config: NetworkConfig
    spec: BundleSpec
    crops: NDArray[np.uint8]
    references: NDArray[np.uint8]
    speech: SpeechWindows
    opening: NDArray[np.float32]
    beside: Path | None = None

    @classmethod
    def of(
        cls,
        clip: Clip,
        first: int,
        end: int,
        spec: BundleSpec,
        config: NetworkConfig,
        detector: FaceDetector,
        *,
        beside: Path | None = None,
    ) -> HeldOut:
        """The frames of `clip` from `first` on, with references among the frames [0, end)."""
        rows = np.unique(np.linspace(first, len(clip) - 1, min(MOST_JUDGED, len(clip) - first)).round().astype(np.int64))
        sound = ClipSound(clip, config)
        speech = windows_of(clip.times_s[rows], spec, sound, sound)
        crops = np.concatenate([central(clip, row, row + 1, config) for row in rows.tolist()])
        chosen = np.concatenate([central(clip, row, row + 1, config) for row in references(clip, rows, end).tolist()])
        return cls(config, spec, crops, chosen, speech, measured(crops, detector), beside)

    def __len__(self) -> int:
        return len(self.crops)

    @torch.no_grad()
    def draw(self, generator: FaceGenerator, memory: LipMemory, rest: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The frames with the mouths that the sound recalls, uint8 (N, S, S, 3); pauses bring the resting lip feature `rest` (C,)."""
        generator.eval()
        device = next(generator.parameters()).device
        lips = lips_of(self.speech, TorchMemory(memory)).at_rest_in_pauses(rest)
        lip_features = torch.from_numpy(lips.feature).to(device)
        y0, y1, x0, x1 = self.config.drawn
        drawn = self.crops.copy()
        for low in range(0, len(self), AT_ONCE):
            here = slice(low, low + AT_ONCE)
            target, reference = (to_network(torch.from_numpy(crops[here])).to(device) for crops in (self.crops, self.references))
            faces = generator(target, reference, lip_features[here]).float().cpu()
            drawn[here, y0:y1, x0:x1] = to_pixels(faces)
        return drawn

    def judge(self, drawn: NDArray[np.uint8], detector: FaceDetector) -> Judged:
        """The figures of what ``draw`` gave."""
        y0, y1, x0, x1 = self.config.drawn
        weight = _around_mouth(self.config, torch.device("cpu"))[0, 0, :, :, None].numpy()
        away = np.abs(drawn[:, y0:y1, x0:x1].astype(np.float32) - self.crops[:, y0:y1, x0:x1]) * weight
        l1 = float(away.sum() / (3 * weight.sum() * len(self)))
        opening = measured(drawn, detector)
        both = np.isfinite(opening) & np.isfinite(self.opening)
        count = int(both.sum())
        if count < JUDGED_FRAMES or self.opening[both].std() < 1e-4:
            return Judged(l1, None, None, count)
        spread = float(opening[both].std() / self.opening[both].std())
        return Judged(l1, correlation(opening[both], self.opening[both]), spread, count)
