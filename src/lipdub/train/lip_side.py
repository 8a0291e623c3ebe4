"""The lip side of a memory from lip points: what its slots hold, and how lips address them.

The address comes from five frames of lip points, and the slots learn to hold lips (landmarks are read from what is recalled). Then what
stood on another lip side is fitted to the new slots: the fusion, so that each slot brings the lip feature which the generator knows for
such lips, in closed form; and the query by which pictures address the slots, for stages that have pictures alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipdub.bundles.network import NetworkConfig
from lipdub.stages import OnProgress
from lipdub.train import losses
from lipdub.train.bottleneck import lip_scale, speaker_weights
from lipdub.train.data import Clip, opening_from_lips
from lipdub.train.memory_stage import correlation, drawn_boxes, lip_windows
from lipdub.train.networks import LipMemory

EVENED_LIPS = (0.4, 2.5)
"""Bounds of the factor that brings a clip's lips to the usual size; its square root is applied."""
SEEN = 12000
"""Frames whose pictures are looked at, about; all of a clip's, or every so many."""
_RIDGE = 1e-4


@dataclass(frozen=True, slots=True)
class LipSettings:
    """How the lip side is trained."""

    steps: int = 400
    batch: int = 512
    rate: float = 3e-3
    usage: float = 0.1
    spread: float = 0.03
    picture_steps: int = 300
    align: float = 0.2


def evened(clip: Clip) -> float:
    """The factor that brings a clip's lips nearer to the usual size."""
    return float(np.clip(lip_scale(clip), *EVENED_LIPS)) ** 0.5


def drawn_rows(cumulative: NDArray[np.float64], random: np.random.Generator, count: int) -> Tensor:
    """`count` random row numbers; `cumulative` (N,) rises to 1."""
    return torch.from_numpy(np.searchsorted(cumulative, random.random(count)).clip(0, len(cumulative) - 1))


def warmed(rate: float, step: int, steps: int) -> float:
    """The learning rate of a step: it rises over 50 steps and then falls along a cosine."""
    return rate * min(1.0, (step + 1) / 50) * (0.49 * (1 + float(np.cos(np.pi * step / steps))) + 0.02)


