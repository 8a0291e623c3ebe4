"""Whisper's weights out of the files that people have: equal whatever the format, and one line for whatever is damaged."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from whisper_files import DIMS, WRITERS, tiny_weights, write_ctranslate2, write_hugging_face, write_openai

from lipdub.errors import TrainingError
from lipdub.train.whisper_network import WhisperEncoder
from lipdub.train.whisper_weights import WhisperDims, expected_shapes, read_whisper_encoder, weights_file

FORMATS = tuple(WRITERS)


def written(folder: Path, kind: str, state: dict[str, Tensor], **options: Any) -> Path:
    name, write = WRITERS[kind]
    return write(folder / name, state, **options)


class Whole(dict[str, bytes]):
    """A whole file of each format."""

    def __repr__(self) -> str:  # hypothesis writes an example that fails
        return "Whole()"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole({kind: written(folder, kind, tiny_weights()).read_bytes() for kind in FORMATS})


def refused(path: Path) -> str:
    """The one line that says why `path` is refused; it names the file."""
    with pytest.raises(TrainingError) as caught:
        read_whisper_encoder(path)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    return said


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value), name


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_read_back_as_they_were(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    state = tiny_weights(dtype=dtype)
    found = read_whisper_encoder(written(tmp_path, kind, state, dtype=dtype))
    assert found.dims == DIMS
    assert_equal(found.state, state)
    # They are what the network takes.
    WhisperEncoder.of(found, (0, 1, 2, 3))


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_hugging_face_writes_two_prefixes(tmp_path: Path, prefix: str) -> None:
    state = tiny_weights(seed=1)
    assert_equal(read_whisper_encoder(write_hugging_face(tmp_path / "model.safetensors", state, prefix=prefix)).state, state)


@pytest.mark.parametrize("name", ["weights", "weights.bin", "weights.pt"])
@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_file_is_called_does_not_matter(tmp_path: Path, whole: Whole, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(whole[kind])
    assert_equal(read_whisper_encoder(tmp_path / name).state, tiny_weights())


@given(
    layers=st.integers(1, 12), heads=st.sampled_from([1, 2]), positions=st.integers(1, 20), bands=st.integers(1, 6),
    kind=st.sampled_from(FORMATS), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)  # fmt: skip
@settings(max_examples=12)
def test_sizes_are_told_by_the_weights(
    tmp_path_factory: pytest.TempPathFactory, layers: int, heads: int, positions: int, bands: int, kind: str, dtype: torch.dtype
) -> None:
    dims = WhisperDims(bands, 64 * heads, heads, layers, positions)
    state = tiny_weights(dims, dtype=dtype)
    assert set(state) == set(expected_shapes(dims))
    options: dict[str, Any] = {"openai": {"dims": dims}, "ctranslate2": {"heads": heads}}.get(kind, {})
    found = read_whisper_encoder(written(tmp_path_factory.mktemp("sizes"), kind, state, dtype=dtype, **options))
    assert found.dims == dims
    assert_equal(found.state, state)


@pytest.mark.parametrize("version", [4, 5, 6])
def test_ctranslate2s_formats_of_late_years_are_read(tmp_path: Path, version: int) -> None:
    assert_equal(read_whisper_encoder(write_ctranslate2(tmp_path / "model.bin", tiny_weights(), version=version)).state, tiny_weights())


@pytest.mark.parametrize("version", [1, 3, 7, 2**31])
def test_ctranslate2s_other_formats_are_refused(tmp_path: Path, version: int) -> None:
    assert f"format {version}" in refused(write_ctranslate2(tmp_path / "model.bin", tiny_weights(), version=version))


def test_two_parts_of_a_file_are_read_when_put_together(tmp_path: Path, whole: Whole) -> None:
    """As `cat` does."""
    data = whole["ctranslate2"]
    parts = data[: len(data) // 2], data[len(data) // 2 :]
    for number, part in enumerate(parts):
        (tmp_path / f"model.bin.{number}").write_bytes(part)
    assert "cat" in refused(tmp_path / "model.bin.0")
    assert "second part" in refused(tmp_path / "model.bin.1")
    (tmp_path / "model.bin").write_bytes(b"".join(parts))
    assert_equal(read_whisper_encoder(tmp_path / "model.bin").state, tiny_weights())


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_with_one_candidate_is_as_good_as_the_file(tmp_path: Path, whole: Whole, kind: str) -> None:
    file = tmp_path / WRITERS[kind][0]
    file.write_bytes(whole[kind])
    (tmp_path / "config.json").write_text("{}")
    assert weights_file(tmp_path) == weights_file(file) == file
    assert_equal(read_whisper_encoder(tmp_path).state, tiny_weights())


def test_a_folder_without_a_candidate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "holds 0 .pt files" in refused(tmp_path)


def test_a_folder_with_several_candidates_is_refused(tmp_path: Path) -> None:
    for name in ("base.pt", "tiny.pt"):
        write_openai(tmp_path / name, tiny_weights())
    assert "holds 2 .pt files" in refused(tmp_path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_whisper_encoder(tmp_path / "absent.pt")


# -------------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("content", [b"", b"\0", b"hello", b"PK\x03\x04", b"\0" * 5000, b'\x02\0\0\0\0\0\0\0{"'], ids=repr)
@pytest.mark.parametrize("name", ["tiny.pt", "model.bin", "model.safetensors"])
def test_what_is_no_weights_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


@given(kind=st.sampled_from(FORMATS), share=st.floats(0, 0.9999))
@settings(max_examples=40)
def test_a_file_that_breaks_off_is_refused(tmp_path_factory: pytest.TempPathFactory, whole: Whole, kind: str, share: float) -> None:
    data = whole[kind]
    if kind == "ctranslate2":  # behind the tensors stand other names, which nobody needs
        data = data[: data.rindex(b"encoder/pre_norm")]
    file = tmp_path_factory.mktemp("cut") / WRITERS[kind][0]
    file.write_bytes(data[: int(share * len(data))])
    refused(file)


@given(
    kind=st.sampled_from(FORMATS),
    places=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    value=st.integers(0, 255),
    near_names=st.booleans(),
)
@settings(max_examples=80)
def test_damaged_bytes_are_one_line_or_other_numbers(
    tmp_path_factory: pytest.TempPathFactory, whole: Whole, kind: str, places: list[float], value: int, near_names: bool
) -> None:
    """Never another exception. Most bytes are numbers; names, sizes and pickles are aimed at by turns."""
    data = bytearray(whole[kind])
    marks = [at for mark in (b"encoder", b"attn", b"dims", b"data_offsets", b"PK") for at in places_of(whole[kind], mark)]
    for place in places:
        at = int(place * (len(data) - 1))
        if near_names:
            at = min(len(data) - 1, max(0, marks[int(place * (len(marks) - 1))] + at % 80 - 20))
        data[at] = value
    file = tmp_path_factory.mktemp("damaged") / WRITERS[kind][0]
    file.write_bytes(bytes(data))
    try:
        found = read_whisper_encoder(file)
    except TrainingError:
        refused(file)
    else:
        assert {name: tuple(tensor.shape) for name, tensor in found.state.items()} == expected_shapes(found.dims)


def places_of(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0 and len(found) < 200:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("blocks.1.mlp.0.weight", None),
        ("ln_post.bias", None),
        ("conv1.weight", torch.zeros(64, 80)),
        ("conv2.bias", torch.zeros(63)),
        ("positional_embedding", torch.zeros(100, 65)),
        ("blocks.0.attn.out.weight", torch.zeros(64, 63)),
        ("blocks.0.attn_ln.weight", torch.full((64,), float("nan"))),
    ],
)
def test_a_tensor_that_is_missing_misshapen_or_no_number_is_told(tmp_path: Path, kind: str, name: str, value: Tensor | None) -> None:
    state = tiny_weights()
    if value is None:
        del state[name]
    else:
        state[name] = value
    said = refused(written(tmp_path, kind, state))
    assert "download" in said or "give" in said


@pytest.mark.parametrize("kind", FORMATS)
def test_a_decoder_alone_is_refused(tmp_path: Path, kind: str) -> None:
    assert "holds no Whisper encoder" in refused(written(tmp_path, kind, {}))


@pytest.mark.parametrize("heads", [0, 3, 65])
def test_heads_that_do_not_share_the_channels_are_refused(tmp_path: Path, heads: int) -> None:
    assert "sizes are odd" in refused(write_ctranslate2(tmp_path / "model.bin", tiny_weights(), heads=heads))


def test_quantised_weights_are_refused_with_what_to_do(tmp_path: Path) -> None:
    def quantise(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            if name.startswith("encoder/layer") and name.endswith("/weight") and tensors[name].dim() == 2:
                tensors[f"{name}_scale"] = torch.ones(len(tensors[name]))
                tensors[name] = tensors[name].to(torch.int8)

    assert "quantised" in refused(write_ctranslate2(tmp_path / "model.bin", tiny_weights(), change=quantise))


@pytest.mark.parametrize(
    "name", ["encoder/layer_x/ffn/linear_0/weight", "encoder/layer_0", "encoder/layer_0/self_attention/linear_0/weight"]
)
def test_ctranslate2s_odd_names_and_shapes_are_refused(tmp_path: Path, name: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.zeros(2, 64)

    refused(write_ctranslate2(tmp_path / "model.bin", tiny_weights(), change=change))


@pytest.mark.parametrize("name", ["model.encoder.layers.0", "model.encoder.layers", "model.encoder.odd", "encoder."])
def test_hugging_faces_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    write_hugging_face(tmp_path / "whole.safetensors", tiny_weights())
    tensors = safetensors.torch.load_file(tmp_path / "whole.safetensors") | {name: torch.zeros(2)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"dims": {}, "model_state_dict": {}},
        {"dims": {"n_audio_head": 1}, "model_state_dict": {"encoder.conv1.weight": 3}},
        {"dims": {"n_audio_head": "many"}, "model_state_dict": {}},
        {"dims": {"n_audio_head": 1}, "model_state_dict": [1, 2]},
        {"dims": {"n_audio_head": 1}, "model_state_dict": {7: torch.zeros(1)}},
        [1, 2],
        torch.zeros(3),
    ],
    ids=repr,
)
def test_another_checkpoint_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    refused(tmp_path / "other.pt")


# ----------------------------------------------------------------------------------------------------- nothing is executed


class Runs:
    """Unpickled, it makes the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["beside", "in the weights", "a bare pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path, where: str) -> None:
    state: dict[str, Any] = {f"encoder.{name}": value for name, value in tiny_weights().items()}
    content: dict[str, Any] = {"dims": {"n_audio_head": 1}, "model_state_dict": state}
    (content if where == "beside" else state)["encoder.more"] = Runs(tmp_path / "ran")
    file = tmp_path / "evil.pt"
    if where == "a bare pickle":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("evil/data.pkl", pickle.dumps(Runs(tmp_path / "ran")))
            archive.writestr("evil/version", "3\n")
    else:
        torch.save(content, file)
    refused(file)
    assert not (tmp_path / "ran").exists()
    # It is one that would.
    if where == "beside":
        torch.load(file, weights_only=False)
        assert (tmp_path / "ran").exists()
