"""Following faces through a video: find, cut at shots, choose one person, bridge gaps, smooth both ways, pick references.

``analyse`` reads the video once, forward, and keeps about 300 bytes a frame (some 2 kB while the track is put together); reference
pictures lie in an unnamed temporary file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Generator as TypeGenerator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.errors import NoFaceFound
from lipdub.faces import crop
from lipdub.faces.covers import CELL_NUMBERS, cells_of, cells_under, covered
from lipdub.faces.detector import FaceDetector
from lipdub.faces.landmarks import LIPS, opening_of, pose_of
from lipdub.faces.overlays import OverlayFinder, Overlays, drawable, over_crop
from lipdub.faces.people import Sightings
from lipdub.faces.shots import ShotCounter
from lipdub.faces.smoothing import LIP_COLUMNS, OUTLINE_COLUMNS, POINT_COLUMNS, smooth_points, smooth_similarity
from lipdub.faces.track import COVERED, DUBBED, NO_FACE, OTHERS, TOO_SMALL, TURNED_AWAY, FaceTrack, runs, stretches
from lipdub.media.planes import YuvChunk
from lipdub.options import FaceChoice, FaceLimits
from lipdub.records import Face
from lipdub.references.bank import THUMB_PX, BankFiller, Seen
from lipdub.references.selection import references_of
from lipdub.references.store import ReferenceStore, detail_px
from lipdub.row_file import RowFile
from lipdub.stages import spread

BRIDGE_S = 0.4
"""Gaps up to this long are bridged by interpolation."""
FADE_S = 0.16
"""A dubbed stretch fades in and out over this time beside frames that are passed through."""
SMALLEST_SHARE, SMALLEST_PX, SMALL_ENOUGH_PX = 0.075, 40.0, 80.0
"""A face is too small below this share of the picture's shorter side, but never below 40 px only, and always fine at 80 px."""
STRETCH_FRAMES, STRETCH_BYTES = 48, 48 * 2**20
"""Several detectors take turns at about this many frames: four searches' worth, so that beginning anew costs little."""
SAME_PICTURE = 0.94
"""Likeness from which on a picture shows a person of the video. Stills of it, made smaller and saved as JPEG, have 0.97 or more with who
they show, 0.89 at most with others; pictures from elsewhere 0.8 to 0.99 with the same person, and up to 0.93 with others."""
RETURN_RATIO = 1.5
"""Who was lost and comes back elsewhere in the shot has changed size by less than this."""

_SIMILARITY, _HEIGHT, _YAW, _PITCH, _OPENING, _PLACE = slice(2, 6), 6, 7, 8, 9, 10
"""Columns of what is kept in memory of each face: frame, track, and these; `_PLACE` is its number in the store of points."""
_COLUMNS = _PLACE + 1


def analyse(
    chunks: Iterable[YuvChunk],
    detector: FaceDetector,
    *,
    size: int,
    on_frames: Callable[[int], None] | None = None,
    more: Sequence[FaceDetector] = (),
    choice: FaceChoice | None = None,
) -> FaceTrack:
    """Follow all faces through `chunks`, choose one person and smooth: the ``FaceTrack`` of every frame.

    size: side of the reference crops in px. on_frames: told how many frames each step took. more: further detectors; the video is then
    watched in stretches side by side, each of which begins with a search of its own, so that the landmarks differ by a fraction of a px.
    choice: who is followed; None for who is most prominent in each shot.

    Raises NoFaceFound: nobody is meant by the choice.
    """
    (track,) = analyse_each(chunks, detector, [choice], size=size, on_frames=on_frames, more=more)
    return track


def analyse_each(
    chunks: Iterable[YuvChunk],
    detector: FaceDetector,
    choices: Sequence[FaceChoice | None],
    *,
    size: int,
    on_frames: Callable[[int], None] | None = None,
    more: Sequence[FaceDetector] = (),
    limits: FaceLimits = FaceLimits(),
) -> list[FaceTrack]:
    """What `analyse` gives for each of several choices; the video is watched once. limits: which faces can be dubbed."""
    found: list[FaceTrack] = []
    try:
        with _all_seen(chunks, detector, size=size, on_frames=on_frames, more=more) as seen:
            for choice in choices:
                found.append(_assemble(seen, _meant(seen, choice, detector), limits))
    except BaseException:
        for track in found:
            track.references.close()
        raise
    return found


