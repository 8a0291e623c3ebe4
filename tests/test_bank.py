"""references.bank: pages lie apart and are bounded, whoever comes back is known, and what is covered gives none."""

from __future__ import annotations

from contextlib import closing

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.references import bank
from lipdub.references.bank import APART, PAGES, THUMB_PX, BankFiller, Seen
from lipdub.references.pages import PAGE_ROWS, Pages
from lipdub.references.shapes import LOWER_INNER_LIP, UPPER_INNER_LIP, shape_of
from lipdub.references.store import ReferenceStore

SIZE = 32


def upper_face(seed: int, *, light: float = 1.0) -> NDArray[np.uint8]:
    """The small picture of a face: a pattern of its own for each seed."""
    coarse = np.random.default_rng(seed).integers(60, 200, (6, 6, 1)).astype(np.float32)
    broad = cv2.resize(coarse, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_CUBIC)
    return np.clip(light * np.stack([broad * 1.1, broad * 0.9, broad * 0.8], axis=2), 0, 255).astype(np.uint8)


def seen(
    frame: int, *, opening: float = 0.0, yaw: float = 0.0, who: int = 1, light: float = 1.0, shift: float = 0.0, side_px: float = 100.0
) -> Seen:
    lips = np.full((40, 2), 0.5, np.float32) + np.linspace(0, 0.1, 40, dtype=np.float32)[:, None]
    lips[20:25, 1] += shift
    lips[LOWER_INNER_LIP, 1] = lips[UPPER_INNER_LIP, 1] + opening
    return Seen.of(
        frame,
        lips,
        np.zeros((24, 2), np.float32),
        np.array([yaw, 0], np.float32),
        np.array([1 / side_px, 0, 0, 0]),
        upper_face(who, light=light),
    )


def look(frame: int, *, blur: float = 0.0) -> tuple[NDArray[np.uint8], None]:
    """A picture that tells its frame in one pixel."""
    pixels = np.random.default_rng(7).integers(0, 200, (SIZE, SIZE, 3), dtype=np.uint8)
    if blur:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), blur), np.uint8)
    pixels[0, 0] = frame % 256
    return pixels, None


class Filled(ReferenceStore):
    """A store that is closed with the bank that it is filled for."""

    def __del__(self) -> None:
        self.close()


def filled(faces: list[Seen], *, blurred: range = range(0), shots: tuple[int, ...] = ()) -> BankFiller:
    filler, track = BankFiller(Filled(SIZE)), 0
    for one in faces:
        track += one.frame in shots
        filler.show(track, one, lambda frame=one.frame: look(frame, blur=2.0 if frame in blurred else 0.0))
    return filler


def kept(
    filler: BankFiller, people: NDArray[np.int32], covered: NDArray[np.bool_] | None = None
) -> tuple[Pages, ReferenceStore, NDArray[np.int32]]:
    pages, store, who, _ = filler.kept(people, np.zeros(len(people), bool) if covered is None else covered, step_s=0.04)
    return pages, store, who


@given(
    faces=st.lists(st.tuples(st.floats(0, 0.1), st.floats(-30, 30), st.floats(0, 0.05)), min_size=1, max_size=80),
    room=st.sampled_from([4, 10, 256]),
)
@settings(max_examples=25, deadline=None)
def test_pages_lie_apart_and_are_bounded(faces: list[tuple[float, float, float]], room: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "PAGES", room)
        patch.setattr(bank, "ALL_PAGES", 4 * room)
        shown = [seen(frame, opening=opening, yaw=yaw, shift=shift) for frame, (opening, yaw, shift) in enumerate(faces)]
        pages, store, who = kept(filled(shown), np.zeros(len(faces), np.int32))
        with closing(store):
            assert 1 <= len(pages) == store.count <= room
            assert (np.diff(pages.frame) > 0).all()
            assert (who == 0).all()
            for number, frame in enumerate(pages.frame.tolist()):
                assert store.get(number).pixels[0, 0, 0] == frame % 256
                assert (pages.lips[number] == shown[frame].lips).all()


def test_what_differs_enough_is_a_page_and_what_does_not_is_none() -> None:
    far = [seen(frame, opening=0.02 * frame) for frame in range(10)]
    pages, store, _ = kept(filled(far), np.zeros(10, np.int32))
    store.close()
    assert pages.frame.tolist() == list(range(10))
    same = [seen(frame, opening=0.05 + 0.0005 * frame) for frame in range(10)]
    pages, store, _ = kept(filled(same), np.zeros(10, np.int32))
    store.close()
    assert pages.frame.tolist() == [0]


def test_a_long_talk_is_covered_to_its_end() -> None:
    """Ten times as many mouths as there is room for: the last are there as well as the first, and memory is not for more."""
    rng = np.random.default_rng(0)
    faces = [
        seen(frame, opening=float(rng.uniform(0, 0.1)), yaw=float(rng.uniform(-40, 40)), shift=float(rng.uniform(0, 0.1)))
        for frame in range(2500)
    ]
    filler = filled(faces)
    pages, store, _ = kept(filler, np.zeros(2500, np.int32))
    store.close()
    assert 0.3 * PAGES <= len(pages) <= PAGES
    shapes = shape_of(pages.lips)
    near = [np.abs(shapes - shape_of(one.lips[None])).mean(axis=1).min() for one in faces]
    assert np.quantile(near, 0.9) < 3 * max(APART, filler._people[0].apart)


