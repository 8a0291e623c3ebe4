"""The bank: pages of a person's own mouth, gathered while the video is watched.

A page is a frame's face with what is known of it. Pages are chosen so that they lie apart in lip shape, pose and light: a face that is as
near to a page as `_Person.apart` is not kept. Where a person has too many pages, that distance grows and pages closer to each other go (the
doubling algorithm for k centres in a stream: Charikar, Chekuri, Feder, Motwani 1997). So memory is bounded, and a talk of two hours is
covered as evenly as one of ten seconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

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
FACE_WEIGHT = 0.01
"""And how little two upper faces correlate: somebody else is no page that is there already."""
LIT = 0.6
"""A page whose skin is darker, or flatter, than this share of what is usual, is not drawn from."""
LEAST_LEVELS, LEAST_SHARPNESS = 8.0, 0.002
"""Differences of light and sharpness below these say nothing."""
CLOSER, SAME_POSE_DEG = 0.9, 7.5
"""A mouth is more closed than others where its opening is below this share of theirs, in about the same pose."""
SHARP = 0.4
"""And so is one that is less sharp than this share of the sharper ones."""
STILL = (0.39, 0.56, 0.26, 0.74)
"""Skin that neither speech nor a blink moves (y0, y1, x0, x1), unit crop: nose, and cheeks beside it."""
UPPER_INNER_LIP, LOWER_INNER_LIP = 35, 25
"""Where mesh points 13 and 14 stand among the 40 lip points."""
OPENING_WEIGHT = 20.0
"""Of the opening, among 80 coordinates."""
INNER, CORNERS = slice(20, 40), (0, 10, 20, 30)
"""The inner ring among the 40 lip points, and where each ring has its corners."""
EYE_DISTANCE = 0.38
"""Distance of the outer eye corners in the unit crop."""
THUMB_PX = 24
"""Side of the small picture of a face that light, cover and likeness are read from."""
UPPER_FACE = (slice(4, 12), slice(5, 19))
"""Brows to the middle of the nose, in the small picture: what neither speech nor a mask changes."""
ALIKE, SAME_COLOUR = 0.93, 8.0
"""Two shots show the same person where upper faces correlate by this much and their mean chroma differs by fewer levels."""
ALIKE_AFTER_COVER = 0.75
"""Before and after a cover it is enough that they correlate by this much: the place is the same."""
DISSOLVE_S = 0.35
"""A dissolve reaches so far beyond what was found of it."""
FACE_NUMBERS = (UPPER_FACE[0].stop - UPPER_FACE[0].start) * (UPPER_FACE[1].stop - UPPER_FACE[1].start)

Look = Callable[[], tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]
"""Cuts a face out: its crop and its detail, as ``ReferenceStore.add`` takes them."""


PAGE_ROWS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "person": (np.dtype(np.int32), ()),
    "frame": (np.dtype(np.int64), ()),
    "lips": (np.dtype(np.float32), (40, 2)),
    "outline": (np.dtype(np.float32), (24, 2)),
    "pose": (np.dtype(np.float32), (2,)),
    "skin": (np.dtype(np.float32), (2,)),
    "sharpness": (np.dtype(np.float32), ()),
}
"""What ``Pages`` has a row per page of: type, and shape of a row."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Pages:
    """What is known of P pages; the picture of page p is reference p of the track's store.

    person: int32 (P,). frame: int64 (P,), number of the source frame.
    lips: float32 (P, 40, 2), outline: float32 (P, 24, 2), unit crop of the page's own picture.
    pose: float32 (P, 2), yaw and pitch in degrees. skin: float32 (P, 2), mean and spread of the brightness of still skin, levels.
    sharpness: float32 (P,), see ``still_sharpness``.
    """

    person: NDArray[np.int32]
    frame: NDArray[np.int64]
    lips: NDArray[np.float32]
    outline: NDArray[np.float32]
    pose: NDArray[np.float32]
    skin: NDArray[np.float32]
    sharpness: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.person)
        for name, (_, tail) in PAGE_ROWS.items():
            value = getattr(self, name)
            if value.shape != (count, *tail):
                raise ValueError(f"{name} must be ({count}, {', '.join(map(str, tail))}), got {value.shape}")

    def __len__(self) -> int:
        return len(self.person)

    def __repr__(self) -> str:
        return f"Pages({len(self)}, people={len(np.unique(self.person))})"

    @property
    def openings(self) -> NDArray[np.float32]:
        """Mouth opening of each page, float32 (P,), as ``landmarks.opening_of`` has it."""
        apart = self.lips[:, UPPER_INNER_LIP] - self.lips[:, LOWER_INNER_LIP]
        return np.asarray(np.linalg.norm(apart, axis=1) / EYE_DISTANCE, np.float32)

    def usable(self) -> NDArray[np.bool_]:
        """Which pages show their person sharply and in about the usual light, bool (P,): what a fade, a flash or a lost focus has spoilt is
        out. Of each person at least one page is usable."""
        usable = np.ones(len(self), bool)
        for person in np.unique(self.person):
            mine = np.flatnonzero(self.person == person)
            skin, sharpness = self.skin[mine] + LEAST_LEVELS, self.sharpness[mine] + LEAST_SHARPNESS
            usual = np.median(skin, axis=0)
            lit = ((skin >= LIT * usual) & (skin <= usual / LIT)).all(axis=1)
            good = lit & (sharpness >= SHARP * np.quantile(sharpness, 0.75))
            good[np.argmax(sharpness * lit)] = True
            usable[mine] = good
        return usable

    def take(self, numbers: NDArray[np.int64]) -> Pages:
        """The pages of these numbers, in their order."""
        return Pages(*(getattr(self, name)[numbers] for name in PAGE_ROWS))

    @classmethod
    def joined(cls, parts: Sequence[Pages]) -> Pages:
        """All pages of all parts, one after another."""
        return cls(
            *(
                np.concatenate([np.zeros((0, *tail), dtype), *(getattr(part, name) for part in parts)]).astype(dtype)
                for name, (dtype, tail) in PAGE_ROWS.items()
            )
        )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Seen:
    """One face of one frame, as the bank is shown it. lips (40, 2) and outline (24, 2) in unit crop; thumb: uint8 (24, 24, 3) RGB."""

    frame: int
    lips: NDArray[np.float32]
    outline: NDArray[np.float32]
    pose: NDArray[np.float32]
    thumb: NDArray[np.uint8]

    @property
    def skin(self) -> NDArray[np.float32]:
        """Mean and spread of the brightness of still skin, levels, float32 (2,)."""
        return skin_of(self.thumb)