def sightings(
    chunks: Iterable[YuvChunk],
    detector: FaceDetector,
    *,
    on_frames: Callable[[int], None] | None = None,
    more: Sequence[FaceDetector] = (),
) -> Sightings:
    """All faces of `chunks` and whose they are. on_frames, more: as for `analyse`."""
    with _all_seen(chunks, detector, size=THUMB_PX, on_frames=on_frames, more=more) as seen:
        return seen.sightings()


@contextmanager
def _all_seen(
    chunks: Iterable[YuvChunk], detector: FaceDetector, *, size: int, on_frames: Callable[[int], None] | None, more: Sequence[FaceDetector]
) -> Iterator[_Seen]:
    store, points, cells = ReferenceStore(size), RowFile(POINT_COLUMNS), RowFile(CELL_NUMBERS)
    try:
        # However it ends, no thread looks through a detector any more when this returns.
        with closing(_watched(chunks, [detector, *more])) as stretches:
            seen = _analyse(stretches, store, points, cells, on_frames)
        yield seen
    finally:
        for file in (store, points, cells):
            file.close()


@dataclass(frozen=True, slots=True, repr=False)
class _Stretch:
    """Consecutive frames that one detector watches: their chunks, the number of each frame's shot, and, once it has, the faces."""

    chunks: list[YuvChunk]
    shots: list[int]
    faces: list[list[Face]] = field(default_factory=list)

    def frames(self) -> Iterator[tuple[YuvChunk, int]]:
        """Every frame as its chunk and its place in it."""
        return ((chunk, offset) for chunk in self.chunks for offset in range(len(chunk)))


def _watched(chunks: Iterable[YuvChunk], detectors: list[FaceDetector]) -> TypeGenerator[_Stretch, None, None]:
    """The stretches of the video in order with the faces in them."""
    if len(detectors) == 1:
        shot = 0
        for stretch in _stretches_of(chunks, frames=1):
            _watch(stretch, detectors[0], shot)
            shot = stretch.shots[-1]
            yield stretch
        return
    idle: Queue[FaceDetector] = Queue()
    for detector in detectors:
        idle.put(detector)

    def watch(stretch: _Stretch) -> _Stretch:
        detector = idle.get()
        try:
            detector.reset()
            _watch(stretch, detector, stretch.shots[0])
        finally:
            idle.put(detector)
        return stretch

    with closing(spread(watch, _stretches_of(chunks, frames=STRETCH_FRAMES), workers=len(detectors))) as stretches:
        yield from stretches


def _stretches_of(chunks: Iterable[YuvChunk], *, frames: int) -> Iterator[_Stretch]:
    """Whole chunks, gathered until they hold that many frames or take much memory, with the shots numbered."""
    cutter = ShotCounter()
    held: list[YuvChunk] = []
    shots: list[int] = []
    for chunk in chunks:
        held.append(chunk)
        for offset in range(len(chunk)):
            cutter.is_cut(chunk.picture(offset))
            shots.append(cutter.shot)
        if len(shots) >= frames or sum(one.data.nbytes for one in held) >= STRETCH_BYTES:
            yield _Stretch(held, shots)
            held, shots = [], []
    if held:
        yield _Stretch(held, shots)


def _watch(stretch: _Stretch, detector: FaceDetector, shot: int) -> None:
    """Find the faces of a stretch. shot: of the frame that the detector saw last."""
    for (chunk, offset), here in zip(stretch.frames(), stretch.shots, strict=True):
        if here != shot:
            detector.reset()
            shot = here
        stretch.faces.append(detector.detect(chunk.picture(offset)))


def _analyse(
    stretches: Iterable[_Stretch], store: ReferenceStore, points: RowFile, cells: RowFile, on_frames: Callable[[int], None] | None
) -> _Seen:
    rows, pts, shots = _Rows(_COLUMNS), _Rows(1, np.int64), _Rows(1, np.int32)
    follower, bank, overlays = _Follower(), BankFiller(store), OverlayFinder()
    time_base, shorter_side, shot = Fraction(1, 25), 1, 0
    for stretch in stretches:
        for (chunk, offset), here, faces in zip(stretch.frames(), stretch.shots, stretch.faces, strict=True):
            time_base = chunk.time_base
            picture = chunk.picture(offset)
            shorter_side = min(picture.height, picture.width)
            if here != shot:
                follower.reset()
                overlays.cut()
                shot = here
            pts.add(chunk.pts[offset])
            shots.add(shot)
            for face in faces:
                number = follower.track_of(face, shot)
                row, shape = _describe(chunk.index + offset, number, face)
                row[_PLACE] = points.add(shape)
                rows.add(row)
                similarity = row[_SIMILARITY]
                thumb = crop.take_one(picture, similarity, THUMB_PX)
                seen = _seen(chunk.index + offset, row, shape, thumb)
                cells.add(cells_of(thumb, seen.outline, seen.lips[:20]))
                overlays.show(chunk.index + offset, number, picture, similarity, face.landmarks[crop.OUTLINE, :2])
                bank.show(number, seen, partial(_look, chunk, offset, similarity, store.size))
        if on_frames is not None:
            on_frames(len(stretch.shots))
    return _Seen(rows.array(), points, cells, pts.array()[:, 0], shots.array()[:, 0], time_base, shorter_side, bank, overlays)


