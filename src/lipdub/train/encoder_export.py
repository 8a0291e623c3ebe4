"""``lipdub train encoder``: the encoder out of a file of Whisper's weights, as the graph that memories stand on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lipdub import __version__
from lipdub.atomic import whole_folder, write_whole
from lipdub.bundles import encoder
from lipdub.bundles.encoder import BANDS
from lipdub.errors import TrainingError
from lipdub.speech.whisper_mel import FLOOR
from lipdub.train.export import check_folder, export_graph
from lipdub.train.whisper_network import WhisperEncoder
from lipdub.train.whisper_weights import read_whisper_encoder, weights_file

LAYERS = (2, 3, 4)
"""Hidden states that are given. Layers 3 and 4 tell the opening best (r 0.62 each on unseen people, alone; 1: 0.56, 6: 0.57), 2 to 4
together 0.66; what lies behind the last one is not built."""
CORE_S, CONTEXT_S = 10.0, 2.0

_LICENSE = """MIT License

Copyright (c) 2022 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True, slots=True)
class ExportedEncoder:
    """What was written."""

    spec: encoder.EncoderSpec
    difference: float
    """Largest absolute difference to torch."""
    bytes: int


class _Positions(nn.Module):
    """The encoder with the contract of its graph: the layers of a position one after another."""

    def __init__(self, whisper: WhisperEncoder) -> None:
        super().__init__()
        self.whisper = whisper

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, bands, 2 T) to (B, T, L C)."""
        return self.whisper(log_mel).transpose(1, 2).flatten(2)


def export_encoder(
    weights: Path, out: Path, *, layers: tuple[int, ...] = LAYERS, source: str = "unstated", force: bool = False
) -> ExportedEncoder:
    """Write the encoder folder `out` from Whisper's weights, a file or the folder of one as users have them: OpenAI's ``.pt``, Hugging
    Face's ``model.safetensors``, CTranslate2's ``model.bin``. Nothing in the file is executed.

    layers: hidden states to give, by the number of blocks before them. source: where the weights are from, in words.

    Raises TrainingError, OutputRefused, ExportFailed, WriteFailed; whatever fails, an encoder that was there stays.
    """
    check_folder(out, force=force, spec_file=encoder.SPEC_FILE)
    try:
        file = weights_file(weights)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        found = read_whisper_encoder(file)
    except OSError as error:
        raise TrainingError(f"cannot read '{weights}': {error.strerror or error}; check the path") from error
    if found.dims.n_mels != BANDS or layers[-1] > found.dims.n_layer:
        raise TrainingError(
            f"'{file}' is of another size ({found.dims.n_mels} mel bands, {found.dims.n_layer} layers); lipdub takes Whisper tiny, base, "
            f"small or medium, which have {BANDS} bands, and layers up to theirs"
        )
    spec = encoder.EncoderSpec(
        name=out.resolve().name, format_version=encoder.FORMAT_VERSION, layers=layers, channels=len(layers) * found.dims.n_state,
        bands=BANDS, floor=FLOOR, core_s=CORE_S, context_s=CONTEXT_S, source=f"{source}; sha256 of {file.name}: {digest}",
        license="MIT (Whisper, OpenAI)", graphs={}, created_with=__version__,
    )  # fmt: skip
    whisper = WhisperEncoder.of(found, layers)
    whisper.shorten(spec.positions)

    def log_mel(batch: int) -> tuple[Tensor, ...]:
        return (0.4 * torch.randn(batch, spec.bands, spec.columns),)

    with whole_folder(out) as folder:
        difference = export_graph(_Positions(whisper), log_mel, spec.tensors, folder / encoder.GRAPH, half=True)
        write_whole(folder / encoder.LICENSE_FILE, _LICENSE)
        spec = encoder.finish(folder, spec)
        size = sum(path.stat().st_size for path in folder.iterdir())
    return ExportedEncoder(spec, difference, size)
