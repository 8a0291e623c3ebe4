"""Whisper's encoder out of the files that people have: CTranslate2 ``model.bin``, OpenAI ``.pt``, Hugging Face ``safetensors``.

Whatever the file calls its tensors, what comes back has OpenAI's names (``blocks.0.attn.query.weight``) without the prefix ``encoder.``,
as float32. The decoder is passed over. Nothing in a file is executed: ``.pt`` is read with ``weights_only``, the others are plain numbers.

Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv 2212.04356),
github.com/openai/whisper (MIT).
"""

from __future__ import annotations

import mmap
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lipdub.errors import TrainingError

HEAD_CHANNELS: Final = 64
"""Channels of one attention head in every size of Whisper, tiny to large."""
NAMES: Final = ("model.bin", "model.safetensors")
"""What CTranslate2 and Hugging Face call the weights in a model's folder."""
_SAFETENSORS: Final = ".safetensors"
_NEXT: Final = "give an OpenAI .pt, a Hugging Face model.safetensors or a CTranslate2 model.bin of Whisper"


@dataclass(frozen=True, slots=True)
class WhisperDims:
    """Sizes of an encoder: mel bands, channels, attention heads, blocks, and positions of 20 ms (1500 are 30 s)."""

    n_mels: int
    n_state: int
    n_head: int
    n_layer: int
    n_ctx: int


@dataclass(frozen=True, slots=True, repr=False)
class WhisperWeights:
    """An encoder's weights: float32 tensors by OpenAI's names, and their sizes."""

    dims: WhisperDims
    state: dict[str, Tensor]


def read_whisper_encoder(path: Path) -> WhisperWeights:
    """Weights of the encoder in `path`, a file or the folder of one (``NAMES``, or a single ``.pt``).

    Raises TrainingError that names the file and what to do next; OSError where it cannot be read.
    """
    file = weights_file(path)
    with file.open("rb") as stream:
        head = stream.read(4096)
    # A safetensors file begins with the length of its JSON header; a CTranslate2 one names its specification in the first bytes.
    if file.suffix == _SAFETENSORS or head[8:10] == b'{"':
        found = _from_hugging_face(file)
    elif b"WhisperSpec\0" in head[:64]:
        found = _from_ctranslate2(file)
    elif zipfile.is_zipfile(file):
        found = _from_openai(file)
    else:
        raise TrainingError(
            f"'{file}' is no Whisper weights file (or only the second part of one); {_NEXT}, its parts put together with cat"
        )
    return _checked(file, *found)


def expected_shapes(dims: WhisperDims) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight of an encoder of these sizes. Keys have no bias in Whisper."""
    channels, hidden = dims.n_state, 4 * dims.n_state
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (channels, dims.n_mels, 3),
        "conv1.bias": (channels,),
        "conv2.weight": (channels, channels, 3),
        "conv2.bias": (channels,),
        "positional_embedding": (dims.n_ctx, channels),
    }
    for block in (f"blocks.{number}" for number in range(dims.n_layer)):
        for part in ("query", "key", "value", "out"):
            shapes[f"{block}.attn.{part}.weight"] = (channels, channels)
            if part != "key":
                shapes[f"{block}.attn.{part}.bias"] = (channels,)
        shapes |= {f"{block}.mlp.0.weight": (hidden, channels), f"{block}.mlp.0.bias": (hidden,)}
        shapes |= {f"{block}.mlp.2.weight": (channels, hidden), f"{block}.mlp.2.bias": (channels,)}
        shapes |= {f"{block}.{norm}.{part}": (channels,) for norm in ("attn_ln", "mlp_ln") for part in ("weight", "bias")}
    return shapes | {f"ln_post.{part}": (channels,) for part in ("weight", "bias")}


def weights_file(path: Path) -> Path:
    """The weights file that `path` is, or that the folder `path` holds. Raises TrainingError unless there is just one candidate."""
    if not path.is_dir():
        return path
    folder = path
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.pt"))
    if len(found) != 1:
        raise TrainingError(f"'{folder}' holds {len(found)} .pt files and no {' or '.join(NAMES)}; {_NEXT}")
    return found[0]


def _checked(file: Path, state: dict[str, Tensor], heads: int | None) -> WhisperWeights:
    """The weights with the sizes that they tell. heads: None where the file does not say. Raises TrainingError where they do not fit."""
    try:
        channels, bands, _ = state["conv1.weight"].shape
        positions = len(state["positional_embedding"])
    except (KeyError, ValueError) as error:
        raise TrainingError(f"'{file}' holds no Whisper encoder; {_NEXT}") from error
    layers = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    dims = WhisperDims(bands, channels, channels // HEAD_CHANNELS if heads is None else heads, layers, positions)
    wanted = expected_shapes(dims)
    wrong = sorted(
        {name for name, shape in wanted.items() if name not in state or tuple(state[name].shape) != shape} | set(state) - set(wanted)
    )
    if wrong or dims.n_head < 1 or channels % dims.n_head or not layers:
        what = f"{wrong[0]} and {len(wrong) - 1} other tensors are missing or misshapen" if wrong else f"its sizes are odd ({dims})"
        raise TrainingError(f"'{file}' holds no whole Whisper encoder ({what}); download or convert it again")
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise TrainingError(f"'{file}' holds values that are no numbers; download or convert it again")
    return WhisperWeights(dims, state)


def _from_openai(file: Path) -> tuple[dict[str, Tensor], int | None]:
    """OpenAI's checkpoint: ``dims`` and ``model_state_dict``, the encoder's names as they are wanted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what foreign files hold
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        dims, model = content["dims"], content["model_state_dict"]
        state = {name.removeprefix("encoder."): value.float() for name, value in model.items() if name.startswith("encoder.")}
        return state, int(dims["n_audio_head"])
    except Exception as error:  # a damaged or another checkpoint makes torch and its content raise nearly anything
        raise TrainingError(f"'{file}' is no Whisper checkpoint of OpenAI's ({' '.join(str(error).split())[:120]}); {_NEXT}") from error