def _look(chunk: YuvChunk, offset: int, similarity: NDArray[np.float64], size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """The crop of a face by its similarity, uint8 (S, S, 3), and the same square as finely as the frame shows it, where that is finer."""

    picture, side = chunk.picture(offset), detail_px(similarity, size)
    return crop.take_one(picture, similarity, size), None if side is None else crop.take_one(picture, similarity, side, sharp=True)


class _Rows:
    """A matrix that grows by rows, doubling: no Python object is kept per frame."""

    def __init__(self, width: int, dtype: type = np.float64) -> None:
        self._data: NDArray[Any] = np.zeros((256, width), dtype)
        self._count = 0

    def add(self, row: NDArray[np.float64] | np.int64 | int) -> None:
        if self._count == len(self._data):
            self._data = np.concatenate([self._data, np.zeros_like(self._data)])
        self._data[self._count] = row
        self._count += 1

    def array(self) -> NDArray[Any]:
        return self._data[: self._count]


class _Follower:
    """Gives each face of a frame the number of the track that it continues, within one shot."""

    def __init__(self) -> None:
        self._next = 0
        self._last: dict[int, NDArray[np.float32]] = {}

    def reset(self) -> None:
        self._last = {}

    def track_of(self, face: Face, shot: int) -> int:
        centre, side = (face.box[:2] + face.box[2:]) / 2, float(face.box[3] - face.box[1])
        nearest, number = 0.6, -1
        for known, box in self._last.items():
            distance = float(np.linalg.norm((box[:2] + box[2:]) / 2 - centre)) / max(1.0, side)
            if distance < nearest:
                nearest, number = distance, known
        if number < 0:
            number, self._next = self._next, self._next + 1
        self._last[number] = face.box
        return number


def _describe(frame: int, track: int, face: Face) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is kept of a face in memory (`_PLACE` left open), and its points."""
    row, shape = np.zeros(_COLUMNS), np.empty(POINT_COLUMNS)
    similarity = crop.fit_similarity(face.landmarks)
    row[0], row[1], row[_SIMILARITY] = frame, track, similarity
    row[_HEIGHT] = face.box[3] - face.box[1]
    row[_YAW], row[_PITCH] = pose_of(face.landmarks)
    row[_OPENING] = opening_of(face.landmarks)
    shape[OUTLINE_COLUMNS] = crop.to_unit(face.landmarks[crop.OUTLINE, :2], similarity).ravel()
    shape[LIP_COLUMNS] = crop.to_unit(face.landmarks[LIPS, :2], similarity).ravel()
    return row, shape


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Seen:
    """All faces of a video. rows: float64 (M, _COLUMNS). points, cells: by the place that a row names. pts, shots: of the frames."""

    rows: NDArray[np.float64]
    points: RowFile
    cells: RowFile
    pts: NDArray[np.int64]
    shots: NDArray[np.int32]
    time_base: Fraction
    shorter_side: int
    bank: BankFiller
    overlays: OverlayFinder

    def people(self) -> NDArray[np.int64]:
        """Whose face each row is, int64 (M,)."""
        numbers, where = np.unique(self.rows[:, 1].astype(np.int64), return_inverse=True)
        return np.array([self.bank.person_of(number) for number in numbers.tolist()], np.int64)[where]

    def sightings(self) -> Sightings:
        """The rows as others see them."""
        rows = self.rows
        times_s = self.pts * float(self.time_base)
        return Sightings(rows[:, 0].astype(np.int64), self.people(), rows[:, _SIMILARITY], rows[:, _HEIGHT], rows[:, _OPENING], times_s)


def _meant(seen: _Seen, choice: FaceChoice | None, detector: FaceDetector) -> int | None:
    """The person whom a choice means, None for who is most prominent in each shot. Raises NoFaceFound, UnreadableMedia."""
    if choice is None:
        return None
    if choice.picture is None:
        return seen.sightings().chosen(choice)
    with closing(media.read_planes(Path(choice.picture))) as chunks:
        picture = next(chunks).picture(0)
    detector.reset()
    faces = sorted(detector.detect(picture), key=lambda face: float(face.box[3] - face.box[1]))
    if not faces:
        raise NoFaceFound(f"no face in '{choice.picture}'; give a picture cut out of the video, or a number that lipdub faces shows")
    row, shape = _describe(0, 0, faces[-1])
    person, likeness = seen.bank.most_like(_seen(0, row, shape, crop.take_one(picture, row[_SIMILARITY], THUMB_PX)))
    if likeness < SAME_PICTURE:
        raise NoFaceFound(f"nobody in the video looks as '{choice.picture}' does; give a picture cut out of the video, or a number")
    return person


def _seen(frame: int, row: NDArray[np.float64], shape: NDArray[np.float64], thumb: NDArray[np.uint8]) -> Seen:
    """A face as the bank is shown it. row, shape: as `_describe` gives them. thumb: the small picture of it."""
    return Seen.of(
        frame, shape[LIP_COLUMNS].reshape(-1, 2).astype(np.float32), shape[OUTLINE_COLUMNS].reshape(-1, 2).astype(np.float32),
        row[[_YAW, _PITCH]].astype(np.float32), row[_SIMILARITY].copy(), thumb,
    )  # fmt: skip


def _assemble(seen: _Seen, meant: int | None, limits: FaceLimits) -> FaceTrack:
    rows, points, cells, pts, shots, time_base, bank = (
        seen.rows, seen.points, seen.cells, seen.pts, seen.shots, seen.time_base, seen.bank
    )  # fmt: skip
    whose = seen.people()
    count = len(pts)
    step_s = float(np.median(np.diff(pts))) * float(time_base) if count > 1 else 0.04
    values = np.zeros((count, _COLUMNS))
    status = np.full(count, NO_FACE, np.uint8)
    person = np.full(count, -1, np.int32)
    place = np.full(count, -1, np.int64)
    outline = np.zeros((count, len(crop.OUTLINE), 2), np.float16)
    lips = np.zeros((count, len(LIPS), 2), np.float16)
    usual = float(np.clip(SMALLEST_SHARE * seen.shorter_side, SMALLEST_PX, SMALL_ENOUGH_PX))
    smallest = usual if limits.min_height_px is None else limits.min_height_px
    for first, end in runs(np.asarray(shots, np.int64)):
        low, high = np.searchsorted(rows[:, 0], [first, end])
        here = rows[low:high]
        if meant is not None:
            status[here[:, 0].astype(np.int64)] = OTHERS
            here = here[whose[low:high] == meant]
        if len(here) == 0:
            continue
        followed = _most_prominent(here)
        chosen = _with_returns(here, followed)
        present, between = _bridge(values, chosen, step_s)
        status[present] = DUBBED
        status[present[values[present, _HEIGHT] < smallest]] = TOO_SMALL
        turned = present[np.abs(values[present, _YAW]) > limits.max_yaw_deg]
        status[turned[status[turned] == DUBBED]] = TURNED_AWAY
        place[present] = between[:, 0].astype(np.int64)
        person[present[status[present] == DUBBED]] = bank.person_of(int(followed))
        for start, stop in stretches(present):
            smoothed = smooth_similarity(values[start:stop, _SIMILARITY], step_s)
            at = int(np.searchsorted(present, start))
            here, motion = between[at : at + stop - start], values[start:stop, [_YAW, _PITCH, _OPENING]]
            for now, shape in smooth_points(points, here, values[start:stop, _SIMILARITY], smoothed, motion, step_s):
                where = slice(start + now, start + now + len(shape))
                outline[where] = shape[:, OUTLINE_COLUMNS].reshape(len(shape), -1, 2)
                lips[where] = shape[:, LIP_COLUMNS].reshape(len(shape), -1, 2)
            values[start:stop, _SIMILARITY] = smoothed
    followed = np.unique(person[person >= 0])
    overlays = seen.overlays.before(np.unique(rows[np.isin(whose, followed), 1]).astype(np.int64).tolist())
    for one in followed:
        mine = np.flatnonzero(person == one)
        poses = values[mine][:, [_YAW, _PITCH]].astype(np.float32)
        status[mine[covered(cells, place[mine], poses, partial(_cells_aside, overlays, values[mine][:, _SIMILARITY], mine))]] = COVERED
    pages, references, person, hidden = bank.kept(person, status == COVERED, step_s=step_s)
    status[hidden & (status == DUBBED)] = COVERED
    reference = np.full(count, -1, np.int32)
    usable = drawable(pages, overlays)
    for one in np.unique(pages.person):
        mine = np.flatnonzero((pages.person == one) & usable)
        for start, stop in runs((person == one).astype(np.int64)):
            if person[start] == one:
                reference[start:stop] = references_of(values[start:stop, _YAW], pages, mine)
    return FaceTrack(
        pts=np.asarray(pts, np.int64),
        time_base=time_base,
        status=status,
        shot=np.asarray(shots, np.int32),
        similarity=values[:, _SIMILARITY].copy(),
        outline=outline,
        lips=lips,
        opening=values[:, _OPENING].astype(np.float32),
        pose=values[:, [_YAW, _PITCH]].astype(np.float32),
        strength=_strength(status, step_s),
        person=person,
        reference=reference,
        pages=pages,
        references=references,
        overlays=overlays,
    )


def _cells_aside(overlays: Overlays, similarity: NDArray[np.float64], frames: NDArray[np.int64], at: int) -> NDArray[np.bool_] | None:
    """Which numbers of the cells of the face in frame `frames[at]`, aligned by `similarity[at]`, lie under an overlay."""
    there = overlays.at(int(frames[at]))
    return cells_under(over_crop(there, similarity[at], 4 * THUMB_PX)) if there else None


def _most_prominent(rows: NDArray[np.float64]) -> float:
    """Number of the track with the largest sum of face areas: large, and there for long."""
    numbers = np.unique(rows[:, 1])
    return float(max(numbers, key=lambda number: float((rows[rows[:, 1] == number, _HEIGHT] ** 2).sum())))


def _with_returns(rows: NDArray[np.float64], person: float) -> NDArray[np.float64]:
    """The rows of the track `person`, and of others of the shot that can be the same person come back: never there at the same time,
    and of about the same size. Ordered by frame."""
    mine = rows[rows[:, 1] == person]
    for number in np.unique(rows[:, 1]):
        other = rows[rows[:, 1] == number]
        ratio = float(np.median(other[:, _HEIGHT]) / np.median(mine[:, _HEIGHT]))
        if number != person and 1 / RETURN_RATIO < ratio < RETURN_RATIO and not np.isin(other[:, 0], mine[:, 0]).any():
            mine = np.concatenate([mine, other])
    return mine[np.argsort(mine[:, 0])]


def _bridge(values: NDArray[np.float64], chosen: NDArray[np.float64], step_s: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Write the chosen rows into `values`, interpolate short gaps; give the frames that now have a face, (n,) in order, and for each of
    them, (n, 3), the places of the two faces that it lies between and the share of the second one."""
    frames = chosen[:, 0].astype(np.int64)
    frames, unique = np.unique(frames, return_index=True)
    chosen = chosen[unique]
    values[frames] = chosen
    present = [frames]
    between = [np.column_stack([chosen[:, _PLACE], chosen[:, _PLACE], np.zeros(len(chosen))])]
    longest = max(1, round(BRIDGE_S / step_s))
    gaps = np.diff(frames) - 1
    for before in np.flatnonzero((gaps > 0) & (gaps <= longest)):
        gap, one, other = int(gaps[before]), chosen[before], chosen[before + 1]
        share = (np.arange(1, gap + 1) / (gap + 1))[:, None]
        values[frames[before] + 1 : frames[before + 1]] = (1 - share) * one + share * other
        present.append(np.arange(frames[before] + 1, frames[before + 1]))
        between.append(np.column_stack([np.full(gap, one[_PLACE]), np.full(gap, other[_PLACE]), share]))
    joined = np.concatenate(present)
    order = np.argsort(joined)
    return joined[order], np.concatenate(between)[order]


def _strength(status: NDArray[np.uint8], step_s: float) -> NDArray[np.float32]:
    """1 inside dubbed stretches, rising from 0 over ``FADE_S`` beside frames that are passed through; the clip's ends do not fade."""
    strength = (status == DUBBED).astype(np.float32)
    steps = max(1, round(FADE_S / step_s))
    for first, end in runs((status == DUBBED).astype(np.int64)):
        if status[first] != DUBBED:
            continue
        along = np.arange(end - first)
        rise = np.ones(end - first)
        if first > 0:
            rise = np.minimum(rise, (along + 1) / (steps + 1))
        if end < len(status):
            rise = np.minimum(rise, (end - first - along) / (steps + 1))
        strength[first:end] = rise
    return strength
