"""``choose``: which page of the person's own mouths each frame is drawn from, and where its lips and jaw go; before a pixel is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lipdub.faces.crop import JAW, unit_px
from lipdub.faces.overlays import drawable
from lipdub.faces.people import moving
from lipdub.faces.smoothing import OUTLINE_SMOOTH_S, smooth
from lipdub.faces.track import DUBBED, FaceTrack, runs
from lipdub.options import Draw
from lipdub.references.pages import Pages
from lipdub.references.shapes import CORNERS, LOWER_INNER_LIP, REST_SHARE, inner_opening, mouth_width, shape_of, speed_of
from lipdub.references.unit_selection import UnitSelection
from lipdub.row_file import RowFile
from lipdub.speech.lip_track import PAUSE, LipTrack
from lipdub.timeline import Timeline

BLOCK_FRAMES = 1024
FEWEST_RESTING = 3
NEVER_SHUT, UPPER_SHARE = 0.015, 0.3
"""A resting mouth that is further open than this, unit crop, is shut; the upper lip goes this share of the way."""
PARTED, MOST_PARTED = 0.02, 0.01
"""Who is further open than the first, unit crop, whenever the lips are still has them apart in pauses, too, by the second: nearly shut."""
POSE_RIDGE_DEG = 4.0
"""How much the head has to have turned before the resting mouth is taken to change with it."""
CHIN_SHARE = 0.8
"""The chin moves by this share of what the lower lip does."""
CHIN_REACH = 0.13
"""Sigma of how the jaw follows, along it, unit crop."""
MOST_READ = 20000
"""Frames that rest and range are read from, at most twice as many."""
RANGE = (0.1, 0.9)
"""Quantiles of opening and width between which a person's own range and the recalled one are compared."""
MOST_GAIN, LEAST_GAIN = 1.6, 0.6
LEAST_SPOKEN_S = 1.0
"""Lips that move for less say nothing of that range, and those that are still for less nothing of rest."""
UNSURE_S = 1.0
"""A range that was seen in so few seconds says as much of a person as does that people are alike."""
LEAST_STRENGTH = 0.01
FEWEST_PAGES = 6
"""With fewer pages than this the mouth of a video is painted."""
COVERED_SHARE, MOST_SHORT = 0.9, 0.016
"""And where so many of the wanted mouths are further open than the nearest page, by this much of the crop's side."""
SEEN_INSIDE = 0.01
"""A page that is open by this, unit crop, shows something of the inside of the mouth, which may be stretched."""
SAMPLE_FRAMES, SAMPLES = 50, 16
BESIDE_SHARE = 1 / 2
"""Of the page before a change of page, in the first frame after it. Spread over two frames the mouth moves less than the source's does."""
FORBIDDEN = np.float32(1)
"""What a page that may not be used costs: a whole crop's side."""

_POINTS = 40 + 24


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Chosen:
    """What N frames are drawn from. page: int64 (N,), -1 where the inside of the mouth is painted by the network. beside: int64 (N,), the
    page that is blended in by ``BESIDE_SHARE``, or -1. points: float32 (N, 64, 2), where lips (40) and outline (24) are to lie, unit
    crop."""

    page: NDArray[np.int64]
    beside: NDArray[np.int64]
    points: NDArray[np.float32]


