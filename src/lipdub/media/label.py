"""A line of text on every frame of an output: the visible label that some countries ask of synthetic media."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lipdub.media.planes import YuvChunk, YuvPicture

HEIGHT_SHARE, LEAST_PX = 1 / 26, 10
"""Height of the letters over the picture's shorter side, and at least."""
MARGIN_SHARE, PLATE_DARK = 0.6, 0.5
"""Margins over the height of the letters, and how far the plate behind them darkens the picture."""


class Label:
    """A text in white on a dark plate, in the lower left corner of pictures of one size.

    text: of letters that the built-in font has (`drawable`); what is wider than the picture is made smaller.
    """

    def __init__(self, text: str, height: int, width: int) -> None:
        side = max(LEAST_PX, round(HEIGHT_SHARE * min(height, width)))
        while side > LEAST_PX and _size(text, side)[0] > width - 4 * MARGIN_SHARE * side:
            side -= 1
        across, down = _size(text, side)
        margin = round(MARGIN_SHARE * side)
        # Even places and sides, for chroma.
        plate = min(width, across + 2 * margin + 1) // 2 * 2, min(height, down + margin + 1) // 2 * 2
        left, top = min(margin, width - plate[0]) // 2 * 2, max(0, height - plate[1] - margin) // 2 * 2
        self._rows, self._columns = slice(top, top + plate[1]), slice(left, left + plate[0])
        letters = Image.new("L", plate)
        ImageDraw.Draw(letters).text((plate[0] / 2, plate[1] / 2), text, 255, _font(side), anchor="mm")
        self._letters = np.asarray(letters, np.float32) / 255
        self._half = cv2.resize(self._letters, (plate[0] // 2, plate[1] // 2), interpolation=cv2.INTER_AREA)

    def put_on(self, chunk: YuvChunk) -> None:
        """Write it on every frame of the chunk, into its planes."""
        for row in range(len(chunk)):
            self._put(chunk.picture(row))

    def _put(self, picture: YuvPicture) -> None:
        here, grey = picture.y[self._rows, self._columns], picture.color.depth.grey
        dark = picture.color.black + (1 - PLATE_DARK) * (here - float(picture.color.black))
        here[...] = np.rint(dark + self._letters * (picture.color.white - dark))
        half = slice(self._rows.start // 2, self._rows.stop // 2), slice(self._columns.start // 2, self._columns.stop // 2)
        for plane in (picture.u[half], picture.v[half]):
            plane[...] = np.rint(grey + (1 - self._half) * (1 - PLATE_DARK) * (plane.astype(np.float32) - grey))


def drawable(text: str) -> bool:
    """Whether `text` is one line whose letters all have a shape in the font: Latin, Greek and Cyrillic ones, where matplotlib is there."""
    font = _font(24)
    unknown = bytes(font.getmask("\ue000"))
    return bool(text.strip()) and text.isprintable() and all(one == " " or bytes(font.getmask(one)) != unknown for one in text)


@cache
def _font(side: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters of matplotlib's DejaVu Sans, which mediapipe brings along, else Pillow's own, which are English."""
    found = find_spec("matplotlib")  # not imported: that takes a second
    for folder in found.submodule_search_locations or () if found is not None else ():
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), side)
    return ImageFont.load_default(side)


def _size(text: str, side: int) -> tuple[int, int]:
    left, top, right, bottom = _font(side).getbbox(text, anchor="ls")
    return round(right - left), round(max(bottom - top, 1.2 * side))
