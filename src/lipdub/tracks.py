"""One person's face over a whole video: follow, cut at shots, choose, bridge gaps, smooth both ways, pick references.

``analyse`` reads the video once, forward, and keeps about 300 bytes a frame (some 2 kB while the track is put together); reference
pictures lie in an unnamed temporary file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Generator as TypeGenerator
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from queue import Queue
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import crop
from lipdub.faces import FaceDetector
from lipdub.picture import Picture, YuvChunk, picture_of
from lipdub.points import PointStore
from lipdub.records import Face, FrameChunk, Span
from lipdub.references import MOST_JPEG_BYTES, ReferenceStore, detail_px
from lipdub.stages import spread

ANALYSIS_VERSION = 3
"""Part of the analysis cache's keys. Raise it with every change here, in ``faces`` or in ``crop`` that gives a video another track."""

DUBBED, NO_FACE, TOO_SMALL, TURNED_AWAY = 0, 1, 2, 3
WHY = {NO_FACE: "no face", TOO_SMALL: "face too small", TURNED_AWAY: "face turned away"}

_OUTER_RING = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409)
_INNER_RING = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415)
LIPS = np.array([*_OUTER_RING, *_INNER_RING], np.int64)
"""The 40 lip points of the face mesh: outer ring, then inner ring."""

CUT_DIFFERENCE = 0.11
"""Mean absolute difference of two small grey pictures (0 to 1) above which a shot may end here."""
CUT_CORRELATION = 0.75
"""And the correlation of the two pictures must be below this: a flash or a fade is no cut."""
BRIDGE_S = 0.4
"""Gaps up to this long are bridged by interpolation."""
SMOOTH_S = 0.05
"""Sigma of the zero-phase smoothing of the alignment."""
OUTLINE_SMOOTH_S = 0.6
"""Sigma for the mask outline: slow, so that the mask does not move with the source's own speech."""
FADE_S = 0.16
"""A dubbed stretch fades in and out over this time beside frames that are passed through."""
TURNED_DEG = 50.0
SMALLEST_SHARE, SMALLEST_PX, SMALL_ENOUGH_PX = 0.075, 40.0, 80.0
"""A face is too small below this share of the picture's shorter side, but never below 40 px only, and always fine at 80 px."""
REFERENCE_BIN_DEG = 15.0
REFERENCE_HOLD = 0.8
"""A reference is kept until the head is this many bins away from its pose; half a bin would change it at every edge."""
REFERENCE_OPENING = 0.08
"""References may be more open than the person's most closed one by this."""
STRETCH_FRAMES, STRETCH_BYTES = 48, 48 * 2**20
"""Several detectors take turns at about this many frames: four searches' worth, so that beginning anew costs little."""
RETURN_RATIO = 1.5
"""Who was lost and comes back elsewhere in the shot has changed size by less than this."""

_SIMILARITY, _HEIGHT, _YAW, _PITCH, _OPENING, _PLACE = slice(2, 6), 6, 7, 8, 9, 10
"""Columns of what is kept in memory of each face: frame, track, and these; `_PLACE` is its number in the store of points."""
_COLUMNS = _PLACE + 1
_OUTLINE = slice(0, 2 * len(crop.OUTLINE))
_LIPS = slice(_OUTLINE.stop, _OUTLINE.stop + 2 * len(LIPS))
"""Columns of its points."""
BLOCK_FRAMES = 4096
"""Points are smoothed in blocks of this many frames."""


class TrackDamaged(ValueError):
    """A file holds no whole face track. Internal: whoever keeps tracks makes them again."""


