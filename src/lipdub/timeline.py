"""Which source frame is shown when: the ``--fit`` rule as plain numbers, before a pixel is drawn.

Source timestamps are kept tick for tick. Where the picture has to go on beyond its end it is played backwards, then
forwards again (ping-pong): no jump, and every frame keeps the distance to its neighbour that it has in the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipdub.options import Fit
from lipdub.times import Range

STILL_HZ = 25
"""Frame rate at which a photo is shown."""
MOST_STRETCH, LEAST_STRETCH = Fraction(15, 100), Fraction(2, 1000)
"""A speech that is stretched gets faster or slower by at most this share, and not at all for less than that."""
EDGE_FRAMES = 4
"""Over so many frames the new mouth comes and goes where a range begins and ends."""


@dataclass(frozen=True, slots=True, repr=False)
class Timeline:
    """The output, frame by frame; K frames.

    source: int64 (K,), which source frame. pts: int64 (K,), strictly increasing ticks of `time_base`. end: tick at which the last
    frame ends.
    """

    source: NDArray[np.int64]
    pts: NDArray[np.int64]
    time_base: Fraction
    end: int

    def __post_init__(self) -> None:
        if self.source.shape != self.pts.shape or self.source.ndim != 1 or len(self.source) == 0:
            raise ValueError(f"a timeline needs one pts per frame and a frame at least, got {self.source.shape = }, {self.pts.shape = }")
        if (np.diff(self.pts) <= 0).any() or self.end <= self.pts[-1]:
            raise ValueError("pts must increase, and the last frame must last")

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"Timeline(frames={len(self)}, duration_s={float(self.duration_s):.3f})"

    @property
    def times_s(self) -> NDArray[np.float64]:
        """When each frame is shown, seconds, float64 (K,)."""
        return self.pts * float(self.time_base)

    @property
    def duration_s(self) -> Fraction:
        """From time zero to the end of the last frame, in seconds."""
        return self.end * self.time_base

    def within(self, span: Range) -> tuple[int, int]:
        """The frames [first, end) that are shown in `span`, at least one: also the one that its start falls into."""
        first = max(0, int(np.searchsorted(self.times_s, span.start_s, "right")) - 1)
        return first, max(first + 1, int(np.searchsorted(self.times_s, span.end_s)))

    def part(self, first: int, end: int) -> Timeline:
        """The frames [first, end) alone; the first of them is shown at time zero."""
        begin, stop = int(self.pts[first]), int(self.pts[end]) if end < len(self) else self.end
        return Timeline(self.source[first:end], self.pts[first:end] - begin, self.time_base, stop - begin)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Half-open stretches of output frames whose source runs one way only: forward, backward, forward, ..."""
        direction = np.sign(np.diff(self.source))
        turns = np.flatnonzero(np.diff(direction)) + 2
        yield from zip([0, *turns.tolist()], [*turns.tolist(), len(self)], strict=True)