_HUGGING_FACE: Final = {
    "embed_positions.weight": "positional_embedding", "layer_norm": "ln_post", "layers": "blocks", "self_attn_layer_norm": "attn_ln",
    "self_attn.q_proj": "attn.query", "self_attn.k_proj": "attn.key", "self_attn.v_proj": "attn.value", "self_attn.out_proj": "attn.out",
    "final_layer_norm": "mlp_ln", "fc1": "mlp.0", "fc2": "mlp.2",
}  # fmt: skip
"""Hugging Face's name of a part to OpenAI's."""


def _from_hugging_face(file: Path) -> tuple[dict[str, Tensor], int | None]:
    """Hugging Face's file: ``model.encoder.layers.0.self_attn.q_proj.weight`` and so on; it does not tell the number of heads."""
    state: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as content:
            for key in content.keys():  # noqa: SIM118 (no mapping: safetensors gives it keys() alone)
                name = key.removeprefix("model.")
                if name.startswith("encoder."):
                    state[_openai_name(name.removeprefix("encoder."))] = content.get_tensor(key).float()
    except (SafetensorError, ValueError) as error:
        raise TrainingError(f"'{file}' is no whole safetensors file ({error}); download it again") from error
    return state, None


def _openai_name(name: str) -> str:
    """OpenAI's name of what Hugging Face calls `name` within the encoder."""
    block, number, part = "", "", name
    if name.startswith("layers."):
        block, number, part = name.split(".", 2)
        block = f"{_HUGGING_FACE[block]}.{number}."
    if part in _HUGGING_FACE:
        return block + _HUGGING_FACE[part]
    stem, _, kind = part.rpartition(".")
    return f"{block}{_HUGGING_FACE.get(stem, stem)}.{kind}"


_CTRANSLATE2_TYPES: Final = {0: "float32", 4: "float16", 5: "bfloat16"}
_CTRANSLATE2_VERSIONS: Final = range(4, 7)
"""Of the binary format: since 4 each tensor has its type and its bytes."""
_CTRANSLATE2_TOP: Final = {
    "conv1/weight": "conv1.weight", "conv1/bias": "conv1.bias", "conv2/weight": "conv2.weight", "conv2/bias": "conv2.bias",
    "position_encodings/encodings": "positional_embedding", "layer_norm/gamma": "ln_post.weight", "layer_norm/beta": "ln_post.bias",
}  # fmt: skip
_CTRANSLATE2_BLOCK: Final = {
    "self_attention/layer_norm/gamma": "attn_ln.weight", "self_attention/layer_norm/beta": "attn_ln.bias",
    "self_attention/linear_1/weight": "attn.out.weight", "self_attention/linear_1/bias": "attn.out.bias",
    "ffn/layer_norm/gamma": "mlp_ln.weight", "ffn/layer_norm/beta": "mlp_ln.bias", "ffn/linear_0/weight": "mlp.0.weight",
    "ffn/linear_0/bias": "mlp.0.bias", "ffn/linear_1/weight": "mlp.2.weight", "ffn/linear_1/bias": "mlp.2.bias",
}  # fmt: skip
"""CTranslate2's names to OpenAI's: of the encoder, and within a block. ``self_attention/linear_0`` is query, key and value in one."""


