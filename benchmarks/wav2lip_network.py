"""A network in the shape of Wav2Lip's generator, written from published descriptions, with random weights: for its time only.

It follows Prajwal et al., "A Lip Sync Expert Is All You Need for Speech to Lip Generation In the Wild" (ACM MM 2020, arXiv
2008.10010, section 4.1: identity encoder, speech encoder and face decoder of residual convolutions, skips by concatenation), with channels
such that it has the 36.3 M parameters that are always quoted for it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

PARAMETERS: Final = 36.3e6
"""Of the generator, as published; `Generator` has these within one per cent."""
SIDE: Final = 96
"""px of the face that goes in and comes out."""

Stride = int | tuple[int, int]


class Block(nn.Module):
    """Convolution, batch norm, ReLU; with `residual` the input is added before the ReLU. (B, in, H, W) to (B, out, H', W')."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: Stride = 1, padding: int = 1, *, residual: bool = False
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding)
        self.norm = nn.BatchNorm2d(channels)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Float in any range, the ReLU's output."""
        y = self.norm(self.convolution(x))
        return torch.relu(y + x if self.residual else y)


class Growing(nn.Module):
    """Transposed convolution, batch norm, ReLU: twice the height and width (or 1 to 3)."""

    def __init__(self, channels_in: int, channels: int, *, first: bool) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose2d(channels_in, channels, 3, 1 if first else 2, 0 if first else 1, 0 if first else 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, 2H, 2W)."""
        return torch.relu(self.norm(self.convolution(x)))


def stage(channels_in: int, channels: int, stride: Stride, residuals: int, *, kernel: int = 3, padding: int = 1) -> nn.Sequential:
    """One convolution that changes the size, then `residuals` that keep it."""
    return nn.Sequential(
        Block(channels_in, channels, kernel, stride, padding),
        *(Block(channels, channels, 3, residual=True) for _ in range(residuals)),
    )


def to_point(channels_in: int, channels: int) -> nn.Sequential:
    """3x3 pixels to one, and a 1x1 convolution."""
    return nn.Sequential(Block(channels_in, channels, 3, 1, 0), Block(channels, channels, 1, 1, 0))


class Generator(nn.Module):
    """mel (B, 1, 80, 16) and faces (B, 6, 96, 96; masked target and reference, in [0, 1]) to faces (B, 3, 96, 96) in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 128, 256, 512)
        depths = (0, 2, 3, 2, 2, 1)
        self.face_encoder = nn.ModuleList([stage(6, widths[0], 1, depths[0], kernel=7, padding=3)])
        for before, here, residuals in zip(widths, widths[1:], depths[1:], strict=False):
            self.face_encoder.append(stage(before, here, 2, residuals))
        self.face_encoder.append(to_point(512, 512))
        self.audio_encoder = nn.Sequential(
            stage(1, 32, 1, 2), stage(32, 64, (3, 1), 2), stage(64, 128, 3, 2), stage(128, 256, (3, 2), 1), to_point(256, 512)
        )
        # What comes up from below, and beside it the features that the encoder had at this size.
        grown = ((512, 512, 1), (512, 512, 2), (512, 384, 2), (384, 256, 2), (256, 128, 2), (128, 64, 2))
        skips = (512, 512, 256, 128, 64, 32)
        self.decoder = nn.ModuleList([Block(512, 512, 1, 1, 0)])
        for number, ((below, here, residuals), skip) in enumerate(zip(grown, skips, strict=True)):
            blocks = (Block(here, here, 3, residual=True) for _ in range(residuals))
            self.decoder.append(nn.Sequential(Growing(below + skip, here, first=number == 0), *blocks))
        self.out = nn.Sequential(Block(64 + 16, 32, 3), nn.Conv2d(32, 3, 1))

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        """The drawn faces."""
        features = []
        x = faces
        for encode in self.face_encoder:
            x = encode(x)
            features.append(x)
        x = self.audio_encoder(mel)
        for decode, skip in zip(self.decoder, reversed(features), strict=True):
            x = torch.cat([decode(x), skip], 1)
        return torch.sigmoid(self.out(x))


def with_random_weights(network: nn.Module, *, seed: int = 0) -> nn.Module:
    """The network, ready to run, with weights that keep the size of what goes through: numbers too small to be normal would cost time."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network.eval()


def parameters_in(network: nn.Module) -> int:
    """Trained numbers in the network, those of batch norms included."""
    return sum(parameter.numel() for parameter in network.parameters())
