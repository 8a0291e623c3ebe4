"""The network that paints what lies between the lips: teeth, tongue and dark, at twice the density of the crop.

It sees a mouth whose lips are where they are to be, with a hole between them, and fills the hole. It learns from frames in which mouths
stand open. Footage is rarely as fine as what is painted, so each sample says how fine its clip is, and what is exported paints as the
finest do.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lipdub.bundles.interior import CHANNELS, FINER, SIZE, WINDOW
from lipdub.errors import TrainingDataError
from lipdub.generators.interior import corner_of, hole_of, seen_with_hole
from lipdub.references.shapes import inner_opening
from lipdub.train import losses
from lipdub.train.data import Clip, ClipSamples, cut, flip_lips, jittered, to_network, to_pixels, toned
from lipdub.train.loop import Validation
from lipdub.train.memory_stage import average
from lipdub.train.networks import ConvBlock, Judged, PatchDiscriminator, ResidualBlock

STAGE = "interior"
PREPARED_SIZE = FINER * SIZE
"""Crop side that clips are prepared with."""
WIDTHS = (24, 48, 96)
OPEN = 0.012
"""Mouths that are further open, unit crop, are learned from."""
SOFT, FINE = -2.7, -2.2
"""How much power there is in what is finer than a px of the crop over that in what is coarser, as a power of ten: in footage that is no
finer than the crop, and in some that is as fine as what is painted."""
FINER_BAND, COARSER_BAND = (0.25, 0.5), (0.06, 0.2)
"""Cycles per px between which the two lie."""
JITTER = 0.06
JUDGED = 200
"""Frames of held-out people that are painted for a validation."""


class Interior(nn.Module):
    """A window with a hole to the window without one."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTHS
        self.near = nn.Sequential(ConvBlock(CHANNELS + 1, a), ResidualBlock(a))
        self.middle = nn.Sequential(ConvBlock(a, b, 3, 2), ResidualBlock(b))
        self.far = nn.Sequential(ConvBlock(b, c, 3, 2), ResidualBlock(c), ResidualBlock(c), ResidualBlock(c))
        self.from_far = nn.Sequential(ConvBlock(c + b, b), ResidualBlock(b))
        self.from_middle = nn.Sequential(ConvBlock(b + a, a), ResidualBlock(a))
        self.finer = nn.Sequential(nn.Conv2d(a, FINER**2 * (a // 2), 3, 1, 1), nn.PixelShuffle(FINER), nn.SiLU(inplace=True))
        self.picture = nn.Sequential(ConvBlock(a // 2, a // 2), nn.Conv2d(a // 2, 3, 3, 1, 1), nn.Tanh())

    def forward(self, seen: Tensor, fineness: Tensor) -> Tensor:
        """seen (B, CHANNELS, h, w) as ``seen_with_hole`` makes it, fineness (B,) to the window (B, 3, FINER h, FINER w) in [-1, 1]."""
        plane = fineness[:, None, None, None].expand(-1, 1, *seen.shape[2:])
        near = self.near(torch.cat([seen, plane], dim=1))
        middle = self.middle(near)
        x = self.far(middle)
        x = self.from_far(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), middle], dim=1))
        x = self.from_middle(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), near], dim=1))
        return self.picture(self.finer(x))


class InteriorDiscriminator(PatchDiscriminator):
    """True or painted, of a window."""

    def __init__(self) -> None:
        super().__init__(5, (32, 64, 96))

    def forward(self, window: Tensor, hole: Tensor, fineness: Tensor) -> Judged:
        """Of a window (B, 3, h, w) whose hole (B, 1, h, w) may be painted."""
        return self.judged(torch.cat([window, hole, fineness[:, None, None, None].expand_as(hole)], dim=1))


@dataclass(frozen=True, slots=True)
class InteriorWeights:
    """Weights of the losses."""

    picture: float = 10.0
    edges: float = 5.0
    adversarial: float = 0.3
    matching: float = 2.0
    """L1 between the discriminator's features of painted and true windows."""
    adversarial_from: int = 200
    """Step at which the discriminator joins."""


