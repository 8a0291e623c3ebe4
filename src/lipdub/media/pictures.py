"""Pictures out of files: what a file says of itself, and its frames in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from lipdub.errors import UnreadableMedia
from lipdub.media.clock import NO_PTS, FrameClock, shown_until_s
from lipdub.media.converting import Chunk, Converter, ToPlanes, ToRgb, bits_of, is_transparent
from lipdub.media.files import decoded, is_photo_format, opened, origin_of_s, video_stream
from lipdub.media.hdr import hdr_of
from lipdub.media.planes import Depth, YuvChunk, i420_samples
from lipdub.media.turning import quarter_turns
from lipdub.records import ColorTags, DubWarning, FrameChunk, VideoInfo, Warn

_MAX_FRAMES = 16
CHUNK_BYTES = 64 * 2**20
PLANES_BYTES = 12 * 2**20
"""Planes wait in queues between stages that overlap, so their chunks are smaller."""


def _first_frames(container: InputContainer, stream: av.VideoStream, path: Path, count: int) -> list[av.VideoFrame]:
    """Up to `count` first frames, at least one. Raises UnreadableMedia."""
    frames = [frame for frame, _ in zip(decoded(container, stream), range(count), strict=False)]
    if not frames:
        raise UnreadableMedia(f"cannot read '{path}': not one of its pictures decodes; the file is damaged or cut off")
    return frames


def probe(path: Path) -> VideoInfo:
    """What the video or photo at `path` says of itself; one frame is decoded to be sure.

    Sizes, rotation and pixel aspect are those of the picture as shown. `duration_s` is the time at which the last picture
    ends, counted from time zero (so it includes a late start). A photo has no duration.

    Raises:
        UnreadableMedia: missing, empty, a folder, no media, or not one picture decodes.
        NoVideoStream: sound only; cover art is no video.
    """
    with opened(path) as container:
        stream = video_stream(container, path)
        assert stream.time_base is not None
        has_audio = bool(container.streams.audio)
        origin_s = origin_of_s(container)
        one_or_many = container.format.name in ("gif", "apng", "webp")
        frames = _first_frames(container, stream, path, 2 if one_or_many else 1)
        first = frames[0]
        is_still = is_photo_format(container) or (one_or_many and len(frames) == 1)
        convert = ToRgb(first, path)
        rotation = quarter_turns(first)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if aspect <= 0:
            aspect = Fraction(1)
        return VideoInfo(
            path=path,
            width=convert.width,
            height=convert.height,
            time_base=stream.time_base,
            frame_rate=stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25),
            duration_s=None if is_still else shown_until_s(container, stream, origin_s),
            rotation=rotation,
            sample_aspect_ratio=1 / aspect if rotation in (90, 270) else aspect,
            color=ColorTags(int(first.colorspace), int(first.color_range), int(first.color_primaries), int(first.color_trc)),
            is_still=is_still,
            has_audio=has_audio,
            is_transparent=is_transparent(first),
            bits=bits_of(first.format),
            is_interlaced=bool(first.interlaced_frame),
            hdr=hdr_of(first),
        )


def read_frames(path: Path, *, chunk_bytes: int = CHUNK_BYTES) -> Generator[FrameChunk, None, None]:
    """The pictures of `path` in order, upright, as chunks of 1 to 16 frames and about `chunk_bytes` at most.

    Every frame keeps its own timestamp; one that repeats the time of the frame before is left out, a missing one is
    rebuilt. Pixels are converted with the stream's own colour matrix and range (untagged: BT.709 from 720 lines on, else
    BT.601). Damaged packets are left out; a cut-off file gives the frames it has; where the size changes, pictures are
    fitted into the first size. A photo is one frame at tick 0. Each chunk owns its memory. Closing the generator closes
    the file.

    Raises:
        UnreadableMedia, NoVideoStream: as `probe`.
    """
    return _read(path, chunk_bytes, lambda frame, photo: ToRgb(frame, path))


@dataclass(frozen=True, slots=True)
class Entry:
    """A key frame that a video can be read from: its number and its tick."""

    index: int
    tick: int


def read_planes(
    path: Path, *, chunk_bytes: int = PLANES_BYTES, warn: Warn = lambda _: None, entry: Entry | None = None
) -> Generator[YuvChunk, None, None]:
    """The pictures of `path` as `read_frames` gives them, in the planes that the encoder takes; bit for bit where they are stored so.

    warn: told what had to be mended. entry: the first one wanted, in a file whose times need no mending; None for the first there is. Where
    the entry cannot be sought all pictures are given.

    Raises as `read_frames`.
    """
    return _read(path, chunk_bytes, lambda frame, photo: ToPlanes(frame, path, photo=photo), warn, entry)


_Start = Callable[[av.VideoFrame, bool], Converter[Chunk]]


def _read(
    path: Path, chunk_bytes: int, start: _Start[Chunk], warn: Warn = lambda _: None, entry: Entry | None = None
) -> Generator[Chunk, None, None]:
    """The pictures of `path` in chunks; `start` makes the converter from the first frame, told whether it is a photo."""
    with opened(path) as container:
        stream = video_stream(container, path)
        time_base = stream.time_base
        assert time_base is not None
        convert: Converter[Chunk] | None = None
        capacity, index, filled = 1, 0, 0
        if entry is not None:
            container.seek(entry.tick + round(origin_of_s(container) / time_base), stream=stream)
            index = entry.index
        ticks: list[int] = []
        size: tuple[int, int] | None = None
        # From an entry on nothing needs mending, and a clock that knows no steps before it takes a pause for a jump.
        for tick, frame in _timed(container, stream, warn if entry is None else lambda _: None):
            if entry is not None and convert is None:
                if tick < entry.tick:
                    continue
                if tick > entry.tick:  # an .mp4 is sought by times of decoding, and where key frames lie close together too far
                    yield from _read(path, chunk_bytes, start, warn)
                    return
            if size is not None and size != (frame.width, frame.height):
                warn(_size_changes(size, frame, tick * time_base))
                warn = lambda _: None  # noqa: E731 - once is enough
            size = size or (frame.width, frame.height)
            if convert is None:
                convert = start(frame, is_photo_format(container))
                capacity = max(1, min(_MAX_FRAMES, chunk_bytes // convert.frame_bytes))
            if filled == 0:
                convert.begin(capacity)
            convert.put(filled, frame)
            ticks.append(tick)
            filled += 1
            if filled == capacity:
                yield convert.chunk(index, filled, np.array(ticks, np.int64), time_base)
                index, filled = index + filled, 0
                ticks.clear()
        if convert is None:
            raise UnreadableMedia(f"cannot read '{path}': not one of its pictures decodes; the file is damaged or cut off")
        if filled:
            yield convert.chunk(index, filled, np.array(ticks, np.int64), time_base)


def _size_changes(size: tuple[int, int], frame: av.VideoFrame, at_s: Fraction) -> DubWarning:
    """What there is to say of pictures whose size (as stored) changes to that of `frame`."""
    sizes = f"from {size[0]}x{size[1]} to {frame.width}x{frame.height}"
    text = f"the size of the pictures changes {sizes} at {float(at_s):.2f} s: from there on they are fitted into the first size"
    return DubWarning("picture-size-changes", text, ((float(at_s), float(at_s)),))


def _timed(container: InputContainer, stream: av.VideoStream, warn: Warn = lambda _: None) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of `stream` with their ticks; of a photo the first one, at tick 0."""
    clock = FrameClock(container, stream, warn)
    photo = is_photo_format(container)
    for frame in decoded(container, stream):
        tick = 0 if photo else clock.tick(frame)
        if tick is not None:
            yield tick, frame
        if photo:
            return


