"""When each picture of a file is shown."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction

import av
import av.error
from av.container import InputContainer

from lipdub.media.files import BROADCAST, origin_of_s

NO_PTS = {"avi"}
"""Formats that store when to decode a frame, not when to show it; the demuxer guesses the latter, wrongly where there are B-frames."""


class FrameClock:
    """Gives every frame a tick. Ticks increase strictly; they are the file's own, except where those are missing or disordered."""

    def __init__(self, container: InputContainer, stream: av.VideoStream) -> None:
        assert stream.time_base is not None
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._shift = -round(origin_of_s(container) / stream.time_base)
        self._step = max(1, round(1 / (rate * stream.time_base)))
        self._jump = round(1 / stream.time_base)
        self._no_pts = container.format.name in NO_PTS
        self._last: int | None = None
        self._last_guessed = False
        self._last_pts = self._last_dts = -(2**63)
        self._bad_pts = self._bad_dts = 0

    def tick(self, frame: av.VideoFrame) -> int | None:
        """The tick of the next frame, or None if it has the time of the frame before and is to be left out.

        A frame without a time is shown when the frame before ends. Where time jumps back by more than a second, recordings
        were joined: the second one follows the first.
        """
        time, last = self._time(frame), self._last
        guessed = time is None
        if time is None:
            tick = 0 if last is None else last + (frame.duration or self._step)
        elif last is None and self._no_pts:
            self._shift, tick = -time, 0
        else:
            tick = time + self._shift
        if last is not None and tick <= last:
            if last - tick > self._jump:
                self._shift += last + self._step - tick
                tick = last + self._step
            elif self._last_guessed:
                tick, guessed = last + 1, True
            else:
                return None
        self._last, self._last_guessed = tick, guessed
        return tick

    def _time(self, frame: av.VideoFrame) -> int | None:
        """The frame's time in the file: when to show it (pts) or when to decode it (dts), None where it has neither.

        As in libavcodec: the one that went backwards less often so far. Of `NO_PTS` formats, the time to decode.
        """
        pts, dts = frame.pts, frame.dts
        if pts is not None:
            self._bad_pts += pts <= self._last_pts
            self._last_pts = pts
        if dts is not None:
            self._bad_dts += dts <= self._last_dts
            self._last_dts = dts
        if self._no_pts:
            return dts
        return pts if pts is not None and (dts is None or self._bad_pts <= self._bad_dts) else dts


def shown_until_s(container: InputContainer, stream: av.VideoStream, origin_s: Fraction) -> Fraction | None:
    """When the last picture ends, seconds from time zero; None where the container does not say. Moves the read position."""
    time_base = stream.time_base
    assert time_base is not None
    if container.format.name in BROADCAST:
        return _end_of_packets_s(container, stream, origin_s)
    if stream.duration:
        start, length = stream.start_time or 0, stream.duration
        end_s = (start + length) * time_base - origin_s
        if start > 0 and "mp4" in container.format.name:
            # FFmpeg may count the length from the start of the pictures or from zero, depending on who wrote the edit list
            seen_s = _end_of_packets_s(container, stream, origin_s) or end_s
            end_s = min(end_s, length * time_base - origin_s, key=lambda at_s: abs(at_s - seen_s))
        return end_s
    with suppress(KeyError, ValueError):  # Matroska keeps a stream's length in a tag, "00:00:10.010000000"
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds) - origin_s
    return Fraction(container.duration, av.time_base) - origin_s if container.duration else None


def _end_of_packets_s(container: InputContainer, stream: av.VideoStream, origin_s: Fraction) -> Fraction | None:
    """When the last picture ends, from the last packets, for formats that keep no length. None if there are no packets."""
    time_base = stream.time_base
    assert time_base is not None
    usual = round(1 / ((stream.average_rate or Fraction(25)) * time_base))
    ends: list[int] = []
    with suppress(av.error.FFmpegError):
        near_end = (stream.start_time or 0) + (stream.duration or 0) - round(5 / time_base)
        container.seek(max(near_end, stream.start_time or 0), stream=stream)
        ends = [packet.pts + (packet.duration or usual) for packet in container.demux(stream) if packet.pts is not None]
    return max(ends) * time_base - origin_s if ends else None
