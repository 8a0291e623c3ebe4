"""``choose``: which page of the person's own mouths each frame is drawn from, and where its lips and jaw go; before a pixel is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipdub.faces.crop import JAW
from lipdub.faces.smoothing import OUTLINE_SMOOTH_S, smooth
from lipdub.faces.track import DUBBED, FaceTrack, runs
from lipdub.options import Draw
from lipdub.references.bank import CORNERS, LOWER_INNER_LIP, Pages, inner_opening, mouth_width, shape_of
from lipdub.references.unit_selection import UnitSelection
from lipdub.row_file import RowFile
from lipdub.speech.lip_track import PAUSE, LipTrack
from lipdub.timeline import Timeline

BLOCK_FRAMES = 1024
REST_SHARE = 0.2
"""A person's resting mouth is the mean of this share of the most closed ones, as in training."""
FEWEST_RESTING = 3
POSE_RIDGE_DEG = 4.0
"""How much the head has to have turned before the resting mouth is taken to change with it."""
CHIN_SHARE = 0.8
"""The chin moves by this share of what the lower lip does."""
CHIN_REACH = 0.13
"""Sigma of how the jaw follows, along it, unit crop."""
RANGE = (0.1, 0.9)
"""Quantiles of opening and width between which a person's own range and the recalled one are compared."""
MOST_GAIN, LEAST_GAIN = 1.6, 0.6
FEWEST_PAGES = 6
"""With fewer pages than this the mouth is painted."""
COVERED_SHARE, MOST_SHORT = 0.9, 0.016
"""And where so many of the wanted mouths are further open than the nearest page, by this much of the crop's side."""
SAMPLE_FRAMES, SAMPLES = 50, 16
FORBIDDEN = np.float32(1)
"""What a page that may not be used costs: a whole crop's side."""

_POINTS = 40 + 24


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Chosen:
    """What N frames are drawn from. page: int64 (N,), -1 where the mouth is painted by the network. points: float32 (N, 64, 2), where the
    page's lips (40) and outline (24) are to lie, unit crop."""

    page: NDArray[np.int64]
    points: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Chosen:
        """Those of these frames."""
        return Chosen(self.page[rows], self.points[rows])


class Choices:
    """What each frame of an output is drawn from, in order. Lies in an unnamed temporary file. For one thread at a time."""

    def __init__(self) -> None:
        self._rows = RowFile(1 + 2 * _POINTS)
        self.painted = 0
        """Frames whose mouth is to be painted."""

    def __len__(self) -> int:
        return self._rows.count

    def add(self, page: NDArray[np.int64], points: NDArray[np.float32]) -> None:
        """Put the next frames at the end."""
        self._rows.extend(np.column_stack([page, points.reshape(len(page), 2 * _POINTS)]))

    def frames(self, first: int, end: int) -> Chosen:
        """The frames [first, end)."""
        rows = self._rows.rows(np.arange(first, end))
        return Chosen(rows[:, 0].astype(np.int64), rows[:, 1:].reshape(end - first, _POINTS, 2))

    def close(self) -> None:
        """Give the file back."""
        self._rows.close()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Mouth:
    """How one person's mouth rests, and how far it moves.

    rest: (40, 2), unit crop, at the pose `pose` (2,); turning: (2, 40, 2), its change with a degree of yaw and of pitch.
    """

    rest: NDArray[np.float32]
    pose: NDArray[np.float32]
    turning: NDArray[np.float32]

    @classmethod
    def of(cls, pages: Pages, closed: float) -> Mouth:
        """Of a person's pages; `closed`: opening up to which a mouth counts as closed."""
        order = np.argsort(pages.openings, kind="stable")
        shut = order[: max(min(len(order), FEWEST_RESTING), int((pages.openings <= closed).sum()))]
        rest, pose = pages.lips[shut].mean(axis=0), pages.pose[shut].mean(axis=0)
        turned = (pages.pose[shut] - pose).astype(np.float64)
        ridge = len(shut) * POSE_RIDGE_DEG**2 * np.eye(2)
        turning = np.linalg.solve(turned.T @ turned + ridge, turned.T @ (pages.lips[shut] - rest).reshape(len(shut), 80))
        return cls(rest, pose, turning.reshape(2, 40, 2).astype(np.float32))

    def at(self, pose: NDArray[np.float32]) -> NDArray[np.float32]:
        """The resting mouth at poses (n, 2): float32 (n, 40, 2)."""
        return np.asarray(self.rest + np.einsum("np,pkc->nkc", pose - self.pose, self.turning), np.float32)


