"""The sync expert on drawn clips: it learns which sound belongs to which lips, resumes exactly, and says how well it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import assert_equal_deep, quiet, stop_at
from torch.nn import functional as F
from toys import SIZE, STORED, rest_lips, toy_settings

from lipdub.bundles.network import EncoderUse
from lipdub.errors import CheckpointInvalid, TrainingDataError
from lipdub.speech.mel import SILENCE
from lipdub.train import checkpoints
from lipdub.train.data import Clip, loader
from lipdub.train.expert_network import ExpertConfig, SyncNet, load_expert
from lipdub.train.expert_stage import ExpertStage, ExpertWeights, draw_curve, expert_losses, judge_expert, mean_curve, windows_at
from lipdub.train.features import PreparedFeatures
from lipdub.train.loop import StepReport, new_fabric, run
from lipdub.train.pairs import STRIP_POSITIONS, Pairs
from lipdub.train.prepare import GRID_HZ
from lipdub.train.shifts import FURTHEST, ShiftCosines, accuracies, clip_lip_windows, shift_cosines

USE = EncoderUse("plain", "0" * 64, 4, tuple(range(-3, 4)))
TOY = ExpertConfig(
    USE, size=SIZE, box=(32, 64, 8, 56), pool=2, lip_widths=(8, 8, 16, 16), sound_widths=(4, 8, 8), embedding=16, dropout=0.0
)


def bar_clip(seed: int, *, frames: int = 75, late_frames: int = 0, silent: bool = False) -> Clip:
    """A bar whose height follows the sound's level, which wanders without a period; the sound comes `late_frames` later."""
    random = np.random.default_rng(seed)
    columns = 1 + round((frames - 1) / GRID_HZ * 80) + 8
    level = np.convolve(random.standard_normal(columns + 200), np.hanning(9), mode="same")
    level = 0.5 + 0.5 * np.tanh(level / level.std())
    times = np.arange(frames) / GRID_HZ
    openness = np.interp(times * 80 + 100, np.arange(len(level)), level)
    crops = np.empty((frames, STORED, STORED, 3), np.uint8)
    crops[:] = random.integers(60, 110, size=3)
    for row, amount in enumerate(openness):
        crops[row, 48 : 50 + round(14 * amount), 30:50] = 230
    heard = level[100 - round(3.2 * late_frames) :][:columns]
    positions = np.arange(columns * 50 // 80)
    values = 0.2 * random.standard_normal((len(positions), USE.channels))
    values[:, 0] += 4 * np.interp(positions * 80 / 50, np.arange(columns), heard)
    mel = np.clip(SILENCE + 1.5 + 5 * heard[None] + 0.2 * random.standard_normal((80, columns)), -4, 4)
    return Clip(
        source=f"clip{seed}.mp4", clip_id=f"clip{seed}", speaker=f"clip{seed}", crops=crops,
        mel=(np.full_like(mel, SILENCE) if silent else mel).astype(np.float16), times_s=times,
        lips=np.repeat(rest_lips()[None], frames, axis=0) * 0, rest=rest_lips(), opening=(0.15 * openness).astype(np.float32),
        pose=np.zeros((frames, 2), np.float32), shot=np.zeros(frames, np.int32),
        features=PreparedFeatures(values.astype(np.float16), (0, len(values)), (1.0,), USE.sha256),
    )  # fmt: skip


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [bar_clip(seed) for seed in range(10)]


def stage_of(clips: list[Clip], rate: float = 3e-3, seed: int = 0) -> ExpertStage:
    torch.manual_seed(seed)
    return ExpertStage(TOY, clips[:8], clips[8:], rate, seed, ExpertWeights(windows=6, further=2, ema=0.9))


@pytest.fixture(scope="module")
def trained(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float], list[StepReport]]:
    told: list[StepReport] = []
    folder = tmp_path_factory.mktemp("run")
    plan = toy_settings(steps=100, batch=10, rate=1e-2, warmup_steps=10, validate_every=100, checkpoint_every=100)
    figures = run(stage_of(clips, 1e-2), new_fabric(plan), folder, plan, resume=False, on_progress=told.append)
    return folder / "best.pt", figures, told


