"""``lipdub train hearing``: an audio side that stands on the speech encoder, for a bundle whose lip side, slots and generator stay.

First the bottleneck (``bottleneck.py``, closed form), then a small network behind it, the queries and the key memory: seven hundred steps
on what the bottleneck says, a minute. Last the fusion: what the generator got from the old audio feature is told by the recall alone, as
far as it can be (80 % of its variance), so that the generator draws the new recalls without having seen them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lipdub.bundles.encoder import EncoderSpec
from lipdub.bundles.network import EncoderUse, NetworkConfig
from lipdub.train import losses
from lipdub.train.bottleneck import Bottleneck, fit_bottleneck, lip_scale, speaker_weights
from lipdub.train.data import Clip
from lipdub.train.labelled_speech import SpokenFeatures
from lipdub.train.memory_stage import average, drawn_boxes, lip_windows
from lipdub.train.networks import FeatureEncoder, LipMemory

TAPS = (-3, 0, 3)
"""Positions around a moment: it and 60 ms before and after. One tap loses 0.02 of r; seven gain nothing."""
EVENED_LIPS = (0.4, 2.5)
"""Bounds of the factor that brings a clip's lips to the usual size; its square root is applied."""

OnProgress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class HearingSettings:
    """How the audio side is trained. Chosen on speakers of the training footage that were left out in turn."""

    steps: int = 700
    batch: int = 1024
    rate: float = 3e-3
    balance: float = 0.45
    """A speaker is drawn in proportion to (frames of that speaker) to this power."""
    noise: float = 0.3
    """Standard deviation of what is added to the bottleneck."""
    align: float = 0.05
    spread: float = 0.03
    phonemes: float = 0.03
    closures: float = 0.3
    silence: float = 0.1
    ema: float = 0.995
    seed: int = 0


def hearing_config(config: NetworkConfig, encoder: EncoderSpec, *, drawn_kappa: float) -> NetworkConfig:
    """The networks of `config` with their audio side on top of an encoder."""
    use = EncoderUse(encoder.name, encoder.graphs["encoder.onnx"], encoder.channels, TAPS)
    return replace(config, mel=None, encoder=use, drawn_kappa=drawn_kappa)


