"""The speech encoder on disk: a folder that bundles with a memory on top of it share.

    models/encoder/
      encoder.json    what the encoder is: EncoderSpec below
      encoder.onnx    log-mel window -> hidden states of some layers
      LICENSE         of its weights

Ours is the encoder of Whisper (Radford et al. 2022, arXiv 2212.04356; weights MIT), cut off behind the last layer that is used.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from lipdub.atomic import write_whole
from lipdub.bundles import bundle
from lipdub.bundles.bundle import BATCH, GraphTensors
from lipdub.errors import BundleInvalid

FORMAT_VERSION: Final = 1
SPEC_FILE: Final = "encoder.json"
GRAPH: Final = "encoder.onnx"
LICENSE_FILE: Final = "LICENSE"
LOG_MEL: Final = "log_mel"
FEATURES: Final = "features"

BANDS: Final = 80
COLUMNS_PER_S: Final = 100
"""Of the log-mel that all encoders take (``lipdub.speech.whisper_mel``)."""
POSITIONS_PER_S: Final = 50
COLUMNS_PER_POSITION: Final = COLUMNS_PER_S // POSITIONS_PER_S


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What an encoder says of itself. Raises ``ValueError`` when built with values that do not fit together."""

    name: str
    format_version: int
    layers: tuple[int, ...]
    """Hidden states that the graph gives, by the number of blocks before them."""
    channels: int
    """D: of one position, all layers together."""
    bands: int
    """`BANDS`: written down for other programs that read the file."""
    floor: float
    """log10 of the faintest power per band that is told from silence."""
    core_s: float
    """Seconds that a window gives; windows begin every `core_s` seconds, the first one at 0."""
    context_s: float
    """Seconds that a window sees before and after its core."""
    source: str
    """Where the weights are from, with the sha256 of the file that they were read from."""
    license: str
    """One line, shown to users."""
    graphs: dict[str, str] = field(hash=False)
    """File name to sha256; empty until the export is finished."""
    created_with: str

    def __post_init__(self) -> None:
        for holds, message in (
            (self.name, "name must not be empty"),
            (self.format_version == FORMAT_VERSION, f"format_version must be {FORMAT_VERSION}, got {self.format_version}"),
            (bool(self.layers) and list(self.layers) == sorted(set(self.layers)), f"layers must rise, got {self.layers}"),
            (
                self.channels > 0 and self.channels % max(1, len(self.layers)) == 0,
                f"channels are shared by the layers, got {self.channels}",
            ),
            (self.bands == BANDS, f"bands must be {BANDS}, as this lipdub makes them, got {self.bands}"),
            (math.isfinite(self.floor), f"floor must be finite, got {self.floor}"),
            (self.core >= 1 and self.context >= 0, f"a window gives a position at least, got {self.core_s} s and {self.context_s} s"),
            (self.license, "license must not be empty"),
            (not self.graphs or set(self.graphs) == {GRAPH}, f"graphs must name {GRAPH}"),
            (all(bundle.SHA256_DIGITS.fullmatch(digest) for digest in self.graphs.values()), "graphs must map to sha256 hex digests"),
        ):
            if not holds:
                raise ValueError(message)

    @property
    def core(self) -> int:
        """Positions from window to window."""
        return round(self.core_s * POSITIONS_PER_S)

    @property
    def context(self) -> int:
        """Positions before the core, and as many after it."""
        return round(self.context_s * POSITIONS_PER_S)

    @property
    def inside(self) -> slice:
        """Of a window's positions, those of its core."""
        return slice(self.context, self.context + self.core)

    @property
    def positions(self) -> int:
        """Positions of a window."""
        return self.core + 2 * self.context

    @property
    def columns(self) -> int:
        """Log-mel columns of a window."""
        return self.positions * COLUMNS_PER_POSITION

    @property
    def tensors(self) -> GraphTensors:
        """Of the graph, float32. log_mel: as ``lipdub.speech.whisper_mel`` makes it. features: (B, T, D), the layers one after another."""
        return GraphTensors({LOG_MEL: (BATCH, self.bands, self.columns)}, {FEATURES: (BATCH, self.positions, self.channels)})

    def to_json(self) -> str:
        """The text of ``encoder.json``; `from_json` gives an equal spec back."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = SPEC_FILE) -> EncoderSpec:
        """The spec that `text` holds; `where` names it in messages. Raises BundleInvalid."""
        return bundle.read_record(text, cls, where=where, version=FORMAT_VERSION)


def finish(folder: Path, spec: EncoderSpec) -> EncoderSpec:
    """Hash the graph that lies in `folder`, write its ``encoder.json``, and give back `spec` with the hash filled in."""
    whole = replace(spec, graphs={GRAPH: bundle.sha256(folder / GRAPH)})
    write_whole(folder / SPEC_FILE, whole.to_json())
    return whole


def load_spec(folder: Path) -> EncoderSpec:
    """The spec of the encoder in `folder`, its graph checked. Raises BundleNotFound, BundleInvalid."""
    spec = EncoderSpec.from_json(bundle.read_spec(folder, SPEC_FILE), where=str(folder / SPEC_FILE))
    bundle.check_graphs(folder, spec.graphs, SPEC_FILE)
    return spec


def find(name: str, sha256: str, *, beside: Path) -> tuple[Path, EncoderSpec]:
    """The folder and the spec of the encoder `name` whose graph has this sha256: beside the bundle in `beside`, or one that came with
    lipdub.

    Raises BundleNotFound: there is none of that name. BundleInvalid: it is another one, or damaged.
    """
    folder = beside.absolute().parent / name
    if not (folder / SPEC_FILE).is_file():
        folder = bundle.resolve(name, spec_file=SPEC_FILE)
    spec = load_spec(folder)
    if spec.graphs[GRAPH] != sha256:
        raise BundleInvalid(f"{beside} was made on top of another encoder than the one in {folder}; copy the encoder that belongs to it")
    return folder, spec
