"""Bundles on disk: what is refused, and that the message says why."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import as_version_2, fake_spec, rewrite_spec, write_fake_bundle
from hypothesis import given
from hypothesis import strategies as st

from lipdub.bundles import bundle, expert
from lipdub.bundles.bundle import BundleSpec
from lipdub.bundles.network import NetworkConfig
from lipdub.errors import BundleInvalid, BundleNotFound
from lipdub.records import CropSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_fake_bundle(tmp_path / "fake")
    return tmp_path / "fake"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shelves with bundles, in place of the ones that ship; the working directory is an empty folder."""
    for at in ("shelf/compact", "shelf/paper", "checkout/draft", "checkout/compact"):
        write_fake_bundle(tmp_path / at)
    (tmp_path / "shelf" / "no-bundle").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(bundle, "_shelves", lambda: (tmp_path / "shelf", tmp_path / "checkout", tmp_path / "missing"))
    return tmp_path / "shelf"


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of a bundle.json by hand; ``None`` removes one."""
    file = folder / bundle.SPEC_FILE
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None or key not in changes}))


# ---- the spec


@given(
    rest=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    tap_distance_s=st.floats(0.0, 1.0),
    text=st.text(min_size=1),
    has_flow=st.booleans(),
    voice_bands=st.integers(0, 79),
)
def test_a_spec_survives_the_way_to_disk(rest: list[float], tap_distance_s: float, text: str, has_flow: bool, voice_bands: int) -> None:
    spec = replace(
        fake_spec(has_flow=has_flow),
        rest_feature=tuple(rest),
        lip_channels=len(rest),
        tap_distance_s=tap_distance_s,
        voice_bands=voice_bands,
        license=text,
        training_data=text,
    )
    assert BundleSpec.from_json(spec.to_json()) == spec
    assert hash(BundleSpec.from_json(spec.to_json())) == hash(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name must be"),
        ({"name": ""}, "name must be"),
        ({"backend": ""}, "backend"),
        ({"format_version": 1}, "format_version must be 3"),
        ({"has_flow": True, "crop": CropSpec(32, (16, 31, 4, 28), 16)}, "drawn must lie on cells of 4 px"),
        ({"slots": 0}, "slots must be positive"),
        ({"lip_channels": 3}, "rest_feature must hold lip_channels = 3 numbers, got 4"),
        ({"rest_feature": (0.0, 0.0, 0.0, float("nan"))}, "rest_feature must be finite"),
        ({"license": ""}, "license"),
        ({"graphs": {"memory.onnx": "0" * 64}}, "graphs must name generator.onnx, memory.onnx, got memory.onnx"),
        ({"graphs": {"memory.onnx": "0" * 64, "generator.onnx": "nonsense"}}, "sha256"),
        ({"tap_distance_s": -0.1}, "tap_distance_s"),
        ({"tap_distance_s": float("nan")}, "tap_distance_s"),
        ({"voice_bands": -1}, "voice_bands"),
        ({"voice_bands": 80}, "voice_bands"),
    ],
)
def test_a_spec_that_does_not_fit_together_is_not_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(fake_spec(), **changes)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["slots"], None, "key 'slots' is missing"),
        (["tap_distance_s"], None, "key 'tap_distance_s' is missing"),
        (["voice_bands"], None, "key 'voice_bands' is missing"),
        (["voice_bands"], 80, "voice_bands"),
        (["voice_bands"], -1, "voice_bands"),
        (["has_flow"], None, "key 'has_flow' is missing"),
        (["has_flow"], 1, "key 'has_flow' must be of type bool, got 1"),
        (["has_flow"], "yes", "key 'has_flow' must be of type bool"),
        (["format_version"], 3.0, "key 'format_version' must be of type int"),
        (["crop", "drawn"], None, "key 'crop.drawn' is missing"),
        (["speed"], 3, "key 'speed' is unknown"),
        (["mel", "speed"], 3, "key 'mel.speed' is unknown"),
        (["slots"], "8", "key 'slots' must be of type int, got '8'"),
        (["slots"], True, "key 'slots' must be of type int"),
        (["slots"], 8.0, "key 'slots' must be of type int"),
        (["license"], 1, "key 'license' must be of type str"),
        (["tap_distance_s"], "fast", "key 'tap_distance_s' must be of type float"),
        (["crop"], [1], "key 'crop' must be a JSON object"),
        (["crop", "drawn"], [1, 2, 3], "key 'crop.drawn' must hold 4 values, got 3"),
        (["crop", "drawn"], [1, 2, 3, "4"], r"key 'crop.drawn\[3\]' must be of type int"),
        (["crop", "drawn"], [0, 99, 0, 9], "crop.drawn must lie in the crop"),
        (["mel", "hop"], 0, "mel."),
        (["rest_feature"], 0.0, "key 'rest_feature' must be of type"),
        (["rest_feature"], [0.0], "rest_feature must hold lip_channels = 4 numbers"),
        (["graphs", "memory.onnx"], 5, "key 'graphs.memory.onnx' must be of type str"),
        (["graphs"], {"../memory.onnx": "0" * 64}, "graphs must name"),
    ],
)
def test_a_key_that_is_wrong_is_named(folder: Path, path: list[str], value: object, message: str) -> None:
    data = json.loads((folder / bundle.SPEC_FILE).read_text())
    within = data
    for key in path[:-1]:
        within = within[key]
    if value is None:
        del within[path[-1]]
    else:
        within[path[-1]] = value
    (folder / bundle.SPEC_FILE).write_text(json.dumps(data))
    with pytest.raises(BundleInvalid, match=message) as caught:
        bundle.load_spec(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"fake"', "\x00"])
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(BundleInvalid, match=r"is no JSON|must be a JSON object"):
        BundleSpec.from_json(text)


# ---- a bundle's folder


def test_finish_writes_what_load_spec_reads(tmp_path: Path) -> None:
    spec = write_fake_bundle(tmp_path)
    assert set(spec.graphs) == set(bundle.TENSORS)
    assert bundle.load_spec(tmp_path) == spec
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bundle.json", "generator.onnx", "memory.onnx"]


def test_finish_refuses_a_bundle_without_its_graphs(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"memory\.onnx is missing"):
        bundle.finish(tmp_path, fake_spec())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("graph", list(bundle.TENSORS))
def test_an_altered_graph_is_refused(folder: Path, graph: str) -> None:
    content = bytearray((folder / graph).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / graph).write_bytes(content)
    with pytest.raises(BundleInvalid, match=rf"{graph} was altered since it was exported: hash differs"):
        bundle.load_spec(folder)


@pytest.mark.parametrize("graph", list(bundle.TENSORS))
def test_a_missing_graph_is_named(folder: Path, graph: str) -> None:
    (folder / graph).unlink()
    with pytest.raises(BundleInvalid, match=f"{graph} is missing"):
        bundle.load_spec(folder)
    (folder / graph).mkdir()
    with pytest.raises(BundleInvalid, match=f"{graph} cannot be read"):
        bundle.load_spec(folder)


@pytest.mark.parametrize("version", [0, 4, -1, "1", [1], True])
def test_another_format_version_is_refused_before_its_keys_are_looked_at(folder: Path, version: object) -> None:
    edit(folder, format_version=version, a_key_of_the_future=1, slots=None)
    with pytest.raises(BundleInvalid, match=rf"is of format version {re.escape(repr(version))}, this lipdub reads 1 and 2 and 3"):
        bundle.load_spec(folder)


def test_a_bundle_of_version_1_is_read_as_one_that_does_not_tell_of_copies(folder: Path) -> None:
    now = bundle.load_spec(folder)
    as_version_2(folder)
    edit(folder, format_version=1, copies=None, voice_bands=None)
    assert bundle.load_spec(folder) == now
    assert (now.format_version, now.has_flow, now.voice_bands, now.network) == (3, False, 0, None)


def test_a_bundle_of_version_2_is_read_as_one_that_does_not_tell_of_its_network(folder: Path) -> None:
    now = rewrite_spec(folder, tap_distance_s=0.03, voice_bands=2)
    as_version_2(folder)
    assert "smoothing_s" in (folder / bundle.SPEC_FILE).read_text()
    assert bundle.load_spec(folder) == now
    edit(folder, tap_distance_s=0.02)
    with pytest.raises(BundleInvalid, match="key 'tap_distance_s' is unknown"):
        bundle.load_spec(folder)


NETWORK = NetworkConfig(
    preset="toy", size=32, drawn=(16, 32, 4, 28), crop_stride=4, slots=8, channels=4, audio_widths=(1, 2, 3, 4),
    audio_strides=((1, 1), (3, 1), (3, 3), (3, 2)), lip_widths=(1, 2, 3, 4), lip_pool=1, face_widths=(4, 5, 6), decoder_widths=(6, 5),
    residual=True, modulated=False, fusion_dropout=0.1,
)  # fmt: skip


def test_a_spec_tells_of_its_network(folder: Path) -> None:
    assert rewrite_spec(folder, network=NETWORK) == bundle.load_spec(folder)
    for other in (replace(NETWORK, slots=9), replace(NETWORK, channels=5), replace(NETWORK, has_flow=True), replace(NETWORK, size=64)):
        with pytest.raises(ValueError, match="network must have the bundle's crop, mel, encoder, slots, lip_channels and has_flow"):
            replace(fake_spec(), network=other)
    with pytest.raises(ValueError, match="drawn_kappa must be positive"):
        replace(NETWORK, drawn_kappa=0.0)
    data = json.loads((folder / bundle.SPEC_FILE).read_text())
    del data["network"]["residual"]
    (folder / bundle.SPEC_FILE).write_text(json.dumps(data))
    with pytest.raises(BundleInvalid, match=r"key 'network\.residual' is missing"):
        bundle.load_spec(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copies": False}, "key 'copies' is unknown"),
        ({"copies": None, "voice_bands": 0}, "key 'voice_bands' is unknown"),
        ({"copies": True}, "key 'copies' is unknown"),
        ({"copies": None, "voice_bands": None, "speed": 1}, "key 'speed' is unknown"),
        ({"copies": None, "voice_bands": None, "slots": None}, "key 'slots' is missing"),
        ({"copies": None, "voice_bands": None, "slots": "8"}, "key 'slots' must be of type int"),
    ],
)
def test_nothing_else_of_version_1_is_taken_lightly(folder: Path, changes: dict[str, Any], message: str) -> None:
    as_version_2(folder)
    edit(folder, format_version=1, **changes)
    with pytest.raises(BundleInvalid, match=message):
        bundle.load_spec(folder)


def test_an_expert_has_a_format_of_its_own() -> None:
    text = json.dumps({"format_version": 1})
    with pytest.raises(BundleInvalid, match=r"expert.json is of format version 1, this lipdub reads 2: "):
        expert.ExpertSpec.from_json(text)


def test_an_export_that_did_not_finish_is_refused(folder: Path) -> None:
    edit(folder, graphs={})
    with pytest.raises(BundleInvalid, match="names no graphs"):
        bundle.load_spec(folder)


def test_folders_that_are_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"holds no bundle\.json"):
        bundle.load_spec(tmp_path)
    with pytest.raises(BundleNotFound, match="there is no folder"):
        bundle.load_spec(tmp_path / "nowhere")
    (tmp_path / bundle.SPEC_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleInvalid, match="cannot be read"):
        bundle.load_spec(tmp_path)


# ---- names and paths


def test_available_lists_every_name_once(shelf: Path) -> None:
    assert bundle.available() == ["compact", "draft", "paper"]


def test_a_name_is_found_on_the_first_shelf_that_has_it(shelf: Path) -> None:
    assert bundle.resolve("compact") == shelf / "compact"
    assert bundle.resolve("draft") == shelf.parent / "checkout" / "draft"


def test_a_name_wins_over_a_folder_and_a_path_is_a_folder(shelf: Path) -> None:
    Path("compact").mkdir()
    Path("mine").mkdir()
    assert bundle.resolve("compact") == shelf / "compact"
    assert bundle.resolve("./compact").resolve() == Path("compact").resolve()
    assert bundle.resolve("mine") == Path("mine")
    assert bundle.resolve(str(shelf / "paper")) == shelf / "paper"


@pytest.mark.parametrize("asked", ["compakt", "no-bundle", "", "./compakt", "a/b", "../shelf/none", "Compact!"])
def test_an_unknown_name_or_path_lists_the_names(shelf: Path, asked: str) -> None:
    with pytest.raises(BundleNotFound, match="compact, draft, paper"):
        bundle.resolve(asked)


def test_a_file_in_place_of_a_folder_is_explained(shelf: Path) -> None:
    with pytest.raises(BundleNotFound, match="is a file; give the folder"):
        bundle.resolve(str(shelf / "paper" / bundle.SPEC_FILE))


def test_without_any_bundle_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_shelves", tuple)
    with pytest.raises(BundleNotFound, match="no bundle came with this lipdub"):
        bundle.resolve("compact")


def test_the_shelves_are_the_package_and_the_checkout() -> None:
    package = Path(bundle.__file__).parent.parent
    assert bundle._shelves()[0] == package / "models"
    if package.parent.name == "src":
        assert bundle._shelves()[1] == package.parents[1] / "models"


# ---- tensors


def test_tensors_have_the_sizes_of_the_spec() -> None:
    spec = fake_spec(size=32, drawn=(16, 31, 4, 28), slots=8, channels=4)
    memory, generator = bundle.tensors("memory.onnx", spec), bundle.tensors("generator.onnx", spec)
    assert memory.inputs == {"mel": ("B", 1, 80, 16)}
    assert memory.outputs == {"address": ("B", 8), "lip_feature": ("B", 4)}
    assert generator.inputs == {"target": ("B", 3, 32, 32), "reference": ("B", 3, 32, 32), "lip_feature": ("B", 4)}
    assert generator.outputs == {"face": ("B", 3, 15, 24)}
    copying = bundle.tensors("generator.onnx", fake_spec(size=32, drawn=(16, 32, 4, 28), has_flow=True))
    assert copying.inputs == generator.inputs
    assert copying.outputs == {"face": ("B", 3, 16, 24), "painted": ("B", 1, 16, 24), "flow": ("B", 2, 4, 6)}


def test_a_crop_spec_comes_back_as_the_record(folder: Path) -> None:
    assert bundle.load_spec(folder).crop == CropSpec(size=32, drawn=(16, 32, 4, 28), masked_from=16)
