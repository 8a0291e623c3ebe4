"""The people of a video as a picture: a face for each, with the number that ``--face`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.atomic import write_whole
from lipdub.checkup.sheet import write_on
from lipdub.errors import UnreadableMedia
from lipdub.faces import crop
from lipdub.faces.people import Person

COLUMNS, CELL_PX, GAP_PX, LABEL_PX, BACKGROUND = 6, 160, 6, 22, 32


def people_sheet(video: Path, people: Sequence[Person], out: Path) -> None:
    """Write `out`, a picture of the `people` of `video`, each where the face is largest. Raises UnreadableMedia, WriteFailed."""
    faces = _faces(video, people)
    rows = -(-len(people) // COLUMNS)
    columns = min(COLUMNS, len(people))
    height, width = CELL_PX + LABEL_PX + GAP_PX, CELL_PX + GAP_PX
    picture = np.full((rows * height + GAP_PX, columns * width + GAP_PX, 3), BACKGROUND, np.uint8)
    for place, (person, face) in enumerate(zip(people, faces, strict=True)):
        y, x = (place // COLUMNS) * height + GAP_PX, (place % COLUMNS) * width + GAP_PX
        picture[y : y + CELL_PX, x : x + CELL_PX] = face
        write_on(picture, f"{person.number}: {person.seconds:.1f} s", (x + 2, y + CELL_PX + LABEL_PX - 7))
    write_whole(out, media.encode_picture(picture, out.suffix))


def _faces(video: Path, people: Sequence[Person]) -> list[NDArray[np.uint8]]:
    """The face of each person, uint8 (CELL_PX, CELL_PX, 3); the video is decoded as far as the last of them."""
    found: dict[int, NDArray[np.uint8]] = {}
    with closing(media.read_planes(video)) as chunks:
        for chunk in chunks:
            for offset, at_s in enumerate(chunk.times_s.tolist()):
                for person in people:
                    if person.number not in found and at_s >= person.at_s - 1e-9:
                        taken = crop.take_one(chunk.picture(offset), np.array(person.similarity), 2 * CELL_PX)
                        found[person.number] = np.asarray(cv2.resize(taken, (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA), np.uint8)
            if len(found) == len(people):
                break
    if len(found) < len(people):
        raise UnreadableMedia(f"'{video}' no longer holds all frames; run again")
    return [found[person.number] for person in people]
