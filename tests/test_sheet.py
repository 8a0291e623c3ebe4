"""Contact sheets: which frames they show, where, and what is refused."""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import draw_photo, draw_video, picture
from faces_for_tests import ScriptedDetector, chunk_of, crops_of, face_at, textured_picture

from lipdub import media
from lipdub.checkup import sheet
from lipdub.checkup.sheet import CELL_PX, GAP_PX, SheetReport, contact_sheet
from lipdub.errors import NoVideoStream, OutputRefused, UnreadableMedia, WriteFailed

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def shown(monkeypatch) -> list[float]:
    """Times of the frames that end up on a sheet, in order."""
    times: list[float] = []
    real = sheet._cell

    def cell(pixels, time_s, info, detector):
        times.append(round(time_s, 3))
        return real(pixels, time_s, info, detector)

    monkeypatch.setattr(sheet, "_cell", cell)
    return times


def test_frames_are_evenly_spaced_and_lie_where_they_belong(tmp_path, shown):
    pictures = [np.full((64, 96, 3), (20 + 2 * k, 128, 200 - 2 * k), np.uint8) for k in range(60)]
    draw_video(tmp_path / "v.mp4", pictures=pictures)
    told = []
    report = contact_sheet(
        tmp_path / "v.mp4",
        tmp_path / "v.png",
        rows=2,
        columns=3,
        faces=False,
        on_progress=lambda stage, done, total: told.append((done, total)),
    )
    assert shown == [0.2, 0.6, 1.0, 1.4, 1.8, 2.2]
    assert told[-1] == (60, 60)
    image = cv2.imread(str(tmp_path / "v.png"))[:, :, ::-1]
    height = CELL_PX * 64 // 96
    assert image.shape == (GAP_PX + 2 * (height + GAP_PX), GAP_PX + 3 * (CELL_PX + GAP_PX), 3)
    assert report == SheetReport(6, 0, image.shape[1], image.shape[0])
    for number, time_s in enumerate(shown):
        row, column = divmod(number, 3)
        middle = image[GAP_PX + row * (height + GAP_PX) + height // 2, GAP_PX + column * (CELL_PX + GAP_PX) + CELL_PX // 2]
        assert np.abs(middle.astype(int) - pictures[round(time_s * 25)][0, 0]).max() < 8


def test_the_time_is_drawn_on_the_frame(tmp_path):
    draw_video(tmp_path / "v.mp4", pictures=[np.full((64, 96, 3), 128, np.uint8)])
    contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", faces=False)
    image = cv2.imread(str(tmp_path / "v.png"))[GAP_PX:-GAP_PX, GAP_PX:-GAP_PX]
    lower, upper = image[-24:], image[:-24]
    assert lower.max() > 220
    assert lower.min() < 20
    assert np.ptp(upper) < 12


@pytest.mark.parametrize(
    ("time_s", "text"),
    [(0, "0.00 s"), (7.254, "7.25 s"), (59.999, "1:00.00"), (127.25, "2:07.25"), (3727.256, "1:02:07.26")],
)
def test_how_a_time_is_written(time_s, text):
    assert sheet._clock(time_s) == text


def test_fewer_frames_than_places_show_each_once(tmp_path, shown):
    draw_video(tmp_path / "v.mp4", frames=3)
    report = contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", rows=2, columns=4, faces=False)
    assert shown == [0, 0.04, 0.08]
    assert report.frames == 3
    assert report.width == GAP_PX + 3 * (CELL_PX + GAP_PX)


def test_variable_rate_goes_by_time_not_by_number(tmp_path, shown):
    """Twenty frames in the first fifth of a second, then five, 0.2 s apart."""
    ticks = [10 * k for k in range(20)] + [200 * (k + 1) for k in range(5)]
    draw_video(tmp_path / "v.mp4", pts=ticks, time_base=Fraction(1, 1000), last_duration=200)
    contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", rows=1, columns=6, faces=False)
    assert shown == [0.1, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_late_start(tmp_path, shown):
    draw_video(tmp_path / "v.mp4", pts=[500 + 40 * k for k in range(25)], time_base=Fraction(1, 1000), last_duration=40)
    contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", rows=1, columns=2, faces=False)
    assert shown == [0.74, 1.22]


@pytest.mark.parametrize("stated_s", [None, Fraction(10), Fraction(1, 5), Fraction(0)])
def test_a_length_that_is_unknown_or_wrong_does_not_matter(tmp_path, monkeypatch, stated_s):
    from dataclasses import replace

    draw_video(tmp_path / "v.mp4", frames=50)
    info = replace(media.probe(tmp_path / "v.mp4"), duration_s=stated_s)
    cells = sheet._choose(info, 4, None, lambda stage, done, total: None)
    assert len(cells) == 4
    monkeypatch.setattr(media, "probe", lambda path: info)
    assert contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", rows=2, columns=2, faces=False).frames == 4


def test_faces_are_enlarged_below_their_frames(tmp_path):
    report = contact_sheet(EXAMPLES / "portrait.jpg", tmp_path / "p.jpg")
    assert report == SheetReport(1, 1, CELL_PX + 2 * GAP_PX, 2 * CELL_PX + 2 * GAP_PX)
    image = cv2.imread(str(tmp_path / "p.jpg"))
    face = image[GAP_PX + CELL_PX : -GAP_PX, GAP_PX:-GAP_PX].astype(float)
    # Teeth between lips: the mouth lies where the aligned crop has it, brighter inside than below.
    assert face[int(0.69 * CELL_PX) : int(0.75 * CELL_PX), 88:104].mean() > 100
    assert face.std() > 30


def test_of_several_faces_the_largest_is_shown_and_frames_are_searched_on_their_own(tmp_path):
    draw_video(tmp_path / "v.mp4", pictures=[np.full((240, 320, 3), 90, np.uint8), np.full((240, 320, 3), 180, np.uint8)], fps=1)
    small, large = face_at((60, 60), height=50), face_at((200, 120), height=120)
    detector = ScriptedDetector([[small, large], []])
    report = contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", rows=1, columns=2, detectors=lambda: detector)
    assert (report.frames, report.faces) == (2, 1)
    assert detector.reset_before == [0, 1]
    assert detector.closed
    seen = sheet._face(textured_picture(), ScriptedDetector([[large, small]]))
    (wanted,) = crops_of(chunk_of(textured_picture()), large, CELL_PX).pixels
    assert np.abs(seen.astype(int) - wanted).mean() < 2


def test_a_frame_without_a_face_leaves_its_place_empty(tmp_path):
    frames = media.read_frames(EXAMPLES / "portrait.mp4")
    face = next(frames).pixels[0, ::2, ::2]
    frames.close()
    draw_video(tmp_path / "v.mp4", pictures=[face, picture(0, (256, 256))], fps=1)
    report = contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", rows=1, columns=2)
    assert (report.frames, report.faces) == (2, 1)
    image = cv2.imread(str(tmp_path / "v.png"))
    left, right = image[-100, GAP_PX : GAP_PX + CELL_PX], image[-100, -CELL_PX:]
    assert left.std() > 10
    assert (right == sheet.BACKGROUND).all()


def test_without_any_face_there_is_no_room_for_one(tmp_path):
    draw_video(tmp_path / "v.mp4", frames=2)
    report = contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png")
    assert report == SheetReport(2, 0, 2 * CELL_PX + 3 * GAP_PX, CELL_PX * 64 // 96 + 2 * GAP_PX)


@pytest.mark.parametrize("size", [(640, 16), (16, 640), (31, 17)])
def test_odd_shapes(tmp_path, size):
    draw_photo(tmp_path / "p.png", size=size)
    report = contact_sheet(tmp_path / "p.png", tmp_path / "out.png", faces=False)
    assert max(report.width, report.height) == CELL_PX + 2 * GAP_PX


def test_pixels_that_are_not_square_are_shown_as_they_are_meant(tmp_path):
    draw_video(tmp_path / "v.mp4", frames=1, size=(64, 64), pixel_aspect=Fraction(2))
    report = contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", faces=False)
    assert report.height == CELL_PX // 2 + 2 * GAP_PX


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("s.webp", ".png or .jpg"),
        ("s", ".png or .jpg"),
        ("none/s.png", "folder"),
        ("folder.png", "it is a folder"),
        ("photo.png", "it is the input"),
        ("there.jpg", "--force"),
    ],
)
def test_outputs_that_are_refused(tmp_path, name, word):
    draw_photo(tmp_path / "photo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "there.jpg").write_bytes(b"old")
    with pytest.raises(OutputRefused, match=word):
        contact_sheet(tmp_path / "photo.png", tmp_path / name, faces=False)
    assert (tmp_path / "there.jpg").read_bytes() == b"old"
    media.check_picture(tmp_path / "there.jpg", inputs=[tmp_path / "photo.png"], force=True)


def test_inputs_that_are_refused_leave_nothing_behind(tmp_path):
    from drawn import sine, write_wav

    write_wav(tmp_path / "sound.wav", sine(0.1))
    (tmp_path / "text.mp4").write_text("no video")
    for name, kind in (("sound.wav", NoVideoStream), ("text.mp4", UnreadableMedia), ("none.mp4", UnreadableMedia)):
        with pytest.raises(kind):
            contact_sheet(tmp_path / name, tmp_path / "s.png")
    assert sorted(os.listdir(tmp_path)) == ["sound.wav", "text.mp4"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    draw_photo(tmp_path / "photo.png")
    (tmp_path / "s.png").write_bytes(b"old")

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteFailed, match="No space left"):
        contact_sheet(tmp_path / "photo.png", tmp_path / "s.png", faces=False, force=True)
    assert (tmp_path / "s.png").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["photo.png", "s.png"]


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 21)])
def test_sizes_that_make_no_sense(tmp_path, rows, columns):
    with pytest.raises(ValueError, match="rows and columns"):
        contact_sheet(tmp_path / "v.mp4", tmp_path / "v.png", rows=rows, columns=columns)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["v.mp4", "-o", "s.png", "--whole", "--rows", "1", "--columns", "2"], 0, "2 frames"),
        (["v.mp4", "-o", "v.mp4"], 1, "error: "),
        (["v.mp4", "-o", "s.png", "--rows", "0"], 2, "--rows"),
    ],
)
def test_the_command(tmp_path, monkeypatch, capsys, arguments, code, word):
    from lipdub.cli import console
    from lipdub.cli.app import main

    draw_video(tmp_path / "v.mp4", frames=4)
    monkeypatch.chdir(tmp_path)
    console.results.cache_clear()
    console.errors.cache_clear()
    monkeypatch.setattr(sys, "argv", ["lipdub", "sheet", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    console.results.cache_clear()
    console.errors.cache_clear()
    assert left.value.code == code
    said = capsys.readouterr()
    assert word in said.out + said.err
    assert (tmp_path / "s.png").exists() == (code == 0)
