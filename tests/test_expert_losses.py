"""The generator against the sync expert: what is judged, where the gradient goes, and when it joins."""

from __future__ import annotations

from dataclasses import replace

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_expert import TOY, USE, bar_clip
from toys import COMPACT, PAPER, boxes_of, toy_settings

from lipdub.errors import TrainingError
from lipdub.faces.detector import Face
from lipdub.media.planes import Picture
from lipdub.speech.mel import SILENCE
from lipdub.train import generator_stage, losses
from lipdub.train.data import Clip, Samples, loader
from lipdub.train.expert_network import SyncNet
from lipdub.train.generator_stage import GeneratorStage, GeneratorWeights, audio_visual, check_expert, judge_generator
from lipdub.train.loop import new_fabric
from lipdub.train.networks import FaceGenerator, LipMemory

NO_GAN = GeneratorWeights(adversarial_from=10**6)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [bar_clip(seed) for seed in range(3)]


@pytest.fixture
def expert() -> SyncNet:
    torch.manual_seed(0)
    return SyncNet(TOY).requires_grad_(False).eval()


def stage_of(clips: list[Clip], expert: SyncNet | None, **changes: object) -> GeneratorStage:
    torch.manual_seed(1)
    options = {"weights": NO_GAN, "expert": expert} | changes
    return GeneratorStage(COMPACT, LipMemory(COMPACT), clips[:2], clips[2:], 1e-3, 2e-4, 0, **options)  # type: ignore[arg-type]


def batch_of(clips: list[Clip], count: int = 2, frames: int = 5) -> dict[str, torch.Tensor]:
    samples = Samples(clips, COMPACT, seed=0, frames=frames, with_reference=True, judge=USE)
    return next(iter(loader(samples, first_step=0, steps=1, batch=count, rank=0, ranks=1, workers=0)))


# ---- the loss


@given(st.floats(-4, 4), st.floats(-4, 4))
def test_drawn_lips_are_pulled_up_to_the_truth_and_no_further(drawn: float, true: float) -> None:
    assume(abs(drawn - true) > 1e-3)
    logit = torch.tensor([drawn], requires_grad=True)
    loss = losses.audio_visual_loss(logit, torch.tensor([true]))
    loss.backward()
    assert (loss > 0) == (drawn < true)
    assert logit.grad is not None
    assert (logit.grad < 0).all() if drawn < true else (logit.grad == 0).all()


def test_no_sounding_window_costs_nothing() -> None:
    assert losses.audio_visual_loss(torch.zeros(0, requires_grad=True), torch.zeros(0)) == 0


def test_temporal_loss_sees_changes_and_not_levels() -> None:
    true = torch.rand(2, 5, 3, 4, 6)
    weight = torch.ones(1, 1, 4, 6)
    assert losses.temporal_loss(true + 0.3, true, weight) == pytest.approx(0, abs=1e-6)
    flickering = true.clone()
    flickering[:, ::2] += 0.5
    assert losses.temporal_loss(flickering, true, weight) == pytest.approx(0.5, abs=1e-5)
    assert losses.temporal_loss(flickering, true, 7 * weight) == pytest.approx(0.5, abs=1e-5)
    mouth = torch.zeros(1, 1, 4, 6)
    mouth[..., 3:] = 1
    flickering = true.clone()
    flickering[:, ::2, ..., :3] += 0.5
    assert losses.temporal_loss(flickering, true, mouth) == pytest.approx(0, abs=1e-6)


