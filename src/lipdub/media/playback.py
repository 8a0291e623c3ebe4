"""A video played as a timeline says: forwards, backwards, or one frame held."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub.errors import UnreadableMedia
from lipdub.media.joining import Stretch
from lipdub.media.pictures import SPAN_FRAMES, Entry, read_planes, read_span
from lipdub.media.planes import YuvChunk
from lipdub.records import Warn
from lipdub.timeline import Timeline

HELD_FRAMES = 8
"""A held frame is handed on in pieces of this many."""


def play(
    video: Path, pts: NDArray[np.int64], timeline: Timeline, warn: Warn = lambda _: None, *, without: Sequence[Stretch] = ()
) -> Generator[tuple[YuvChunk, NDArray[np.int64]], None, None]:
    """The frames of `video` in the order of the output with their output timestamps, and which source frame each one is, int64 (N,).

    pts: int64, the ticks of all source frames. warn: told what had to be mended in the pictures. without: frames that are neither given nor
    decoded. Raises UnreadableMedia, NoVideoStream.
    """
    for first, end, is_sought in _runs(timeline, without):
        sources = timeline.source[first:end]
        if sources[0] == sources[-1]:
            pieces = _held(video, pts, int(sources[0]), len(sources))
        elif sources[0] < sources[-1]:
            entry = Entry(int(sources[0]), int(pts[sources[0]])) if is_sought else None
            pieces = _forward(video, int(sources[0]), int(sources[-1]) + 1, warn, entry)
        else:
            pieces = _backward(video, pts, int(sources[-1]), int(sources[0]) + 1)
        done = first
        with closing(pieces):
            for piece in pieces:
                here = slice(done, done + len(piece))
                yield piece.timed(done, timeline.pts[here], timeline.time_base), timeline.source[here]
                done += len(piece)
        if done != end:
            raise UnreadableMedia(f"'{video}' gave {done - first} frames where {end - first} were seen before; was it changed meanwhile?")


def _runs(timeline: Timeline, without: Sequence[Stretch]) -> Iterator[tuple[int, int, bool]]:
    """The runs of the timeline without some of their frames; each with whether it begins behind those, at a key frame."""
    for first, end in timeline.runs():
        is_sought = False
        for stretch in without:
            if first <= stretch.first < end:
                if first < stretch.first:
                    yield first, stretch.first, is_sought
                first, is_sought = stretch.end, True
        if first < end:
            yield first, end, is_sought


def _forward(video: Path, first: int, end: int, warn: Warn, entry: Entry | None) -> Generator[YuvChunk, None, None]:
    with closing(read_planes(video, warn=warn, entry=entry)) as chunks:
        for chunk in chunks:
            low, high = max(first, chunk.index), min(end, chunk.index + len(chunk))
            if low < high:
                yield chunk.part(low - chunk.index, high - chunk.index)
            if high >= end:
                return


def _backward(video: Path, pts: NDArray[np.int64], first: int, end: int) -> Generator[YuvChunk, None, None]:
    """The frames [first, end), last one first, a few at a time: each piece is decoded forwards from the key frame before it."""
    while end > first:
        piece = read_span(video, pts, max(first, end - SPAN_FRAMES), end)
        yield replace(piece, data=piece.data[::-1])
        end = piece.index


def _held(video: Path, pts: NDArray[np.int64], source: int, count: int) -> Generator[YuvChunk, None, None]:
    """One frame, shown `count` times."""
    picture = read_span(video, pts, source, source + 1)
    for first in range(0, count, HELD_FRAMES):
        shown = min(HELD_FRAMES, count - first)
        yield replace(picture, data=np.repeat(picture.data, shown, axis=0), pts=np.arange(shown, dtype=np.int64))
