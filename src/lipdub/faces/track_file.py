"""A face track as a file: one ``.npz`` that numpy reads as well, written and read piece by piece so that memory stays small."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lipdub.faces import crop
from lipdub.faces.landmarks import LIPS
from lipdub.faces.overlays import SPAN_NUMBERS, Overlays
from lipdub.faces.track import DUBBED, WHY, FaceTrack
from lipdub.references.pages import PAGE_ROWS, Pages
from lipdub.references.store import MOST_JPEG_BYTES, ReferenceStore

_ROWS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "pts": (np.dtype(np.int64), ()),
    "status": (np.dtype(np.uint8), ()),
    "shot": (np.dtype(np.int32), ()),
    "similarity": (np.dtype(np.float64), (4,)),
    "outline": (np.dtype(np.float16), (len(crop.OUTLINE), 2)),
    "lips": (np.dtype(np.float16), (len(LIPS), 2)),
    "opening": (np.dtype(np.float32), ()),
    "pose": (np.dtype(np.float32), (2,)),
    "strength": (np.dtype(np.float32), ()),
    "person": (np.dtype(np.int32), ()),
    "reference": (np.dtype(np.int32), ()),
}
"""What a ``FaceTrack`` has a row per frame of: type, and shape of a row."""

_PIECE_BYTES = 2**20
_NPY: Any = np.lib.format  # has no types


class TrackDamaged(ValueError):
    """A file holds no whole face track. Internal: whoever keeps tracks makes them again."""


def write_track(track: FaceTrack, file: Path | IO[bytes]) -> None:
    """Write the track and its references, one by one, as one ``.npz``: the arrays of ``FaceTrack`` under their names, and

    * time_base: int64 (2,), numerator and denominator.
    * page_person, page_frame, ...: the arrays of its ``Pages``.
    * overlay_spans, overlay_bits: the arrays of its ``Overlays``.
    * references: uint8 (count, S, S, 3).
    * details: uint8 (bytes,), the JPEG files of the references one after another.
    * detail_ends: int64 (count,), where each JPEG ends; a reference without one ends where the one before does.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        numerator, denominator = track.time_base.as_integer_ratio()
        _write_rows(archive, "time_base", np.dtype(np.int64), (2,), [np.array([numerator, denominator])])
        for name, (dtype, tail) in _ROWS.items():
            _write_rows(archive, name, dtype, (len(track), *tail), [getattr(track, name)])
        for name, (dtype, tail) in PAGE_ROWS.items():
            _write_rows(archive, f"page_{name}", dtype, (len(track.pages), *tail), [getattr(track.pages, name)])
        spans, bits = track.overlays.spans, track.overlays.bits
        _write_rows(archive, "overlay_spans", np.dtype(np.int64), spans.shape, [spans])
        _write_rows(archive, "overlay_bits", np.dtype(np.uint8), bits.shape, [bits])
        store = track.references
        pictures = (store.pixels(number) for number in range(store.count))
        _write_rows(archive, "references", np.dtype(np.uint8), (store.count, store.size, store.size, 3), pictures)
        ends = np.cumsum(store.jpeg_bytes())
        _write_rows(archive, "detail_ends", np.dtype(np.int64), ends.shape, [ends])
        jpegs = (np.frombuffer(store.jpeg(number), np.uint8) for number in range(store.count))
        # JPEG does not get smaller by being packed again.
        _write_rows(archive, "details", np.dtype(np.uint8), (int(ends[-1]) if len(ends) else 0,), jpegs, packed=False)


def read_track(file: Path | IO[bytes]) -> FaceTrack:
    """Read what ``write_track`` wrote, and check all of it: sizes, types, checksums, and that the values make sense together.

    Raises TrackDamaged: anything else than a whole track, whatever it holds; nothing is unpickled. OSError: no such file.
    """
    with ExitStack() as on_error:
        try:
            return _read(file, on_error)
        except OSError:
            raise
        except Exception as error:  # a damaged archive makes zipfile, zlib and numpy raise almost anything
            raise TrackDamaged(f"no whole face track ({type(error).__name__}: {error})") from error