def choose(track: FaceTrack, shown: Timeline, lips: LipTrack, *, draw: Draw = "auto", exclude_s: float = 0.0) -> Choices:
    """What each frame of `shown` is drawn from; the caller closes it.

    draw: "warp" from pages wherever a person has one, "paint" nothing, "auto" where the pages show what is wanted. exclude_s: pages that
    lie as near as this to the frame that is redrawn are not used: for measuring.
    """
    choices = Choices()
    wanted = _Wishes(track, shown, lips)
    usable = track.pages.usable()
    try:
        for first, end in runs(_labels(track, shown)):
            person = int(track.person[shown.source[first]])
            pages = np.flatnonzero(track.pages.person == person)
            if person < 0 or draw == "paint" or not lips.has_points or (draw == "auto" and not wanted.covered(person)):
                choices.painted += (end - first) * (person >= 0)
                for start in range(first, end, BLOCK_FRAMES):
                    rows = min(end, start + BLOCK_FRAMES) - start
                    choices.add(np.full(rows, -1), np.zeros((rows, _POINTS, 2), np.float32))
                continue
            selection = UnitSelection(track.pages.take(pages), usable[pages])
            at = first
            for piece in selection.cheapest(_costs(selection, wanted, track, shown, (first, end), pages, exclude_s)):
                choices.add(pages[piece], wanted.points(at, at + len(piece)))
                at += len(piece)
    except BaseException:
        choices.close()
        raise
    return choices


def _costs(
    selection: UnitSelection,
    wanted: _Wishes,
    track: FaceTrack,
    shown: Timeline,
    frames: tuple[int, int],
    pages: NDArray[np.int64],
    exclude_s: float,
) -> Iterator[NDArray[np.float32]]:
    """What each page costs at each output frame of [first, end), some frames at a time, float32 (n, P)."""
    for start in range(*frames, BLOCK_FRAMES):
        end = min(frames[1], start + BLOCK_FRAMES)
        source = shown.source[start:end]
        found = selection.costs(wanted.points(start, end)[:, :40], track.pose[source])
        if exclude_s > 0:
            away = np.abs(track.times_s[source][:, None] - track.times_s[track.pages.frame[pages]][None])
            found = np.where(away < exclude_s, FORBIDDEN, found)
        yield found


def _labels(track: FaceTrack, shown: Timeline) -> NDArray[np.int64]:
    """Numbers that change with the shot and with the person on it, int64 (K,)."""
    return track.shot[shown.source].astype(np.int64) * (int(track.person.max()) + 2) + track.person[shown.source]


