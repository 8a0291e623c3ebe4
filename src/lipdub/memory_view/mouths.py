"""Mouths drawn on one and the same face, the portrait, so that only the lip features make a difference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.errors import NoFaceFound
from lipdub.faces import crop
from lipdub.faces.analysis import analyse
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.landmarks import opening_of
from lipdub.faces.track import DUBBED
from lipdub.media.planes import RgbPicture
from lipdub.model import Model
from lipdub.paste.blend import paste
from lipdub.records import FrameChunk

FRAMES_SEARCHED = 150
"""The portrait is taken from so many first frames of a video."""
MEASURED_PX = 384
"""Drawn crops are enlarged to this side before the detector measures them."""
PIECE = 32

Tell = Callable[[int], None]
"""Told how many are done."""


@dataclass(frozen=True, slots=True, repr=False)
class PortraitCrop:
    """An aligned crop and what is needed to draw on it. target, reference: uint8 (S, S, 3). outline: float32 (P, 2), unit crop."""

    target: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    outline: NDArray[np.float32]


def find_portrait(path: Path, size: int, *, detectors: DetectorFactory = MediapipeDetector) -> PortraitCrop:
    """The face of a photo, or in a video the one of its first frames that faces the camera most squarely.

    size: side of the crop in px.
    detectors: makes what finds faces.

    Raises UnreadableMedia, NoVideoStream, NoFaceFound.
    """
    with closing(detectors()) as detector, closing(media.read_planes(path)) as chunks:
        track = analyse(takewhile(lambda chunk: chunk.index < FRAMES_SEARCHED, chunks), detector, size=size)
    with closing(track.references):
        usable = np.flatnonzero(track.status == DUBBED)
        if len(usable) == 0:
            raise NoFaceFound(f"no face in the first {len(track)} frames of '{path}' that could be redrawn; give another one with --face")
        chosen = int(usable[np.abs(track.pose[usable]).sum(axis=1).argmin()])
        outline = track.outline[[chosen]].astype(np.float32)
        chunk = media.read_span(path, track.pts, chosen, chosen + 1)
        taken = crop.take(chunk, np.zeros(1, np.int64), track.similarity[[chosen]], outline, size)
        return PortraitCrop(taken.pixels[0], track.references.pixels(int(track.reference[chosen])), outline[0])


def draw(model: Model, portrait: PortraitCrop, lip_features: NDArray[np.float32], *, on_drawn: Tell | None = None) -> NDArray[np.uint8]:
    """The portrait with each of `lip_features` (N, C): uint8 (N, S, S, 3), pasted as a dub is."""
    spec = model.spec.crop
    pictures = np.empty((len(lip_features), spec.size, spec.size, 3), np.uint8)
    for first in range(0, len(lip_features), PIECE):
        piece = lip_features[first : first + PIECE]
        rows = np.arange(len(piece))
        targets, references, outlines = (
            np.repeat(one[np.newaxis], len(piece), axis=0) for one in (portrait.target, portrait.reference, portrait.outline)
        )
        to_unit = np.tile([1 / spec.size, 0, 0, 0], (len(piece), 1))
        drawn = model.generator.draw(targets, references, np.ascontiguousarray(piece, np.float32))
        chunk = media.to_planes(FrameChunk(0, targets, rows, Fraction(1, 25)))
        paste(chunk, crop.take(chunk, rows, to_unit, outlines, spec.size), drawn, np.ones(len(piece), np.float32), spec)
        for row in rows:
            pictures[first + row] = chunk.picture(int(row)).rgb(0, 0, spec.size, spec.size)
        if on_drawn is not None:
            on_drawn(first + len(piece))
    return pictures


def measure_openings(
    pictures: NDArray[np.uint8], *, detectors: DetectorFactory = MediapipeDetector, on_measured: Tell | None = None
) -> NDArray[np.float64]:
    """Mouth opening in each of `pictures` (N, S, S, 3), as the detector sees it in a still: float64 (N,), NaN where it sees no face."""
    openings = np.full(len(pictures), np.nan)
    with closing(detectors()) as detector:
        for number, picture in enumerate(pictures):
            # The same face in the same place: what was followed from the picture before would lag behind.
            detector.reset()
            large = np.asarray(cv2.resize(picture, (MEASURED_PX, MEASURED_PX), interpolation=cv2.INTER_CUBIC), np.uint8)
            faces = detector.detect(RgbPicture(large))
            if faces:
                openings[number] = opening_of(max(faces, key=lambda face: float(face.box[3] - face.box[1])).landmarks)
            if on_measured is not None:
                on_measured(number + 1)
    return openings
