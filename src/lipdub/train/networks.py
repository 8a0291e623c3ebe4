"""The networks of SyncTalkFace (Park et al., AAAI 2022, arXiv 2211.00924): encoders, audio-lip memory, decoder, discriminator.

One code path, two presets. Letters: B batch, T frames of a lip window, S slots, C feature channels, H, W. Inside networks pictures
are float32 (B, 3, H, W) in [-1, 1].

Departures from the paper, all measured on our own footage:
- Slots and embeddings are normalised.
- A linear head reads the lip landmarks from every recall: without a task of its own the memory collapses to one slot.
- The decoder draws only the box that the paste mask can show.
- ``compact`` also feeds the lip feature to every coarse decoder level (``modulated``).
- ``compact`` may copy the reference's pixels through a drawn flow (``has_flow``), which keeps skin, beard and collar as sharp as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lipdub.bundles.bundle import FLOW_STRIDE, POINTS
from lipdub.bundles.network import EncoderUse, NetworkConfig
from lipdub.phonetics.classes import CLASSES
from lipdub.records import MelSpec

LIP_POINTS = POINTS
LIP_COMPONENTS = 12
"""Principal components of the lips that the bottleneck tells; phoneme classes are the rest of it."""
BOTTLENECK = LIP_COMPONENTS + len(CLASSES)
LIP_SIDE = ("lip_encoder.", "point_encoder.", "memory.values", "memory.lip_query.", "landmark_head.")
"""Weights of a ``LipMemory`` that lips alone go through."""


PRESETS = {
    "paper": NetworkConfig(
        preset="paper", size=128, drawn=(0, 128, 0, 128), crop_stride=32, slots=96, channels=512,
        audio_widths=(32, 64, 128, 256), audio_strides=((1, 1), (3, 1), (3, 3), (3, 2)), lip_widths=(32, 64, 128, 256), lip_pool=1,
        face_widths=(16, 32, 64, 128, 256, 512, 512), decoder_widths=(512, 512, 384, 256, 128, 64),
        residual=True, modulated=False, has_flow=False, fusion_dropout=0.5,
    ),
    "compact": NetworkConfig(
        preset="compact", size=128, drawn=(64, 128, 16, 112), crop_stride=8, slots=96, channels=192,
        audio_widths=(24, 48, 96, 160), audio_strides=((4, 1), (2, 2), (2, 2), (1, 2)), lip_widths=(24, 48, 96, 160), lip_pool=2,
        face_widths=(12, 24, 48, 96, 144, 192, 192), decoder_widths=(160, 128, 96, 64, 40, 20),
        residual=True, modulated=True, has_flow=True, fusion_dropout=0.1, drawn_kappa=24.0,
    ),
}  # fmt: skip


class MemoryRead(NamedTuple):
    """What the memory gives for one kind of query."""

    address: Tensor
    """(B, S), rows sum to 1."""
    recalled: Tensor
    """(B, C): address x V."""


def _norm(channels: int) -> nn.Module:
    # Group norm: the same in training and inference, whatever the batch; batch statistics would tie frames together.
    return nn.GroupNorm(next(g for g in (8, 4, 2, 1) if channels % g == 0), channels)


class ConvBlock(nn.Sequential):
    """Convolution, norm, activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
    ) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, kernel, stride, padding), _norm(outputs), nn.SiLU(inplace=True))


