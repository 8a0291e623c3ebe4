"""The bank: pages of a person's own mouth, gathered while the video is watched.

A page is a frame's face with what is known of it. Pages are chosen so that they lie apart in lip shape, pose and light: a face that is as
near to a page as `_Person.apart` is not kept. Where a person has too many pages, that distance grows and pages closer to each other go (the
doubling algorithm for k centres in a stream: Charikar, Chekuri, Feder, Motwani 1997). So memory is bounded, and a talk of two hours is
covered as evenly as one of ten seconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.references.dissolves import people_parted
from lipdub.references.pages import PAGE_ROWS, Pages, still_part, still_sharpness
from lipdub.references.shapes import SHAPE_NUMBERS, inner_opening, shape_of
from lipdub.references.store import ReferenceStore

PAGES = 256
"""Pages of one person at most."""
FIRST_ROOM = 8
"""Pages that there is room for at first: a film has thousands of people who are seen once."""
ALL_PAGES = 4 * PAGES
"""Pages of all people of a video at most."""
APART = 0.0025
"""Distance of two pages, at first: frames that differ by less show the same mouth."""
GROWTH = 1.3
POSE_PER_DEG = 0.0012
"""What a degree of yaw or pitch counts as, in mean distance of lip points (unit crop)."""
LIGHT_WEIGHT = 0.02
"""And the logarithm of the skin's brightness."""
SIZE_WEIGHT = 0.02
"""And the logarithm of the face's size: a close-up is to have pages of its own."""
FACE_WEIGHT = 0.01
"""And how little two upper faces correlate: somebody else is no page that is there already."""
CLOSER, SAME_POSE_DEG = 0.9, 7.5
"""A mouth is more closed than others where its opening is below this share of theirs, in about the same pose."""
THUMB_PX = 24
"""Side of the small picture of a face that light, cover and likeness are read from."""
UPPER_FACE = (slice(4, 12), slice(5, 19))
"""Brows to the middle of the nose, in the small picture: what neither speech nor a mask changes."""
FACE_NUMBERS = (UPPER_FACE[0].stop - UPPER_FACE[0].start) * (UPPER_FACE[1].stop - UPPER_FACE[1].start)
ALIKE, SAME_COLOUR = 0.93, 8.0
"""Two shots show the same person where upper faces correlate by this much and their mean chroma differs by fewer levels."""
DISSOLVE_S = 0.35
"""A dissolve reaches so far beyond what was found of it."""

Look = Callable[[], tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]
"""Cuts a face out: its crop and its detail, as ``ReferenceStore.add`` takes them."""

