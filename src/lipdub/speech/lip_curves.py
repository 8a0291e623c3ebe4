"""Lip motion as curves for animators: what a face rig calls its mouth shapes.

Names are those of ARKit's blend shapes (developer.apple.com, ``ARFaceAnchor.BlendShapeLocation``) where the meaning is equal: 0 is the
resting mouth, 1 as far as people move it. What lips do behind closed teeth is not heard: ``mouthClose``, ``mouthRoll`` and their like are
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub.errors import BundleInvalid
from lipdub.references.shapes import CORNERS, EYE_DISTANCE, LOWER_INNER_LIP, UPPER_INNER_LIP, inner_opening, mouth_width
from lipdub.speech.lip_track import lips_at, pauses_in
from lipdub.speech.memory import Memory

FULLY_OPEN = 0.35
"""Opening, over eye distance, that is a fully open jaw of speech: footage passes 0.24 in one frame of a thousand."""
FULLY_NARROW, FULLY_WIDE = 0.052, 0.027
"""How much narrower the mouth gets, and how far out a corner goes, in one frame of a thousand; unit crop."""
FULLY_UP, FULLY_DOWN = 0.03, 0.06
"""How far the upper lip is raised and the lower one drops, likewise."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LipCurves:
    """Curves of N moments. times_s: float64 (N,). pause: float32 (N,), from 0 (sounding) to 1. shapes: by ARKit's name, float32 (N,) in
    [0, 1]."""

    times_s: NDArray[np.float64]
    pause: NDArray[np.float32]
    shapes: dict[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        if any(len(curve) != len(self.times_s) for curve in (self.pause, *self.shapes.values())):
            raise ValueError("all curves have a value for each moment")

    def rows(self) -> Iterator[dict[str, float]]:
        """One moment after the other: time_s, pause, and the shapes."""
        for row, time_s in enumerate(self.times_s.tolist()):
            values = {"pause": self.pause, **self.shapes}
            yield {"time_s": round(time_s, 6), **{name: round(float(curve[row]), 4) for name, curve in values.items()}}


def shapes_of(points: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """ARKit's shapes of lips (n, 40, 2) relative to the resting mouth, unit crop; each float32 (n,) in [0, 1]."""
    right, left = (points[:, corner, 0] for corner in CORNERS[:2])  # the person's right corner lies left in the picture
    up, down = -points[:, UPPER_INNER_LIP, 1], points[:, LOWER_INNER_LIP, 1]
    found = {
        "jawOpen": inner_opening(points) / (FULLY_OPEN * EYE_DISTANCE),
        "mouthPucker": -mouth_width(points) / FULLY_NARROW,
        "mouthStretchLeft": left / FULLY_WIDE,
        "mouthStretchRight": -right / FULLY_WIDE,
        "mouthUpperUpLeft": up / FULLY_UP,
        "mouthUpperUpRight": up / FULLY_UP,
        "mouthLowerDownLeft": down / FULLY_DOWN,
        "mouthLowerDownRight": down / FULLY_DOWN,
    }
    return {name: np.clip(curve, 0, 1).astype(np.float32) for name, curve in found.items()}


def lip_curves(speech: Path, memory: Memory, *, rate_hz: float, seconds: float) -> LipCurves:
    """What the lips of `speech` do, `rate_hz` times a second from 0 to `seconds`, at rest where it pauses.

    Raises UnreadableMedia, NoAudioStream; BundleInvalid: the memory does not tell where lips lie.
    """
    if not memory.spec.points:
        raise BundleInvalid(f"the bundle '{memory.spec.name}' does not tell where lips lie; use base, or export yours again")
    times_s = np.arange(max(1, round(seconds * rate_hz))) / rate_hz
    points, silence = [], []
    with closing(lips_at(speech, memory, times_s, pauses_in(speech))) as pieces:
        for lips in pieces:
            assert lips.points is not None  # the bundle tells them
            points.append(lips.points * (1 - lips.silence)[:, None, None])
            silence.append(lips.silence)
    return LipCurves(times_s, np.concatenate(silence), shapes_of(np.concatenate(points)))
