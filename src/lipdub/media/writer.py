"""Frames into H.264, or what else an encoder makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import av.error
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.reformatter import VideoReformatter

from lipdub.atomic import part_file, put_in_place
from lipdub.errors import EncodingFailed
from lipdub.media.colour import FULL, LIMITED, sws_matrix, written_color
from lipdub.media.containers import container_of
from lipdub.media.converting import resampled
from lipdub.media.encoders import ENCODERS, PictureEncoder
from lipdub.media.files import mapped, url_of
from lipdub.media.kept import NOTHING_KEPT, Kept
from lipdub.media.planes import Levels, YuvChunk, YuvColor
from lipdub.records import VideoInfo


class Writer:
    """Encodes frames at `out`, to H.264 (VP9 in .webm) unless another encoder is given: silent, upright, with the timestamps, colour tags
    and pixel aspect of `info`.

    A context manager. It writes to a temporary file beside `out` and renames it when the block ends well; after any error
    (Ctrl-C, too) nothing is left and what was at `out` is untouched. An `out` that exists is replaced: `check_output` is
    the caller's.

    crf, preset: quality and speed of x264; for others, what comes near them. kept: tags and chapters that the file is to have.

    Ticks are those of `time_base` (the one of `info` by default), written exactly to .mp4 and .mov; .mkv and .webm count in
    milliseconds. Pixels are yuv420p, which plays everywhere, of 8 bits or of the encoder's 10, and which needs even sides: an odd picture
    gets its last column or row once more, so every pixel is kept and the side grows by one. (yuv444p would keep the size, but
    QuickTime, Safari and hardware decoders do not play it.) Untagged colour stays untagged; pictures that were coded as RGB, and
    photos, are written in limited range and tagged.

    end_s: when the last frame ends, seconds from time zero; set it before the block ends. None: where the source's last
    picture ends, if that is close, else as long as the frame before.

    Raises:
        EncodingFailed: the encoder or the muxer gave up, or no frame was written.
        WriteFailed: the disk gave up.
    """

    def __init__(
        self, out: Path, info: VideoInfo, *, crf: int, preset: str, time_base: Fraction | None = None, kept: Kept = NOTHING_KEPT,
        encoder: PictureEncoder | None = None,
    ) -> None:  # fmt: skip
        self.out = out
        self.end_s: Fraction | None = None
        self.time_base = time_base or info.time_base
        self._info, self._kept = info, kept
        self._kind = container_of(out)
        self._encoder = encoder or ENCODERS[self._kind.pictures[0]]
        self._options = self._encoder.options_for(crf, preset, info.hdr)
        self._reformatter = VideoReformatter()
        self._size = info.width + info.width % 2, info.height + info.height % 2
        self._color = written_color(info, padded=self._size != (info.width, info.height))
        self._held: av.VideoFrame | None = None
        self._step = max(1, round(1 / (info.frame_rate * self.time_base)))
        self._lead: int | None = None
        self._last_dts = -(2**63)
        self._end = 0

    def __enter__(self) -> Writer:
        with ExitStack() as stack, mapped(self.out, writing=True):
            self._part = stack.enter_context(part_file(self.out))
            self._container = self._opened()
            stack.callback(self._close)
            self._stream = self._started()
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._open, mapped(self.out, writing=True):
            if kind is None:
                self._finish()
                put_in_place(self._part, self.out)

    def write(self, chunk: YuvChunk) -> None:
        """Encode the frames of `chunk` at their own times, bit for bit where the encoder has their depth; chunks come in order.

        Raises:
            ValueError: another size than `info`, times that do not increase, or that are no whole ticks of `time_base`.
        """
        if (chunk.height, chunk.width) != (self._info.height, self._info.width):
            raise ValueError(f"frames must be {self._info.height} x {self._info.width}, got {chunk.height} x {chunk.width}")
        ratio = chunk.time_base / self.time_base
        with mapped(self.out, writing=True):
            for picture, pts in zip(chunk.data, chunk.pts.tolist(), strict=True):
                tick = pts * ratio
                if tick.denominator != 1:
                    raise ValueError(f"tick {pts} of {chunk.time_base} s is no whole tick of {self.time_base} s")
                frame = self._from_planes(picture, chunk.color)
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
        ticks_per_s = self.time_base.denominator
        options = self._kind.muxer_options(ticks_per_s, ticks_per_s)
        container = av.open(url_of(self._part), "w", format=self._kind.muxer, container_options=options)
        self._kept.into(container)
        return container

    def _started(self) -> av.VideoStream:
        """The encoder, its header written."""
        rate = self._info.frame_rate.limit_denominator(1001 * 60)
        stream = self._container.add_stream(self._encoder.name, rate=rate, options=self._options)
        assert isinstance(stream, av.VideoStream)
        self._configure(stream.codec_context)
        self._container.start_encoding()
        return stream

    def _configure(self, context: av.VideoCodecContext) -> None:
        """Tell the encoder what pictures it gets."""
        context.width, context.height = self._size
        context.pix_fmt = self._encoder.pix_fmt
        context.time_base = self.time_base
        context.sample_aspect_ratio = self._info.sample_aspect_ratio
        context.colorspace, context.color_range = self._color.matrix, self._color.range
        context.color_primaries, context.color_trc = self._color.primaries, self._color.transfer
        if self._encoder.tag and self._kind.keeps_ticks:
            context.codec_tag = self._encoder.tag
        context.flags |= Flags.frame_duration

    def _from_planes(self, data: Levels, color: YuvColor) -> av.VideoFrame:
        """One picture that is as the encoder takes it."""
        width, height = self._size
        frame = av.VideoFrame.from_ndarray(data.reshape(height * 3 // 2, width), color.depth.pix_fmt)
        if color.depth.pix_fmt != self._encoder.pix_fmt:
            matrix = sws_matrix(self._color.matrix, height)
            frame = resampled(self._reformatter, frame, self._size, matrix, FULL if color.full else LIMITED, self._encoder.pix_fmt)
        frame.colorspace, frame.color_range = self._color.matrix, self._color.range
        frame.color_primaries, frame.color_trc = self._color.primaries, self._color.transfer
        return frame

    def _encode(self, frame: av.VideoFrame, duration: int) -> None:
        """Hand one frame to the encoder, shown for `duration` ticks."""
        assert frame.pts is not None
        frame.duration, self._end = duration, frame.pts + duration
        self._mux(self._coded(frame))

    def _coded(self, frame: av.VideoFrame | None) -> list[av.Packet[av.VideoStream]]:
        """What the encoder gives for a frame; for None what it still holds."""
        return self._stream.encode(frame)

    def _mux(self, packets: Iterable[av.Packet[av.VideoStream]]) -> None:
        """Hand coded frames to the container."""
        for packet in packets:
            if self._lead is None:
                self._lead = (packet.pts or 0) - (packet.dts or 0)
            self._last_dts = packet.dts if packet.dts is not None else self._last_dts
            self._container.mux(packet)

    def _finish(self) -> None:
        """Write the last frame and the container's end."""
        if self._held is None:
            raise EncodingFailed(f"cannot write '{self.out}': there are no pictures to write; check the input video")
        self._encode(self._held, self._last_duration(self._held.pts or 0))
        packets = self._coded(None)
        if self._lead is None and len(packets) == 2:
            # Of a video of two frames x265 tells times of decoding that it never set; two are coded in their order.
            for packet in packets:
                packet.dts = packet.pts
        self._mux_last(packets, self._held.pts)

    def _mux_last(self, packets: list[av.Packet[av.VideoStream]], tick: int | None) -> None:
        """Hand the last coded frames to the container, and end it. tick: of the frame that is shown last."""
        self._mux(packets[:-1])
        for last in packets[-1:]:
            if last.pts is not None and last.dts is not None and self._kind.keeps_ticks:
                # An .mp4 keeps durations in order of decoding, and FFmpeg takes their sum for the length of the pictures.
                # With B-frames and a variable rate that is another one, unless the last frame coded makes up for it.
                last.dts = max(self._last_dts + 1, last.pts - (self._lead or 0))
                last.duration = self._end - last.pts
            elif last.pts is not None and last.pts == tick:  # not every encoder hands durations on
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
