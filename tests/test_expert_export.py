"""The exported expert: the same answers as torch, whole or not at all, and what is refused when it is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from test_expert import TOY, USE, bar_clip
from toys import SIZE

from lipdub import runtime
from lipdub.bundles import bundle
from lipdub.bundles import expert as judging
from lipdub.bundles.expert import ExpertSpec, open_expert
from lipdub.cli.export import export_onnx as export_command
from lipdub.errors import BundleInvalid, BundleNotFound, CheckpointInvalid, ExportFailed, OutputRefused
from lipdub.train import checkpoints
from lipdub.train.expert_export import ExportedExpert, export_expert
from lipdub.train.expert_network import SyncNet, load_expert
from lipdub.train.shifts import clip_lip_windows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = SyncNet(TOY)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    content = {"settings": {"stage": "expert", "network": TOY.to_dict()}, "modules": {"averaged": model.state_dict()}}
    checkpoints.save(path, content)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, ExportedExpert]:
    out = tmp_path_factory.mktemp("models") / "expert"
    return out, export_expert(checkpoint, out, license_text="CC0-1.0", training_data="bars")


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder"
        for file in sorted(folder.rglob("*"))
    }


def test_the_folder_says_what_it_holds(exported: tuple[Path, ExportedExpert]) -> None:
    out, done = exported
    assert sorted(contents(out)) == ["expert.json", "expert_lips.onnx", "expert_sound.onnx", "weights.safetensors"]
    spec = judging.load_spec(out)
    assert spec == done.spec == ExpertSpec.from_json(spec.to_json())
    assert (spec.name, spec.license, spec.training_data, spec.embedding) == ("expert", "CC0-1.0", "bars", TOY.embedding)
    assert (spec.crop.size, spec.crop.drawn, spec.encoder) == (TOY.size, TOY.box, USE)
    assert "late" in spec.offsets
    assert set(done.differences) == {"expert_lips.onnx", "expert_sound.onnx"}
    assert all(0 <= difference <= done.tolerance == 1e-4 for difference in done.differences.values())
    assert done.bytes == sum(file.stat().st_size for file in out.iterdir())


@pytest.mark.parametrize("count", [0, 1, 2, 7, 70])
def test_the_opened_expert_answers_as_torch_does(exported: tuple[Path, ExportedExpert], checkpoint: Path, count: int) -> None:
    """Lips of whole crops, windows centred with the ends repeated; batches of any size."""
    opened, model, clip = open_expert(exported[0], threads=1), load_expert(checkpoint), bar_clip(0)
    crops = np.ascontiguousarray(clip.crops[:count, 8:-8, 8:-8])
    windows = clip.features_of(USE).windows(clip.times_s[:count], USE.taps)
    lips, sounds = opened.embed_lips(crops), opened.embed_sound(windows)
    assert lips.shape == sounds.shape == (count, TOY.embedding)
    assert lips.dtype == sounds.dtype == np.float32
    if count:
        with torch.no_grad():
            (frames,) = clip_lip_windows(clip, count, model)
            np.testing.assert_allclose(lips, model.embed_lips(frames).numpy(), atol=1e-4)
            np.testing.assert_allclose(sounds, model.embed_sound(torch.from_numpy(windows)).numpy(), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(lips, axis=1), 1.0, atol=1e-4)
    assert opened.provider == "CPUExecutionProvider"


def test_what_has_another_shape_or_type_is_refused(exported: tuple[Path, ExportedExpert]) -> None:
    opened = open_expert(exported[0])
    for crops in (np.zeros((2, SIZE, SIZE + 1, 3), np.uint8), np.zeros((2, SIZE, SIZE, 3), np.float32)):
        with pytest.raises(ValueError, match="crops must be uint8"):
            opened.embed_lips(crops)
    for windows in (np.zeros((2, 1, 7, 4), np.float32), np.zeros((2, 7, 4))):
        with pytest.raises(ValueError, match="windows must be float32"):
            opened.embed_sound(windows)


def test_an_exported_folder_serves_as_a_checkpoint(exported: tuple[Path, ExportedExpert], checkpoint: Path) -> None:
    again, first = load_expert(exported[0]), load_expert(checkpoint)
    assert again.config == replace(first.config, dropout=again.config.dropout)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    for key, value in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, atol=1e-3, rtol=1e-3)


def test_half_weights_are_close(checkpoint: Path, exported: tuple[Path, ExportedExpert], tmp_path: Path) -> None:
    half = export_expert(checkpoint, tmp_path / "half", half=True)
    assert 0 < max(half.differences.values()) <= half.tolerance
    clip = bar_clip(0)
    windows = clip.features_of(USE).windows(clip.times_s[:5], USE.taps)
    one, other = (open_expert(folder).embed_sound(windows) for folder in (exported[0], tmp_path / "half"))
    np.testing.assert_allclose(one, other, atol=0.02)


def test_the_command_tells_an_expert_from_a_generator(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_command(checkpoint, tmp_path / "expert")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["expert_lips.onnx", "expert_sound.onnx"]
    assert lines[2].startswith("wrote ")
    assert open_expert(tmp_path / "expert").spec.name == "expert"


# ---- names and refusals


def test_a_name_is_looked_for_on_the_shelves(
    exported: tuple[Path, ExportedExpert], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundle, "_shelves", lambda: (exported[0].parent,))
    assert open_expert().spec == open_expert(exported[0]).spec
    with pytest.raises(BundleNotFound, match=r"at 'other'; give the path of a folder with expert\.json.*names there are: expert"):
        open_expert("other")
    assert bundle.available() == [], "an expert is no bundle to dub with"


DAMAGES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no spec": (lambda folder: (folder / "expert.json").unlink(), BundleInvalid, r"holds no expert\.json"),
    "no JSON": (lambda folder: (folder / "expert.json").write_text("{"), BundleInvalid, "is no JSON"),
    "another version": (lambda folder: edit(folder, format_version=9), BundleInvalid, "format version 9"),
    "a key too many": (lambda folder: edit(folder, speed=3), BundleInvalid, "key 'speed' is unknown"),
    "widths": (lambda folder: edit(folder, lip_widths=[1, 2]), BundleInvalid, "must hold 4 widths"),
    "no graphs": (lambda folder: edit(folder, graphs={}), BundleInvalid, "names no graphs"),
    "another window": (lambda folder: edit(folder, frames=3), BundleInvalid, "expected"),
    "altered": (lambda folder: (folder / "expert_lips.onnx").write_bytes(b"0"), BundleInvalid, "was altered"),
    "graph missing": (lambda folder: (folder / "expert_sound.onnx").unlink(), BundleInvalid, "is missing"),
}  # fmt: skip


def edit(folder: Path, **changes: object) -> None:
    file = folder / "expert.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("damage", "error", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_expert_is_refused(
    exported: tuple[Path, ExportedExpert], tmp_path: Path, damage: Callable[[Path], object], error: type[Exception], says: str
) -> None:
    folder = tmp_path / "expert"
    folder.mkdir()
    for file in exported[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    with pytest.raises(error, match=says) as caught:
        open_expert(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_usable_weights_is_no_expert_to_train_with(exported: tuple[Path, ExportedExpert], tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="holds no sync expert"):
        load_expert(tmp_path)
    (tmp_path / "expert.json").write_text((exported[0] / "expert.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointInvalid, match="holds no sync expert") as caught:
        load_expert(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_expert_is_replaced_with_force_alone(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "expert"
    export_expert(checkpoint, out)
    (out / "MODEL_CARD.md").write_text("# mine")
    before = contents(tmp_path)
    with pytest.raises(OutputRefused, match="already holds a bundle; add --force"):
        export_expert(checkpoint, out)
    answer = runtime.Session.run
    with monkeypatch.context() as patch:
        patch.setattr(runtime.Session, "run", lambda self, feeds: {key: value + 1 for key, value in answer(self, feeds).items()})
        with pytest.raises(ExportFailed, match=r"expert_lips\.onnx differs from torch by 1"):
            export_expert(checkpoint, out, force=True)
    assert contents(tmp_path) == before
    export_expert(checkpoint, out, force=True, name="other")
    assert judging.load_spec(out).name == "other"
    assert (out / "MODEL_CARD.md").read_text() == "# mine"
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    with pytest.raises(OutputRefused, match="holds something else"):
        export_expert(checkpoint, tmp_path / "bundle", force=True)
