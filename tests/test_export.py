"""A checkpoint to a bundle: the same answers as torch, any batch, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from fakes import as_version_1, as_version_2, rewrite_spec
from toys import COMPACT, PAPER, toy_settings, write_clips

from lipdub import runtime
from lipdub.bundles import bundle
from lipdub.bundles.network import NetworkConfig
from lipdub.cli.export import export_onnx as export_command
from lipdub.errors import BundleInvalid, CheckpointInvalid, ExportFailed, OutputRefused, TrainingDataError, WriteFailed
from lipdub.model import open_model
from lipdub.speech.memory import OnnxMemory
from lipdub.train import checkpoints, networks
from lipdub.train import export as exporting
from lipdub.train.data import load_clips
from lipdub.train.export import HALF_TOLERANCE, TOLERANCE, export, load_networks
from lipdub.train.generator_stage import GeneratorStage
from lipdub.train.loop import new_fabric, run
from lipdub.train.memory_stage import MemoryStage
from lipdub.train.networks import FaceGenerator, LipMemory
from lipdub.train.weights import load_bundle_networks, load_weights, read_weights, write_weights


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("prepared"))


def checkpoint_of(folder: Path, prepared: Path, config: NetworkConfig) -> Path:
    """One step of the generator stage."""
    clips, plan = load_clips(prepared), toy_settings(steps=1, batch=2)
    fabric = new_fabric(plan)
    stage = GeneratorStage(config, LipMemory(config), clips[:2], clips[2:], 1e-3, 2e-4, 0)
    run(stage, fabric, folder, plan, resume=False, on_progress=lambda _: None)
    return folder / "latest.pt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    return checkpoint_of(tmp_path_factory.mktemp("compact"), prepared, COMPACT)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, exporting.Exported]:
    out = tmp_path_factory.mktemp("models") / "toy"
    return out, export(checkpoint, out, license_text="CC0-1.0", training_data="toys", tap_distance_s=0.04)


def contents(folder: Path) -> dict[str, str]:
    """Everything at and below `folder`, by name and hash."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder"
        for file in sorted(folder.rglob("*"))
    }


def uniform(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype(np.float32)


# ---- what an export is


def test_both_graphs_agree_with_torch(exported: tuple[Path, exporting.Exported]) -> None:
    out, done = exported
    assert set(done.differences) == {bundle.MEMORY_GRAPH, bundle.GENERATOR_GRAPH}
    assert all(0 <= difference <= 1e-4 for difference in done.differences.values())
    assert done.tolerance == TOLERANCE == 1e-4
    assert done.bytes == sum(file.stat().st_size for file in out.iterdir())
    assert done.gflop_per_frame > 0


def test_a_bundle_says_what_it_is_and_opens(exported: tuple[Path, exporting.Exported], checkpoint: Path) -> None:
    out, done = exported
    assert sorted(contents(out)) == ["bundle.json", "generator.onnx", "memory.onnx", "weights.safetensors"]
    spec = bundle.load_spec(out)
    assert spec == done.spec
    assert (spec.name, spec.license, spec.training_data, spec.tap_distance_s) == ("toy", "CC0-1.0", "toys", 0.04)
    assert (spec.slots, spec.lip_channels, spec.crop, spec.mel) == (COMPACT.slots, COMPACT.channels, COMPACT.crop, COMPACT.mel)
    model = open_model(str(out), device="cpu", threads=1)
    assert model.spec == spec
    silence = model.memory.recall(np.full((1, 80, 16), -4.0, np.float32))
    np.testing.assert_allclose(silence.lip_feature[0], spec.rest_feature, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 8, 17])
