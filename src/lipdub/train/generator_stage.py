"""Second stage: the generator, drawing what the memory recalls. With ``joint`` the memory goes on learning beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lipdub.bundles.network import NetworkConfig
from lipdub.errors import TrainingError
from lipdub.faces.detector import MediapipeDetector
from lipdub.speech.silence import silence_weight
from lipdub.train import losses
from lipdub.train.data import Clip, Samples, to_network, to_pixels
from lipdub.train.expert_network import SyncNet
from lipdub.train.loop import Validation
from lipdub.train.measure import measured
from lipdub.train.memory_stage import MemoryWeights, average, central, correlation, judge_memory, lip_windows, memory_losses
from lipdub.train.networks import Discriminator, FaceGenerator, LipMemory
from lipdub.train.pairs import SILENT
from lipdub.train.prepare import GRID_HZ
from lipdub.train.reader import LipReader, centred
from lipdub.train.voices import vary_voice
from lipdub.train.weights import part_of

AUDIO_VISUAL_RAMP = 1000
"""Steps over which the expert's loss comes to its full weight."""
FEWEST_MEASURED = 25
"""Frames of a clip in which the detector has to find a face, or the clip's opening is not judged."""
STILL_MOUTH = 0.01
"""A clip whose true opening spreads less than this (eye distances) is a mouth that stays as it is: its truth measures as noise, too."""


@dataclass(frozen=True, slots=True)
class GeneratorWeights:
    """Weights of the losses of the generator; the paper's are 10 (picture), 0.2 (both syncs, GAN)."""

    picture: float = 10.0
    edges: float = 10.0
    landmarks: float = 8.0
    visual_sync: float = 0.2
    audio_visual: float = 0.2
    """The sync expert's loss on drawn windows; only where there is an expert."""
    audio_visual_from: int = 0
    """Step from which the expert's loss is ramped in, over ``AUDIO_VISUAL_RAMP`` steps: before, there are no lips to judge."""
    temporal: float = 0.0
    """L1 between the changes from frame to frame of drawn and true windows."""
    adversarial: float = 0.05
    matching: float = 0.0
    """L1 between the discriminator's features of drawn and true pictures, from the step on at which it joins."""
    perceptual: float = 0.5
    """L1 between the lip reader's features of drawn and true pictures; only where there is a reader."""
    painted: float = 1.0
    """Mean share of the pixels that were painted and not copied: what is copied is as sharp as the video, paint is not."""
    audio_picture: float = 0.3
    """Factor on picture, edge and sync losses of audio-recalled faces: the sound does not tell the exact mouth, and a
    full pixel loss on a guess teaches to draw the mean."""
    mouth: float = 4.0
    """Extra weight of pixels around the lips."""
    adversarial_from: int = 4000
    """Step at which the discriminator joins."""


class Averaged(nn.Module):
    """The moving averages of both networks: what is judged and exported."""

    def __init__(self, generator: FaceGenerator, memory: LipMemory) -> None:
        super().__init__()
        self.generator, self.memory = generator, memory


