"""Reference pictures in an unnamed temporary file, so that memory does not grow with the number of shots.

A reference has up to two pictures of the same square of the face:

* the crop that the generator sees, stored raw;
* where the video has a higher resolution than the crop: the detail, at that resolution, stored as JPEG, because a film has thousands.
"""

from __future__ import annotations

import tempfile
import warnings
from array import array
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from lipdub.media.stills import encode_picture
from lipdub.records import Reference

DETAIL_PX = 768
"""Longest side of a detail: a face that fills a 4K picture is scaled down to it."""
FINER_THAN_FRAME = 1.5
"""Detail px per frame px. The detail is interpolated here and again in the paste; at 1 px per px that costs 5 % of the sharpness."""
LEAST_GAIN = 0.4
"""A detail is kept where the frame's resolution is at least this many times the crop's: below 1 it saves the crop's own blur."""
MOST_JPEG_BYTES = 2**22
"""Most that a detail may take; pure noise of the longest side takes less than half of it."""

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
"""Colour as fine as brightness: lips end in red, not in grey."""
_PIXELS, _DETAIL, _BYTES, _ROOM = range(4)
"""What is kept in memory of each reference.

* Where its pixels and its JPEG begin in the file.
* Bytes of the JPEG, 0 without one.
* Bytes that another JPEG may take in the same place.
"""
_KEPT = 4