def test_the_most_closed_mouth_becomes_a_page_however_near_it_is() -> None:
    pages, store, _ = kept(filled([seen(0, opening=0.010), seen(1, opening=0.006), seen(2, opening=0.002)]), np.zeros(3, np.int32))
    store.close()
    assert pages.frame.tolist() == [0, 1, 2]


def test_a_fade_a_flash_and_a_lost_focus_are_not_drawn_from() -> None:
    faces = [seen(frame, opening=0.02 * frame, light={3: 0.2, 4: 0.3, 9: 1.9}.get(frame, 1.0)) for frame in range(25)]
    pages, store, _ = kept(filled(faces, blurred=range(12, 16)), np.zeros(25, np.int32))
    store.close()
    unusable = set(pages.frame[~pages.usable()].tolist())
    assert {3, 4, 12, 13, 14, 15} <= unusable <= {3, 4, 9, 12, 13, 14, 15}
    assert pages.take(np.array([0])).usable().all()


@pytest.mark.parametrize("first_px", [40.0, 240.0])
def test_a_close_up_and_a_wide_shot_of_the_same_mouths_have_pages_of_their_own(first_px: float) -> None:
    faces = [seen(frame, opening=0.01 * (frame % 10), side_px=first_px if frame < 20 else 280 - first_px) for frame in range(40)]
    pages, store, _ = kept(filled(faces, shots=(20,)), np.zeros(40, np.int32))
    store.close()
    assert len(set(pages.frame[pages.frame < 20].tolist())) == len(set(pages.frame[pages.frame >= 20].tolist())) == 10


def test_the_softer_pixels_of_a_close_up_are_not_taken_for_lost_focus() -> None:
    faces = [seen(frame, opening=0.01 * (frame % 12), side_px=60 if frame < 12 else 240) for frame in range(24)]
    pages, store, _ = kept(filled(faces, blurred=range(12, 24)), np.zeros(24, np.int32))
    store.close()
    assert pages.usable().all()


def test_who_comes_back_is_known_and_another_is_not() -> None:
    """Three shots: one person, another one, and the first again in somewhat less light."""
    faces = [
        seen(frame, opening=0.004 * (frame % 10), who=2 if 10 <= frame < 20 else 1, light=0.9 if frame >= 20 else 1.0)
        for frame in range(30)
    ]
    filler = filled(faces, shots=(10, 20))
    assert filler.person_of(0) == filler.person_of(2) != filler.person_of(1)
    people = np.array([filler.person_of(frame // 10) for frame in range(30)], np.int32)
    pages, store, who = kept(filler, people)
    store.close()
    assert (who == people).all()
    assert (pages.person == people[pages.frame]).all()
    only, store, _ = kept(filled(faces, shots=(10, 20)), np.where(people == people[0], people, -1).astype(np.int32))
    store.close()
    assert set(only.person.tolist()) == {int(people[0])}


def test_what_is_covered_gives_no_page_unless_there_is_no_other() -> None:
    faces = [seen(frame, opening=0.02 * frame) for frame in range(12)]
    covered = np.arange(12) % 3 == 0
    pages, store, who = kept(filled(faces), np.zeros(12, np.int32), covered)
    store.close()
    assert not covered[pages.frame].any()
    assert ((who == -1) == covered).all()
    pages, store, _ = kept(filled(faces), np.zeros(12, np.int32), np.ones(12, bool))
    store.close()
    assert len(pages) == 12


@pytest.mark.parametrize("other", [1, 2])
def test_before_and_after_a_dissolve_it_is_two_people(other: int) -> None:
    """A cover that parts the same face parts nothing; one that parts two is wider than what was found of it."""
    faces = [seen(frame, opening=0.004 * (frame % 20), who=1 if frame < 42 else other) for frame in range(80)]
    covered = np.zeros(80, bool)
    covered[40:44] = True
    pages, store, who, hidden = filled(faces).kept(np.zeros(80, np.int32), covered, step_s=0.04)
    store.close()
    assert (who[hidden] == -1).all()
    if other == 1:
        assert (hidden == covered).all()
        assert set(who[~hidden].tolist()) == {0}
    else:
        assert hidden[33:51].all()
        assert not hidden[:25].any()
        assert not hidden[60:].any()
        assert who[0] != who[79]
        assert (pages.person == who[pages.frame]).all()


def test_same_frames_same_pages() -> None:
    rng = np.random.default_rng(3)
    faces = [seen(frame, opening=float(rng.uniform(0, 0.1)), yaw=float(rng.uniform(-30, 30))) for frame in range(300)]
    (one, first, _), (other, second, _) = (kept(filled(faces), np.zeros(300, np.int32)) for _ in range(2))
    assert all((getattr(one, name) == getattr(other, name)).all() for name in PAGE_ROWS)
    assert all((first.get(number).pixels == second.get(number).pixels).all() for number in range(first.count))
    first.close()
    second.close()