def _read(file: Path | IO[bytes], on_error: ExitStack) -> FaceTrack:
    """The track, with what is to be closed unless all of it is whole left on `on_error`."""
    with zipfile.ZipFile(file) as archive:
        rows = {name: np.concatenate(list(_read_rows(archive, name, dtype, tail))) for name, (dtype, tail) in _ROWS.items()}
        pages = Pages(*(np.concatenate(list(_read_rows(archive, f"page_{name}", *row))) for name, row in PAGE_ROWS.items()))
        spans = np.concatenate(list(_read_rows(archive, "overlay_spans", np.dtype(np.int64), (SPAN_NUMBERS,))))
        overlays = Overlays(spans, np.concatenate(list(_read_rows(archive, "overlay_bits", np.dtype(np.uint8), ()))))
        ((numerator, denominator),) = _read_rows(archive, "time_base", np.dtype(np.int64), ())
        size = _shape_of(archive, "references")[1]
        store = ReferenceStore(size)
        on_error.callback(store.close)
        for piece in _read_rows(archive, "references", np.dtype(np.uint8), (size, size, 3)):
            for picture in piece:
                store.add(picture)
        ends = np.concatenate(list(_read_rows(archive, "detail_ends", np.dtype(np.int64), ())))
        for number, jpeg in enumerate(_parts(_read_rows(archive, "details", np.dtype(np.uint8), ()), ends, store.count)):
            if jpeg:
                store.attach(number, jpeg)
    time_base = Fraction(int(numerator), int(denominator))
    track = FaceTrack(**rows, time_base=time_base, pages=pages, references=store, overlays=overlays)
    _require_sense(track)
    on_error.pop_all()
    return track


def _require_sense(track: FaceTrack) -> None:
    """Raise ValueError unless the values can have come from an analysis."""
    dubbed = track.status == DUBBED
    for holds, what in (
        (len(track) > 0, "no frames"),
        (track.time_base > 0, f"time base {track.time_base}"),
        (bool((np.diff(track.pts) > 0).all()), "timestamps that do not increase"),
        (bool(np.isin(track.status, [DUBBED, *WHY]).all()), "unknown reasons for passing a frame through"),
        (bool((np.diff(track.shot) >= 0).all()) and int(track.shot[0]) >= 0, "shots out of order"),
        (all(np.isfinite(getattr(track, name)).all() for name, (dtype, _) in _ROWS.items() if dtype.kind == "f"), "no finite numbers"),
        (bool((np.abs(track.similarity[dubbed, :2]).max(axis=1, initial=0) > 0).all()), "a face without a size"),
        (bool(((track.strength >= 0) & (track.strength <= 1)).all()), "strengths outside 0 to 1"),
        (bool((track.reference >= -1).all() and (track.reference < track.references.count).all()), "references that are not there"),
        (
            all(np.isfinite(getattr(track.pages, name)).all() for name, (dtype, _) in PAGE_ROWS.items() if dtype.kind == "f"),
            "no finite pages",
        ),
        (bool((np.abs(track.pages.similarity[:, :2]).max(axis=1, initial=0) > 0).all()), "a page without a size"),
        (bool((np.diff(track.pages.frame) >= 0).all()), "pages out of order"),
        (bool(((track.pages.frame >= 0) & (track.pages.frame < len(track))).all()), "pages of frames that are not there"),
        (bool(np.isin(track.person[dubbed], track.pages.person).all()), "people without pages"),
        (bool((track.overlays.spans[:, 1] <= len(track)).all()), "overlays beyond the end"),
        (bool((track.reference[dubbed] >= 0).all()), "dubbed frames without a reference"),
    ):
        if not holds:
            raise ValueError(what)


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
