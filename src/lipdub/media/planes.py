"""Pictures as the pipeline carries them: in the planes that the encoder takes. Only the region around a face is converted to RGB.

Converting whole frames to RGB and back would take longer than finding the face and drawing the mouth together, and would round
some pixels to another level.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""Width and height in px."""

Levels = NDArray[np.unsignedinteger[Any]]
"""Of luma, chroma or colours, uint8 or uint16 as their `Depth` says."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How many bits a level of luma or chroma has: 8 or 10 (ITU-T H.273, 8.3)."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (8, 10):
            raise ValueError(f"levels have 8 or 10 bits, got {self.bits}")

    @classmethod
    def holding(cls, bits: int) -> Depth:
        """The one for pictures of that many bits; of more than 10 the lowest are lost."""
        return EIGHT_BITS if bits <= 8 else TEN_BITS

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Of arrays that hold levels."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    @property
    def step(self) -> int:
        """How many levels make up one of 8 bits."""
        return 1 << (self.bits - 8)

    @property
    def top(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def grey(self) -> int:
        """The level of chroma without colour."""
        return 1 << (self.bits - 1)

    @property
    def pix_fmt(self) -> str:
        """What FFmpeg calls planes of it whose chroma has half the sides."""
        return "yuv420p" if self.bits == 8 else "yuv420p10le"


EIGHT_BITS: Final = Depth(8)
TEN_BITS: Final = Depth(10)


class Picture(Protocol):
    """One upright picture that can be looked at in parts."""

    @property
    def height(self) -> int:
        """Rows in px."""

    @property
    def width(self) -> int:
        """Columns in px."""

    def rgb(self, x0: int, y0: int, x1: int, y1: int, *, size: Size | None = None) -> NDArray[np.uint8]:
        """The region [x0, x1) x [y0, y1), which lies in the picture, uint8 (h, w, 3) RGB; with `size`, averaged down to that width
        and height. May be a view."""

    def grey(self, step: int) -> NDArray[np.float32]:
        """Every `step`-th pixel's brightness both ways, float32 in [0, 1]."""


@dataclass(frozen=True, slots=True, repr=False)
class RgbPicture:
    """A picture whose pixels are there: uint8 (H, W, 3) RGB."""

    pixels: NDArray[np.uint8]

    @property
    def height(self) -> int:
        """Rows in px."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns in px."""
        return int(self.pixels.shape[1])

    def rgb(self, x0: int, y0: int, x1: int, y1: int, *, size: Size | None = None) -> NDArray[np.uint8]:
        """See `Picture`."""
        region = self.pixels[y0:y1, x0:x1]
        return region if size is None else np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_AREA), np.uint8)

    def grey(self, step: int) -> NDArray[np.float32]:
        """See `Picture`; green stands for brightness."""
        return np.asarray(self.pixels[::step, ::step, 1], np.float32) / np.float32(255)


@dataclass(frozen=True, slots=True)
class YuvColor:
    """How luma and chroma make colours: the shares of red and blue in luma (ITU-T H.273, table 4), whether levels use their whole range
    or the studio's (of 8 bits 16 to 235, chroma 240), and how many bits they have."""

    red: float
    blue: float
    full: bool
    depth: Depth = EIGHT_BITS

    def __post_init__(self) -> None:
        if not (0 < self.red < 1 and 0 < self.blue < 1 and self.red + self.blue < 1):
            raise ValueError(f"shares of red and blue must leave some for green, got {self.red = }, {self.blue = }")

    @property
    def black(self) -> int:
        """The level of luma of black."""
        return 0 if self.full else 16 * self.depth.step

    @property
    def white(self) -> int:
        """The level of luma of white."""
        return self.depth.top if self.full else 235 * self.depth.step

    def from_rgb(self) -> NDArray[np.float64]:
        """Matrix (3, 4) from R, G, B, which go from 0 to 255, and 1 to levels of Y, U and V."""
        return _from_rgb(self)

    def to_rgb(self) -> NDArray[np.float64]:
        """The inverse of ``from_rgb``, (3, 4)."""
        return _to_rgb(self)


