"""Faces that a test can place where it wants: the portrait's own mesh, moved, turned and opened, and a detector that plays a script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.faces import crop
from lipdub.faces.detector import MediapipeDetector
from lipdub.media.planes import Picture, RgbPicture, YuvChunk
from lipdub.records import ColorTags, Crops, Face, FrameChunk, VideoInfo

EXAMPLES = Path(__file__).parent.parent / "examples"
VIDEO, PHOTO, SPEECH = EXAMPLES / "portrait.mp4", EXAMPLES / "portrait.jpg", EXAMPLES / "speech.wav"
CHIN, FOREHEAD, NOSE_TIP, UPPER_LIP, LOWER_LIP = 152, 10, 4, 13, 14


@cache
def portrait() -> NDArray[np.uint8]:
    """The example photo, uint8 (512, 512, 3) RGB."""
    with closing(media.read_frames(PHOTO)) as chunks:
        return next(chunks).pixels[0]


@cache
def portrait_frames(count: int) -> NDArray[np.uint8]:
    """The first frames of the example video, uint8 (count, 512, 512, 3) RGB."""
    found: list[NDArray[np.uint8]] = []
    with closing(media.read_frames(VIDEO)) as chunks:
        for chunk in chunks:
            found.extend(chunk.pixels)
            if len(found) >= count:
                break
    return np.stack(found[:count])


@cache
def _portrait_mesh() -> NDArray[np.float32]:
    with MediapipeDetector() as detector:
        (face,) = detector.detect(RgbPicture(portrait()))
    return face.landmarks


def portrait_face() -> Face:
    """The face of the example photo, in its own pixels; found once."""
    return Face(_portrait_mesh().copy())


def face_at(
    centre: tuple[float, float] = (256.0, 200.0),
    *,
    height: float = 170.0,
    roll_deg: float = 0.0,
    yaw_deg: float = 0.0,
    opening: float | None = None,
) -> Face:
    """The portrait's mesh turned to look straight ahead, then by `yaw_deg` and `roll_deg`, its box `height` px high around `centre`.

    opening: inner-lip distance over the distance of the outer eye corners, as `faces.landmarks.opening_of` measures it.
    """
    points = _portrait_mesh().astype(np.float64)
    points -= points.mean(axis=0)
    across = points[454] - points[234]
    points = points @ _about_y(np.arctan2(across[2], across[0])).T
    if opening is not None:
        half_gap = np.array([0, opening * np.linalg.norm(points[33, :2] - points[263, :2]) / 2, 0])
        middle = (points[UPPER_LIP] + points[LOWER_LIP]) / 2
        points[UPPER_LIP], points[LOWER_LIP] = middle - half_gap, middle + half_gap
    points *= height / np.ptp(points[:, 1])
    points = points @ _about_y(-np.radians(yaw_deg)).T
    roll = np.radians(roll_deg)
    points = points @ np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]]).T
    box_middle = (points[:, :2].min(axis=0) + points[:, :2].max(axis=0)) / 2
    points[:, :2] += np.array(centre) - box_middle
    return Face(points.astype(np.float32))


def _about_y(angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


class ScriptedDetector:
    """A FaceDetector that gives the faces of a script, one list per frame, and notes when it is reset."""

    def __init__(self, script: Iterable[Sequence[Face]]) -> None:
        self._script = iter(script)
        self.seen = 0
        self.reset_before: list[int] = []
        self.closed = False

    def __enter__(self) -> ScriptedDetector:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def detect(self, picture: Picture) -> list[Face]:
        self.seen += 1
        return list(next(self._script))

    def reset(self) -> None:
        self.reset_before.append(self.seen)

    def close(self) -> None:
        self.closed = True


def chunks_of(
    count: int,
    draw: Callable[[int], NDArray[np.uint8]],
    *,
    time_base: Fraction = Fraction(1, 25),
    pts: Sequence[int] | None = None,
    chunk: int = 7,
) -> Iterator[YuvChunk]:
    """`count` drawn frames in chunks, as `media.read_planes` gives them."""
    ticks = np.arange(count, dtype=np.int64) if pts is None else np.array(pts, np.int64)
    for first in range(0, count, chunk):
        end = min(count, first + chunk)
        pixels = np.stack([draw(k) for k in range(first, end)])
        yield media.to_planes(FrameChunk(first, pixels, ticks[first:end], time_base))


def chunk_of(*frames: NDArray[np.uint8], color: ColorTags | None = None) -> YuvChunk:
    """Drawn frames, uint8 (H, W, 3) RGB each, as one chunk. color: of the video that they are of; full range where it is of none."""
    pixels, ticks, time_base = np.stack(frames), np.arange(len(frames)), Fraction(1, 25)
    info = None
    if color is not None:
        info = VideoInfo(Path("drawn.mp4"), pixels.shape[2], pixels.shape[1], time_base, 1 / time_base, None, color=color)
    return media.to_planes(FrameChunk(0, pixels, ticks, time_base), info)


def crops_of(chunk: YuvChunk, face: Face, size: int) -> Crops:
    """The aligned crop of the chunk's first frame in which `face` is."""
    similarity = crop.fit_similarity(face.landmarks)
    outline = crop.to_unit(face.landmarks[crop.OUTLINE, :2], similarity)
    return crop.take(chunk, np.array([0]), similarity[None], outline[None], size)


def smooth_picture(side: int = 512) -> NDArray[np.uint8]:
    """Waves that a crop of any size can hold, uint8 (side, side, 3)."""
    y, x = np.mgrid[0:side, 0:side]
    waves = [np.sin(x / 40), np.cos(y / 50), np.sin((x + y) / 60)]
    return np.stack([128 + 70 * wave for wave in waves], axis=-1).astype(np.uint8)


def textured_picture(side: int = 512) -> NDArray[np.uint8]:
    """The same with fine stripes and dots upon it, which a crop of 128 px cannot hold."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    fine = 20 * np.sin(1.2 * x + 0.4 * y) + 15 * np.cos(1.1 * y - 0.3 * x)
    return np.clip(smooth_picture(side).astype(np.float32) * 0.7 + 40 + fine[..., None], 0, 255).astype(np.uint8)


def scaled(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture at another size (width, height)."""
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
