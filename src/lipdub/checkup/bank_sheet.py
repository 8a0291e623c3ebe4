"""The reference bank of a video as a picture: the person's own mouths on a map of width and opening."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.atomic import write_whole
from lipdub.checkup.sheet import write_on
from lipdub.errors import NoFaceFound
from lipdub.faces.cache import AnalysisCache
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.follow import follow
from lipdub.faces.overlays import drawable
from lipdub.faces.track import FaceTrack
from lipdub.references.shapes import mouth_width
from lipdub.stages import OnProgress, counted

ROWS, COLUMNS = 7, 9
CELL_PX, MARGIN_PX, GAP_PX = 112, 44, 4
BACKGROUND = 32
MOUTH = (0.46, 0.98, 0.24, 0.76)
"""What a cell shows of a page (y0, y1, x0, x1), unit crop: nose to chin."""
CROP_PX = 128
"""Side of the crops, that of the shipped model, so that the kept analysis is the one that a dub uses."""


@dataclass(frozen=True, slots=True)
class BankReport:
    """What the bank of a video holds. pages: mouths of its most shown person; usable: those sharp and lit as usual. frames: of the video,
    and dubbed those that a dub would redraw."""

    people: int
    pages: int
    usable: int
    frames: int
    dubbed: int


def bank_sheet(
    video: Path,
    out: Path,
    *,
    force: bool = False,
    detectors: DetectorFactory = MediapipeDetector,
    cache: AnalysisCache | None = None,
    on_progress: OnProgress | None = None,
) -> BankReport:
    """Write `out`, a picture of the mouths that a dub of `video` can draw from: wider to the right, further open downwards.

    Raises OutputRefused, UnreadableMedia, NoVideoStream, WriteFailed. NoFaceFound: there is nobody to show.
    """
    media.check_picture(out, inputs=[video], force=force)
    tell = on_progress or (lambda stage, done, total: None)
    more = counted(tell, "finding faces", None)
    ((track, _),) = follow(video, media.probe(video), size=CROP_PX, detectors=detectors, cache=cache, on_frames=more)
    with closing(track.references):
        if len(track.pages) == 0:
            raise NoFaceFound(f"no face in '{video}' that a dub could draw from; it needs one that looks at the camera")
        pages = track.pages.of(track.main_person)
        usable = pages[drawable(track.pages, track.overlays)[pages]]
        write_whole(out, media.encode_picture(_map(track, usable), out.suffix.lower()))
        people = np.unique(track.person[track.person >= 0])
        return BankReport(len(people), len(pages), len(usable), len(track), int((track.person >= 0).sum()))


def _map(track: FaceTrack, pages: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The pages of these numbers on a map of width and opening, uint8 (H, W, 3); in each cell the one nearest to its middle."""
    places = np.column_stack([track.pages.openings[pages], mouth_width(track.pages.lips[pages])])
    low, high = places.min(axis=0), places.max(axis=0) + 1e-6
    on_map = (places - low) / (high - low) * [ROWS, COLUMNS]
    cells = on_map.astype(int)
    shape = (MARGIN_PX + ROWS * (CELL_PX + GAP_PX), MARGIN_PX + COLUMNS * (CELL_PX + GAP_PX), 3)
    picture = np.full(shape, BACKGROUND, np.uint8)
    for cell in np.unique(cells, axis=0):
        here = np.flatnonzero((cells == cell).all(axis=1))
        best = int(here[np.abs(on_map[here] - cell - 0.5).sum(axis=1).argmin()])
        yaw, pitch = track.pages.pose[pages[best]]
        y, x = MARGIN_PX + cell * (CELL_PX + GAP_PX)
        mouth = _mouth(track, int(pages[best]))
        write_on(mouth, f"{len(here)}", (4, 14))
        write_on(mouth, f"{yaw:+.0f} {pitch:+.0f}", (4, CELL_PX - 6))
        picture[y : y + CELL_PX, x : x + CELL_PX] = mouth
    write_on(
        picture, f"wider > {low[1]:.2f} to {high[1]:.2f} of the face crop;  further open, downwards, {low[0]:.2f} to {high[0]:.2f}", (8, 16)
    )
    write_on(picture, "in a cell: mouths like this one, and its head's yaw and pitch in degrees", (8, 34))
    return picture


def _mouth(track: FaceTrack, page: int) -> NDArray[np.uint8]:
    """The lower face of a page, uint8 (CELL_PX, CELL_PX, 3)."""
    reference = track.references.get(page)
    face = reference.pixels if reference.detail is None else reference.detail
    y0, y1, x0, x1 = (round(edge * len(face)) for edge in MOUTH)
    return np.asarray(cv2.resize(face[y0:y1, x0:x1], (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA), np.uint8)