_ROWS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    **{name: row for name, row in PAGE_ROWS.items() if name != "person"},
    "side_px": (np.dtype(np.float32), ()),
    "shape": (np.dtype(np.float32), (SHAPE_NUMBERS,)),
    "face": (np.dtype(np.float32), (FACE_NUMBERS,)),
    "number": (np.dtype(np.int64), ()),
}
"""What ``_Person`` has a row per page of: type, and shape of a row; `number` is that of its picture in the store."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Seen:
    """One face of one frame, as the bank is shown it.

    lips (40, 2) and outline (24, 2) in unit crop, pose (2,) in degrees, all float32. similarity: float64 (4,), frame-to-unit.
    skin: float32 (2,), mean and spread of the brightness of the upper face, levels. face: float32 (FACE_NUMBERS,), the upper face in grey,
    less its mean, of length 1. chroma: float32 (2,).
    """

    frame: int
    lips: NDArray[np.float32]
    outline: NDArray[np.float32]
    pose: NDArray[np.float32]
    similarity: NDArray[np.float64]
    skin: NDArray[np.float32]
    face: NDArray[np.float32]
    chroma: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        frame: int,
        lips: NDArray[np.float32],
        outline: NDArray[np.float32],
        pose: NDArray[np.float32],
        similarity: NDArray[np.float64],
        thumb: NDArray[np.uint8],
    ) -> Seen:
        """With what is read off the small picture of the face, `thumb`, uint8 (THUMB_PX, THUMB_PX, 3) RGB."""
        luma = thumb[UPPER_FACE].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        grey = np.asarray(cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY), np.float32)[UPPER_FACE].ravel()
        grey -= grey.mean()
        chroma = cv2.cvtColor(thumb, cv2.COLOR_RGB2YCrCb)[UPPER_FACE][..., 1:].mean(axis=(0, 1))
        return cls(
            frame, lips, outline, pose, similarity, np.array([luma.mean(), luma.std()], np.float32),
            grey / max(1e-6, float(np.linalg.norm(grey))), np.asarray(chroma, np.float32),
        )  # fmt: skip

    @property
    def side_px(self) -> float:
        """Side of the unit crop in the frame."""
        return float(1 / np.hypot(*self.similarity[:2]))

    @property
    def shape(self) -> NDArray[np.float32]:
        """See ``shape_of``, float32 (SHAPE_NUMBERS,)."""
        return shape_of(self.lips[None])[0]


@dataclass(slots=True)
class _Person:
    """Pages of one person while the video is watched; there is room for `FIRST_ROOM`, which doubles up to ``PAGES``."""

    chroma: NDArray[np.float32]
    count: int = 0
    apart: float = APART
    near: array[int] = field(default_factory=partial(array, "q"))
    """Of every face that became no page its frame, and the frame of the page that it is nearest to."""
    _room: dict[str, NDArray[Any]] = field(
        default_factory=lambda: {name: np.zeros((FIRST_ROOM, *tail), dtype) for name, (dtype, tail) in _ROWS.items()}
    )

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column of ``_ROWS``, a row per page."""
        return self._room[name][: self.count]

    def pages(self, number: int) -> Pages:
        """Its pages, under the number of the person."""
        return Pages(np.full(self.count, number, np.int32), *(self[name] for name in PAGE_ROWS if name != "person"))

    def put(self, page: Mapping[str, Any]) -> None:
        """One page more. page: a row of each of ``_ROWS``."""
        for name, rows in self._room.items():
            if self.count == len(rows):
                rows = self._room[name] = np.concatenate([rows, np.zeros_like(rows)])
            rows[self.count] = page[name]
        self.count += 1

    def distances(self, page: Mapping[str, Any]) -> NDArray[np.float32]:
        """How far a face is from each page: float32 (count,), in mean distance of lip points, unit crop."""
        moved = np.abs(self["shape"] - page["shape"]).mean(axis=1)
        turned = np.abs(self["pose"] - page["pose"]).sum(axis=1)
        lit = np.abs(np.log1p(self["skin"][:, 0]) - np.log1p(page["skin"][0]))
        sized = np.abs(np.log(self["side_px"] / page["side_px"]))
        unlike = 1 - self["face"] @ page["face"]
        away = moved + POSE_PER_DEG * turned + LIGHT_WEIGHT * lit + SIZE_WEIGHT * sized + FACE_WEIGHT * unlike
        return np.asarray(away, np.float32)

    def is_most_closed(self, seen: Seen) -> bool:
        """Whether no page of about this pose has its mouth nearly as shut: that one matters, for a mouth rests like this."""
        turned = np.abs(self["pose"][:, 0] - seen.pose[0]) <= SAME_POSE_DEG
        return bool((inner_opening(seen.lips[None])[0] < CLOSER * inner_opening(self["lips"][turned])).all())

    def thin_out(self) -> list[int]:
        """Let a tenth of the pages go; the numbers that went."""
        gone: list[int] = []
        most = max(1, int(0.9 * self.count))
        while self.count > most:
            self.apart *= GROWTH
            keep: list[int] = []
            for at in range(self.count):
                away = self.distances({name: self[name][at] for name in ("shape", "pose", "skin", "side_px", "face")})[keep]
                if away.min(initial=np.inf) > self.apart:
                    keep.append(at)
            gone += np.delete(self["number"], keep).tolist()
            for rows in self._room.values():
                rows[: len(keep)] = rows[keep]
            self.count = len(keep)
        return gone


