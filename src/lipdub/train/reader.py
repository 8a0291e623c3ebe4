"""The lip reader: one picture of a mouth to its lip points. The generator's landmark loss looks through it, and so does its validation.

The memory's lip encoder could read lip points, too, but it sees five frames and answers through slots: on drawn faces, which it was not
trained on, it agrees poorly with mediapipe. This network has no other task and learns from single jittered and toned pictures; it agrees
well (figures in the model card).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lipdub.bundles.network import NetworkConfig
from lipdub.errors import CheckpointInvalid, TrainingDataError
from lipdub.train import checkpoints, losses
from lipdub.train.data import Clip, ClipSamples, cut, flip_lips, jittered, opening_from_lips, to_network, toned
from lipdub.train.loop import Validation
from lipdub.train.memory_stage import JUDGED_FRAMES, average, correlation, drawn_boxes
from lipdub.train.networks import LIP_POINTS, ConvBlock, ResidualBlock

_WIDTHS = (24, 48, 96, 128)
_POOL = 2
_JITTER = 0.03
"""Sigma of the scale of the crops, and twice that of their shift."""


class LipReader(nn.Module):
    """Lip points of one picture, relative to their own middle: the head's small motions and the crop's jitter do not matter."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        a, b, c, d = _WIDTHS
        self.body = nn.Sequential(
            ConvBlock(3, a, 5, 2, 2), ConvBlock(a, b, 3, 2), ResidualBlock(b),
            ConvBlock(b, c, 3, 2), ResidualBlock(c), ConvBlock(c, d, 3, 2),
        )  # fmt: skip
        y0, y1, x0, x1 = self._box = config.lower_box
        with torch.no_grad():
            shape = self.body(torch.zeros(1, 3, (y1 - y0) // _POOL, (x1 - x0) // _POOL)).shape
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape[1:])), 128), nn.SiLU(), nn.Linear(128, 2 * LIP_POINTS))
        self._drawn = config.drawn

    def features(self, drawn: Tensor) -> list[Tensor]:
        """Features of each level, coarser and coarser, of the drawn box (B, 3, h, w) in [-1, 1]: for perceptual comparison."""
        x = nn.functional.avg_pool2d(self._lower(drawn), _POOL)
        found = []
        for stage in self.body:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, drawn: Tensor) -> Tensor:
        """The drawn box (B, 3, h, w) in [-1, 1] to lip points (B, 40, 2) relative to their mean, in unit crop coordinates."""
        return self.head(self.features(drawn)[-1]).float().unflatten(1, (LIP_POINTS, 2)) * losses.LANDMARK_UNIT

    def _lower(self, drawn: Tensor) -> Tensor:
        (y0, _, x0, _), (ly0, ly1, lx0, lx1) = self._drawn, self._box
        return drawn[:, :, ly0 - y0 : ly1 - y0, lx0 - x0 : lx1 - x0]


def centred(lips: Tensor) -> Tensor:
    """Lip points (..., 40, 2) relative to their mean."""
    return lips - lips.mean(dim=-2, keepdim=True)


class Pictures(ClipSamples):
    """Random single pictures: ``picture`` uint8 (h, w, 3), the drawn box; ``lips`` float32 (40, 2), absolute in the unit crop."""

    def __init__(self, clips: list[Clip], config: NetworkConfig, *, seed: int) -> None:
        super().__init__(clips, seed=seed)
        self._config = config

    def sample_of(self, clip: Clip, random: np.random.Generator) -> dict[str, Tensor]:
        """A random frame of the clip."""
        row = np.array([random.integers(len(clip))])
        flip = bool(random.random() < 0.5)
        picture = cut(clip.crops, row, self._config.size, jittered(random, _JITTER), flip, toned(random))[0]
        y0, y1, x0, x1 = self._config.drawn
        picture = _softened(picture[y0:y1, x0:x1], random)
        lips = centred_lips(clip, row)
        return {"picture": torch.from_numpy(picture), "lips": torch.from_numpy((flip_lips(lips) if flip else lips)[0])}


