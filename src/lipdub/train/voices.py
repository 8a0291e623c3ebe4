"""Voice augmentation on mel windows: other levels, microphones, vocal tracts and rooms, so that the memory hears phonemes, not people."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DB = 8.0 / 100.0
"""Mel units per decibel."""


def vary_voice(mel: Tensor, *, strength: float = 1.0) -> Tensor:
    """mel (B, 1, 80, 16) in [-4, 4] to the same, varied per sample: level (about 6 dB), a smooth equaliser (4 dB), bands moved
    up or down (vocal tract, up to about 10 %), added noise, a masked stretch of bands."""
    batch, _, bands, columns = mel.shape
    device = mel.device
    # Vocal tract: read the bands from a stretched axis.
    stretch = 1 + 0.06 * strength * torch.randn(batch, 1, device=device).clamp(-2, 2)
    grid_y = torch.linspace(-1, 1, bands, device=device)[None].add(1).mul(stretch).sub(1).clamp(-1, 1)
    grid_x = torch.linspace(-1, 1, columns, device=device)
    grid = torch.stack([grid_x[None, None, :].expand(batch, bands, -1), grid_y[:, :, None].expand(-1, -1, columns)], dim=-1)
    varied = F.grid_sample(mel, grid, mode="bilinear", padding_mode="border", align_corners=True)
    # Level and microphone.
    level = 6 * DB * strength * torch.randn(batch, 1, 1, 1, device=device)
    equaliser = F.interpolate(torch.randn(batch, 1, 6, device=device), bands, mode="linear", align_corners=True)[..., None]
    varied = torch.where(varied > -3.95, varied + level + 4 * DB * strength * equaliser, varied)
    # Noise of a random level and colour fills what is quieter.
    colour = F.interpolate(torch.randn(batch, 1, 4, device=device), bands, mode="linear", align_corners=True)[..., None]
    floor = -4.0 + 2.5 * torch.rand(batch, 1, 1, 1, device=device) * strength + 0.3 * colour
    noise = floor + 0.35 * torch.randn_like(varied)
    noisy = torch.rand(batch, 1, 1, 1, device=device) < 0.5
    varied = torch.where(noisy, torch.maximum(varied, noise), varied)
    # A stretch of bands that tells nothing.
    start = torch.rand(batch, 1, device=device) * bands
    width = torch.rand(batch, 1, device=device) * 12 * strength
    row = torch.arange(bands, device=device)[None]
    masked = ((row >= start) & (row < start + width))[:, None, :, None]
    varied = torch.where(masked, varied.mean(dim=2, keepdim=True), varied)
    return varied.clamp(-4, 4)
