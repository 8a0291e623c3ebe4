"""lipdub.media.planes: planes show the same colours as RGB does, whichever part of them is looked at."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.media.planes import TEN_BITS, Depth, RgbPicture, YuvChunk, YuvColor, YuvPicture, i420_samples, planes_of

BT709, BT601_FULL = YuvColor(0.2126, 0.0722, False), YuvColor(0.299, 0.114, True)


def waves(height: int, width: int) -> NDArray[np.uint8]:
    """A picture so smooth that chroma at half the sides loses nothing of it."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([128 + 70 * np.sin(x / 30), 128 + 60 * np.cos(y / 25), 128 + 50 * np.sin((x + y) / 40)], -1).astype(np.uint8)


def planar(pixels: NDArray[np.uint8], color: YuvColor) -> YuvPicture:
    """The planes of RGB pixels, made the plain way: converted in full, chroma averaged over each four."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(np.float64)
    matrix = color.from_rgb()
    yuv = padded @ matrix[:, :3].T + matrix[:, 3]
    quarter = yuv.reshape(yuv.shape[0] // 2, 2, yuv.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    y, u, v = (np.rint(plane).clip(0, 255).astype(np.uint8) for plane in (yuv[..., 0], quarter[..., 1], quarter[..., 2]))
    return YuvPicture(y, u, v, color, height, width)


@pytest.mark.parametrize("color", [BT709, BT601_FULL])
@given(box=st.tuples(st.integers(0, 80), st.integers(0, 50), st.integers(1, 60), st.integers(1, 60)), odd=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_region_of_the_planes_shows_the_colours_of_the_picture(color: YuvColor, box: tuple[int, int, int, int], odd: bool) -> None:
    pixels = waves(111 if odd else 110, 141 if odd else 140)
    x0, y0, columns, rows = box
    shown = planar(pixels, color).rgb(x0, y0, x0 + columns, y0 + rows)
    assert shown.shape == (rows, columns, 3)
    assert shown.dtype == np.uint8
    assert np.abs(shown.astype(int) - pixels[y0 : y0 + rows, x0 : x0 + columns]).max() <= 5


@given(
    x0=st.integers(0, 30).map(lambda n: 2 * n), y0=st.integers(0, 20).map(lambda n: 2 * n), side=st.integers(20, 60).map(lambda n: 2 * n)
)
@settings(max_examples=30, deadline=None)
def test_a_region_averaged_down_is_the_same_from_planes_and_from_pixels(x0: int, y0: int, side: int) -> None:
    pixels = waves(180, 200)
    size = (max(2, side // 3), max(2, side // 4))
    from_planes = planar(pixels, BT709).rgb(x0, y0, x0 + side, y0 + side, size=size)
    from_pixels = RgbPicture(pixels).rgb(x0, y0, x0 + side, y0 + side, size=size)
    assert from_planes.shape == from_pixels.shape == (size[1], size[0], 3)
    assert np.abs(from_planes.astype(int) - from_pixels).max() <= 4


def test_a_region_that_is_averaged_begins_at_even_pixels() -> None:
    with pytest.raises(ValueError, match="even"):
        planar(waves(40, 40), BT709).rgb(1, 0, 20, 20, size=(5, 5))


@pytest.mark.parametrize("color", [BT709, BT601_FULL])
def test_black_white_and_grey_have_their_levels(color: YuvColor) -> None:
    low, high = (0, 255) if color.full else (16, 235)
    matrix, ten = color.from_rgb(), replace(color, depth=TEN_BITS).from_rgb()
    np.testing.assert_allclose(matrix @ [0, 0, 0, 1], [low, 128, 128], atol=1e-9)
    np.testing.assert_allclose(matrix @ [255, 255, 255, 1], [high, 128, 128], atol=1e-9)
    np.testing.assert_allclose(ten @ [0, 0, 0, 1], [4 * low, 512, 512], atol=1e-9)
    np.testing.assert_allclose(ten @ [255, 255, 255, 1], [1023 if color.full else 940, 512, 512], atol=1e-9)
    np.testing.assert_allclose(color.to_rgb() @ [*(matrix @ [200, 30, 90, 1]), 1], [200, 30, 90], atol=1e-9)
    grey = planar(np.full((8, 8, 3), 255, np.uint8), color).grey(2)
    assert grey.shape == (4, 4)
    assert (grey == 1).all()


@pytest.mark.parametrize("full", [False, True])
@given(seed=st.integers(0, 2**32 - 1), box=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 40), st.integers(1, 40)))
@settings(max_examples=30, deadline=None)
def test_four_times_the_levels_of_eight_bits_are_the_same_colours_in_ten(full: bool, seed: int, box: tuple[int, int, int, int]) -> None:
    """Also where they lie beyond what RGB holds. In full range, whose highest levels are 255 and 1023, to within one level."""
    rng, x0, y0 = np.random.default_rng(seed), *box[:2]
    y, u, v = (rng.integers(0, 256, (side, side), np.uint8) for side in (60, 30, 30))
    color = YuvColor(0.2126, 0.0722, full)
    one, other = (
        YuvPicture(y, u, v, color, 60, 60),
        YuvPicture(*(plane.astype(np.uint16) * 4 for plane in (y, u, v)), replace(color, depth=TEN_BITS), 60, 60),
    )
    shown = [picture.rgb(x0, y0, x0 + box[2], y0 + box[3]).astype(int) for picture in (one, other)]
    # Chroma between two levels of 8 bits is rounded to one of them before it becomes a colour: to half a level, by up to 2.1.
    assert np.abs(shown[0] - shown[1]).max() <= (3 if full else 2)
    averaged = [picture.rgb(0, 0, 60, 60, size=(20, 20)).astype(int) for picture in (one, other)]
    assert np.abs(averaged[0] - averaged[1]).max() <= (3 if full else 2)
    assert np.abs(one.grey(3) - other.grey(3)).max() < 0.004


@pytest.mark.parametrize("bits", [7, 9, 12, 16])
def test_levels_have_eight_or_ten_bits(bits: int) -> None:
    with pytest.raises(ValueError, match="8 or 10 bits"):
        Depth(bits)
    assert Depth.holding(bits).bits == (8 if bits < 9 else 10)


def test_brightness_is_about_the_same_in_planes_and_pixels() -> None:
    grey = np.repeat(cv2.cvtColor(waves(90, 90), cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    assert np.abs(planar(grey, BT709).grey(3) - RgbPicture(grey).grey(3)).max() < 0.01


@pytest.mark.parametrize(("red", "blue"), [(0.0, 0.1), (0.7, 0.4), (1.0, 0.0)])
def test_shares_of_colour_must_make_sense(red: float, blue: float) -> None:
    with pytest.raises(ValueError, match="green"):
        YuvColor(red, blue, False)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (1, 1), (6, 3)])
def test_planes_share_the_memory_of_their_chunk(height: int, width: int) -> None:
    data = np.zeros((2, i420_samples(height, width)), np.uint8)
    chunk = YuvChunk(5, data, height, width, BT709, np.array([10, 20]), Fraction(1, 25))
    for value, plane in enumerate(planes_of(chunk.data[1], height, width), 1):
        plane[:] = value
    assert sorted(set(data[1].tolist())) == [1, 2, 3]
    assert (data[0] == 0).all()
    picture = chunk.picture(1)
    assert (picture.height, picture.width) == (height, width)
    assert picture.y.shape == (height + height % 2, width + width % 2)
    assert chunk.part(1, 2).index == 6
    assert chunk.part(1, 2).pts.tolist() == [20]
    assert (chunk.timed(0, np.array([3, 4]), Fraction(1, 30)).times_s == np.array([3, 4]) / 30).all()


@pytest.mark.parametrize(
    "change",
    [{"data": np.zeros((2, 7), np.uint8)}, {"pts": np.array([0])}, {"pts": np.array([3, 3])}, {"data": np.zeros((2, 36), np.int16)}],
)
def test_a_wrong_chunk_fails_where_it_is_made(change: dict[str, NDArray[np.generic]]) -> None:
    right = {"data": np.zeros((2, 36), np.uint8), "pts": np.array([0, 1])} | change
    with pytest.raises(ValueError, match=r"data|pts"):
        YuvChunk(0, right["data"], 4, 6, BT709, right["pts"], Fraction(1, 25))  # type: ignore[arg-type]


def test_pixels_are_a_picture() -> None:
    pixels = waves(20, 30)
    picture = RgbPicture(pixels)
    assert (picture.height, picture.width) == (20, 30)
    assert (picture.rgb(2, 3, 7, 9) == pixels[3:9, 2:7]).all()
    assert (picture.rgb(0, 0, 30, 20) == pixels).all()
