"""Pictures into the generator's graph and out of it: converted by the CPU, or as uint8 by a graph that converts on its device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.bundles import bundle
from lipdub.bundles.bundle import BundleSpec
from lipdub.errors import BundleInvalid
from lipdub.generators import device_graph
from lipdub.records import Copied, Drawn
from lipdub.runtime import Session

Pictures = NDArray[np.uint8]
Arrays = Mapping[str, NDArray[Any]]

_HALF_RANGE: Final = np.float32(127.5)
_ZERO: Final = np.float32(0.0)
_ONE: Final = np.float32(1.0)
_TWO: Final = np.float32(2.0)
_LEVELS: Final = np.float32(255.0)


class Drawing(Protocol):
    """Either way of drawing, over an opened session."""

    @property
    def session(self) -> Session:
        """What the pictures go through."""
        ...

    def draw(self, targets: Pictures, references: Pictures, lip_features: NDArray[np.float32]) -> Drawn:
        """See `lipdub.generators.Generator.draw`; shapes and types were checked before."""
        ...


class ConvertedByHost:
    """Drawing through the graph as bundles hold it: float32 (B, 3, S, S) in [-1, 1] on both sides."""

    def __init__(self, session: Session, spec: BundleSpec) -> None:
        self._session = session
        self._spec = spec
        self._crop = crop = spec.crop
        y0, y1, x0, x1 = crop.drawn
        self._planes = np.empty((3, crop.size, crop.size), np.uint8)
        self._levels = np.empty((3, y1 - y0, x1 - x0), np.uint8)

    @property
    def session(self) -> Session:
        """What the pictures go through."""
        return self._session

    def draw(self, targets: Pictures, references: Pictures, lip_features: NDArray[np.float32]) -> Drawn:
        """See `lipdub.generators.Generator.draw`."""
        y0, y1, x0, x1 = self._crop.drawn
        seen = self._crop.masked_from
        drawn = targets.copy(order="C")
        copied = _room_for_copies(self._spec, len(targets))

        def fill(rows: slice, inputs: Arrays) -> None:
            # Below the mask the session's array is 0 from the start and stays so: nothing is ever written there.
            self._to_network(targets[rows, :seen], inputs[bundle.TARGET][:, :, :seen])
            self._to_network(references[rows], inputs[bundle.REFERENCE])
            inputs[bundle.LIP_FEATURE][...] = lip_features[rows]

        def collect(rows: slice, outputs: Arrays) -> None:
            faces = outputs[bundle.FACE]
            for values in outputs.values():
                # Two passes without a temporary; NaN wins in both.
                _require_numbers(np.array([values.min(), values.max()]), self._session)
            self._from_network(faces, drawn[rows, y0:y1, x0:x1])
            if copied is not None:
                painted = outputs[bundle.PAINT_MASK][:, 0]
                np.clip(painted, _ZERO, _ONE, out=painted)
                np.multiply(painted, _LEVELS, out=painted)
                np.rint(painted, out=painted)
                copied.paint_mask[rows] = painted
                copied.flow[rows] = outputs[bundle.FLOW]

        self._session.stream(len(targets), fill=fill, collect=collect)
        return Drawn(drawn, copied)

    def _to_network(self, pictures: Pictures, out: NDArray[np.float32]) -> None:
        """uint8 (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1] into `out`."""
        planes = self._planes[:, : pictures.shape[1]]
        for picture, network in zip(pictures, out, strict=True):
            cv2.split(picture, list(planes))
            np.divide(planes, _HALF_RANGE, out=network, dtype=np.float32)
            np.subtract(network, _ONE, out=network)

    def _from_network(self, faces: NDArray[np.float32], out: Pictures) -> None:
        """float32 (B, 3, h, w) in [-1, 1], which is used up, as uint8 into `out` (B, h, w, 3), rounded, half to even; what lies
        beyond the range is clipped."""
        height, width = faces.shape[2:]
        for face, box in zip(faces, out, strict=True):
            np.add(face, _ONE, out=face)
            np.maximum(face, _ZERO, out=face)
            np.minimum(face, _TWO, out=face)
            np.multiply(face, _HALF_RANGE, out=face)
            cv2.convertScaleAbs(face.reshape(3 * height, width), dst=self._levels.reshape(3 * height, width))
            cv2.merge(list(self._levels), box)


class ConvertedOnDevice:
    """Drawing through the graph that `lipdub.generators.device_graph` makes: uint8 (B, S, S, 3) on both sides, and the host only copies."""

    def __init__(self, session: Session, spec: BundleSpec) -> None:
        self._session = session
        self._spec = spec
        self._crop = spec.crop

    @property
    def session(self) -> Session:
        """What the pictures go through."""
        return self._session

    def draw(self, targets: Pictures, references: Pictures, lip_features: NDArray[np.float32]) -> Drawn:
        """See `lipdub.generators.Generator.draw`."""
        y0, y1, x0, x1 = self._crop.drawn
        drawn = targets.copy(order="C")
        copied = _room_for_copies(self._spec, len(targets))

        def fill(rows: slice, inputs: Arrays) -> None:
            inputs[device_graph.TARGET_LEVELS][...] = targets[rows, : self._crop.masked_from]
            inputs[device_graph.REFERENCE_LEVELS][...] = references[rows]
            inputs[bundle.LIP_FEATURE][...] = lip_features[rows]

        def collect(rows: slice, outputs: Arrays) -> None:
            _require_numbers(outputs[device_graph.FACE_MEAN], self._session)
            drawn[rows, y0:y1, x0:x1] = outputs[device_graph.FACE_LEVELS]
            if copied is not None:
                _require_numbers(outputs[device_graph.PAINTED_MEAN], self._session)
                _require_numbers(outputs[bundle.FLOW], self._session)
                copied.paint_mask[rows] = outputs[device_graph.PAINTED_LEVELS]
                copied.flow[rows] = outputs[bundle.FLOW]

        self._session.stream(len(targets), fill=fill, collect=collect)
        return Drawn(drawn, copied)


def _room_for_copies(spec: BundleSpec, count: int) -> Copied | None:
    """Room for what is copied into `count` crops; None where the bundle does not tell."""
    if not spec.has_flow:
        return None
    y0, y1, x0, x1 = spec.crop.drawn
    height, width = y1 - y0, x1 - x0
    cells = (height // bundle.FLOW_STRIDE, width // bundle.FLOW_STRIDE)
    return Copied(np.empty((count, height, width), np.uint8), np.empty((count, 2, *cells), np.float32))


def _require_numbers(values: NDArray[np.float32], session: Session) -> None:
    if not np.isfinite(values).all():
        raise BundleInvalid(f"{session.path} drew no picture but NaN or infinity: export the bundle again")
