"""Who is in a video, and which of them is meant: people numbered by how large they are and for how long, and ways to name one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipdub.errors import NoFaceFound
from lipdub.faces.crop import to_unit, unit_px
from lipdub.options import FaceChoice

MOVING_OPENING = 0.012
"""Lips move where the opening differs by this much, in eye distances, from its mean over the half second around."""
SHORTEST_S = 0.5
"""Who is seen for less is not counted."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Sightings:
    """All faces of a video, one row each, by frame; M in all.

    frame: int64 (M,). person: int64 (M,). similarity: float64 (M, 4), frame-to-unit. height_px, opening: float64 (M,).
    times_s: float64 (N,), when each frame of the video is shown.
    """

    frame: NDArray[np.int64]
    person: NDArray[np.int64]
    similarity: NDArray[np.float64]
    height_px: NDArray[np.float64]
    opening: NDArray[np.float64]
    times_s: NDArray[np.float64]

    def chosen(self, choice: FaceChoice) -> int:
        """The person whom a choice means. Raises NoFaceFound: there is none."""
        order = self.by_prominence()
        if choice.number is not None:
            if choice.number > len(order):
                raise NoFaceFound(f"there is no face {choice.number}, there are {len(order)}; lipdub faces shows them")
            return order[choice.number - 1]
        near = np.flatnonzero(np.abs(self.times_s - choice.at_s) == np.abs(self.times_s - choice.at_s).min())
        rows = np.flatnonzero(np.isin(self.frame, near))
        place = np.array([choice.place_px], np.float32)
        away = [float(np.abs(to_unit(place, self.similarity[row]) - 0.5).max()) for row in rows]
        if not away or min(away) > 0.5:
            x, y = choice.place_px
            raise NoFaceFound(f"there is no face at {x},{y} px at {choice.at_s:g} s; lipdub faces shows who is there")
        return int(self.person[rows[int(np.argmin(away))]])

    def by_prominence(self) -> list[int]:
        """People who are seen for ``SHORTEST_S`` or more, the largest and longest on screen first; all, where none is seen so long."""
        people = np.unique(self.person).tolist()
        long = [one for one in people if self.seconds(one) >= SHORTEST_S]
        # By the upper face: a dub must not change who is number 2.
        side_px = unit_px(self.similarity)
        return sorted(long or people, key=lambda one: -float((side_px[self.person == one] ** 2).sum()))

    def seconds(self, person: int) -> float:
        """For how long a person is seen."""
        return len(np.unique(self.frame[self.person == person])) * self._step_s

    def moving_share(self, person: int) -> float:
        """The share of that time in which the lips move, 0 to 1."""
        return float(moving(self.opening[self.person == person], self._step_s).mean())

    @property
    def _step_s(self) -> float:
        return float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else 0.04


def moving(opening: NDArray[np.floating], step_s: float) -> NDArray[np.bool_]:  # type: ignore[type-arg]
    """Where lips of these openings (n,) move, bool (n,); nowhere, where they are seen for less than half a second."""
    reach = max(1, round(0.25 / step_s))
    if len(opening) < 2 * reach + 1:
        return np.zeros(len(opening), bool)
    window = np.ones(2 * reach + 1) / (2 * reach + 1)
    padded = np.pad(opening.astype(np.float64), reach, mode="edge")
    mean = np.convolve(padded, window, "valid")
    return np.asarray(np.sqrt(np.maximum(np.convolve(padded**2, window, "valid") - mean**2, 0)) > MOVING_OPENING)


@dataclass(frozen=True, slots=True)
class Person:
    """One person of a video. number: as `FaceChoice` takes it. seconds: on screen. height_px: of the face, median. first_s: when first
    seen. moving: share of the time in which the lips move. at_s: when the face is largest; similarity: frame-to-unit there."""

    number: int
    seconds: float
    height_px: float
    first_s: float
    moving: float
    at_s: float
    similarity: tuple[float, float, float, float]


def people_in(seen: Sightings) -> list[Person]:
    """Everybody who is seen, as they are numbered."""
    found = []
    for number, one in enumerate(seen.by_prominence(), 1):
        rows = np.flatnonzero(seen.person == one)
        best = rows[int(np.argmax(seen.height_px[rows]))]
        a, b, tx, ty = seen.similarity[best].tolist()
        found.append(
            Person(
                number, seen.seconds(one), float(np.median(seen.height_px[rows])), float(seen.times_s[seen.frame[rows].min()]),
                seen.moving_share(one), float(seen.times_s[seen.frame[best]]), (a, b, tx, ty),
            )
        )  # fmt: skip
    return found
