"""The lip reader on toy clips: what it learns, what it must not see, and how the generator's loss looks through it."""

from __future__ import annotations

from pathlib import Path

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import COMPACT, PAPER, boxes_of, toy_settings, write_clips

from lipdub.errors import CheckpointInvalid
from lipdub.train import losses, reader
from lipdub.train.data import Clip, load_clips, opening_from_lips
from lipdub.train.generator_stage import GeneratorStage, _through_reader
from lipdub.train.loop import StepReport, new_fabric, run
from lipdub.train.networks import LipMemory
from lipdub.train.reader import LipReader, Pictures, ReaderStage, centred, centred_lips, load_reader


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return load_clips(write_clips(tmp_path_factory.mktemp("prepared"), clips=4))


@pytest.fixture(scope="module")
def trained(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    torch.manual_seed(0)
    plan = toy_settings(steps=120, batch=16, rate=3e-3, warmup_steps=10, validate_every=120, checkpoint_every=120)
    stage = ReaderStage(COMPACT, clips[:3], clips[3:], plan.rate, 0, ema=0.9)
    folder = tmp_path_factory.mktemp("run")

    def watch(_: StepReport) -> None:
        pass

    return folder / "latest.pt", run(stage, new_fabric(plan), folder, plan, resume=False, on_progress=watch)


def test_it_learns_to_read_a_mouth_it_never_saw(trained: tuple[Path, dict[str, float]]) -> None:
    figures = trained[1]
    assert figures["r_opening"] > 0.9
    assert 0.5 < figures["spread"] < 1.5
    assert figures["score"] == figures["r_opening"]


def test_a_checkpoint_gives_the_averaged_reader_frozen(trained: tuple[Path, dict[str, float]], clips: list[Clip]) -> None:
    loaded = load_reader(trained[0], COMPACT)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert reader.judge_reader(loaded, clips[3:], COMPACT) == pytest.approx({k: v for k, v in trained[1].items() if k != "score"})


def test_a_checkpoint_of_something_else_or_of_another_crop_is_refused(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="another crop"):
        load_reader(trained[0], PAPER)
    other = tmp_path / "other.pt"
    torch.save({"lipdub_checkpoint": 1, "settings": {"network": COMPACT.to_dict()}, "modules": {"memory": {}}}, other)
    with pytest.raises(CheckpointInvalid, match="no lip reader"):
        load_reader(other, COMPACT)


@given(index=st.integers(0, 2**40))
@settings(max_examples=15)
def test_a_sample_depends_on_seed_and_number_alone(clips: list[Clip], index: int) -> None:
    one, again = Pictures(clips, COMPACT, seed=3)[index], Pictures(clips, COMPACT, seed=3)[index]
    assert all(torch.equal(one[key], again[key]) for key in ("picture", "lips"))
    assert tuple(one["picture"].shape) == (32, 48, 3)
    assert one["lips"].mean(dim=0).abs().max() < 1e-6


def test_lip_points_are_the_clips_own_about_their_middle(clips: list[Clip]) -> None:
    rows = np.array([0, 7, 30])
    lips = torch.from_numpy(centred_lips(clips[0], rows))
    assert lips.mean(dim=1).abs().max() < 1e-6
    # The middle says nothing of the opening: it is that of the clip's own lips, and, but for their light smoothing, the measured one.
    gap = opening_from_lips(lips).numpy()
    own = opening_from_lips(torch.from_numpy(clips[0].lips[rows] + clips[0].rest)).numpy()
    assert np.abs(gap - own).max() < 1e-5
    assert np.corrcoef(gap, clips[0].opening[rows])[0, 1] > 0.99


def test_it_looks_at_the_lower_half_alone() -> None:
    torch.manual_seed(0)
    network = LipReader(PAPER).eval()
    pictures = torch.rand(2, 3, PAPER.size, PAPER.size)
    changed = pictures.clone()
    changed[:, :, : PAPER.masked_from] = 0
    box = boxes_of(pictures, PAPER)
    assert torch.equal(network(box), network(boxes_of(changed, PAPER)))
    changed[:, :, PAPER.masked_from + 8 :] = 0
    assert not torch.equal(network(box), network(boxes_of(changed, PAPER)))


@given(move=st.floats(-0.05, 0.05), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_audio_rows_want_what_the_sound_wants_more_than_the_truth(move: float, seed: int) -> None:
    torch.manual_seed(seed)
    network = LipReader(COMPACT).eval()
    true, drawn = torch.rand(4, 3, 32, 48), torch.rand(4, 3, 32, 48)
    more = torch.zeros(4, 40, 2)
    more[:, 22:29, 1] = move
    from_audio = torch.tensor([False, True, False, True])
    read, wanted = _through_reader(network, drawn, true, from_audio, more)
    assert torch.equal(read, network(drawn))
    torch.testing.assert_close(wanted[~from_audio], network(true)[~from_audio])
    torch.testing.assert_close(wanted[from_audio], (network(true) + centred(more))[from_audio])


def test_perceptual_loss_is_zero_for_the_truth_and_pulls_the_drawn_picture_alone() -> None:
    torch.manual_seed(0)
    network = LipReader(COMPACT).requires_grad_(False).eval()
    true = torch.rand(2, 3, 32, 48, requires_grad=True)
    drawn = torch.rand(2, 3, 32, 48, requires_grad=True)
    assert float(losses.perceptual_loss(network, true.detach(), true.detach())) == 0.0
    loss = losses.perceptual_loss(network, drawn, true)
    loss.backward()
    assert float(loss.detach()) > 0
    assert true.grad is None
    assert drawn.grad is not None
    assert float(drawn.grad.abs().sum()) > 0


def test_a_generator_step_through_the_reader_trains_the_generator_and_leaves_the_reader(clips: list[Clip], tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = LipReader(COMPACT).requires_grad_(False).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    stage = GeneratorStage(COMPACT, LipMemory(COMPACT), clips[:3], clips[3:], 1e-3, 2e-4, 0, draw_frames=1, lip_reader=network)
    drawn_before = {key: value.clone() for key, value in stage.generator.state_dict().items()}
    plan = toy_settings(steps=2, validate_every=2)
    run(stage, new_fabric(plan), tmp_path, plan, resume=False, on_progress=lambda _: None)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert any(not torch.equal(value, drawn_before[key]) for key, value in stage.generator.state_dict().items())
