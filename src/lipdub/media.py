"""Pictures and sound in and out of files: probe, read, write, mux. The only importer of PyAV and ffmpeg-python.

Time is exact: a frame's time is ``ticks x time_base``, copied tick for tick from the file to the output. Time zero is the
container's own zero (see `_origin_s`), for pictures and sound alike, so ``read_audio`` starts with silence where a file's
sound starts late. Colour is carried like time: pictures are converted with the matrix and range of their own stream,
there and back, and the tags are copied.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import struct
import subprocess
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import TracebackType

import av
import av.error
import av.logging
import ffmpeg
import imageio_ffmpeg
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer, OutputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from lipdub.errors import EncodingFailed, LipdubError, NoAudioStream, NoVideoStream, OutputRefused, UnreadableMedia
from lipdub.records import ColorTags, FrameChunk, VideoInfo

av.logging.set_level(None)  # a user sees one line, ours

_UNSPECIFIED = 2
_LIMITED, _FULL = 1, 2
_SWS_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""AVColorSpace to the swscale matrix that converts it; the others (unspecified, RGB, YCgCo, ICtCp) have none."""
Turn = tuple[int, int, int, int]
_AS_STORED: Turn = (1, 0, 0, 1)
_EXIF_TURNS: dict[int, Turn] = {
    1: _AS_STORED,
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
"""EXIF orientation to how the picture is to be shown."""
_NOT_MEDIA = {"tty", "bin", "xbin", "adf", "idf"}
"""Demuxers that would draw a text file as pictures of text."""
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""swscale's quick way darkens a picture by more than one level each time; this one is exact to rounding."""
_MAX_FRAMES = 16
_BLOCK_SAMPLES = 65536
_BROADCAST = {"mpegts", "mpeg"}
"""Formats whose clock starts anywhere and that keep no length."""
_NO_PTS = {"avi"}
"""Formats that only know when to decode a frame; the demuxer makes up when to show it, and goes wrong with B-frames."""
_GAP_S = Fraction(1, 20)
_LONGEST_GAP_S = 3600


# ---------------------------------------------------------------------------------------------------------- opening


@contextmanager
def _mapped(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Turn what FFmpeg and the system raise about `path` into one line of ours: the only place where that happens."""
    try:
        yield
    except LipdubError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        reason = (error.strerror or str(error) or type(error).__name__).strip().rstrip(".")
        if writing:
            raise EncodingFailed(f"cannot write '{path}': {reason}; check the free space and the folder, then run again") from error
        if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
            reason = "no media that FFmpeg can read, or cut off before its first picture or sound"
        raise UnreadableMedia(f"cannot read '{path}': {reason}; give a video, photo or sound file") from error


def _url(path: Path) -> str:
    """`path` so that FFmpeg takes it literally, whatever characters it holds."""
    return f"file:{path.absolute()}"


def _has_plain_name(path: Path) -> bool:
    """Whether the path is text: one that holds bytes which are no UTF-8 cannot be handed to ffmpeg-python."""
    try:
        _url(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """`path` opened for reading, closed at the end. Raises UnreadableMedia."""
    with _mapped(path):
        if not path.exists():
            raise UnreadableMedia(f"cannot read '{path}': there is no such file; check the path")
        if not _has_plain_name(path):
            raise UnreadableMedia(f"cannot read '{path}': its name is no UTF-8; rename it first")
        if path.is_dir():
            raise UnreadableMedia(f"cannot read '{path}': it is a folder; give a video, photo or sound file")
        if path.is_file() and path.stat().st_size == 0:
            raise UnreadableMedia(f"cannot read '{path}': the file is empty; give a video, photo or sound file")
        # pattern_type: a photo's name may hold a percent sign; protocol_whitelist: a playlist must not reach the network
        options = {"pattern_type": "none", "protocol_whitelist": "file"}
        with av.open(_url(path), "r", container_options=options, metadata_errors="replace") as container:
            if container.format.name in _NOT_MEDIA:
                raise UnreadableMedia(f"cannot read '{path}': it holds text; give a video, photo or sound file")
            yield container


def _video_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """The stream that holds the pictures. Cover art is none. Raises NoVideoStream, UnreadableMedia."""
    streams = [s for s in container.streams.video if not s.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)]
    if not streams:
        raise NoVideoStream(f"'{path}' holds no pictures; give a video or a photo")
    if any(s.disposition & Disposition.dependent for s in streams):
        raise UnreadableMedia(f"cannot read '{path}': a photo stored in tiles (HEIC); save it as JPEG or PNG first")
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise UnreadableMedia(f"cannot read '{path}': its pictures are coded in a way that FFmpeg does not know; convert it first")
    stream.thread_type = "AUTO"
    return stream


def _audio_stream(container: InputContainer, path: Path) -> av.AudioStream:
    """The stream that holds the sound. Raises NoAudioStream."""
    streams = [s for s in container.streams.audio if s.codec_context is not None]
    if not streams:
        raise NoAudioStream(f"'{path}' holds no sound; give a file with speech in it")
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def _is_photo_format(container: InputContainer) -> bool:
    """Whether the format holds a single picture."""
    name = container.format.name
    brand = container.metadata.get("major_brand", "")
    return name == "image2" or name.endswith("_pipe") or brand in ("avif", "heic", "heix", "mif1")


def _origin_s(container: InputContainer) -> Fraction:
    """Where time zero lies on the file's own clock, in seconds.

    Zero itself, except where the clock means nothing: broadcast formats (MPEG-TS, MPEG-PS) count from anywhere, and a
    file whose earliest stream starts below zero or more than a second late is a piece of something longer. There, time
    zero is the earliest start of its pictures and sound.
    """
    starts = [
        s.start_time * s.time_base
        for s in (*container.streams.video, *container.streams.audio)
        if s.start_time is not None and s.time_base is not None
    ]
    first = min(starts, default=Fraction(0))
    return first if container.format.name in _BROADCAST or first < 0 or first > 1 else Fraction(0)


# ---------------------------------------------------------------------------------------------------------- pictures


def _display_matrix(frame: av.VideoFrame, path: Path) -> Turn:
    """How a frame of `path` is to be shown: the display matrix without its shift, as signs (a, b, c, d).

    It maps a stored point to a shown one: ``x' = a x + c y``, ``y' = b x + d y``, y pointing down.
    """
    try:
        data = frame.side_data[SideDataType.DISPLAYMATRIX]  # type: ignore[typeddict-item]
    except KeyError:
        return _AS_STORED
    except ValueError:  # PyAV cannot list side data that it does not know, such as the EXIF of a photo
        turn = _EXIF_TURNS.get(_exif_orientation(path))
        return turn or {0: _AS_STORED, 90: _EXIF_TURNS[8], 180: _EXIF_TURNS[3], 270: _EXIF_TURNS[6]}[_quarter_turns(frame)]
    (a, b), (c, d) = np.sign(np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]).tolist()
    return a, b, c, d


def _exif_orientation(path: Path) -> int:
    """The orientation (1 to 8) that a photo's EXIF gives, 0 without one."""
    with path.open("rb") as file:
        head = file.read(2**18)
    found = re.search(rb"(?:Exif\0\0|EXIF....|eXIf)(II\*\0|MM\0\*)", head, re.DOTALL)
    if not found:
        return 0
    tiff, order = head[found.start(1) :], "<" if found[1] == b"II*\0" else ">"
    with suppress(struct.error):
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(order + "H6xH", tiff, entry)
            if tag == 0x0112:
                return int(value)
    return 0


def _quarter_turns(frame: av.VideoFrame) -> int:
    """The turn of a frame in degrees counter-clockwise: 0, 90, 180 or 270."""
    return round(frame.rotation / 90) * 90 % 360


def _upright(pixels: NDArray[np.uint8], turn: Turn) -> NDArray[np.uint8]:
    """`pixels` (H, W, 3) as they are shown: quarter turns and mirrorings; a view, nothing is resampled."""
    a, b, c, d = turn
    if not (a and d) and b and c:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _sws_matrix(matrix: int, shown_height: int) -> int:
    """swscale's code for an AVColorSpace; untagged pictures are BT.709 from 720 lines on and BT.601 below."""
    return _SWS_MATRIX.get(matrix, 1 if shown_height >= 720 else 5)


class _ToRgb:
    """Converts decoded frames of one stream to upright RGB of one size: that of the first frame."""

    def __init__(self, first: av.VideoFrame, path: Path) -> None:
        self._reformatter = VideoReformatter()
        self._turn = _display_matrix(first, path)
        self._stored = first.width, first.height
        shown = _upright(np.empty((first.height, first.width, 3), np.uint8), self._turn)
        self.height, self.width = shown.shape[:2]

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) RGB, a view of memory of its own."""
        width, height = self._stored
        coded_as_rgb = frame.format.is_rgb or frame.format.has_palette
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=None if coded_as_rgb else _sws_matrix(frame.colorspace, self.height),
            src_color_range=None if coded_as_rgb else (_FULL if frame.color_range == _FULL else _LIMITED),
            dst_color_range=_FULL,
            interpolation=_EXACT,
        )
        return _upright(rgb.to_ndarray(), self._turn)  # type: ignore[arg-type]


def _decoded(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of `stream` that decode, in order of display; damaged packets are left out, a cut-off file ends early."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            continue


def _first_frames(container: InputContainer, stream: av.VideoStream, path: Path, count: int) -> list[av.VideoFrame]:
    """Up to `count` first frames, at least one. Raises UnreadableMedia."""
    frames = [frame for frame, _ in zip(_decoded(container, stream), range(count), strict=False)]
    if not frames:
        raise UnreadableMedia(f"cannot read '{path}': not one of its pictures decodes; the file is damaged or cut off")
    return frames


def _shown_until_s(container: InputContainer, stream: av.VideoStream, origin_s: Fraction) -> Fraction | None:
    """When the last picture ends, seconds from time zero, as far as the container says. It moves the read position."""
    time_base = stream.time_base
    assert time_base is not None
    if container.format.name in _BROADCAST:
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


def probe(path: Path) -> VideoInfo:
    """What the video or photo at `path` says of itself; one frame is decoded to be sure.

    Sizes, rotation and pixel aspect are those of the picture as shown. `duration_s` is the time at which the last picture
    ends, counted from time zero (so it includes a late start). A photo has no duration.

    Raises:
        UnreadableMedia: missing, empty, a folder, no media, or not one picture decodes.
        NoVideoStream: sound only; cover art is no video.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        assert stream.time_base is not None
        has_audio = bool(container.streams.audio)
        origin_s = _origin_s(container)
        one_or_many = container.format.name in ("gif", "apng", "webp")
        frames = _first_frames(container, stream, path, 2 if one_or_many else 1)
        first = frames[0]
        is_still = _is_photo_format(container) or (one_or_many and len(frames) == 1)
        convert = _ToRgb(first, path)
        rotation = _quarter_turns(first)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if aspect <= 0:
            aspect = Fraction(1)
        return VideoInfo(
            path=path,
            width=convert.width,
            height=convert.height,
            time_base=stream.time_base,
            frame_rate=stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25),
            duration_s=None if is_still else _shown_until_s(container, stream, origin_s),
            rotation=rotation,
            sample_aspect_ratio=1 / aspect if rotation in (90, 270) else aspect,
            color=ColorTags(int(first.colorspace), int(first.color_range), int(first.color_primaries), int(first.color_trc)),
            is_still=is_still,
            has_audio=has_audio,
        )


