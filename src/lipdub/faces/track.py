"""One person's face over a whole video, as a record and as a file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lipdub.faces import crop
from lipdub.faces.landmarks import LIPS
from lipdub.records import Span
from lipdub.references.store import MOST_JPEG_BYTES, ReferenceStore

ANALYSIS_VERSION = 3
"""Part of the analysis cache's keys. Raise it with every change here, in ``faces`` or in ``crop`` that gives a video another track."""

DUBBED, NO_FACE, TOO_SMALL, TURNED_AWAY = 0, 1, 2, 3
WHY = {NO_FACE: "no face", TOO_SMALL: "face too small", TURNED_AWAY: "face turned away"}


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
            for first, end in runs(self.why.astype(np.int64))
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


def runs(labels: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open stretches of equal labels."""
    if len(labels) == 0:
        return
    edges = np.flatnonzero(np.diff(labels)) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(labels)], strict=True)


def stretches(frames: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open stretches of consecutive frame numbers."""
    for first, end in runs(frames - np.arange(len(frames))):
        yield int(frames[first]), int(frames[end - 1]) + 1