def skin_of(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean and spread (standard deviation) of the brightness of the upper face, levels, float32 (2,)."""
    luma = thumb[UPPER_FACE].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.array([luma.mean(), luma.std()], np.float32)


def still_part(picture: NDArray[Any]) -> NDArray[Any]:
    """The part of an aligned crop (S, S, ...) that speech does not move; a view."""
    y0, y1, x0, x1 = still_box(len(picture))
    return picture[y0:y1, x0:x1]


def still_box(size: int) -> tuple[int, int, int, int]:
    """The half-open box (y0, y1, x0, x1) of ``still_part`` in an aligned crop of `size` px."""
    y0, y1, x0, x1 = (round(edge * size) for edge in STILL)
    return y0, y1, x0, x1


def still_sharpness(still: NDArray[np.float32]) -> float:
    """How sharp still skin is whose luma is (h, w), levels: mean squared gradient over the variance, so that light does not count."""
    across, down = np.diff(still, axis=1), np.diff(still, axis=0)
    return float(((across**2).mean() + (down**2).mean()) / (still.var() + 4.0))


def shape_of(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """What of lips (n, 40, 2) is compared, float32 (n, 81): the points, of which the inside of the mouth and its corners count most, and
    the opening, which decides what is seen inside. The mean absolute difference of two is about that of their points."""
    weights = np.ones((40, 1), np.float32)
    weights[INNER] = 1.5
    weights[list(CORNERS)] *= 1.5
    weights /= weights.mean()
    return np.column_stack([(lips * weights).reshape(len(lips), 80), OPENING_WEIGHT * inner_opening(lips)])


def mouth_width(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the corners of the lips (n, 40, 2) are apart, float32 (n,), unit crop."""
    return lips[:, CORNERS[1], 0] - lips[:, CORNERS[0], 0]


def inner_opening(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the inner lips of (n, 40, 2) are apart, float32 (n,), unit crop."""
    return lips[:, LOWER_INNER_LIP, 1] - lips[:, UPPER_INNER_LIP, 1]


@dataclass(slots=True)
class _Person:
    """Pages of one person while the video is watched; arrays that double up to ``PAGES``, of which the first `count` are used."""

    count: int = 0
    apart: float = APART
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(FIRST_ROOM, np.int64))
    frames: NDArray[np.int64] = field(default_factory=lambda: np.zeros(FIRST_ROOM, np.int64))
    _lips: NDArray[np.float32] = field(default_factory=lambda: np.zeros((FIRST_ROOM, 40, 2), np.float32))
    _shape: NDArray[np.float32] = field(default_factory=lambda: np.zeros((FIRST_ROOM, 81), np.float32))
    _outline: NDArray[np.float32] = field(default_factory=lambda: np.zeros((FIRST_ROOM, 24, 2), np.float32))
    _pose: NDArray[np.float32] = field(default_factory=lambda: np.zeros((FIRST_ROOM, 2), np.float32))
    _skin: NDArray[np.float32] = field(default_factory=lambda: np.zeros((FIRST_ROOM, 2), np.float32))
    _sharpness: NDArray[np.float32] = field(default_factory=lambda: np.zeros(FIRST_ROOM, np.float32))
    near: array[int] = field(default_factory=partial(array, "q"))
    """Of every face that became no page its frame, and the frame of the page that it is nearest to."""
    face: NDArray[np.float32] = field(default_factory=lambda: np.zeros((FIRST_ROOM, FACE_NUMBERS), np.float32))
    """Upper faces by which this person is known again, normalised, (room, pixels)."""
    chroma: NDArray[np.float32] = field(default_factory=lambda: np.zeros(2, np.float32))

    @property
    def lips(self) -> NDArray[np.float32]:
        return self._lips[: self.count]

    @property
    def outline(self) -> NDArray[np.float32]:
        return self._outline[: self.count]

    @property
    def pose(self) -> NDArray[np.float32]:
        return self._pose[: self.count]

    @property
    def skin(self) -> NDArray[np.float32]:
        return self._skin[: self.count]

    @property
    def sharpness(self) -> NDArray[np.float32]:
        return self._sharpness[: self.count]

    def pages(self, number: int) -> Pages:
        """Its pages, under the number of the person."""
        frames = self.frames[: self.count]
        return Pages(np.full(self.count, number, np.int32), frames, self.lips, self.outline, self.pose, self.skin, self.sharpness)

    def put(self, number: int, seen: Seen, sharpness: float) -> None:
        at = self.count
        if at == len(self.numbers):
            for name in _GROWING:
                rows = getattr(self, name)
                setattr(self, name, np.concatenate([rows, np.zeros_like(rows)]))
        self._sharpness[at] = sharpness
        self.face[at], self._shape[at] = _normalised(seen.thumb), shape_of(seen.lips[None])[0]
        self.numbers[at], self.frames[at] = number, seen.frame
        self._lips[at], self._outline[at], self._pose[at], self._skin[at] = seen.lips, seen.outline, seen.pose, seen.skin
        self.count += 1

    def distances(
        self, shape: NDArray[np.float32], pose: NDArray[np.float32], brightness: np.float32, face: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """How far a face is from each page: float32 (count,), in mean distance of lip points, unit crop."""
        moved = np.abs(self._shape[: self.count] - shape).mean(axis=1)
        turned = np.abs(self.pose - pose).sum(axis=1)
        lit = np.abs(np.log1p(self.skin[:, 0]) - np.log1p(brightness))
        unlike = 1 - self.face[: self.count] @ face
        return np.asarray(moved + POSE_PER_DEG * turned + LIGHT_WEIGHT * lit + FACE_WEIGHT * unlike, np.float32)

    def is_most_closed(self, seen: Seen) -> bool:
        """Whether no page of about this pose has its mouth nearly as shut: that one matters, for a mouth rests like this."""
        turned = np.abs(self.pose[:, 0] - seen.pose[0]) <= SAME_POSE_DEG
        return bool((inner_opening(seen.lips[None])[0] < CLOSER * inner_opening(self.lips[turned])).all())

    def thin_out(self) -> list[int]:
        """Let a tenth of the pages go; the numbers that went."""
        gone: list[int] = []
        most = max(1, int(0.9 * self.count))
        while self.count > most:
            self.apart *= GROWTH
            keep: list[int] = []
            for at in range(self.count):
                near = self.distances(self._shape[at], self._pose[at], self._skin[at, 0], self.face[at])[keep] if keep else np.ones(1)
                if near.min() > self.apart:
                    keep.append(at)
            gone += np.delete(self.numbers[: self.count], keep).tolist()
            for name in _GROWING:
                rows = getattr(self, name)
                rows[: len(keep)] = rows[keep]
            self.count = len(keep)
        return gone


_GROWING = ("numbers", "frames", "_lips", "_shape", "_outline", "_pose", "_skin", "_sharpness", "face")
"""What ``_Person`` has a row per page of."""


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

    def show(self, track: int, seen: Seen, look: Look) -> None:
        """One face more. look: is asked for its picture only where it becomes a page."""
        number = self._person_of.get(track)
        if number is None:
            number = self._person_of[track] = self._recognised(seen.thumb)
        person = self._people[number]
        if person.count:
            away = person.distances(shape_of(seen.lips[None])[0], seen.pose, seen.skin[0], _normalised(seen.thumb))
            if away.min() <= person.apart and not person.is_most_closed(seen):
                person.near.extend((seen.frame, int(person.frames[away.argmin()])))
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
        person.put(at, seen, still_sharpness(grey.astype(np.float32)))

    def kept(
        self, person: NDArray[np.int32], covered: NDArray[np.bool_], *, step_s: float
    ) -> tuple[Pages, ReferenceStore, NDArray[np.int32], NDArray[np.bool_]]:
        """The pages of the people of a video in the order of their frames, a store of their pictures, who is on each frame (or -1), and
        which frames are covered; the store that was filled is closed.

        person: int32 (N,), who was followed. covered: bool (N,), frames that may not become pages. step_s: from one frame to the next.
        Where a cover parts faces that are not alike, it was a dissolve: they are two people, and what is mixed counts as covered.
        """
        found = [(one, self._people[one]) for one in np.unique(person[person >= 0]).tolist()]
        pages = Pages.joined([has.pages(one) for one, has in found])
        faces = np.concatenate([np.zeros((0, FACE_NUMBERS), np.float32), *(has.face[: has.count] for _, has in found)])
        numbers = np.concatenate([np.zeros(0, np.int64), *(has.numbers[: has.count] for _, has in found)])
        near = {one: np.array(has.near, np.int64).reshape(-1, 2) for one, has in found}
        who, covered = _parted(pages, faces, near, person, covered, max(1, round(DISSOLVE_S / step_s)))
        # A page of a frame in which somebody else was followed, or nobody, shows its own person all the same.
        own = person[pages.frame] == pages.person
        parted = np.isin(pages.person, np.unique(person[(who != person) & (person >= 0)]))
        there = np.isin(pages.person, np.unique(who[~covered]))
        of = np.where(own, who[pages.frame], np.where(parted | ~there, -1, pages.person)).astype(np.int32)
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
        for number in numbers.tolist():
            at, jpeg = store.add(self._store.pixels(number)), self._store.jpeg(number)
            if jpeg:
                store.attach(at, jpeg)
        self._store.close()
        return pages, store, np.where(covered, -1, who).astype(np.int32), covered

    def _recognised(self, thumb: NDArray[np.uint8]) -> int:
        """The person whom an upper face shows: one who is known, or a new one."""
        face, chroma = _normalised(thumb), _chroma(thumb)
        best, number = ALIKE, -1
        for one, person in enumerate(self._people):
            likeness = float((person.face[: person.count] @ face).max(initial=-1))
            if likeness > best and np.abs(person.chroma - chroma).max() < SAME_COLOUR:
                best, number = likeness, one
        if number < 0:
            number = len(self._people)
            self._people.append(_Person(chroma=chroma))
        return number


def _parted(
    pages: Pages,
    faces: NDArray[np.float32],
    near: dict[int, NDArray[np.int64]],
    person: NDArray[np.int32],
    covered: NDArray[np.bool_],
    reach: int,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Who is on each frame, int32 (N,), when people who were taken for one across a cover are told apart, and which frames are covered
    then, bool (N,). faces: (P, pixels), normalised. near: of each person (n, 2),
    a frame that is no page, and that of the page it is nearest to. reach: frames of a dissolve before and after what was found of it."""
    who, hidden, fresh = person.copy(), covered.copy(), int(person.max(initial=-1)) + 1
    for one in np.unique(pages.person).tolist():
        mine = np.flatnonzero(person == one)
        known: list[tuple[int, NDArray[np.float32]]] = []
        before: tuple[int, int] | None = None  # who it was until which frame
        for stretch in np.split(mine, np.flatnonzero(np.diff(covered[mine].astype(np.int8)) != 0) + 1):
            # What is short between two covers may be a mixture itself.
            if covered[stretch[0]] or len(stretch) < 2 * reach:
                continue
            # What became no page looked like one that was there.
            shown = near[one][(near[one][:, 0] >= stretch[0]) & (near[one][:, 0] <= stretch[-1]), 1]
            of = ((pages.frame >= stretch[0]) & (pages.frame <= stretch[-1])) | np.isin(pages.frame, shown)
            here = faces[(pages.person == one) & of]
            if len(here) == 0:  # its pages had to go
                number = one if before is None else before[0]
            else:
                alike = [number for number, others in known if float((here @ others.T).max(initial=-1)) > ALIKE_AFTER_COVER]
                number = alike[0] if alike else fresh if known else one
                fresh += number == fresh
                known.append((number, here))
            if before is None or before[0] == number:
                who[stretch] = number
            else:
                mixed = slice(before[1] - reach, stretch[0] + reach)
                hidden[mixed] |= person[mixed] == one
                who[mine[mine >= stretch[0]]] = number
            before = number, int(stretch[-1]) + 1
    return who, hidden


def _normalised(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The upper face in grey, less its mean, of length 1: float32 (pixels,)."""
    grey = np.asarray(cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY), np.float32)[UPPER_FACE].ravel()
    grey -= grey.mean()
    return grey / max(1e-6, float(np.linalg.norm(grey)))


def _chroma(thumb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean chroma of the upper face, levels, float32 (2,)."""
    return np.asarray(cv2.cvtColor(thumb, cv2.COLOR_RGB2YCrCb)[UPPER_FACE][..., 1:].mean(axis=(0, 1)), np.float32)
