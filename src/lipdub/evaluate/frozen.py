"""A mouth that does not move: the row below which no dub may fall."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipdub.bundles.bundle import BundleSpec
from lipdub.faces.track import FaceTrack
from lipdub.records import Copied, Drawn


class FrozenMouth:
    """A generator that draws the reference's own pixels, whatever is said: same crop, mask and paste as the model of `spec`."""

    def __init__(self, spec: BundleSpec) -> None:
        self._spec = spec

    @property
    def provider(self) -> str:
        """No network runs."""
        return "none"

    @property
    def preferred_batch(self) -> int:
        """Nothing is gained by many at once."""
        return 8

    def draw(self, targets: NDArray[np.uint8], references: NDArray[np.uint8], lip_features: NDArray[np.float32]) -> Drawn:
        """The targets with the drawn box of the references, all of it copied from its own place."""
        y0, y1, x0, x1 = self._spec.crop.drawn
        drawn = targets.copy()
        drawn[:, y0:y1, x0:x1] = references[:, y0:y1, x0:x1]
        box = (len(drawn), y1 - y0, x1 - x0)
        return Drawn(drawn, Copied(np.zeros(box, np.uint8), np.zeros((len(drawn), 2, 1, 1), np.float32)))


def with_one_reference(track: FaceTrack) -> FaceTrack:
    """The track with the reference that most frames have as that of all: one and the same mouth throughout."""
    used = track.reference[track.reference >= 0]
    if len(used) == 0:
        return track
    numbers, counts = np.unique(used, return_counts=True)
    most = np.int32(numbers[counts.argmax()])
    return replace(track, reference=np.where(track.reference >= 0, most, track.reference).astype(np.int32))