@dataclass(frozen=True, slots=True, repr=False)
class FaceTrack:
    """One person's face in every frame of a video; N frames.

    pts: int64 (N,) ticks of time_base. why: uint8 (N,), ``DUBBED`` or the reason for passing the frame through. shot: int32 (N,).
    similarity: float64 (N, 4), smoothed frame-to-unit transform. outline: float16 (N, P, 2) and lips: float16 (N, 40, 2) in unit crop
    coordinates. opening: float32 (N,), inner-lip distance over outer-eye-corner distance. pose: float32 (N, 2) yaw and pitch in
    degrees. strength: float32 (N,) in [0, 1], how far a frame is redrawn. reference: int32 (N,), number in `references`, -1
    where not dubbed.
    """

    pts: NDArray[np.int64]
    time_base: Fraction
    why: NDArray[np.uint8]
    shot: NDArray[np.int32]
    similarity: NDArray[np.float64]
    outline: NDArray[np.float16]
    lips: NDArray[np.float16]
    opening: NDArray[np.float32]
    pose: NDArray[np.float32]
    strength: NDArray[np.float32]
    reference: NDArray[np.int32]
    references: ReferenceStore

    def __post_init__(self) -> None:
        for name in ("why", "shot", "similarity", "outline", "lips", "opening", "pose", "strength", "reference"):
            if len(getattr(self, name)) != len(self.pts):
                raise ValueError(f"{name} must have one row per frame, got {len(getattr(self, name))} for {len(self.pts)}")

    def __len__(self) -> int:
        return len(self.pts)

    def __repr__(self) -> str:
        return f"FaceTrack(frames={len(self)}, dubbed={int((self.why == DUBBED).sum())}, references={self.references.count})"

    @property
    def times_s(self) -> NDArray[np.float64]:
        """Presentation times in seconds, float64 (N,)."""
        return self.pts * float(self.time_base)

    def spans(self) -> tuple[Span, ...]:
        """Stretches of frames that are passed through, in order."""
        times = self.times_s
        return tuple(
            Span(first, end, float(times[first]), float(times[end - 1]), WHY[int(self.why[first])])
            for first, end in _runs(self.why.astype(np.int64))
            if self.why[first] != DUBBED
        )

    def save(self, file: Path | IO[bytes]) -> None:
        """Write the track and its references as one ``.npz``; the references one by one, however many there are. Their details are the
        JPEG files one after another, uint8 (bytes,), and where each ends, int64 (count,): there is none where that is the end before."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            numerator, denominator = self.time_base.as_integer_ratio()
            _write_rows(archive, "time_base", np.dtype(np.int64), (2,), [np.array([numerator, denominator])])
            for name, (dtype, tail) in _ROWS.items():
                _write_rows(archive, name, dtype, (len(self), *tail), [getattr(self, name)])
            store = self.references
            pictures = (store.pixels(number) for number in range(store.count))
            _write_rows(archive, "references", np.dtype(np.uint8), (store.count, store.size, store.size, 3), pictures)
            ends = np.cumsum(store.jpeg_bytes())
            _write_rows(archive, "detail_ends", np.dtype(np.int64), ends.shape, [ends])
            jpegs = (np.frombuffer(store.jpeg(number), np.uint8) for number in range(store.count))
            # JPEG does not get smaller by being packed again.
            _write_rows(archive, "details", np.dtype(np.uint8), (int(ends[-1]) if len(ends) else 0,), jpegs, packed=False)

    @classmethod
    def load(cls, file: Path | IO[bytes]) -> FaceTrack:
        """Read what ``save`` wrote, and check all of it: sizes, types, checksums, and that the values make sense together.

        Raises TrackDamaged: anything else than a whole track, whatever it holds; nothing is unpickled. OSError: no such file.
        """
        store: ReferenceStore | None = None
        try:
            with zipfile.ZipFile(file) as archive:
                rows = {name: np.concatenate(list(_read_rows(archive, name, dtype, tail))) for name, (dtype, tail) in _ROWS.items()}
                ((numerator, denominator),) = _read_rows(archive, "time_base", np.dtype(np.int64), ())
                size = _shape_of(archive, "references")[1]
                store = ReferenceStore(size)
                for piece in _read_rows(archive, "references", np.dtype(np.uint8), (size, size, 3)):
                    for picture in piece:
                        store.add(picture)
                ends = np.concatenate(list(_read_rows(archive, "detail_ends", np.dtype(np.int64), ())))
                for number, jpeg in enumerate(_parts(_read_rows(archive, "details", np.dtype(np.uint8), ()), ends, store.count)):
                    if jpeg:
                        store.attach(number, jpeg)
            track = cls(**rows, time_base=Fraction(int(numerator), int(denominator)), references=store)
            track._require_sense()
        except OSError:
            _close(store)
            raise
        except Exception as error:  # a damaged archive makes zipfile, zlib and numpy raise almost anything
            _close(store)
            raise TrackDamaged(f"no whole face track ({type(error).__name__}: {error})") from error
        except BaseException:
            _close(store)
            raise
        return track

    def _require_sense(self) -> None:
        """Raise ValueError unless the values can have come from an analysis."""
        dubbed = self.why == DUBBED
        for holds, what in (
            (len(self) > 0, "no frames"),
            (self.time_base > 0, f"time base {self.time_base}"),
            (bool((np.diff(self.pts) > 0).all()), "timestamps that do not increase"),
            (bool(np.isin(self.why, [DUBBED, *WHY]).all()), "unknown reasons for passing a frame through"),
            (bool((np.diff(self.shot) >= 0).all()) and int(self.shot[0]) >= 0, "shots out of order"),
            (all(np.isfinite(getattr(self, name)).all() for name, (dtype, _) in _ROWS.items() if dtype.kind == "f"), "no finite numbers"),
            (bool((np.abs(self.similarity[dubbed, :2]).max(axis=1, initial=0) > 0).all()), "a face without a size"),
            (bool(((self.strength >= 0) & (self.strength <= 1)).all()), "strengths outside 0 to 1"),
            (bool((self.reference >= -1).all() and (self.reference < self.references.count).all()), "references that are not there"),
            (bool((self.reference[dubbed] >= 0).all()), "dubbed frames without a reference"),
        ):
            if not holds:
                raise ValueError(what)


_ROWS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "pts": (np.dtype(np.int64), ()),
    "why": (np.dtype(np.uint8), ()),
    "shot": (np.dtype(np.int32), ()),
    "similarity": (np.dtype(np.float64), (4,)),
    "outline": (np.dtype(np.float16), (len(crop.OUTLINE), 2)),
    "lips": (np.dtype(np.float16), (len(LIPS), 2)),
    "opening": (np.dtype(np.float32), ()),
    "pose": (np.dtype(np.float32), (2,)),
    "strength": (np.dtype(np.float32), ()),
    "reference": (np.dtype(np.int32), ()),
}
"""What a ``FaceTrack`` has a row per frame of: type, and shape of a row."""

_PIECE_BYTES = 2**20
_NPY: Any = np.lib.format  # has no types


def _write_rows(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    pieces: Iterable[NDArray[Any]],
    *,
    packed: bool = True,
) -> None:
    """One array of the ``.npz``, from pieces that hold its values in order."""
    # A ZipInfo of its own says how the member is stored; by default as it is.
    with archive.open(f"{name}.npy" if packed else zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
        _NPY.write_array_header_1_0(member, header)
        for piece in pieces:
            member.write(np.ascontiguousarray(piece, dtype.newbyteorder("<")).tobytes())


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    if _NPY.read_magic(member) != (1, 0):
        raise ValueError("another array format")
    shape, fortran, dtype = _NPY.read_array_header_1_0(member)
    return shape, fortran, dtype


def _shape_of(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(f"{name}.npy") as member:
        return _header(member)[0]


def _read_rows(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], tail: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """The rows of one array in pieces of about 1 MiB, at least one piece; its checksum has been looked at when the last one is out.

    Raises ValueError: another type or shape than (N, `*tail`), or a member of another length than it says.
    """
    with archive.open(f"{name}.npy") as member:
        shape, fortran, found = _header(member)
        if fortran or found != dtype.newbyteorder("<") or shape[1:] != tail or len(shape) != 1 + len(tail):
            raise ValueError(f"{name} is {found} {shape}")
        row_bytes = dtype.itemsize * int(np.prod(tail, dtype=np.int64))
        if row_bytes == 0:
            raise ValueError(f"{name} has rows of no size")
        at_once, left = max(1, _PIECE_BYTES // row_bytes), shape[0]
        while True:
            rows = min(left, at_once)
            data = member.read(rows * row_bytes)
            if len(data) != rows * row_bytes:
                raise ValueError(f"{name} is cut off")
            left -= rows
            if left == 0 and member.read(1):  # the read past the end is what makes zipfile compare the checksum
                raise ValueError(f"{name} is longer than it says")
            yield np.frombuffer(data, found).reshape(rows, *tail).astype(dtype)
            if left == 0:
                return


def _parts(pieces: Iterator[NDArray[np.uint8]], ends: NDArray[np.int64], count: int) -> Iterator[bytes]:
    """`count` runs of bytes that follow each other in `pieces`, by where each of them ends: int64 (count,).

    Raises ValueError: ends that make no sense, or that are not those of the pieces.
    """
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)]
    if len(ends) != count or (ends < starts).any() or (ends - starts > MOST_JPEG_BYTES).any():
        raise ValueError("details that end out of order")
    waiting, at = b"", 0
    for length in (ends - starts).tolist():
        while len(waiting) - at < length:
            piece = next(pieces, None)
            if piece is None:
                raise ValueError("details are fewer than they say")
            waiting, at = waiting[at:] + piece.tobytes(), 0
        yield waiting[at : at + length]
        at += length
    if at < len(waiting) or any(len(piece) for piece in pieces):
        raise ValueError("details are more than they say")


def _close(store: ReferenceStore | None) -> None:
    if store is not None:
        store.close()


def opening_of(landmarks: NDArray[np.float32]) -> float:
    """Mouth opening: distance of the inner lips (13, 14) over the distance of the outer eye corners (33, 263)."""
    lips = float(np.linalg.norm(landmarks[13, :2] - landmarks[14, :2]))
    return lips / max(1e-6, float(np.linalg.norm(landmarks[33, :2] - landmarks[263, :2])))


def pose_of(landmarks: NDArray[np.float32]) -> tuple[float, float]:
    """Yaw and pitch in degrees from the mesh's depth: cheek to cheek, and forehead to under the nose."""
    across, down = landmarks[454] - landmarks[234], landmarks[2] - landmarks[10]
    return float(np.degrees(np.arctan2(across[2], across[0]))), float(np.degrees(np.arctan2(down[2], down[1])))


