"""The generator of a bundle as an ONNX graph: masked face, reference and lip feature give a face that speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub import runtime
from lipdub.bundles import bundle
from lipdub.bundles.bundle import BundleSpec
from lipdub.errors import BundleInvalid, ModelError
from lipdub.generators import device_graph
from lipdub.generators.drawing import ConvertedByHost, ConvertedOnDevice, Drawing
from lipdub.options import Device
from lipdub.records import CropSpec, Drawn
from lipdub.runtime import open_session

HALF_TOLERANCE_LEVELS: Final = 0.5
"""Mean difference from the float32 picture, in grey levels of 255, up to which a GPU draws in float16."""
FLOW_TOLERANCE_PX: Final = 0.1
"""Largest difference, in crop px, of the places that pixels are copied from: 0.4 px of a video that shows the face four times as finely."""


class OnnxGenerator:
    """`lipdub.generators.Generator` over ``generator.onnx``.

    On a GPU the graph is rewritten: uint8 pictures, and float16 where it draws as float32 does.
    """

    def __init__(self, folder: Path, spec: BundleSpec, *, device: Device = "auto", threads: int | None = None) -> None:
        self._spec = spec
        expected = bundle.tensors(bundle.GENERATOR_GRAPH, spec)
        session = open_session(
            folder / bundle.GENERATOR_GRAPH, device=device, threads=threads, inputs=expected.inputs, outputs=expected.outputs
        )
        self._notes = session.notes
        self._drawing: Drawing = ConvertedByHost(session, spec)
        self._precision = "float32"
        if session.provider == runtime.CUDA:
            self._draw_on_device(folder, threads)

    def __repr__(self) -> str:
        return f"OnnxGenerator({self._spec.name}, {self.provider}, {self.precision})"

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the device that draws."""
        return self._drawing.session.provider

    @property
    def preferred_batch(self) -> int:
        """Crops that keep the device busy when they come in one call of `draw`."""
        return self._drawing.session.preferred_batch

    @property
    def precision(self) -> str:
        """Numbers that the network computes with: ``float32`` or ``float16``."""
        return self._precision

    @property
    def notes(self) -> tuple[str, ...]:
        """What would be faster and is not used, and why; one line each."""
        return self._notes

    def draw(self, targets: NDArray[np.uint8], references: NDArray[np.uint8], lip_features: NDArray[np.float32]) -> Drawn:
        """The targets, uint8 (M, S, S, 3) RGB, with the `drawn` box drawn from references and lip features (M, C)."""
        count, size = len(targets), self._spec.crop.size
        _expect("targets", targets, np.uint8, (count, size, size, 3))
        _expect("references", references, np.uint8, (count, size, size, 3))
        _expect("lip_features", lip_features, np.float32, (count, self._spec.lip_channels))
        return self._drawing.draw(targets, references, lip_features)

    def _draw_on_device(self, folder: Path, threads: int | None) -> None:
        """Take the rewritten graph in the place of the bundle's: in float16 where that draws the same pictures, else in float32."""
        missing = device_graph.why_not()
        if missing:
            self._notes += (f"float32, and pictures are converted by the CPU: {missing}",)
            return
        by_host = self._drawing
        for half in (True, False):
            try:
                drawing = on_device(folder, self._spec, device="cuda", threads=threads, half=half)
                unlike = _unlike(by_host, drawing, self._spec)
            except ModelError as error:
                self._notes += (f"{'float16' if half else 'uint8 pictures'}: {error}",)
                continue
            if not unlike:
                self._drawing, self._precision = drawing, "float16" if half else "float32"
                return
            self._notes += (f"{'float16' if half else 'uint8 pictures'}: {unlike}",)


def on_device(folder: Path, spec: BundleSpec, *, device: Device, threads: int | None = None, half: bool) -> ConvertedOnDevice:
    """Drawing through the bundle's generator graph, rewritten to convert its pictures itself; half: and to compute in float16.

    Raises BundleInvalid, ProviderUnavailable; ``ImportError`` without the package onnx.
    """
    path = folder / bundle.GENERATOR_GRAPH
    try:
        graph = path.read_bytes()
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read ({error.strerror}): export or copy the bundle again") from error
    names = device_graph.tensors(spec)
    session = open_session(
        path, device=device, threads=threads, inputs=names.inputs, outputs=names.outputs,
        graph=device_graph.rewritten(graph, spec, half=half),
    )  # fmt: skip
    return ConvertedOnDevice(session, spec)


def _unlike(one: Drawing, other: Drawing, spec: BundleSpec) -> str:
    """By how much two ways of drawing differ on the same smooth pictures, in a few words; '' where that is little enough."""
    targets, references = smooth_pictures(spec.crop, 2), smooth_pictures(spec.crop, 2)[::-1]
    features = np.tile(np.asarray(spec.rest_feature, np.float32), (2, 1))
    first, second = (drawing.draw(targets, references, features) for drawing in (one, other))
    levels, px = _difference_levels(first, second, spec.crop), _difference_px(first, second, spec.crop)
    if not levels <= HALF_TOLERANCE_LEVELS:
        return f"drawn pictures differ by {levels:.1f} grey levels"
    return "" if px <= FLOW_TOLERANCE_PX else f"pixels are copied from places that differ by {px:.2f} px"


def _difference_levels(one: Drawn, other: Drawn, crop: CropSpec) -> float:
    """Mean difference of the drawn boxes, in grey levels of 255."""
    y0, y1, x0, x1 = crop.drawn
    boxes = [drawn.pixels[:, y0:y1, x0:x1].astype(np.float32) for drawn in (one, other)]
    return float(np.abs(boxes[0] - boxes[1]).mean())


def _difference_px(one: Drawn, other: Drawn, crop: CropSpec) -> float:
    """Largest difference of the places that pixels are copied from, in crop px, over the cells with a pixel that is mostly copied."""
    if one.copied is None or other.copied is None:
        return 0.0
    count, _, rows, columns = one.copied.flow.shape
    least_painted = one.copied.paint_mask.reshape(count, rows, bundle.FLOW_STRIDE, columns, bundle.FLOW_STRIDE).min(axis=(2, 4))
    difference = crop.size * np.abs(one.copied.flow - other.copied.flow).max(axis=1)
    return float(difference.max(initial=0.0, where=least_painted < 128))


def smooth_pictures(crop: CropSpec, count: int) -> NDArray[np.uint8]:
    """Pictures of broad waves of colour, uint8 (count, S, S, 3): what a network takes for skin rather than for noise."""
    y, x = np.mgrid[0 : crop.size, 0 : crop.size] / np.float32(crop.size)
    phase = np.arange(count * 3).reshape(count, 1, 1, 3)
    waves = np.sin(4.0 * x[None, :, :, None] + phase) * np.cos(5.0 * y[None, :, :, None] + 2.0 * phase)
    return (128.0 + 90.0 * waves).astype(np.uint8)


def _expect(name: str, value: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless `value` has this type and shape."""
    if value.dtype != dtype or value.shape != shape:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {value.dtype} {value.shape}")
