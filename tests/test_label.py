"""media/label.py: a visible line of text on every frame, and nothing else changed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdub.media.label import Label, drawable
from lipdub.media.planes import EIGHT_BITS, TEN_BITS, Depth, YuvChunk, YuvColor, i420_samples
from lipdub.options import DubOptions

TEXT = "Dubbed by AI"


def chunk(height: int, width: int, *, depth: Depth = EIGHT_BITS) -> YuvChunk:
    data = np.full((2, i420_samples(height, width)), 120 * depth.step, depth.dtype)
    return YuvChunk(0, data, height, width, YuvColor(0.299, 0.114, False, depth), np.arange(2), Fraction(1, 25))


@given(st.integers(24, 400), st.integers(24, 700), st.sampled_from([TEXT, "x", "A line of letters wider than most pictures"]))
@settings(max_examples=40, deadline=None)
def test_a_label_is_seen_and_leaves_the_rest_alone(height: int, width: int, text: str) -> None:
    frames = chunk(height, width)
    Label(text, height, width).put_on(frames)
    picture = frames.picture(0)
    changed = picture.y != 120
    assert changed[:, : width // 2].any()
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert rows[0] >= 0.4 * height - 16  # low
    assert len(rows) < max(30, 0.2 * height + 8)
    assert columns[-1] < picture.y.shape[1]
    assert picture.y[changed].min() < 80  # the plate
    assert picture.y[changed].max() > 180  # the letters
    assert picture.y.max() <= 235
    np.testing.assert_array_equal(frames.data[0], frames.data[1])


@pytest.mark.parametrize("depth", [EIGHT_BITS, TEN_BITS])
def test_colour_fades_under_the_letters_to_grey(depth: Depth) -> None:
    frames = chunk(240, 320, depth=depth)
    frames.picture(0).u[...] = 90 * depth.step
    Label(TEXT, 240, 320).put_on(frames)
    plate = frames.picture(0).u[frames.picture(0).u != 90 * depth.step]
    assert plate.min() > 90 * depth.step
    assert plate.max() <= 128 * depth.step
    assert frames.picture(0).y.max() == 235 * depth.step


@pytest.mark.parametrize(
    ("text", "there"),
    [
        (TEXT, True),
        ("Mit KI vertont", True),
        ("Synthèse, été", True),
        ("Дубляж ИИ", True),
        ("\ue000", False),
        ("a\nb", False),
        ("", False),
    ],
)
def test_which_letters_there_are(text: str, there: bool) -> None:
    assert drawable(text) == there


@pytest.mark.parametrize("text", ["", " ", "a\nb", "x" * 81, "\0"])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(ValueError, match="label is one line"):
        DubOptions(label=text)