def pictures_and_sound(clip: Clip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ten windows of five frames as the generator would draw them perfectly, (50, 3, h, w), what the expert
    hears of them (10, 5, K, D), and their mel (10, 5, 80, 16)."""
    rows = (np.arange(5, 65, 6)[:, None] + np.arange(5)).ravel()
    crops = torch.from_numpy(clip.crops[rows, 8:-8, 8:-8]).movedim(-1, 1).float() / 127.5 - 1
    mel = torch.from_numpy(clip.windows(rows, COMPACT.mel))
    sound = torch.from_numpy(clip.features_of(USE).windows(clip.times_s[rows], USE.taps))
    return boxes_of(crops, COMPACT), sound.view(10, 5, *sound.shape[1:]), mel.view(10, 5, 80, 16)


def test_the_gradient_reaches_the_drawn_picture_and_not_the_expert(clips: list[Clip], expert: SyncNet) -> None:
    true, sound, mel = pictures_and_sound(clips[0])
    drawn = true.flip(0).clone().requires_grad_()
    expert.requires_grad_(False)
    loss = audio_visual(expert, COMPACT, drawn, true, sound, mel)
    loss.backward()
    assert loss > 0
    assert drawn.grad is not None
    assert drawn.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in expert.parameters())
    assert audio_visual(expert, COMPACT, true, true, sound, mel) == 0


def test_silent_windows_are_not_judged(clips: list[Clip], expert: SyncNet) -> None:
    true, sound, mel = pictures_and_sound(clips[0])
    drawn = true.flip(0).clone().requires_grad_()
    loss = audio_visual(expert, COMPACT, drawn, true, sound, torch.full_like(mel, SILENCE))
    loss.backward()
    assert loss == 0
    half = mel.clone()
    half[1:] = SILENCE
    drawn = drawn.detach()
    only = audio_visual(expert, COMPACT, drawn, true, sound, half)
    assert only == pytest.approx(float(audio_visual(expert, COMPACT, drawn[:5], true[:5], sound[:1], mel[:1])), abs=1e-5)


# ---- the stage


def test_an_expert_needs_whole_windows_of_drawn_frames(clips: list[Clip], expert: SyncNet) -> None:
    with pytest.raises(TrainingError, match=r"windows of 5 drawn frames; use --draw-frames 5"):
        stage_of(clips, expert, draw_frames=3)
    with pytest.raises(TrainingError, match="not within the drawn"):
        check_expert(SyncNet(replace(TOY, box=(32, 64, 0, 64))), COMPACT, 5)
    with pytest.raises(TrainingError, match="not within the drawn"):
        check_expert(SyncNet(replace(TOY, size=62, box=(32, 62, 8, 56))), COMPACT, 5)
    check_expert(SyncNet(replace(TOY, box=(32, 64, 0, 64))), PAPER, 5)


@pytest.mark.parametrize("decode", ["both", "split"])
def test_the_experts_loss_is_ramped_in(clips: list[Clip], expert: SyncNet, decode: str) -> None:
    stage = stage_of(clips, expert, decode=decode, weights=replace(NO_GAN, audio_visual_from=10))
    step = generator_stage._GeneratorStep(stage)
    batch = batch_of(clips)
    totals = []
    for number in (10, 510, 1010, 3000):
        stage._number = number
        torch.manual_seed(0)
        found, *_ = step(batch)
        totals.append((found["total"].item(), found["audio_visual"].item() if "audio_visual" in found else None))
    assert totals[0][1] is None
    extra = 0.2 * totals[1][1]
    assert totals[1][0] - totals[0][0] == pytest.approx(0.5 * extra, rel=1e-2, abs=1e-5)
    assert totals[2][0] - totals[0][0] == pytest.approx(extra, rel=1e-2, abs=1e-5)
    assert totals[3][0] == pytest.approx(totals[2][0], rel=1e-4)


def test_a_step_against_the_expert_changes_the_generator_alone(clips: list[Clip], expert: SyncNet) -> None:
    fabric = new_fabric(toy_settings())
    stage = stage_of(clips, expert, weights=replace(NO_GAN, audio_visual_from=0, temporal=1.0))
    stage.setup(fabric)
    before = {key: value.clone() for key, value in expert.state_dict().items()}
    for number in (0, 600):
        found = stage.step(batch_of(clips), number, fabric)
    assert {"audio_visual", "temporal"} <= set(found)
    assert all(torch.isfinite(value) for value in found.values())
    assert all(torch.equal(value, before[key]) for key, value in expert.state_dict().items())
    assert stage.settings()["expert"] is True
    assert stage_of(clips, None).settings()["expert"] is False


def test_without_expert_and_weight_nothing_is_added(clips: list[Clip], expert: SyncNet) -> None:
    for stage in (stage_of(clips, None), stage_of(clips, expert, weights=replace(NO_GAN, audio_visual=0.0))):
        stage._number = 5000
        found, *_ = generator_stage._GeneratorStep(stage)(batch_of(clips))
        assert not {"audio_visual", "temporal"} & set(found)


# ---- validation


class BarDetector:
    """Finds a face whose mouth is as open as the bar of a drawn clip is high."""

    def __init__(self, *, blind: bool = False) -> None:
        self.blind, self.closed = blind, False

    def __enter__(self) -> BarDetector:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def reset(self) -> None:
        """Nothing is remembered."""

    def detect(self, picture: Picture) -> list[Face]:
        if self.blind:
            return []
        pixels = picture.rgb(0, 0, picture.width, picture.height)
        middle = pixels.shape[1] // 2
        points = np.zeros((478, 3), np.float32)
        points[263, 0] = 100.0
        points[14, 1] = float((pixels[:, middle].mean(axis=1) > 160).sum())
        return [Face(points)]


def test_validation_measures_what_is_drawn(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that draws the truth follows it; one that draws a still mouth does not."""
    memory, generator = LipMemory(COMPACT), FaceGenerator(COMPACT)
    judged = [clips[0]]
    truth = pictures_of_truth(clips[0])
    detectors = []

    def open_detector() -> BarDetector:
        detectors.append(BarDetector())
        return detectors[-1]

    monkeypatch.setattr(generator.decoder, "forward", lambda lip_feature, features: truth[: len(lip_feature)])
    figures = judge_generator(generator, memory, judged, COMPACT, open_detector, joint=False).figures  # type: ignore[arg-type]
    assert figures["r_by_lips"] > 0.95
    assert figures["r_by_audio"] > 0.95
    assert figures["articulation_by_audio"] > 0.5
    assert figures["l1_by_lips"] == pytest.approx(0, abs=1e-3)
    assert detectors[0].closed
    monkeypatch.setattr(generator.decoder, "forward", lambda lip_feature, features: truth[:1].expand(len(lip_feature), -1, -1, -1))
    still = judge_generator(generator, memory, judged, COMPACT, open_detector, joint=False).figures  # type: ignore[arg-type]
    assert still["r_by_lips"] == 0
    assert still["articulation_by_audio"] == 0
    blind = judge_generator(generator, memory, judged, COMPACT, lambda: BarDetector(blind=True), joint=False).figures  # type: ignore[arg-type, return-value]
    assert not {"r_by_lips", "r_by_audio", "articulation_by_audio"} & set(blind)
    unmeasured = judge_generator(generator, memory, judged, COMPACT, None, joint=False).figures
    assert set(unmeasured) == {"l1_by_lips", "l1_by_audio", "score"}


def pictures_of_truth(clip: Clip) -> torch.Tensor:
    crops = torch.from_numpy(clip.crops[:60, 8:-8, 8:-8]).movedim(-1, 1).float() / 127.5 - 1
    return boxes_of(crops, COMPACT)


def test_each_speaker_is_judged_once_and_still_mouths_are_not_measured(clips: list[Clip]) -> None:
    memory, generator = LipMemory(COMPACT), FaceGenerator(COMPACT)
    still = replace(clips[0], speaker="still", opening=np.full(75, 0.01, np.float32) + 0.001 * (np.arange(75) % 3).astype(np.float32))
    judged = [clips[1], replace(clips[2], speaker=clips[1].speaker), still]
    found = judge_generator(generator, memory, judged, COMPACT, BarDetector, joint=False)  # type: ignore[arg-type]
    assert found.picture is not None
    assert found.picture.shape[0] == 2 * COMPACT.size
    assert "r_by_lips" in found.figures
    alone = judge_generator(generator, memory, [still], COMPACT, BarDetector, joint=False)  # type: ignore[arg-type]
    assert "r_by_lips" not in alone.figures
