"""``lipdub train encoder``: from a file of Whisper's weights to an encoder folder that answers as torch does. Whole or not at all."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import onnx
import pytest
import torch
from commands import Run, in_this_process
from torch import Tensor, nn
from whisper_files import DIMS, WRITERS, tiny_weights, write_openai

from lipdub.bundles import encoder
from lipdub.errors import ExportFailed, OutputRefused, TrainingError, WriteFailed
from lipdub.speech.encoder import SpeechEncoder, feature_track, grid_windows
from lipdub.speech.whisper_mel import RATE_HZ
from lipdub.train import encoder_export
from lipdub.train.encoder_export import LAYERS, export_encoder
from lipdub.train.whisper_network import WhisperEncoder
from lipdub.train.whisper_weights import read_whisper_encoder

DEEP = replace(DIMS, n_layer=5)
"""Enough blocks for the layers of the command."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 1.4 s in the place of 14 s."""
    monkeypatch.setattr(encoder_export, "CORE_S", 1.0)
    monkeypatch.setattr(encoder_export, "CONTEXT_S", 0.2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openai(tmp_path_factory.mktemp("weights") / "tiny.pt", tiny_weights(DEEP), DEEP)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Path, encoder_export.ExportedEncoder]:
    out = tmp_path_factory.mktemp("models") / "ear"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_export, "CORE_S", 1.0)
        patch.setattr(encoder_export, "CONTEXT_S", 0.2)
        return out, export_encoder(weights, out, source="made by a test")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `lipdub` with arguments in this process."""
    with in_this_process(monkeypatch, capfd) as run:
        yield run


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.clip(0.2 * np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ)), -1, 1).astype(np.float32)


def contents(folder: Path) -> dict[str, str]:
    """Everything at and below `folder`, by name and hash."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder"
        for file in sorted(folder.rglob("*"))
    }


def one_line(said: str) -> str:
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


# ---------------------------------------------------------------------------------------------------------- the network


def by_torchs_own_layers(state: dict[str, Tensor], mel: Tensor) -> list[Tensor]:
    """States before the first block, after each, and the output, (B, T, C) each, by ``nn.TransformerEncoderLayer``."""
    x = nn.functional.gelu(nn.functional.conv1d(mel, state["conv1.weight"], state["conv1.bias"], padding=1))
    x = nn.functional.gelu(nn.functional.conv1d(x, state["conv2.weight"], state["conv2.bias"], stride=2, padding=1)).transpose(1, 2)
    x = x + state["positional_embedding"][: x.shape[1]]
    channels = x.shape[2]
    found = [x]
    for number in range(DEEP.n_layer):
        of = {name.removeprefix(f"blocks.{number}."): value for name, value in state.items() if name.startswith(f"blocks.{number}.")}
        layer = nn.TransformerEncoderLayer(channels, DEEP.n_head, 4 * channels, 0.0, "gelu", batch_first=True, norm_first=True)
        parts = {
            "self_attn.in_proj_weight": torch.cat([of[f"attn.{part}.weight"] for part in ("query", "key", "value")]),
            "self_attn.in_proj_bias": torch.cat([of["attn.query.bias"], torch.zeros(channels), of["attn.value.bias"]]),
        }
        names = {"self_attn.out_proj": "attn.out", "linear1": "mlp.0", "linear2": "mlp.2", "norm1": "attn_ln", "norm2": "mlp_ln"}
        parts |= {f"{theirs}.{kind}": of[f"{ours}.{kind}"] for theirs, ours in names.items() for kind in ("weight", "bias")}
        layer.load_state_dict(parts)
        x = layer(x)
        found.append(x)
    return [*found, nn.functional.layer_norm(x, (channels,), state["ln_post.weight"], state["ln_post.bias"])]


