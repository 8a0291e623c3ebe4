"""The sync expert: which lips belong to which sound (SyncNet; Chung and Zisserman, ACCV-W 2016), as Wav2Lip uses it to judge a generator.

Five lower-half frames and 0.2 s of the speech encoder's features become unit embeddings; their cosine tells how well they belong together.
Letters: B batch, T frames of a lip window, K positions of a sound window, D features of a position, E embedding channels, h, w of the lip
box. Pictures are float32 (B, 3, T, h, w) in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipdub.bundles import bundle
from lipdub.bundles.encoder import GRAPH, EncoderSpec
from lipdub.bundles.expert import SPEC_FILE, ExpertSpec
from lipdub.bundles.network import EncoderUse
from lipdub.errors import CheckpointInvalid, LipdubError
from lipdub.train import checkpoints
from lipdub.train.networks import LIP_POINTS, ConvBlock, ResidualBlock
from lipdub.train.weights import read_weights

STAGE = "expert"
"""What a checkpoint of the expert says that it is."""
TAPS = tuple(range(-5, 6))
"""Positions of 20 ms that a sound window holds: as long as a lip window of five frames."""


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """Everything that fixes the shapes of the expert. Raises ``ValueError`` for a box that is not in the lower half of the crop."""

    encoder: EncoderUse
    """What it hears through."""
    size: int = 128
    """Side of the aligned crop in px."""
    box: tuple[int, int, int, int] = (64, 128, 16, 112)
    """Half-open part (y0, y1, x0, x1) of the crop that is looked at; in the lower half."""
    pool: int = 2
    """Pictures are averaged down by this before the first layer."""
    frames: int = 5
    """T: frames of a lip window, at 25 frames/s."""
    lip_widths: tuple[int, ...] = (24, 48, 96, 160)
    sound_widths: tuple[int, ...] = (256, 96, 128)
    """Principal components of a position's features that are listened to, and the channels behind them."""
    embedding: int = 192
    """E."""
    dropout: float = 0.2

    def __post_init__(self) -> None:
        y0, y1, x0, x1 = self.box
        if not (self.size // 2 <= y0 < y1 <= self.size and 0 <= x0 < x1 <= self.size):
            raise ValueError(f"box must lie in the lower half of the crop, got {self.box} of {self.size}")

    @property
    def box_px(self) -> tuple[int, int]:
        """(h, w) of the box."""
        y0, y1, x0, x1 = self.box
        return y1 - y0, x1 - x0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)


def shipped(encoder: EncoderSpec) -> ExpertConfig:
    """What ``lipdub train expert`` trains on top of an encoder."""
    return ExpertConfig(EncoderUse(encoder.name, encoder.graphs[GRAPH], encoder.channels, TAPS))


