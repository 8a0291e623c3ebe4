"""When each picture of a file is shown."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction

import av
import av.error
from av.container import InputContainer

from lipdub.media.files import BROADCAST, origin_of_s

NO_PTS = {"avi"}
"""Formats that only know when to decode a frame; the demuxer makes up when to show it, and goes wrong with B-frames."""


class FrameClock:
    """Gives every frame its tick, strictly increasing: the file's own wherever it makes sense."""

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
        """The tick of the next frame, or None if it repeats the time of the one before and is to be left out.

        A frame without time follows the one before by its duration. A clock that jumps back by more than a second was
        reset (joined recordings): it goes on from where it was.
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
        """The time in the file: when to show the frame, or when to decode it, where the first is missing or disordered.

        As in libavcodec, whichever of the two went backwards less often so far. AVI only knows the second, from which the
        demuxer makes up the first.
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
    """When the last picture ends, seconds from time zero, as far as the container says. It moves the read position."""
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
    """The same for formats that keep no length: from the last packets. None if they cannot be found."""
    time_base = stream.time_base
    assert time_base is not None
    usual = round(1 / ((stream.average_rate or Fraction(25)) * time_base))
    ends: list[int] = []
    with suppress(av.error.FFmpegError):
        near_end = (stream.start_time or 0) + (stream.duration or 0) - round(5 / time_base)
        container.seek(max(near_end, stream.start_time or 0), stream=stream)
        ends = [packet.pts + (packet.duration or usual) for packet in container.demux(stream) if packet.pts is not None]
    return max(ends) * time_base - origin_s if ends else None
