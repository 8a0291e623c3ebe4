"""What a generator is: the contract that every backend keeps, and that one parametrised test holds all of them to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lipdub.bundles.bundle import BundleSpec
from lipdub.records import Device, Drawn


@dataclass(frozen=True, slots=True, repr=False)
class Recall:
    """What the memory answers to N mel windows.

    address: float32 (N, slots), the share of each slot in the answer; rows sum to 1. lip_feature: float32 (N, C), the
    recalled lip motion, in the unit of the bundle's `rest_feature`.
    """

    address: NDArray[np.float32]
    lip_feature: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, value in (("address", self.address), ("lip_feature", self.lip_feature)):
            if value.ndim != 2 or value.dtype != np.float32:
                raise ValueError(f"{name} must be float32 with 2 axes, got {value.dtype} {value.shape}")
        if len(self.address) != len(self.lip_feature):
            raise ValueError(f"one address per lip feature, got {self.address.shape = }, {self.lip_feature.shape = }")

    def __len__(self) -> int:
        return len(self.address)

    def __repr__(self) -> str:
        return f"Recall(address={self.address.shape}, lip_feature={self.lip_feature.shape})"


class Generator(Protocol):
    """A model that is ready to run. Order is kept, inputs are not changed, and the same input gets the same answer twice.

    Threads: `draw` may be called from any thread, `recall` from another at the same time; two calls of one of them wait for each
    other. All normalisation lives in the backend: callers see log-mel windows as `lipdub.speech.mel` makes them, and uint8 RGB.
    """

    @property
    def spec(self) -> BundleSpec:
        """What the bundle says of itself."""
        ...

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the device that draws, e.g. ``CPUExecutionProvider``."""
        ...

    @property
    def batch(self) -> int:
        """Crops that this backend likes to get in one call of `draw`: as many as keep its device busy. Any number is drawn."""
        ...

    def recall(self, windows: NDArray[np.float32]) -> Recall:
        """Lip features for speech. windows: float32 (N, bands, window), in [-4, 4]; N may be 0.

        Raises ``ValueError`` for windows of another shape or type, BundleInvalid where the network answers no numbers.
        """
        ...

    def draw(self, targets: NDArray[np.uint8], references: NDArray[np.uint8], lip_features: NDArray[np.float32]) -> Drawn:
        """The crops with lips that speak: new arrays, the `drawn` box drawn anew and every pixel outside of it the target's own.
        Where the bundle says `copies`, also what of the box was copied from the references, and from where; else None for that.

        targets, references: uint8 (M, S, S, 3) RGB, aligned crops of the same person; the target's mouth is not looked at.
        lip_features: float32 (M, C). M may be 0. Raises ``ValueError`` for other shapes or types, BundleInvalid where the
        network draws no picture.
        """
        ...


class Backend(Protocol):
    """How a backend is opened: a class with this constructor is one."""

    def __call__(self, folder: Path, spec: BundleSpec, *, device: Device = "auto", threads: int | None = None) -> Generator:
        """The model in `folder`, whose checked spec is `spec`, on `device` with `threads` CPU threads (None: ORT's choice)."""
        ...