class LipTower(nn.Module):
    """Five lip pictures to one embedding. Light on purpose: its cost is that of training the expert, and of training against it."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        self._pool = config.pool
        a, b, c, d = config.lip_widths
        # A 3-D convolution over all T frames at once, written as the 2-D one that it is: frames are channels.
        self.motion = ConvBlock(3 * config.frames, a, (5, 5), 2, 2)
        self.levels = nn.ModuleList(
            [
                nn.Sequential(ConvBlock(a, b, 3, 2), ResidualBlock(b)),
                nn.Sequential(ConvBlock(b, c, 3, 2), ResidualBlock(c)),
                nn.Sequential(ConvBlock(c, d, 3, 2), ResidualBlock(d)),
            ]
        )
        height, width = (-(-side // (16 * config.pool)) for side in config.box_px)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Conv2d(d, config.embedding, (height, width)))

    def features(self, frames: Tensor) -> list[Tensor]:
        """Feature maps from fine to coarse: a quarter of the box's px to a thirty-second with a pool of 2."""
        if self._pool > 1:
            frames = F.avg_pool3d(frames, (1, self._pool, self._pool))
        found = [self.motion(frames.flatten(1, 2))]
        for level in self.levels:
            found.append(level(found[-1]))
        return found

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, h, w) to (B, E), not normalised."""
        return self.head(self.features(frames)[-1]).flatten(1)


class SoundTower(nn.Module):
    """Window of features to one embedding. Their principal components are fitted once (``expert_stage.fit_components``) and stay: what is
    learned by steps from all 1,536 features learns speakers."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        components, a, b = config.sound_widths
        self.components = nn.Linear(config.encoder.channels, components).requires_grad_(False)
        self.body = nn.Sequential(
            nn.Dropout(config.dropout), nn.Conv1d(components, a, 1), nn.SiLU(), nn.Conv1d(a, b, 3, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Conv1d(b, config.embedding, len(config.encoder.taps)))

    def forward(self, features: Tensor) -> Tensor:
        """features (B, K, D) to (B, E), not normalised."""
        return self.head(self.body(self.components(features).transpose(1, 2))).flatten(1)


class SyncNet(nn.Module):
    """Both towers, and the scale and bias that make a logit of their cosine."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.lip_tower, self.sound_tower = LipTower(config), SoundTower(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-3.0))
        self.lip_points, self.heard_points = (nn.Linear(config.embedding, 2 * LIP_POINTS) for _ in range(2))

    def embed_lips(self, frames: Tensor) -> Tensor:
        """(B, 3, T, h, w), the box of the crops, to unit rows (B, E), float32."""
        return _unit(self.lip_tower(frames))

    def embed_sound(self, features: Tensor) -> Tensor:
        """(B, K, D) to unit rows (B, E), float32."""
        return _unit(self.sound_tower(features))

    def points_seen(self, embedding: Tensor) -> Tensor:
        """Lip points (B, 40, 2) relative to rest, in unit crop coordinates, read from lip embeddings (B, E)."""
        return _points(self.lip_points, embedding)

    def points_heard(self, embedding: Tensor) -> Tensor:
        """The same from sound embeddings."""
        return _points(self.heard_points, embedding)

    @property
    def scale(self) -> Tensor:
        """Factor on cosines, from 1 to 50."""
        return self.log_scale.clamp(0.0, math.log(50.0)).exp()

    def logit(self, cosine: Tensor) -> Tensor:
        """Log odds that lips and sound of this cosine belong together."""
        return self.scale * cosine + self.bias


def _points(head: nn.Linear, embedding: Tensor) -> Tensor:
    # Unit rows have channels of about 1 / sqrt(E): bring the head's input to unit scale.
    return head(embedding * embedding.shape[1] ** 0.5).unflatten(1, (LIP_POINTS, 2)) * 0.05


def _unit(embedding: Tensor) -> Tensor:
    # In float32 also under bfloat16 autocast: a shift of one frame changes a cosine by hundredths.
    return F.normalize(embedding.float(), dim=1)


def load_expert(path: Path) -> SyncNet:
    """The expert of a checkpoint (its averaged weights) or of an exported folder, frozen, in inference mode. Raises CheckpointInvalid."""
    if path.is_dir():
        return _from_folder(path)
    content = checkpoints.load(path)
    if checkpoints.stage_of(content) != STAGE:
        raise CheckpointInvalid(f"'{path}' holds no sync expert; give a checkpoint of lipdub train expert")
    try:
        expert = SyncNet(checkpoints.settings_of(ExpertConfig, content["settings"]["network"], str(path)))
        expert.load_state_dict(content["modules"]["averaged"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointInvalid(f"'{path}' holds no expert of this lipdub: {' '.join(str(error).split())[:200]}") from error
    return expert.requires_grad_(False).eval()


def _from_folder(folder: Path) -> SyncNet:
    """The expert that ``lipdub export-onnx`` wrote to `folder`; its weights are float16 there."""
    try:
        spec = ExpertSpec.from_json(bundle.read_spec(folder, SPEC_FILE), where=str(folder / SPEC_FILE))
        expert = SyncNet(
            ExpertConfig(
                encoder=spec.encoder, size=spec.crop.size, box=spec.crop.drawn, pool=spec.pool, frames=spec.frames,
                lip_widths=spec.lip_widths, sound_widths=spec.sound_widths, embedding=spec.embedding,
            )
        )  # fmt: skip
        expert.load_state_dict(read_weights(folder)[0])
    except (LipdubError, ValueError, RuntimeError) as error:
        raise CheckpointInvalid(
            f"'{folder}' holds no sync expert: {' '.join(str(error).split())[:200]}; give a checkpoint of lipdub train expert"
        ) from error
    return expert.requires_grad_(False).eval()