def centred_lips(clip: Clip, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Lip points of these frames relative to their own mean, unit crop: float32 (n, 40, 2)."""
    lips = clip.lips[rows] + clip.rest
    return np.ascontiguousarray(lips - lips.mean(axis=1, keepdims=True), np.float32)


def _softened(picture: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Half of the pictures blurred a little: drawn mouths are softer than real ones, and are to be read as well."""
    whole = np.ascontiguousarray(picture)
    if random.random() < 0.5:
        return whole
    return np.asarray(cv2.GaussianBlur(whole, (0, 0), float(random.uniform(0.4, 1.5))), np.uint8)


@dataclass(slots=True)
class ReaderStage:
    """Trains ``LipReader`` on single pictures."""

    config: NetworkConfig
    clips: list[Clip]
    held_out: list[Clip]
    rate: float
    seed: int
    ema: float = 0.995
    name: str = "reader"

    samples: Pictures = field(init=False)
    reader: LipReader = field(init=False)
    averaged: LipReader = field(init=False)
    _wrapped: nn.Module = field(init=False)
    _optimizer: Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.samples = Pictures(self.clips, self.config, seed=self.seed)
        self.reader = LipReader(self.config)
        self.averaged = copy.deepcopy(self.reader).requires_grad_(False).eval()
        self._optimizer = torch.optim.AdamW([{"params": list(self.reader.parameters()), "base_rate": self.rate}], lr=self.rate)

    def modules(self) -> dict[str, nn.Module]:
        """For checkpoints; ``reader``, the moving average, is what is judged and used."""
        return {"reader": self.averaged, "live": self.reader}

    def optimizers(self) -> dict[str, Optimizer]:
        """For checkpoints and the learning rate."""
        return {"reader": self._optimizer}

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        return {"network": self.config.to_dict(), "ema": self.ema}

    def setup(self, fabric: Fabric) -> None:
        """Wrap for the devices."""
        self.averaged.to(fabric.device)
        self._wrapped, self._optimizer = fabric.setup(self.reader, self._optimizer)

    def step(self, batch: dict[str, Tensor], number: int, fabric: Fabric) -> dict[str, Tensor]:
        """One step on single pictures."""
        self.reader.train()
        loss = losses.landmark_loss(self._wrapped(to_network(batch["picture"])), batch["lips"])
        self._optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        fabric.clip_gradients(self._wrapped, self._optimizer, max_norm=5.0)
        self._optimizer.step()
        average(self.averaged, self.reader, keep=self.ema, step=number)
        return {"landmarks": loss}

    def validate(self) -> Validation:
        """On held-out people: correlation of the opening with mediapipe's and its spread over the true one, over clips of 40 frames."""
        figures = judge_reader(self.averaged, self.held_out, self.config)
        return Validation({**figures, "score": figures["r_opening"]})


@torch.no_grad()
def judge_reader(reader: LipReader, clips: list[Clip], config: NetworkConfig, *, longest: int = 200) -> dict[str, float]:
    """r_opening: mean correlation of the opening read with mediapipe's; spread: read over true standard deviation, median; error_px: mean
    distance of the points, px of the crop."""
    device = next(reader.parameters()).device
    rs, spreads, errors = [], [], []
    for clip in clips:
        if len(clip) < JUDGED_FRAMES:
            continue
        end = min(longest, len(clip))
        pictures = drawn_boxes(clip, 0, end, config).to(device)
        read = reader(pictures).cpu()
        true = centred_lips(clip, np.arange(end))
        errors.append(float(np.linalg.norm(read.numpy() - true, axis=-1).mean()) * config.size)
        opening = opening_from_lips(read).numpy()
        if clip.opening[:end].std() > 1e-4:
            rs.append(correlation(opening, clip.opening[:end]))
            spreads.append(float(opening.std() / clip.opening[:end].std()))
    if not rs:
        raise TrainingDataError(f"no held-out clip has {JUDGED_FRAMES} frames, so nothing can be judged; give longer clips with --val")
    return {"r_opening": float(np.mean(rs)), "spread": float(np.median(spreads)), "error_px": float(np.mean(errors))}


def load_reader(path: Path, config: NetworkConfig) -> LipReader:
    """The averaged reader of a checkpoint, frozen. Raises CheckpointInvalid where it is none, or reads another crop than `config`'s."""
    content = checkpoints.load(path)
    try:
        theirs = checkpoints.settings_of(NetworkConfig, content["settings"]["network"], str(path))
        reader = LipReader(theirs)
        reader.load_state_dict(content["modules"]["reader"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointInvalid(f"'{path}' holds no lip reader of this lipdub; train one with: lipdub train reader") from error
    if (theirs.size, theirs.drawn) != (config.size, config.drawn):
        raise CheckpointInvalid(f"the reader '{path}' reads another crop than the generator draws; train one of the same preset")
    return reader.requires_grad_(False).eval()
