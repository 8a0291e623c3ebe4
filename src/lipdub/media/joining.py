"""Pictures that stay as they are, copied as the source has them coded; only what lies between is encoded.

A stretch that is copied begins and ends at an IDR picture: from there on nothing before it is needed, in the order of coding as in the
order of showing. The parameter sets of source and encoder stand side by side at the head of the one stream, under different numbers. Each
picture names those that it is coded by, so not a byte of the source's pictures is altered.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from numpy.typing import NDArray

from lipdub.errors import UnreadableMedia
from lipdub.media.encoders import PictureEncoder
from lipdub.media.files import mapped, opened, origin_of_s, video_stream
from lipdub.media.h264 import PARAMETERS, SLICE_OF_IDR, Head, kind, parameters_of, units
from lipdub.media.kept import NOTHING_KEPT, Kept
from lipdub.media.planes import YuvChunk
from lipdub.media.turning import AS_STORED, display_matrix
from lipdub.media.writer import Writer
from lipdub.records import VideoInfo
from lipdub.timeline import Timeline

_ENCODER: Final = "libx264"
"""The only one whose parameter sets can be given a number."""
_REORDERED: Final = 2
"""x264 codes a picture at most so many places before it is shown."""
_PROFILES: Final = (66, 77, 100)
"""Baseline, Main and High."""
_FORMATS: Final = frozenset({"mp4", "matroska"})
"""In which a picture is found by the time when it is shown."""
_NEVER: Final = -(2**63)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Frames [first, end) of an output that are copied: the coded pictures of the source from number `packet` on."""

    first: int
    end: int
    packet: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end or self.packet < 0:
            raise ValueError(f"a stretch holds a frame at least, got {self.first} to {self.end} from picture {self.packet}")

    def __len__(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Copies:
    """What of a source goes into the output as it is coded, in order. head: the source's. reordered: by how many pictures one of them is
    coded before it is shown, at most."""

    video: Path
    head: Head
    stretches: tuple[Stretch, ...]
    reordered: int

    def __post_init__(self) -> None:
        if not self.stretches or any(one.end >= two.first for one, two in pairwise(self.stretches)):
            raise ValueError("copies are stretches in order that do not touch")

    def __len__(self) -> int:
        """Frames that are copied."""
        return sum(map(len, self.stretches))


class CannotCopy(Exception):
    """Why nothing of a source can be copied, as a part of a sentence."""


def plan_copies(
    info: VideoInfo, pts: NDArray[np.int64], shown: Timeline, untouched: NDArray[np.bool_], *, encoder: PictureEncoder, crf: int
) -> Copies:
    """What can be copied of the video that `info` is of, into what `encoder` makes of the rest.

    pts: int64 (N,), ticks of its frames. untouched: bool (K,), which frames of the output are as they are in the source.

    Raises CannotCopy; UnreadableMedia, NoVideoStream.
    """
    if encoder.name != _ENCODER:
        raise CannotCopy(f"only pictures of {_ENCODER} go with copied ones, not those of {encoder.name}")
    if crf == 0:  # FFmpeg's decoder gives wrong pictures behind such a change when it works in several threads
        raise CannotCopy("pictures without loss (--crf 0) do not go with copied ones; use a --crf of 1 or more")
    coded = _looked_through(info)
    if not np.isin(pts, coded.ticks).all():
        raise CannotCopy("the times of the video's pictures had to be mended")
    # Frames that are played again, or shown at other times than in the source, are no copies.
    count = min(len(pts), len(shown))
    alike = (shown.source[:count] == np.arange(count)) & (shown.pts[:count] == pts[:count]) & (shown.time_base == info.time_base)
    stretches, reordered = coded.stretches(pts[:count], untouched[:count] & alike)
    if not stretches:
        raise CannotCopy("between any two key frames of the video something is redrawn")
    return Copies(info.path, coded.head, stretches, reordered)


@dataclass(frozen=True, slots=True)
class _Coded:
    """The coded pictures of a video in order of coding. ticks: int64 (P,), when each is shown, `_NEVER` for what is not shown or damaged.
    begins: int64, numbers of the IDR pictures."""

    head: Head
    ticks: NDArray[np.int64]
    begins: NDArray[np.int64]

    def stretches(self, pts: NDArray[np.int64], untouched: NDArray[np.bool_]) -> tuple[tuple[Stretch, ...], int]:
        """What is copied of frames shown at `pts`, int64 (K,), where only the `untouched` are, bool (K,); and by how many pictures one is
        coded before it is shown."""
        found: list[Stretch] = []
        reordered = 0
        for begin, end in pairwise([*self.begins.tolist(), len(self.ticks)]):
            order = np.argsort(self.ticks[begin:end], kind="stable")
            ticks = self.ticks[begin:end][order]
            first = int(np.searchsorted(pts, ticks[0]))
            frames = slice(first, first + len(ticks))
            if not np.array_equal(ticks, pts[frames]) or not untouched[frames].all():
                continue
            reordered = max(reordered, int((order - np.arange(len(order))).max()))
            if found and found[-1].end == first and found[-1].packet + len(found[-1]) == begin:
                found[-1] = Stretch(found[-1].first, frames.stop, found[-1].packet)
            elif not found or found[-1].end < first:  # else pictures that are not shown lie between the two
                found.append(Stretch(first, frames.stop, begin))
        return tuple(found), reordered


def _looked_through(info: VideoInfo) -> _Coded:
    """All coded pictures of a video. Raises CannotCopy, UnreadableMedia, NoVideoStream."""
    with opened(info.path) as container:
        stream = video_stream(container, info.path)
        coded = stream.codec_context.codec.canonical_name
        if coded != "h264" or not _FORMATS & {*container.format.name.split(",")}:
            raise CannotCopy(f"the video is {coded} in {container.format.long_name}, and only H.264 in .mp4, .mov and .mkv is copied")
        try:
            head = Head.of(stream.codec_context.extradata)
            if head.free_id is None:
                raise CannotCopy("no number is free for the encoder's parameter sets")
        except ValueError as error:
            raise CannotCopy(f"of the video, {error}") from error
        if head.profile not in _PROFILES:
            raise CannotCopy(f"the video is H.264 of an unusual profile ({stream.codec_context.profile})")
        shift = _shift(container, stream)
        ticks, begins, known = array("q"), array("q"), set[int]()
        for packet in _packets(container, stream):
            parts, by, is_whole = [], None, False
            with suppress(ValueError):
                parts = list(units(memoryview(packet)))
                by = next((parameters_of(part) for part in parts if kind(part) == SLICE_OF_IDR), None)
                is_whole = packet.pts is not None and not packet.is_corrupt and not packet.is_discard
            another = any(kind(part) in PARAMETERS and part not in (*head.sps, *head.pps) for part in parts)
            if another or packet.has_sidedata("new_extradata"):  # the latter from .mp4 with several sample descriptions
                raise CannotCopy("the video's coding changes on the way")
            if by is not None:
                begins.append(len(ticks))
                if is_whole and by not in known:
                    known.add(by)
                    _require_alike(packet, stream, info)
            ticks.append(packet.pts + shift if is_whole and packet.pts is not None else _NEVER)
    return _Coded(head, np.array(ticks, np.int64), np.array(begins, np.int64))


def _require_alike(packet: av.Packet[av.VideoStream], stream: av.VideoStream, info: VideoInfo) -> None:
    """Raise CannotCopy unless the IDR picture in `packet` decodes to a picture such as the encoder makes them of this video."""
    try:
        frames = [*packet.decode(), *stream.codec_context.decode(None)]
    except av.error.FFmpegError:
        frames = []
    stream.codec_context.flush_buffers()
    for frame in frames:
        if display_matrix(frame, info.path) != AS_STORED:
            raise CannotCopy("the video's pictures are stored turned")
        if frame.interlaced_frame:
            raise CannotCopy("the video's pictures are interlaced")
        if frame.format.name not in ("yuv420p", "yuvj420p"):
            raise CannotCopy(f"the video's pictures are {frame.format.name}, the encoder's yuv420p")
        if (frame.width, frame.height) != (info.width, info.height):
            raise CannotCopy("the size of the video's pictures changes")
    if not frames:
        raise CannotCopy("the video's key frames are damaged")


def _shift(container: InputContainer, stream: av.VideoStream) -> int:
    """Ticks from the file's own clock to time zero, as `clock.FrameClock` counts."""
    assert stream.time_base is not None
    return -round(origin_of_s(container) / stream.time_base)


def _packets(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet[av.VideoStream]]:
    """The coded pictures of a stream; a cut-off file ends early."""
    with suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            if packet.size:
                yield packet


class Joiner(Writer):
    """A `Writer` of which chunks are asked for the frames alone that are not copied; it takes the others from the source.

    shown: the whole output. Pictures are put in their order of coding by it, whatever the encoder and the source say of that.
    """

    def __init__(
        self, out: Path, info: VideoInfo, copies: Copies, shown: Timeline, *, crf: int, preset: str, encoder: PictureEncoder,
        kept: Kept = NOTHING_KEPT,
    ) -> None:  # fmt: skip
        super().__init__(out, info, crf=crf, preset=preset, time_base=shown.time_base, kept=kept, encoder=encoder)
        # Units come with their length before them, as those of the source do. Where the source reorders nothing, nor does the encoder:
        # FFmpeg leaves out last key frames of an .mp4 that are shown later than they are decoded by more than is left of it.
        lead = max(_REORDERED, copies.reordered) if copies.reordered else 0
        self._options |= {"x264-params": f"sps-id={copies.head.free_id}:annexb=0{'' if lead else ':bframes=0'}"}
        self._copies, self._shown, self._done = copies, shown, 0
        self._stretches, self._source = iter(copies.stretches), _source(copies.video)
        step = int(shown.pts[1] - shown.pts[0]) if len(shown) > 1 else 1
        self._edges = np.append(shown.pts, shown.end)
        self._dts = map(int, np.concatenate([shown.pts[0] - step * np.arange(lead, 0, -1), shown.pts]))
        self._coder: av.VideoCodecContext | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with closing(self._source):
            super().__exit__(kind, error, trace)

    def write(self, chunk: YuvChunk) -> None:
        """See `Writer`. Raises ``ValueError``, too, where neither copies nor chunks have the frames before."""
        if self._done < chunk.index:
            with mapped(self.out, writing=True):
                self._mux(self._copied(chunk.index))
        super().write(chunk)
        self._done = chunk.index + len(chunk)

    def _finish(self) -> None:
        if (left := len(self._shown) - self._done) == 0:
            super()._finish()
            return
        packets = self._copied(len(self._shown))
        self._mux(islice(packets, left - 1))
        self._mux_last(list(packets), int(self._shown.pts[-1]))

    def _started(self) -> av.VideoStream:
        stream = super()._started()
        self._coder = stream.codec_context
        return stream

    def _configure(self, context: av.VideoCodecContext) -> None:
        super()._configure(context)
        context.flags |= Flags.global_header
        context.open()
        context.extradata = self._copies.head.joined(Head.of(context.extradata)).written

    def _coded(self, frame: av.VideoFrame | None) -> list[av.Packet[av.VideoStream]]:
        if self._coder is None:
            fresh = av.CodecContext.create(self._encoder.name, "w")
            assert isinstance(fresh, av.VideoCodecContext)
            fresh.options, fresh.framerate = self._options, self._stream.codec_context.framerate
            self._configure(fresh)
            self._coder = fresh
        packets = self._coder.encode(frame)
        for packet in packets:
            packet.stream, packet.dts = self._stream, next(self._dts)
        return list(packets)

    def _copied(self, end: int) -> Iterator[av.Packet[av.VideoStream]]:
        """The next stretch, which has to end at frame `end`, after all that was still to be encoded."""
        first, edges = self._done, self._edges
        stretch = next(self._stretches, None)
        if stretch is None or (stretch.first, stretch.end) != (first, end):
            raise ValueError(f"the frames from {first} to {end} are neither copied nor given")
        if self._held is not None:
            self._encode(self._held, int(edges[first] - edges[first - 1]))
            self._mux(self._coded(None))
            self._held = self._coder = None
        self._done, self._end = end, self._shown.end
        for number, packet in self._source:
            if number >= stretch.packet:
                row = int(np.searchsorted(edges[first:end], packet.pts or 0)) + first
                if row == end or edges[row] != packet.pts:
                    break
                packet.stream, packet.dts, packet.duration = self._stream, next(self._dts), int(edges[row + 1] - edges[row])
                yield packet
            if number + 1 == stretch.packet + len(stretch):
                return
        raise UnreadableMedia(f"'{self._copies.video}' gave other pictures than were seen before; was it changed meanwhile?")


def _source(video: Path) -> Generator[tuple[int, Any], None, None]:
    """The coded pictures of `video` with their numbers, at times that count from time zero. Raises UnreadableMedia, NoVideoStream."""
    with opened(video) as container:
        stream = video_stream(container, video)
        shift = _shift(container, stream)
        for number, packet in enumerate(_packets(container, stream)):
            if packet.pts is not None:
                packet.pts += shift
            yield number, packet
