"""What a generator is: the contract that every backend keeps, and that one parametrised test holds all of them to."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lipdub.bundles.bundle import BundleSpec
from lipdub.options import Device
from lipdub.records import Drawn


class Generator(Protocol):
    """Draws mouths. Order is kept, inputs are not changed, and the same input gets the same answer twice.

    Any thread may call `draw`; two calls wait for each other. All normalisation lives in the backend: callers see uint8 RGB.
    """

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the device that draws, e.g. ``CPUExecutionProvider``."""
        ...

    @property
    def preferred_batch(self) -> int:
        """Crops that keep the device busy when they come in one call of `draw`. Any number is drawn."""
        ...

    def draw(self, targets: NDArray[np.uint8], references: NDArray[np.uint8], lip_features: NDArray[np.float32]) -> Drawn:
        """The crops with lips that speak: new arrays, the `drawn` box drawn anew and every pixel outside of it the target's own.
        Where the bundle says `has_flow`, also what of the box was copied from the references, and from where; else None for that.

        targets, references: uint8 (M, S, S, 3) RGB, aligned crops of the same person; the target's mouth is not looked at.
        lip_features: float32 (M, C). M may be 0. Raises ``ValueError`` for other shapes or types, BundleInvalid where the
        network draws no picture.
        """
        ...


class Backend(Protocol):
    """How a backend is opened: a class with this constructor is one."""

    def __call__(self, folder: Path, spec: BundleSpec, *, device: Device = "auto", threads: int | None = None) -> Generator:
        """The generator in `folder`, whose checked spec is `spec`, on `device` with `threads` CPU threads (None: ORT's choice)."""
        ...
