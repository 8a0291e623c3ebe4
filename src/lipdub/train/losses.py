"""The losses, one function each, all means over the batch. Which pulls what, and where gradients stop, is part of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lipdub.train.networks import LIP_POINTS

LANDMARK_UNIT = 0.05
"""Lip displacements are compared in this unit (unit crop): a mouth opens by about one."""


def store_loss(recalled: Tensor, lip_feature: Tensor) -> Tensor:
    """Pulls what lips recall (B, C) towards the lip feature (B, C), normalised: fills V. The feature itself is not pulled."""
    return F.mse_loss(recalled, F.normalize(lip_feature.detach().float(), dim=1)) * recalled.shape[1]


def align_loss(lip_address: Tensor, audio_address: Tensor) -> Tensor:
    """KL(lip address || audio address), both (B, S): pulls the audio side. The lip address is not pulled."""
    target = lip_address.detach()
    return F.kl_div(torch.log(audio_address + 1e-8), target, reduction="sum") / max(1, len(target))  # all of a batch may be silent


def usage_loss(address: Tensor) -> Tensor:
    """How far the mean of the addresses (B, S) is from using all slots alike: log S minus its entropy. 0 is best."""
    mean = address.mean(dim=0)
    return torch.log(torch.tensor(float(len(mean)), device=mean.device)) + (mean * torch.log(mean + 1e-8)).sum()


def usage_perplexity(address: Tensor) -> float:
    """Number of slots in use, exp of the entropy of the mean address (B, S): 1 is collapse, S is all alike."""
    mean = address.detach().float().mean(dim=0)
    return float(torch.exp(-(mean * torch.log(mean + 1e-12)).sum()))


def weighted(found: Mapping[str, Tensor], weights: object) -> Tensor:
    """The sum of the losses `found`, each times the attribute of `weights` that has its name."""
    nothing = torch.zeros((), device=next(iter(found.values())).device)
    return sum((getattr(weights, name) * value for name, value in found.items()), nothing)


def landmark_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Smooth L1 between lip points (B, 40, 2) in unit crop coordinates."""
    if predicted.shape[-2:] != (LIP_POINTS, 2):
        raise ValueError(f"lip points must be (B, {LIP_POINTS}, 2), got {predicted.shape = }")
    return F.smooth_l1_loss(predicted.float() / LANDMARK_UNIT, true / LANDMARK_UNIT, beta=0.5)


def spread_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Pulls the spread of lip points over the batch (B, 40, 2) to the true spread: against under-articulation, which the mean of
    many possible mouths (regression to the mean) always shows. Weighted by how much a point really moves. One sample has none."""
    if len(true) < 2:
        return predicted.new_zeros(())
    true_spread = true.std(dim=0)
    difference = predicted.float().std(dim=0) - true_spread
    return (difference**2).mean() / (true_spread**2).mean().clamp(min=1e-8)


def picture_loss(drawn: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 between pictures (B, 3, h, w); `weight` (B, 1, h, w)."""
    return ((drawn - true).abs() * weight).sum() / (3 * weight.sum()).clamp(min=1e-6)


def edge_loss(drawn: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 between the differences of neighbouring pixels: sharp lips and teeth."""
    across = (drawn.diff(dim=3) - true.diff(dim=3)).abs() * weight[..., 1:]
    down = (drawn.diff(dim=2) - true.diff(dim=2)).abs() * weight[:, :, 1:]
    return (across.sum() + down.sum()) / (6 * weight.sum()).clamp(min=1e-6)


def visual_sync_loss(drawn_feature: Tensor, true_feature: Tensor) -> Tensor:
    """Visual-visual sync: L1 between frozen lip-encoder features (B, C) of drawn and true frames, normalised."""
    scale = drawn_feature.shape[1] ** 0.5
    return F.l1_loss(F.normalize(drawn_feature.float(), dim=1) * scale, F.normalize(true_feature.float(), dim=1) * scale)


def audio_visual_loss(drawn_logit: Tensor, true_logit: Tensor) -> Tensor:
    """Audio-visual sync: the expert's binary cross-entropy of drawn lips (B,) with the true sound, as far as it is above that of the true
    lips. Better than the truth is over-articulation, and where the true lips do not fit, drawn ones need not."""
    if len(drawn_logit) == 0:
        return drawn_logit.sum()
    return F.relu(F.softplus(-drawn_logit) - F.softplus(-true_logit.detach())).mean()


def temporal_loss(drawn: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 between the changes from frame to frame of drawn and true windows (B, T, 3, h, w); `weight` (1, 1, h, w)."""
    changes = (drawn.diff(dim=1) - true.diff(dim=1)).abs()
    return (changes * weight).mean() / weight.mean().clamp(min=1e-6)


class HasFeatures(Protocol):
    """A frozen network that gives features of each of its levels."""

    def features(self, drawn: Tensor) -> list[Tensor]:
        """The drawn box (B, 3, h, w) to features."""
        ...


def perceptual_loss(network: HasFeatures, drawn: Tensor, true: Tensor) -> Tensor:
    """L1 between features of drawn and true pictures (B, 3, h, w), each level relative to how large its true features are. The gradient
    reaches the drawn picture alone."""
    with torch.no_grad():
        wanted = network.features(true)
    return matching_loss(network.features(drawn), wanted)


def matching_loss(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """L1 between features of drawn and true pictures, each level relative to how large its true features are. Of the discriminator's
    features: feature matching (Salimans et al., NeurIPS 2016; pix2pixHD, Wang et al., CVPR 2018). The true ones are not pulled."""
    levels = [(one.float() - other.detach().float()).abs().mean() / other.detach().float().abs().mean().clamp(min=1e-6)
              for one, other in zip(found, wanted, strict=True)]  # fmt: skip
    return torch.stack(levels).mean()


def discriminator_loss(real_scores: Tensor, drawn_scores: Tensor) -> Tensor:
    """Hinge: real patches above 1, drawn ones below -1."""
    return F.relu(1 - real_scores.float()).mean() + F.relu(1 + drawn_scores.float()).mean()


def adversarial_loss(drawn_scores: Tensor) -> Tensor:
    """The generator's side of the hinge."""
    return -drawn_scores.float().mean()