def analyse(
    chunks: Iterable[FrameChunk | YuvChunk],
    detector: FaceDetector,
    *,
    size: int,
    on_frames: Callable[[int], None] | None = None,
    more: Sequence[FaceDetector] = (),
) -> FaceTrack:
    """Follow all faces through `chunks`, choose one person and smooth: the ``FaceTrack`` of every frame.

    size: side of the reference crops in px. on_frames: told how many frames each step took. more: further detectors; the video is then
    watched in stretches side by side, each of which begins with a search of its own, so that the landmarks differ by a fraction of a px.
    """
    store, points = ReferenceStore(size), PointStore(_LIPS.stop)
    try:
        # However it ends, no thread looks through a detector any more when this returns.
        with closing(_watched(chunks, [detector, *more])) as stretches:
            return _analyse(stretches, store, points, on_frames)
    except BaseException:
        store.close()
        raise
    finally:
        points.close()


@dataclass(frozen=True, slots=True, repr=False)
class _Stretch:
    """Consecutive frames that one detector watches: their chunks, the number of each frame's shot, and, once it has, the faces."""

    chunks: list[FrameChunk | YuvChunk]
    shots: list[int]
    faces: list[list[Face]] = field(default_factory=list)

    def frames(self) -> Iterator[tuple[FrameChunk | YuvChunk, int]]:
        """Every frame as its chunk and its place in it."""
        return ((chunk, offset) for chunk in self.chunks for offset in range(len(chunk)))