def test_any_batch_is_answered_as_torch_answers(exported: tuple[Path, exporting.Exported], checkpoint: Path, batch: int) -> None:
    out, _ = exported
    config, memory, generator = load_networks(checkpoint)
    mel = 4 * uniform(batch, 80, 16)
    targets, references = (np.random.default_rng(seed).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8) for seed in (1, 2))
    opened = open_model(str(out), device="cpu", threads=1)
    recall = opened.memory.recall(mel)
    drawn = opened.generator.draw(targets, references, recall.lip_feature)
    assert drawn.copied is not None
    with torch.no_grad():
        address, lip_feature, _ = memory(torch.from_numpy(mel)[:, None])
        to_network = lambda pictures: torch.from_numpy(pictures).movedim(-1, 1).float() / 127.5 - 1.0  # noqa: E731
        face, painted, flow = generator.decoder.drawn(
            torch.from_numpy(recall.lip_feature), generator.encoder(to_network(targets), to_network(references))
        )
    assert painted is not None
    assert flow is not None
    np.testing.assert_allclose(recall.address, address.numpy(), atol=1e-4)
    np.testing.assert_allclose(recall.lip_feature, lip_feature.numpy(), atol=1e-4)
    # The network's flow is in half sides of the crop.
    np.testing.assert_allclose(drawn.copied.flow, flow.numpy() / 2, atol=1e-6)
    assert np.abs(drawn.copied.paint_mask - 255 * painted[:, 0].numpy()).max() <= 0.51
    y0, y1, x0, x1 = config.drawn
    expected = ((face.numpy().transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255)
    assert np.abs(drawn.pixels[:, y0:y1, x0:x1] - expected).max() <= 0.55


def test_the_exported_weights_are_the_averaged_ones(exported: tuple[Path, exporting.Exported], checkpoint: Path) -> None:
    """Round trip: what --start reads from a bundle is what the checkpoint held, to half precision."""
    out, _ = exported
    averaged = checkpoints.load(checkpoint)["modules"]["averaged"]
    weights = load_weights(out, COMPACT)
    assert weights.keys() == {key for key in averaged if key.startswith(("generator.", "memory.fusion."))}
    for key, value in load_weights(checkpoint, COMPACT).items():
        assert torch.equal(value, averaged[key])
        torch.testing.assert_close(weights[key], value, atol=1e-4, rtol=1e-3)
        assert weights[key].dtype == torch.float32
    with pytest.raises(CheckpointInvalid, match="another network"):
        load_weights(out, replace(COMPACT, channels=24))


def test_the_paper_preset_exports_too(prepared: Path, tmp_path: Path) -> None:
    done = export(checkpoint_of(tmp_path / "run", prepared, PAPER), tmp_path / "paper")
    assert max(done.differences.values()) <= 1e-4
    model = open_model(str(tmp_path / "paper"), device="cpu", threads=1)
    assert model.spec.crop.drawn == (0, 64, 0, 64)
    assert not model.spec.has_flow


def test_half_weights_are_half_the_size_and_close(prepared: Path, tmp_path: Path) -> None:
    wide = replace(
        COMPACT, channels=128, audio_widths=(8, 16, 32, 64), face_widths=(8, 16, 32, 64, 64, 64), decoder_widths=(64, 64, 64, 32, 16)
    )
    path = checkpoint_of(tmp_path / "run", prepared, wide)
    full, half = export(path, tmp_path / "full"), export(path, tmp_path / "half", half=True)
    assert half.tolerance == HALF_TOLERANCE
    assert 0 < max(half.differences.values()) <= HALF_TOLERANCE
    for graph in bundle.TENSORS:
        assert (tmp_path / "half" / graph).stat().st_size < 0.65 * (tmp_path / "full" / graph).stat().st_size
    assert max(full.differences.values()) <= 1e-4
    one, other = (OnnxMemory(tmp_path / name, done.spec, device="cpu") for name, done in (("full", full), ("half", half)))
    mel = 4 * uniform(3, 80, 16)
    np.testing.assert_allclose(one.recall(mel).lip_feature, other.recall(mel).lip_feature, atol=HALF_TOLERANCE)


def test_the_resting_mouth_may_come_from_clips(prepared: Path, checkpoint: Path, tmp_path: Path) -> None:
    plain, rested = export(checkpoint, tmp_path / "a"), export(checkpoint, tmp_path / "b", rest_from=prepared)
    assert plain.spec.rest_feature != rested.spec.rest_feature
    assert np.isfinite(rested.spec.rest_feature).all()
    with pytest.raises(TrainingDataError, match="holds no prepared clips"):
        export(checkpoint, tmp_path / "c", rest_from=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_modes_follow_the_umask(
    checkpoint: Path, tmp_path: Path, umask: Callable[[int], int], mask: int, file_mode: int, folder_mode: int
) -> None:
    umask(mask)
    export(checkpoint, tmp_path / "toy")
    assert (tmp_path / "toy").stat().st_mode & 0o777 == folder_mode
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "toy").iterdir()} == {
        name: oct(file_mode) for name in ("bundle.json", "generator.onnx", "memory.onnx", "weights.safetensors")
    }