def test_the_expert_learns_a_drawn_task(trained: tuple[Path, dict[str, float], list[StepReport]]) -> None:
    path, figures, told = trained
    assert told[-1].losses["expert"] < 0.7 * told[0].losses["expert"]
    assert np.mean([figures[f"second_{shift}"] for shift in (2, 3, 4, 5)]) > 0.9
    assert figures["second_far"] > 0.9
    assert figures["offset_right"] == 1.0
    assert load_expert(path).config == TOY


# ---- samples


def test_a_sample_depends_on_seed_and_number_alone(clips: list[Clip]) -> None:
    used, fresh = (Pairs(clips, TOY, seed=3, windows=4, further=2) for _ in range(2))
    used[5], used[2**40]
    torch.manual_seed(1)
    np.random.seed(1)
    one, other = used[11], fresh[11]
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in one.items()}
    assert shapes == {
        "pictures": ((4, 5, 32, 48, 3), torch.uint8),
        "features": ((STRIP_POSITIONS, USE.channels), torch.float16),
        "positions": ((6,), torch.float32),
        "sounding": ((4,), torch.bool),
        "lips": ((4, 40, 2), torch.float32),
    }
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    another = Pairs(clips, TOY, seed=4, windows=4, further=2)[11]
    assert not torch.equal(one["pictures"], another["pictures"])


@settings(max_examples=10, deadline=None)
@given(index=st.integers(0, 10_000), late=st.integers(-4, 4))
def test_the_sounds_of_a_sample_are_those_of_its_lips(index: int, late: int) -> None:
    """The bar of each window's middle picture is as high as its own window's sound is loud, offsets applied."""
    clip = replace(bar_clip(1, late_frames=late), offset_s=late / GRID_HZ)
    pairs = Pairs([clip], replace(TOY, frames=1), seed=0, windows=6, further=3)
    seen, heard = [], []
    # Twenty samples together: one of them has six points, and a correlation of six points may be anything.
    for number in range(index, index + 20):
        sample = pairs[number]
        heights = (sample["pictures"][:, 0].float().mean(dim=3) > 160).sum(dim=(1, 2)).float()
        middle = windows_at(sample["features"][None].float(), sample["positions"][None, :6, None])[0, :, 0, 0]
        sounds = sample["sounding"]  # at the clip's ends there may be no sound
        if sounds.sum() >= 4:
            seen.append(heights[sounds] - heights[sounds].mean())
            heard.append(middle[sounds] - middle[sounds].mean())
    assert np.corrcoef(torch.cat(seen).numpy(), torch.cat(heard).numpy())[0, 1] > 0.8


def test_windows_stay_within_their_shot_and_within_reach() -> None:
    shot = np.repeat(np.arange(15, dtype=np.int32), 5)
    crops = np.broadcast_to((16 * shot + 4)[:, None, None, None], (75, STORED, STORED, 3)).astype(np.uint8)
    pairs = Pairs([replace(bar_clip(0), crops=crops, shot=shot)], TOY, seed=0, windows=6, further=4)
    for index in range(10):
        sample = pairs[index]
        assert np.ptp(sample["pictures"].numpy().astype(int), axis=(1, 2, 3)).max() == 0
        assert float(sample["positions"].min()) >= -USE.taps[0]
        assert float(sample["positions"].max()) <= STRIP_POSITIONS - 1 - USE.taps[-1]
        assert np.ptp(sample["positions"][:6].numpy()) <= 31 * 2 + 1


def test_silence_is_no_true_pair() -> None:
    assert not Pairs([bar_clip(0, silent=True)], TOY, seed=0, windows=4, further=0)[0]["sounding"].any()
    assert Pairs([bar_clip(0)], TOY, seed=0, windows=4, further=0)[0]["sounding"].float().mean() > 0.5