def _watched(chunks: Iterable[FrameChunk | YuvChunk], detectors: list[FaceDetector]) -> TypeGenerator[_Stretch, None, None]:
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


def _stretches_of(chunks: Iterable[FrameChunk | YuvChunk], *, frames: int) -> Iterator[_Stretch]:
    """Whole chunks, gathered until they hold that many frames or take much memory, with the shots numbered."""
    cutter = _Cutter()
    held: list[FrameChunk | YuvChunk] = []
    shots: list[int] = []
    for chunk in chunks:
        held.append(chunk)
        for offset in range(len(chunk)):
            cutter.is_cut(picture_of(chunk, offset))
            shots.append(cutter.shot)
        if len(shots) >= frames or sum(_bytes(one) for one in held) >= STRETCH_BYTES:
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
        stretch.faces.append(detector.detect(picture_of(chunk, offset)))


def _bytes(chunk: FrameChunk | YuvChunk) -> int:
    return chunk.data.nbytes if isinstance(chunk, YuvChunk) else chunk.pixels.nbytes


def _analyse(
    stretches: Iterable[_Stretch], store: ReferenceStore, points: PointStore, on_frames: Callable[[int], None] | None
) -> FaceTrack:
    rows, pts, shots = _Rows(_COLUMNS), _Rows(1, np.int64), _Rows(1, np.int32)
    candidates: dict[tuple[int, int], tuple[float, int]] = {}  # (track, yaw bin) -> (opening, number in the store)
    follower = _Follower()
    time_base, shorter_side, shot = Fraction(1, 25), 1, 0
    for stretch in stretches:
        for (chunk, offset), here, faces in zip(stretch.frames(), stretch.shots, stretch.faces, strict=True):
            time_base = chunk.time_base
            picture = picture_of(chunk, offset)
            shorter_side = min(picture.height, picture.width)
            if here != shot:
                follower.reset()
                shot = here
            pts.add(chunk.pts[offset])
            shots.add(shot)
            for face in faces:
                number = follower.track_of(face, shot)
                row, shape = _describe(chunk.index + offset, number, face)
                row[_PLACE] = points.add(shape)
                rows.add(row)
                key = (number, round(row[_YAW] / REFERENCE_BIN_DEG))
                best = candidates.get(key)
                if best is None or row[_OPENING] < 0.9 * best[0]:
                    pixels, detail = _look(chunk, offset, row[_SIMILARITY], store.size)
                    if best is None:
                        candidates[key] = (float(row[_OPENING]), store.add(pixels, detail))
                    else:
                        store.replace(best[1], pixels, detail)
                        candidates[key] = (float(row[_OPENING]), best[1])
        if on_frames is not None:
            on_frames(len(stretch.shots))
    return _assemble(rows.array(), points, pts.array()[:, 0], shots.array()[:, 0], time_base, shorter_side, store, candidates)