def test_the_command_prints_the_differences(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_command(checkpoint, tmp_path / "toy")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["memory.onnx", "generator.onnx"]
    for line in lines[:2]:
        printed = re.search(r"largest difference to torch (\S+) \(at most 1e-04 allowed\)", line)
        assert printed is not None
        assert float(printed[1]) <= 1e-4
    assert re.search(r"wrote .*toy \(\d+\.\d MiB, \d+\.\d\d GFLOP a frame\)", lines[2])


# ---- another bundle, exported anew

KAPPA = 31.5
"""Sharpness of the toy bundle's addresses: another than the preset's."""


@pytest.fixture(scope="module")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights that copies from all over the crop."""
    torch.manual_seed(5)
    memory, generator = LipMemory(COMPACT).eval(), FaceGenerator(COMPACT).eval()
    memory.memory.drawn_kappa = KAPPA
    assert generator.decoder.flow is not None
    torch.nn.init.normal_(generator.decoder.flow.weight, std=0.03)
    spec = bundle.BundleSpec(
        name="random", backend="memory", format_version=bundle.FORMAT_VERSION, crop=COMPACT.crop, mel=COMPACT.mel, slots=COMPACT.slots,
        lip_channels=COMPACT.channels, rest_feature=tuple(np.linspace(-1, 1, COMPACT.channels).tolist()), license="CC-BY-4.0",
        training_data="noise", graphs={}, created_with="0.0.1", tap_distance_s=0.07,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("models") / "random"
    beside = {"MODEL_CARD.md": b"# random\n", "adapted.json": b"{}\n"}
    exporting.write_bundle(out, spec, replace(COMPACT, drawn_kappa=KAPPA), memory, generator, half=True, beside=beside, force=False)
    return out


@pytest.fixture
def random(random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.setitem(networks.PRESETS, "compact", COMPACT)
    return Path(shutil.copytree(random_bundle, tmp_path / "random"))


def questions() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mel windows, targets, references, lip features."""
    noise = np.random.default_rng(4)
    targets, references = noise.integers(0, 256, (2, 5, 64, 64, 3), dtype=np.uint8)
    return 4 * uniform(5, 80, 16), targets, references, noise.normal(size=(5, COMPACT.channels)).astype(np.float32)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_bundle_exported_anew_draws_what_it_drew_and_tells_what_it_copied(random: Path, tmp_path: Path, version: int) -> None:
    _, targets, references, features = questions()
    mel = questions()[0]
    told = open_model(str(random), device="cpu", threads=1).generator.draw(targets, references, features).copied
    assert told is not None
    assert 64 * np.abs(told.flow).max() > 2, "or its unit would not matter"
    if version < 3:
        (as_version_1 if version == 1 else as_version_2)(random)
    before = open_model(str(random), device="cpu", threads=1)
    assert before.spec.has_flow == (version > 1)
    assert (before.spec.network is None) == (version < 3)
    done = export(random, tmp_path / "anew", half=True)
    after = open_model(str(tmp_path / "anew"), device="cpu", threads=1)
    assert after.spec == done.spec
    assert after.spec == replace(
        before.spec,
        name="anew",
        has_flow=True,
        points=True,
        network=replace(COMPACT, drawn_kappa=KAPPA),
        created_with=after.spec.created_with,
        graphs=after.spec.graphs,
    )  # crop, mel, resting mouth, smoothing, licence, training data
    one, other = before.memory.recall(mel), after.memory.recall(mel)
    np.testing.assert_allclose(one.address, other.address, atol=2e-3)
    np.testing.assert_allclose(one.lip_feature, other.lip_feature, atol=0.02)
    was, drawn = (model.generator.draw(targets, references, features) for model in (before, after))
    assert np.abs(was.pixels.astype(int) - drawn.pixels).max() <= 1
    assert drawn.copied is not None
    np.testing.assert_allclose(drawn.copied.flow, told.flow, atol=1e-4)
    assert np.abs(drawn.copied.paint_mask.astype(int) - told.paint_mask).max() <= 1
    assert (tmp_path / "anew" / "MODEL_CARD.md").read_bytes() == b"# random\n"
    assert (tmp_path / "anew" / "adapted.json").read_bytes() == b"{}\n"
    again = load_weights(tmp_path / "anew", COMPACT)
    assert all(torch.equal(value, again[key]) for key, value in load_weights(random, COMPACT).items())


@pytest.mark.parametrize("kappa", [1.0, 8.0, 24.0, 31.5, 300.0])
def test_the_sharpness_of_a_bundle_is_known(random: Path, tmp_path: Path, kappa: float) -> None:
    """Without it the mouth would open less, or more. Only the graph of an older bundle knows it."""
    config, memory, _ = load_bundle_networks(random, bundle.load_spec(random))
    assert config.drawn_kappa == memory.memory.drawn_kappa == KAPPA
    other = tmp_path / "other"
    export(random, other, drawn_kappa=kappa)
    told, _, _ = load_bundle_networks(other, bundle.load_spec(other))
    as_version_2(other)
    config, memory, _ = load_bundle_networks(other, bundle.load_spec(other))
    assert config == told
    assert config.drawn_kappa == memory.memory.drawn_kappa == kappa


def test_weights_and_description_tell_of_the_same_network(random: Path) -> None:
    spec = bundle.load_spec(random)
    weights, config = read_weights(random)
    assert config == spec.network == replace(COMPACT, drawn_kappa=KAPPA)
    write_weights(random / "weights.safetensors", weights, replace(COMPACT, drawn_kappa=KAPPA + 1))
    with pytest.raises(CheckpointInvalid, match="are not of one network"):
        load_bundle_networks(random, spec)
    write_weights(random / "weights.safetensors", weights, replace(COMPACT, drawn_kappa=KAPPA, channels=24))
    with pytest.raises(CheckpointInvalid, match="are of another network than it says"):
        load_bundle_networks(random, spec)


def test_options_win_over_what_the_bundle_says(random: Path, prepared: Path, tmp_path: Path) -> None:
    done = export(
        random, tmp_path / "anew", name="other", rest_from=prepared, tap_distance_s=0.0, license_text="CC0-1.0", training_data="toys"
    )
    assert (done.spec.name, done.spec.tap_distance_s, done.spec.license, done.spec.training_data) == ("other", 0.0, "CC0-1.0", "toys")
    assert done.spec.rest_feature != bundle.load_spec(random).rest_feature


def test_a_bundle_may_take_its_own_place(random: Path, tmp_path: Path) -> None:
    as_version_1(random)
    with pytest.raises(OutputRefused, match="already holds a bundle; add --force"):
        export(random, random, half=True)
    export(random, random, half=True, force=True)
    assert bundle.load_spec(random).has_flow
    assert [file.name for file in tmp_path.iterdir()] == ["random"]


def test_the_command_keeps_the_bundles_smoothing_and_has_one_for_checkpoints(random: Path, checkpoint: Path, tmp_path: Path) -> None:
    export_command(random, tmp_path / "anew")
    export_command(checkpoint, tmp_path / "first")
    assert [bundle.load_spec(tmp_path / name).tap_distance_s for name in ("anew", "first")] == [0.07, 0.04]
    assert [bundle.load_spec(tmp_path / name).license for name in ("anew", "first")] == ["CC-BY-4.0", "unstated"]


def other_memory(folder: Path) -> None:
    """Weights of another memory than the graph's."""
    torch.manual_seed(6)
    weights, config = read_weights(folder)
    weights |= {f"memory.{key}": value for key, value in LipMemory(COMPACT).state_dict().items()}
    write_weights(folder / "weights.safetensors", weights, config)


def another_crop(folder: Path) -> None:
    """An older bundle that draws another crop than the preset of its weights."""
    rewrite_spec(folder, crop=replace(COMPACT.crop, drawn=(32, 64, 4, 60)), network=None)
    as_version_2(folder)


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), BundleInvalid, r"holds no bundle\.json"),
        (lambda folder: (folder / "memory.onnx").write_bytes(b"other"), BundleInvalid, "was altered since it was exported"),
        (lambda folder: other_memory(folder), CheckpointInvalid, "are not of one network"),
        (lambda folder: (folder / "weights.safetensors").unlink(), CheckpointInvalid, r"holds no readable weights\.safetensors"),
        (
            another_crop,
            CheckpointInvalid,
            "draws another crop .* than its weights' preset compact",
        ),
    ],
)
def test_a_folder_that_is_no_whole_bundle_is_refused(
    random: Path, tmp_path: Path, spoil: Callable[[Path], Any], error: type[Exception], says: str
) -> None:
    spoil(random)
    with pytest.raises(error, match=says) as caught:
        export(random, tmp_path / "anew")
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["random"]


