"""The audio-lip memory of SyncTalkFace as two ONNX graphs: speech recalls a lip feature, the lip feature draws a mouth."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub import bundle
from lipdub.bundle import BundleSpec
from lipdub.errors import BundleInvalid
from lipdub.generators.protocol import Recall
from lipdub.records import Device
from lipdub.runtime import Session, open_session

BATCH_SIZE: Final = 16
"""Windows or crops that go through a graph together; the last batch of a call may be smaller."""


class MemoryGenerator:
    """Generator over ``memory.onnx`` and ``generator.onnx``; see `lipdub.generators.Generator` for what the methods promise."""

    def __init__(self, folder: Path, spec: BundleSpec, *, device: Device = "auto", threads: int | None = None) -> None:
        self._spec = spec
        self._folder = folder
        self._memory = self._open(bundle.MEMORY_GRAPH, device, threads)
        self._generator = self._open(bundle.GENERATOR_GRAPH, device, threads)

    def __repr__(self) -> str:
        return f"MemoryGenerator({self._spec.name}, {self.provider})"

    @property
    def spec(self) -> BundleSpec:
        """What the bundle says of itself."""
        return self._spec

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the device that draws."""
        return self._generator.provider

    def recall(self, windows: NDArray[np.float32]) -> Recall:
        """Address and lip feature of each mel window, float32 (N, bands, window)."""
        _expect("windows", windows, np.float32, (len(windows), self._spec.mel.bands, self._spec.mel.window))
        address = np.empty((len(windows), self._spec.slots), np.float32)
        lip_feature = np.empty((len(windows), self._spec.lip_channels), np.float32)
        for batch in _batches(len(windows)):
            answer = self._memory.run({bundle.MEL: windows[batch, np.newaxis]})
            address[batch] = answer[bundle.ADDRESS]
            lip_feature[batch] = answer[bundle.LIP_FEATURE]
        if not (np.isfinite(address).all() and np.isfinite(lip_feature).all()):
            raise BundleInvalid(f"{self._memory.path} recalled no lip feature but NaN or infinity: export the bundle again")
        return Recall(address, lip_feature)

    def draw(self, targets: NDArray[np.uint8], references: NDArray[np.uint8], lip_features: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The targets, uint8 (M, S, S, 3) RGB, with the `drawn` box drawn from references and lip features (M, C)."""
        count, crop = len(targets), self._spec.crop
        _expect("targets", targets, np.uint8, (count, crop.size, crop.size, 3))
        _expect("references", references, np.uint8, (count, crop.size, crop.size, 3))
        _expect("lip_features", lip_features, np.float32, (count, self._spec.lip_channels))
        y0, y1, x0, x1 = crop.drawn
        drawn = targets.copy()
        for batch in _batches(count):
            target = _to_network(targets[batch])
            target[:, :, crop.masked_from :] = 0.0
            face = self._generator.run(
                {
                    bundle.TARGET: target,
                    bundle.REFERENCE: _to_network(references[batch]),
                    bundle.LIP_FEATURE: lip_features[batch],
                }
            )[bundle.FACE]
            if not np.isfinite(face).all():
                raise BundleInvalid(f"{self._generator.path} drew no picture but NaN or infinity: export the bundle again")
            drawn[batch, y0:y1, x0:x1] = _from_network(face)
        return drawn

    def _open(self, graph: str, device: Device, threads: int | None) -> Session:
        expected = bundle.tensors(graph, self._spec)
        return open_session(self._folder / graph, device=device, threads=threads, inputs=expected.inputs, outputs=expected.outputs)


def _batches(count: int) -> list[slice]:
    """Slices that cut `count` rows into batches, in order."""
    return [slice(start, min(start + BATCH_SIZE, count)) for start in range(0, count, BATCH_SIZE)]


def _to_network(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1], a new array."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(127.5) - np.float32(1.0)


def _from_network(pictures: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 (B, 3, H, W) in [-1, 1] as uint8 (B, H, W, 3), rounded; what lies beyond the range is clipped."""
    levels: NDArray[np.uint8] = np.rint((pictures + 1.0).clip(0.0, 2.0) * 127.5).astype(np.uint8)
    return levels.transpose(0, 2, 3, 1)


def _expect(name: str, value: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless `value` has this type and shape."""
    if value.dtype != dtype or value.shape != shape:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {value.dtype} {value.shape}")
