"""When each picture of a file is shown."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from fractions import Fraction
from statistics import median

import av
import av.error
from av.container import InputContainer

from lipdub.media.files import BROADCAST, opened, origin_of_s, video_stream
from lipdub.records import DubWarning, VideoInfo, Warn

NO_PTS = {"avi"}
"""Formats that store when to decode a frame, not when to show it; the demuxer guesses the latter, wrongly where there are B-frames."""


CUT_OFF_S = Fraction(1, 4)
"""A file that holds so much less than it promises is cut off."""
LONGEST_GAP_S = 10
"""Longer gaps in the times of pictures or sound are taken for a clock that was set."""


def clock_jump(gap_s: Fraction, at_s: Fraction) -> DubWarning:
    """What there is to say of a gap that was closed."""
    text = f"the clock of the recording jumps ahead by {float(gap_s):.1f} s at {float(at_s):.2f} s: the gap was closed"
    return DubWarning("clock-jump", text, ((float(at_s), float(at_s)),))


class FrameClock:
    """Gives every frame a tick. Ticks increase strictly; they are the file's own, except where those are missing or disordered.

    warn: told of gaps that are closed, once for each.
    """

    def __init__(self, container: InputContainer, stream: av.VideoStream, warn: Warn = lambda _: None) -> None:
        assert stream.time_base is not None
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._shift = -round(origin_of_s(container) / stream.time_base)
        self._step = max(1, round(1 / (rate * stream.time_base)))
        self._jump = round(1 / stream.time_base)
        self._time_base, self._warn = stream.time_base, warn
        self._steps: deque[int] = deque([self._step], maxlen=101)
        self._no_pts = container.format.name in NO_PTS
        self._last: int | None = None
        self._last_guessed = False
        self._last_pts = self._last_dts = -(2**63)
        self._bad_pts = self._bad_dts = 0

    def tick(self, frame: av.VideoFrame) -> int | None:
        """The tick of the next frame, or None if it has the time of the frame before and is to be left out.

        A frame without a time is shown when the frame before ends. Where time jumps back by more than a second, recordings
        were joined: the second one follows the first. So it does where time jumps ahead by more than `LONGEST_GAP_S` and a hundred
        frames: a clock was set, or a camera slept.
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
        elif last is not None and tick - last > max(float(LONGEST_GAP_S / self._time_base), 100.0 * median(self._steps)):
            step = round(median(self._steps))
            self._warn(clock_jump((tick - last) * self._time_base, (last + step) * self._time_base))
            self._shift += last + step - tick
            tick = last + step
        if last is not None:
            self._steps.append(tick - last)
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
    tagged_s = tagged_duration_s(stream)
    if tagged_s is not None:
        return tagged_s - origin_s
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


def tagged_duration_s(stream: av.VideoStream | av.AudioStream) -> Fraction | None:
    """What Matroska keeps of a stream's length in a tag, "00:00:10.010000000"; None without one."""
    with suppress(KeyError, ValueError):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    return None


def cut_off(info: VideoInfo, held_s: Fraction) -> DubWarning | None:
    """The warning that a video promises more than the `held_s` that its pictures last, or None. Reads it once more where it does.

    No promise are the length of the sound, where the container names one length for both, and a last picture that is to stay.
    """
    if info.is_still or info.duration_s is None or info.duration_s - held_s <= CUT_OFF_S:
        return None
    last_s = ends_s = sounds_until_s = Fraction(0)
    with opened(info.path) as container:
        pictures = video_stream(container, info.path)
        of_both = not pictures.duration and tagged_duration_s(pictures) is None
        origin_s = origin_of_s(container)
        with suppress(av.error.FFmpegError):
            for packet in container.demux(pictures, *container.streams.audio):
                if packet.pts is None or packet.time_base is None:
                    continue
                at_s = packet.pts * packet.time_base - origin_s
                until_s = at_s + (packet.duration or 0) * packet.time_base
                if packet.stream.index == pictures.index:
                    last_s, ends_s = max(last_s, at_s), max(ends_s, until_s)
                else:
                    sounds_until_s = max(sounds_until_s, until_s)
    lasts_s = max(ends_s, sounds_until_s) if of_both else ends_s
    if lasts_s >= info.duration_s - CUT_OFF_S and last_s <= held_s:
        return None
    text = f"the video says that it lasts {float(info.duration_s):.2f} s, but holds {float(held_s):.2f} s: it is cut off or damaged"
    return DubWarning("video-cut-off", text, ((float(held_s), float(info.duration_s)),))
