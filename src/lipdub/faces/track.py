"""One person's face over a whole video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipdub.faces.overlays import Overlays
from lipdub.records import Span
from lipdub.references.pages import Pages
from lipdub.references.store import ReferenceStore

DUBBED, NO_FACE, TOO_SMALL, TURNED_AWAY, COVERED, OTHERS = range(6)
WHY = {
    NO_FACE: "no face",
    TOO_SMALL: "face too small",
    TURNED_AWAY: "face turned away",
    COVERED: "mouth covered, or pictures mixed",
    OTHERS: "other faces",
}


@dataclass(frozen=True, slots=True, repr=False)
class FaceTrack:
    """One person's face in every frame of a video; N frames.

    pts: int64 (N,), presentation times in ticks of `time_base` seconds.
    status: uint8 (N,), ``DUBBED`` or the reason for passing the frame through.
    shot: int32 (N,), number of the shot.
    similarity: float64 (N, 4), smoothed frame-to-unit transform.
    outline: float16 (N, P, 2), outline of the mask in unit crop coordinates.
    lips: float16 (N, 40, 2), likewise.
    opening: float32 (N,), inner-lip distance over outer-eye-corner distance.
    pose: float32 (N, 2), yaw and pitch in degrees.
    strength: float32 (N,) in [0, 1], how far a frame is redrawn.
    person: int32 (N,), whose face it is, -1 where not dubbed: whose pages may be drawn from.
    reference: int32 (N,), the page of a closed mouth of about this pose, -1 where not dubbed.
    pages: what is known of the person's own mouths, those of other videos with frames beyond N; the picture of each is in `references`
    under its number.
    overlays: graphics that lie before the face, those of other videos with frames beyond N.
    """

    pts: NDArray[np.int64]
    time_base: Fraction
    status: NDArray[np.uint8]
    shot: NDArray[np.int32]
    similarity: NDArray[np.float64]
    outline: NDArray[np.float16]
    lips: NDArray[np.float16]
    opening: NDArray[np.float32]
    pose: NDArray[np.float32]
    strength: NDArray[np.float32]
    person: NDArray[np.int32]
    reference: NDArray[np.int32]
    pages: Pages
    references: ReferenceStore
    overlays: Overlays = field(default_factory=Overlays)

    def __post_init__(self) -> None:
        for name in ("status", "shot", "similarity", "outline", "lips", "opening", "pose", "strength", "person", "reference"):
            if len(getattr(self, name)) != len(self.pts):
                raise ValueError(f"{name} must have one row per frame, got {len(getattr(self, name))} for {len(self.pts)}")
        if len(self.pages) != self.references.count:
            raise ValueError(f"one picture for each page, got {self.references.count} for {len(self.pages)}")

    def __len__(self) -> int:
        return len(self.pts)

    def __repr__(self) -> str:
        return f"FaceTrack(frames={len(self)}, dubbed={int((self.status == DUBBED).sum())}, references={self.references.count})"

    @property
    def times_s(self) -> NDArray[np.float64]:
        """Presentation times in seconds, float64 (N,)."""
        return self.pts * float(self.time_base)

    @property
    def step_s(self) -> float:
        """From one frame to the next, usually, in seconds."""
        return float(np.median(np.diff(self.pts))) * float(self.time_base) if len(self) > 1 else 0.04

    @property
    def main_person(self) -> int:
        """Who is on most frames; -1 where nobody is."""
        seen = self.person[self.person >= 0]
        return int(np.bincount(seen).argmax()) if len(seen) else -1

    @property
    def page_times_s(self) -> NDArray[np.float64]:
        """When the video shows each page, in seconds, float64 (P,); infinite for pages of other videos."""
        return np.append(self.times_s, np.inf)[np.minimum(self.pages.frame, len(self))]

    def spans(self) -> tuple[Span, ...]:
        """Stretches of frames that are passed through, in order."""
        times = self.times_s
        return tuple(
            Span(first, end, float(times[first]), float(times[end - 1]), WHY[int(self.status[first])])
            for first, end in runs(self.status.astype(np.int64))
            if self.status[first] != DUBBED
        )


def runs(labels: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open stretches of equal labels."""
    if len(labels) == 0:
        return
    edges = np.flatnonzero(np.diff(labels)) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(labels)], strict=True)


def stretches(frames: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open stretches of consecutive frame numbers."""
    for first, end in runs(frames - np.arange(len(frames))):
        yield int(frames[first]), int(frames[end - 1]) + 1
