"""Reading videos side by side: the face of each one, and the dub beside its source, frame by frame.

Every video is analysed once (``tracked``, kept in a folder where one is given); a dub is read once, its source beside it. Full
frames are held a chunk at a time.
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
from lipdub.evaluate.openings import Openings, nearest
from lipdub.faces import crop
from lipdub.faces.cache import UNLIMITED_BYTES, AnalysisCache
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.follow import follow
from lipdub.faces.landmarks import LIPS, opening_of
from lipdub.faces.track import NO_FACE, FaceTrack
from lipdub.records import Face, FrameChunk

CHUNK_BYTES = 16 * 2**20
SAME_PLACE = 0.25
"""A face whose middle lies further than this from where the source's is (unit crop) is somebody else's."""


def tracked(video: Path, *, size: int, cache: Path | None = None, detectors: DetectorFactory = MediapipeDetector) -> FaceTrack:
    """The face of one person in every frame of `video`, as a dub sees it; its reference store is the caller's to close.

    size: side of the reference crops, px. cache: folder of an analysis cache without a limit. detectors: makes what finds faces.

    Raises UnreadableMedia, NoVideoStream.
    """
    kept = None if cache is None else AnalysisCache(cache, UNLIMITED_BYTES)
    return follow(video, media.probe(video), size=size, detectors=detectors, cache=kept)[0]


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, or one a copy of the other."""
    try:
        return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def unit_px(similarities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Side in frame px of the aligned crops of frame-to-unit similarities (N, 4): float64 (N,)."""
    return 1 / np.hypot(similarities[:, 0], similarities[:, 1])


class Frames:
    """The frames of one video by number, asked for in rising order; one chunk is held. A context manager."""

    def __init__(self, video: Path) -> None:
        self._chunks = media.read_frames(video, chunk_bytes=CHUNK_BYTES)
        self._chunk: FrameChunk | None = None

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *error: object) -> None:
        self._chunks.close()

    def at(self, number: int) -> NDArray[np.uint8] | None:
        """Frame `number`, uint8 (H, W, 3); None where the video has fewer. Raises ``ValueError`` for a frame that has gone by."""
        while self._chunk is None or number >= self._chunk.index + len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return None
            self._chunk = chunk
        if number < self._chunk.index:
            raise ValueError(f"frame {number} has gone by, the chunk at hand starts with {self._chunk.index}")
        return np.asarray(self._chunk.pixels[number - self._chunk.index], np.uint8)


@dataclass(frozen=True, slots=True, repr=False)
class Sight:
    """One frame of a dub beside its source.

    number, time_s: of the dub's frame. row: the source frame that it shows, -1 where that is not known. pixels: uint8 (H, W, 3).
    source: likewise, None where `row` is -1. opening: of the dubbed mouth, NaN without a face. lips: float32 (40, 2), its lips in the
    unit crop of the source's alignment (its own, where `row` is -1), NaN without a face.
    """

    number: int
    time_s: float
    row: int
    pixels: NDArray[np.uint8]
    source: NDArray[np.uint8] | None
    opening: float
    lips: NDArray[np.float32]


def side_by_side(dubbed: Path, source: Path, track: FaceTrack, *, detectors: DetectorFactory = MediapipeDetector) -> Iterator[Sight]:
    """The frames of `dubbed`, each with the frame of `source` that it shows: the one at the same time (of a photo, the photo).

    track: of `source`. Of several faces the one that lies where the source's does is looked at. A dub that goes on beyond its source's
    end (``--fit longest``) has no source frames there. detectors: makes what finds faces. Raises UnreadableMedia, NoVideoStream.
    """
    step_s = float(np.median(np.diff(track.times_s))) if len(track) > 1 else 0.0
    still = media.probe(source).is_still
    times_s = track.times_s
    shot = -1
    with ExitStack() as stack:
        sources, shown = stack.enter_context(Frames(source)), stack.enter_context(Frames(dubbed))
        # The detector sees planes, as when `track` was made; figures are of RGB.
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
                pixels = shown.at(chunk.index + offset)
                assert pixels is not None
                aligned = track.similarity[row] if row >= 0 and track.status[row] != NO_FACE else None
                face = _face_at(detector.detect(chunk.picture(offset)), aligned)
                time_s = float(chunk.times_s[offset])
                yield Sight(chunk.index + offset, time_s, row, pixels, beside, *_mouth(face, aligned))


def openings_beside(dubbed: Path, source: Path, track: FaceTrack) -> Openings:
    """The openings of a dub, looked at where its analysed source has the face."""
    seen = [(sight.time_s, sight.opening) for sight in side_by_side(dubbed, source, track)]
    times_s, opening = np.array(seen, np.float64).reshape(-1, 2).T
    return Openings(times_s, opening)


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


def lips_at(track: FaceTrack, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """The lips of an analysed video at the frames nearest to `times_s` (N,): float32 (N, 40, 2) in the unit crop, NaN without a face."""
    step_s = float(np.median(np.diff(track.times_s))) if len(track) > 1 else 0.04
    rows = nearest(track.times_s, times_s, step_s)
    known = (rows >= 0) & (track.status[rows] != NO_FACE)
    return np.where(known[:, None, None], track.lips[rows].astype(np.float32), np.float32("nan"))