class Choices:
    """What each frame of an output is drawn from, in order. Lies in unnamed temporary files. For one thread at a time.

    page_frames: int64 (P,), of which source frame each page is.
    """

    def __init__(self, page_frames: NDArray[np.int64]) -> None:
        self._page_frames = page_frames
        self._pages, self._points = RowFile(2), RowFile(2 * _POINTS)
        self.painted = 0
        """Frames whose mouth is to be painted."""

    def __len__(self) -> int:
        return self._pages.count

    def want(self, points: NDArray[np.float32]) -> None:
        """Where lips and outline of the next frames are to lie, (n, 64, 2)."""
        self._points.extend(points.reshape(len(points), 2 * _POINTS))

    def decide(self, page: NDArray[np.int64], stretch: int) -> None:
        """The page of the next frames, (n,), all of the stretch of that number: pages are not blended from one stretch into the next."""
        self._pages.extend(np.column_stack([page, np.full(len(page), stretch)]))

    def frames(self, first: int, end: int) -> Chosen:
        """The frames [first, end)."""
        low = max(0, first - 1)
        page, stretch = self._pages.rows(np.arange(low, end)).astype(np.int64).T
        points = self._points.rows(np.arange(first, end)).reshape(end - first, _POINTS, 2)
        return Chosen(page[first - low :], self._beside(page, stretch)[first - low :], points)

    def _beside(self, page: NDArray[np.int64], stretch: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is blended in after each change of page, so that none is seen; a page's own successor goes on by itself."""
        beside = np.full(len(page), -1)
        before, after = page[:-1], page[1:]
        changes = (before != after) & (np.diff(stretch) == 0) & (np.minimum(before, after) >= 0)
        changes[changes] = np.diff(self._page_frames[np.stack([before, after])[:, changes]], axis=0)[0] != 1
        beside[1:][changes] = before[changes]
        return beside

    def close(self) -> None:
        """Give the files back."""
        self._pages.close()
        self._points.close()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Mouth:
    """How one person's mouth rests.

    rest: (40, 2), unit crop, at the pose `pose` (2,); turning: (2, 40, 2), its change with a degree of yaw and of pitch. shutting: (40, 2),
    what is left to do until its lips meet.
    """

    rest: NDArray[np.float32]
    pose: NDArray[np.float32]
    turning: NDArray[np.float32]
    shutting: NDArray[np.float32]

    @classmethod
    def of(cls, pages: Pages, closed: float) -> Mouth:
        """Of a person's pages; `closed`: opening up to which a mouth counts as closed."""
        order = np.argsort(pages.openings, kind="stable")
        shut = order[: max(min(len(order), FEWEST_RESTING), int((pages.openings <= closed).sum()))]
        rest, pose = pages.lips[shut].mean(axis=0), pages.pose[shut].mean(axis=0)
        turned = (pages.pose[shut] - pose).astype(np.float64)
        ridge = len(shut) * POSE_RIDGE_DEG**2 * np.eye(2)
        turning = np.linalg.solve(turned.T @ turned + ridge, turned.T @ (pages.lips[shut] - rest).reshape(len(shut), 80))
        return cls(rest, pose, turning.reshape(2, 40, 2).astype(np.float32), _shutting(rest))

    def at(self, pose: NDArray[np.float32]) -> NDArray[np.float32]:
        """The resting mouth at poses (n, 2): float32 (n, 40, 2)."""
        return np.asarray(self.rest + np.einsum("np,pkc->nkc", pose - self.pose, self.turning), np.float32)

    def parting(self, still: NDArray[np.float32], pose: NDArray[np.float32]) -> NDArray[np.float32]:
        """From lips that meet to those of a person who is silent, float32 (40, 2). still: (n, 40, 2), lips seen then, at poses (n, 2)."""
        shut = self.rest + self.shutting
        usual = np.median(still - self.at(pose), axis=0) - self.shutting
        low, high = (float(inner_opening(lips[None])[0]) for lips in (shut, shut + usual))
        return np.asarray(usual * (max(0.0, MOST_PARTED - low) / (high - low) if high > PARTED else 0.0), np.float32)


def _shutting(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """By how much each of the lips (40, 2) of a mouth at rest has to move for them to meet, float32 (40, 2): a smile that the video never
    shows shut would not shut at /p b m/ either. Nothing for lips that about meet."""
    moved = np.zeros((40, 2), np.float32)
    if float(inner_opening(lips[None])[0]) >= NEVER_SHUT:
        row = np.arange(1, CORNERS[1])
        gap = lips[CORNERS[2] + row, 1] - lips[2 * CORNERS[2] - row, 1]
        for first, last in ((0, CORNERS[2]), (CORNERS[2], 2 * CORNERS[2])):
            moved[first + row, 1] = (UPPER_SHARE - 1) * gap
            moved[last - row, 1] = UPPER_SHARE * gap
    return moved


def choose(
    track: FaceTrack, shown: Timeline, lips: LipTrack, *, draw: Draw = "auto", exclude_s: float = 0.0, style: FaceTrack | None = None
) -> Choices:
    """What each frame of `shown` is drawn from; the caller closes it.

    draw: "warp" from pages wherever a person has one, "paint" nothing, "auto" where the pages show what is wanted. exclude_s: pages that
    lie as near as this to the frame that is redrawn are not used: for measuring. style: other footage, as far as whose main person opens
    the mouth all others do here, too.
    """
    choices = Choices(track.pages.frame)
    wanted = _Wishes(track, shown, lips, style)
    usable = drawable(track.pages, track.overlays)
    banks: dict[int, _Bank | None] = {}
    try:
        for stretch, (first, end) in enumerate(wanted.stretches):
            person = int(track.person[shown.source[first]])
            if person not in banks:
                warped = person >= 0 and draw != "paint" and lips.has_points and (draw == "warp" or wanted.covered(person))
                banks[person] = _Bank.of(track, person, usable) if warped else None
                if person >= 0 and not warped:
                    wanted.open_as_heard(person)
            if (bank := banks[person]) is not None:
                for piece in bank.selection.cheapest(_costs(bank, wanted, choices, (first, end), exclude_s)):
                    choices.decide(bank.pages[piece], stretch)
                continue
            choices.painted += (end - first) * (person >= 0)
            for start in range(first, end, BLOCK_FRAMES):
                stop = min(end, start + BLOCK_FRAMES)
                choices.want(wanted.points(start, stop, as_heard=True) if person >= 0 else np.zeros((stop - start, _POINTS, 2), np.float32))
                choices.decide(np.full(stop - start, -1), stretch)
    except BaseException:
        choices.close()
        raise
    return choices


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Bank:
    """One person's pages: their numbers, int64 (P,), when the video shows each, float64 (P,), and how they are chosen."""

    pages: NDArray[np.int64]
    times_s: NDArray[np.float64]
    selection: UnitSelection

    @classmethod
    def of(cls, track: FaceTrack, person: int, usable: NDArray[np.bool_]) -> _Bank:
        pages = track.pages.of(person)
        speed = _speed_of_pages(track, pages)
        return cls(pages, track.page_times_s[pages], UnitSelection(track.pages.take(pages), usable[pages], speed))


def _speed_of_pages(track: FaceTrack, pages: NDArray[np.int64]) -> NDArray[np.float32]:
    """How fast the lips of these pages move, float32 (P,), by the frames around each; 0 for those of other footage."""
    speed, times_s = np.zeros(len(pages), np.float32), track.times_s
    for at, frame in enumerate(track.pages.frame[pages].tolist()):
        if frame < len(track):
            around = np.arange(max(0, frame - 1), min(len(track), frame + 2))
            same = (track.person[around] == track.person[frame]) & (track.shot[around] == track.shot[frame])
            around = around[same & (track.status[around] == DUBBED) | (around == frame)]
            speed[at] = speed_of(track.lips[around].astype(np.float32), times_s[around])[np.searchsorted(around, frame)]
    return speed


def _costs(bank: _Bank, wanted: _Wishes, choices: Choices, frames: tuple[int, int], exclude_s: float) -> Iterator[NDArray[np.float32]]:
    """What each page costs at each frame of [first, end), some at a time, float32 (n, P); `choices` are told what is wanted."""
    track, shown = wanted.track, wanted.shown
    for start in range(*frames, BLOCK_FRAMES):
        end = min(frames[1], start + BLOCK_FRAMES)
        low, high = max(frames[0], start - 1), min(frames[1], end + 1)  # the speed of the lips is seen from the frames around
        around = wanted.points(low, high)
        speed = speed_of(around[:, :40], shown.times_s[low:high])[start - low : end - low]
        source, points = shown.source[start:end], around[start - low : end - low]
        choices.want(points)
        found = bank.selection.costs(points[:, :40], speed, track.pose[source], unit_px(track.similarity[source]))
        if exclude_s > 0:
            away = np.abs(track.times_s[source][:, None] - bank.times_s[None])
            # A page is blended into the frame beside its own.
            found = np.where(away < exclude_s + track.step_s, FORBIDDEN, found)
        yield found


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Manner:
    """How one person moves the mouth. parting: float32 (40, 2), how the lips part in pauses, 0 where the mouth does not rest in them. gain:
    float32 (2,), how many times as far as is heard it opens and widens."""

    mouth: Mouth
    parting: NDArray[np.float32]
    gain: NDArray[np.float32]


class _Wishes:
    """Where lips and jaw are to lie in every frame."""

    def __init__(self, track: FaceTrack, shown: Timeline, lips: LipTrack, style: FaceTrack | None) -> None:
        self.track, self.shown, self._lips = track, shown, lips
        # One number for each shot and person.
        people = int(track.person.max()) + 2
        self.stretches = list(runs(track.shot[shown.source].astype(np.int64) * people + track.person[shown.source]))
        """Output frames [first, end) that show one shot and one person, or nobody."""
        recalled = self._recalled_range()
        styled = None if style is None else _Range.of(style, _frames_of(style, style.main_person))
        self._manners: dict[int, _Manner] = {}
        for person in np.unique(track.pages.person).tolist():
            frames = _frames_of(track, person)
            if not len(frames):  # none of theirs is redrawn
                continue
            openings = track.opening[frames]
            mouth = Mouth.of(track.pages.take(track.pages.of(person)), float(np.quantile(openings, REST_SHARE)))
            parting = np.zeros((40, 2), np.float32)
            if lips.rests:
                still = _still(track, frames)
                parting = mouth.parting(track.lips[still].astype(np.float32), track.pose[still])
            # A single picture says nothing of a range.
            own = styled if styled is not None else _Range.of(track, frames) if len(frames) > 1 else recalled
            self._manners[person] = _Manner(mouth, parting, own.over(recalled))

    def open_as_heard(self, person: int) -> None:
        """A person whose video does not show the mouth open opens it as far as is heard: how far they go when they speak is not known."""
        self._manners[person] = replace(self._manners[person], gain=np.ones(2, np.float32))

    def covered(self, person: int) -> bool:
        """Whether the person's pages show the inside of the mouth about as far open as is wanted: what no page shows has to be painted."""
        pages = self.track.pages.take(self.track.pages.of(person))
        if len(pages) < min(FEWEST_PAGES, len(self.track)):  # a photo has one pose, and one page for it
            return False
        shapes, openings, short = shape_of(pages.lips), inner_opening(pages.lips), []
        for first, end in self._samples(person):
            wanted = self.points(first, end, as_heard=True)[:, :40]
            nearest = [int(np.abs(shapes - shape).mean(axis=1).argmin()) for shape in shape_of(wanted)]
            short.append(np.where(openings[nearest] < SEEN_INSIDE, inner_opening(wanted) - openings[nearest], 0))
        return float(np.quantile(np.concatenate(short), COVERED_SHARE)) <= MOST_SHORT

    def _samples(self, person: int) -> list[tuple[int, int]]:
        """Some stretches of output frames that show a person, evenly spaced, each of one shot."""
        blocks = [
            (start, min(end, start + SAMPLE_FRAMES))
            for first, end in self.stretches
            if self.track.person[self.shown.source[first]] == person
            for start in range(first, end, SAMPLE_FRAMES)
        ]
        return blocks[:: -(-len(blocks) // SAMPLES)]

    def points(self, first: int, end: int, *, as_heard: bool = False) -> NDArray[np.float32]:
        """Lips and outline of the output frames [first, end), all of one shot: float32 (n, 64, 2), unit crop."""
        track, source = self.track, self.shown.source[first:end]
        person = int(track.person[source[0]])
        lips = (self._lips.heard if as_heard else self._lips.frames)(first, end)
        manner = self._manners[person]
        mouth = manner.mouth
        resting, usual = mouth.at(track.pose[source]), self._slow(source)
        # How far the mouth has moved in the crop without speaking, by its upper lip and corners.
        still = [CORNERS[0], *range(CORNERS[1], 20)]
        drift = (usual[:, still] - resting[:, still]).mean(axis=1)
        wanted = resting + mouth.shutting + drift[:, None] + manner.gain[::-1] * (0 if lips.points is None else lips.points)
        wanted += np.minimum(1, lips.silence / PAUSE)[:, None, None] * manner.parting
        outline = track.outline[source].astype(np.float32)
        # The outline is the usual one of a mouth that speaks; the jaw goes up and down from there with the lower lip.
        lower = wanted[:, LOWER_INNER_LIP] - usual[:, LOWER_INNER_LIP]
        chin = outline[:, : len(JAW)]
        middle = chin[:, len(JAW) // 2 : len(JAW) // 2 + 1, 0]
        follows = np.exp(-0.5 * ((chin[..., 0] - middle) / CHIN_REACH) ** 2)
        outline[:, : len(JAW), 1] += CHIN_SHARE * lower[:, 1:] * follows
        return np.concatenate([wanted, outline], axis=1)

    def _slow(self, source: NDArray[np.int64]) -> NDArray[np.float32]:
        """The lips of source frames (n,) of one shot, averaged over about a second: float32 (n, 40, 2)."""
        track = self.track
        margin = int(np.ceil(3 * OUTLINE_SMOOTH_S / track.step_s))
        low, high = max(0, int(source.min()) - margin), min(len(track), int(source.max()) + margin + 1)
        here = track.shot[source[0]]
        mine = track.person[low:high] == track.person[source[0]]
        same = np.flatnonzero(mine & (track.shot[low:high] == here) & (track.status[low:high] == DUBBED)) + low
        smoothed = smooth(track.lips[same].astype(np.float64).reshape(len(same), 80), OUTLINE_SMOOTH_S / track.step_s, odd=False)
        at = np.clip(np.searchsorted(same, source), 0, len(same) - 1)
        return smoothed[at].reshape(len(source), 40, 2).astype(np.float32)

    def _recalled_range(self) -> _Range:
        """How far the recalled lips open and widen in speech as heard."""
        found = []
        for first in range(0, len(self._lips), BLOCK_FRAMES):
            lips = self._lips.heard(first, min(len(self._lips), first + BLOCK_FRAMES))
            if lips.points is not None:
                found.append(_openings_and_widths(lips.points)[lips.silence < PAUSE])
        spoken = np.concatenate([np.zeros((0, 2), np.float32), *found])
        if not len(spoken):
            return _Range(np.ones(2, np.float32), 0.0)
        # A strength is not to be made up for.
        spread = _spread(spoken) / max(self._lips.strength, LEAST_STRENGTH)
        return _Range(spread, len(spoken) * float(self.shown.duration_s) / len(self.shown))


def _openings_and_widths(lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance of the inner lips and of the corners, float32 (n, 2)."""
    return np.stack([inner_opening(lips), mouth_width(lips)], axis=1)


def _frames_of(track: FaceTrack, person: int) -> NDArray[np.int64]:
    """Frames in which a person can be dubbed."""
    return np.flatnonzero((track.person == person) & (track.status == DUBBED))


def _still(track: FaceTrack, frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the frames (n,) in which the lips are still; the most closed ones where they hardly ever are."""
    still = frames[~moving(track.opening[frames], track.step_s)]
    if len(still) * track.step_s < LEAST_SPOKEN_S:
        still = frames[track.opening[frames] <= np.quantile(track.opening[frames], REST_SHARE)]
    return _thinned(still)


def _thinned(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    return frames[:: max(1, len(frames) // MOST_READ)]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Range:
    """How far lips open and widen, float32 (2,), unit crop, in so many seconds of speech."""

    spread: NDArray[np.float32]
    seconds: float

    @classmethod
    def of(cls, track: FaceTrack, frames: NDArray[np.int64]) -> _Range:
        """In these frames where the lips move: who listens for most of a video speaks no smaller."""
        spoken = frames[moving(track.opening[frames], track.step_s)]
        frames = spoken if len(spoken) * track.step_s >= LEAST_SPOKEN_S else frames
        lips = track.lips[_thinned(frames)].astype(np.float32)
        return cls(_spread(_openings_and_widths(lips)), len(frames) * track.step_s)

    def over(self, recalled: _Range) -> NDArray[np.float32]:
        """How many times as far as the recalled lips these go, float32 (2,): the nearer to once, the less was seen or heard."""
        sure = 1 / (1 + UNSURE_S * (1 / max(self.seconds, 1e-3) + 1 / max(recalled.seconds, 1e-3)))
        gain = (np.maximum(self.spread, 1e-4) / np.maximum(recalled.spread, 1e-4)) ** sure
        return np.clip(gain, LEAST_GAIN, MOST_GAIN).astype(np.float32)


def _spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """From the lower to the upper of the quantiles ``RANGE`` of values (n, 2), float32 (2,)."""
    return np.subtract(*np.quantile(values, RANGE[::-1], axis=0)).astype(np.float32)
