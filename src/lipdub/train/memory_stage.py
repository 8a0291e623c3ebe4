"""First stage: the audio-lip memory, with a landmark task of its own so that it cannot collapse to one slot."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lipdub.bundles.network import NetworkConfig
from lipdub.errors import TrainingDataError
from lipdub.phonetics.classes import CLASSES
from lipdub.train import losses
from lipdub.train.data import SPEAKER_BALANCE, Clip, Samples, opening_from_lips, to_network
from lipdub.train.labelled_speech import LabelledSpeech
from lipdub.train.loop import Validation
from lipdub.train.networks import LipMemory, MemoryRead
from lipdub.train.prepare import MARGIN
from lipdub.train.voices import vary_voice

FEWEST_SLOTS_IN_USE = 8.0
"""Usage perplexity below this is collapse."""
GRACE_STEPS = 600
"""Collapse is judged after this many steps."""
SPOKEN_SHARE = 0.5
"""Windows of labelled speech per window of footage."""
JUDGED_FRAMES = 40
"""Held-out clips shorter than this say too little."""


@dataclass(frozen=True, slots=True)
class MemoryWeights:
    """Weights of the losses of the memory. Store and align are the paper's 0.2 beside a task of weight 1."""

    landmarks_by_lips: float = 1.0
    landmarks_by_audio: float = 1.0
    store: float = 0.2
    align: float = 0.2
    usage: float = 0.1
    spread: float = 0.1
    phonemes: float = 0.03
    """Cross entropy of the phoneme head on labelled speech, where that is given; it is some thirty times as large as landmark losses."""
    closures: float = 0.3
    """Landmark loss towards the shut mouth at /p b m/ of labelled speech."""
    silent_share: float = 0.04
    """Share of samples whose sound is replaced by silence and whose lips rest."""
    voice_strength: float = 1.0


def memory_losses(
    memory: LipMemory, lip_feature: Tensor, audio_feature: Tensor, lips: Tensor, sounding: Tensor, weights: MemoryWeights
) -> tuple[dict[str, Tensor], MemoryRead, MemoryRead]:
    """Losses of a batch and both recalls. lip_feature, audio_feature (B, C); lips (B, 40, 2) relative to rest; sounding (B,) bool,
    False where the sound was replaced by silence (then the audio side is to recall the resting mouth, not these lips)."""
    by_lips, by_audio = memory.memory.by_lips(lip_feature), memory.memory.by_audio(audio_feature)
    heard = torch.where(sounding[:, None, None], lips, torch.zeros_like(lips))
    lips_read, lips_heard = memory.landmarks(by_lips.recalled), memory.landmarks(by_audio.recalled)
    found = {
        "landmarks_by_lips": losses.landmark_loss(lips_read, lips),
        "landmarks_by_audio": losses.landmark_loss(lips_heard, heard),
        "store": losses.store_loss(by_lips.recalled, lip_feature),
        "align": losses.align_loss(by_lips.address[sounding], by_audio.address[sounding]),
        "usage": losses.usage_loss(by_lips.address),
        "spread": losses.spread_loss(lips_heard, heard),
    }
    return {**found, "memory": losses.weighted(found, weights)}, by_lips, by_audio