def _look(
    chunk: FrameChunk | YuvChunk, offset: int, similarity: NDArray[np.float64], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """The crop of a face by its similarity, uint8 (S, S, 3), and the same square as finely as the frame shows it, where that is finer."""

    def taken(side: int, *, sharp: bool) -> NDArray[np.uint8]:
        return crop.take(chunk, np.array([offset]), similarity[None], np.empty((1, 0, 2), np.float32), side, sharp=sharp).pixels[0]

    side = detail_px(similarity, size)
    return taken(size, sharp=False), None if side is None else taken(side, sharp=True)


def repeat_still(track: FaceTrack) -> FaceTrack:
    """The one-frame track of a photo with full strength (a photo has no edges to fade at)."""
    return replace(track, strength=(track.why == DUBBED).astype(np.float32))


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


class _Cutter:
    """Numbers the shots: a cut is a frame that differs much from the one before and does not look like it."""

    def __init__(self) -> None:
        self.shot = 0
        self._previous: NDArray[np.float32] | None = None

    def is_cut(self, picture: Picture) -> bool:
        grey = picture.grey(max(1, min(picture.height, picture.width) // 90))
        small = np.asarray(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA), np.float32)
        previous, self._previous = self._previous, small
        if previous is None or float(np.abs(small - previous).mean()) < CUT_DIFFERENCE:
            return False
        one, other = small - small.mean(), previous - previous.mean()
        scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
        if scale > 1e-6 and float((one * other).sum()) / scale > CUT_CORRELATION:
            return False
        self.shot += 1
        return True


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
    row, shape = np.zeros(_COLUMNS), np.empty(_LIPS.stop)
    similarity = crop.fit_similarity(face.landmarks)
    row[0], row[1], row[_SIMILARITY] = frame, track, similarity
    row[_HEIGHT] = face.box[3] - face.box[1]
    row[_YAW], row[_PITCH] = pose_of(face.landmarks)
    row[_OPENING] = opening_of(face.landmarks)
    shape[_OUTLINE] = crop.to_unit(face.landmarks[crop.OUTLINE, :2], similarity).ravel()
    shape[_LIPS] = crop.to_unit(face.landmarks[LIPS, :2], similarity).ravel()
    return row, shape


def _assemble(
    rows: NDArray[np.float64],
    points: PointStore,
    pts: NDArray[np.int64],
    shots: NDArray[np.int32],
    time_base: Fraction,
    shorter_side: int,
    store: ReferenceStore,
    candidates: dict[tuple[int, int], tuple[float, int]],
) -> FaceTrack:
    count = len(pts)
    step_s = float(np.median(np.diff(pts))) * float(time_base) if count > 1 else 0.04
    values = np.zeros((count, _COLUMNS))
    why = np.full(count, NO_FACE, np.uint8)
    reference = np.full(count, -1, np.int32)
    outline = np.zeros((count, len(crop.OUTLINE), 2), np.float16)
    lips = np.zeros((count, len(LIPS), 2), np.float16)
    smallest = float(np.clip(SMALLEST_SHARE * shorter_side, SMALLEST_PX, SMALL_ENOUGH_PX))
    for first, end in _runs(np.asarray(shots, np.int64)):
        low, high = np.searchsorted(rows[:, 0], [first, end])
        here = rows[low:high]
        if len(here) == 0:
            continue
        person = _most_prominent(here)
        chosen = _with_returns(here, person)
        present, between = _bridge(values, chosen, step_s)
        why[present] = DUBBED
        why[present[values[present, _HEIGHT] < smallest]] = TOO_SMALL
        turned = present[np.abs(values[present, _YAW]) > TURNED_DEG]
        why[turned[why[turned] == DUBBED]] = TURNED_AWAY
        dubbed = present[why[present] == DUBBED]
        if len(dubbed):
            reference[dubbed] = _references_of(int(person), values[dubbed, _YAW], candidates)
        for start, stop in _stretches(present):
            smoothed = _smooth_similarity(values[start:stop, _SIMILARITY], step_s)
            at = int(np.searchsorted(present, start))
            for now, shape in _smooth_points(points, between[at : at + stop - start], values[start:stop, _SIMILARITY], smoothed, step_s):
                where = slice(start + now, start + now + len(shape))
                outline[where] = shape[:, _OUTLINE].reshape(len(shape), -1, 2)
                lips[where] = shape[:, _LIPS].reshape(len(shape), -1, 2)
            values[start:stop, _SIMILARITY] = smoothed
    return FaceTrack(
        pts=np.asarray(pts, np.int64),
        time_base=time_base,
        why=why,
        shot=np.asarray(shots, np.int32),
        similarity=values[:, _SIMILARITY].copy(),
        outline=outline,
        lips=lips,
        opening=values[:, _OPENING].astype(np.float32),
        pose=values[:, [_YAW, _PITCH]].astype(np.float32),
        strength=_strength(why, step_s),
        reference=reference,
        references=store,
    )


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


def _smooth_similarity(similarity: NDArray[np.float64], step_s: float) -> NDArray[np.float64]:
    """The alignment (n, 4) of one unbroken stretch, smoothed in what is geometric: where the crop's centre lies, its scale, its angle."""
    a, b = similarity.T[:2]
    centre = crop.unit_to_frame(similarity) @ np.array([0.5, 0.5, 1.0])
    geometry = np.column_stack([centre, 0.5 * np.log(a * a + b * b), np.unwrap(np.arctan2(b, a))])
    geometry = smooth(geometry, SMOOTH_S / step_s, odd=True)
    scale, angle = np.exp(geometry[:, 2]), geometry[:, 3]
    new = np.column_stack([scale * np.cos(angle), scale * np.sin(angle), np.zeros((len(a), 2))])
    rotated = np.column_stack(
        [new[:, 0] * geometry[:, 0] - new[:, 1] * geometry[:, 1], new[:, 1] * geometry[:, 0] + new[:, 0] * geometry[:, 1]]
    )
    new[:, 2:] = 0.5 - rotated
    return new


def _smooth_points(
    points: PointStore, between: NDArray[np.float64], similarity: NDArray[np.float64], smoothed: NDArray[np.float64], step_s: float
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Outline and lips of one unbroken stretch in its smoothed alignment, the outline smoothed, block by block: the first frame of each,
    counted from the stretch's, and its points (n, _LIPS.stop). between: as ``_bridge`` has it."""
    sigma = OUTLINE_SMOOTH_S / step_s
    margin = int(np.ceil(3 * sigma))
    for first in range(0, len(between), BLOCK_FRAMES):
        end = min(len(between), first + BLOCK_FRAMES)
        low, high = max(0, first - margin), min(len(between), end + margin)
        places, share = between[low:high, :2].astype(np.int64), between[low:high, 2:]
        shape = (1 - share) * points.rows(places[:, 0]) + share * points.rows(places[:, 1])
        to_frame = crop.unit_to_frame(similarity[low:high])
        new = smoothed[low:high]
        matrix = np.stack([np.stack([new[:, 0], -new[:, 1]], 1), np.stack([new[:, 1], new[:, 0]], 1)], 1)
        in_frame = np.einsum("nij,npj->npi", to_frame[:, :, :2], shape.reshape(len(shape), -1, 2)) + to_frame[:, None, :, 2]
        shape = (np.einsum("nij,npj->npi", matrix, in_frame) + new[:, None, 2:]).reshape(len(shape), -1)
        shape[:, _OUTLINE] = smooth(shape[:, _OUTLINE], sigma, odd=False)
        yield first, shape[first - low : len(shape) - (high - end)]


def smooth(values: NDArray[np.float64], sigma: float, *, odd: bool) -> NDArray[np.float64]:
    """Zero-phase Gaussian smoothing along the first axis, `sigma` in rows. At the ends the values are mirrored, `odd` about the
    end value (a steady motion stays one), else evenly."""
    reach = min(len(values) - 1, int(np.ceil(3 * sigma)))
    if sigma <= 0 or reach < 1:
        return values.copy()
    padded = np.pad(values, [(reach, reach)] + [(0, 0)] * (values.ndim - 1), mode="reflect", reflect_type="odd" if odd else "even")
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    result = np.zeros_like(values)
    for offset, weight in enumerate(kernel):
        result += weight * padded[offset : offset + len(values)]
    return result


def _references_of(track: int, yaws: NDArray[np.float64], candidates: dict[tuple[int, int], tuple[float, int]]) -> NDArray[np.int32]:
    """The reference of each frame, int32 (n,): the most closed mouth of about the frame's own pose.

    It changes only when the head has turned well beyond the pose of the one in use, so that the texture does not flicker; poses in
    which the mouth was never about as closed as at its best are left out.
    """
    known = {pose: found for (owner, pose), found in candidates.items() if owner == track}
    closed = min(opening for opening, _ in known.values())
    usable = {pose: number for pose, (opening, number) in known.items() if opening <= closed + REFERENCE_OPENING}
    poses = np.array(sorted(usable))
    nearest = poses[np.abs(yaws[:, None] / REFERENCE_BIN_DEG - poses[None]).argmin(axis=1)]
    chosen = np.empty(len(yaws), np.int32)
    pose = int(nearest[0])
    for frame, yaw in enumerate(yaws):
        if abs(yaw / REFERENCE_BIN_DEG - pose) > REFERENCE_HOLD:
            pose = int(nearest[frame])
        chosen[frame] = usable[pose]
    return chosen


def _strength(why: NDArray[np.uint8], step_s: float) -> NDArray[np.float32]:
    """1 inside dubbed stretches, rising from 0 over ``FADE_S`` beside frames that are passed through; the clip's ends do not fade."""
    strength = (why == DUBBED).astype(np.float32)
    steps = max(1, round(FADE_S / step_s))
    for first, end in _runs((why == DUBBED).astype(np.int64)):
        if why[first] != DUBBED:
            continue
        along = np.arange(end - first)
        rise = np.ones(end - first)
        if first > 0:
            rise = np.minimum(rise, (along + 1) / (steps + 1))
        if end < len(why):
            rise = np.minimum(rise, (end - first - along) / (steps + 1))
        strength[first:end] = rise
    return strength


def _runs(labels: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open stretches of equal labels."""
    if len(labels) == 0:
        return
    edges = np.flatnonzero(np.diff(labels)) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(labels)], strict=True)


def _stretches(frames: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open stretches of consecutive frame numbers."""
    for first, end in _runs(frames - np.arange(len(frames))):
        yield int(frames[first]), int(frames[end - 1]) + 1