class _Clock:
    """Gives every frame its tick, strictly increasing: the file's own wherever it makes sense."""

    def __init__(self, container: InputContainer, stream: av.VideoStream) -> None:
        assert stream.time_base is not None
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._shift = -round(_origin_s(container) / stream.time_base)
        self._step = max(1, round(1 / (rate * stream.time_base)))
        self._jump = round(1 / stream.time_base)
        self._no_pts = container.format.name in _NO_PTS
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


def read_frames(path: Path, *, chunk_bytes: int = 64 * 2**20) -> Generator[FrameChunk, None, None]:
    """The pictures of `path` in order, upright, as chunks of 1 to 16 frames and about `chunk_bytes` at most.

    Every frame keeps its own timestamp; one that repeats the time of the frame before is left out, a missing one is
    rebuilt. Pixels are converted with the stream's own colour matrix and range (untagged: BT.709 from 720 lines on, else
    BT.601). Damaged packets are left out; a cut-off file gives the frames it has; where the size changes, pictures are
    scaled to the first size. A photo is one frame at tick 0. Each chunk owns its memory. Closing the generator closes
    the file.

    Raises:
        UnreadableMedia, NoVideoStream: as `probe`.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        time_base = stream.time_base
        assert time_base is not None
        clock = _Clock(container, stream)
        photo = _is_photo_format(container)
        convert: _ToRgb | None = None
        capacity, index, filled = 1, 0, 0
        pixels = np.empty((0, 0, 0, 3), np.uint8)
        ticks: list[int] = []
        for frame in _decoded(container, stream):
            if convert is None:
                convert = _ToRgb(frame, path)
                capacity = max(1, min(_MAX_FRAMES, chunk_bytes // (3 * convert.height * convert.width)))
            tick = 0 if photo else clock.tick(frame)
            if tick is None:
                continue
            if filled == 0:
                pixels = np.empty((capacity, convert.height, convert.width, 3), np.uint8)
            pixels[filled] = convert(frame)
            ticks.append(tick)
            filled += 1
            if filled == capacity or photo:
                yield FrameChunk(index, pixels[:filled], np.array(ticks, np.int64), time_base)
                index, filled = index + filled, 0
                ticks.clear()
            if photo:
                return
        if filled:
            yield FrameChunk(index, pixels[:filled], np.array(ticks, np.int64), time_base)
        if convert is None:
            raise UnreadableMedia(f"cannot read '{path}': not one of its pictures decodes; the file is damaged or cut off")


SPAN_FRAMES = 16
"""Frames that playing backwards holds at a time, at most."""


def read_span(path: Path, pts: NDArray[np.int64], first: int, end: int) -> FrameChunk:
    """The frames [first, end) of `path`, upright RGB, decoded from the key frame before them.

    pts: int64 (N,), the ticks of all frames as `read_frames` gave them. At least one frame and at most as many as fit 64 MiB
    are given: the last ones of the span, so ``index`` may be later than `first`.

    Raises:
        UnreadableMedia, NoVideoStream: as `probe`; UnreadableMedia, too, where the file no longer holds these frames.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        time_base = stream.time_base
        assert time_base is not None
        size = 3 * stream.codec_context.width * stream.codec_context.height
        first = max(first, end - max(1, min(SPAN_FRAMES, 64 * 2**20 // max(1, size))))
        wanted = pts[first:end]
        found: dict[int, NDArray[np.uint8]] = {}
        shift = -round(_origin_s(container) / time_base)
        convert: _ToRgb | None = None
        if not _is_photo_format(container) and container.format.name not in _NO_PTS:
            with suppress(av.error.FFmpegError):
                container.seek(int(wanted[0]) - shift, stream=stream, backward=True, any_frame=False)
            for frame in _decoded(container, stream):
                convert = convert or _ToRgb(frame, path)
                tick = None if frame.pts is None else frame.pts + shift
                if tick is not None and wanted[0] <= tick <= wanted[-1] and tick not in found:
                    found[tick] = convert(frame)
                if len(found) == len(wanted) or (tick is not None and tick > wanted[-1]):
                    break
    if all(int(tick) in found for tick in wanted):
        return FrameChunk(first, np.stack([found[int(tick)] for tick in wanted]), wanted.astype(np.int64), time_base)
    # Streams whose times had to be mended, and formats that cannot seek: read on from the start.
    pieces: list[NDArray[np.uint8]] = []
    chunks = read_frames(path)
    for chunk in chunks:
        low, high = max(first, chunk.index), min(end, chunk.index + len(chunk))
        if low < high:
            pieces.append(chunk.pixels[low - chunk.index : high - chunk.index])
        if high >= end:
            break
    chunks.close()
    if sum(len(piece) for piece in pieces) != end - first:
        raise UnreadableMedia(f"cannot read '{path}': it no longer holds the frames seen before; was it changed meanwhile?")
    return FrameChunk(first, np.concatenate(pieces), wanted.astype(np.int64), time_base)


# ------------------------------------------------------------------------------------------------------------- sound


def _sounds(container: InputContainer, stream: av.AudioStream) -> Iterator[tuple[Fraction, av.AudioFrame]]:
    """Decoded sound with the time of its first sample, seconds from time zero; silence is due where times leave a gap.

    In a file without pictures the first sample is at zero: what encoders put before it (MP3) is no offset.
    """
    origin_s = None if all(s.disposition & Disposition.attached_pic for s in container.streams.video) else _origin_s(container)
    due_s: Fraction | None = None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        for frame in frames:
            if not frame.samples or not frame.sample_rate:
                continue
            stamp_s = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
            if origin_s is None:
                origin_s = stamp_s or Fraction(0)
            time_s = due_s if stamp_s is None else stamp_s - origin_s
            if due_s is None:
                time_s = time_s or Fraction(0)
            elif time_s is None or not _GAP_S < time_s - due_s < _LONGEST_GAP_S:
                time_s = due_s
            due_s = time_s + Fraction(frame.samples, frame.sample_rate)
            yield time_s, frame


def _resampler(sample_rate_hz: int) -> av.AudioResampler:
    """To mono float32; weights of the channels sum to one, so that a loud stereo file does not clip."""
    return av.AudioResampler(format="flt", layout="mono", rate=sample_rate_hz, options={"rematrix_maxval": "1.0"})


def _resampled(
    container: InputContainer, stream: av.AudioStream, sample_rate_hz: int
) -> Iterator[tuple[Fraction | None, NDArray[np.float32]]]:
    """Mono float32 pieces of any length. Where one does not follow the piece before, the time of its first sample is given."""
    due_s: Fraction | None = None
    shape: tuple[int, str, str] | None = None
    resampler = _resampler(sample_rate_hz)
    for time_s, frame in _sounds(container, stream):
        now = frame.sample_rate, frame.format.name, frame.layout.name
        if now != shape or time_s != due_s:
            if shape is not None:
                yield from ((None, _samples(piece)) for piece in resampler.resample(None))
            resampler, shape = _resampler(sample_rate_hz), now
            yield time_s, np.empty(0, np.float32)
        due_s = time_s + Fraction(frame.samples, frame.sample_rate)
        frame.pts = None
        yield from ((None, _samples(piece)) for piece in resampler.resample(frame))
    if shape is not None:
        yield from ((None, _samples(piece)) for piece in resampler.resample(None))


def _samples(frame: av.AudioFrame) -> NDArray[np.float32]:
    """The samples of a mono float frame, float32 (n,)."""
    return np.asarray(frame.to_ndarray()[0], np.float32)


def _from_zero(pieces: Iterator[tuple[Fraction | None, NDArray[np.float32]]], sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """The pieces laid out from time zero: silence in the gaps, nothing from before zero."""
    at = 0
    for start_s, piece in pieces:
        if start_s is not None:
            start = round(start_s * sample_rate_hz)
            if at == 0 and start < 0:
                at = start
            while at < start:
                silence = np.zeros(min(_BLOCK_SAMPLES, start - at), np.float32)
                at += len(silence)
                yield silence
        yield piece[max(0, -at) :]
        at += len(piece)


def read_audio(path: Path, sample_rate_hz: int) -> Generator[NDArray[np.float32], None, None]:
    """The sound of `path` (a sound file or a video) as mono float32 blocks (n,) in [-1, 1], n up to 65536.

    Sample k is at ``k / sample_rate_hz`` seconds from time zero: where the sound of a video starts late, silence comes
    first. Resampled and mixed down by FFmpeg.

    Raises:
        UnreadableMedia: missing, empty, a folder, or no media.
        NoAudioStream: no sound, sound of zero length, or samples that are not finite numbers.
    """
    with _opened(path) as container:
        stream = _audio_stream(container, path)
        held: list[NDArray[np.float32]] = []
        length, total = 0, 0
        for piece in _from_zero(_resampled(container, stream, sample_rate_hz), sample_rate_hz):
            if not np.isfinite(piece).all():
                raise NoAudioStream(f"the sound of '{path}' holds samples that are not finite numbers; export it again")
            held.append(np.clip(piece, -1, 1))
            length, total = length + len(piece), total + len(piece)
            if length >= _BLOCK_SAMPLES:
                joined = np.concatenate(held)
                whole = length - length % _BLOCK_SAMPLES
                for start in range(0, whole, _BLOCK_SAMPLES):
                    yield joined[start : start + _BLOCK_SAMPLES]
                held, length = [joined[whole:]], length - whole
        if length:
            yield np.concatenate(held)
        if not total:
            raise NoAudioStream(f"the sound of '{path}' has no samples; give a file with speech in it")


def audio_duration_s(path: Path) -> Fraction:
    """When the sound of `path` ends, seconds from time zero, counted from its decoded samples.

    Raises:
        UnreadableMedia, NoAudioStream: as `read_audio`.
    """
    with _opened(path) as container:
        stream = _audio_stream(container, path)
        end_s: Fraction | None = None
        for time_s, frame in _sounds(container, stream):
            end_s = time_s + Fraction(frame.samples, frame.sample_rate)
            if frame.format.name.startswith(("flt", "dbl")) and not np.isfinite(frame.to_ndarray()).all():
                raise NoAudioStream(f"the sound of '{path}' holds samples that are not finite numbers; export it again")
    if end_s is None or end_s <= 0:
        raise NoAudioStream(f"the sound of '{path}' has no samples; give a file with speech in it")
    return end_s


def has_sound(path: Path) -> bool:
    """Whether `path` holds sound, of whatever length. Raises UnreadableMedia."""
    with _opened(path) as container:
        return bool(container.streams.audio)


# ------------------------------------------------------------------------------------------------------------ output


COMMENT = "Synthetic media: lip movements generated by lipdub"
"""What every output says of itself, in the container's ``comment``."""
_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
_PCM = {f"pcm_{kind}" for kind in ("u8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le", "f64be")}
_COPIED = {".mp4": {"aac", "mp3", "alac"}, ".mov": {"aac", "mp3", "alac"} | _PCM}
"""Sound that is taken as it is; Matroska takes everything."""
_OLDEST_FFMPEG = 5
"""Before it, neither ``setts=duration`` nor ``movie_timescale`` exist."""


def check_folder(out: Path) -> None:
    """Raise OutputRefused unless a file can be written at `out`: its folder is there and writable, and `out` is no folder."""
    folder = out.parent
    if not _has_plain_name(out):
        raise OutputRefused(f"cannot write '{out}': the name is no UTF-8; choose another name")
    if not folder.is_dir():
        raise OutputRefused(f"cannot write '{out}': there is no folder '{folder}'; create it first")
    if out.is_dir():
        raise OutputRefused(f"cannot write '{out}': it is a folder; give a file name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputRefused(f"cannot write '{out}': no permission to write in '{folder.absolute()}'; choose another folder")


def check_output(out: Path, *, inputs: Sequence[Path], force: bool) -> None:
    """Raise OutputRefused, saying what to do next, unless `out` can be written and none of `inputs` would be lost."""
    if out.suffix.lower() not in _FORMATS:
        raise OutputRefused(f"cannot write '{out}': lipdub writes .mp4, .mov and .mkv; give the output one of these endings")
    check_folder(out)
    for path in inputs:
        if out.exists() and path.exists() and os.path.samefile(out, path):
            raise OutputRefused(f"cannot write '{out}': it is the input '{path}'; choose another name")
    if os.path.lexists(out) and not force:
        raise OutputRefused(f"'{out}' exists already; add --force to replace it, or choose another name")


@contextmanager
def part_file(out: Path) -> Iterator[Path]:
    """A path beside `out`, hidden, unique, of the same suffix, for what is not finished; gone when the block ends.

    Whoever wants to keep the file renames it (``os.replace``) inside the block.
    """
    stem = out.stem.encode()[:120].decode(errors="ignore")
    part = out.absolute().with_name(f".{stem}.{secrets.token_hex(6)}.lipdub-part{out.suffix}")
    try:
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


class Writer:
    """Encodes frames to H.264 at `out`: silent, upright, with the timestamps, colour tags and pixel aspect of `info`.

    A context manager. It writes to a temporary file beside `out` and renames it when the block ends well; after any error
    (Ctrl-C, too) nothing is left and what was at `out` is untouched. An `out` that exists is replaced: `check_output` is
    the caller's.

    Ticks are those of `time_base` (the one of `info` by default), written exactly to .mp4 and .mov; .mkv counts in
    milliseconds. Pixels are 8-bit yuv420p, which plays everywhere, and which needs even sides: an odd picture gets its
    last column or row once more, so every pixel is kept and the side grows by one. (yuv444p would keep the size, but
    QuickTime, Safari and hardware decoders do not play it.) Untagged colour stays untagged, converted as `read_frames`
    assumes; pictures that were coded as RGB, and photos, are written in limited range and tagged.

    end_s: when the last frame ends, seconds from time zero; set it before the block ends. None: where the source's last
    picture ends, if that is close, else as long as the frame before.

    Raises:
        EncodingFailed: the encoder, the muxer or the disk gave up, or no frame was written.
    """

    def __init__(self, out: Path, info: VideoInfo, *, crf: int = 14, preset: str = "medium", time_base: Fraction | None = None) -> None:
        self.out = out
        self.end_s: Fraction | None = None
        self.time_base = time_base or info.time_base
        self._info = info
        self._options = {"crf": str(crf), "preset": preset}
        self._reformatter = VideoReformatter()
        self._size = info.width + info.width % 2, info.height + info.height % 2
        self._color = _written_color(info, padded=self._size != (info.width, info.height))
        self._held: av.VideoFrame | None = None
        self._step = max(1, round(1 / (info.frame_rate * self.time_base)))
        self._suffix = out.suffix.lower()
        self._ticks_kept = self._suffix != ".mkv"
        self._lead: int | None = None
        self._last_dts = -(2**63)
        self._end = 0

    def __enter__(self) -> Writer:
        with ExitStack() as stack, _mapped(self.out, writing=True):
            self._part = stack.enter_context(part_file(self.out))
            self._container = self._opened()
            stack.callback(self._close)
            self._stream = self._started()
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._open, _mapped(self.out, writing=True):
            if kind is None:
                self._finish()
                os.replace(self._part, self.out)

    def write(self, chunk: FrameChunk) -> None:
        """Encode the frames of `chunk` at their own times; chunks come in order.

        Raises:
            ValueError: another size than `info`, times that do not increase, or that are no whole ticks of `time_base`.
        """
        if chunk.pixels.shape[1:3] != (self._info.height, self._info.width):
            raise ValueError(f"frames must be {self._info.height} x {self._info.width}, got {chunk.pixels.shape = }")
        ratio = chunk.time_base / self.time_base
        with _mapped(self.out, writing=True):
            for pixels, pts in zip(chunk.pixels, chunk.pts.tolist(), strict=True):
                tick = pts * ratio
                if tick.denominator != 1:
                    raise ValueError(f"tick {pts} of {chunk.time_base} s is no whole tick of {self.time_base} s")
                frame = self._converted(pixels)
                frame.pts, frame.time_base = int(tick), self.time_base
                held = self._held
                if held is not None:
                    assert held.pts is not None
                    if frame.pts <= held.pts:
                        raise ValueError(f"times must increase, got tick {frame.pts} after {held.pts}")
                    self._step = frame.pts - held.pts
                    self._encode(held, self._step)
                self._held = frame

    def _opened(self) -> OutputContainer:
        """The container, ready to take a stream."""
        name = _FORMATS[self._suffix]
        ticks = str(self.time_base.denominator)  # also for the edit list, whose times are rounded to the movie's ticks
        options = {"movflags": "+faststart", "video_track_timescale": ticks, "movie_timescale": ticks} if self._ticks_kept else {}
        container = av.open(_url(self._part), "w", format=name, container_options=options)
        container.metadata["comment"] = COMMENT
        return container

    def _started(self) -> av.VideoStream:
        """The encoder, its header written."""
        rate = self._info.frame_rate.limit_denominator(1001 * 60)
        stream = self._container.add_stream("libx264", rate=rate, options=self._options)
        context = stream.codec_context
        context.width, context.height = self._size
        context.pix_fmt = "yuv420p"
        context.time_base = self.time_base
        context.sample_aspect_ratio = self._info.sample_aspect_ratio
        context.colorspace, context.color_range = self._color.matrix, self._color.range
        context.color_primaries, context.color_trc = self._color.primaries, self._color.transfer
        context.flags |= Flags.frame_duration
        self._container.start_encoding()
        return stream

    def _converted(self, pixels: NDArray[np.uint8]) -> av.VideoFrame:
        """One picture as the encoder takes it."""
        height, width = pixels.shape[:2]
        if (width, height) != self._size:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"),
            format="yuv420p",
            src_color_range=_FULL,
            dst_colorspace=_sws_matrix(self._color.matrix, height),
            dst_color_range=_FULL if self._color.range == _FULL else _LIMITED,
            interpolation=_EXACT,
        )
        frame.colorspace, frame.color_range = self._color.matrix, self._color.range
        frame.color_primaries, frame.color_trc = self._color.primaries, self._color.transfer
        return frame

    def _encode(self, frame: av.VideoFrame, duration: int) -> None:
        """Hand one frame to the encoder, shown for `duration` ticks."""
        assert frame.pts is not None
        frame.duration, self._end = duration, frame.pts + duration
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: list[av.Packet[av.VideoStream]]) -> None:
        """Hand coded frames to the container."""
        if self._lead is None and packets:
            self._lead = (packets[0].pts or 0) - (packets[0].dts or 0)
        for packet in packets:
            self._last_dts = packet.dts if packet.dts is not None else self._last_dts
        self._container.mux(packets)

    def _finish(self) -> None:
        """Write the last frame and the container's end."""
        if self._held is None:
            raise EncodingFailed(f"cannot write '{self.out}': there are no pictures to write; check the input video")
        self._encode(self._held, self._last_duration(self._held.pts or 0))
        packets = self._stream.encode(None)
        self._mux(packets[:-1])
        for last in packets[-1:]:
            if last.pts is not None and last.dts is not None and self._ticks_kept:
                # An .mp4 keeps durations in order of decoding, and FFmpeg takes their sum for the length of the pictures.
                # With B-frames and a variable rate that is another one, unless the last frame coded makes up for it.
                last.dts = max(self._last_dts + 1, last.pts - (self._lead or 0))
                last.duration = self._end - last.pts
            self._mux([last])
        self._container.close()

    def _last_duration(self, tick: int) -> int:
        """Ticks that the frame at `tick` is shown for, it being the last."""
        if self.end_s is not None:
            return max(1, round(self.end_s / self.time_base) - tick)
        if self._info.duration_s is not None:
            left = round(self._info.duration_s / self.time_base) - tick
            usual = max(self._step, round(1 / (self._info.frame_rate * self.time_base)))
            if 0 < left <= 2 * usual:
                return left
        return self._step

    def _close(self) -> None:
        """Let go of the file, whatever state it is in."""
        with suppress(av.error.FFmpegError, OSError, ValueError):
            self._container.close()


def _written_color(info: VideoInfo, *, padded: bool) -> ColorTags:
    """The tags that the output carries: those of the source, where H.264 in YUV can carry them."""
    color = info.color
    if info.is_still or color.matrix == 0 or (padded and color.matrix not in _SWS_MATRIX):
        matrix = 1 if _sws_matrix(_UNSPECIFIED, info.height) == 1 else 6
        return ColorTags(matrix, _LIMITED, matrix, matrix)
    return color


# --------------------------------------------------------------------------------------------------------------- mux


def mux(video: Path, speech: Path, out: Path, *, duration_s: Fraction, force: bool) -> None:
    """Write `out`: the pictures of `video` as they are, with the sound of `speech`, cut where it is longer than `duration_s`.

    Sound time zero is video time zero, as in `read_audio`; shorter sound stays shorter. Its sample rate and channels are
    kept. It is copied bit for bit where the container takes its codec (.mp4: AAC, MP3, ALAC; .mov: PCM, too; .mkv:
    everything) and nothing is to be cut. Otherwise .mp4 gets AAC at 256 kb/s, .mov the same PCM or else AAC, .mkv the
    same PCM or else FLAC.

    `out` appears by a rename when it is complete; after any error (Ctrl-C, too) nothing is left behind.

    Raises:
        OutputRefused: as `check_output`.
        UnreadableMedia, NoAudioStream: `speech` cannot be used.
        EncodingFailed: FFmpeg gave up; its last line is in the message.
    """
    check_output(out, inputs=(video, speech), force=force)
    ticks_per_s, shown, coded, end = _picture_times(video)
    suffix = out.suffix.lower()
    sound = _sound_of(speech)
    pictures = ffmpeg.input(_url(video))["v:0"]
    taken = ffmpeg.input(_url(speech), itsoffset=_seconds(-sound.origin_s))[str(sound.index)]
    codec = _sound_codec(sound, suffix, duration_s)
    options: dict[str, object] = {"c:v": "copy", "c:a": codec, "format": _FORMATS[suffix], "metadata": f"comment={COMMENT}"}
    if shown < end:
        lasting = f"if(eq(PTS,{shown})+eq(DTS,{coded}),{end}-PTS,min(DURATION,{end}-PTS))"
        options["bsf:v"] = f"setts=pts=PTS:dts=DTS:duration='{lasting}'"
    if codec != "copy":
        # silence before a late start and in gaps goes into the samples, as in read_audio: players differ in honouring times
        taken = taken.filter("aresample", **{"async": 1, "min_hard_comp": float(_GAP_S), "first_pts": 0})
        taken = taken.filter("atrim", end_sample=int(duration_s * sound.sample_rate_hz))
    if codec == "aac":
        options["b:a"] = f"{max(256, 96 * sound.channels)}k"
    if suffix != ".mkv":
        # the edit list counts in the movie's ticks: fine enough for the pictures' start and the encoder's lead-in of the sound
        movie = math.lcm(ticks_per_s, sound.sample_rate_hz)
        options |= {"movflags": "+faststart", "video_track_timescale": ticks_per_s}
        options["movie_timescale"] = movie if movie < 2**31 else ticks_per_s
    with part_file(out) as part:
        command = ffmpeg.output(pictures, taken, _url(part), map_chapters=-1, **options)
        command = command.global_args("-copyts", "-nostdin", "-hide_banner", "-loglevel", "error", "-y")
        _run(ffmpeg.compile(command, cmd=_program()), out)
        check_output(out, inputs=(video, speech), force=force)
        with _mapped(out, writing=True):
            os.replace(part, out)


def _picture_times(video: Path) -> tuple[int, int, int, int]:
    """Ticks per second of `video`, and the ticks at which its last picture is shown, its last packet is decoded, and it ends.

    An .mp4 keeps durations in order of decoding, and some versions of FFmpeg replace them by the average. So with B-frames
    or a variable rate, a plain copy would change the length of the video: see also `Writer._finish`.
    """
    with _opened(video) as container:
        stream = _video_stream(container, video)
        assert stream.time_base is not None
        shown = coded = 0
        for packet in container.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                shown, coded = max(shown, packet.pts), packet.dts
        end = round((_shown_until_s(container, stream, Fraction(0)) or Fraction(0)) / stream.time_base)
        return stream.time_base.denominator, shown, coded, end


@dataclass(frozen=True, slots=True)
class _Sound:
    """What `mux` must know of a sound stream. Times in seconds from time zero; `packet_s`: where coded sound starts, with
    the encoder's lead-in that is not heard. origin_s: time zero on the file's own clock."""

    index: int
    codec: str
    sample_rate_hz: int
    channels: int
    origin_s: Fraction
    packet_s: Fraction
    start_s: Fraction
    end_s: Fraction


def _sound_of(path: Path) -> _Sound:
    """The facts of the sound of `path`; it is decoded to its end. Raises UnreadableMedia, NoAudioStream."""
    with _opened(path) as container:
        stream = _audio_stream(container, path)
        packet = next(container.demux(stream))
        packet_s = Fraction(0) if packet.pts is None else packet.pts * packet.time_base
    with _opened(path) as container:
        stream = _audio_stream(container, path)
        context = stream.codec_context
        start_s: Fraction | None = None
        origin_s = end_s = Fraction(0)
        for time_s, frame in _sounds(container, stream):
            if start_s is None:
                start_s = time_s
                if frame.pts is not None and frame.time_base is not None:
                    origin_s = frame.pts * frame.time_base - time_s
            end_s = time_s + Fraction(frame.samples, frame.sample_rate)
        if start_s is None or end_s <= 0:
            raise NoAudioStream(f"the sound of '{path}' has no samples; give a file with speech in it")
        return _Sound(
            index=stream.index,
            codec=context.codec.canonical_name,
            sample_rate_hz=context.sample_rate,
            channels=context.channels,
            origin_s=origin_s,
            packet_s=packet_s - origin_s,
            start_s=start_s,
            end_s=end_s,
        )


def _sound_codec(sound: _Sound, suffix: str, duration_s: Fraction) -> str:
    """FFmpeg's name of the codec for `sound` in a container of that suffix: "copy" where nothing need be done to it."""
    whole = sound.end_s <= duration_s and sound.start_s >= 0
    if suffix == ".mkv":  # a lead-in before zero would make the Matroska muxer move the pictures
        copied = sound.packet_s >= 0
        other = sound.codec if sound.codec in _PCM else "flac"
    else:
        copied = sound.codec in _COPIED[suffix]
        other = sound.codec if suffix == ".mov" and sound.codec in _PCM else "aac"
    return "copy" if whole and copied else other


def _seconds(time_s: Fraction) -> str:
    """A time as FFmpeg's options take it, in microseconds."""
    return f"{float(time_s):.6f}"


def _program() -> str:
    """The FFmpeg program: the one on PATH if it is of version 5 or later, else the one that imageio-ffmpeg brings.

    Raises EncodingFailed.
    """
    found = shutil.which("ffmpeg")
    if found and _major_version(found) >= _OLDEST_FFMPEG:
        return found
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise EncodingFailed(f"there is no ffmpeg program of version {_OLDEST_FFMPEG} or later; install FFmpeg") from error


@cache
def _major_version(program: str) -> int:
    """The major version of an FFmpeg program; 0 if it does not run. One built from a snapshot counts as new."""
    try:
        said = subprocess.run([program, "-version"], stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    number = re.match(rb"ffmpeg version n?(\d+)\.", said)
    return int(number[1]) if number else 99


def _run(command: list[str], out: Path) -> None:
    """Run FFmpeg to its end; whatever interrupts us ends it, too. Raises EncodingFailed with its last line."""
    with _mapped(out, writing=True):
        # a session of its own: Ctrl-C comes to us alone, and we end the program
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    try:
        _, said = process.communicate()
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"ffmpeg ended with code {process.returncode}"]
        raise EncodingFailed(f"cannot write '{out}': {lines[-1].strip()}; check the free space and the inputs, then run again")
