"""Generators: one file per backend, one line in `GENERATORS`, one contract (``protocol.py``) for all.

generator = open_generator(folder, spec)
drawn = generator.draw(targets, references, lip_features)  # drawn.pixels, drawn.copied
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lipdub.bundles.bundle import BundleSpec
from lipdub.errors import BundleInvalid
from lipdub.generators.onnx_generator import OnnxGenerator
from lipdub.generators.protocol import Backend, Generator
from lipdub.options import Device

__all__ = ["GENERATORS", "Backend", "Generator", "OnnxGenerator", "open_generator"]

GENERATORS: Final[Mapping[str, Backend]] = {"memory": OnnxGenerator}
"""Backend name, as bundles give it, to what opens it."""


def open_generator(folder: Path, spec: BundleSpec, *, device: Device = "auto", threads: int | None = None) -> Generator:
    """The generator of the bundle in `folder`, whose checked spec is `spec`.

    device, threads: see `lipdub.runtime.open_session`. Raises BundleInvalid (a backend that this lipdub does not have, or graphs that do
    not fit what the bundle declares), ProviderUnavailable.
    """
    if spec.backend not in GENERATORS:
        raise BundleInvalid(f"{folder} needs backend {spec.backend!r}, this lipdub has {', '.join(GENERATORS)}: update lipdub")
    return GENERATORS[spec.backend](folder, spec, device=device, threads=threads)