@lru_cache(maxsize=16)
def _from_rgb(color: YuvColor) -> NDArray[np.float64]:
    luma = np.array([color.red, 1 - color.red - color.blue, color.blue])
    rows = np.stack([luma, ([0, 0, 1] - luma) / (2 * (1 - color.blue)), ([1, 0, 0] - luma) / (2 * (1 - color.red))])
    reach = color.depth.top if color.full else np.array([[219], [224], [224]]) * color.depth.step
    return np.column_stack([rows * (reach / 255), [color.black, color.depth.grey, color.depth.grey]])


@lru_cache(maxsize=16)
def _to_rgb(color: YuvColor) -> NDArray[np.float64]:
    forward = _from_rgb(color)
    inverse = np.linalg.inv(forward[:, :3])
    return np.column_stack([inverse, -inverse @ forward[:, 3]])


@dataclass(frozen=True, slots=True, repr=False)
class YuvPicture:
    """A picture in planes. Chroma has half the sides; each of its pixels lies in the middle of four of luma.

    y: levels (H', W'). u, v: levels (H' / 2, W' / 2). All are views.
    height, width: of the picture as shown; H' and W' are these rounded up to even, the last row or column repeated.
    """

    y: Levels
    u: Levels
    v: Levels
    color: YuvColor
    height: int
    width: int

    def rgb(self, x0: int, y0: int, x1: int, y1: int, *, size: Size | None = None) -> NDArray[np.uint8]:
        """See `Picture`. With `size` the region begins and ends at even px, or at the picture's end."""
        if size is not None:
            x1, y1 = x1 + x1 % 2, y1 + y1 % 2
            if x0 % 2 or y0 % 2:
                raise ValueError(f"a region that is averaged begins at even px, got {x0 = }, {y0 = }")
            half = (slice(y0 // 2, y1 // 2), slice(x0 // 2, x1 // 2))
            return self._merged(_resized(self.y[y0:y1, x0:x1], size), _resized(self.u[half], size), _resized(self.v[half], size))
        # One chroma pixel more on each side, where there is one, so that colours are interpolated as in the whole picture.
        low_x, low_y = max(0, x0 // 2 - 1), max(0, y0 // 2 - 1)
        high_x, high_y = min(self.u.shape[1], (x1 + 1) // 2 + 1), min(self.u.shape[0], (y1 + 1) // 2 + 1)
        doubled = 2 * (high_x - low_x), 2 * (high_y - low_y)
        here = slice(y0 - 2 * low_y, y1 - 2 * low_y), slice(x0 - 2 * low_x, x1 - 2 * low_x)
        u, v = (_resized(plane[low_y:high_y, low_x:high_x], doubled)[here] for plane in (self.u, self.v))
        return self._merged(self.y[y0:y1, x0:x1], u, v)

    def grey(self, step: int) -> NDArray[np.float32]:
        """See `Picture`."""
        levels = self.y[: self.height : step, : self.width : step].astype(np.float32)
        return np.asarray(((levels - self.color.black) / (self.color.white - self.color.black)).clip(0, 1), np.float32)

    def _merged(self, y: Levels, u: Levels, v: Levels) -> NDArray[np.uint8]:
        shown = cv2.transform(cv2.merge([np.ascontiguousarray(y), u, v]), self.color.to_rgb())
        # OpenCV stops at the highest number that an array holds.
        return np.asarray(shown if shown.dtype == np.uint8 else np.minimum(shown, 255), np.uint8)


def _resized(plane: Levels, size: Size) -> Levels:
    """A plane at another size: averaged where it gets smaller, interpolated where it grows."""
    grows = size[0] > plane.shape[1] or size[1] > plane.shape[0]
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA), plane.dtype)


@dataclass(frozen=True, slots=True, repr=False)
class YuvChunk:
    """Consecutive frames of one video in planes: what all stages of a dub hand on.

    index: stream index of the first frame. data: levels (N, H' * W' * 3 / 2) of the depth of `color`, each row the planes y, u, v of one
    frame one after the other (I420); H' and W' are `height` and `width` rounded up to even. pts: int64 (N,) ticks, strictly increasing.
    time_base: seconds per tick. Whoever holds the chunk may draw into its planes.
    """

    index: int
    data: Levels
    height: int
    width: int
    color: YuvColor
    pts: NDArray[np.int64]
    time_base: Fraction

    def __post_init__(self) -> None:
        samples, dtype = i420_samples(self.height, self.width), self.color.depth.dtype
        if self.data.ndim != 2 or self.data.dtype != dtype or self.data.shape[1] != samples:
            raise ValueError(f"data must be {dtype} (N, {samples}), got {self.data.dtype} {self.data.shape}")
        if self.pts.shape != (len(self.data),):
            raise ValueError(f"one pts per frame, got {self.pts.shape = } for {len(self.data)} frames")
        if not bool(np.all(np.diff(self.pts) > 0)):
            raise ValueError("pts must increase")

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"YuvChunk(index={self.index}, frames={len(self)}, {self.width}x{self.height}, pts={self.pts[:1]}..{self.pts[-1:]})"

    @property
    def times_s(self) -> NDArray[np.float64]:
        """Presentation times in seconds, float64 (N,)."""
        return self.pts * float(self.time_base)

    def picture(self, row: int) -> YuvPicture:
        """One of the frames; its planes are views."""
        return YuvPicture(*planes_of(self.data[row], self.height, self.width), self.color, self.height, self.width)

    def timed(self, index: int, pts: NDArray[np.int64], time_base: Fraction) -> YuvChunk:
        """The same pictures at other times."""
        return YuvChunk(index, self.data, self.height, self.width, self.color, pts, time_base)

    def part(self, first: int, end: int) -> YuvChunk:
        """The frames [first, end), counted within the chunk: views."""
        return YuvChunk(self.index + first, self.data[first:end], self.height, self.width, self.color, self.pts[first:end], self.time_base)


def beside(left: YuvChunk, right: YuvChunk) -> YuvChunk:
    """The frames of two chunks of one size side by side, each with its sides rounded up to even; times are those of `right`."""
    height, width = right.height + right.height % 2, 2 * (right.width + right.width % 2)
    data = np.empty((len(right), i420_samples(height, width)), right.data.dtype)
    for row, frame in enumerate(data):
        both = (planes_of(chunk.data[row], chunk.height, chunk.width) for chunk in (left, right))
        for plane, one, other in zip(planes_of(frame, height, width), *both, strict=True):
            np.concatenate([one, other], axis=1, out=plane)
    return YuvChunk(right.index, data, height, width, right.color, right.pts, right.time_base)


def i420_samples(height: int, width: int) -> int:
    """How many levels one frame in planes has."""
    return (height + height % 2) * (width + width % 2) * 3 // 2


def planes_of(frame: Levels, height: int, width: int) -> tuple[Levels, Levels, Levels]:
    """Views of the planes y (H', W'), u and v (H' / 2, W' / 2) in one frame of ``YuvChunk.data``."""
    rows, columns = height + height % 2, width + width % 2
    luma = rows * columns
    half = rows // 2, columns // 2
    return (
        frame[:luma].reshape(rows, columns),
        frame[luma : luma + luma // 4].reshape(half),
        frame[luma + luma // 4 :].reshape(half),
    )


def fitted(pixels: Levels, size: Size) -> Levels:
    """A picture (h, w, 3) scaled to fit into `size`, in the middle of black."""
    height, width = pixels.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = max(1, min(size[0], round(scale * width))), max(1, min(size[1], round(scale * height)))
    shown = np.asarray(cv2.resize(pixels, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), pixels.dtype)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    out = np.zeros((size[1], size[0], 3), pixels.dtype)
    out[top : top + inner[1], left : left + inner[0]] = shown
    return out
