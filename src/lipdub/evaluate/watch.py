"""Reading videos side by side: the face of each one, and the dub beside its source, frame by frame.

* Every video is analysed once (``tracked``), and the analysis is kept in a folder where one is given.
* A dub and its source are decoded once each, at the same time.
* Of either one a chunk of frames is held.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.evaluate.openings import nearest
from lipdub.faces import crop
from lipdub.faces.cache import UNLIMITED_BYTES, AnalysisCache
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.follow import follow
from lipdub.faces.landmarks import LIPS, opening_of
from lipdub.faces.track import NO_FACE, FaceTrack
from lipdub.media.planes import RgbPicture, YuvChunk, YuvPicture
from lipdub.records import Face

SAME_PLACE = 0.25
"""A face whose middle lies further than this from where the source's is (unit crop) is somebody else's."""


def tracked(
    video: Path,
    *,
    size: int,
    cache: Path | None = None,
    detectors: DetectorFactory = MediapipeDetector,
    threads: int | None = None,
) -> FaceTrack:
    """The face of one person in every frame of `video`, as a dub sees it; its reference store is the caller's to close.

    size: side of the reference crops, px.
    cache: folder of an analysis cache without a limit.
    detectors: makes what finds faces.
    threads: cores to use, None for all.

    Raises UnreadableMedia, NoVideoStream.
    """
    kept = None if cache is None else AnalysisCache(cache, UNLIMITED_BYTES)
    ((track, _),) = follow(video, media.probe(video), size=size, detectors=detectors, cache=kept, threads=threads)
    return track


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, or one a copy of the other."""
    try:
        return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


class Frames:
    """The frames of one video by number, asked for in rising order; one chunk is held. A context manager."""

    def __init__(self, video: Path) -> None:
        self._chunks = media.read_planes(video)
        self._chunk: YuvChunk | None = None

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *error: object) -> None:
        self._chunks.close()

    def at(self, number: int) -> YuvPicture | None:
        """Frame `number`; None where the video has fewer. Raises ``ValueError`` for a frame that has gone by."""
        while self._chunk is None or number >= self._chunk.index + len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return None
            self._chunk = chunk
        if number < self._chunk.index:
            raise ValueError(f"frame {number} has gone by, the chunk at hand starts with {self._chunk.index}")
        return self._chunk.picture(number - self._chunk.index)


@dataclass(frozen=True, slots=True, repr=False)
class FramePair:
    """One frame of a dub beside its source's.

    number, time_s: of the dub's frame.
    row: number of the source frame that it shows, -1 where that is not known.
    dub: the dub's frame.
    source: the source's, None where `row` is -1.
    opening: of the dubbed mouth, NaN without a face.
    lips: float32 (40, 2), the dubbed lips in the unit crop of the source's alignment, NaN without a face. Where `row` is -1 or the source
    has no face, the alignment is the dub's own.
    """

    number: int
    time_s: float
    row: int
    dub: RgbPicture
    source: RgbPicture | None
    opening: float
    lips: NDArray[np.float32]


def side_by_side(dubbed: Path, source: Path, track: FaceTrack, *, detectors: DetectorFactory = MediapipeDetector) -> Iterator[FramePair]:
    """The frames of `dubbed`, each with the frame of `source` at the same time; where that is a photo, with the photo.

    track: of `source`.
    detectors: makes what finds faces.

    Of several faces in the dub, the one that lies where the source's does is measured. A dub that goes on beyond the end of its source
    (``--fit longest``) has no source frames there.

    Raises UnreadableMedia, NoVideoStream.
    """
    step_s = float(np.median(np.diff(track.times_s))) if len(track) > 1 else 0.0
    still = media.probe(source).is_still
    times_s = track.times_s
    shot = -1
    with ExitStack() as stack:
        sources = stack.enter_context(Frames(source))
        chunks = stack.enter_context(closing(media.read_planes(dubbed)))
        detector = stack.enter_context(closing(detectors()))
        for chunk in chunks:
            rows = np.zeros(len(chunk), np.int64) if still else nearest(times_s, chunk.times_s, step_s / 2)
            for offset, row in enumerate(rows.tolist()):
                beside = None if row < 0 else sources.at(row)
                if beside is None:
                    row = -1
                if row >= 0 and track.shot[row] != shot:
                    if shot >= 0:
                        detector.reset()
                    shot = int(track.shot[row])
                # The detector sees planes, as when `track` was made; figures are of RGB.
                picture = chunk.picture(offset)
                aligned = track.similarity[row] if row >= 0 and track.status[row] != NO_FACE else None
                face = _face_at(detector.detect(picture), aligned)
                time_s = float(chunk.times_s[offset])
                pictures = _rgb(picture), None if beside is None else _rgb(beside)
                yield FramePair(chunk.index + offset, time_s, row, *pictures, *_mouth(face, aligned))


def _rgb(picture: YuvPicture) -> RgbPicture:
    return RgbPicture(picture.rgb(0, 0, picture.width, picture.height))


def _face_at(faces: Sequence[Face], aligned: NDArray[np.float64] | None) -> Face | None:
    """The face that lies where the alignment has one; the largest, where there is none to go by."""
    if aligned is None:
        return max(faces, key=lambda one: float(one.box[3] - one.box[1]), default=None)

    def distance(face: Face) -> float:
        middle = crop.to_unit(face.landmarks[crop.ANCHORS, :2], aligned).mean(axis=0)
        return float(np.linalg.norm(middle - crop.ANCHOR_TARGETS.mean(axis=0)))

    found = min(faces, key=distance, default=None)
    return found if found is not None and distance(found) < SAME_PLACE else None


def _mouth(face: Face | None, aligned: NDArray[np.float64] | None) -> tuple[float, NDArray[np.float32]]:
    if face is None:
        return float("nan"), np.full((len(LIPS), 2), np.nan, np.float32)
    similarity = crop.fit_similarity(face.landmarks) if aligned is None else aligned
    return opening_of(face.landmarks), crop.to_unit(face.landmarks[LIPS, :2], similarity)


def lip_points_at(track: FaceTrack, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """The lips of an analysed video at the frames nearest to `times_s` (N,): float32 (N, 40, 2) in the unit crop, NaN without a face."""
    step_s = float(np.median(np.diff(track.times_s))) if len(track) > 1 else 0.04
    rows = nearest(track.times_s, times_s, step_s)
    known = (rows >= 0) & (track.status[rows] != NO_FACE)
    return np.where(known[:, None, None], track.lips[rows].astype(np.float32), np.float32("nan"))
