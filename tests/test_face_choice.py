"""Whose mouth: people of a video counted and numbered, and one of them chosen, by number or by a place in the picture."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import in_this_process
from drawn import draw_video
from faces_for_tests import ScriptedDetector, chunks_of, face_at, portrait_frames, scaled
from hypothesis import given, settings
from hypothesis import strategies as st
from test_people import FAR, FAR_PX, NEAR, NEAR_PX, SHOT_FRAMES, SIZE, check, mouth, shot, who_is_seen

from lipdub.errors import NoFaceFound
from lipdub.faces.analysis import analyse, sightings
from lipdub.faces.analysis_key import analysis_key
from lipdub.faces.people import Person, people_in
from lipdub.faces.track import DUBBED, OTHERS, FaceTrack
from lipdub.options import DubOptions, FaceChoice, FaceLimits

Shots = list[tuple[int, int | None]]


def film(shots: Shots) -> tuple[list[list[object]], list[np.ndarray]]:
    pictures = [shot(number, *people) for number, people in enumerate(shots)]
    script: list[list[object]] = [
        [
            face_at(NEAR, height=NEAR_PX, opening=mouth(frame)),
            *([] if shots[frame // SHOT_FRAMES][1] is None else [face_at(FAR, height=FAR_PX, opening=0.05)]),
        ]
        for frame in range(SHOT_FRAMES * len(shots))
    ]
    return script, pictures


def followed(shots: Shots, choice: FaceChoice) -> FaceTrack:
    script, pictures = film(shots)
    chunks = chunks_of(len(script), lambda frame: pictures[frame // SHOT_FRAMES])
    return analyse(chunks, ScriptedDetector(script), size=SIZE, choice=choice)


def listed(shots: Shots) -> list[Person]:
    script, pictures = film(shots)
    return people_in(sightings(chunks_of(len(script), lambda frame: pictures[frame // SHOT_FRAMES]), ScriptedDetector(script)))


FILM: Shots = [(1, 5), (8, None), (5, 1), (1, 8)]
"""Near: 1, 8, 5, 1. So 1 is the most prominent, then 5 (two shots, one near), then 8 likewise."""


def test_people_are_numbered_by_how_large_they_are_and_for_how_long() -> None:
    people = listed(FILM)
    shot_s = SHOT_FRAMES / 25
    assert [one.number for one in people] == [1, 2, 3]
    assert [one.seconds for one in people] == pytest.approx([3 * shot_s, 2 * shot_s, 2 * shot_s])
    assert people[0].height_px == pytest.approx(NEAR_PX, rel=0.15)
    assert people[0].first_s == 0
    assert people[0].moving > 0.5


@given(st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_numbers_do_not_hang_on_how_far_mouths_are_open(seed: int) -> None:
    """A dub of one person must not change who is number 2 for the next."""
    script, pictures = film(FILM)
    seen = sightings(chunks_of(len(script), lambda frame: pictures[frame // SHOT_FRAMES]), ScriptedDetector(script))
    taller = seen.height_px * np.random.default_rng(seed).uniform(0.8, 1.3, len(seen.height_px))
    assert replace(seen, height_px=taller).by_prominence() == seen.by_prominence()


@pytest.mark.parametrize(
    ("choice", "who", "there"),
    [
        (FaceChoice(1), 1, {0: NEAR, 2: FAR, 3: NEAR}),
        (FaceChoice.of(f"{FAR[0]:.0f},{FAR[1]:.0f}@0:00.1"), 5, {0: FAR, 2: NEAR}),
        (FaceChoice.of(f"{NEAR[0]:.0f},{NEAR[1]:.0f}@{1.5 * SHOT_FRAMES / 25}"), 8, {1: NEAR, 3: FAR}),
    ],
)
def test_the_chosen_person_is_followed_wherever_they_are_and_nobody_else(
    choice: FaceChoice, who: int, there: dict[int, tuple[float, float]]
) -> None:
    with closing((track := followed(FILM, choice)).references):
        check(track)
        assert len(np.unique(track.pages.person)) == 1
        assert {who_is_seen(track.references.get(number).pixels) for number in range(len(track.pages))} == {who}
        for number in range(len(FILM)):
            frames = slice(number * SHOT_FRAMES + 2, (number + 1) * SHOT_FRAMES - 2)
            if number not in there:
                assert (track.status[frames] == OTHERS).all()
                assert (track.strength[frames] == 0).all()
                continue
            assert (track.status[frames] == DUBBED).all()
            a, b, tx, ty = track.similarity[frames].mean(axis=0)
            middle = np.linalg.solve(np.array([[a, -b], [b, a]]), np.array([0.5, 0.5]) - [tx, ty])
            assert np.abs(middle - there[number]).max() < 30


@pytest.mark.parametrize("text", ["4", "5,5@0"])
def test_a_choice_that_means_nobody_is_one_line(text: str) -> None:
    with pytest.raises(NoFaceFound, match="lipdub faces shows") as caught:
        followed(FILM, FaceChoice.of(text))
    assert "\n" not in str(caught.value)


@given(st.integers(1, 9999), st.integers(0, 7000), st.integers(0, 4000), st.integers(0, 7200))
@settings(max_examples=30)
def test_choices_as_they_are_written(number: int, x: int, y: int, at_s: int) -> None:
    assert FaceChoice.of(str(number)) == FaceChoice(number)
    assert FaceChoice.of(f"{x},{y}@{at_s // 60}:{at_s % 60:02d}") == FaceChoice(None, (x, y), at_s)
    assert DubOptions(face=str(number)).face == str(number)


@pytest.mark.parametrize("text", ["0", "-1", "bob", "1.5", "5,5", "5,5@", "5,5@x", ""])
def test_what_is_no_choice(text: str) -> None:
    with pytest.raises(ValueError, match=r"face is a number|is no time"):
        DubOptions(face=text)


def test_each_limit_is_kept_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"film")
    limits = [FaceLimits(), FaceLimits(max_yaw_deg=40), FaceLimits(min_height_px=60)]
    keys = [analysis_key(tmp_path / "a.mp4", size_px=64, limits=one) for one in limits]
    assert len(set(keys)) == 3
    assert keys[0] == analysis_key(tmp_path / "a.mp4", size_px=64)


def test_each_choice_is_kept_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    choices = [None, FaceChoice(1), FaceChoice(2), FaceChoice(None, (5, 5), 1.0), FaceChoice(None, (5, 5), 2.0)]
    assert len({analysis_key(tmp_path / "a.mp4", size_px=64, choice=choice) for choice in choices}) == len(choices)


def test_the_command_lists_people_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    draw_video(tmp_path / "clip.mp4", pictures=[scaled(pixels, (256, 256)) for pixels in portrait_frames(14)], fps=25)
    draw_video(tmp_path / "empty.mp4", frames=5)
    clip, sheet, record = tmp_path / "clip.mp4", tmp_path / "faces.png", tmp_path / "faces.json"
    with in_this_process(monkeypatch, capfd) as run:
        ran = run("faces", clip, "-o", sheet, "--json", record)
        assert ran.code == 0
        assert "lips move" in ran.out
        (person,) = json.loads(record.read_text())
        assert (person["number"], person["seconds"]) == (1, pytest.approx(0.56))
        assert sheet.stat().st_size > 1000
        for refused in (("faces", clip, "-o", sheet), ("faces", clip, "--json", record)):
            assert (run(*refused).code, run(*refused).err.count("\n")) == (1, 1)
        (only,) = json.loads(run("faces", clip, "--json").out)
        assert only == person
        ran = run("faces", tmp_path / "empty.mp4", "-q")
        assert (ran.code, ran.err.count("\n")) == (1, 1)
        assert "no face" in ran.err
