"""``lipdub train hearing``: a memory that stands on lip points and the speech encoder, for a bundle whose generator stays.

First the lip side (``lip_side.py``): slots, how lip points address them, and the lip feature of each that the generator knows. Then the
bottleneck of the features (``bottleneck.py``, closed form), and last a small network behind it, the queries and the key memory.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lipdub.bundles.encoder import EncoderSpec
from lipdub.bundles.network import EncoderUse, NetworkConfig
from lipdub.stages import OnProgress, counted
from lipdub.train import losses
from lipdub.train.bottleneck import Bottleneck, fit_bottleneck, speaker_weights
from lipdub.train.data import Clip
from lipdub.train.labelled_speech import SpokenFeatures
from lipdub.train.lip_side import LipSettings, drawn_rows, evened, fit_to_slots, train_lip_side, warmed
from lipdub.train.memory_stage import average
from lipdub.train.networks import FeatureEncoder, LipMemory

TAPS = (-3, 0, 3)
"""Positions around a moment: it and 60 ms before and after. One tap loses 0.02 of r; seven gain nothing."""
POINTS_HIDDEN = 128
"""Units of the network that addresses the slots by lip points."""


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
    lips: LipSettings = field(default_factory=LipSettings)


def encoder_use(encoder: EncoderSpec) -> EncoderUse:
    """How memories stand on an encoder."""
    return EncoderUse(encoder.name, encoder.graphs["encoder.onnx"], encoder.channels, TAPS)


def hearing_config(config: NetworkConfig, encoder: EncoderSpec, *, slots: int, drawn_kappa: float) -> NetworkConfig:
    """The networks of `config` with a memory on top of lip points and an encoder."""
    return replace(config, mel=None, encoder=encoder_use(encoder), slots=slots, drawn_kappa=drawn_kappa, points_hidden=POINTS_HIDDEN)


def train_hearing(
    base: LipMemory, base_config: NetworkConfig, config: NetworkConfig, layers: int, clips: list[Clip], spoken: SpokenFeatures | None,
    silence: NDArray[np.float32], settings: HearingSettings, tell: OnProgress,
) -> LipMemory:  # fmt: skip
    """A memory of `config` that tells lip features of the kind that `base` does, in inference mode.

    clips: prepared with features, their offsets known. spoken: labelled speech, which teaches closures; None for none. silence: windows of
    digital silence and faint noise, float32 (n, taps, D), at which lips rest. tell: told (stage, done, in all).

    Raises TrainingDataError: a clip without features.
    """
    assert config.encoder is not None
    fitted = counted(tell, "fitting", len(clips))
    bottleneck = fit_bottleneck(clips, spoken, config.encoder, layers, balance=settings.balance, on_clip=lambda: fitted(1))
    torch.manual_seed(settings.seed)
    memory = LipMemory(config)
    memory.lip_encoder.load_state_dict(base.lip_encoder.state_dict())
    train_lip_side(memory, config, clips, settings.lips, balance=settings.balance, seed=settings.seed, tell=tell)
    fit_to_slots(memory, base, base_config, clips, settings.lips, seed=settings.seed, tell=tell)
    encoder = memory.audio_encoder
    assert isinstance(encoder, FeatureEncoder)
    encoder.bottleneck.weight.data = torch.from_numpy(bottleneck.weight.T.copy())
    encoder.bottleneck.bias.data = torch.from_numpy(bottleneck.bias)
    examples = _Examples.of(memory, config, clips, spoken, silence, bottleneck, settings.balance)
    return _trained(memory, examples, settings, tell).eval()


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
        cls, memory: LipMemory, config: NetworkConfig, clips: list[Clip], spoken: SpokenFeatures | None,
        silence: NDArray[np.float32], bottleneck: Bottleneck, balance: float,
    ) -> _Examples:  # fmt: skip
        """See `train_hearing` for the arguments."""
        use = config.encoder
        assert use is not None
        voices = min(clip.features_of(use).voices for clip in clips)
        z: list[list[NDArray[np.float32]]] = [[] for _ in range(voices)]
        lips, addresses = [], []
        for clip in clips:
            for voice, found in enumerate(z):
                found.append(bottleneck(clip.features_of(use).windows(clip.times_s + clip.offset_s, use.taps, voice)))
            windows = torch.from_numpy(evened(clip) * clip.lip_windows(np.arange(len(clip)), config.frames))
            lips.append(windows[:, config.frames // 2])
            with torch.no_grad():
                addresses.append(memory.by_points(windows).address)
        of_spoken = []
        if spoken is not None:
            rows = np.arange(len(spoken.kind))
            pieces = np.array_split(rows, max(1, len(rows) // 8000))
            for voice in range(spoken.voices):
                of_spoken.append(torch.from_numpy(np.concatenate([bottleneck(spoken.windows(piece, voice)) for piece in pieces])))
        weights = np.cumsum(speaker_weights(clips, balance), dtype=np.float64)
        return cls(
            [torch.from_numpy(np.concatenate(found)) for found in z], torch.cat(lips), torch.cat(addresses),
            weights / weights[-1], torch.from_numpy(bottleneck(silence)), spoken, of_spoken,
        )  # fmt: skip


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
        optimizer.param_groups[0]["lr"] = warmed(settings.rate, step, settings.steps)
        memory.train()
        rows = drawn_rows(examples.cumulative, random, settings.batch)
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