def detail_px(similarity: NDArray[np.float64], size: int) -> int | None:
    """Side in px of the detail of a crop of `size` px by a frame-to-unit similarity (a, b, tx, ty):
    ``FINER_THAN_FRAME`` times the crop's side in the frame, rounded up to even, but finer than the crop and at most ``DETAIL_PX``; None for
    faces so small that the crop alone holds them."""
    native = 1 / max(1e-9, float(np.hypot(similarity[0], similarity[1])))
    side = min(DETAIL_PX, max(size + 2, 2 * ((round(FINER_THAN_FRAME * native) + 1) // 2)))
    return side if native >= LEAST_GAIN * size and side > size else None


@dataclass(slots=True)
class ReferenceStore:
    """Numbered references of crop side `size` px. Memory: 32 bytes each. For one thread at a time."""

    size: int
    count: int = 0
    _file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    _places: array[int] = field(default_factory=partial(array, "q"), repr=False)
    _end: int = 0

    def add(self, pixels: NDArray[np.uint8], detail: NDArray[np.uint8] | None = None) -> int:
        """Store a reference: its crop uint8 (S, S, 3), and the same square as uint8 (D, D, 3), S < D <= ``DETAIL_PX``; its number."""
        jpeg = self._checked(pixels, detail)
        self._places.extend((self._end, 0, 0, 0))
        self._end += pixels.nbytes
        self.count += 1
        self._write(self.count - 1, pixels, jpeg)
        return self.count - 1

    def replace(self, number: int, pixels: NDArray[np.uint8], detail: NDArray[np.uint8] | None = None) -> None:
        """Store another reference under a number that ``add`` gave; the detail of the one before goes with it."""
        self._require(number)
        self._write(number, pixels, self._checked(pixels, detail))

    def attach(self, number: int, jpeg: bytes) -> None:
        """Give a reference the detail that ``jpeg`` gave. Raises ValueError: bytes that are no square colour JPEG of a side that `add`
        takes; they are decoded to know it."""
        self._require(number)
        if not self.size < _side(jpeg) <= DETAIL_PX:
            raise ValueError(f"a detail has a side above {self.size} px up to {DETAIL_PX} px, got {_side(jpeg)}")
        _decoded(jpeg)
        self._write_detail(number, jpeg)

    def copy(self, source: ReferenceStore, numbers: NDArray[np.int64]) -> None:
        """Store the references of these numbers of another store as well, in their order."""
        for number in numbers.tolist():
            at, jpeg = self.add(source.pixels(number)), source.jpeg(number)
            if jpeg:
                self.attach(at, jpeg)

    def get(self, number: int) -> Reference:
        """The reference of that number; its detail is decoded each time (a millisecond or two)."""
        jpeg = self.jpeg(number)
        return Reference(number, self.pixels(number), _decoded(jpeg) if jpeg else None)

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """The crop alone, uint8 (S, S, 3)."""
        self._require(number)
        self._file.seek(self._places[_KEPT * number + _PIXELS])
        return np.frombuffer(self._file.read(3 * self.size**2), np.uint8).reshape(self.size, self.size, 3)

    def jpeg(self, number: int) -> bytes:
        """The detail as it is stored, a JPEG file; empty where there is none."""
        self._require(number)
        self._file.seek(self._places[_KEPT * number + _DETAIL])
        return self._file.read(self._places[_KEPT * number + _BYTES])

    def jpeg_bytes(self) -> NDArray[np.int64]:
        """How long each reference's JPEG is, int64 (count,), 0 where there is none."""
        return np.array(self._places, np.int64).reshape(-1, _KEPT)[:, _BYTES]

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _require(self, number: int) -> None:
        if not 0 <= number < self.count:
            raise IndexError(f"no reference {number}, there are {self.count}")

    def _checked(self, pixels: NDArray[np.uint8], detail: NDArray[np.uint8] | None) -> bytes:
        """The detail as JPEG, empty for none. Raises ValueError: arrays that are no reference of this store."""
        if pixels.shape != (self.size, self.size, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"a reference is uint8 ({self.size}, {self.size}, 3), got {pixels.dtype} {pixels.shape}")
        if detail is None:
            return b""
        side = len(detail)
        if detail.shape != (side, side, 3) or detail.dtype != np.uint8 or not self.size < side <= DETAIL_PX:
            raise ValueError(f"a detail is uint8 (D, D, 3), {self.size} < D <= {DETAIL_PX}, got {detail.dtype} {detail.shape}")
        return encode_picture(detail, ".jpg", _JPEG)

    def _write(self, number: int, pixels: NDArray[np.uint8], jpeg: bytes) -> None:
        self._file.seek(self._places[_KEPT * number + _PIXELS])
        self._file.write(np.ascontiguousarray(pixels).tobytes())
        self._write_detail(number, jpeg)

    def _write_detail(self, number: int, jpeg: bytes) -> None:
        first = _KEPT * number
        room = self._places[first + _ROOM]
        if len(jpeg) > room:
            # It moves to the end of the file, into at least twice the room. So all places that one reference ever had take at most four
            # times its longest JPEG, and the bytes that were never written are a hole in the file.
            room = max(len(jpeg), 2 * room)
            self._places[first + _DETAIL], self._places[first + _ROOM] = self._end, room
            self._end += room
        self._places[first + _BYTES] = len(jpeg)
        self._file.seek(self._places[first + _DETAIL])
        self._file.write(jpeg)


def _side(jpeg: bytes) -> int:
    """The side of a square baseline JPEG in colour by its header: known before anything is decoded, however large it says it is.

    Raises ValueError: anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF
            header = JpegImageFile(BytesIO(jpeg))  # not Image.open, which warns of large pictures and may take other formats
    except (SyntaxError, OSError, ValueError) as error:
        raise ValueError("no JPEG") from error
    # Three layers in all: a second header, which decoders might read instead, would add its own.
    if len(header.layer) != 3 or header.width != header.height or "progressive" in header.info:
        raise ValueError("no square JPEG in colour")
    return header.width


def _decoded(jpeg: bytes) -> NDArray[np.uint8]:
    """The picture, uint8 (D, D, 3) RGB. Raises ValueError: it is damaged."""
    side = _side(jpeg)
    try:
        found = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"a JPEG that OpenCV cannot read ({error.code})") from error
    if found is None or found.shape != (side, side, 3):
        raise ValueError("a damaged JPEG")
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)
