"""Opening files for reading, choosing their streams, and turning FFmpeg's errors into lipdub's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, overload

import av
import av.error
import av.logging
from av.container import InputContainer
from av.stream import Disposition

from lipdub.errors import EncodingFailed, LipdubError, NoAudioStream, NoVideoStream, UnreadableMedia, WriteFailed
from lipdub.media.copies import readable

av.logging.set_level(None)  # a user sees one line, ours

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^/]")
"""A path that began as a URL: `Path` makes one slash of two."""
_NOT_MEDIA = {"tty", "bin", "xbin", "adf", "idf"}
"""Demuxers that would draw a text file as pictures of text."""
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own decoders of these leave transparency out."""
BROADCAST = {"mpegts", "mpeg"}
"""Formats whose clock starts anywhere and that keep no length."""


@contextmanager
def mapped(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Turn what PyAV and the system raise about `path` into one of our errors; the only place where that happens.

    Raises:
        UnreadableMedia: where `path` is read.
        WriteFailed, EncodingFailed: where it is written.
    """
    try:
        yield
    except LipdubError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        reason = (error.strerror or str(error) or type(error).__name__).strip().rstrip(".")
        if writing:
            kind = WriteFailed if isinstance(error, OSError) else EncodingFailed
            raise kind(f"cannot write '{path}': {reason}; check the free space and the folder, then run again") from error
        if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
            reason = "no media that FFmpeg can read, or cut off before its first picture or sound"
        raise UnreadableMedia(f"cannot read '{path}': {reason}; give a video, photo or sound file") from error


def url_of(path: Path) -> str:
    """`path`, or the copy that is read in its place, so that FFmpeg takes it literally, whatever characters it holds."""
    return f"file:{readable(path).absolute()}"


def has_plain_name(path: Path) -> bool:
    """Whether the path is text: one that holds bytes which are no UTF-8 cannot be handed to ffmpeg-python."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """`path` opened for reading, closed at the end. Raises UnreadableMedia."""
    with mapped(path):
        if not path.exists() and _URL.match(str(path)):
            raise UnreadableMedia(f"cannot read '{path}': it looks like a URL; download it first, or let lipdub batch fetch it")
        if not path.exists():
            raise UnreadableMedia(f"cannot read '{path}': there is no such file; check the path")
        if not has_plain_name(path):
            raise UnreadableMedia(f"cannot read '{path}': its name is no UTF-8; rename it first")
        if path.is_dir():
            raise UnreadableMedia(f"cannot read '{path}': it is a folder; give a video, photo or sound file")
        if readable(path).stat().st_size == 0:
            raise UnreadableMedia(f"cannot read '{path}': the file is empty; give a video, photo or sound file")
        # pattern_type: a photo's name may hold a percent sign; protocol_whitelist: a playlist must not reach the network
        options = {"pattern_type": "none", "protocol_whitelist": "file"}
        with av.open(url_of(path), "r", container_options=options, metadata_errors="replace") as container:
            if container.format.name in _NOT_MEDIA:
                raise UnreadableMedia(f"cannot read '{path}': it holds text; give a video, photo or sound file")
            yield container


def video_stream(container: InputContainer, path: Path) -> av.VideoStream:
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


def audio_stream(container: InputContainer, path: Path) -> av.AudioStream:
    """The stream that holds the sound. Raises NoAudioStream."""
    streams = [s for s in container.streams.audio if s.codec_context is not None]
    if not streams:
        raise NoAudioStream(f"'{path}' holds no sound; give a file with speech in it")
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def is_photo_format(container: InputContainer) -> bool:
    """Whether the format holds a single picture."""
    name = container.format.name
    brand = container.metadata.get("major_brand", "")
    return name == "image2" or name.endswith("_pipe") or brand in ("avif", "heic", "heix", "mif1")


def origin_of_s(container: InputContainer) -> Fraction:
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
    return first if container.format.name in BROADCAST or first < 0 or first > 1 else Fraction(0)


def coded_from_s(path: Path, index: int) -> Fraction | None:
    """Where the coded data of a stream begins on the file's own clock, seconds, what nobody hears of it included; None where no time is
    told. Raises UnreadableMedia."""
    with opened(path) as container:
        packet = next(container.demux(container.streams[index]))
        return None if packet.pts is None else packet.pts * packet.time_base


def _tags(stream: av.VideoStream | av.AudioStream) -> set[tuple[str, str]]:
    return {(name.lower(), value) for name, value in stream.metadata.items()}


@overload
def decoded(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]: ...
@overload
def decoded(
    container: InputContainer, stream: av.AudioStream, *, beside: Sequence[av.VideoStream] = (), seen_s: list[Fraction] | None = None
) -> Iterator[av.AudioFrame]: ...
def decoded(
    container: InputContainer, stream: av.VideoStream | av.AudioStream, *, beside: Sequence[av.VideoStream] = (),
    seen_s: list[Fraction] | None = None,
) -> Iterator[Any]:  # fmt: skip
    """The frames of `stream` that decode, in order of display; damaged packets are left out, a cut-off file ends early.

    beside: other streams, of whose packets the times are put into `seen_s`, seconds on the file's own clock, and nothing else is looked at.
    """
    packets = container.demux(stream, *beside)
    decoder: Any = None
    if ("alpha_mode", "1") in _tags(stream) and stream.codec_context.name in _ALPHA_DECODERS:
        decoder = av.CodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r")
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        if packet.stream.index != stream.index:
            if seen_s is not None and packet.pts is not None and packet.time_base is not None:
                seen_s.append(packet.pts * packet.time_base)
            continue
        try:
            # An empty packet stands for the end.
            frames = packet.decode() if decoder is None else decoder.decode(packet if packet.size else None)
        except av.error.FFmpegError:
            continue
        yield from frames