@dataclass(slots=True)
class GeneratorStage:
    """Trains face encoder, decoder and fusion on windows of T frames, with both recalls decoded in every step.

    decode ``both``: every window is drawn from its lip recall and from its audio recall. ``split``: a share `audio_share` of the windows
    is drawn from the audio recall, the others from the lip recall; half the cost. draw_frames: frames drawn per sample; fewer
    than T make more different people a step, and are then read as held still (a window of T copies).
    """

    config: NetworkConfig
    memory: LipMemory
    clips: list[Clip]
    held_out: list[Clip]
    rate: float
    discriminator_rate: float
    seed: int
    decode: Literal["both", "split"] = "split"
    audio_share: float = 0.25
    draw_frames: int = 5
    joint: bool = False
    lip_reader: LipReader | None = None
    """Frozen; the lips that it sees in a drawn picture are pulled to the recalled ones. Without it the frozen memory's encoder looks."""
    expert: SyncNet | None = None
    """Frozen; judges windows of drawn frames against the true sound. Needs `draw_frames` of a whole window."""
    open_detector: Callable[[], MediapipeDetector] | None = None
    """Measures the mouths that validation draws; without it they are not measured."""
    ema: float = 0.998
    weights: GeneratorWeights = field(default_factory=GeneratorWeights)
    memory_weights: MemoryWeights = field(default_factory=MemoryWeights)
    name: str = "generator"

    samples: Samples = field(init=False)
    generator: FaceGenerator = field(init=False)
    discriminator: Discriminator = field(init=False)
    averaged: Averaged = field(init=False)
    _reader: LipMemory = field(init=False)
    _step_module: nn.Module = field(init=False)
    _judge: nn.Module = field(init=False)
    _optimizer: Optimizer = field(init=False)
    _judge_optimizer: Optimizer = field(init=False)
    _number: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not 0.0 < self.audio_share < 1.0:
            raise ValueError(f"audio_share must lie between 0 and 1, got {self.audio_share}")
        if self.expert is not None:
            check_expert(self.expert, self.config, self.draw_frames)
        self.samples = Samples(
            self.clips, self.config, seed=self.seed, frames=self.draw_frames, with_reference=True,
            judge=None if self.expert is None else self.expert.config.encoder,
        )  # fmt: skip
        self.generator, self.discriminator = FaceGenerator(self.config), Discriminator(self.config)
        # The frozen copy that visual sync and lip landmarks are read with: it must not learn to see what is not there.
        self._reader = copy.deepcopy(self.memory).requires_grad_(False).eval()
        self.averaged = Averaged(copy.deepcopy(self.generator), copy.deepcopy(self.memory))
        self.averaged.requires_grad_(False).eval()
        self.memory.requires_grad_(self.joint)
        self.memory.fusion.requires_grad_(True)
        trained = [*self.generator.parameters(), *(p for p in self.memory.parameters() if p.requires_grad)]
        self._optimizer = torch.optim.Adam([{"params": trained, "base_rate": self.rate}], lr=self.rate, betas=(0.9, 0.99))
        self._judge_optimizer = torch.optim.Adam(
            [{"params": list(self.discriminator.parameters()), "base_rate": self.discriminator_rate}],
            lr=self.discriminator_rate,
            betas=(0.5, 0.99),
        )

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with the generator and the fusion that ``weights.load_weights`` gives instead of random ones."""
        self.generator.load_state_dict(part_of(weights, "generator."))
        self.memory.fusion.load_state_dict(part_of(weights, "memory.fusion."))
        self.averaged.generator.load_state_dict(self.generator.state_dict())
        self.averaged.memory.load_state_dict(self.memory.state_dict())

    def modules(self) -> dict[str, nn.Module]:
        """For checkpoints; ``averaged`` is what is exported."""
        return {
            "generator": self.generator, "memory": self.memory, "discriminator": self.discriminator,
            "averaged": self.averaged, "reader": self._reader,
        }  # fmt: skip

    def optimizers(self) -> dict[str, Optimizer]:
        """For checkpoints and the learning rate."""
        return {"generator": self._optimizer, "discriminator": self._judge_optimizer}

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        return {
            "network": self.config.to_dict(), "weights": asdict(self.weights), "memory_weights": asdict(self.memory_weights),
            "decode": self.decode, "audio_share": self.audio_share, "draw_frames": self.draw_frames, "joint": self.joint, "ema": self.ema,
            "discriminator_rate": self.discriminator_rate, "reader": self.lip_reader is not None,
            "expert": self.expert is not None,
        }  # fmt: skip

    def setup(self, fabric: Fabric) -> None:
        """Move to the devices and wrap what is trained."""
        self._reader.to(fabric.device)
        self.averaged.to(fabric.device)
        if self.lip_reader is not None:
            self.lip_reader.to(fabric.device)
        if self.expert is not None:
            self.expert.to(fabric.device)
        self.memory.to(fabric.device)
        self._step_module, self._optimizer = fabric.setup(_GeneratorStep(self), self._optimizer)
        self._judge, self._judge_optimizer = fabric.setup(self.discriminator, self._judge_optimizer)

    def step(self, batch: dict[str, Tensor], number: int, fabric: Fabric) -> dict[str, Tensor]:
        """One step of the generator and, from ``adversarial_from`` on, one of the discriminator."""
        self._number = number
        self.generator.train()
        self.memory.train(self.joint)
        self.memory.fusion.train()
        against = number >= self.weights.adversarial_from and self.weights.adversarial > 0
        found, drawn, true, by_lips = self._step_module(batch)
        if against:
            self.discriminator.requires_grad_(False)
            judged = self._judge(drawn)
            joining = {"adversarial": losses.adversarial_loss(judged.scores)}
            if self.weights.matching:
                with torch.no_grad():
                    wanted = self._judge(true[by_lips]).features
                joining["matching"] = losses.matching_loss([level[by_lips] for level in judged.features], wanted)
            found["total"] = found["total"] + losses.weighted(joining, self.weights)
            found |= joining
            self.discriminator.requires_grad_(True)
        self._optimizer.zero_grad(set_to_none=True)
        fabric.backward(found["total"])
        fabric.clip_gradients(self._step_module, self._optimizer, max_norm=5.0)
        self._optimizer.step()
        if against:
            found["discriminator"] = losses.discriminator_loss(self._judge(true).scores, self._judge(drawn.detach()).scores)
            self._judge_optimizer.zero_grad(set_to_none=True)
            fabric.backward(found["discriminator"])
            self._judge_optimizer.step()
        for averaged, live in ((self.averaged.generator, self.generator), (self.averaged.memory, self.memory)):
            average(averaged, live, keep=self.ema, step=number)
        return found

    def validate(self) -> Validation:
        """Draw held-out people from both recalls: L1 in the drawn box, opening that the detector measures against the truth, and a grid of
        pictures (reference, truth, by lips, by audio)."""
        averaged = self.averaged
        return judge_generator(averaged.generator, averaged.memory, self.held_out, self.config, self.open_detector, joint=self.joint)


class _GeneratorStep(nn.Module):
    """Forward pass and losses of one step as a module, so that Fabric can wrap it."""

    def __init__(self, stage: GeneratorStage) -> None:
        super().__init__()
        self.generator, self.memory = stage.generator, stage.memory
        # Not a submodule: it is frozen, and must not be wrapped or saved twice.
        object.__setattr__(self, "_stage", stage)

    def forward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Losses, drawn and true boxes, and which of them were drawn from lip recalls."""
        stage: GeneratorStage = self._stage  # type: ignore[assignment]
        config, weights, reader = stage.config, stage.weights, stage._reader
        reach, frames = config.frames // 2, stage.draw_frames
        y0, y1, x0, x1 = config.drawn
        pictures = to_network(batch["pictures"])  # (B, frames + 2R, 3, S, S)
        count = len(pictures)
        boxes = pictures[..., y0:y1, x0:x1]
        windows = _windows(boxes, config.frames)  # (B frames, 3, T, h, w)
        lips = batch["lips"].flatten(0, 1)
        if config.encoder is not None:
            heard_windows = batch["features"].flatten(0, 1)
        else:
            heard_windows = vary_voice(batch["mel"].flatten(0, 1)[:, None], strength=0.6 * stage.memory_weights.voice_strength)
        with torch.no_grad():
            true_feature = reader.lip_encoder(windows).float()
        lip_feature = self.memory.lip_encoder(windows).float() if stage.joint else true_feature
        audio_feature = self.memory.audio_encoder(heard_windows).float()
        sounding = torch.ones(len(lips), dtype=torch.bool, device=lips.device)
        if stage.joint:
            of_memory, by_lips, _ = memory_losses(self.memory, lip_feature, audio_feature, lips, sounding, stage.memory_weights)
        else:
            of_memory, by_lips = {}, self.memory.memory.by_lips(lip_feature)
        by_audio = self.memory.memory.by_audio_sharpened(audio_feature)
        fused = self.memory.fuse(audio_feature.repeat(2, 1), torch.cat([by_lips.recalled, by_audio.recalled]))
        target, reference = pictures[:, reach : reach + frames].flatten(0, 1), to_network(batch["reference"])
        features = self.generator.encoder(target, reference.repeat_interleave(frames, dim=0))
        # Rows of (lip recalls, audio recalls) that are drawn, window by window. A single window cannot be split: it is drawn from both.
        both = stage.decode == "both" or count == 1
        if both:
            audio_window = torch.cat([torch.zeros(count), torch.ones(count)]).bool()
            window = torch.arange(count).repeat(2)
        else:
            audio_window = torch.arange(count) < min(count - 1, max(1, round(stage.audio_share * count)))
            window = torch.arange(count)
        row = (window[:, None] * frames + torch.arange(frames)).flatten().to(lips.device)
        from_audio = audio_window.repeat_interleave(frames).to(lips.device)
        drawn_from = features.rows(row) if both else features
        face = self.generator.decoder.drawn(fused[row + from_audio * len(lips)], drawn_from)
        drawn = face.picture.float()
        true = boxes[:, reach : reach + frames].flatten(0, 1)[row]
        scale = torch.where(from_audio, weights.audio_picture, 1.0)[:, None, None, None]
        attention = scale * (1 + weights.mouth * _around_mouth(config, true.device))
        if frames >= config.frames:
            # Windows of drawn frames, with true frames around them where a window reaches out.
            around = boxes[window.to(boxes.device)].clone()
            around[:, reach : reach + frames] = drawn.view(-1, frames, *drawn.shape[1:])
            drawn_windows = _windows(around, config.frames)
            seen_feature = true_feature[row]
        else:
            drawn_windows = _held_still(drawn, config.frames)
            with torch.no_grad():
                seen_feature = reader.lip_encoder(_held_still(true, config.frames)).float()
        drawn_feature = reader.lip_encoder(drawn_windows).float()
        with torch.no_grad():
            heard = self.memory.landmarks(by_audio.recalled)
        read, wanted = (
            _through_reader(stage.lip_reader, drawn, true, from_audio, (heard - lips)[row])
            if stage.lip_reader is not None
            else _through_memory(reader, drawn_feature, seen_feature, from_audio, heard[row])
        )
        by_lip_rows = ~from_audio
        found = {
            "picture": losses.picture_loss(drawn, true, attention),
            "edges": losses.edge_loss(drawn, true, attention),
            "landmarks": losses.landmark_loss(read, wanted),
            "visual_sync": losses.visual_sync_loss(drawn_feature[by_lip_rows], seen_feature[by_lip_rows])
            + weights.audio_picture * losses.visual_sync_loss(drawn_feature[from_audio], seen_feature[from_audio]),
        }
        if frames > 1 and weights.temporal:
            mouth = 1 + weights.mouth * _around_mouth(config, true.device)
            drawn_over_time, true_over_time = (part.view(-1, frames, *part.shape[1:]) for part in (drawn, true))
            found["temporal"] = losses.temporal_loss(drawn_over_time, true_over_time, mouth)
        if face.paint_mask is not None and weights.painted:
            found["painted"] = face.paint_mask.float().mean()
        if stage.lip_reader is not None and weights.perceptual:
            found["perceptual"] = losses.perceptual_loss(stage.lip_reader, drawn[by_lip_rows], true[by_lip_rows])
        total = losses.weighted(found, weights)
        ramp = min(1.0, (stage._number - weights.audio_visual_from) / AUDIO_VISUAL_RAMP)
        if stage.expert is not None and weights.audio_visual and ramp > 0:
            # Against the sound as it is: what was varied is what the memory hears, not what was said.
            sound, mel = (batch[part][window.to(lips.device)] for part in ("judged", "mel"))
            found["audio_visual"] = audio_visual(stage.expert, config, drawn, true, sound, mel)
            total = total + ramp * weights.audio_visual * found["audio_visual"]
        if stage.joint:
            total = total + of_memory["memory"]
            found["memory"] = of_memory["memory"]
        return {**found, "total": total}, drawn, true, by_lip_rows