def fineness(clip: Clip) -> float:
    """How fine a clip is, 0 to 1, by the lower faces of a few of its frames."""
    side = clip.crops.shape[1]
    found = []
    for row in np.linspace(0, len(clip) - 1, 5).astype(int):
        luma = cv2.cvtColor(np.asarray(clip.crops[row][side // 2 :, side // 5 : -side // 5]), cv2.COLOR_RGB2GRAY).astype(np.float64)
        faded = (luma - luma.mean()) * np.outer(np.hanning(luma.shape[0]), np.hanning(luma.shape[1]))
        power = np.abs(np.fft.fft2(faded)) ** 2
        cycles = np.hypot(*np.meshgrid(np.fft.fftfreq(luma.shape[0]), np.fft.fftfreq(luma.shape[1]), indexing="ij"))
        finer, coarser = (power[(low < cycles) & (cycles < high)].mean() for low, high in (FINER_BAND, COARSER_BAND))
        found.append(np.log10((finer + 1e-9) / (coarser + 1e-9)))
    return float(np.clip((np.median(found) - SOFT) / (FINE - SOFT), 0, 1))


def open_frames(clip: Clip) -> NDArray[np.int64]:
    """Frames in which the inside of the mouth is seen."""
    return np.flatnonzero(inner_opening(clip.lips + clip.rest) > OPEN)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class OpenClip:
    """A clip, its frames with an open mouth, int64 (n,), and how fine it is."""

    clip: Clip
    rows: NDArray[np.int64]
    fineness: float

    def drawn(self, random: np.random.Generator) -> int:
        """One of those frames."""
        return int(self.rows[random.integers(len(self.rows))])


def open_clips(clips: list[Clip]) -> list[OpenClip]:
    """Those of `clips` that show an open mouth."""
    return [OpenClip(clip, rows, fineness(clip)) for clip in clips if len(rows := open_frames(clip))]


class OpenMouths(ClipSamples):
    """Random open mouths: ``seen`` float32 (CHANNELS, h, w), ``hole`` float32 (1, FINER h, FINER w), ``window`` uint8
    (FINER h, FINER w, 3), the truth, ``fineness`` float32 ()."""

    def __init__(self, clips: list[Clip], *, seed: int) -> None:
        self._open = {one.clip.clip_id: one for one in open_clips(clips)}
        if not self._open:
            raise TrainingDataError("no clip shows an open mouth; prepare footage of people who speak")
        super().__init__([one.clip for one in self._open.values()], seed=seed)

    def sample_of(self, clip: Clip, random: np.random.Generator) -> dict[str, Tensor]:
        """A random open mouth of the clip."""
        one = self._open[clip.clip_id]
        return mouth_at(clip, one.drawn(random), one.fineness, random)


def mouth_at(clip: Clip, row: int, fine: float, random: np.random.Generator | None = None) -> dict[str, Tensor]:
    """The mouth of one frame as a sample; jittered, mirrored and toned at random where `random` is given."""
    flip, jitter, tone = False, np.array([1.0, 0.0, 0.0]), np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if random is not None:
        flip, jitter, tone = bool(random.random() < 0.5), jittered(random, JITTER), toned(random)
    picture = cut(clip.crops, np.array([row]), PREPARED_SIZE, jitter, flip, tone)[0]
    points = (clip.lips[row] + clip.rest - 0.5 - jitter[1:]) / jitter[0]
    points = np.asarray((flip_lips(points[None])[0] if flip else points) + 0.5, np.float32)
    corner = corner_of(points)
    hole = hole_of(points, corner)
    (y, x), (rows, columns) = corner, WINDOW
    window = picture[FINER * y : FINER * (y + rows), FINER * x : FINER * (x + columns)]
    coarse = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)[y : y + rows, x : x + columns]
    return {
        "seen": torch.from_numpy(seen_with_hole(coarse, hole)),
        "hole": torch.from_numpy(hole[None]),
        "window": torch.from_numpy(np.ascontiguousarray(window)),
        "fineness": torch.tensor(fine, dtype=torch.float32),
    }


@dataclass(slots=True)
class InteriorStage:
    """Trains ``Interior`` on open mouths, against a discriminator."""

    clips: list[Clip]
    held_out: list[Clip]
    rate: float
    seed: int
    weights: InteriorWeights = field(default_factory=InteriorWeights)
    discriminator_rate: float = 8e-4
    ema: float = 0.998
    start: Interior | None = None
    """Whose weights are gone on with."""
    name: str = STAGE

    samples: OpenMouths = field(init=False)
    network: Interior = field(init=False)
    averaged: Interior = field(init=False)
    discriminator: InteriorDiscriminator = field(init=False)
    _wrapped: nn.Module = field(init=False)
    _judge: nn.Module = field(init=False)
    _optimizer: Optimizer = field(init=False)
    _judge_optimizer: Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.samples = OpenMouths(self.clips, seed=self.seed)
        self.network, self.discriminator = Interior() if self.start is None else self.start, InteriorDiscriminator()
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        betas = (0.5, 0.99)
        self._optimizer = torch.optim.Adam([{"params": list(self.network.parameters()), "base_rate": self.rate}], lr=self.rate, betas=betas)
        self._judge_optimizer = torch.optim.Adam(
            [{"params": list(self.discriminator.parameters()), "base_rate": self.discriminator_rate}],
            lr=self.discriminator_rate, betas=betas,
        )  # fmt: skip

    def modules(self) -> dict[str, nn.Module]:
        """For checkpoints; ``interior``, the moving average, is what is judged and exported."""
        return {"interior": self.averaged, "live": self.network, "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, Optimizer]:
        """For checkpoints and the learning rate."""
        return {"interior": self._optimizer, "discriminator": self._judge_optimizer}

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        return {"widths": list(WIDTHS), "ema": self.ema}

    def setup(self, fabric: Fabric) -> None:
        """Wrap for the devices."""
        self.averaged.to(fabric.device)
        self._wrapped, self._optimizer = fabric.setup(self.network, self._optimizer)
        self._judge, self._judge_optimizer = fabric.setup(self.discriminator, self._judge_optimizer)

    def step(self, batch: dict[str, Tensor], number: int, fabric: Fabric) -> dict[str, Tensor]:
        """One step of the network and, from ``adversarial_from`` on, one of the discriminator."""
        self.network.train()
        weights, hole, fine = self.weights, batch["hole"], batch["fineness"]
        true = to_network(batch["window"])
        painted = true + hole * (self._wrapped(batch["seen"], fine).float() - true)
        found = {"picture": losses.picture_loss(painted, true, hole), "edges": losses.edge_loss(painted, true, hole)}
        against = number >= weights.adversarial_from
        if against:
            self.discriminator.requires_grad_(False)
            judged, real = self._judge(painted, hole, fine), self._judge(true, hole, fine)
            found["adversarial"] = losses.adversarial_loss(judged.scores)
            found["matching"] = losses.matching_loss(judged.features, real.features)
            self.discriminator.requires_grad_(True)
        total = losses.weighted(found, weights)
        self._optimizer.zero_grad(set_to_none=True)
        fabric.backward(total)
        fabric.clip_gradients(self._wrapped, self._optimizer, max_norm=5.0)
        self._optimizer.step()
        average(self.averaged, self.network, keep=self.ema, step=number)
        if against:
            scores = (self._judge(picture, hole, fine).scores for picture in (true, painted.detach()))
            found["discriminator"] = losses.discriminator_loss(*scores)
            self._judge_optimizer.zero_grad(set_to_none=True)
            fabric.backward(found["discriminator"])
            self._judge_optimizer.step()
        return found

    @torch.no_grad()
    def validate(self) -> Validation:
        """On held-out people: L1 in the hole, grey levels, and how sharp it is over the truth. The picture: seen, painted, true."""
        random = np.random.default_rng(0)
        clips = open_clips(self.held_out)
        if not clips:
            raise TrainingDataError("no held-out clip shows an open mouth, so nothing can be judged; give other clips with --val")
        device = next(self.averaged.parameters()).device
        away, sharp, rows = [], [], []
        for number in range(JUDGED):
            mouth = clips[number % len(clips)]
            sample = mouth_at(mouth.clip, mouth.drawn(random), mouth.fineness)
            one = {key: value[None].to(device) for key, value in sample.items()}
            true = to_network(one["window"])
            painted = true + one["hole"] * (self.averaged(one["seen"], one["fineness"]) - true)
            away.append(127.5 * float(losses.picture_loss(painted, true, one["hole"])))
            sharp.append([float((_laplacian(picture).abs() * one["hole"]).sum()) for picture in (painted, true)])
            if number < 24:
                shown = F.interpolate(one["seen"][:, :3], scale_factor=float(FINER))
                rows.append(torch.cat([shown, painted, true], dim=2)[0])
        ratio = np.array(sharp)
        picture = torch.cat([torch.cat(rows[at : at + 12], dim=2) for at in (0, 12) if rows[at : at + 12]], dim=1)
        figures = {"l1": float(np.mean(away)), "sharpness": float(np.median(ratio[:, 0] / np.maximum(ratio[:, 1], 1e-4)))}
        return Validation({**figures, "score": figures["sharpness"] - figures["l1"] / 20}, to_pixels(picture))


def _laplacian(picture: Tensor) -> Tensor:
    return 4 * picture - picture.roll(1, 2) - picture.roll(-1, 2) - picture.roll(1, 3) - picture.roll(-1, 3)
