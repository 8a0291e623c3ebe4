"""The sync expert's stage: lips against true and shifted sound of the same clip, and against the sounds of other clips.

Binary cross-entropy on the scaled cosine of true and shifted pairs, as SyncNet's descendants train it (Wav2Lip, Prajwal et al. 2020), and a
softmax over the shifts of the same clip in both directions (Perfect Match, Chung et al. 2019; InfoNCE), which learns more from
little data: every sound of a stretch is a negative of all its other lips.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lipdub.bundles.encoder import POSITIONS_PER_S
from lipdub.bundles.network import EncoderUse
from lipdub.errors import TrainingDataError, TrainingError
from lipdub.train import losses
from lipdub.train.data import Clip, to_network
from lipdub.train.expert_network import STAGE, ExpertConfig, SoundTower, SyncNet
from lipdub.train.loop import Validation
from lipdub.train.memory_stage import average
from lipdub.train.pairs import Pairs
from lipdub.train.prepare import GRID_HZ
from lipdub.train.shifts import FURTHEST, SECOND_FRAMES, ShiftCosines, accuracies, shift_cosines

FEWEST_JUDGED = SECOND_FRAMES + 2
"""A second, and a shift in both directions: one held-out clip has to be so long."""
NEAR_FRAMES = 1.5
"""Sound nearer than this to a window's own is neither true nor false for it, and is left out."""
COMPONENTS_EVERY = 8
"""Of so many positions one is looked at for the components."""
FAINT = 0.02
"""Of the mean variance of a component: fainter ones are not made as loud as the others."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """Weights of the losses, and how pairs are made."""

    within: float = 1.0
    """Softmax over the sounds of the same stretch, and over its lips."""
    across: float = 0.3
    """Softmax over the sounds of the other clips of the batch: easy, since voices and faces differ."""
    pairs: float = 1.0
    """Binary cross-entropy of true and shifted pairs: sets scale and bias, so that a logit can be read alone."""
    landmarks: float = 0.5
    """Lip points read from both embeddings: shows towers early what a mouth is."""
    windows: int = 8
    """Lip windows of a sample."""
    further: int = 4
    """Sounds of a sample that belong to none of its lip windows."""
    weight_decay: float = 0.05
    ema: float = 0.998


def expert_losses(
    expert: SyncNet, lips: Tensor, sounds: Tensor, positions: Tensor, sounding: Tensor, points: Tensor, weights: ExpertWeights
) -> dict[str, Tensor]:
    """Losses of a batch of stretches. lips (B, n, E) and sounds (B, m, E), unit rows, the first n sounds those of the lips; positions
    (B, m) of the sounds, 50 a second; sounding (B, n) bool; points (B, n, 40, 2) lip points relative to rest."""
    count, windows, _ = lips.shape
    own = torch.eye(windows, positions.shape[1], dtype=torch.bool, device=lips.device)[None]
    away = (positions[:, None, :] - positions[:, :windows, None]).abs() * (GRID_HZ / POSITIONS_PER_S)
    compared = (away >= NEAR_FRAMES) | own
    cosine = torch.einsum("bne,bme->bnm", lips, sounds)
    scaled = (expert.scale * cosine).masked_fill(~compared, -torch.inf)
    target = torch.arange(windows, device=lips.device).repeat(count)
    rows = sounding.flatten()
    to_sound = F.cross_entropy(scaled.flatten(0, 1), target, reduction="none")
    to_lips = F.cross_entropy(scaled[:, :, :windows].transpose(1, 2).flatten(0, 1), target, reduction="none")
    logits = expert.logit(cosine)
    true = F.softplus(-logits[:, :, :windows].diagonal(dim1=1, dim2=2))
    false = F.softplus(logits)
    shifted = (compared & ~own) & sounding[..., None]
    found = {
        "within": 0.5 * (_mean(to_sound, rows) + _mean(to_lips, rows)),
        "pairs": 0.5 * (_mean(true, sounding) + _mean(false, shifted)),
    }
    if weights.landmarks:
        seen, heard = expert.points_seen(lips.flatten(0, 1)), expert.points_heard(sounds[:, :windows].flatten(0, 1))
        wanted = points.flatten(0, 1)
        found["landmarks"] = losses.landmark_loss(seen, wanted) + losses.landmark_loss(heard, wanted)
    if count > 1:
        other = ~torch.eye(count, dtype=torch.bool, device=lips.device).repeat_interleave(windows, 0).repeat_interleave(windows, 1)
        every = expert.scale * lips.flatten(0, 1) @ sounds[:, :windows].flatten(0, 1).t()
        every = every.masked_fill(~(other | torch.eye(len(every), dtype=torch.bool, device=lips.device)), -torch.inf)
        number = torch.arange(len(every), device=lips.device)
        there, back = (F.cross_entropy(table, number, reduction="none") for table in (every, every.t()))
        found["across"] = 0.5 * (_mean(there, rows) + _mean(back, rows))
    total = losses.weighted(found, weights)
    with torch.no_grad():
        right = _mean((scaled.argmax(dim=2).flatten() == target).float(), rows)
    return {**found, "expert": total, "right_within": right}


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean where the mask holds; 0 where it nowhere does."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


@dataclass(slots=True)
class ExpertStage:
    """Trains ``SyncNet`` on stretches of clips; what is judged and exported are moving averages of its weights."""

    config: ExpertConfig
    clips: list[Clip]
    held_out: list[Clip]
    rate: float
    seed: int
    weights: ExpertWeights = field(default_factory=ExpertWeights)
    name: str = STAGE

    samples: Pairs = field(init=False)
    expert: SyncNet = field(init=False)
    averaged: SyncNet = field(init=False)
    judged: list[Clip] = field(init=False)
    """Held-out clips of speakers who are not trained on, too; all held-out clips where there are none such."""
    _wrapped: nn.Module = field(init=False)
    _optimizer: Optimizer = field(init=False)

    def __post_init__(self) -> None:
        if self.weights.windows < 2:
            raise TrainingError(f"a stretch of {self.weights.windows} lip windows has nothing to tell apart; give windows=2 or more")
        self.samples = Pairs(self.clips, self.config, seed=self.seed, windows=self.weights.windows, further=self.weights.further)
        known = {clip.speaker for clip in self.clips}
        unknown = [clip for clip in self.held_out if clip.speaker not in known]
        self.judged = unknown if any(len(clip) >= FEWEST_JUDGED for clip in unknown) else self.held_out
        self.expert = SyncNet(self.config)
        fit_components(self.expert.sound_tower, self.clips, self.config.encoder)
        self.averaged = copy.deepcopy(self.expert).requires_grad_(False).eval()
        trained = [parameter for parameter in self.expert.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in trained if parameter.dim() > 1]
        plain = [parameter for parameter in trained if parameter.dim() <= 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "base_rate": self.rate, "weight_decay": self.weights.weight_decay},
                {"params": plain, "base_rate": self.rate, "weight_decay": 0.0},
            ],
            lr=self.rate,
            betas=(0.9, 0.98),
        )

    def modules(self) -> dict[str, nn.Module]:
        """For checkpoints; ``averaged`` is what is exported."""
        return {"expert": self.expert, "averaged": self.averaged}

    def optimizers(self) -> dict[str, Optimizer]:
        """For checkpoints and the learning rate."""
        return {"expert": self._optimizer}

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        return {"network": self.config.to_dict(), "weights": asdict(self.weights)}

    def setup(self, fabric: Fabric) -> None:
        """Move to the device and wrap what is trained."""
        self.averaged.to(fabric.device)
        self._wrapped, self._optimizer = fabric.setup(_ExpertStep(self.expert, self.weights), self._optimizer)

    def step(self, batch: dict[str, Tensor], number: int, fabric: Fabric) -> dict[str, Tensor]:
        """One step on a batch of stretches."""
        self.expert.train()
        found: dict[str, Tensor] = self._wrapped(batch)
        self._optimizer.zero_grad(set_to_none=True)
        fabric.backward(found["expert"])
        fabric.clip_gradients(self._wrapped, self._optimizer, max_norm=5.0)
        self._optimizer.step()
        average(self.averaged, self.expert, keep=self.weights.ema, step=number)
        return found

    def validate(self) -> Validation:
        """On held-out people: accuracies, the offset curve, and how many clips are put to within a frame of no offset."""
        return judge_expert(self.averaged, self.judged)


class _ExpertStep(nn.Module):
    """The forward pass of one step as a module, so that Fabric can wrap it."""

    def __init__(self, expert: SyncNet, weights: ExpertWeights) -> None:
        super().__init__()
        self.expert, self._weights = expert, weights

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        count, windows = batch["pictures"].shape[:2]
        pictures = to_network(batch["pictures"].flatten(0, 1)).transpose(1, 2)
        # One voice for the whole stretch: else the true sound could be told by how it was varied.
        taps = torch.tensor(self.expert.config.encoder.taps, device=pictures.device)
        sounds = windows_at(batch["features"].float(), batch["positions"][..., None] + taps)
        lips = self.expert.embed_lips(pictures).view(count, windows, -1)
        heard = self.expert.embed_sound(sounds.flatten(0, 1)).view(count, sounds.shape[1], -1)
        return expert_losses(self.expert, lips, heard, batch["positions"], batch["sounding"], batch["lips"], self._weights)


def windows_at(tracks: Tensor, positions: Tensor) -> Tensor:
    """Windows of tracks (B, P, D) at positions (B, m, K), between two rows linear: (B, m, K, D)."""
    first = positions.floor().clamp(0, tracks.shape[1] - 2)
    share = (positions - first).clamp(0, 1)[..., None]
    number, low = torch.arange(len(tracks), device=tracks.device)[:, None, None], first.long()
    return (1 - share) * tracks[number, low] + share * tracks[number, low + 1]


@torch.no_grad()
def fit_components(tower: SoundTower, clips: list[Clip], use: EncoderUse) -> None:
    """Fit what `tower` listens to: the principal components of the sounds of `clips`, brought to one size but for the faintest. Raises
    TrainingDataError: a clip without features."""
    sample = np.concatenate([clip.features_of(use).variant(0)[::COMPONENTS_EVERY].astype(np.float32) for clip in clips])
    found = PCA(min(tower.components.out_features, *sample.shape), svd_solver="covariance_eigh").fit(sample)
    scale = 1 / np.sqrt(found.explained_variance_ + FAINT * found.explained_variance_.mean())
    weight = torch.from_numpy((found.components_ * scale[:, None]).astype(np.float32))
    tower.components.weight.zero_()
    tower.components.bias.zero_()
    tower.components.weight[: len(weight)] = weight
    tower.components.bias[: len(weight)] = -weight @ torch.from_numpy(found.mean_.astype(np.float32))


def judge_expert(expert: SyncNet, clips: list[Clip]) -> Validation:
    """Figures on whole clips. ``one_k`` and ``second_k``: share of single windows, and of seconds (25 windows averaged), whose true sound
    fits better than the one k frames earlier or later; ``one_far``, ``second_far``: than one at least 10 frames away. ``offset_right``:
    share of clips of 2 s or more whose best shift is within a frame of none. ``score``: mean of one_2 to one_5. Picture: the offset curve.

    Raises TrainingDataError where no clip is long enough to compare seconds.
    """
    if all(len(clip) < FEWEST_JUDGED for clip in clips):
        raise TrainingDataError(f"no held-out clip has {FEWEST_JUDGED} frames, so nothing can be judged; give longer clips with --val")
    expert.eval()
    found = [shift_cosines(expert, clip) for clip in clips]
    result = accuracies(found)
    long = [one.best()[0] for one in found if len(one) >= 2 * GRID_HZ and one.sounding.any()]
    curve = mean_curve(found)
    figures = {f"one_{shift}": share for shift, share in result.single.items()}
    figures |= {f"second_{shift}": share for shift, share in result.second.items()}
    figures |= {
        "one_far": result.single_far,
        "second_far": result.second_far,
        "offset_right": float(np.mean([abs(best) <= 1 for best in long])) if long else 0.0,
        "score": float(np.mean([result.single[shift] for shift in (2, 3, 4, 5)])),
    }
    return Validation(figures, draw_curve(curve))


def mean_curve(found: list[ShiftCosines]) -> NDArray[np.float64]:
    """Mean cosine of all clips of 2 s or more at the shifts -15..15, each clip weighted by its sounding frames: (31,); 0 where none is."""
    found = [one for one in found if len(one) >= 2 * GRID_HZ]
    if not found:
        return np.zeros(2 * FURTHEST + 1)
    curves = np.array([one.curve() for one in found])
    weights = np.array([one.sounding.sum() for one in found], np.float64)[:, None] * np.isfinite(curves)
    return np.asarray((np.nan_to_num(curves) * weights).sum(axis=0) / np.maximum(1e-9, weights.sum(axis=0)))


def draw_curve(curve: NDArray[np.float64], size: tuple[int, int] = (240, 480)) -> NDArray[np.uint8]:
    """The offset curve as a picture: uint8 (H, W, 3) RGB, a line at no shift, shifts every five frames named."""
    height, width = size
    picture = np.full((height, width, 3), 255, np.uint8)
    low, high = float(curve.min()) - 0.02, float(curve.max()) + 0.02
    x = np.linspace(40, width - 20, len(curve))
    y = height - 30 - (curve - low) / (high - low) * (height - 60)
    for shift in range(-FURTHEST, FURTHEST + 1, 5):
        at = round(float(x[shift + FURTHEST]))
        cv2.line(picture, (at, 20), (at, height - 25), (200, 120, 120) if shift == 0 else (225, 225, 225), 1)
        cv2.putText(picture, f"{shift:+d}", (at - 10, height - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60, 60, 60), 1, cv2.LINE_AA)
    for value in (float(curve.min()), float(curve.max())):
        at = round(height - 30 - (value - low) / (high - low) * (height - 60))
        cv2.putText(picture, f"{value:.2f}", (2, at + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (60, 60, 60), 1, cv2.LINE_AA)
    points = np.round(np.stack([x, y], axis=1)).astype(np.int32)
    cv2.polylines(picture, [points], False, (30, 80, 180), 2, cv2.LINE_AA)
    return picture
