"""Tiny Whisper encoders as the three formats write them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lipdub.train.whisper_weights import WhisperDims, expected_shapes

DIMS = WhisperDims(n_mels=80, n_state=64, n_head=1, n_layer=2, n_ctx=100)

HUGGING_FACE = {
    "conv1": "conv1", "conv2": "conv2", "positional_embedding": "embed_positions.weight", "ln_post": "layer_norm",
    "attn.query": "self_attn.q_proj", "attn.key": "self_attn.k_proj", "attn.value": "self_attn.v_proj", "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm", "mlp.0": "fc1", "mlp.2": "fc2", "mlp_ln": "final_layer_norm",
}  # fmt: skip
CTRANSLATE2 = {
    "conv1.weight": "conv1/weight", "conv1.bias": "conv1/bias", "conv2.weight": "conv2/weight", "conv2.bias": "conv2/bias",
    "positional_embedding": "position_encodings/encodings", "ln_post.weight": "layer_norm/gamma", "ln_post.bias": "layer_norm/beta",
    "attn_ln.weight": "self_attention/layer_norm/gamma", "attn_ln.bias": "self_attention/layer_norm/beta",
    "attn.out.weight": "self_attention/linear_1/weight", "attn.out.bias": "self_attention/linear_1/bias",
    "mlp_ln.weight": "ffn/layer_norm/gamma", "mlp_ln.bias": "ffn/layer_norm/beta", "mlp.0.weight": "ffn/linear_0/weight",
    "mlp.0.bias": "ffn/linear_0/bias", "mlp.2.weight": "ffn/linear_1/weight", "mlp.2.bias": "ffn/linear_1/bias",
}  # fmt: skip
KINDS = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4, torch.bfloat16: 5}


def tiny_weights(dims: WhisperDims = DIMS, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights by OpenAI's names, float32, of values that `dtype` holds exactly."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in expected_shapes(dims).items():
        values = torch.randn(shape, generator=random) / (shape[-1] if len(shape) > 1 else 4) ** 0.5
        found[name] = (values + (1 if name.endswith(("_ln.weight", "ln_post.weight")) else 0)).to(dtype).float()
    return found


def write_openai(path: Path, state: Mapping[str, Tensor], dims: WhisperDims = DIMS, *, dtype: torch.dtype = torch.float32) -> Path:
    """As ``openai/whisper`` stores a model: with its decoder."""
    model = {f"encoder.{name}": value.to(dtype) for name, value in state.items()}
    model |= {"decoder.token_embedding.weight": torch.zeros(5, dims.n_state), "decoder.ln.weight": torch.ones(dims.n_state)}
    sizes = {"n_mels": dims.n_mels, "n_audio_ctx": dims.n_ctx, "n_audio_state": dims.n_state, "n_audio_head": dims.n_head}
    sizes |= {"n_audio_layer": dims.n_layer, "n_vocab": 5, "n_text_ctx": 4, "n_text_state": dims.n_state, "n_text_head": 1}
    torch.save({"dims": sizes, "model_state_dict": model}, path)
    return path


def write_hugging_face(path: Path, state: Mapping[str, Tensor], *, prefix: str = "model.", dtype: torch.dtype = torch.float32) -> Path:
    """As ``transformers`` stores a ``WhisperForConditionalGeneration`` (prefix "model.") or a ``WhisperModel`` (none)."""
    found = {f"{prefix}decoder.embed_tokens.weight": torch.zeros(5, 4, dtype=dtype)}
    for name, value in state.items():
        block, part = _split(name)
        stem, _, kind = part.rpartition(".")
        theirs = HUGGING_FACE.get(part) or f"{HUGGING_FACE[stem]}.{kind}"
        found[f"{prefix}encoder.{'' if block is None else f'layers.{block}.'}{theirs}"] = value.to(dtype).contiguous()
    safetensors.torch.save_file(found, path)
    return path


def write_ctranslate2(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    heads: int = 1,
    dtype: torch.dtype = torch.float32,
    version: int = 6,
    change: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
) -> Path:
    """As ``ct2-transformers-converter`` writes ``model.bin``: query, key and value in one, keys with a bias of zero. change: of the tensors
    by CTranslate2's names, before they are written."""
    tensors: dict[str, Tensor] = {"decoder/embeddings/weight": torch.zeros(5, 4).to(dtype)}
    for name, value in state.items():
        block, part = _split(name)
        if part in CTRANSLATE2:
            tensors[f"encoder/{'' if block is None else f'layer_{block}/'}{CTRANSLATE2[part]}"] = value.to(dtype)
    for block in sorted({number for number, _ in map(_split, state) if number is not None}):
        of = [{kind: state.get(f"blocks.{block}.attn.{part}.{kind}") for kind in ("weight", "bias")} for part in ("query", "key", "value")]
        weights = [one["weight"] for one in of]
        biases = [torch.zeros(len(one["weight"])) if one["bias"] is None else one["bias"] for one in of]  # type: ignore[arg-type]
        tensors[f"encoder/layer_{block}/self_attention/linear_0/weight"] = torch.cat(weights).to(dtype)  # type: ignore[arg-type]
        tensors[f"encoder/layer_{block}/self_attention/linear_0/bias"] = torch.cat(biases).to(dtype)
    tensors |= {"encoder/num_heads": torch.tensor(heads, dtype=torch.int16), "encoder/pre_norm": torch.tensor(1, dtype=torch.int8)}
    change(tensors)
    data = struct.pack("<I", version) + _text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, value in sorted(tensors.items()):
        raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        data += _text(name) + struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape)
        data += struct.pack("<BI", KINDS[value.dtype], len(raw)) + raw
    data += struct.pack("<I", 1) + _text("decoder/projection/weight") + _text("decoder/embeddings/weight")
    path.write_bytes(data)
    return path


def _text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def _split(name: str) -> tuple[int | None, str]:
    """Number of the block, and the rest of the name."""
    if not name.startswith("blocks."):
        return None, name
    _, number, part = name.split(".", 2)
    return int(number), part


WRITERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "openai": ("tiny.pt", write_openai),
    "hugging face": ("model.safetensors", write_hugging_face),
    "ctranslate2": ("model.bin", write_ctranslate2),
}
"""Format to the usual name of its file, and what writes it: (path, state, dtype=...)."""