class ResidualBlock(nn.Module):
    """x + conv(x), then the activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), _norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        return F.silu(x + self.body(x))


class AudioEncoder(nn.Module):
    """Mel window to audio feature; strides 1, (3, 1), 3, (3, 2) as in the reference system. ``compact`` begins with a stride of 4 bands:
    a quarter of the time, and no worse on people it never heard."""

    def __init__(self, config: NetworkConfig, mel: MelSpec) -> None:
        super().__init__()
        inputs = 1
        stages: list[nn.Module] = []
        for width, stride in zip(config.audio_widths, config.audio_strides, strict=True):
            # A first level that skips bands looks at all of them.
            kernel, padding = ((7, 3), (3, 1)) if inputs == 1 and stride[0] > 3 else (3, 1)
            stages += [ConvBlock(inputs, width, kernel, stride, padding), ResidualBlock(width)]
            inputs = width
        self.body = nn.Sequential(*stages)
        d = inputs
        with torch.no_grad():
            shape = self.body(torch.zeros(1, 1, mel.bands, mel.window)).shape
        self.head = nn.Conv2d(d, config.channels, (shape[2], shape[3]))

    def forward(self, mel: Tensor) -> Tensor:
        """mel (B, 1, 80, 16) in [-4, 4] to audio feature (B, C)."""
        return self.head(self.body(mel / 4.0)).flatten(1)


class FeatureEncoder(nn.Module):
    """Features of the pretrained speech encoder to audio feature: a linear bottleneck that is fitted in closed form
    (``lipdub.train.bottleneck``) and stays, and a small network behind it. A network that learns from all features by steps overfits within
    a hundred of them: there are five minutes of varied speakers."""

    HIDDEN = 64

    def __init__(self, config: NetworkConfig, encoder: EncoderUse) -> None:
        super().__init__()
        self.bottleneck = nn.Linear(len(encoder.taps) * encoder.channels, BOTTLENECK).requires_grad_(False)
        self.linear = nn.Linear(BOTTLENECK, config.channels)
        self.body = nn.Sequential(nn.Linear(BOTTLENECK, self.HIDDEN), nn.SiLU(), nn.Dropout(0.1), nn.Linear(self.HIDDEN, config.channels))

    def forward(self, features: Tensor) -> Tensor:
        """features (B, taps, D) to audio feature (B, C)."""
        return self.of_bottleneck(self.bottleneck(features.flatten(1)))

    def of_bottleneck(self, bottleneck: Tensor) -> Tensor:
        """Audio feature (B, C) of what the bottleneck gave, (B, ``BOTTLENECK``)."""
        return self.linear(bottleneck) + self.body(bottleneck)


class LipEncoder(nn.Module):
    """Five frames' lower halves to lip feature: 3-D convolution (5, 7, 7), then a 2-D residual stack. Training only."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self._drawn, self._masked_from, self._pool = config.drawn, config.masked_from, config.lip_pool
        a, b, c, d = config.lip_widths
        self.motion = nn.Sequential(nn.Conv3d(3, a, (config.frames, 7, 7), (1, 2, 2), (0, 3, 3)), nn.GroupNorm(4, a), nn.SiLU(inplace=True))
        self.body = nn.Sequential(
            ConvBlock(a, b, 3, 2),
            ResidualBlock(b),
            ConvBlock(b, c, 3, 2),
            ResidualBlock(c),
            ConvBlock(c, d, 3, 2),
            ResidualBlock(d),
        )
        y0, y1, x0, x1 = config.drawn
        with torch.no_grad():
            probe = torch.zeros(1, a, -(-(y1 - y0) // (2 * self._pool)), -(-(x1 - x0) // (2 * self._pool)))
            shape = self.body(probe).shape
        self.head = nn.Conv2d(d, config.channels, (shape[2], shape[3]))

    def forward(self, frames: Tensor) -> Tensor:
        """frames (B, 3, T, h, w), the drawn box of the crops, to lip feature (B, C). Rows of the upper half are zeroed."""
        hidden_rows = max(0, self._masked_from - self._drawn[0])
        if hidden_rows:
            frames = torch.cat([torch.zeros_like(frames[:, :, :, :hidden_rows]), frames[:, :, :, hidden_rows:]], dim=3)
        if self._pool > 1:
            frames = F.avg_pool3d(frames, (1, self._pool, self._pool))
        return self.head(self.body(self.motion(frames).squeeze(2))).flatten(1)


class PointEncoder(nn.Module):
    """Five frames' lip points to the query that addresses the value memory. Training only. Points say more of a mouth than pictures do to
    so small a network: on people it never saw the recall follows the opening with r 0.98, from pictures with 0.81."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        inputs = config.frames * LIP_POINTS * 2
        self.linear = nn.Linear(inputs, config.channels)
        self.body = nn.Sequential(nn.Linear(inputs, config.points_hidden), nn.SiLU(), nn.Linear(config.points_hidden, config.channels))

    def forward(self, points: Tensor) -> Tensor:
        """points (B, T, 40, 2), relative to the closed mouth, unit crop, to query (B, C)."""
        flat = points.flatten(1) / 0.05
        return self.linear(flat) + self.body(flat)


class AudioLipMemory(nn.Module):
    """Key memory K addressed by audio, value memory V of lip features: address = softmax(kappa * cos(query, slot)),
    recall = address x V (section 3 of the paper). Slots and queries are normalised."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.kappa, self.drawn_kappa = config.kappa, config.drawn_kappa
        self.keys = nn.Parameter(F.normalize(torch.randn(config.slots, config.channels), dim=1))
        self.values = nn.Parameter(F.normalize(torch.randn(config.slots, config.channels), dim=1))
        self.audio_query = nn.Linear(config.channels, config.channels)
        self.lip_query = nn.Linear(config.channels, config.channels)

    def slots(self) -> Tensor:
        """V as it is recalled: (S, C), unit rows."""
        return F.normalize(self.values, dim=1)

    def by_lips(self, lip_feature: Tensor) -> MemoryRead:
        """Address V by lip features (B, C)."""
        return self.by_query(self.lip_query(lip_feature))

    def by_audio(self, audio_feature: Tensor) -> MemoryRead:
        """Address K by audio features (B, C), as the memory learns it; V is what is recalled."""
        return self._read(self.audio_query(audio_feature), F.normalize(self.keys, dim=1), self.kappa)

    def by_audio_sharpened(self, audio_feature: Tensor) -> MemoryRead:
        """The same with the sharper addresses that are drawn (``drawn_kappa``)."""
        return self._read(self.audio_query(audio_feature), F.normalize(self.keys, dim=1), self.drawn_kappa)

    def by_query(self, query: Tensor) -> MemoryRead:
        """Address V by queries (B, C) as they are."""
        return self._read(query, self.slots(), self.kappa)

    def _read(self, query: Tensor, slots: Tensor, kappa: float) -> MemoryRead:
        # In float32 also under bfloat16 autocast: 16 * cos has to tell slots apart.
        with torch.autocast(query.device.type, enabled=False):
            cosine = F.normalize(query.float(), dim=1) @ slots.float().t()
            address = torch.softmax(kappa * cosine, dim=1)
            return MemoryRead(address, address @ self.slots().float())


class LipMemory(nn.Module):
    """Both encoders, the memory, the landmark head and the fusion: all that stands between mel and lip feature."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.audio_encoder: AudioEncoder | FeatureEncoder
        if config.encoder is not None:
            self.audio_encoder = FeatureEncoder(config, config.encoder)
        else:
            assert config.mel is not None  # the config holds one of the two
            self.audio_encoder = AudioEncoder(config, config.mel)
        self.lip_encoder = LipEncoder(config)
        self.point_encoder = PointEncoder(config) if config.points_hidden else None
        self.memory = AudioLipMemory(config)
        self.landmark_head = nn.Linear(config.channels, 2 * LIP_POINTS)
        self.phoneme_head = nn.Linear(config.channels, len(CLASSES))
        self.fusion = nn.Sequential(nn.Dropout(config.fusion_dropout), nn.Linear(2 * config.channels, config.channels))
        # Recalled rows are convex mixtures of unit slots, about 1/sqrt(C) per channel: bring both inputs of the fusion to unit scale.
        self._scale = float(config.channels) ** 0.5

    def landmarks(self, recalled: Tensor) -> Tensor:
        """Lip points (B, 40, 2) relative to the person's closed mouth, in unit crop coordinates, read from a recall (B, C)."""
        return self.landmark_head(recalled * self._scale).unflatten(1, (LIP_POINTS, 2)) * 0.05

    def by_points(self, points: Tensor) -> MemoryRead:
        """Address V by lip points (B, T, 40, 2); of a memory that looks at points."""
        assert self.point_encoder is not None
        return self.memory.by_query(self.point_encoder(points))

    def phonemes(self, audio_feature: Tensor) -> Tensor:
        """Logits (B, classes of ``CLASSES``) from an audio feature (B, C). Training only."""
        return self.phoneme_head(F.silu(audio_feature))

    def lip_side(self) -> list[nn.Parameter]:
        """Parameters of what lips alone go through: lip encoder, value memory and its query, landmark head."""
        return [value for key, value in self.named_parameters() if key.startswith(LIP_SIDE)]

    def fuse(self, audio_feature: Tensor, recalled: Tensor) -> Tensor:
        """Lip feature for the decoder (B, C) from audio feature and recall, both (B, C)."""
        audio = F.normalize(audio_feature.float(), dim=1) * self._scale
        return self.fusion(torch.cat([audio, recalled * self._scale], dim=1))

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inference: windows of speech, mel (B, 1, 80, 16) or features (B, taps, D), to address (B, S), lip feature (B, C) and lip points
        (B, 40, 2). The lip encoder takes no part."""
        audio_feature = self.audio_encoder(windows)
        recall = self.memory.by_audio_sharpened(audio_feature)
        return recall.address, self.fuse(audio_feature, recall.recalled), self.landmarks(recall.recalled)


class FaceFeatures(NamedTuple):
    """What the face encoder gives to the decoder."""

    levels: list[Tensor]
    """Features from full resolution down to 1 x 1."""
    reference: Tensor
    """(B, 3, S, S)"""

    def rows(self, index: Tensor) -> FaceFeatures:
        """Those rows of everything, in this order."""
        return FaceFeatures([level[index] for level in self.levels], self.reference[index])


class FaceEncoder(nn.Module):
    """Target face without its lower half, and a reference face, to features at every resolution (U-Net encoder)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.face_widths
        stages: list[nn.Module] = [ConvBlock(6, widths[0], 7 if not config.modulated else 3, 1, 3 if not config.modulated else 1)]
        for level in range(1, len(widths) - 1):
            coarse = config.residual and (level >= 2 or not config.modulated)
            stage = [ConvBlock(widths[level - 1], widths[level], 3, 2)] + ([ResidualBlock(widths[level])] if coarse else [])
            stages.append(nn.Sequential(*stage))
        side = config.size >> (len(widths) - 2)
        stages.append(nn.Sequential(nn.Conv2d(widths[-2], widths[-1], side), nn.SiLU(inplace=True)))
        self.stages = nn.ModuleList(stages)
        self._masked_from = config.masked_from

    def forward(self, target: Tensor, reference: Tensor) -> FaceFeatures:
        """target, reference (B, 3, S, S) to features from full resolution down to 1 x 1. The target's lower half is zeroed here, too."""
        target = torch.cat([target[:, :, : self._masked_from], torch.zeros_like(target[:, :, self._masked_from :])], dim=2)
        x = torch.cat([target, reference], dim=1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return FaceFeatures(features, reference)


class DrawnFace(NamedTuple):
    """What the decoder gives. Without copying, `paint_mask` and `flow` are None."""

    picture: Tensor
    """(B, 3, h, w) in [-1, 1], the drawn box."""
    paint_mask: Tensor | None
    """(B, 1, h, w) in [0, 1]: how far each pixel was painted; the rest of it was copied from the reference."""
    flow: Tensor | None
    """(B, 2, h / 4, w / 4), (x, y): where it was copied from, relative to its own place, in half crop sides."""


class DecoderLevel(nn.Module):
    """Upsample (transposed convolution), join the skip, convolve; where asked for, scale and shift by the lip feature."""

    def __init__(self, inputs: int, skip: int, outputs: int, *, first: int, lip_channels: int, residual: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, first) if first else nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
        self.join = ConvBlock(outputs + skip, outputs)
        self.modulation = nn.Linear(lip_channels, 2 * outputs) if lip_channels else None
        self.residual = ResidualBlock(outputs) if residual else None

    def forward(self, x: Tensor, skip: Tensor, lip_feature: Tensor, box: tuple[int, int, int, int] | None) -> Tensor:
        """x (B, inputs, H, W) to (B, outputs, 2H, 2W), or its part `box` (y0, y1, x0, x1), which the skip already is."""
        x = self.up(x)
        if box is not None:
            x = x[:, :, box[0] : box[1], box[2] : box[3]]
        x = self.join(torch.cat([F.silu(x), skip], dim=1))
        if self.modulation is not None:
            scale, shift = self.modulation(lip_feature)[..., None, None].chunk(2, dim=1)
            x = x * (1 + scale) + shift
        return self.residual(x) if self.residual is not None else x


class Decoder(nn.Module):
    """Lip feature and face features to the drawn box of the face, tanh."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths, skips = config.decoder_widths, config.face_widths[-2::-1]
        bottleneck = config.channels + config.face_widths[-1]
        side = config.size >> (len(config.face_widths) - 2)
        levels = []
        for level, (width, skip) in enumerate(zip(widths, skips, strict=True)):
            stride = config.size // (side << level)
            levels.append(
                DecoderLevel(
                    bottleneck if level == 0 else widths[level - 1],
                    skip,
                    width,
                    first=side if level == 0 else 0,
                    lip_channels=config.channels if config.modulated and stride >= 4 else 0,
                    residual=config.residual and stride >= (4 if config.modulated else 2),
                )
            )
        self.levels = nn.ModuleList(levels)
        self.picture = nn.Conv2d(widths[-1], 4 if config.has_flow else 3, 3, 1, 1)
        self.flow: nn.Conv2d | None = None
        if config.has_flow:
            self.flow = nn.Conv2d(widths[-3], 2, 3, 1, 1)
            with torch.no_grad():
                # Begin with no motion, and with mostly drawn pixels.
                self.flow.weight.zero_()
                nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]
                self.picture.bias[3] = 2.0  # type: ignore[index]
        self._config = config
        self._side = side

    def forward(self, lip_feature: Tensor, features: FaceFeatures) -> Tensor:
        """lip_feature (B, C), features as the face encoder gives them; (B, 3, h, w) in [-1, 1], the drawn box."""
        return self.drawn(lip_feature, features).picture

    def drawn(self, lip_feature: Tensor, features: FaceFeatures) -> DrawnFace:
        """The same with what was painted, and where the rest of it was copied from."""
        config = self._config
        x = torch.cat([lip_feature[..., None, None], features.levels[-1]], dim=1)
        cropped = False
        flow: Tensor | None = None
        for level, (stage, skip) in enumerate(zip(self.levels, features.levels[-2::-1], strict=True)):
            stride = config.size // (self._side << level)
            box = None
            if stride <= config.crop_stride:
                y0, y1, x0, x1 = (edge // stride for edge in config.drawn)
                skip = skip[:, :, y0:y1, x0:x1]
                box, cropped = (None, True) if cropped else ((y0, y1, x0, x1), True)
            x = stage(x, skip, lip_feature, box)
            if self.flow is not None and stride == FLOW_STRIDE:
                # Up to a quarter of the crop in either direction; in float32, since half precision cannot tell pixels apart.
                flow = 0.5 * torch.tanh(self.flow(x).float())
        picture = self.picture(x)
        if flow is None:
            return DrawnFace(torch.tanh(picture), None, None)
        paint, paint_mask = torch.tanh(picture[:, :3]), torch.sigmoid(picture[:, 3:])
        return DrawnFace(paint_mask * paint + (1 - paint_mask) * self._moved(features.reference, flow), paint_mask, flow)

    def _moved(self, reference: Tensor, flow: Tensor) -> Tensor:
        """The reference's pixels (B, 3, S, S) as the flow (B, 2, h / 4, w / 4) brings them into the drawn box: (B, 3, h, w)."""
        config = self._config
        y0, y1, x0, x1 = config.drawn
        flow = F.interpolate(flow, (y1 - y0, x1 - x0), mode="bilinear", align_corners=False)
        y = (torch.arange(y0, y1, device=flow.device) + 0.5) * (2 / config.size) - 1
        x = (torch.arange(x0, x1, device=flow.device) + 0.5) * (2 / config.size) - 1
        grid = torch.stack([flow[:, 0] + x[None, None, :], flow[:, 1] + y[None, :, None]], dim=-1)
        return F.grid_sample(reference.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


class FaceGenerator(nn.Module):
    """Masked target face, reference face and lip feature to the drawn box of the target with that mouth."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder = FaceEncoder(config)
        self.decoder = Decoder(config)

    def forward(self, target: Tensor, reference: Tensor, lip_feature: Tensor) -> Tensor:
        """(B, 3, S, S), (B, 3, S, S) in [-1, 1] and (B, C) to (B, 3, h, w) in [-1, 1]."""
        return self.decoder(lip_feature, self.encoder(target, reference))


class Judged(NamedTuple):
    """What the discriminator says of pictures."""

    scores: Tensor
    """(B, 1, h', w'), one per patch."""
    features: list[Tensor]
    """Of each level, coarser and coarser."""


class PatchDiscriminator(nn.Module):
    """Real or drawn, patch by patch (spectral norm keeps it from running away)."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        levels = []
        for width in widths:
            conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(inputs, width, 4, 2, 1))
            levels.append(nn.Sequential(conv, nn.LeakyReLU(0.2, inplace=True)))
            inputs = width
        self.levels = nn.ModuleList(levels)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Conv2d(inputs, 1, 3, 1, 1))

    def judged(self, x: Tensor) -> Judged:
        """Of pictures and what is known of them (B, inputs, h, w)."""
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return Judged(self.head(x), features)


class Discriminator(PatchDiscriminator):
    """Real or drawn, of the lower half."""

    def __init__(self, config: NetworkConfig) -> None:
        base = 32 if config.preset == "paper" else 20
        super().__init__(3, (base, 2 * base, 4 * base, 6 * base))
        self._skip_rows = max(0, config.masked_from - config.drawn[0])

    def forward(self, drawn: Tensor) -> Judged:
        """Of the drawn box (B, 3, h, w)."""
        return self.judged(drawn[:, :, self._skip_rows :])


def noise_windows(config: NetworkConfig, count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Noise in the place of windows of speech, as the networks of `config` take them: float32 (count, ...)."""
    if config.encoder is not None:
        return random.standard_normal((count, len(config.encoder.taps), config.encoder.channels)).astype(np.float32)
    assert config.mel is not None  # the config holds one of the two
    return random.uniform(-4, 4, (count, 1, config.mel.bands, config.mel.window)).astype(np.float32)
