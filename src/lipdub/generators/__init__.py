"""Generators: one file per backend, one line in `GENERATORS`, one contract (``protocol.py``) for all.

generator = open_generator("compact")
recall = generator.recall(windows)                              # all of the speech, before a pixel is drawn
drawn = generator.draw(targets, references, recall.lip_feature)  # chunk by chunk; drawn.pixels, drawn.copied
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lipdub.bundles import bundle
from lipdub.errors import BundleInvalid
from lipdub.generators.memory import MemoryGenerator
from lipdub.generators.protocol import Backend, Generator, Recall
from lipdub.records import Device

__all__ = ["GENERATORS", "Backend", "Generator", "MemoryGenerator", "Recall", "open_generator"]

GENERATORS: Final[Mapping[str, Backend]] = {"memory": MemoryGenerator}
"""Backend name, as bundles give it, to what opens it."""


def open_generator(name_or_path: str, *, device: Device = "auto", threads: int | None = None) -> Generator:
    """The model bundle of that name or path, checked and ready to run.

    device, threads: see `lipdub.runtime.open_session`. Raises BundleNotFound, BundleInvalid (altered, of another format
    version or backend, or graphs that do not fit what it declares), ProviderUnavailable.
    """
    folder = bundle.resolve(name_or_path)
    spec = bundle.load_spec(folder)
    if spec.backend not in GENERATORS:
        raise BundleInvalid(f"{folder} needs backend {spec.backend!r}, this lipdub has {', '.join(GENERATORS)}: update lipdub")
    return GENERATORS[spec.backend](folder, spec, device=device, threads=threads)
