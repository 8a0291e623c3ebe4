"""paste.light and paste.detail: a page is brought into a frame's light, and is as blurred as the frame."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.media.planes import EIGHT_BITS, TEN_BITS, Depth
from lipdub.paste.detail import blur_between
from lipdub.paste.light import MOST_GAIN, Light
from lipdub.references.pages import still_part, still_sharpness

Levels = NDArray[np.float32]


def skin(side: int = 128, *, seed: int = 0) -> Levels:
    """Luma and chroma of something like skin: broad shading, and fine grain."""
    rng = np.random.default_rng(seed)
    broad = cv2.resize(rng.normal(0, 18, (6, 6)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(rng.normal(0, 12, (side, side)).astype(np.float32), (0, 0), 0.8)
    return np.stack([130 + broad + fine, np.full((side, side), 112), np.full((side, side), 150)], axis=2).astype(np.float32)


@pytest.mark.parametrize("depth", [EIGHT_BITS, TEN_BITS])
@given(gain=st.floats(0.3, MOST_GAIN - 0.1), offset=st.floats(-60, 60), colour=st.floats(0, MOST_GAIN - 0.1))
@settings(max_examples=40, deadline=None)
def test_any_light_is_undone(depth: Depth, gain: float, offset: float, colour: float) -> None:
    """A fade, an exposure step, black and white: the page looks as the frame does."""
    page = skin() * depth.step
    frame = page.copy()
    frame[..., 0] = gain * page[..., 0] + offset * depth.step
    frame[..., 1:] = depth.grey + colour * (page[..., 1:] - depth.grey)
    assert np.abs(Light.between(page, frame, depth).upon(page) - frame).max() < 0.5 * depth.step


@pytest.mark.parametrize("level", [0.0, 16.0, 255.0])
def test_a_frame_without_a_picture_gives_numbers(level: float) -> None:
    """Black, or blown out: all of the page goes there."""
    flat = np.stack([np.full((128, 128), level), np.full((128, 128), 128), np.full((128, 128), 128)], axis=2).astype(np.float32)
    lit = Light.between(skin(), flat, EIGHT_BITS).upon(skin())
    assert np.isfinite(lit).all()
    assert np.abs(lit[..., 0].mean() - level) < 6
    back = Light.between(flat, skin(), EIGHT_BITS)
    assert np.isfinite(back.upon(flat)).all()
    assert (back.gain <= MOST_GAIN).all()


@given(contrast=st.floats(0, 1), colour=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_ten_bits_are_judged_as_eight_are(contrast: float, colour: float) -> None:
    """Also where skin is so flat or so grey that it tells nothing."""
    middle = np.array([120, 128, 128], np.float32)
    page = middle + (skin() - middle) * np.array([contrast**2, colour**2, colour**2], np.float32)
    eight, ten = (Light.between(depth.step * page, depth.step * (page + 3), depth) for depth in (EIGHT_BITS, TEN_BITS))
    np.testing.assert_allclose(ten.gain, eight.gain, rtol=1e-3)
    np.testing.assert_allclose(ten.offset, 4 * eight.offset, atol=1)
    assert still_sharpness(4 * page[..., 0], step=4) == pytest.approx(still_sharpness(page[..., 0]), rel=1e-3)
    blurs = [
        blur_between(depth.step * skin(seed=1)[..., 0], still_part(depth.step * page[..., 0]), depth) for depth in (EIGHT_BITS, TEN_BITS)
    ]
    assert blurs[0] == pytest.approx(blurs[1], abs=0.05)


def test_what_speech_moves_does_not_count() -> None:
    page, frame = skin(), skin()
    frame[80:] = 30
    assert np.abs(Light.between(page, frame, EIGHT_BITS).upon(page) - page).max() < 0.01


@pytest.mark.parametrize("depth", [EIGHT_BITS, TEN_BITS])
@pytest.mark.parametrize("sigma_px", [1.0, 1.5, 2.5, 4.0])
def test_the_blur_of_a_frame_is_found(sigma_px: float, depth: Depth) -> None:
    page = skin(300)[..., 0] * depth.step
    assert blur_between(page, still_part(cv2.GaussianBlur(page, (0, 0), sigma_px)), depth) == pytest.approx(sigma_px, rel=0.15)


def test_a_frame_that_is_as_sharp_blurs_nothing() -> None:
    page = skin(300)[..., 0]
    assert blur_between(page, still_part(page), EIGHT_BITS) == 0
    assert blur_between(cv2.GaussianBlur(page, (0, 0), 2), still_part(page), EIGHT_BITS) == 0
    assert blur_between(page, still_part(0.4 * page + 20), EIGHT_BITS) < 1e-6  # darker is not less sharp