def _through_reader(reader: LipReader, drawn: Tensor, true: Tensor, from_audio: Tensor, heard_more: Tensor) -> tuple[Tensor, Tensor]:
    """Lip points read from drawn pictures, and the wanted ones, both (n, 40, 2) relative to their mean: those of the true picture, moved by
    what the sound wants more than the truth (`heard_more`) where the sound was recalled."""
    with torch.no_grad():
        wanted = reader(true) + from_audio[:, None, None] * centred(heard_more)
    return reader(drawn), wanted


def _through_memory(
    reader: LipMemory, drawn_feature: Tensor, seen_feature: Tensor, from_audio: Tensor, heard: Tensor
) -> tuple[Tensor, Tensor]:
    """The same through the frozen memory: lip points relative to the closed mouth, from lip features of drawn and true windows."""
    read = reader.landmarks(reader.memory.by_lips(drawn_feature).recalled)
    with torch.no_grad():
        seen = reader.landmarks(reader.memory.by_lips(seen_feature).recalled)
    return read, torch.where(from_audio[:, None, None], heard, seen)


def check_expert(expert: SyncNet, config: NetworkConfig, draw_frames: int) -> None:
    """Raise TrainingError unless `expert` can judge what a generator of `config` draws, `draw_frames` at a time."""
    (y0, y1, x0, x1), (by0, by1, bx0, bx1) = config.drawn, expert.config.box
    if expert.config.size != config.size or not (y0 <= by0 and by1 <= y1 and x0 <= bx0 and bx1 <= x1):
        raise TrainingError(
            f"the expert looks at {expert.config.box} of {expert.config.size} px, not within the drawn {config.drawn} of {config.size} px; "
            "train one for these crops"
        )
    if draw_frames < expert.config.frames:
        # A held-still window has no motion to hear, and with true neighbours the truth would be judged.
        raise TrainingError(f"the expert judges windows of {expert.config.frames} drawn frames; use --draw-frames {expert.config.frames}")


