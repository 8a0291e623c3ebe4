"""The audio-lip memory of SyncTalkFace as two ONNX graphs: speech recalls a lip feature, the lip feature draws a mouth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lipdub import bundle, runtime
from lipdub.bundle import BundleSpec
from lipdub.errors import BundleInvalid, ModelError
from lipdub.generators import device_graph
from lipdub.generators.drawing import ConvertedByHost, ConvertedOnDevice, Drawing
from lipdub.generators.protocol import Recall
from lipdub.records import CropSpec, Device
from lipdub.runtime import TUNING, Session, Tuning, open_session

HALF_TOLERANCE_LEVELS: Final = 0.5
"""Mean difference from the float32 picture, in grey levels of 255, up to which a GPU draws in float16."""


class MemoryGenerator:
    """Generator over ``memory.onnx`` and ``generator.onnx``; see `lipdub.generators.Generator` for what the methods promise.

    On a GPU the generator's graph is rewritten: uint8 pictures, and float16 where it draws as float32 does. tuning: how ONNX
    Runtime works; for measurements.
    """

    def __init__(
        self, folder: Path, spec: BundleSpec, *, device: Device = "auto", threads: int | None = None, tuning: Tuning = TUNING
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._threads = threads
        # TensorRT builds engines for minutes: worth it for the graph that draws, not for the one that is asked once for each window.
        plain, drawing = replace(tuning, tensorrt=False), replace(tuning, tensorrt=tuning.tensorrt or runtime.tensorrt_wanted())
        # The memory's graph is small: a second thread spends more on meeting the first than it saves.
        self._memory = self._open(bundle.MEMORY_GRAPH, device, plain, threads=1)
        session = self._open(bundle.GENERATOR_GRAPH, device, drawing, threads=threads)
        self._notes = session.notes
        if session.provider == runtime.TENSORRT and not self._draws_alike(session):
            session = self._open(bundle.GENERATOR_GRAPH, device, plain, threads=threads)
        self._drawing: Drawing = ConvertedByHost(session, spec.crop)
        self._precision = "float16" if session.provider == runtime.TENSORRT else "float32"
        if session.provider == runtime.CUDA:
            self._draw_on_device(plain)

    def __repr__(self) -> str:
        return f"MemoryGenerator({self._spec.name}, {self.provider}, {self.precision})"

    @property
    def spec(self) -> BundleSpec:
        """What the bundle says of itself."""
        return self._spec

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the device that draws."""
        return self._drawing.session.provider

    @property
    def batch(self) -> int:
        """Crops that `draw` likes to get in one call."""
        return self._drawing.session.appetite

    @property
    def precision(self) -> str:
        """Numbers that the network computes with: ``float32`` or ``float16``."""
        return self._precision

    @property
    def notes(self) -> tuple[str, ...]:
        """What would be faster and is not used, and why; one line each."""
        return self._notes

    def recall(self, windows: NDArray[np.float32]) -> Recall:
        """Address and lip feature of each mel window, float32 (N, bands, window)."""
        _expect("windows", windows, np.float32, (len(windows), self._spec.mel.bands, self._spec.mel.window))
        address = np.empty((len(windows), self._spec.slots), np.float32)
        lip_feature = np.empty((len(windows), self._spec.lip_channels), np.float32)

        def fill(rows: slice, inputs: Mapping[str, NDArray[Any]]) -> None:
            inputs[bundle.MEL][:, 0] = windows[rows]

        def collect(rows: slice, outputs: Mapping[str, NDArray[Any]]) -> None:
            address[rows] = outputs[bundle.ADDRESS]
            lip_feature[rows] = outputs[bundle.LIP_FEATURE]

        self._memory.stream(len(windows), fill=fill, collect=collect)
        if not (np.isfinite(address).all() and np.isfinite(lip_feature).all()):
            raise BundleInvalid(f"{self._memory.path} recalled no lip feature but NaN or infinity: export the bundle again")
        return Recall(address, lip_feature)

    def draw(self, targets: NDArray[np.uint8], references: NDArray[np.uint8], lip_features: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The targets, uint8 (M, S, S, 3) RGB, with the `drawn` box drawn from references and lip features (M, C)."""
        count, size = len(targets), self._spec.crop.size
        _expect("targets", targets, np.uint8, (count, size, size, 3))
        _expect("references", references, np.uint8, (count, size, size, 3))
        _expect("lip_features", lip_features, np.float32, (count, self._spec.lip_channels))
        return self._drawing.draw(targets, references, lip_features)

    def _open(self, graph: str, device: Device, tuning: Tuning, *, threads: int | None) -> Session:
        expected = bundle.tensors(graph, self._spec)
        return open_session(
            self._folder / graph, device=device, threads=threads, inputs=expected.inputs, outputs=expected.outputs, tuning=tuning
        )

    def _draws_alike(self, session: Session) -> bool:
        """Whether TensorRT, whose float16 is its own, draws what the CPU draws; else a note says that it does not."""
        try:
            on_cpu = ConvertedByHost(self._open(bundle.GENERATOR_GRAPH, "cpu", TUNING, threads=self._threads), self._spec.crop)
            difference = _difference_levels(on_cpu, ConvertedByHost(session, self._spec.crop), self._spec)
        except ModelError as error:
            self._notes += (f"TensorRT: {error}",)
            return False
        if difference > HALF_TOLERANCE_LEVELS:
            self._notes += (f"TensorRT: drawn pictures differ by {difference:.1f} grey levels",)
        return difference <= HALF_TOLERANCE_LEVELS

    def _draw_on_device(self, tuning: Tuning) -> None:
        """Take the rewritten graph in the place of the bundle's: in float16 where that draws the same pictures, else in float32."""
        missing = device_graph.why_not()
        if missing:
            self._notes += (f"float32, and pictures are converted by the CPU: {missing}",)
            return
        by_host = self._drawing
        for half in (True, False):
            try:
                drawing = on_device(self._folder, self._spec, device="cuda", threads=self._threads, half=half, tuning=tuning)
                difference = _difference_levels(by_host, drawing, self._spec)
            except ModelError as error:
                self._notes += (f"{'float16' if half else 'uint8 pictures'}: {error}",)
                continue
            if difference <= HALF_TOLERANCE_LEVELS:
                self._drawing, self._precision = drawing, "float16" if half else "float32"
                return
            self._notes += (f"{'float16' if half else 'uint8 pictures'}: drawn pictures differ by {difference:.1f} grey levels",)


def on_device(
    folder: Path, spec: BundleSpec, *, device: Device, threads: int | None = None, half: bool, tuning: Tuning = TUNING
) -> ConvertedOnDevice:
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
        path, device=device, threads=threads, inputs=names.inputs, outputs=names.outputs, tuning=tuning,
        graph=device_graph.rewritten(graph, spec, half=half),
    )  # fmt: skip
    return ConvertedOnDevice(session, spec.crop)


def _difference_levels(one: Drawing, other: Drawing, spec: BundleSpec) -> float:
    """Mean difference of what two ways of drawing make of the same smooth pictures, in grey levels of 255."""
    targets, references = smooth_pictures(spec.crop, 2), smooth_pictures(spec.crop, 2)[::-1]
    features = np.tile(np.asarray(spec.rest_feature, np.float32), (2, 1))
    y0, y1, x0, x1 = spec.crop.drawn
    drawn = [drawing.draw(targets, references, features)[:, y0:y1, x0:x1].astype(np.float32) for drawing in (one, other)]
    return float(np.abs(drawn[0] - drawn[1]).mean())


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
