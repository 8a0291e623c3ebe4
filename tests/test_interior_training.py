"""The network that paints between lips on toy clips: what its samples are, that it learns, and that its folder holds what was learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import COMPACT, rest_lips, toy_settings, write_clips

from lipdub.bundles import interior
from lipdub.cli.export import export_onnx as export_command
from lipdub.errors import CheckpointInvalid, OutputRefused, TrainingDataError
from lipdub.generators.interior import InteriorPainter
from lipdub.records import CropSpec
from lipdub.train import checkpoints
from lipdub.train import interior as stages
from lipdub.train.data import Clip, load_clips
from lipdub.train.interior import PREPARED_SIZE, InteriorStage, InteriorWeights, OpenMouths, fineness, mouth_at, open_frames
from lipdub.train.interior_export import export_interior, load_interior
from lipdub.train.loop import StepReport, new_fabric, run


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return load_clips(write_clips(tmp_path_factory.mktemp("prepared"), clips=3, frames=24, size=PREPARED_SIZE), size=PREPARED_SIZE)


@pytest.fixture(scope="module")
def trained(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepReport]]:
    torch.manual_seed(0)
    plan = toy_settings(steps=24, batch=3, rate=4e-3, warmup_steps=2, validate_every=12, checkpoint_every=12)
    weights = InteriorWeights(adversarial_from=20)
    stage = InteriorStage(clips[:2], clips[2:], plan.rate, 0, weights, ema=0.5)
    folder, told = tmp_path_factory.mktemp("run"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "JUDGED", 6)
        run(stage, new_fabric(plan), folder, plan, resume=False, on_progress=told.append)
    return folder / "latest.pt", told


def test_it_learns_what_lies_in_the_hole(trained: tuple[Path, list[StepReport]]) -> None:
    told = trained[1]
    assert told[-1].losses["picture"] < 0.6 * told[0].losses["picture"]
    judged = [step.validation for step in told if step.validation is not None]
    assert len(judged) == 2
    assert judged[1].figures["l1"] < judged[0].figures["l1"]
    assert judged[1].picture is not None
    # Seen, painted and true, one below the other.
    assert judged[1].picture.shape[0] % (3 * interior.FINER * interior.WINDOW[0]) == 0
    assert {"adversarial", "matching", "discriminator"} <= set(told[-1].losses)
    assert "adversarial" not in told[0].losses


@given(index=st.integers(0, 2**40))
@settings(max_examples=10, deadline=None)
def test_a_sample_depends_on_seed_and_number_alone(clips: list[Clip], index: int) -> None:
    one, again = OpenMouths(clips, seed=3)[index], OpenMouths(clips, seed=3)[index]
    assert all(torch.equal(one[key], again[key]) for key in one)
    rows, columns = interior.WINDOW
    assert tuple(one["seen"].shape) == (interior.CHANNELS, rows, columns)
    assert tuple(one["window"].shape) == (interior.FINER * rows, interior.FINER * columns, 3)
    assert tuple(one["hole"].shape) == (1, interior.FINER * rows, interior.FINER * columns)
    assert float(one["hole"].sum()) > 0


def test_what_is_seen_is_the_truth_around_the_hole(clips: list[Clip]) -> None:
    """So is a mirrored and jittered one: points and picture are moved alike, and the bright mouth lies in the hole."""
    random = np.random.default_rng(0)
    for row in open_frames(clips[0])[:6].tolist():
        for chance in (None, random):
            one = mouth_at(clips[0], row, 1.0, chance)
            bright = one["window"].float().mean(dim=2)
            inside = one["hole"][0] > 0.5
            assert bright[inside].mean() > bright[~inside].mean() + 40
            coarse = torch.nn.functional.avg_pool2d(one["window"].movedim(-1, 0).float()[None], interior.FINER)[0] / 127.5 - 1
            around = one["seen"][3] == 0
            assert (coarse - one["seen"][:3])[:, around].abs().max() < 0.02


def test_footage_that_was_enlarged_counts_as_coarse(clips: list[Clip]) -> None:
    clip = clips[0]
    side = clip.crops.shape[1]
    soft = np.stack([cv2.resize(cv2.resize(one, (side // 3, side // 3), interpolation=cv2.INTER_AREA), (side, side)) for one in clip.crops])
    coarse = replace(clip, crops=soft)
    assert fineness(clip) == 1
    assert fineness(coarse) < 0.5


def test_mouths_that_never_open_teach_nothing(clips: list[Clip]) -> None:
    shut = [replace(clip, lips=np.repeat((rest_lips() - clip.rest)[None], len(clip), axis=0)) for clip in clips]
    with pytest.raises(TrainingDataError, match="open mouth"):
        OpenMouths(shut, seed=0)
    with pytest.raises(TrainingDataError, match="--val"):
        InteriorStage(clips, shut, 1e-3, 0).validate()


def test_the_folder_paints_as_the_checkpoint_does(trained: tuple[Path, list[StepReport]], clips: list[Clip], tmp_path: Path) -> None:
    out = tmp_path / "interior"
    done = export_interior(trained[0], out, license_text="CC0-1.0", training_data="bars")
    assert sorted(path.name for path in out.iterdir()) == ["interior.json", "interior.onnx", "weights.safetensors"]
    assert interior.load_spec(out) == done.spec
    assert 0 <= done.difference <= done.tolerance
    network, again = load_interior(trained[0]), load_interior(out)
    one = mouth_at(clips[2], int(open_frames(clips[2])[0]), 1.0)
    with torch.no_grad():
        wanted, stored = (model(one["seen"][None], torch.ones(1)) for model in (network, again))
    assert (wanted - stored).abs().max() < 0.02  # float16
    painter = InteriorPainter(out, CropSpec(128, (64, 128, 16, 112), 64), device="cpu", threads=1)
    (painted,) = painter._painted([one["seen"].numpy()])
    np.testing.assert_allclose(painted, 127.5 * (wanted[0].movedim(0, -1).numpy() + 1), atol=0.1)
    with pytest.raises(OutputRefused):
        export_interior(trained[0], out)


def test_training_goes_on_from_a_folder(trained: tuple[Path, list[StepReport]], clips: list[Clip], tmp_path: Path) -> None:
    out = tmp_path / "interior"
    export_interior(trained[0], out)
    stage = InteriorStage(clips[:2], clips[2:], 1e-3, 0, start=load_interior(out))
    for key, value in load_interior(out).state_dict().items():
        assert torch.equal(stage.network.state_dict()[key], value)
        assert torch.equal(stage.averaged.state_dict()[key], value)


def test_what_is_no_such_network_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    checkpoints.save(other, {"settings": {"stage": "reader", "network": COMPACT.to_dict()}, "modules": {"reader": {}}})
    with pytest.raises(CheckpointInvalid, match="train interior"):
        load_interior(other)


def test_the_command_exports_it(trained: tuple[Path, list[StepReport]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_command(trained[0], tmp_path / "mine", half=True)
    assert "interior.onnx: largest difference" in capsys.readouterr().out
    assert interior.load_spec(tmp_path / "mine").name == "mine"
    export_command(tmp_path / "mine", tmp_path / "again")
    assert interior.load_spec(tmp_path / "again").name == "again"