def audio_visual(expert: SyncNet, config: NetworkConfig, drawn: Tensor, true: Tensor, sound: Tensor, mel: Tensor) -> Tensor:
    """The expert's loss of drawn windows. drawn, true (W F, 3, h, w): F successive frames of W windows; sound (W, F, K, D), what
    the expert hears of them; mel (W, F, 80, 16): silent windows are not judged. The gradient reaches the drawn pictures alone."""
    (y0, _, x0, _), (by0, by1, bx0, bx1) = config.drawn, expert.config.box
    frames, count = expert.config.frames, mel.shape[1]
    middle = slice(frames // 2, count - frames // 2)
    sounding = torch.from_numpy(silence_weight(mel[:, middle].flatten(0, 1).float().cpu().numpy()) <= SILENT).to(mel.device)

    def windows(pictures: Tensor) -> Tensor:
        boxes = pictures[..., by0 - y0 : by1 - y0, bx0 - x0 : bx1 - x0]
        boxes = boxes.reshape(-1, count, *boxes.shape[1:])
        return _windows(boxes, frames)[sounding]

    if not sounding.any():
        return drawn.sum() * 0.0
    with torch.no_grad():
        heard = expert.embed_sound(sound[:, middle].flatten(0, 1)[sounding])
        true_logit = expert.logit((expert.embed_lips(windows(true)) * heard).sum(dim=1))
    drawn_logit = expert.logit((expert.embed_lips(windows(drawn)) * heard).sum(dim=1))
    return losses.audio_visual_loss(drawn_logit, true_logit)


def _windows(pictures: Tensor, frames: int) -> Tensor:
    """All windows of `frames` neighbours: (B, N, 3, h, w) to (B (N - frames + 1), 3, frames, h, w)."""
    return pictures.unfold(1, frames, 1).permute(0, 1, 2, 5, 3, 4).flatten(0, 1)


def _held_still(pictures: Tensor, frames: int) -> Tensor:
    """Each picture as a window of copies: (B, 3, h, w) to (B, 3, frames, h, w)."""
    return pictures[:, :, None].expand(-1, -1, frames, -1, -1)


def _around_mouth(config: NetworkConfig, device: torch.device) -> Tensor:
    """1 around the lips of the template, falling smoothly: (1, 1, h, w) of the drawn box."""
    y0, y1, x0, x1 = config.drawn
    y = (torch.arange(y0, y1, device=device) + 0.5) / config.size
    x = (torch.arange(x0, x1, device=device) + 0.5) / config.size
    return (torch.exp(-(((y - 0.69) / 0.10) ** 2))[:, None] * torch.exp(-(((x - 0.5) / 0.17) ** 2))[None])[None, None]


def choose_closed(clip: Clip, end: int) -> int:
    """The reference as inference chooses it: the most closed mouth near the usual pose, among the frames [0, end)."""
    away = np.abs(clip.pose[:end] - np.median(clip.pose[:end], axis=0)).sum(axis=1)
    return int(np.argmin(clip.opening[:end] + np.where(away > 12.0, 10.0, 0.0)))


def _longest_of_speakers(clips: list[Clip]) -> list[Clip]:
    """The longest clip of each speaker, longest first, none under a second."""
    longest = {clip.speaker: clip for clip in sorted(clips, key=len)}
    return sorted((clip for clip in longest.values() if len(clip) >= GRID_HZ), key=lambda clip: -len(clip))


@torch.no_grad()
def judge_generator(
    generator: FaceGenerator,
    memory: LipMemory,
    clips: list[Clip],
    config: NetworkConfig,
    open_detector: Callable[[], MediapipeDetector] | None,
    *,
    joint: bool,
    longest: int = 60,
    most: int = 8,
) -> Validation:
    """See ``GeneratorStage.validate``. Figures: l1_by_lips, l1_by_audio (grey levels); with a detector r_by_lips, r_by_audio (correlation
    of the measured opening with the true one, mean over clips) and articulation_by_audio (measured over true spread, median)."""
    generator.eval()
    memory.eval()
    device = next(generator.parameters()).device
    y0, y1, x0, x1 = config.drawn
    figures: dict[str, list[float]] = {"l1_by_lips": [], "l1_by_audio": []}
    articulation: list[float] = []
    rows: list[NDArray[np.uint8]] = []
    with open_detector() if open_detector is not None else nullcontext() as detector:
        for clip in _longest_of_speakers(clips)[:most]:
            end = min(longest, len(clip))
            crops = central(clip, 0, end, config)
            target = to_network(torch.from_numpy(crops)).to(device)
            reference = target[choose_closed(clip, end)][None].expand(end, -1, -1, -1)
            boxes = target[..., y0:y1, x0:x1]
            audio_feature = memory.audio_encoder(torch.from_numpy(clip.heard(np.arange(end), config)).to(device))
            by_lips = memory.memory.by_lips(memory.lip_encoder(lip_windows(boxes, config.frames))).recalled
            by_audio = memory.memory.by_audio_sharpened(audio_feature).recalled
            features = generator.encoder(target, reference)
            true_opening = clip.opening[:end]
            shown = [int(np.argmax(true_opening)), int(np.argmin(true_opening))]
            pictures = [crops[choose_closed(clip, end)], crops[shown[0]]]
            for name, recalled in (("by_lips", by_lips), ("by_audio", by_audio)):
                drawn = generator.decoder(memory.fuse(audio_feature, recalled), features).float()
                figures[f"l1_{name}"].append(float((drawn - boxes).abs().mean()) * 127.5)
                whole = crops.copy()
                whole[:, y0:y1, x0:x1] = to_pixels(drawn)
                pictures += [whole[row] for row in shown]
                if detector is None:
                    continue
                opening = measured(whole, detector).astype(np.float64)
                seen = np.isfinite(opening)
                if seen.sum() < FEWEST_MEASURED or true_opening[seen].std() < STILL_MOUTH:
                    continue
                figures.setdefault(f"r_{name}", []).append(correlation(opening[seen], true_opening[seen]))
                if name == "by_audio":
                    articulation.append(float(opening[seen].std() / true_opening[seen].std()))
            rows.append(np.concatenate(pictures, axis=1))
    means = {key: float(np.mean(values)) if values else 0.0 for key, values in figures.items()}
    if articulation:
        means["articulation_by_audio"] = float(np.median(articulation))
    if joint:
        means |= judge_memory(memory, clips, config)
    # Pixels decide: they are of every frame and do not hang on whether the detector sees a face.
    means["score"] = -means["l1_by_lips"]
    return Validation(means, np.concatenate(rows) if rows else None)
