"""A model that is ready to dub: what a bundle says of itself, its memory, and its generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lipdub.bundles import bundle
from lipdub.bundles.bundle import BundleSpec
from lipdub.generators import Generator, open_generator
from lipdub.options import Device
from lipdub.speech.memory import Memory, OnnxMemory


@dataclass(frozen=True, slots=True)
class Model:
    """memory: turns speech into lip motion. generator: draws it. Both are of the bundle that `spec` describes. bank: file with mouths of
    the person that it was adapted to."""

    spec: BundleSpec
    memory: Memory
    generator: Generator
    bank: Path | None = None


def open_model(name_or_path: str, *, device: Device = "auto", threads: int | None = None) -> Model:
    """The model bundle of that name or path, checked and ready to run.

    device, threads: see `lipdub.runtime.open_session`. Raises BundleNotFound, BundleInvalid (altered, of another format
    version or backend, or graphs that do not fit what it declares), ProviderUnavailable.
    """
    folder = bundle.resolve(name_or_path)
    spec = bundle.load_spec(folder)
    generator = open_generator(folder, spec, device=device, threads=threads)
    bank = folder / bundle.BANK if bundle.BANK in spec.graphs else None
    return Model(spec, OnnxMemory(folder, spec, device=device, threads=threads), generator, bank)