@pytest.mark.parametrize(("name", "by"), [(bundle.FLOW, 2e-6), (bundle.PAINT_MASK, 2e-4), (bundle.FLOW, float("nan"))])
def test_each_output_is_held_to_its_own_scale(random: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, by: float) -> None:
    answer = runtime.Session.run

    def other(self: runtime.Session, feeds: Any) -> dict[str, Any]:
        return {key: value + np.float32(by) if key == name else value for key, value in answer(self, feeds).items()}

    monkeypatch.setattr(runtime.Session, "run", other)
    with pytest.raises(ExportFailed, match=r"generator\.onnx differs from torch by"):
        export(random, tmp_path / "anew")


# ---- what is refused


def test_a_bundle_is_replaced_with_force_alone_and_keeps_its_card(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy"
    out.mkdir()
    export(checkpoint, out)  # an empty folder is fine
    (out / "MODEL_CARD.md").write_text("# mine")
    before = contents(tmp_path)
    with pytest.raises(OutputRefused, match="already holds a bundle; add --force"):
        export(checkpoint, out, name="other")
    assert contents(tmp_path) == before
    export(checkpoint, out, name="other", force=True)
    assert bundle.load_spec(out).name == "other"
    assert (out / "MODEL_CARD.md").read_text() == "# mine"
    assert [file.name for file in tmp_path.iterdir()] == ["toy"]


def test_a_folder_that_holds_just_the_model_card_is_filled(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy"
    out.mkdir()
    (out / "MODEL_CARD.md").write_text("# mine")
    export(checkpoint, out)
    assert bundle.load_spec(out).name == "toy"
    assert (out / "MODEL_CARD.md").read_text() == "# mine"


def test_other_places_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for name, says in (("photos", "something else than a bundle"), ("file", "is a file"), ("missing/toy", "does not exist")):
        with pytest.raises(OutputRefused, match=says):
            export(checkpoint, tmp_path / name, force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "My Model"}, "name must be lower-case"),
        ({"license_text": ""}, "license must not be empty"),
        ({"tap_distance_s": float("nan")}, "tap_distance_s"),
    ],
)
def test_what_a_bundle_cannot_say_is_refused_in_one_line(checkpoint: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportFailed, match=says):
        export(checkpoint, tmp_path / "toy", **options)
    assert not list(tmp_path.iterdir())