@torch.no_grad()
def test_the_network_is_a_pre_norm_transformer(weights: Path) -> None:
    read = read_whisper_encoder(weights)
    layers = tuple(range(DEEP.n_layer + 2))
    mel = torch.randn(2, 80, 40)
    found = WhisperEncoder.of(read, layers)(mel)
    expected = by_torchs_own_layers(read.state, mel)
    assert found.shape == (2, len(layers), 20, 64)
    for layer in layers:
        raw = expected[layer]
        wanted = raw if layer == layers[-1] else nn.functional.layer_norm(raw, (64,))
        torch.testing.assert_close(found[:, layer], wanted, atol=1e-4, rtol=1e-4)
    # Fewer layers are the same ones, and what lies behind them is not built.
    some = WhisperEncoder.of(read, (1, 3))
    torch.testing.assert_close(some(mel), found[:, [1, 3]])
    assert len(some.blocks) == 3
    assert some.ln_post is None


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (-1,), (7,)])
def test_layers_that_cannot_be_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layers must rise from 0 to at most 6"):
        WhisperEncoder(DEEP, layers)


# ------------------------------------------------------------------------------------------------------- what is written


def test_the_folder_is_whole(exported: tuple[Path, encoder_export.ExportedEncoder], weights: Path) -> None:
    out, done = exported
    assert sorted(contents(out)) == ["LICENSE", "encoder.json", "encoder.onnx"]
    assert encoder.load_spec(out) == done.spec
    assert (done.spec.name, done.spec.layers, done.spec.channels) == ("ear", LAYERS, 64 * len(LAYERS))
    assert done.spec.source == f"made by a test; sha256 of tiny.pt: {hashlib.sha256(weights.read_bytes()).hexdigest()}"
    assert "MIT" in done.spec.license
    text = (out / "LICENSE").read_text()
    assert text.startswith("MIT License")
    assert "OpenAI" in text
    assert done.bytes == sum(file.stat().st_size for file in out.iterdir())
    assert 0 <= done.difference < 0.05


def test_only_what_is_used_is_written_as_float16(exported: tuple[Path, encoder_export.ExportedEncoder]) -> None:
    """No block behind the last layer, no positions behind the window, nothing of the decoder."""
    graph = onnx.load(exported[0] / "encoder.onnx").graph
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) >= 64]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}
    state = tiny_weights(DEEP)
    used = {name: value for name, value in state.items() if not name.startswith(("blocks.4", "ln_post"))}
    expected = sum(value.numel() for value in used.values()) - (DEEP.n_ctx - 70) * DEEP.n_state
    assert sum(int(np.prod(tensor.dims)) for tensor in large) == pytest.approx(expected, abs=64)


@torch.no_grad()
def test_it_answers_as_torch_does(exported: tuple[Path, encoder_export.ExportedEncoder], weights: Path) -> None:
    out, done = exported
    speech_encoder = SpeechEncoder(out, done.spec, device="cpu", threads=1)
    network = WhisperEncoder.of(read_whisper_encoder(weights), LAYERS)
    for window in grid_windows([noise(2.5)], done.spec):
        found = speech_encoder.encode(window).reshape(done.spec.positions, len(LAYERS), 64)
        expected = network(torch.from_numpy(window)[None])[0].transpose(0, 1).numpy()
        cosine = (found * expected).sum(axis=2) / np.linalg.norm(found, axis=2) / np.linalg.norm(expected, axis=2)
        assert cosine.min() > 0.999
        assert np.abs(found - expected).max() <= 0.05


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_encoder(tmp_path: Path, kind: str) -> None:
    """Of the folder that holds the file."""
    name, write = WRITERS[kind]
    (tmp_path / "weights").mkdir()
    write(tmp_path / "weights" / name, tiny_weights())
    done = export_encoder(tmp_path / "weights", tmp_path / "ear", layers=(0, 2))
    assert f"of {name}: " in done.spec.source
    features = feature_track(noise(0.5), SpeechEncoder(tmp_path / "ear", done.spec, device="cpu", threads=1))
    if kind != "openai":
        write_openai(tmp_path / "other.pt", tiny_weights())
        other = export_encoder(tmp_path / "other.pt", tmp_path / "other", layers=(0, 2))
        same = feature_track(noise(0.5), SpeechEncoder(tmp_path / "other", other.spec, device="cpu", threads=1))
        np.testing.assert_allclose(features, same, atol=1e-5)


