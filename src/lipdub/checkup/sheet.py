"""A contact sheet: evenly spaced frames of a video in one picture, each with its time, and the face below it enlarged."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.atomic import write_whole
from lipdub.faces import crop
from lipdub.faces.detector import DetectorFactory, FaceDetector, MediapipeDetector
from lipdub.media.planes import RgbPicture
from lipdub.records import VideoInfo
from lipdub.stages import OnProgress

CELL_PX = 192
"""Side of an enlarged face, and of the square that a whole frame is fitted into."""
GAP_PX = 6
BACKGROUND = 32
LONGEST_SIDE = 20
"""Rows and columns there may be at most: memory does not grow with the video, but with these."""
DEFAULT_ROWS = 2
DEFAULT_COLUMNS = 6


@dataclass(frozen=True, slots=True)
class SheetReport:
    """What a sheet shows: frames, and in how many of them a face was found. width, height: of the picture in px."""

    frames: int
    faces: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, repr=False)
class _Cell:
    """One frame: frame uint8 (h, w, 3) with its time on it, face uint8 (CELL_PX, CELL_PX, 3) or None."""

    frame: NDArray[np.uint8]
    face: NDArray[np.uint8] | None


def contact_sheet(
    video: Path,
    out: Path,
    *,
    rows: int = DEFAULT_ROWS,
    columns: int = DEFAULT_COLUMNS,
    faces: bool = True,
    force: bool = False,
    detectors: DetectorFactory = MediapipeDetector,
    on_progress: OnProgress | None = None,
) -> SheetReport:
    """Write `out`, a picture of ``rows x columns`` evenly spaced frames of `video` (all of them, where it has fewer).

    faces: below each frame its most prominent face, aligned and enlarged; nothing where there is none. detectors: makes what finds
    them. The video is read once, forward; a second time only where its length is unknown or wrongly stated. `out` appears when it is
    complete, or not at all.

    Raises:
        OutputRefused, UnreadableMedia, NoVideoStream, EncodingFailed, WriteFailed.
        ValueError: rows or columns outside 1 to ``LONGEST_SIDE``.
    """
    if not (1 <= rows <= LONGEST_SIDE and 1 <= columns <= LONGEST_SIDE):
        raise ValueError(f"rows and columns must be 1 to {LONGEST_SIDE}, got {rows = }, {columns = }")
    media.check_picture(out, inputs=[video], force=force)
    info = media.probe(video)
    with ExitStack() as stack:
        detector = stack.enter_context(closing(detectors())) if faces else None
        cells = _choose(info, rows * columns, detector, on_progress or (lambda stage, done, total: None))
    picture = _arrange(cells, columns)
    write_whole(out, media.encode_picture(picture, out.suffix.lower()))
    return SheetReport(len(cells), sum(cell.face is not None for cell in cells), picture.shape[1], picture.shape[0])


def _choose(info: VideoInfo, count: int, detector: FaceDetector | None, tell: OnProgress) -> list[_Cell]:
    """The cells of up to `count` frames at evenly spaced times."""
    stated_s = Fraction(1) if info.is_still else info.duration_s
    if stated_s is None:
        _, (_, end_s) = _pass(info, 0, Fraction(0), None, tell)
        return _pass(info, count, end_s, detector, tell)[0]
    cells, (start_s, end_s) = _pass(info, count, stated_s, detector, tell)
    # Cut off, or a container that is wrong about its length: what is there is spread over the sheet all the same.
    if not info.is_still and abs(stated_s - end_s) > (end_s - start_s) / 10:
        return _pass(info, count, end_s, detector, tell)[0]
    return cells


def _pass(
    info: VideoInfo, count: int, end_s: Fraction, detector: FaceDetector | None, tell: OnProgress
) -> tuple[list[_Cell], tuple[Fraction, Fraction]]:
    """Read the video once: cells of the frames that are shown at `count` moments evenly spread up to `end_s`, each frame once.

    Also gives when the first frame starts and when the last one ends, as the frames themselves say.
    """
    total = info.frames_guessed
    cells: list[_Cell] = []
    wanted_s: deque[Fraction] = deque()
    held: NDArray[np.uint8] | None = None
    first_s = held_s = step_s = Fraction(0)
    with closing(media.read_frames(info.path)) as chunks:
        for chunk in chunks:
            for pixels, tick in zip(chunk.pixels, chunk.pts.tolist(), strict=True):
                time_s = tick * chunk.time_base
                if held is None:
                    first_s = time_s
                    wanted_s.extend(first_s + Fraction(2 * k + 1, 2 * count) * (end_s - first_s) for k in range(count))
                else:
                    step_s = time_s - held_s
                    if wanted_s and wanted_s[0] < time_s:
                        cells.append(_cell(held, float(held_s), info, detector))
                    while wanted_s and wanted_s[0] < time_s:
                        wanted_s.popleft()
                held, held_s = pixels, time_s
            tell("reading", chunk.index + len(chunk), None if total is None else max(total, chunk.index + len(chunk)))
    if wanted_s and held is not None:
        cells.append(_cell(held, float(held_s), info, detector))
    return cells, (first_s, held_s + step_s)


def _cell(pixels: NDArray[np.uint8], time_s: float, info: VideoInfo, detector: FaceDetector | None) -> _Cell:
    """The frame `pixels` (H, W, 3) small, with its time, and its face large."""
    shown_width = info.width * float(info.sample_aspect_ratio)
    scale = CELL_PX / max(shown_width, info.height)
    width, height = max(1, round(shown_width * scale)), max(1, round(info.height * scale))
    shrinks = width < info.width
    frame = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    write_on(frame, _clock(time_s), (5, height - 7))
    return _Cell(np.asarray(frame, np.uint8), None if detector is None else _face(pixels, detector))


def write_on(picture: NDArray[Any], text: str, at: tuple[int, int]) -> None:
    """Write `text` on a picture (H, W, 3), its lower left corner `at` (x, y) px; white in black, so that it can be read on anything."""
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, thickness, cv2.LINE_AA)


def _clock(time_s: float) -> str:
    """``7.25 s``, ``2:07.25`` or ``1:02:07.25``."""
    minutes, seconds = divmod(round(time_s, 2), 60)
    if minutes < 1:
        return f"{seconds:.2f} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{seconds:05.2f}" if hours else f"{minutes}:{seconds:05.2f}"


def _face(pixels: NDArray[np.uint8], detector: FaceDetector) -> NDArray[np.uint8] | None:
    """The largest face of a frame, aligned, uint8 (CELL_PX, CELL_PX, 3)."""
    detector.reset()  # the frame before lies seconds back
    picture = RgbPicture(pixels)
    found = detector.detect(picture)
    if not found:
        return None
    face = max(found, key=lambda one: float((one.box[2] - one.box[0]) * (one.box[3] - one.box[1])))
    similarity = crop.fit_similarity(face.landmarks)
    return crop.take_one(picture, similarity, CELL_PX)


def _arrange(cells: Sequence[_Cell], columns: int) -> NDArray[np.uint8]:
    """All cells in one picture, row by row, uint8 (H, W, 3)."""
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    frame_height = cells[0].frame.shape[0]
    cell_height = frame_height + (CELL_PX if any(cell.face is not None for cell in cells) else 0)
    shape = (GAP_PX + rows * (cell_height + GAP_PX), GAP_PX + columns * (CELL_PX + GAP_PX), 3)
    picture = np.full(shape, BACKGROUND, np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        y, x = GAP_PX + row * (cell_height + GAP_PX), GAP_PX + column * (CELL_PX + GAP_PX)
        width = cell.frame.shape[1]
        left = x + (CELL_PX - width) // 2
        picture[y : y + frame_height, left : left + width] = cell.frame
        if cell.face is not None:
            picture[y + frame_height : y + cell_height, x : x + CELL_PX] = cell.face
    return picture