def test_a_clip_shorter_than_the_windows_is_drawn_twice() -> None:
    sample = Pairs([bar_clip(0, frames=3)], TOY, seed=0, windows=8, further=4)[0]
    assert sample["pictures"].shape[0] == 8
    assert torch.isfinite(sample["features"]).all()


def test_a_mirrored_sample_mirrors_pictures_and_lip_points_together(clips: list[Clip]) -> None:
    crops = np.zeros((75, STORED, STORED, 3), np.uint8)
    crops[:, :, : STORED // 2] = 200
    lips = np.zeros((75, 40, 2), np.float32)
    lips[..., 0] = 0.05
    pairs = Pairs([replace(clips[0], crops=crops, lips=lips)], TOY, seed=0, windows=2, further=0)
    sides = set()
    for index in range(20):
        sample = pairs[index]
        picture = sample["pictures"][0, 2].float().mean(dim=(0, 2))
        left = bool(picture[:24].mean() > picture[24:].mean())
        assert left == bool((sample["lips"][..., 0] > 0).all())
        sides.add(left)
    assert sides == {True, False}


# ---- losses


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def losses_of(lips: torch.Tensor, sounds: torch.Tensor, positions: torch.Tensor, sounding: torch.Tensor) -> dict[str, torch.Tensor]:
    count, windows = lips.shape[:2]
    config = replace(TOY, embedding=lips.shape[-1])
    return expert_losses(SyncNet(config), lips, sounds, positions, sounding, torch.zeros(count, windows, 40, 2), ExpertWeights())


def test_the_losses_are_lower_where_lips_and_sound_agree() -> None:
    positions = torch.arange(0.0, 36.0, 6.0).repeat(3, 1)
    lips, sounding = unit(3, 4, 16), torch.ones(3, 4, dtype=torch.bool)
    sounds = torch.cat([lips, unit(3, 2, 16, seed=1)], dim=1)
    together, apart = losses_of(lips, sounds, positions, sounding), losses_of(lips, sounds.roll(1, dims=1), positions, sounding)
    for key in ("within", "pairs", "across"):
        assert together[key] < 0.5 * apart[key]
    assert together["right_within"] == 1
    assert apart["right_within"] == 0


def test_sounds_a_frame_away_are_neither_true_nor_false() -> None:
    """Only what lies at least a frame and a half away is compared; everything nearer changes nothing."""
    positions = torch.tensor([[0.0, 2.0, 25.0, 50.0]])
    lips, sounding = unit(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)
    sounds = unit(1, 4, 16, seed=1)
    sounds[0, :2] = lips[0]
    before = losses_of(lips, sounds, positions, sounding)["within"]
    # The two lips' own sounds are a frame apart: were they compared, alike ones would cost.
    alike = lips[:, :1].expand(-1, 2, -1)
    near = losses_of(alike, torch.cat([alike, sounds[:, 2:]], dim=1), positions, sounding)["within"]
    far = losses_of(alike, torch.cat([alike, sounds[:, 2:]], dim=1), torch.tensor([[0.0, 12.0, 25.0, 50.0]]), sounding)["within"]
    assert near < far
    assert torch.isfinite(before)


def test_silent_windows_cost_nothing() -> None:
    lips = unit(2, 3, 16).requires_grad_()
    found = losses_of(lips, unit(2, 5, 16, seed=1), torch.arange(0.0, 60.0, 12.0).repeat(2, 1), torch.zeros(2, 3, dtype=torch.bool))
    assert all(found[key] == 0 for key in ("within", "pairs", "across"))
    found["expert"].backward()
    assert torch.isfinite(lips.grad).all()


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_gives_numbers_whatever_the_batch(clips: list[Clip], count: int) -> None:
    stage = stage_of(clips)
    stage.setup(new_fabric(toy_settings()))
    batch = next(iter(loader(stage.samples, first_step=0, steps=1, batch=count, rank=0, ranks=1, workers=0)))
    before = {key: value.clone() for key, value in stage.expert.state_dict().items()}
    found = stage.step(batch, 0, new_fabric(toy_settings()))
    assert all(torch.isfinite(value) for value in found.values())
    same = [key for key, value in stage.expert.state_dict().items() if torch.equal(value, before[key])]
    assert set(same) <= {"bias", "log_scale", "sound_tower.components.weight", "sound_tower.components.bias"}


# ---- judging


def judged(count: int, best: int = 0, top: float = 1.0) -> ShiftCosines:
    """An expert that is sure of one shift."""
    cosine = np.full((count, 2 * FURTHEST + 1), 0.1, np.float32)
    cosine[:, FURTHEST + best] = top
    own = np.full((count, count), 0.1, np.float32)
    own[np.arange(count), np.arange(count)] = cosine[:, FURTHEST]
    return ShiftCosines(cosine, own, np.ones(count, bool))


def test_scores_of_a_perfect_and_of_a_deaf_expert() -> None:
    found = accuracies([judged(60)])
    assert set(found.single.values()) == set(found.second.values()) == {1.0}
    assert found.single_far == found.second_far == 1.0
    random = np.random.default_rng(0)
    noise = random.standard_normal((200, 2 * FURTHEST + 1)).astype(np.float32)
    own = random.standard_normal((200, 200)).astype(np.float32)
    own[np.arange(200), np.arange(200)] = noise[:, FURTHEST]
    found = accuracies([ShiftCosines(noise, own, np.ones(200, bool))])
    assert all(0.4 < share < 0.6 for share in found.single.values())
    assert found.single_far == pytest.approx(0.5, abs=0.08)
    silent = accuracies([replace(judged(60), sounding=np.zeros(60, bool))])
    assert silent.single[3] == silent.second_far == 0.5


@given(st.integers(-FURTHEST, FURTHEST))
def test_the_best_shift_is_positive_where_the_sound_is_late(shift: int) -> None:
    best, confidence = judged(60, shift, 0.6).best()
    assert best == shift
    assert confidence == pytest.approx(0.5, abs=0.05)


def test_sound_that_is_not_there_is_not_compared(clips: list[Clip]) -> None:
    """Before and after the clip there is no sound: padding would be told apart for nothing."""
    found = shift_cosines(SyncNet(TOY).eval(), clips[0])
    assert found.cosine.shape == (75, 2 * FURTHEST + 1)
    assert found.own.shape == (75, 75)
    assert np.isnan(found.at(-FURTHEST)[:FURTHEST]).all()
    assert np.isfinite(found.at(0)[5:-5]).all()
    np.testing.assert_array_equal(np.diag(found.own), found.at(0))


@pytest.mark.parametrize("fps", [20, 24, 25])
def test_shifts_are_of_time_whatever_the_frame_rate(trained: tuple[Path, dict[str, float], list[StepReport]], fps: float) -> None:
    """Frames of a slow or a fast video are compared with the sound k / 25 s away, not with that of the k-th frame from them."""
    clip = bar_clip(50, frames=110, late_frames=2)
    rows = np.unique(np.round(np.arange(0, 110 / GRID_HZ, 1 / fps) * GRID_HZ).astype(int).clip(0, 109))
    part = {name: getattr(clip, name)[rows] for name in ("crops", "times_s", "lips", "opening", "pose", "shot")}
    found = shift_cosines(load_expert(trained[0]), replace(clip, **part))
    assert np.isfinite(found.at(FURTHEST)).mean() > 0.5
    assert found.best()[0] == 2


def test_lip_windows_end_at_cuts(clips: list[Clip]) -> None:
    shot = (np.arange(75) >= 30).astype(np.int32)
    (windows,) = clip_lip_windows(replace(clips[0], shot=shot), 75, SyncNet(TOY))
    assert windows.shape == (75, 3, 5, 32, 48)
    assert torch.equal(windows[29, :, 2], windows[29, :, 4])
    assert torch.equal(windows[30, :, 0], windows[30, :, 2])
    assert torch.equal(windows[40, :, 0], windows[38, :, 2])


def test_speakers_who_are_trained_on_do_not_judge(clips: list[Clip]) -> None:
    known = replace(clips[8], speaker=clips[0].speaker)
    weights = ExpertWeights(windows=2)
    assert ExpertStage(TOY, clips[:2], [known, clips[9]], 1e-3, 0, weights).judged == [clips[9]]
    assert ExpertStage(TOY, clips[:2], [known], 1e-3, 0, weights).judged == [known]


def test_too_short_clips_cannot_judge() -> None:
    with pytest.raises(TrainingDataError, match="no held-out clip has 27 frames"):
        judge_expert(SyncNet(TOY), [bar_clip(0, frames=26)])


def test_the_curve_is_drawn(clips: list[Clip]) -> None:
    assert draw_curve(np.linspace(0, 1, 31)).shape == (240, 480, 3)
    assert draw_curve(np.zeros(31)).std() > 0
    assert mean_curve([shift_cosines(SyncNet(TOY).eval(), clips[0])]).shape == (31,)


# ---- checkpoints


def test_a_resumed_run_ends_bit_for_bit_where_one_that_went_through_does(clips: list[Clip], tmp_path: Path) -> None:
    plan = toy_settings()
    run(stage_of(clips), new_fabric(plan), tmp_path / "through", plan, resume=False, on_progress=quiet)
    with pytest.raises(KeyboardInterrupt):
        run(stage_of(clips), new_fabric(plan), tmp_path / "stopped", plan, resume=False, on_progress=stop_at(2))
    torch.rand(17)
    run(stage_of(clips), new_fabric(plan), tmp_path / "stopped", plan, resume=True, on_progress=quiet)
    through, stopped = (checkpoints.load(tmp_path / name / "latest.pt") for name in ("through", "stopped"))
    for part in ("step", "modules", "optimizers", "random", "best", "settings"):
        assert_equal_deep(through[part], stopped[part], part)
    other = ExpertStage(TOY, clips[:8], clips[8:], 3e-3, 0, ExpertWeights(windows=5, further=2, ema=0.9))
    with pytest.raises(CheckpointInvalid, match=r"weights\.windows: 6 there, 5 now"):
        run(other, new_fabric(plan), tmp_path / "stopped", plan, resume=True, on_progress=quiet)


def test_what_is_loaded_is_the_averaged_expert_and_frozen(trained: tuple[Path, dict[str, float], list[StepReport]]) -> None:
    expert, content = load_expert(trained[0]), checkpoints.load(trained[0])
    assert not expert.training
    assert not any(parameter.requires_grad for parameter in expert.parameters())
    assert all(torch.equal(value, content["modules"]["averaged"][key]) for key, value in expert.state_dict().items())
    assert any(not torch.equal(value, content["modules"]["expert"][key]) for key, value in expert.state_dict().items())


def test_other_checkpoints_are_no_expert(tmp_path: Path) -> None:
    for content in ({}, {"settings": {"stage": "memory"}}, {"settings": [1]}):
        checkpoints.save(tmp_path / "c.pt", content)
        with pytest.raises(CheckpointInvalid, match="holds no sync expert; give a checkpoint of lipdub train expert"):
            load_expert(tmp_path / "c.pt")
    checkpoints.save(tmp_path / "c.pt", {"settings": {"stage": "expert", "network": TOY.to_dict()}, "modules": {"averaged": {}}})
    with pytest.raises(CheckpointInvalid, match="holds no expert of this lipdub") as caught:
        load_expert(tmp_path / "c.pt")
    assert "\n" not in str(caught.value)


def test_a_box_outside_the_lower_half_is_refused() -> None:
    with pytest.raises(ValueError, match="lower half"):
        replace(TOY, box=(20, 64, 8, 56))
