"""faces.overlays: graphics that stand before a face that moves are found to the frame and stay as they are; nothing else is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from drawn import draw_video, write_wav
from faces_for_tests import UPPER_LIP, ScriptedDetector, chunks_of, portrait, portrait_face
from fakes import write_fake_bundle
from numpy.typing import NDArray

from lipdub import media
from lipdub.faces import crop, overlays
from lipdub.faces.analysis import analyse, analyse_each
from lipdub.faces.covers import CELL_NUMBERS, cells_under
from lipdub.faces.landmarks import LIPS
from lipdub.faces.overlays import Overlay, Overlays, covering, drawable, lies_on
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.media.planes import planes_of
from lipdub.options import DubOptions, FaceLimits
from lipdub.paste.blend import OnTop, paste
from lipdub.pipeline import dub
from lipdub.records import Copied, CropSpec, Drawn, Face

Picture = NDArray[np.uint8]
Draw = Callable[[Picture, int], Picture]

SIDE, FRAMES = 320, 60
CHIN_PX = (152, 166)
"""Where the chin of the portrait is, about."""
SPEC = CropSpec(size=128, drawn=(56, 128, 16, 112), masked_from=64)


def place(frame: int) -> NDArray[np.float64]:
    """How far the head has moved, px."""
    return np.array([9 * np.sin(0.21 * frame), 7 * np.sin(0.13 * frame + 1)])


def head(frame: int) -> Picture:
    """The portrait, moved."""
    to_frame = np.column_stack([SIDE / 512 * np.eye(2), place(frame)])
    return np.asarray(cv2.warpAffine(portrait(), to_frame, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def face(frame: int) -> Face:
    """That of the picture; its mouth opens, which the picture does not show."""
    points = portrait_face().landmarks * np.float32(SIDE / 512)
    lips = points[LIPS, 1]
    points[LIPS, 1] = lips + np.where(lips > np.median(lips), 0.2 * frame, 0)
    points[:, :2] += place(frame).astype(np.float32)
    return Face(points)


def written(picture: Picture, text: str, at: tuple[int, int] = CHIN_PX) -> Picture:
    """With a caption in the middle, white on a black edge."""
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 2)
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        corner = (at[0] - width // 2, at[1])
        cv2.putText(picture, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
    return picture


def caption(picture: Picture, frame: int) -> Picture:
    return written(picture, "good evening")


def for_a_while(picture: Picture, frame: int) -> Picture:
    return caption(picture, frame) if 12 <= frame < 50 else picture


def one_after_another(picture: Picture, frame: int) -> Picture:
    return written(picture, ("good evening", "here is news")[frame >= 30])


def bar(picture: Picture, frame: int) -> Picture:
    picture[148:176] = (0.4 * picture[148:176]).astype(np.uint8)
    cv2.putText(picture, "good evening", (104, 166), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def bar_for_a_while(picture: Picture, frame: int) -> Picture:
    return bar(picture, frame) if 20 <= frame < 46 else picture


def logo(picture: Picture, frame: int) -> Picture:
    cv2.rectangle(picture, (134, 148), (170, 170), (210, 30, 40), -1)
    cv2.putText(picture, "TV", (140, 165), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def hand(picture: Picture, frame: int) -> Picture:
    """Fingers that cross the mouth."""
    for finger in range(4):
        left = 10 * frame - 200 + 18 * finger
        cv2.rectangle(picture, (left, 130), (left + 13, SIDE), (205, 150, 120), -1)
        cv2.rectangle(picture, (left, 130), (left + 13, SIDE), (120, 80, 60), 1)
    return picture


def nothing(picture: Picture, frame: int) -> Picture:
    return picture


def brighter(picture: Picture, frame: int) -> Picture:
    """A beard, and an exposure that changes."""
    stubble = np.random.default_rng(3).uniform(0.5, 1, picture.shape[:2])[..., None]
    return ((0.55 if frame < 20 else 1) * stubble * picture).astype(np.uint8)


def behind(picture: Picture, frame: int) -> Picture:
    """Letters on the wall, which the head hides."""
    below = np.arange(SIDE)[:, None, None] >= 115
    outline = face(frame).landmarks[crop.OUTLINE, :2]
    wall = written(np.full((SIDE, SIDE, 3), 200, np.uint8), "good evening good evening", (160, 168))
    hull = cv2.fillPoly(np.zeros((SIDE, SIDE), np.uint8), [cv2.convexHull(outline).astype(np.int32)], 1) > 0
    return np.where(hull[..., None] | ~below, picture, wall)


@contextmanager
def followed(draw: Draw, frames: int = FRAMES) -> Iterator[FaceTrack]:
    """The track of a clip that the frames are drawn for."""
    detector = ScriptedDetector([[face(frame)] for frame in range(frames)])
    track = analyse(chunks_of(frames, lambda frame: draw(head(frame), frame)), detector, size=SPEC.size)
    try:
        yield track
    finally:
        track.references.close()


def on_frame(found: Overlays, frame: int) -> NDArray[np.float32]:
    """How far each px of a frame is covered."""
    return covering(found.at(frame), np.eye(2, 3), (SIDE, SIDE))


def changed(draw: Draw, frame: int) -> NDArray[np.bool_]:
    """Px of a frame that the graphics have changed, within the lower face."""
    without = head(frame)
    outline = face(frame).landmarks[crop.OUTLINE, :2]
    inside = cv2.fillPoly(np.zeros((SIDE, SIDE), np.uint8), [outline.astype(np.int32)], 1) > 0
    return np.asarray(inside & (np.abs(draw(without.copy(), frame).astype(int) - without).max(axis=2) > 40))


# ------------------------------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize(
    ("draw", "spans"),
    [
        (caption, [(0, FRAMES)]),
        (for_a_while, [(12, 50)]),
        (one_after_another, [(0, 30), (30, FRAMES)]),
        (bar, [(0, FRAMES)]),
        (bar_for_a_while, [(20, 46)]),
        (logo, [(0, FRAMES)]),
    ],
)
def test_graphics_before_a_face_are_found_to_the_frame(draw: Draw, spans: list[tuple[int, int]]) -> None:
    with followed(draw) as track:
        assert [tuple(span) for span in track.overlays.spans[:, :2].tolist()] == spans
        # They are no cover: the frames are dubbed.
        assert (track.status == DUBBED).all()
        for first, end in spans:
            for frame in (first, (first + end) // 2, end - 1):
                hidden = on_frame(track.overlays, frame)
                assert (hidden[changed(draw, frame)] == 1).mean() > 0.99
                # The mouth above them is free.
                assert hidden[: CHIN_PX[1] - 26].max() == 0


def test_between_letters_without_a_bar_the_face_is_free() -> None:
    between = slice(CHIN_PX[1] - 8, CHIN_PX[1]), slice(145, 155)
    with followed(lambda picture, _: written(picture, "oh      no")) as track, followed(bar) as barred:
        assert len(track.overlays) == 1
        assert on_frame(track.overlays, 30)[between].max() == 0
        assert on_frame(barred.overlays, 30)[between].min() == 1


@pytest.mark.parametrize("draw", [nothing, hand, behind])
def test_what_moves_or_lies_behind_is_none(draw: Draw) -> None:
    with followed(draw) as track:
        assert len(track.overlays) == 0


def test_a_face_that_holds_still_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_overlays.place", lambda frame: np.zeros(2))
    for draw in (nothing, brighter):
        with followed(draw) as track:
            assert len(track.overlays) == 0
    # But what comes at once over it does.
    with followed(for_a_while) as track:
        assert track.overlays.spans[:, :2].tolist() == [[12, 50]]


# ------------------------------------------------------------------------------------------------------------- records


def test_what_is_watched_ends_with_its_shot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A face that is watched takes whole frames of memory: however many cuts there are, none of another shot is."""
    watched: list[int] = []
    shown = overlays.OverlayFinder.show

    def show(finder: overlays.OverlayFinder, *seen: Any) -> None:
        shown(finder, *seen)
        watched.append(len(finder._watches))

    monkeypatch.setattr(overlays.OverlayFinder, "show", show)
    with followed(lambda picture, frame: picture if frame // 10 % 2 else np.ascontiguousarray(255 - picture[::-1])) as track:
        assert track.shot.max() >= 4
    assert len(watched) == FRAMES
    assert max(watched) == 1


def test_a_few_px_before_a_small_face_are_no_overlay() -> None:
    """Its own edges are, by chance; a line of letters is found at that size, too."""
    scale, side = 0.2, 112

    def small(frame: int) -> Picture:
        to_frame = np.column_stack([scale * np.eye(2), place(frame)])
        return np.asarray(
            cv2.warpAffine(portrait(), to_frame, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE), np.uint8
        )

    def small_face(frame: int) -> Face:
        points = portrait_face().landmarks * np.float32(scale)
        points[:, :2] += place(frame).astype(np.float32)
        return Face(points)

    def specks(picture: Picture) -> Picture:
        for x in (42, 48, 54):
            picture[51:53, x : x + 2] = 250
        return picture

    def letters(picture: Picture) -> Picture:
        for colour, thickness in (((0, 0, 0), 2), ((255, 255, 255), 1)):
            cv2.putText(picture, "good evening", (8, 54), cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour, thickness, cv2.LINE_AA)
        return picture

    for draw, count in ((specks, 0), (letters, 1)):
        detector = ScriptedDetector([[small_face(frame)] for frame in range(FRAMES)])
        chunks = chunks_of(FRAMES, lambda frame, draw=draw: draw(small(frame)))  # type: ignore[misc]
        (track,) = analyse_each(chunks, detector, [None], size=SPEC.size, limits=FaceLimits(min_height_px=20))
        track.references.close()
        assert crop.unit_px(track.similarity[:1])[0] < 90
        assert len(track.overlays) == count


def test_overlays_give_back_what_they_were_made_of() -> None:
    rng = np.random.default_rng(2)
    found = [Overlay(5, 9, 2, 3, 4, rng.random((7, 5)) > 0.5), Overlay(0, 6, 1, 0, 8, rng.random((3, 11)) > 0.5)]
    packed = Overlays.of(found)
    assert [[one.first for one in packed.at(frame)] for frame in (0, 5, 6, 9)] == [[0], [0, 5], [5], []]
    for one, other in zip(packed.at(5), found[::-1], strict=True):
        assert (one.first, one.end, one.step, one.x, one.y) == (other.first, other.end, other.step, other.x, other.y)
        assert (one.mask == other.mask).all()
    both = Overlays.joined([packed, packed.later(20)])
    assert [one.first for one in both.at(25)] == [20, 25]
    for spans, bits in (
        (packed.spans, packed.bits[:-1]),
        (packed.spans * [1, 0, 1, 1, 1, 1, 1], packed.bits),
        (packed.spans[:, :3], packed.bits),
    ):
        with pytest.raises(ValueError, match=r"overlay|masks|spans"):
            Overlays(spans, bits)


@pytest.mark.parametrize("step", [1, 3])
def test_all_of_an_overlay_is_covered_and_nothing_far_from_it(step: int) -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:5, 1:7] = True
    seen = Overlay(0, 1, step, 2, 1, mask).seen(np.eye(2, 3), (60, 60))
    cells = np.kron(mask, np.ones((step, step))) > 0
    whole = np.zeros((60, 60), bool)
    whole[step : step + cells.shape[0], 2 * step : 2 * step + cells.shape[1]] = cells
    # A cell's middle is covered wholly; to its rim it may fade over half a cell.
    assert (seen[cv2.erode(whole.astype(np.uint8), np.ones((step, step))) > 0] == 1).all()
    assert (seen[cv2.dilate(whole.astype(np.uint8), np.ones((2 * step + 7, 2 * step + 7))) == 0] == 0).all()