def plan(
    pts: NDArray[np.int64], time_base: Fraction, *, video_s: Fraction | None, speech_s: Fraction, fit: Fit, is_still: bool
) -> Timeline:
    """The timeline of a dub.

    pts: int64 (N,), the source's ticks. video_s: when the source's last frame ends, None where that is unknown. speech_s: length
    of the speech. `longest` and `stretch` show all of the picture and as much as the speech needs; `video` just the picture; `speech`
    just as much as the speech lasts. A photo is shown as long as the speech lasts, whatever `fit` says.
    """
    if is_still or (len(pts) == 1 and fit != "video"):
        base = Fraction(1, STILL_HZ)
        wanted = speech_s if is_still or fit == "speech" else max(speech_s, video_s or Fraction(0))
        count = max(1, -int(-wanted // base))
        return Timeline(np.zeros(count, np.int64), np.arange(count, dtype=np.int64), base, count)
    last_step = _last_step(pts, time_base, video_s)
    picture_end = int(pts[-1]) + last_step
    speech_end = -int(-speech_s // time_base)
    wanted_end = {"video": picture_end, "speech": speech_end}.get(fit, max(picture_end, speech_end))
    if wanted_end <= picture_end:
        count = max(1, int(np.searchsorted(pts, wanted_end)))
        ends = picture_end if count == len(pts) and fit != "speech" else _next(pts, count, picture_end)
        return Timeline(np.arange(count), pts[:count].astype(np.int64), time_base, min(ends, max(wanted_end, int(pts[count - 1]) + 1)))
    steps = np.diff(pts)
    # One round trip: backwards to the first frame, then forwards to the last one.
    way = np.concatenate([np.arange(len(pts) - 2, -1, -1), np.arange(1, len(pts))])
    way_steps = np.concatenate([steps[::-1], steps])
    missing = wanted_end - picture_end
    rounds = -(-missing // int(way_steps.sum())) + 1
    sources = np.tile(way, rounds)
    # The first of them follows when the last frame has been shown; each later one after the distance to the one before.
    starts = picture_end + np.concatenate([[0], np.cumsum(np.tile(way_steps, rounds)[1:])])
    keep = starts < wanted_end
    return Timeline(
        np.concatenate([np.arange(len(pts)), sources[keep]]),
        np.concatenate([pts, starts[keep]]).astype(np.int64),
        time_base,
        wanted_end,
    )


def amounts(times_s: NDArray[np.float64], ranges: Sequence[Range]) -> NDArray[np.float32]:
    """How far each frame is to be redrawn, from 0 (outside of the ranges) to 1, float32 (K,), for frames at `times_s` (K,), rising. Within
    a range it rises over ``EDGE_FRAMES``, and falls likewise, but not where the pictures begin or end."""
    inside = np.zeros(len(times_s), bool)
    for one in ranges:
        inside |= (times_s >= one.start_s) & (times_s < one.end_s)
    edges = np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    found = np.zeros(len(times_s), np.float32)
    for first, end in edges.tolist():
        along = np.arange(end - first)
        rise = along + 1 if first > 0 else np.full(end - first, EDGE_FRAMES + 1)
        fall = along[::-1] + 1 if end < len(times_s) else EDGE_FRAMES + 1
        found[first:end] = np.minimum(1.0, np.minimum(rise, fall) / (EDGE_FRAMES + 1))
    return found


def lesser(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    """The lesser of two amounts, frame by frame; None is wholly."""
    if one is None or other is None:
        return other if one is None else one
    return np.minimum(one, other)


def tempo_for(speech_s: Fraction, room_s: Fraction) -> Fraction:
    """How many times as fast a speech of `speech_s` is to be spoken to last `room_s`, within ``MOST_STRETCH``; 1 where that is hardly heard
    or there is no room."""
    if room_s <= 0:
        return Fraction(1)
    most = 1 + MOST_STRETCH
    tempo = min(most, max(1 / most, speech_s / room_s))
    return tempo if abs(tempo - 1) > LEAST_STRETCH else Fraction(1)


def pictures_end_s(pts: NDArray[np.int64], time_base: Fraction, *, video_s: Fraction | None) -> Fraction:
    """When the last of the source's frames ends, measured, seconds. pts, time_base, video_s: as for `plan`."""
    return (int(pts[-1]) + _last_step(pts, time_base, video_s)) * time_base


def _last_step(pts: NDArray[np.int64], time_base: Fraction, video_s: Fraction | None) -> int:
    """Ticks that the source's last frame is shown: to the end of the video where that is plausible, else as long as usual."""
    usual = max(1, int(np.median(np.diff(pts))) if len(pts) > 1 else round(Fraction(1, STILL_HZ) / time_base))
    if video_s is None:
        return usual
    stated = round(video_s / time_base) - int(pts[-1])
    return stated if stated > 0 and (stated <= 4 * usual or len(pts) == 1) else usual


def _next(pts: NDArray[np.int64], count: int, picture_end: int) -> int:
    return int(pts[count]) if count < len(pts) else picture_end