def _from_ctranslate2(file: Path) -> tuple[dict[str, Tensor], int | None]:
    """CTranslate2's ``model.bin``; the bias of its keys, which Whisper lacks, is zero and left out."""
    state: dict[str, Tensor] = {}
    heads: int | None = None
    try:
        for name, values in _ctranslate2_tensors(file):
            if name == "num_heads":
                heads = int(values())
            elif name in _CTRANSLATE2_TOP:
                state[_CTRANSLATE2_TOP[name]] = _as_float32(values())
            elif name.startswith("layer_"):
                layer, part = name.removeprefix("layer_").split("/", 1)
                if part in _CTRANSLATE2_BLOCK:
                    state[f"blocks.{int(layer)}.{_CTRANSLATE2_BLOCK[part]}"] = _as_float32(values())
                elif part.startswith("self_attention/linear_0/") and part.rpartition("/")[2] in ("weight", "bias"):
                    kind = part.rpartition("/")[2]
                    for which, piece in zip(("query", "key", "value"), _as_float32(values()).chunk(3), strict=True):
                        if (which, kind) != ("key", "bias"):
                            state[f"blocks.{int(layer)}.attn.{which}.{kind}"] = piece.clone()
    except (struct.error, ValueError) as error:  # also of names and shapes that are none
        raise TrainingError(f"'{file}' breaks off or is damaged; put its parts together with cat, or download it again") from error
    return state, heads


def _as_float32(values: NDArray[Any]) -> Tensor:
    """The numbers of a tensor as float32; integers are quantised weights, of which only floats can be read. bfloat16 comes as uint16."""
    if values.dtype == np.uint16:
        return torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32))
    return torch.from_numpy(values.astype(np.float32))


def _ctranslate2_tensors(file: Path) -> Iterator[tuple[str, Callable[[], NDArray[Any]]]]:
    """Name within the encoder of each of its tensors, and a function that reads it.

    Layout, little-endian: uint32 version, string, uint32 revision, uint32 count; per tensor a name, uint8 rank, uint32 x rank, uint8 type,
    uint32 bytes, data. A string is a uint16 length and that many bytes, the last of them NUL. What follows the tensors are other names.
    Raises TrainingError on types that cannot be read, struct.error where the file breaks off.
    """
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0

        def number(form: str) -> int:
            nonlocal at
            (value,) = struct.unpack_from(f"<{form}", data, at)
            at += struct.calcsize(form)
            return int(value)

        def text() -> str:
            nonlocal at
            length = number("H")
            at += length
            if at > len(data):
                raise struct.error("the file ends in a name")
            return data[at - length : at].rstrip(b"\0").decode()

        version = number("I")
        if version not in _CTRANSLATE2_VERSIONS:
            raise TrainingError(f"'{file}' is of CTranslate2's format {version}, not 4 to 6; convert it with another ctranslate2")
        text()
        number("I")
        for _ in range(number("I")):
            name, rank = text(), number("B")
            shape = tuple(number("I") for _ in range(rank))
            kind, size = number("B"), number("I")
            start = at
            at += size
            if at > len(data):
                raise struct.error("the file ends in a tensor")
            if not name.startswith("encoder/"):
                continue
            name = name.removeprefix("encoder/")
            if name == "num_heads":
                yield name, lambda start=start, size=size: np.asarray(int.from_bytes(data[start : start + size], "little"))  # type: ignore[misc]
                continue
            if kind not in _CTRANSLATE2_TYPES:
                if name.endswith(("weight", "bias", "gamma", "beta", "encodings")):
                    raise TrainingError(f"'{file}' holds quantised weights; convert the model with --quantization float16, or give its .pt")
                continue  # options of the model: single small numbers
            dtype = np.dtype({"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}[_CTRANSLATE2_TYPES[kind]])
            if size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
                raise struct.error("a tensor's bytes do not fit its shape")
            yield (
                name,
                lambda start=start, size=size, dtype=dtype, shape=shape: (  # type: ignore[misc]
                    np.frombuffer(data[start : start + size], dtype).reshape(shape)
                ),
            )