def train_hearing(
    base: LipMemory, base_config: NetworkConfig, config: NetworkConfig, layers: int, clips: list[Clip], spoken: SpokenFeatures | None,
    silence: NDArray[np.float32], settings: HearingSettings, tell: OnProgress,
) -> LipMemory:  # fmt: skip
    """A memory of `config` whose lip side is that of `base`, in inference mode.

    clips: prepared with features, their offsets known. spoken: labelled speech, which teaches closures; None for none. silence: windows of
    digital silence and faint noise, float32 (n, taps, D), at which lips rest. tell: told (stage, done, in all).

    Raises TrainingDataError: a clip without features.
    """
    assert config.encoder is not None
    done = 0

    def on_clip() -> None:
        nonlocal done
        done += 1
        tell("fitting", done, len(clips))

    bottleneck = fit_bottleneck(clips, spoken, config.encoder, layers, balance=settings.balance, on_clip=on_clip)
    torch.manual_seed(settings.seed)
    memory = LipMemory(config)
    memory.load_state_dict({key: value for key, value in base.state_dict().items() if not key.startswith("audio_encoder.")}, strict=False)
    memory.memory.keys.data = F.normalize(torch.randn_like(memory.memory.keys), dim=1)
    memory.memory.audio_query.reset_parameters()
    memory.phoneme_head.reset_parameters()
    encoder = memory.audio_encoder
    assert isinstance(encoder, FeatureEncoder)
    encoder.bottleneck.weight.data = torch.from_numpy(bottleneck.weight.T.copy())
    encoder.bottleneck.bias.data = torch.from_numpy(bottleneck.bias)
    examples = _Examples.of(base, base_config, config.encoder, clips, spoken, silence, bottleneck, settings.balance, tell)
    averaged = _trained(memory, examples, settings, tell)
    _tell_fusion(averaged, base, base_config, clips)
    return averaged.eval()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Examples:
    """All that the steps draw from, in memory.

    z: of each voice (N, Z). lips: (N, 40, 2). address: lip addresses (N, S). cumulative: how often frames are drawn, (N,), up to 1.
    """

    z: list[Tensor]
    lips: Tensor
    address: Tensor
    cumulative: NDArray[np.float64]
    silent_z: Tensor
    spoken: SpokenFeatures | None
    spoken_z: list[Tensor]

    @classmethod
    def of(
        cls, base: LipMemory, base_config: NetworkConfig, use: EncoderUse, clips: list[Clip], spoken: SpokenFeatures | None,
        silence: NDArray[np.float32], bottleneck: Bottleneck, balance: float, tell: OnProgress,
    ) -> _Examples:  # fmt: skip
        """See `train_hearing` for the arguments."""
        voices = min(clip.features_of(use).voices for clip in clips)
        z: list[list[NDArray[np.float32]]] = [[] for _ in range(voices)]
        lips, addresses = [], []
        for number, clip in enumerate(clips):
            for voice, found in enumerate(z):
                found.append(bottleneck(clip.features_of(use).windows(clip.times_s + clip.offset_s, use.taps, voice)))
            lips.append(clip.lips * float(np.clip(lip_scale(clip), *EVENED_LIPS)) ** 0.5)
            addresses.append(_lip_address(base, base_config, clip))
            tell("looking at lips", number + 1, len(clips))
        of_spoken = []
        if spoken is not None:
            rows = np.arange(len(spoken.kind))
            pieces = np.array_split(rows, max(1, len(rows) // 8000))
            for voice in range(spoken.voices):
                of_spoken.append(torch.from_numpy(np.concatenate([bottleneck(spoken.windows(piece, voice)) for piece in pieces])))
        weights = np.cumsum(speaker_weights(clips, balance), dtype=np.float64)
        return cls(
            [torch.from_numpy(np.concatenate(found)) for found in z], torch.from_numpy(np.concatenate(lips)), torch.cat(addresses),
            weights / weights[-1], torch.from_numpy(bottleneck(silence)), spoken, of_spoken,
        )  # fmt: skip


@torch.no_grad()
def _lip_address(base: LipMemory, config: NetworkConfig, clip: Clip) -> Tensor:
    boxes = drawn_boxes(clip, 0, len(clip), config)
    parts = torch.split(lip_windows(boxes, config.frames), 64)
    return torch.cat([base.memory.by_lips(base.lip_encoder(part)).address for part in parts])


def _trained(memory: LipMemory, examples: _Examples, settings: HearingSettings, tell: OnProgress) -> LipMemory:
    """The moving average of the weights after all steps. Only the audio side, its queries, keys and phoneme head are trained."""
    encoder = memory.audio_encoder
    assert isinstance(encoder, FeatureEncoder)
    trained = [
        *encoder.linear.parameters(), *encoder.body.parameters(), *memory.memory.audio_query.parameters(), memory.memory.keys,
        *memory.phoneme_head.parameters(),
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, betas=(0.9, 0.98), weight_decay=1e-2)
    averaged = copy.deepcopy(memory).eval()
    random = np.random.default_rng(settings.seed)

    def recalled(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Audio feature, address and lip points of bottlenecks."""
        feature = encoder.of_bottleneck(z)
        read = memory.memory.by_audio(feature)
        return feature, read.address, memory.landmarks(read.recalled)

    def noisy(z: Tensor) -> Tensor:
        return z + settings.noise * torch.randn_like(z)

    for step in range(settings.steps):
        warm, along = min(1.0, (step + 1) / 50), np.pi * step / settings.steps
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * warm * (0.49 * (1 + np.cos(along)) + 0.02)
        memory.train()
        rows = torch.from_numpy(np.searchsorted(examples.cumulative, random.random(settings.batch)).clip(0, len(examples.lips) - 1))
        _, address, points = recalled(noisy(examples.z[random.integers(len(examples.z))][rows]))
        lips = examples.lips[rows]
        total = losses.landmark_loss(points, lips) + settings.spread * losses.spread_loss(points, lips)
        total = total + settings.align * losses.align_loss(examples.address[rows], address)
        _, _, at_rest = recalled(examples.silent_z[torch.randint(len(examples.silent_z), (48,))])
        total = total + settings.silence * losses.landmark_loss(at_rest, torch.zeros_like(at_rest))
        if examples.spoken is not None:
            spoken = examples.spoken.drawn(random, settings.batch // 4)
            feature, _, points = recalled(noisy(examples.spoken_z[random.integers(len(examples.spoken_z))][torch.from_numpy(spoken)]))
            kind, shut = torch.from_numpy(examples.spoken.kind[spoken]), points[torch.from_numpy(examples.spoken.closed[spoken])]
            total = total + settings.phonemes * F.cross_entropy(memory.phonemes(feature), kind)
            if len(shut):
                total = total + settings.closures * losses.landmark_loss(shut, torch.zeros_like(shut))
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average(averaged, memory, keep=settings.ema, step=step)
        tell("training", step + 1, settings.steps)
    return averaged


@torch.no_grad()
def _tell_fusion(memory: LipMemory, base: LipMemory, base_config: NetworkConfig, clips: list[Clip]) -> None:
    """Give the fusion of `memory` the part that the old audio feature had in the lip feature, as far as the recall tells it."""
    if base_config.encoder is not None:  # a fusion that this has been done to
        return
    old, new = base.fusion[1], memory.fusion[1]
    assert isinstance(old, torch.nn.Linear)
    assert isinstance(new, torch.nn.Linear)
    channels = base_config.channels
    of_audio, scale = old.weight[:, :channels], channels**0.5
    wanted, recalls = [], []
    for clip in clips[::4]:
        feature = base.audio_encoder(torch.from_numpy(clip.heard(np.arange(0, len(clip), 3), base_config)))
        wanted.append(F.normalize(feature, dim=1) * scale @ of_audio.t())
        recalls.append(base.memory.by_audio_sharpened(feature).recalled * scale)
    inputs, outputs = torch.cat(recalls).double(), torch.cat(wanted).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    left = inputs.t() @ inputs
    left += 1e-3 * left.trace() / len(left) * torch.eye(len(left), dtype=torch.float64)
    told = torch.linalg.solve(left, inputs.t() @ outputs)
    new.weight[:, :channels] = 0
    new.weight[:, channels:] = old.weight[:, channels:] + told[:-1].t().float()
    new.bias[:] = old.bias + told[-1].float()
