"""The network that paints what lies between the lips, on disk.

    models/interior/
      interior.json         what it is: InteriorSpec below
      interior.onnx         window around a mouth with a hole between the lips -> that window, painted, twice as fine
      weights.safetensors   the same weights to go on training from (optional, never read here)

It knows nothing of a bundle: any that tells where lips lie can use it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from lipdub.atomic import write_whole
from lipdub.bundles import bundle
from lipdub.bundles.bundle import BATCH, GraphTensors

FORMAT_VERSION: Final = 1
NAME: Final = "interior"
SPEC_FILE: Final = "interior.json"
GRAPH: Final = "interior.onnx"
SEEN: Final = "seen"
PAINTED: Final = "painted"

SIZE: Final = 128
"""Side of the crop in which the window lies, px."""
WINDOW: Final = (48, 64)
"""Rows and columns of the window, px of that crop."""
FINER: Final = 2
"""It is painted at so many times the density that it is seen at."""
CHANNELS: Final = 4
"""RGB in [-1, 1], 0 in the hole, and how much of each px is hole."""
TENSORS: Final = GraphTensors(
    {SEEN: (BATCH, CHANNELS, *WINDOW)},
    {PAINTED: (BATCH, 3, FINER * WINDOW[0], FINER * WINDOW[1])},
)


@dataclass(frozen=True, slots=True)
class InteriorSpec:
    """What it says of itself. license, training_data: one line each. graphs: file name to sha256. created_with: lipdub version.

    Raises ``ValueError`` when built with values that cannot be.
    """

    name: str
    format_version: int
    license: str
    training_data: str
    graphs: dict[str, str] = field(hash=False)
    created_with: str

    def __post_init__(self) -> None:
        if not self.name or not self.license:
            raise ValueError("name and license must not be empty")
        if self.graphs and set(self.graphs) != {GRAPH}:
            raise ValueError(f"graphs must name {GRAPH}")


def load_spec(folder: Path) -> InteriorSpec:
    """The spec of the network in `folder`, its graph checked. Raises BundleNotFound, BundleInvalid."""
    spec = bundle.read_record(bundle.read_spec(folder, SPEC_FILE), InteriorSpec, where=str(folder / SPEC_FILE), version=FORMAT_VERSION)
    bundle.check_graphs(folder, spec.graphs, SPEC_FILE)
    return spec


def finish(folder: Path, spec: InteriorSpec) -> InteriorSpec:
    """Hash the graph that lies in `folder`, write its ``interior.json``, and give back `spec` with the hash filled in. Raises BundleInvalid
    where the graph is missing."""
    whole = replace(spec, graphs={GRAPH: bundle.sha256(folder / GRAPH)})
    write_whole(folder / SPEC_FILE, json.dumps(asdict(whole), indent=2, ensure_ascii=False) + "\n")
    return whole