def train_lip_side(
    memory: LipMemory, config: NetworkConfig, clips: list[Clip], settings: LipSettings, *, balance: float, seed: int, tell: OnProgress,
    slots_stay: bool = False,
) -> None:  # fmt: skip
    """Train the point encoder of `memory`, its slots, and the head that reads lip points from what they bring; where the slots stay, the
    point encoder alone. balance: see `speaker_weights`."""
    assert memory.point_encoder is not None
    windows = torch.from_numpy(np.concatenate([clip.lip_windows(np.arange(len(clip)), config.frames) for clip in clips]))
    factor = torch.from_numpy(np.concatenate([np.full(len(clip), evened(clip), np.float32) for clip in clips]))
    cumulative = np.cumsum(speaker_weights(clips, balance), dtype=np.float64)
    cumulative /= cumulative[-1]
    trained = [*memory.point_encoder.parameters()]
    if not slots_stay:
        trained += [memory.memory.values, *memory.landmark_head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, betas=(0.9, 0.98), weight_decay=1e-2)
    random = np.random.default_rng((seed, 1))
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = warmed(settings.rate, step, settings.steps)
        rows = drawn_rows(cumulative, random, settings.batch)
        # Lips as they are, and as the audio side will be taught them.
        scale = torch.where(torch.rand(len(rows)) < 0.5, torch.ones(len(rows)), factor[rows])
        lips = windows[rows] * scale[:, None, None, None]
        read = memory.by_points(lips)
        points, true = memory.landmarks(read.recalled), lips[:, config.frames // 2]
        total = losses.landmark_loss(points, true) + settings.spread * losses.spread_loss(points, true)
        total = total + settings.usage * losses.usage_loss(read.address)
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tell("learning lips", step + 1, settings.steps)


@torch.no_grad()
def recall_by_lips(memory: LipMemory, config: NetworkConfig, clips: list[Clip]) -> list[float]:
    """Correlation of the opening that `memory` recalls by a clip's lip points with the opening that they show, one for each of `clips`."""
    found = []
    for clip in clips:
        windows = torch.from_numpy(clip.lip_windows(np.arange(len(clip)), config.frames))
        recalled = opening_from_lips(memory.landmarks(memory.by_points(windows).recalled))
        found.append(correlation(recalled.numpy(), clip.opening))
    return found


def fit_to_slots(
    memory: LipMemory, base: LipMemory, base_config: NetworkConfig, clips: list[Clip], settings: LipSettings, *, seed: int, tell: OnProgress
) -> None:
    """Fit the fusion of `memory` and its query of pictures, so that both stand on its slots as those of `base` do on its own."""
    seen = _Seen.of(base, base_config, clips, tell)
    with torch.no_grad():
        by_points = memory.by_points(seen.windows)
        _fit_fusion(memory, by_points.recalled, seen.lip_feature)
    query = memory.memory.lip_query
    optimizer = torch.optim.AdamW(query.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=1e-2)
    random = np.random.default_rng((seed, 2))
    for step in range(settings.picture_steps):
        optimizer.param_groups[0]["lr"] = warmed(settings.rate, step, settings.picture_steps)
        rows = torch.from_numpy(random.integers(len(seen.windows), size=settings.batch))
        read = memory.memory.by_lips(seen.of_pictures[rows])
        total = losses.landmark_loss(memory.landmarks(read.recalled), seen.windows[rows, base_config.frames // 2])
        total = total + settings.align * losses.align_loss(by_points.address[rows], read.address)
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _fit_fusion(memory: LipMemory, recalled: Tensor, lip_feature: Tensor) -> None:
    """Make the fusion tell lip features (n, C) from recalls (n, C) alone, as far as a linear map can."""
    fusion = memory.fusion[1]
    assert isinstance(fusion, nn.Linear)
    channels = recalled.shape[1]
    inputs = torch.cat([recalled * channels**0.5, torch.ones(len(recalled), 1)], dim=1).double()
    left = inputs.t() @ inputs
    left += _RIDGE * left.trace() / len(left) * torch.eye(len(left), dtype=torch.float64)
    told = torch.linalg.solve(left, inputs.t() @ lip_feature.double())
    fusion.weight[:, :channels] = 0
    fusion.weight[:, channels:] = told[:-1].t().float()
    fusion.bias[:] = told[-1].float()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Seen:
    """Frames as points and as pictures. windows: (n, T, 40, 2). of_pictures: (n, C), what the lip encoder sees. lip_feature: (n, C), what
    the generator is given for them."""

    windows: Tensor
    of_pictures: Tensor
    lip_feature: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, base: LipMemory, config: NetworkConfig, clips: list[Clip], tell: OnProgress) -> _Seen:
        """Some frames of all clips; `base` tells what the generator knows of them."""
        every = max(1, round(sum(len(clip) for clip in clips) / SEEN))
        windows, of_pictures, features = [], [], []
        for number, clip in enumerate(clips):
            rows = np.arange(number % min(every, len(clip)), len(clip), every)
            points = torch.from_numpy(clip.lip_windows(rows, config.frames))
            boxes = lip_windows(drawn_boxes(clip, 0, len(clip), config), config.frames)[torch.from_numpy(rows)]
            seen = torch.cat([base.lip_encoder(part) for part in torch.split(boxes, 64)])
            recalled = (base.by_points(points) if base.point_encoder is not None else base.memory.by_lips(seen)).recalled
            heard = base.audio_encoder(torch.from_numpy(clip.heard(rows, config)))
            windows.append(points)
            of_pictures.append(seen)
            features.append(base.fuse(heard, recalled))
            tell("looking at lips", number + 1, len(clips))
        return cls(torch.cat(windows), torch.cat(of_pictures), torch.cat(features))
