"""faces.crop: the similarity that brings a face to the template, and crops that show the face where it is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from faces_for_tests import NOSE_TIP, UPPER_LIP, chunk_of, crops_of, face_at, portrait_face, smooth_picture, textured_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.faces import crop
from lipdub.faces.landmarks import LIPS
from lipdub.media.planes import RgbPicture
from lipdub.records import ColorTags

SIZE = 128


similarities = st.builds(
    lambda scale, angle, tx, ty: np.array([scale * np.cos(angle), scale * np.sin(angle), tx, ty]),
    st.floats(1 / 1500, 1 / 40),
    st.floats(-np.pi, np.pi),
    st.floats(-3, 3),
    st.floats(-3, 3),
)


def mesh_with(anchors: NDArray[np.float64]) -> NDArray[np.float32]:
    """A mesh whose static points lie at `anchors` (frame px); all others are far away and must not count."""
    mesh = np.full((478, 3), 1e4, np.float32)
    mesh[crop.ANCHORS, :2] = anchors
    return mesh


# --------------------------------------------------------------------------------------------------------- alignment


@given(similarity=similarities)
@settings(max_examples=100, deadline=None)
def test_the_fit_finds_the_similarity_that_the_face_was_placed_with(similarity: NDArray[np.float64]) -> None:
    to_frame = crop.unit_to_frame(similarity)[0]
    anchors = crop.ANCHOR_TARGETS @ to_frame[:, :2].T + to_frame[:, 2]
    found = crop.fit_similarity(mesh_with(anchors))
    scale = np.hypot(*similarity[:2])
    # float32 landmarks: a hundredth of a pixel anywhere.
    back = crop.unit_to_frame(found)[0]
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    np.testing.assert_allclose(corners @ back[:, :2].T + back[:, 2], corners @ to_frame[:, :2].T + to_frame[:, 2], atol=0.01)
    np.testing.assert_allclose(np.hypot(*found[:2]), scale, rtol=1e-3)


@given(similarity=similarities, seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_unit_to_frame_undoes_to_unit(similarity: NDArray[np.float64], seed: int) -> None:
    points = np.random.default_rng(seed).uniform(0, 2000, (20, 2))
    unit = crop.to_unit(points.astype(np.float32), similarity)
    matrix = crop.unit_to_frame(similarity)[0]
    np.testing.assert_allclose(unit @ matrix[:, :2].T + matrix[:, 2], points, atol=0.02)


@given(seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_the_fit_is_the_least_squares_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    anchors = 300 * crop.ANCHOR_TARGETS + rng.normal(0, 5, crop.ANCHOR_TARGETS.shape)

    def error(similarity: NDArray[np.float64]) -> float:
        return float(((crop.to_unit(anchors.astype(np.float32), similarity) - crop.ANCHOR_TARGETS) ** 2).sum())

    found = crop.fit_similarity(mesh_with(anchors))
    assert all(error(found) <= error(found + change) + 1e-7 for change in rng.normal(0, 1, (20, 4)) * [1e-5, 1e-5, 5e-3, 5e-3])


def test_mouth_and_jaw_do_not_move_the_crop() -> None:
    calm, speaking = portrait_face(), portrait_face()
    moving = np.unique(np.concatenate([LIPS, np.array(crop.JAW)]))
    speaking.landmarks[moving] += 9
    assert (crop.fit_similarity(calm.landmarks) == crop.fit_similarity(speaking.landmarks)).all()


@pytest.mark.parametrize("roll_deg", [0, 25, -70])
@pytest.mark.parametrize("height", [60, 170, 400])
def test_a_crop_shows_the_landmarks_where_they_are(roll_deg: float, height: float) -> None:
    face = face_at((256, 256), height=height, roll_deg=roll_deg)
    frame = np.zeros((512, 512, 3), np.uint8)
    points = face.landmarks[[33, 263, NOSE_TIP, UPPER_LIP], :2]
    radius = height / 25
    for x, y in points:
        cv2.circle(frame, (round(float(x - 0.5) * 16), round(float(y - 0.5) * 16)), round(radius * 16), (255, 255, 255), -1, cv2.LINE_AA, 4)
    taken = crops_of(chunk_of(frame), face, SIZE)
    unit = crop.to_unit(points, crop.fit_similarity(face.landmarks))
    for x, y in unit * SIZE:
        column, row, reach = int(x), int(y), 7
        patch = taken.pixels[0, row - reach : row + reach + 1, column - reach : column + reach + 1, 0].astype(float)
        centre = (patch[..., None] * np.stack(np.mgrid[row - reach : row + reach + 1, column - reach : column + reach + 1], -1)).sum(
            (0, 1)
        ) / patch.sum()
        np.testing.assert_allclose(centre + 0.5, [y, x], atol=0.4)
    # And the crop knows the way back; pixel i spans [i, i + 1).
    to_frame = taken.to_frame[0]
    np.testing.assert_allclose((unit * SIZE - 0.5) @ to_frame[:, :2].T + to_frame[:, 2], points - 0.5, atol=0.01)


def test_a_face_much_larger_than_the_crop_does_not_alias() -> None:
    y, x = np.mgrid[0:2000, 0:2000]
    checkers = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, axis=2)
    taken = crops_of(chunk_of(checkers), face_at((1000, 1000), height=1500, roll_deg=10), 96)
    assert abs(float(taken.pixels.mean()) - 127.5) < 2
    assert float(taken.pixels.std()) < 12


@given(roll_deg=st.floats(-40, 40), x=st.floats(230, 280))
@settings(max_examples=10, deadline=None)
def test_sharp_crops_keep_more_of_what_is_fine_and_lie_where_the_others_do(roll_deg: float, x: float) -> None:
    face = face_at((x, 256), height=280, roll_deg=roll_deg)
    similarity = crop.fit_similarity(face.landmarks)
    side = round(1 / float(np.hypot(*similarity[:2])))

    def taken(frame: NDArray[np.uint8], *, sharp: bool) -> NDArray[np.float32]:
        return crop.take_one(chunk_of(frame).picture(0), similarity, side, sharp=sharp).astype(np.float32)

    # Inside the frame: where the border is repeated there is nothing fine.
    inner = slice(side // 4, -(side // 4))
    energy = {sharp: cv2.Laplacian(taken(textured_picture(), sharp=sharp), cv2.CV_32F)[inner, inner].var() for sharp in (False, True)}
    # Where crop px happen to lie on frame px both keep all.
    assert energy[True] > 1.02 * energy[False]
    assert abs(roll_deg) < 10 or energy[True] > 1.1 * energy[False]
    assert np.abs(taken(smooth_picture(), sharp=True) - taken(smooth_picture(), sharp=False)).max() <= 2


@pytest.mark.parametrize("color", [None, ColorTags(1, 1, 1, 1)])
@given(height=st.floats(60, 400), roll_deg=st.floats(-40, 40), x=st.floats(120, 400), y=st.floats(120, 400))
@settings(max_examples=20, deadline=None)
def test_crops_of_planes_and_of_pixels_show_the_same(color: ColorTags | None, height: float, roll_deg: float, x: float, y: float) -> None:
    frame, face = smooth_picture(), face_at((x, y), height=height, roll_deg=roll_deg)
    from_planes = crops_of(chunk_of(frame, color=color), face, SIZE).pixels[0]
    from_pixels = crop.take_one(RgbPicture(frame), crop.fit_similarity(face.landmarks), SIZE)
    assert np.abs(from_planes.astype(int) - from_pixels).max() <= 6