class BankFiller:
    """Fills a store with pages while the faces of a video go by; says who is the same person in another shot."""

    def __init__(self, store: ReferenceStore) -> None:
        self._store = store
        self._people: list[_Person] = []
        self._person_of: dict[int, int] = {}
        self._free: list[int] = []

    def person_of(self, track: int) -> int:
        """The person whom a track (of one shot) shows. Raises KeyError: a track that was never shown."""
        return self._person_of[track]

    def most_like(self, seen: Seen) -> tuple[int, float]:
        """Who looks most as a face does, and how much, up to 1; (-1, -1) where nobody is known."""
        found = [float((person["face"] @ seen.face).max(initial=-1)) for person in self._people]
        return (int(np.argmax(found)), max(found)) if found else (-1, -1.0)

    def show(self, track: int, seen: Seen, look: Look) -> None:
        """One face more. look: is asked for its picture only where it becomes a page."""
        number = self._person_of.get(track)
        if number is None:
            number = self._person_of[track] = self._recognised(seen)
        person = self._people[number]
        page: dict[str, Any] = {name: getattr(seen, name) for name in _ROWS if name not in ("sharpness", "number")}
        if person.count:
            away = person.distances(page)
            if away.min() <= person.apart and not person.is_most_closed(seen):
                person.near.extend((seen.frame, int(person["frame"][away.argmin()])))
                return
        if person.count == PAGES or (not self._free and self._store.count >= ALL_PAGES):
            self._free += (person if person.count == PAGES else max(self._people, key=lambda one: one.count)).thin_out()
            if not self._free and person.count:  # everybody has one
                return
        pixels, detail = look()
        if self._free:
            at = self._free.pop()
            self._store.replace(at, pixels, detail)
        else:
            at = self._store.add(pixels, detail)
        grey = cv2.cvtColor(still_part(pixels if detail is None else detail), cv2.COLOR_RGB2GRAY)
        person.put(page | {"sharpness": still_sharpness(grey.astype(np.float32)), "number": at})

    def kept(
        self, person: NDArray[np.int32], covered: NDArray[np.bool_], *, step_s: float
    ) -> tuple[Pages, ReferenceStore, NDArray[np.int32], NDArray[np.bool_]]:
        """The pages of the people of a video in the order of their frames, a store of their pictures, who is on each frame (or -1), and
        which frames are covered. What was filled stays as it is.

        person: int32 (N,), who was followed. covered: bool (N,), frames that may not become pages. step_s: from one frame to the next.
        Where a cover parts faces that are not alike, it was a dissolve: they are two people, and what is mixed counts as covered.
        """
        found = [(one, self._people[one]) for one in np.unique(person[person >= 0]).tolist()]
        pages = Pages.joined([has.pages(one) for one, has in found])
        faces = np.concatenate([np.zeros((0, FACE_NUMBERS), np.float32), *(has["face"] for _, has in found)])
        numbers = np.concatenate([np.zeros(0, np.int64), *(has["number"] for _, has in found)])
        near = {one: np.array(has.near, np.int64).reshape(-1, 2) for one, has in found}
        who, covered = people_parted(pages, faces, near, person, covered, max(1, round(DISSOLVE_S / step_s)))
        # A page of a frame in which somebody else was followed, or nobody, shows its own person all the same.
        own = person[pages.frame] == pages.person
        was_parted = np.isin(pages.person, np.unique(person[(who != person) & (person >= 0)]))
        there = np.isin(pages.person, np.unique(who[~covered]))
        of = np.where(own, who[pages.frame], np.where(was_parted | ~there, -1, pages.person)).astype(np.int32)
        order = np.argsort(pages.frame, kind="stable")
        order = order[of[order] >= 0]
        pages, numbers, own = replace(pages, person=of).take(order), numbers[order], own[order]
        spoilt = covered[pages.frame] & own
        for one in np.unique(pages.person):  # who has no other page keeps those
            mine = pages.person == one
            spoilt[mine] &= not spoilt[mine].all()
        pages, numbers = pages.take(np.flatnonzero(~spoilt)), numbers[~spoilt]
        covered = covered | ((who >= 0) & ~np.isin(who, pages.person))  # whose pages all had to go cannot be drawn
        store = ReferenceStore(self._store.size)
        store.copy(self._store, numbers)
        return pages, store, np.where(covered, -1, who).astype(np.int32), covered

    def _recognised(self, seen: Seen) -> int:
        """The person whom a face shows: one who is known, or a new one."""
        best, number = ALIKE, -1
        for one, person in enumerate(self._people):
            likeness = float((person["face"] @ seen.face).max(initial=-1))
            if likeness > best and np.abs(person.chroma - seen.chroma).max() < SAME_COLOUR:
                best, number = likeness, one
        if number < 0:
            number = len(self._people)
            self._people.append(_Person(seen.chroma))
        return number
