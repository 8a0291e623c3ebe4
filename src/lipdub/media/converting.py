"""Decoded frames as the rest of lipdub takes them: upright RGB, or upright planes for the encoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Protocol, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from lipdub.media.colour import EXACT, FULL, LIMITED, SWS_MATRIX, UNSPECIFIED, sws_matrix, written_color, yuv_color
from lipdub.media.planes import EIGHT_BITS, Depth, Levels, Size, YuvChunk, fitted, i420_samples, planes_of
from lipdub.media.turning import AS_STORED, display_matrix, upright
from lipdub.records import ColorTags, FrameChunk, VideoInfo

Chunk = TypeVar("Chunk", FrameChunk, YuvChunk, covariant=True)
_RGB = {1: ("rgb24", "rgba"), 2: ("rgb48le", "rgba64le")}
"""RGB of so many bytes a level, without and with transparency."""


class Converter(Protocol[Chunk]):
    """Gathers the frames of one stream into chunks: ``begin`` a chunk, ``put`` each frame, take the ``chunk``.

    Frames of another shape than the first one are fitted into its size, in the middle of black. frame_bytes: what one converted frame
    takes.
    """

    frame_bytes: int

    def begin(self, count: int) -> None:
        """Take memory for a chunk of up to `count` frames."""

    def put(self, slot: int, frame: av.VideoFrame) -> None:
        """Convert a frame into its slot."""

    def chunk(self, index: int, count: int, pts: NDArray[np.int64], time_base: Fraction) -> Chunk:
        """The frames in the first `count` slots."""


class ToRgb:
    """Converts decoded frames of one stream to upright RGB of one size, that of the first frame: uint8, or, where it is on its way to
    planes of more than 8 bits, uint16."""

    def __init__(self, first: av.VideoFrame, path: Path, *, depth: Depth = EIGHT_BITS) -> None:
        self._reformatter = VideoReformatter()
        self._path, self._depth = path, depth
        self._turn = display_matrix(first, path)
        self._stored = first.width, first.height
        shown = upright(np.empty((first.height, first.width, 3), np.uint8), self._turn)
        self.height, self.width = shown.shape[:2]
        self.frame_bytes = 3 * self.height * self.width
        self._pixels = np.empty((0, self.height, self.width, 3), np.uint8)
        self._format = _RGB[depth.dtype.itemsize][may_be_transparent(first)]

    def __call__(self, frame: av.VideoFrame) -> Levels:
        """Levels (H, W, 3) RGB, a view of memory of its own."""
        if not self.fits(frame):
            return fitted(ToRgb(frame, self._path, depth=self._depth)(frame), (self.width, self.height))
        width, height = self._stored
        coded_as_rgb = frame.format.is_rgb or frame.format.has_palette
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=self._format,
            src_colorspace=None if coded_as_rgb else sws_matrix(frame.colorspace, self.height),
            src_color_range=None if coded_as_rgb else (FULL if frame.color_range == FULL else LIMITED),
            dst_color_range=FULL,
            interpolation=EXACT,
        )
        return upright(on_backdrop(rgb.to_ndarray()), self._turn)  # type: ignore[arg-type]

    def fits(self, frame: av.VideoFrame) -> bool:
        """Whether the frame has the first one's shape, to a pixel, and lies as it does: then it is scaled as it is stored."""
        width, height = self._stored
        if (frame.width, frame.height) == (width, height):
            return True
        off = frame.width * height - frame.height * width
        return abs(off) <= max(frame.width, frame.height, width, height)

    def begin(self, count: int) -> None:
        """See `Converter`."""
        self._pixels = np.empty((count, self.height, self.width, 3), np.uint8)

    def put(self, slot: int, frame: av.VideoFrame) -> None:
        """See `Converter`."""
        self._pixels[slot] = self(frame)

    def chunk(self, index: int, count: int, pts: NDArray[np.int64], time_base: Fraction) -> FrameChunk:
        """See `Converter`."""
        return FrameChunk(index, self._pixels[:count], pts, time_base)