# ---------------------------------------------------------------------------------------------------- pages and cells


def test_pages_under_a_caption_are_left_out_where_others_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    with followed(for_a_while) as track:
        under = np.array([lies_on(track.pages, number, track.overlays) for number in range(len(track.pages))])
        assert (under == ((track.pages.frame >= 12) & (track.pages.frame < 50))).all()
        assert under.any()
        assert not under.all()
        monkeypatch.setattr(overlays, "FEWEST_CLEAR", int((~under).sum()))
        assert (drawable(track.pages, track.overlays) == track.pages.usable() & ~under).all()
        monkeypatch.setattr(overlays, "FEWEST_CLEAR", len(track.pages))
        assert (drawable(track.pages, track.overlays) == track.pages.usable()).all()
        assert (drawable(track.pages, Overlays()) == track.pages.usable()).all()


def test_cells_under_something_are_those_where_it_lies() -> None:
    where = np.zeros((96, 96), np.float32)
    assert not cells_under(where).any()
    where[90:] = 1  # the chin
    under = cells_under(where).reshape(7, 9, 3)
    assert under[-1].all()
    assert not under[:-1].any()
    assert under.size == CELL_NUMBERS


# -------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("draw", [caption, bar, logo])
def test_pasting_leaves_graphics_bit_by_bit(draw: Draw) -> None:
    with followed(draw) as track:
        frame = 31
        (chunk,) = chunks_of(1, lambda _: draw(head(frame), frame))
        crops = crop.take(chunk, np.zeros(1, np.int64), track.similarity[[frame]], track.outline[[frame]].astype(np.float32), SPEC.size)
        drawn = Drawn(np.full_like(crops.pixels, 90))
        before = chunk.data.copy()
        paste(chunk, crops, drawn, np.ones(1, np.float32), SPEC, on_top=[OnTop(track.overlays.at(frame))])
        luma, *chroma = planes_of(chunk.data[0] != before[0], SIDE, SIDE)
        graphics = changed(draw, frame)
        assert luma[graphics].mean() < 0.01
        for plane in chroma:
            assert plane[graphics.reshape(SIDE // 2, 2, SIDE // 2, 2).all(axis=(1, 3))].mean() < 0.01
        x, y = face(frame).landmarks[UPPER_LIP, :2].astype(int)
        assert luma[y - 6 : y + 2, x - 8 : x + 8].all()
        # Without them all of it is drawn over.
        chunk.data[...] = before
        paste(chunk, crops, drawn, np.ones(1, np.float32), SPEC)
        assert (planes_of(chunk.data[0] != before[0], SIDE, SIDE)[0][graphics]).mean() > 0.5


def test_what_lies_on_a_page_is_not_copied() -> None:
    (chunk,) = chunks_of(1, head)
    similarity = crop.fit_similarity(face(0).landmarks)
    outline = crop.to_unit(face(0).landmarks[crop.OUTLINE, :2], similarity)
    crops = crop.take(chunk, np.zeros(1, np.int64), similarity[None], outline[None], SPEC.size)
    y0, y1, x0, x1 = SPEC.drawn
    moved = np.zeros((1, 2, 36, 48), np.float32)
    moved[0, 1] = 20 / SPEC.size  # what is drawn was 20 px further down in the page
    drawn = Drawn(np.full_like(crops.pixels, 90), Copied(np.zeros((1, y1 - y0, x1 - x0), np.uint8), moved))
    page = np.zeros((SPEC.size, SPEC.size), np.float32)
    page[108:116] = 1
    before = chunk.data.copy()
    paste(chunk, crops, drawn, np.ones(1, np.float32), SPEC, on_top=[OnTop(page=page)])
    luma = planes_of(chunk.data[0] != before[0], SIDE, SIDE)[0].astype(np.float32)
    of_crop = cv2.warpAffine(luma, crops.to_frame[0], (SPEC.size, SPEC.size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    middle = of_crop[:, 56:72]
    assert middle[90:94].max() == 0
    assert middle[98:104].min() > 0.5


# -------------------------------------------------------------------------------------------------------------- a dub


def test_a_dub_keeps_the_caption_and_says_so(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "fake")
    pictures = [for_a_while(head(frame), frame) for frame in range(FRAMES)]
    draw_video(tmp_path / "clip.mp4", pictures=pictures, fps=25, time_base=Fraction(1, 12800))
    write_wav(tmp_path / "speech.wav", np.random.default_rng(1).uniform(-0.9, 0.9, 16000 * FRAMES // 25).astype(np.float32))
    options = DubOptions(device="cpu", preset="ultrafast", crf=4, threads=1, model=str(tmp_path / "fake"), draw="warp")

    def told(**changes: object) -> list[tuple[str, tuple[tuple[float, float], ...]]]:
        detector = ScriptedDetector([[face(frame)] for frame in range(FRAMES)])
        chosen = replace(options, **changes)  # type: ignore[arg-type]
        report = dub(tmp_path / "clip.mp4", tmp_path / "speech.wav", tmp_path / "out.mp4", chosen, detectors=lambda **_: detector)
        assert report.passed_through == (0 if chosen.ranges is None else 55)
        return [(warning.kind, warning.times) for warning in report.warnings]

    assert ("overlay-kept", ((0.48, 2.0),)) in told()
    frames = np.concatenate([chunk.pixels for chunk in media.read_frames(tmp_path / "out.mp4")]).astype(int)
    source = np.concatenate([chunk.pixels for chunk in media.read_frames(tmp_path / "clip.mp4")]).astype(int)
    for frame in (12, 30, 49):
        letters = changed(for_a_while, frame)
        assert np.abs(frames[frame] - source[frame])[letters].mean() < 4
    assert not any(kind == "overlay-kept" for kind, _ in told(force=True, ranges="0:02.2-"))
