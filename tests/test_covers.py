"""faces.covers: what is before a mouth for a while is found; a face that talks, turns and fades is not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lipdub.faces.covers import CELL_NUMBERS, FEWEST_FRAMES, cells_of, covered
from lipdub.references.bank import THUMB_PX
from lipdub.row_file import RowFile

Picture = NDArray[np.uint8]
OUTLINE = np.stack([0.5 + 0.3 * np.cos(np.linspace(0, 2 * np.pi, 24)), 0.74 + 0.2 * np.sin(np.linspace(0, 2 * np.pi, 24))], 1).astype(
    np.float32
)

LIPS = (np.array([0.5, 0.72]) + (OUTLINE - [0.5, 0.74]) * [0.4, 0.25]).astype(np.float32)


def face(frame: int, *, opening: float = 0.0, light: float = 1.0, red: float = 0.0) -> Picture:
    """A drawn face in the aligned crop, small: skin with shading, brows, nose, a mouth that opens, and a little noise."""
    y, x = np.mgrid[0:96, 0:96] / 96
    skin = np.stack([190 - 40 * np.abs(x - 0.5) + red, 140 - 40 * np.abs(x - 0.5), 115 - 30 * np.abs(x - 0.5)], 2)
    skin[(np.abs(y - 0.25) < 0.03) & (np.abs(np.abs(x - 0.5) - 0.18) < 0.1)] *= 0.4
    skin[((x - 0.5) / 0.04) ** 2 + ((y - 0.45) / 0.12) ** 2 < 1] *= 1.15
    skin[((x - 0.5) / 0.12) ** 2 + ((y - 0.72) / (0.03 + opening)) ** 2 < 1] = (150, 70, 70)
    skin[((x - 0.5) / 0.1) ** 2 + ((y - 0.72) / max(1e-3, opening)) ** 2 < 1] = (50, 25, 25)
    skin += np.random.default_rng(frame).normal(0, 2, skin.shape)
    return cv2.resize(np.clip(light * skin, 0, 255).astype(np.uint8), (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA)


def talking(frame: int) -> float:
    return 0.05 * (1 + np.sin(frame * 0.7))


def found(pictures: list[Picture], poses: NDArray[np.float32] | None = None) -> NDArray[np.bool_]:
    with closing(RowFile(CELL_NUMBERS)) as cells:
        places = np.array([cells.add(cells_of(picture, OUTLINE, LIPS)) for picture in pictures])
        return covered(cells, places, np.zeros((len(pictures), 2), np.float32) if poses is None else poses)


def hand(picture: Picture) -> Picture:
    covered_picture = picture.copy()
    covered_picture[15:24, 5:16] = (225, 180, 150)
    return covered_picture


def microphone(picture: Picture) -> Picture:
    covered_picture = picture.copy()
    cv2.circle(covered_picture, (12, 18), 4, (25, 25, 30), -1)
    return covered_picture


def other_picture(picture: Picture) -> Picture:
    return cv2.addWeighted(picture, 0.5, np.random.default_rng(5).integers(0, 256, picture.shape, np.uint8), 0.5, 0)


@pytest.mark.parametrize("cover", [hand, microphone, other_picture])
@pytest.mark.parametrize(("first", "last"), [(30, 55), (0, 20), (60, 75)])
def test_a_cover_of_a_third_is_found_to_the_frame(cover: Callable[[Picture], Picture], first: int, last: int) -> None:
    pictures = [face(frame, opening=talking(frame)) for frame in range(75)]
    for frame in range(first, last):
        pictures[frame] = cover(pictures[frame])
    hidden = found(pictures)
    assert hidden[first:last].all()
    # And one frame beside it, for the mask reaches further than the cells.
    assert not np.delete(hidden, np.arange(max(0, first - 1), min(75, last + 1))).any()


def test_fingers_that_come_and_go_are_covers_to_their_tips() -> None:
    """A tip on the chin alone covers too few cells to be a cover, but beside one it belongs to it."""
    pictures = [face(frame, opening=talking(frame)) for frame in range(90)]
    hand_rows = {**{30 + step: 22 - step for step in range(8)}, **dict.fromkeys(range(38, 50), 14), 70: 20}
    for frame, row in hand_rows.items():
        pictures[frame][row:, 8:11] = (225, 180, 150)
        if 38 <= frame < 50:
            pictures[frame] = hand(pictures[frame])
    hidden = np.flatnonzero(found(pictures))
    assert hidden.tolist() == list(range(hidden[0], 51))
    assert 29 <= hidden[0] <= 32


@pytest.mark.parametrize(
    "draw",
    [
        lambda frame: face(frame, opening=talking(frame)),
        lambda frame: face(frame, opening=talking(frame), light=min(1.0, 0.25 + frame / 20)),
        lambda frame: face(frame, opening=talking(frame), light=1.25 if frame >= 40 else 0.7),
        lambda frame: face(frame, opening=0.12 if frame % 25 == 0 else 0.0),
        lambda frame: cv2.GaussianBlur(face(frame, opening=talking(frame)), (0, 0), 0.8 if 20 <= frame < 40 else 0.3),
    ],
    ids=["talking", "fading in", "exposure step", "rarely open", "out of focus"],
)
def test_a_face_alone_is_never_covered(draw: Callable[[int], Picture]) -> None:
    assert not found([draw(frame) for frame in range(75)]).any()


def test_who_turns_is_compared_with_the_same_pose() -> None:
    """A turned head looks otherwise, but so it does each time."""
    poses = np.array([[0.0, 0.0]] * 60 + [[40.0, 0.0]] * 20, np.float32)
    pictures = [face(frame, opening=talking(frame)) for frame in range(60)]
    pictures += [np.roll(face(frame, opening=talking(frame)), 4, axis=1) for frame in range(20)]
    assert not found(pictures, poses).any()
    pictures[70] = hand(pictures[70])
    assert np.flatnonzero(found(pictures, poses)).tolist() == [70]


def test_too_few_frames_say_nothing() -> None:
    pictures = [face(frame) for frame in range(FEWEST_FRAMES - 1)]
    pictures[3] = hand(pictures[3])
    assert not found(pictures).any()
    assert not found([]).any()