SPAN_FRAMES = 16
"""How many frames of a video that is played backwards are held at a time, at most."""


def read_span(path: Path, pts: NDArray[np.int64], first: int, end: int) -> YuvChunk:
    """The frames [first, end) of `path` as `read_planes` gives them, decoded from the key frame before them.

    pts: int64 (N,), the ticks of all frames as `read_planes` gave them.

    At least one frame and at most as many as fit 12 MiB are given: the last ones of the span, so ``index`` may be later than `first`.

    Raises:
        UnreadableMedia, NoVideoStream: as `probe`; UnreadableMedia, too, where the file no longer holds these frames.
    """
    with opened(path) as container:
        stream = video_stream(container, path)
        time_base = stream.time_base
        assert time_base is not None
        coded = stream.codec_context
        frame_bytes = i420_samples(coded.height, coded.width) * Depth.holding(bits_of(coded.format)).dtype.itemsize
        first = max(first, end - max(1, min(SPAN_FRAMES, PLANES_BYTES // max(1, frame_bytes))))
        wanted, found = pts[first:end], set[int]()
        shift = -round(origin_of_s(container) / time_base)
        convert: ToPlanes | None = None
        if not is_photo_format(container) and container.format.name not in NO_PTS:
            with opened(path) as again:  # for the first frame, whose size all others get; this one is still to be sought in
                convert = ToPlanes(_first_frames(again, video_stream(again, path), path, 1)[0], path, photo=False)
            convert.begin(len(wanted))
            with suppress(av.error.FFmpegError):
                container.seek(int(wanted[0]) - shift, stream=stream, backward=True, any_frame=False)
            for frame in decoded(container, stream):
                tick = None if frame.pts is None else frame.pts + shift
                if tick is not None and wanted[0] <= tick <= wanted[-1] and tick not in found:
                    slot = int(np.searchsorted(wanted, tick))
                    if wanted[slot] == tick:
                        convert.put(slot, frame)
                        found.add(tick)
                if len(found) == len(wanted) or (tick is not None and tick > wanted[-1]):
                    break
    if convert is not None and len(found) == len(wanted):
        return convert.chunk(first, len(wanted), wanted.astype(np.int64), time_base)
    return _span_from_start(path, wanted, first, end)


def _span_from_start(path: Path, wanted: NDArray[np.int64], first: int, end: int) -> YuvChunk:
    """The same for streams whose times had to be mended, and formats that cannot seek: read on from the start."""
    convert: ToPlanes | None = None
    with opened(path) as container:
        stream = video_stream(container, path)
        time_base = stream.time_base
        assert time_base is not None
        for index, (_, frame) in enumerate(_timed(container, stream)):
            if convert is None:
                convert = ToPlanes(frame, path, photo=is_photo_format(container))
                convert.begin(end - first)
            if index < first:
                continue
            convert.put(index - first, frame)
            if index == end - 1:
                return convert.chunk(first, end - first, wanted.astype(np.int64), time_base)
    raise UnreadableMedia(f"cannot read '{path}': it no longer holds the frames seen before; was it changed meanwhile?")