def test_a_memory_checkpoint_is_no_generator(prepared: Path, tmp_path: Path) -> None:
    clips, plan = load_clips(prepared), toy_settings(steps=1)
    fabric = new_fabric(plan)
    run(MemoryStage(COMPACT, clips[:2], clips[2:], 1e-3, 0), fabric, tmp_path / "run", plan, resume=False, on_progress=lambda _: None)
    with pytest.raises(CheckpointInvalid, match="is of the memory stage; give one of lipdub train generator"):
        export(tmp_path / "run" / "latest.pt", tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"settings": {"stage": "generator"}},
        {"settings": {"stage": "generator", "network": COMPACT.to_dict()}, "modules": {}},
        {"settings": {"stage": "generator", "network": COMPACT.to_dict()}, "modules": {"averaged": {"memory.x": torch.zeros(1)}}},
        {"settings": [1], "modules": {}},
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    checkpoints.save(tmp_path / "c.pt", content)
    with pytest.raises(CheckpointInvalid, match=r"c\.pt' holds no generator") as caught:
        export(tmp_path / "c.pt", tmp_path / "toy")
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    content = checkpoints.load(checkpoint)
    spoiled = {**content, "modules": {"averaged": dict(content["modules"]["averaged"])}}
    key = "generator.decoder.picture.weight"
    spoiled["modules"]["averaged"][key] = torch.full_like(spoiled["modules"]["averaged"][key], float("nan"))
    checkpoints.save(tmp_path / "c.pt", spoiled)
    with pytest.raises(ExportFailed, match=r"generator\.onnx differs from torch by nan"):
        export(tmp_path / "c.pt", tmp_path / "toy")
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


