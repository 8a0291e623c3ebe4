"""Whose mouth is whose: pages, references and wanted lips of several people, over shots, backgrounds, turned heads and dissolves."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import cv2
import numpy as np
import pytest
from faces_for_tests import ScriptedDetector, chunks_of, face_at
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_bank import filled, seen
from test_choose import drawn, heard, speaking, track_of

from lipdub.faces import crop
from lipdub.faces.analysis import analyse
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.media.planes import RgbPicture
from lipdub.records import Face
from lipdub.references import bank

WIDTH, HEIGHT, SIZE = 320, 240, 32
NEAR, FAR = (100.0, 120.0), (255.0, 130.0)
NEAR_PX, FAR_PX = 120.0, 70.0
SHOT_FRAMES = 24
PEOPLE = (1, 5, 8)
"""Seeds of faces that are not alike."""
scenes = st.tuples(st.sampled_from(PEOPLE), st.sampled_from([None, *PEOPLE])).filter(lambda one: one[0] != one[1])
"""Who is in front, and who is behind."""


def skin(who: int) -> NDArray[np.uint8]:
    """The face of a person: a pattern of its own."""
    coarse = np.random.default_rng(who).integers(60, 200, (10, 10, 1)).astype(np.float32)
    broad = cv2.resize(coarse, (200, 200), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.stack([broad * 1.1, broad * 0.9, broad * 0.8], axis=2), 0, 255).astype(np.uint8)


def put(picture: NDArray[np.uint8], who: int, centre: tuple[float, float], height: float) -> None:
    side = round(1.3 * height)
    face = cv2.resize(skin(who), (side, side), interpolation=cv2.INTER_AREA)
    x, y = (max(0, round(at - side / 2)) for at in centre)
    room = picture[y : y + side, x : x + side]
    room[...] = face[: room.shape[0], : room.shape[1]]


def shot(number: int, near: int, far: int | None) -> NDArray[np.uint8]:
    """A picture of a shot: one person in front, perhaps another one behind; every shot has a background of its own."""
    coarse = np.random.default_rng(100 + number).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    picture = np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST), np.uint8)
    put(picture, near, NEAR, NEAR_PX)
    if far is not None:
        put(picture, far, FAR, FAR_PX)
    return picture


def mouth(frame: int) -> float:
    return 0.02 + 0.15 * abs(float(np.sin(0.9 * frame)))


def filmed(shots: Sequence[tuple[int, int | None]], script: Sequence[Sequence[Face]] | None = None) -> FaceTrack:
    """The track of shots, (who is in front, who is behind) each."""
    pictures = [shot(number, *people) for number, people in enumerate(shots)]
    if script is None:
        script = [
            [
                face_at(NEAR, height=NEAR_PX, opening=mouth(frame)),
                *([] if shots[frame // SHOT_FRAMES][1] is None else [face_at(FAR, height=FAR_PX, opening=mouth(frame + 7))]),
            ]
            for frame in range(SHOT_FRAMES * len(shots))
        ]
    return analyse(chunks_of(len(script), lambda frame: pictures[frame // SHOT_FRAMES]), ScriptedDetector(script), size=SIZE)


def upper(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    side = len(pixels)
    return pixels[side // 4 : 5 * side // 8, side // 4 : 3 * side // 4].astype(np.float32).ravel()


def who_is_seen(pixels: NDArray[np.uint8]) -> int:
    """Whose face a crop shows."""
    similarity = crop.fit_similarity(face_at(NEAR, height=NEAR_PX).landmarks)
    plain = {who: np.full((HEIGHT, WIDTH, 3), 90, np.uint8) for who in PEOPLE}
    for who, picture in plain.items():
        put(picture, who, NEAR, NEAR_PX)
    faces = {who: upper(crop.take_one(RgbPicture(picture), similarity, SIZE)) for who, picture in plain.items()}
    return max(PEOPLE, key=lambda who: float(np.corrcoef(faces[who], upper(pixels))[0, 1]))


def check(track: FaceTrack) -> None:
    """What holds of every track."""
    dubbed = track.status == DUBBED
    assert (track.person[~dubbed] == -1).all()
    assert (track.reference[~dubbed] == -1).all()
    assert (track.person[dubbed] >= 0).all()
    assert (track.reference[dubbed] >= 0).all()
    assert (track.pages.person[track.reference[dubbed]] == track.person[dubbed]).all()
    assert set(track.pages.person.tolist()) == set(track.person[dubbed].tolist())


@given(st.lists(scenes, min_size=1, max_size=4))
@settings(max_examples=12, deadline=None)
def test_every_page_shows_its_own_person(shots: list[tuple[int, int | None]]) -> None:
    """Who stands behind in one shot and in front in another keeps all of its mouths, and nobody else gets one."""
    track = filmed(shots)
    with closing(track.references):
        check(track)
        front = {near for near, _ in shots}
        people: dict[int, int] = {}
        for frame, person in enumerate(track.person.tolist()):
            assert people.setdefault(person, shots[frame // SHOT_FRAMES][0]) == shots[frame // SHOT_FRAMES][0]
        assert set(people.values()) == front
        for number, person in enumerate(track.pages.person.tolist()):
            assert who_is_seen(track.references.get(number).pixels) == people[person]


@given(st.lists(st.sampled_from(["seen", "turned", "small", "gone"]), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_only_mouths_that_are_redrawn_have_pages_and_references(stretches: list[str]) -> None:
    """Whatever comes and goes: turned away, far away, nobody."""
    faces = {
        "seen": lambda frame: [face_at(NEAR, height=NEAR_PX, opening=mouth(frame))],
        "turned": lambda frame: [face_at(NEAR, height=NEAR_PX, opening=mouth(frame), yaw_deg=62)],
        "small": lambda frame: [face_at(NEAR, height=34, opening=mouth(frame))],
        "gone": lambda frame: [],
    }
    script = [faces[kind](20 * number + frame) for number, kind in enumerate(stretches) for frame in range(20)]
    shots = [(PEOPLE[0], None)] * (len(script) // SHOT_FRAMES + 1)
    pictures = shot(0, *shots[0])
    track = analyse(chunks_of(len(script), lambda frame: pictures), ScriptedDetector(script), size=SIZE)
    with closing(track.references):
        check(track)


@pytest.mark.parametrize("room", [6, 12])
def test_where_there_is_no_room_for_more_pages_everybody_has_some(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More people, a few pages each, than a video has room for: as a film of many shots has."""
    monkeypatch.setattr(bank, "ALL_PAGES", room)
    people, each = 5, 12
    faces = [seen(frame, opening=0.008 * (frame % each), who=1000 + frame // each) for frame in range(people * each)]
    filler = filled(faces, shots=tuple(range(each, people * each, each)))
    who = np.array([filler.person_of(frame // each) for frame in range(people * each)], np.int32)
    assert len(set(who.tolist())) == people
    pages, store, kept, _ = filler.kept(who, np.zeros(len(who), bool), step_s=0.04)
    store.close()
    assert set(pages.person.tolist()) == set(kept.tolist()) == set(who.tolist())
    assert len(pages) <= max(room, people)


@pytest.mark.parametrize("between", [18, 20, 30])
def test_who_comes_back_after_two_dissolves_is_not_the_one_between(between: int) -> None:
    """A, B and A again, in one shot; the last stretch looks like pages that are there, and brings none of its own."""
    plan = [1] * 60 + ["mixed"] * 4 + [2] * between + ["mixed"] * 4 + [1] * 60
    covered = np.array([one == "mixed" for one in plan])
    faces, who = [], 1
    for frame, one in enumerate(plan):
        who = one if isinstance(one, int) else who
        faces.append(seen(frame, opening=0.004 * (frame % 20), who=who))
    pages, store, person, hidden = filled(faces).kept(np.zeros(len(plan), np.int32), covered, step_s=0.04)
    store.close()
    assert hidden[covered].all()
    visible = {(plan[frame], int(person[frame])) for frame in np.flatnonzero(~hidden)}
    assert len({name for name, _ in visible}) == len({number for _, number in visible}) == len(visible)
    of = dict(visible)
    assert all(of.get(plan[frame], person) == person for frame, person in zip(pages.frame.tolist(), pages.person.tolist(), strict=True))


def test_another_persons_lips_move_nobody_elses() -> None:
    """Two people in one shot, parted by a dissolve: where the first one's mouth lies is no matter for the second one."""
    person = np.repeat([0, -1, 1], [60, 20, 60]).astype(np.int32)
    found = []
    for aside in (0.0, 0.05):
        with track_of(speaking(140), person=person, pages=np.flatnonzero(person >= 0)) as track, heard(speaking(140, seed=2)) as lips:
            moved = track.lips.astype(np.float32)
            moved[:80, :, 0] += aside
            pages = track.pages.lips.copy()
            pages[track.pages.person == 0, :, 0] += aside
            track = replace(track, lips=moved.astype(np.float16), pages=replace(track.pages, lips=pages))
            found.append(drawn(track, lips, draw="warp"))
    assert (found[0].page[80:] == found[1].page[80:]).all()
    assert np.abs(found[0].points[80:] - found[1].points[80:]).max() < 1e-5


def test_memory_grows_with_pages_and_not_with_people() -> None:
    """A film has thousands of people who are seen once: a page each, and little beside it."""
    many = 300
    faces = [seen(frame, who=10_000 + frame) for frame in range(many)]
    tracemalloc.start()
    try:
        filler = filled(faces, shots=tuple(range(1, many)))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    who = np.array([filler.person_of(track) for track in range(many)], np.int32)
    _, store, _, _ = filler.kept(who, np.zeros(many, bool), step_s=0.04)
    store.close()
    assert len(set(who.tolist())) > 0.9 * many
    assert taken / many < 40_000


@given(
    stretches=st.lists(st.tuples(st.sampled_from([1, 2, 5]), st.integers(1, 40), st.integers(0, 6)), min_size=1, max_size=6),
    room=st.sampled_from([2, 6, 30]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_whoever_is_redrawn_has_pages_however_few_there_is_room_for(stretches: list[tuple[int, int, int]], room: int, seed: int) -> None:
    """Any people, any covers between them, pages that had to go again: nobody is left without one, and all frames keep their order."""
    random, faces, covered = np.random.default_rng(seed), [], []
    for who, long, cover in stretches:
        for number in range(long + cover):
            faces.append(seen(len(faces), opening=float(random.uniform(0, 0.1)), yaw=float(random.uniform(-30, 30)), who=who))
            covered.append(number >= long)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "PAGES", room)
        patch.setattr(bank, "ALL_PAGES", 2 * room)
        pages, store, person, hidden = filled(faces).kept(np.zeros(len(faces), np.int32), np.array(covered), step_s=0.04)
    store.close()
    assert (hidden | ~np.array(covered)).all()
    assert ((person == -1) == hidden).all()
    assert set(person[~hidden].tolist()) <= set(pages.person.tolist())
    assert (np.diff(pages.frame) > 0).all()
    assert len(pages) == store.count