class _Wishes:
    """Where lips and jaw are to lie in every frame."""

    def __init__(self, track: FaceTrack, shown: Timeline, lips: LipTrack) -> None:
        self._track, self._shown, self._lips = track, shown, lips
        times = np.diff(track.pts)
        self._step_s = float(np.median(times)) * float(track.time_base) if len(times) else 0.04
        recalled = self._recalled_range()
        self._mouths: dict[int, Mouth] = {}
        self._gain: dict[int, NDArray[np.float32]] = {}
        for person in np.unique(track.pages.person).tolist():
            frames = np.flatnonzero((track.person == person) & (track.status == DUBBED))
            if not len(frames):  # none of theirs is redrawn
                continue
            openings = track.opening[frames]
            self._mouths[person] = Mouth.of(
                track.pages.take(np.flatnonzero(track.pages.person == person)), float(np.quantile(openings, REST_SHARE))
            )
            own = _range_of(track.lips[frames[:: max(1, len(frames) // 20000)]].astype(np.float32))
            self._gain[person] = np.clip(own / np.maximum(recalled, 1e-4), LEAST_GAIN, MOST_GAIN).astype(np.float32)

    def covered(self, person: int) -> bool:
        """Whether the person's pages show the inside of the mouth about as far open as is wanted: what no page shows has to be painted."""
        pages = self._track.pages.take(np.flatnonzero(self._track.pages.person == person))
        if len(pages) < FEWEST_PAGES:
            return False
        shapes, openings, short = shape_of(pages.lips), inner_opening(pages.lips), []
        for first, end in self._samples(person):
            wanted = self.points(first, end)[:, :40]
            nearest = [int(np.abs(shapes - shape).mean(axis=1).argmin()) for shape in shape_of(wanted)]
            short.append(inner_opening(wanted) - openings[nearest])
        return float(np.quantile(np.concatenate(short), COVERED_SHARE)) <= MOST_SHORT

    def _samples(self, person: int) -> list[tuple[int, int]]:
        """Some stretches of output frames that show a person, evenly spaced, each of one shot."""
        blocks = [
            (start, min(end, start + SAMPLE_FRAMES))
            for first, end in runs(_labels(self._track, self._shown))
            if self._track.person[self._shown.source[first]] == person
            for start in range(first, end, SAMPLE_FRAMES)
        ]
        return blocks[:: -(-len(blocks) // SAMPLES)]

    def points(self, first: int, end: int) -> NDArray[np.float32]:
        """Lips and outline of the output frames [first, end), all of one shot: float32 (n, 64, 2), unit crop."""
        track, source = self._track, self._shown.source[first:end]
        person = int(track.person[source[0]])
        lips = self._lips.frames(first, end)
        mouth, gain = self._mouths[person], self._gain[person]
        rest = mouth.at(track.pose[source]) + self._drift(source, mouth)[:, None]
        moved = gain[::-1] * (0 if lips.points is None else lips.points)
        wanted = rest + moved
        outline = track.outline[source].astype(np.float32)
        # The outline is the usual one of a mouth that speaks; the jaw goes up and down from there with the lower lip.
        usual = self._slow(source)[:, LOWER_INNER_LIP]
        lower = wanted[:, LOWER_INNER_LIP] - usual
        chin = outline[:, : len(JAW)]
        middle = chin[:, len(JAW) // 2 : len(JAW) // 2 + 1, 0]
        follows = np.exp(-0.5 * ((chin[..., 0] - middle) / CHIN_REACH) ** 2)
        outline[:, : len(JAW), 1] += CHIN_SHARE * lower[:, 1:] * follows
        return np.concatenate([wanted, outline], axis=1)

    def _slow(self, source: NDArray[np.int64]) -> NDArray[np.float32]:
        """The lips of source frames (n,) of one shot, averaged over about a second: float32 (n, 40, 2)."""
        track = self._track
        margin = int(np.ceil(3 * OUTLINE_SMOOTH_S / self._step_s))
        low, high = max(0, int(source.min()) - margin), min(len(track), int(source.max()) + margin + 1)
        here = track.shot[source[0]]
        mine = track.person[low:high] == track.person[source[0]]
        same = np.flatnonzero(mine & (track.shot[low:high] == here) & (track.status[low:high] == DUBBED)) + low
        smoothed = smooth(track.lips[same].astype(np.float64).reshape(len(same), 80), OUTLINE_SMOOTH_S / self._step_s, odd=False)
        at = np.clip(np.searchsorted(same, source), 0, len(same) - 1)
        return smoothed[at].reshape(len(source), 40, 2).astype(np.float32)

    def _drift(self, source: NDArray[np.int64], mouth: Mouth) -> NDArray[np.float32]:
        """How far the mouth has moved in the crop without speaking, by its upper lip and corners: float32 (n, 2)."""
        still = [CORNERS[0], *range(CORNERS[1], 20)]
        expected = mouth.at(self._track.pose[source])[:, still]
        return (self._slow(source)[:, still] - expected).mean(axis=1)

    def _recalled_range(self) -> NDArray[np.float32]:
        """How far the recalled lips open and widen in speech, float32 (2,)."""
        found = []
        for first in range(0, len(self._lips), BLOCK_FRAMES):
            lips = self._lips.frames(first, min(len(self._lips), first + BLOCK_FRAMES))
            if lips.points is not None:
                found.append(_openings_and_widths(lips.points)[lips.silence < PAUSE])
        spoken = np.concatenate([np.zeros((0, 2), np.float32), *found])
        return np.subtract(*np.quantile(spoken, RANGE[::-1], axis=0)).astype(np.float32) if len(spoken) else np.ones(2, np.float32)


def _openings_and_widths(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance of the inner lips and of the corners, float32 (n, 2)."""
    return np.stack([inner_opening(lips), mouth_width(lips)], axis=1)


def _range_of(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far lips (n, 40, 2) open and widen, float32 (2,)."""
    return np.subtract(*np.quantile(_openings_and_widths(lips), RANGE[::-1], axis=0)).astype(np.float32)