class ToPlanes:
    """Converts decoded frames of one stream to upright planes with chroma at half the sides, as the encoder takes them: of 8 bits, or of
    10 where the first frame, which is no photo, has more than 8.

    Planes of that kind are copied bit for bit. Other YUV is resampled and keeps its matrix and range. Photos, and what is coded as
    RGB, go through RGB to YUV of limited range (`colour.written_color`). Transparent parts are laid on white.
    """

    def __init__(self, first: av.VideoFrame, path: Path, *, photo: bool) -> None:
        self._reformatter = VideoReformatter()
        self._depth = EIGHT_BITS if photo else Depth.holding(bits_of(first.format))
        self._by_rgb = ToRgb(first, path, depth=self._depth)
        self.height, self.width = self._by_rgb.height, self._by_rgb.width
        self._samples = i420_samples(self.height, self.width)
        self.frame_bytes = self._samples * self._depth.dtype.itemsize
        self._turn = display_matrix(first, path)
        self._stored = first.width, first.height
        matrix = int(first.colorspace)
        odd = bool(self.height % 2 or self.width % 2)
        mends_rgb = photo or matrix == 0 or first.format.is_rgb or first.format.has_palette
        # Turned planes of an odd side do not lie on their chroma any more; matrices that nobody converts are not kept when padded.
        unpaddable = odd and (self._turn != AS_STORED or matrix not in (*SWS_MATRIX, UNSPECIFIED))
        self._through_rgb = mends_rgb or unpaddable or may_be_transparent(first)
        full = int(first.color_range) == FULL and not mends_rgb
        self._range = FULL if full else LIMITED
        self._matrix = sws_matrix(UNSPECIFIED if mends_rgb else matrix, self.height)
        self._color = yuv_color(UNSPECIFIED if mends_rgb else matrix, full=full, shown_height=self.height, depth=self._depth)
        self._data: Levels = np.empty((0, self._samples), self._depth.dtype)

    def begin(self, count: int) -> None:
        """See `Converter`."""
        self._data = np.empty((count, self._samples), self._depth.dtype)

    def put(self, slot: int, frame: av.VideoFrame) -> None:
        """See `Converter`."""
        for plane, stored in zip(planes_of(self._data[slot], self.height, self.width), self._planes(frame), strict=True):
            shown = stored if self._through_rgb or not self._by_rgb.fits(frame) else upright(stored, self._turn)
            rows, columns = shown.shape
            plane[:rows, :columns] = shown
            # The last row or column once more, where the encoder needs an even side.
            plane[:rows, columns:] = plane[:rows, columns - 1 : columns]
            plane[rows:] = plane[rows - 1 : rows]

    def chunk(self, index: int, count: int, pts: NDArray[np.int64], time_base: Fraction) -> YuvChunk:
        """See `Converter`."""
        return YuvChunk(index, self._data[:count], self.height, self.width, self._color, pts, time_base)

    def _planes(self, frame: av.VideoFrame) -> list[Levels]:
        """The planes of a frame as they are stored; upright where they were made of RGB."""
        pix_fmt, dtype = self._depth.pix_fmt, self._depth.dtype
        if self._through_rgb or not self._by_rgb.fits(frame):
            frame = rgb_to_yuv(self._reformatter, self._by_rgb(frame), self._matrix, self._range, pix_fmt)
        # The j says full range. Pictures that are stored bottom-up have planes that run backwards.
        elif (
            frame.format.name.replace("yuvj", "yuv") != pix_fmt
            or (frame.width, frame.height) != self._stored
            or frame.planes[0].line_size < 0
        ):
            frame = resampled(self._reformatter, frame, self._stored, self._matrix, self._range, pix_fmt)
        return [
            np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)[: plane.height, : plane.width]  # type: ignore[call-overload]
            for plane in frame.planes
        ]


def bits_of(pixels: av.VideoFormat | None) -> int:
    """Of a colour in a pixel; 8 where that is not known."""
    return 8 if pixels is None else max(part.bits for part in pixels.components)


def may_be_transparent(frame: av.VideoFrame) -> bool:
    """Whether pixels of that format can be transparent; those of a palette can."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def is_transparent(frame: av.VideoFrame) -> bool:
    """Whether any pixel of the frame lets through what lies behind it."""
    return may_be_transparent(frame) and bool(frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255)


def on_backdrop(pixels: Levels) -> Levels:
    """RGB (H, W, 3): `pixels` with transparent parts laid on white, as a page is. pixels: RGBA (H, W, 4), or (H, W, 3) without any."""
    if pixels.shape[2] == 3:
        return pixels
    white = int(np.iinfo(pixels.dtype).max)
    color, alpha = pixels[..., :3], pixels[..., 3:].astype(f"u{2 * pixels.itemsize}")
    if alpha.min() == white:
        return color
    return ((color * alpha + white * (white - alpha) + white // 2) // white).astype(pixels.dtype)


def rgb_to_yuv(reformatter: VideoReformatter, pixels: Levels, matrix: int, color_range: int, pix_fmt: str) -> av.VideoFrame:
    """RGB levels (H, W, 3) as a frame of `pix_fmt` with even sides (the last row or column repeated), in swscale's `matrix`."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return reformatter.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), _RGB[pixels.itemsize][0]),
        format=pix_fmt,
        src_color_range=FULL,
        dst_colorspace=matrix,
        dst_color_range=color_range,
        interpolation=EXACT,
    )


def resampled(
    reformatter: VideoReformatter, frame: av.VideoFrame, size: Size, matrix: int, color_range: int, pix_fmt: str
) -> av.VideoFrame:
    """A frame of YUV as YUV of another kind or size, in the same swscale's `matrix` and range."""
    return reformatter.reformat(
        frame,
        width=size[0],
        height=size[1],
        format=pix_fmt,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=color_range,
        dst_color_range=color_range,
        interpolation=EXACT,
    )


def to_planes(chunk: FrameChunk, info: VideoInfo | None = None) -> YuvChunk:
    """Pictures that somebody drew, as the planes that the stages of a dub hand on.

    info: of the video that ``Writer`` is to make of them, whose colours they get; None: of no video, in full range.
    """
    height, width = chunk.pixels.shape[1:3]
    color = ColorTags(range=FULL) if info is None else written_color(info, padded=bool(height % 2 or width % 2))
    full = color.range == FULL
    reformatter, matrix = VideoReformatter(), sws_matrix(color.matrix, height)
    made = yuv_color(color.matrix, full=full, shown_height=height, depth=EIGHT_BITS)
    how = matrix, FULL if full else LIMITED, made.depth.pix_fmt
    data = np.stack([rgb_to_yuv(reformatter, pixels, *how).to_ndarray().ravel() for pixels in chunk.pixels])
    return YuvChunk(chunk.index, data, height, width, made, chunk.pts, chunk.time_base)