def test_the_last_layer_may_be_asked_for(tmp_path: Path) -> None:
    write_openai(tmp_path / "tiny.pt", tiny_weights())
    assert export_encoder(tmp_path / "tiny.pt", tmp_path / "ear", layers=(2,)).spec.channels == 64


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("dims", "says"), [(replace(DEEP, n_mels=128), "128 mel bands"), (DIMS, "2 layers")], ids=["other bands", "too few layers"]
)
def test_another_size_is_refused(tmp_path: Path, dims: object, says: str) -> None:
    write_openai(tmp_path / "tiny.pt", tiny_weights(dims), dims)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=says) as caught:
        export_encoder(tmp_path / "tiny.pt", tmp_path / "ear")
    assert str(tmp_path / "tiny.pt") in str(caught.value)
    assert sorted(contents(tmp_path)) == ["tiny.pt"]


def test_positions_that_do_not_fill_a_window_are_refused(tmp_path: Path) -> None:
    dims = replace(DEEP, n_ctx=60)
    write_openai(tmp_path / "tiny.pt", tiny_weights(dims), dims)
    with pytest.raises(TrainingError) as caught:
        export_encoder(tmp_path / "tiny.pt", tmp_path / "ear")
    assert "\n" not in str(caught.value)
    assert sorted(contents(tmp_path)) == ["tiny.pt"]


def test_an_encoder_that_is_there_stays_unless_forced(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "ear"
    export_encoder(weights, out, layers=(1,))
    before = contents(tmp_path)
    with pytest.raises(OutputRefused, match="--force"):
        export_encoder(weights, out)
    assert contents(tmp_path) == before
    assert export_encoder(weights, out, force=True).spec == encoder.load_spec(out)
    assert contents(tmp_path) != before
    assert sorted(contents(out)) == ["LICENSE", "encoder.json", "encoder.onnx"]


@pytest.mark.parametrize("place", ["a file", "something else", "no folder"])
def test_a_place_that_is_taken_or_absent_is_refused_even_when_forced(tmp_path: Path, weights: Path, place: str) -> None:
    out = tmp_path / "ear"
    if place == "a file":
        out.write_text("mine")
    elif place == "something else":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out = tmp_path / "absent" / "ear"
    before = contents(tmp_path)
    with pytest.raises(OutputRefused):
        export_encoder(weights, out, force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failure", ["disagrees", "no space", "damaged"])
def test_whatever_fails_nothing_is_left_and_what_was_there_stays(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    out = tmp_path / "ear"
    export_encoder(weights, out, layers=(1,))
    before = contents(tmp_path)
    error: type[Exception] = ExportFailed
    if failure == "disagrees":
        monkeypatch.setattr("lipdub.train.export.HALF_TOLERANCE", 0.0)
    elif failure == "no space":
        error = WriteFailed

        def full(folder: Path, spec: encoder.EncoderSpec) -> encoder.EncoderSpec:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(encoder, "finish", full)
    else:
        error, weights = TrainingError, tmp_path / "ear" / "LICENSE"
    with pytest.raises(error) as caught:
        export_encoder(weights, out, force=True)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


# -------------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_an_encoder(run: Run, tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "ear"
    ran = run("train", "encoder", weights, "-o", out, "--source", "a drawer")
    assert ran.code == 0, ran.err
    assert f"wrote {out}: layers 2, 3, 4, 0." in " ".join(ran.out.split())
    assert encoder.load_spec(out).source.startswith("a drawer; sha256 of tiny.pt: ")
    again = run("train", "encoder", weights, "-o", out)
    assert again.code == 1
    assert "--force" in one_line(again.err)
    assert run("train", "encoder", weights, "-o", out, "--force").code == 0


@pytest.mark.parametrize("wrong", ["absent", "empty folder", "text", "folder as output"])
def test_errors_are_one_line(run: Run, tmp_path: Path, wrong: str) -> None:
    given = tmp_path / "given"
    if wrong == "empty folder":
        given.mkdir()
    elif wrong != "absent":
        given.write_text("hello")
    out = tmp_path / "no" / "ear" if wrong == "folder as output" else tmp_path / "ear"
    ran = run("train", "encoder", given, "-o", out)
    assert ran.code == 1
    said = one_line(ran.err)
    assert str(given) in said or str(out.parent) in said
    assert not out.exists()