# ---- failure on the way leaves nothing behind


def disagreeing(patch: pytest.MonkeyPatch, by: float) -> None:
    answer = runtime.Session.run
    patch.setattr(runtime.Session, "run", lambda self, feeds: {key: value + np.float32(by) for key, value in answer(self, feeds).items()})


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_at(patch: pytest.MonkeyPatch, name: str) -> None:
    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.name == name:
            write(self, content[: len(content) // 2])
            no_space()
        return write(self, content)

    patch.setattr(Path, "write_bytes", full)


def exporter_breaks(patch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("cannot trace\nthis\nnetwork")

    patch.setattr(torch.onnx, "export", broken)


def interrupted(patch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(exporting, "write_weights", stop)


def rename_fails(patch: pytest.MonkeyPatch) -> None:
    """Only the last rename, when the old bundle has already been moved out of the way."""
    rename = os.replace

    def fails(source: Any, target: Any) -> None:
        if str(source).endswith(".lipdub-part") and Path(source).is_dir():
            no_space()
        rename(source, target)

    patch.setattr(os, "replace", fails)


FAILURES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], type[BaseException], str]] = {
    "torch disagrees": (lambda patch: disagreeing(patch, 1.0), ExportFailed, "differs from torch by 1.*at most 1e-04"),
    "torch disagrees a little": (lambda patch: disagreeing(patch, 2e-4), ExportFailed, "differs from torch by 2"),
    "no numbers": (lambda patch: disagreeing(patch, float("nan")), ExportFailed, "differs from torch by nan"),
    "exporter": (exporter_breaks, ExportFailed, r"cannot write memory\.onnx: cannot trace this network"),
    "disk full at a graph": (lambda patch: full_disk_at(patch, "generator.onnx"), WriteFailed, "check the free space"),
    "disk full at the weights": (lambda patch: full_disk_at(patch, "weights.safetensors"), WriteFailed, "check the free space"),
    "disk full at the end": (lambda patch: patch.setattr(bundle, "finish", no_space), WriteFailed, "check the free space"),
    "Ctrl-C": (interrupted, KeyboardInterrupt, "^$"),
    "last rename": (rename_fails, WriteFailed, "check the free space"),
}


@pytest.mark.parametrize(("arrange", "error", "says"), FAILURES.values(), ids=FAILURES)
def test_a_failure_leaves_nothing_behind_and_an_old_bundle_as_it_was(
    checkpoint: Path, exported: tuple[Path, exporting.Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arrange: Callable[[pytest.MonkeyPatch], None], error: type[BaseException], says: str,
) -> None:  # fmt: skip
    old = tmp_path / "old"
    old.mkdir()
    for file in exported[0].iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    before = contents(tmp_path)
    arrange(monkeypatch)
    for out in (tmp_path / "new", old):
        with pytest.raises(error, match=says) as caught:
            export(checkpoint, out, force=True)
        assert "\n" not in str(caught.value)
        assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", no_space)
    with pytest.raises(WriteFailed, match="cannot write"):
        export(checkpoint, tmp_path / "toy")
