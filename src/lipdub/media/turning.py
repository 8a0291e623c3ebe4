"""Which way up a picture is stored, and how to turn it upright."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from PIL import ExifTags, Image

from lipdub.media.copies import readable
from lipdub.media.planes import Levels

_PHOTOS = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*")
"""How JPEG, PNG and TIFF begin."""
Turn = tuple[int, int, int, int]
AS_STORED: Turn = (1, 0, 0, 1)
_EXIF_TURNS: dict[int, Turn] = {
    1: AS_STORED,
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
"""EXIF orientation to how the picture is to be shown."""


def display_matrix(frame: av.VideoFrame, path: Path) -> Turn:
    """How a frame of `path` is to be shown: the display matrix without its shift, as signs (a, b, c, d).

    It maps a stored point to a shown one: ``x' = a x + c y``, ``y' = b x + d y``, y pointing down.
    """
    try:
        data = frame.side_data[SideDataType.DISPLAYMATRIX]  # type: ignore[typeddict-item]
    except KeyError:  # FFmpeg looks for EXIF before the picture only
        return _EXIF_TURNS.get(_exif_orientation(path), AS_STORED)
    except ValueError:  # PyAV cannot list side data that it does not know, such as the EXIF of a photo
        turn = _EXIF_TURNS.get(_exif_orientation(path))
        return turn or {0: AS_STORED, 90: _EXIF_TURNS[8], 180: _EXIF_TURNS[3], 270: _EXIF_TURNS[6]}[quarter_turns(frame)]
    (a, b), (c, d) = np.sign(np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]).tolist()
    return a, b, c, d


def _exif_orientation(path: Path) -> int:
    """The orientation (1 to 8) that a photo's EXIF gives, wherever in the file it stands; 0 without one, and for what is no photo."""
    path = readable(path)
    with path.open("rb") as file:
        head = file.read(12)
    if not (head.startswith(_PHOTOS) or head[8:] == b"WEBP" or head[4:11] == b"ftypavi"):
        return 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged entries, and large pictures
            with Image.open(path) as photo:
                orientation = photo.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, TypeError, OSError, EOFError, struct.error, Image.DecompressionBombError):
        return 0
    return orientation if isinstance(orientation, int) else 0


def quarter_turns(frame: av.VideoFrame) -> int:
    """The turn of a frame in degrees counter-clockwise: 0, 90, 180 or 270."""
    return round(frame.rotation / 90) * 90 % 360


def upright(pixels: Levels, turn: Turn) -> Levels:
    """`pixels` (H, W, 3), or one plane (H, W), as they are shown: quarter turns and mirrorings; a view, nothing is resampled."""
    a, b, c, d = turn
    if not (a and d) and b and c:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