def silence_some(mel: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Replace the sound of a random share of samples by silence (digital, or faint noise): mel (B, 1, 80, 16), and sounding (B,) bool."""
    sounding = torch.rand(len(mel), device=mel.device) >= share
    faint = -4.0 + 0.5 * torch.rand(len(mel), 1, 1, 1, device=mel.device) * torch.rand_like(mel)
    return torch.where(sounding[:, None, None, None], mel, faint), sounding


@dataclass(slots=True)
class MemoryStage:
    """Trains ``LipMemory`` on single lip windows."""

    config: NetworkConfig
    clips: list[Clip]
    held_out: list[Clip]
    rate: float
    seed: int
    weights: MemoryWeights = field(default_factory=MemoryWeights)
    speech: LabelledSpeech | None = None
    """Synthetic speech whose windows join every step, to teach phonemes and closures."""
    lip_side: dict[str, Tensor] | None = None
    """Weights of ``weights.load_lip_side``: these stay as they are, only the audio side is trained."""
    balance: float = SPEAKER_BALANCE
    ema: float = 0.995
    name: str = "memory"

    samples: Samples = field(init=False)
    memory: LipMemory = field(init=False)
    averaged: LipMemory = field(init=False)
    _wrapped: nn.Module = field(init=False)
    _optimizer: Optimizer = field(init=False)
    _number: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.samples = Samples(self.clips, self.config, seed=self.seed, frames=1, with_reference=False, balance=self.balance)
        self.memory = LipMemory(self.config)
        if self.lip_side is not None:
            self.memory.load_state_dict(self.lip_side, strict=False)
            for parameter in self.memory.lip_side():
                parameter.requires_grad_(False)
        self.averaged = copy.deepcopy(self.memory).requires_grad_(False).eval()
        trained = [parameter for parameter in self.memory.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            [{"params": trained, "base_rate": self.rate}], lr=self.rate, betas=(0.9, 0.98), weight_decay=1e-2
        )  # fmt: skip

    def start_from(self, memory: LipMemory) -> None:
        """Begin with the weights of `memory` instead of random ones."""
        self.memory.load_state_dict(memory.state_dict())
        self.averaged.load_state_dict(memory.state_dict())

    def modules(self) -> dict[str, nn.Module]:
        """For checkpoints; ``memory``, the moving average, is what is judged and used, ``live`` is what is trained."""
        return {"memory": self.averaged, "live": self.memory}

    def optimizers(self) -> dict[str, Optimizer]:
        """For checkpoints and the learning rate."""
        return {"memory": self._optimizer}

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        return {
            "network": self.config.to_dict(), "weights": asdict(self.weights), "speech": self.speech is not None,
            "audio_only": self.lip_side is not None, "balance": self.balance, "ema": self.ema,
        }  # fmt: skip

    def setup(self, fabric: Fabric) -> None:
        """Wrap for the devices."""
        self.averaged.to(fabric.device)
        self._wrapped = _MemoryStep(self.memory, self.weights)
        self._wrapped, self._optimizer = fabric.setup(self._wrapped, self._optimizer)

    def step(self, batch: dict[str, Tensor], number: int, fabric: Fabric) -> dict[str, Tensor]:
        """One step on single windows."""
        self._number = number + 1
        self.memory.train()
        if self.speech is not None:
            spoken = self.speech.draw((self.seed, number, fabric.global_rank), max(1, round(SPOKEN_SHARE * len(batch["mel"]))))
            tensors: dict[str, Tensor] = spoken._asdict()
            batch = {**batch, **{f"spoken_{key}": value.to(fabric.device) for key, value in tensors.items()}}
        found: dict[str, Tensor] = self._wrapped(batch)
        self._optimizer.zero_grad(set_to_none=True)
        fabric.backward(found["memory"])
        fabric.clip_gradients(self._wrapped, self._optimizer, max_norm=5.0)
        self._optimizer.step()
        average(self.averaged, self.memory, keep=self.ema, step=number)
        return found

    def validate(self) -> Validation:
        """On held-out people: correlation of the opening with the truth by lips and by audio, spread, slots in use."""
        if all(len(clip) < JUDGED_FRAMES for clip in self.held_out):
            raise TrainingDataError(f"no held-out clip has {JUDGED_FRAMES} frames, so nothing can be judged; give longer clips with --val")
        figures = judge_memory(self.averaged, self.held_out, self.config)
        if self.speech is not None:
            figures |= judge_on_speech(self.averaged, self.speech)
        collapsed = None
        if self._number >= GRACE_STEPS:
            if figures["slots_by_lips"] < FEWEST_SLOTS_IN_USE or figures["slots_by_audio"] < 2:
                collapsed = (
                    f"the memory collapsed to {figures['slots_by_lips']:.1f} slots by lips, {figures['slots_by_audio']:.1f} by audio; "
                    "raise the usage weight or lower --rate, and start anew"
                )
            elif not figures["r_by_lips"] > 0.3:
                collapsed = f"the memory does not tell open mouths from closed (r {figures['r_by_lips']:.2f}); check the prepared clips"
        return Validation({**figures, "score": figures["r_by_audio"]}, None, collapsed)


class _MemoryStep(nn.Module):
    """The forward pass of one step as a module, so that Fabric can wrap it."""

    def __init__(self, memory: LipMemory, weights: MemoryWeights) -> None:
        super().__init__()
        self.memory, self._weights = memory, weights

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        y0, y1, x0, x1 = self.memory.lip_encoder._drawn
        pictures = to_network(batch["pictures"][:, :, y0:y1, x0:x1]).transpose(1, 2)
        mel = vary_voice(batch["mel"], strength=self._weights.voice_strength)
        mel, sounding = silence_some(mel, self._weights.silent_share)
        lip_feature, audio_feature = self.memory.lip_encoder(pictures), self.memory.audio_encoder(mel)
        found, _, _ = memory_losses(self.memory, lip_feature.float(), audio_feature.float(), batch["lips"][:, 0], sounding, self._weights)
        if "spoken_mel" in batch:
            spoken = self.memory.audio_encoder(vary_voice(batch["spoken_mel"], strength=self._weights.voice_strength)).float()
            found["phonemes"] = F.cross_entropy(self.memory.phonemes(spoken).float(), batch["spoken_kind"])
            shut = self.memory.landmarks(self.memory.memory.by_audio(spoken[batch["spoken_closed"]]).recalled)
            # Without a closure in the batch the sum over nothing keeps every parameter in the graph.
            found["closures"] = losses.landmark_loss(shut, torch.zeros_like(shut)) if len(shut) else shut.sum()
            found["memory"] = found["memory"] + self._weights.phonemes * found["phonemes"] + self._weights.closures * found["closures"]
        return found


@torch.no_grad()
def average(averaged: nn.Module, live: nn.Module, *, keep: float, step: int) -> None:
    """One step of the exponential moving average of the weights; its window grows with the run so that the first steps do not linger."""
    keep = min(keep, (1 + step) / (10 + step))
    for slow, fast in zip(averaged.parameters(), live.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


@torch.no_grad()
def judge_on_speech(memory: LipMemory, speech: LabelledSpeech, *, count: int = 3000) -> dict[str, float]:
    """On labelled speech that training never drew: share of phoneme classes told right, and the opening at closures of /p b m/ over the
    mean opening while something sounds."""
    device = next(memory.parameters()).device
    windows = speech.held_out(count)
    features = torch.cat([memory.audio_encoder(part.to(device)) for part in torch.split(windows.mel, 512)])
    kind = windows.kind.to(device)
    opening = opening_from_lips(memory.landmarks(memory.memory.by_audio_sharpened(features).recalled))
    sounding = opening[kind != CLASSES.index("silence")].mean().clamp(min=1e-4)
    return {
        "phonemes_right": float((memory.phonemes(features).argmax(dim=1) == kind).float().mean()),
        "closure": float(opening[windows.closed.to(device)].mean() / sounding),
    }


def central(clip: Clip, first: int, end: int, config: NetworkConfig) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Crops of the frames [first, end) as the network sees them without jitter: uint8 (n, S, S, 3)."""
    stored = clip.crops.shape[1]
    margin = round((stored - stored / MARGIN) / 2)
    return np.ascontiguousarray(clip.crops[first:end, margin : margin + config.size, margin : margin + config.size])


def drawn_boxes(clip: Clip, first: int, end: int, config: NetworkConfig) -> Tensor:
    """The drawn box of the same crops as networks take it: float32 (n, 3, h, w) in [-1, 1]."""
    y0, y1, x0, x1 = config.drawn
    return to_network(torch.from_numpy(central(clip, first, end, config)[:, y0:y1, x0:x1]))


def lip_windows(pictures: Tensor, frames: int) -> Tensor:
    """Every frame's window of `frames` neighbours, ends repeated: (N, 3, h, w) to (N, 3, frames, h, w)."""
    reach = frames // 2
    index = torch.arange(len(pictures))[:, None] + torch.arange(-reach, reach + 1)[None]
    return pictures[index.clamp(0, len(pictures) - 1)].transpose(1, 2)


@torch.no_grad()
def judge_memory(memory: LipMemory, clips: list[Clip], config: NetworkConfig, *, longest: int = 300) -> dict[str, float]:
    """Figures on whole clips: r_by_lips, r_by_audio (mean correlation over clips of at least 40 frames), spread_by_audio (predicted over
    true standard deviation of the opening, median), slots_by_lips and slots_by_audio (usage perplexity)."""
    device = next(memory.parameters()).device
    memory.eval()
    by_lips, by_audio, spreads, lip_addresses, audio_addresses = [], [], [], [], []
    for clip in clips:
        if len(clip) < JUDGED_FRAMES:
            continue
        end = min(longest, len(clip))
        pictures = drawn_boxes(clip, 0, end, config).to(device)
        heard_windows = torch.from_numpy(clip.heard(np.arange(end), config)).to(device)
        lips = memory.memory.by_lips(memory.lip_encoder(lip_windows(pictures, config.frames)))
        audio = memory.memory.by_audio_sharpened(memory.audio_encoder(heard_windows))
        true = clip.opening[:end]
        read = opening_from_lips(memory.landmarks(lips.recalled)).float().cpu().numpy()
        heard = opening_from_lips(memory.landmarks(audio.recalled)).float().cpu().numpy()
        if true.std() > 1e-4:
            by_lips.append(correlation(read, true))
            by_audio.append(correlation(heard, true))
            spreads.append(float(heard.std() / true.std()))
        lip_addresses.append(lips.address.float().cpu())
        audio_addresses.append(audio.address.float().cpu())
    if not by_lips:
        return {"r_by_lips": 0.0, "r_by_audio": 0.0, "spread_by_audio": 0.0, "slots_by_lips": 0.0, "slots_by_audio": 0.0}
    return {
        "r_by_lips": float(np.mean(by_lips)),
        "r_by_audio": float(np.mean(by_audio)),
        "spread_by_audio": float(np.median(spreads)),
        "slots_by_lips": losses.usage_perplexity(torch.cat(lip_addresses)),
        "slots_by_audio": losses.usage_perplexity(torch.cat(audio_addresses)),
    }


def correlation(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Pearson's r; 0 where either does not vary."""
    # In float32 the mean of equal numbers may be off so far that they seem to vary; how far depends on the processor.
    one, other = one.astype(np.float64), other.astype(np.float64)
    if one.std() < 1e-9 or other.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
