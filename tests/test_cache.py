"""The analysis cache: it saves time or does nothing; it never gives back another track than was kept, and it never raises."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import tracemalloc
import zipfile
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lipdub.errors import LipdubError, UnreadableMedia
from lipdub.faces import cache as cache_module
from lipdub.faces import crop
from lipdub.faces.cache import DEFAULT_LIMIT_BYTES, AnalysisCache, cached_tracks, default_cache, parse_size
from lipdub.faces.landmarks import LIPS
from lipdub.faces.overlays import Overlay, Overlays
from lipdub.faces.track import DUBBED, NO_FACE, FaceTrack
from lipdub.faces.track_file import _PIECE_BYTES, TrackDamaged, read_track, write_track
from lipdub.options import FaceChoice
from lipdub.references.pages import PAGE_ROWS, Pages
from lipdub.references.store import DETAIL_PX, MOST_JPEG_BYTES, ReferenceStore

ARRAYS = ("pts", "status", "shot", "similarity", "outline", "lips", "opening", "pose", "strength", "person", "reference")
KEY, OTHER = "ab" * 20, "cd" * 20
VIDEO = Path("films/talk.mp4")


def made_track(
    frames: int = 5, *, seed: int = 0, references: int = 2, size: int = 8, time_base: Fraction = Fraction(1001, 30000)
) -> FaceTrack:
    """A track of noise, every third frame passed through, every third reference without a detail."""
    rng = np.random.default_rng(seed)
    status = np.where(np.arange(frames) % 3 == 2, NO_FACE, DUBBED).astype(np.uint8)
    if references == 0:
        status[:] = NO_FACE
    store = ReferenceStore(size)
    for number in range(references):
        pixels, side = rng.integers(0, 256, (size, size, 3), np.uint8), int(rng.integers(size + 1, size + 40))
        store.add(pixels, None if number % 3 == 2 else rng.integers(0, 256, (side, side, 3), np.uint8))
    return FaceTrack(
        pts=np.cumsum(rng.integers(1, 2000, frames)).astype(np.int64) - 700,
        time_base=time_base,
        status=status,
        shot=np.cumsum(rng.integers(0, 2, frames)).astype(np.int32),
        similarity=rng.normal(size=(frames, 4)),
        outline=rng.normal(size=(frames, len(crop.OUTLINE), 2)).astype(np.float16),
        lips=rng.normal(size=(frames, len(LIPS), 2)).astype(np.float16),
        opening=rng.random(frames).astype(np.float32),
        pose=rng.normal(size=(frames, 2)).astype(np.float32),
        strength=rng.random(frames).astype(np.float32),
        person=np.where(status == DUBBED, 3, -1).astype(np.int32),
        reference=np.where(status == DUBBED, rng.integers(0, max(1, references), frames), -1).astype(np.int32),
        pages=made_pages(references, frames, rng),
        references=store,
        overlays=Overlays.of([Overlay(first, frames, 2, 3, 1, rng.random((5, 7)) > 0.5) for first in range(min(3, frames))]),
    )


def made_pages(count: int, frames: int, rng: np.random.Generator) -> Pages:
    """Pages of noise, all of person 3."""
    rows = {name: rng.normal(size=(count, *tail)).astype(dtype) for name, (dtype, tail) in PAGE_ROWS.items()}
    return Pages(**rows | {"person": np.full(count, 3, np.int32), "frame": np.sort(rng.integers(0, frames, count))})


def same(one: FaceTrack, other: FaceTrack) -> bool:
    """Equal bit by bit: types, NaN payloads, signs of zero."""
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            return False
    for name in PAGE_ROWS:
        a, b = getattr(one.pages, name), getattr(other.pages, name)
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            return False
    if (one.overlays.spans != other.overlays.spans).any() or one.overlays.bits.tobytes() != other.overlays.bits.tobytes():
        return False
    if one.time_base != other.time_base or one.references.count != other.references.count:
        return False
    return all(same_reference(one.references, other.references, number) for number in range(one.references.count))


def same_reference(one: ReferenceStore, other: ReferenceStore, number: int) -> bool:
    """Equal crops, equal details, and these stored in the same bytes."""
    a, b = one.get(number), other.get(number)
    if (a.detail is None) != (b.detail is None) or one.jpeg(number) != other.jpeg(number):
        return False
    return bool((a.pixels == b.pixels).all() and (a.detail is None or (a.detail == b.detail).all()))


@contextmanager
def kept(folder: Path, track: FaceTrack, key: str = KEY):
    cache = AnalysisCache(folder, limit_bytes=10**9)
    assert cache.keep(key, track, video=VIDEO)
    yield cache


def found(cache: AnalysisCache, key: str = KEY) -> FaceTrack:
    track = cache.find(key)
    assert track is not None
    return track


# ------------------------------------------------------------------------------------------------------- round trip


@settings(max_examples=40)
@given(
    frames=st.integers(1, 40),
    references=st.integers(0, 5),
    size=st.integers(1, 24),
    seed=st.integers(0, 2**32),
    ticks=st.fractions(min_value=Fraction(1, 10**6), max_value=2, max_denominator=10**6),
)
def test_what_is_kept_is_found_bit_by_bit(frames, references, size, seed, ticks):
    track = made_track(frames, seed=seed, references=references, size=size, time_base=ticks)
    with tempfile.TemporaryDirectory() as folder, kept(Path(folder), track) as cache, closing(track.references):
        again = found(cache)
        with closing(again.references):
            assert same(again, track)
            assert again.spans() == track.spans()


@settings(max_examples=40)
@given(
    values=hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e300, 1e300, allow_subnormal=True).filter(lambda v: v != 0)),
    halves=hnp.arrays(np.float16, (3, len(LIPS), 2), elements=st.floats(-60000, 60000, width=16)),
)
def test_extreme_numbers_survive(values, halves):
    base = made_track(3)
    rows = {name: getattr(base, name) for name in ARRAYS} | {"similarity": values, "lips": halves}
    track = FaceTrack(**rows, time_base=base.time_base, pages=base.pages, references=base.references)
    with tempfile.TemporaryDirectory() as folder, kept(Path(folder), track) as cache, closing(track.references):
        again = found(cache)
        with closing(again.references):
            assert same(again, track)


def test_a_track_larger_than_one_piece(tmp_path: Path):
    track = made_track(30000, references=40, size=128)
    assert track.references.jpeg_bytes().sum() > _PIECE_BYTES
    with kept(tmp_path, track) as cache, closing(track.references):
        again = found(cache)
        with closing(again.references):
            assert same(again, track)


def test_numpy_reads_the_arrays_too(tmp_path: Path):
    track = made_track(7)
    with kept(tmp_path, track), closing(track.references), np.load(tmp_path / f"{KEY}.npz", allow_pickle=False) as data:
        for name in ARRAYS:
            assert (data[name] == getattr(track, name)).all()
        for name in PAGE_ROWS:
            assert (data[f"page_{name}"] == getattr(track.pages, name)).all()
        assert data["references"].shape == (2, 8, 8, 3)
        for number, (first, end) in enumerate(pairwise([0, *data["detail_ends"].tolist()])):
            assert data["details"][first:end].tobytes() == track.references.jpeg(number) != b""


def test_nothing_kept_is_nothing_found(tmp_path: Path):
    cache = AnalysisCache(tmp_path / "not there", limit_bytes=1000)
    assert cache.find(KEY) is None
    assert cache.entries() == ()
    assert cache.clear() == (0, 0)
    cache.trim()
    assert not (tmp_path / "not there").exists()


def test_a_key_is_no_path(tmp_path: Path):
    cache = AnalysisCache(tmp_path, limit_bytes=1000)
    for key in ("", "../" + "a" * 37, "A" * 40, "a" * 41, "/etc/passwd"):
        with pytest.raises(ValueError, match="40 hex digits"):
            cache.find(key)


# ---------------------------------------------------------------------------------------------------- damage, foreign


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The bytes of one entry."""
    with tempfile.TemporaryDirectory() as folder:
        track = made_track(6, references=3)
        with kept(Path(folder), track), closing(track.references):
            return (Path(folder) / f"{KEY}.npz").read_bytes()


def finds(folder: Path, content: bytes) -> FaceTrack | None:
    (folder / f"{KEY}.npz").write_bytes(content)
    return AnalysisCache(folder, limit_bytes=10**9).find(KEY)


def is_miss_or_the_same(folder: Path, content: bytes, whole: bytes) -> bool:
    track = finds(folder, content)
    if track is None:
        return True
    with closing(track.references):
        reference = finds(folder, whole)
        with closing(reference.references):
            return same(track, reference)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_anywhere_never_changes_the_track(whole, tmp_path, data):
    """Bytes that nobody reads (a date in the archive) may change; what comes out is the track that was kept, or nothing."""
    at = data.draw(st.integers(0, len(whole) - 1))
    other = bytearray(whole)
    other[at] ^= data.draw(st.integers(1, 255))
    assert is_miss_or_the_same(tmp_path, bytes(other), whole)


def test_a_changed_byte_in_every_array_is_a_miss(whole, tmp_path):
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        for info in archive.infolist():
            at = info.header_offset + 30 + len(info.filename) + 20 + info.compress_size // 2
            other = bytearray(whole)
            other[at] ^= 0xFF
            assert finds(tmp_path, bytes(other)) is None, info.filename


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_torn_entry_is_a_miss(whole, tmp_path, data):
    assert finds(tmp_path, whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hole_of_zeros_never_changes_the_track(whole, tmp_path, data):
    """What a crash of the machine leaves of a file that was renamed before its pages were written."""
    first = data.draw(st.integers(0, len(whole) - 2))
    end = data.draw(st.integers(first + 1, len(whole)))
    assert is_miss_or_the_same(tmp_path, whole[:first] + bytes(end - first) + whole[end:], whole)


def test_foreign_files_are_misses(tmp_path):
    rows = io.BytesIO()
    np.savez(rows, pts=np.arange(3))
    pickled = io.BytesIO()
    np.savez(pickled, pts=np.array([print, 1], dtype=object))
    for content in (b"", b"PK\x03\x04", b"\0" * 5000, b"not an archive" * 100, rows.getvalue(), pickled.getvalue()):
        assert finds(tmp_path, content) is None


def rebuilt(whole: bytes, changes: dict[str, bytes]) -> bytes:
    """The entry with other members, its checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name, old.read(name)))
    return out.getvalue()


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=allow_pickle)
    return out.getvalue()


def test_nothing_is_unpickled(whole, tmp_path):
    """An entry whose array is a pickle that would run code is a miss, and the code does not run."""
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    for name in (
        *ARRAYS,
        *(f"page_{name}" for name in PAGE_ROWS),
        "overlay_spans",
        "overlay_bits",
        "time_base",
        "references",
        "detail_ends",
        "details",
    ):
        content = npy(np.array([Evil()] * 6, dtype=object), allow_pickle=True)
        assert finds(tmp_path, rebuilt(whole, {f"{name}.npy": content})) is None
        assert not witness.exists()


ROWS6 = {
    "time_base": [np.array([1, 0]), np.array([-1, 25]), np.array([0, 25]), np.array([1.0, 25.0]), np.array([1, 2, 3])],
    "pts": [np.zeros(6, np.int64), np.arange(6)[::-1].copy(), np.arange(5), np.ones(6), np.arange(6, dtype=np.int32), np.ones((6, 1), int)],
    "status": [np.full(6, 9, np.uint8), np.full(6, DUBBED, np.uint8), np.zeros(6, np.int64)],
    "shot": [np.arange(6, dtype=np.int32)[::-1].copy(), np.full(6, -1, np.int32)],
    "similarity": [np.zeros((6, 4)), np.full((6, 4), np.nan), np.full((6, 4), np.inf), np.ones((6, 5)), np.ones((4, 6)).T],
    "outline": [np.full((6, len(crop.OUTLINE), 2), np.nan, np.float16), np.zeros((6, 1, 2), np.float16)],
    "lips": [np.full((6, 40, 2), np.inf, np.float16)],
    "opening": [np.full(6, np.nan, np.float32)],
    "pose": [np.full((6, 2), np.nan, np.float32), np.zeros((6, 3), np.float32)],
    "strength": [np.full(6, 1.5, np.float32), np.full(6, -0.5, np.float32), np.full(6, np.nan, np.float32)],
    "reference": [np.full(6, 3, np.int32), np.full(6, -2, np.int32), np.full(6, -1, np.int32), np.full(6, 2**31 - 1, np.int32)],
    "person": [np.full(6, 4, np.int32), np.full(6, -1, np.int32), np.full(6, 3.0)],
    "page_person": [np.full(3, 9, np.int32), np.full(2, 3, np.int32), np.full(3, 3.0)],
    "page_frame": [np.full(3, 6), np.full(3, -1), np.array([3, 2, 1]), np.zeros((3, 1), np.int64)],
    "page_lips": [np.full((3, 40, 2), np.nan, np.float32), np.zeros((3, 39, 2), np.float32), np.zeros((2, 40, 2), np.float32)],
    "page_outline": [np.full((3, 24, 2), np.inf, np.float32), np.zeros((3, 40, 2), np.float32)],
    "page_pose": [np.full((3, 2), np.nan, np.float32)],
    "page_skin": [np.full((3, 2), np.nan, np.float32)],
    "page_sharpness": [np.full(3, np.nan, np.float32), np.zeros((3, 1), np.float32)],
    "page_similarity": [np.zeros((3, 4)), np.full((3, 4), np.nan), np.zeros((3, 4), np.float32), np.ones((3, 5))],
    "overlay_spans": [
        np.zeros((3, 7), np.int64), np.tile([0, 7, 2, 3, 1, 7, 5], (3, 1)), np.tile([0, 6, 2, 3, 1, 7, 5], (2, 1)),
        np.zeros((3, 6), np.int64), np.tile([0, 6, 2, 3, -1, 7, 5], (3, 1)), np.tile([0, 6, 1, 0, 0, 2**40, 2**40], (3, 1)),
        np.tile([0.0, 6, 2, 3, 1, 7, 5], (3, 1)),
    ],
    "overlay_bits": [np.zeros(14, np.uint8), np.zeros(16, np.uint8), np.zeros(15, np.int8), np.zeros((15, 1), np.uint8)],
    "references": [
        np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 9, 3), np.uint8), np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 0, 0, 3), np.uint8), np.zeros(7, np.uint8),
    ],
    "detail_ends": [
        np.zeros(2, np.int64), np.zeros(4, np.int64), np.zeros(0, np.int64), np.zeros(3, np.int64), np.zeros((3, 1), np.int64), np.zeros(3),
        np.array([9, 9, 8]), np.array([-1, 9, 9]), np.array([0, 0, 10**12]), np.array([2**63 - 1, -(2**63), 5]), np.array([1, 2, 3]),
    ],
    "details": [
        np.zeros(0, np.uint8), np.zeros(7, np.uint8), np.zeros(10**5, np.uint8), np.zeros((9, 1), np.uint8), np.zeros(9, np.int8),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS6)
def test_values_that_make_no_sense_are_a_miss(whole, tmp_path, name):
    for array in ROWS6[name]:
        content = rebuilt(whole, {f"{name}.npy": npy(array)})
        assert finds(tmp_path, content) is None, array
        with pytest.raises(TrackDamaged, match="no whole face track"):
            read_track(io.BytesIO(content))


def jpeg(picture: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", picture)
    assert done
    return data.tobytes()


@pytest.mark.parametrize(
    "blob",
    [
        b"no picture", jpeg(np.zeros((8, 8, 3), np.uint8)), jpeg(np.zeros((DETAIL_PX + 2, DETAIL_PX + 2, 3), np.uint8)),
        jpeg(np.zeros((20, 24, 3), np.uint8)), jpeg(np.zeros((20, 20), np.uint8)), jpeg(np.zeros((20, 20, 3), np.uint8))[:-30],
        b"\xff\xd8" + bytes(MOST_JPEG_BYTES),
    ],
)  # fmt: skip
def test_details_that_are_no_pictures_are_a_miss(whole, tmp_path, monkeypatch, blob):
    """Their ends are right and their checksums, too; the file that the references were read into is closed."""
    closed = []
    original = ReferenceStore.close
    monkeypatch.setattr(ReferenceStore, "close", lambda self: (closed.append(self), original(self))[1])
    good = jpeg(np.zeros((20, 20, 3), np.uint8))
    for number in range(3):
        blobs = [blob if place == number else good for place in range(3)]
        ends = np.cumsum([len(one) for one in blobs])
        changes = {"details.npy": npy(np.frombuffer(b"".join(blobs), np.uint8)), "detail_ends.npy": npy(ends)}
        assert finds(tmp_path, rebuilt(whole, changes)) is None
        with pytest.raises(TrackDamaged, match="no whole face track"):
            read_track(io.BytesIO(rebuilt(whole, changes)))
    assert len(closed) == 6
    assert all(store._file.closed for store in closed)


def test_details_are_where_their_ends_say(whole, tmp_path):
    """None, one, none: and the one is the second's."""
    good = jpeg(np.full((20, 20, 3), 200, np.uint8))
    changes = {"details.npy": npy(np.frombuffer(good, np.uint8)), "detail_ends.npy": npy(np.array([0, len(good), len(good)]))}
    track = finds(tmp_path, rebuilt(whole, changes))
    with closing(track.references):
        assert [track.references.jpeg(number) for number in range(3)] == [b"", good, b""]


@pytest.mark.parametrize(
    ("ends", "more"), [([1, 0, 1], 0), ([1, 1], 0), ([1], 0), ([1, 1, 1, 1], 0), ([1, 1, 1], 1), ([1, 2, 2], 0), ([0, 0, 0], 0), ([], 0)]
)
def test_ends_that_are_not_those_of_the_details_are_a_miss(whole, tmp_path, ends, more):
    """In lengths of the one whole picture that there is, with so many bytes more after it."""
    good = jpeg(np.full((20, 20, 3), 200, np.uint8))
    details = npy(np.frombuffer(good + bytes(more), np.uint8))
    changes = {"details.npy": details, "detail_ends.npy": npy(len(good) * np.array(ends, np.int64))}
    assert finds(tmp_path, rebuilt(whole, changes)) is None


def test_a_detail_that_claims_to_be_huge_is_not_read(whole):
    ends = np.full(3, 2**25)
    entry = io.BytesIO(rebuilt(whole, {"details.npy": npy(np.zeros(2**25, np.uint8)), "detail_ends.npy": npy(ends)}))
    tracemalloc.start()
    try:
        with pytest.raises(TrackDamaged):
            read_track(entry)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**23


def test_memory_does_not_grow_with_the_references(tmp_path):
    """Saving and loading 800 of 24 kB each takes a few pieces of 1 MiB."""
    store, rng = ReferenceStore(8), np.random.default_rng(0)
    base = made_track(5)
    rows = {name: getattr(base, name) for name in ARRAYS}
    for _ in range(800):
        store.add(np.zeros((8, 8, 3), np.uint8), rng.integers(0, 256, (100, 100, 3), np.uint8))
    assert store.jpeg_bytes().sum() > 2**24
    pages = made_pages(800, 5, rng)
    track = FaceTrack(**rows, time_base=base.time_base, pages=pages, references=store)
    tracemalloc.start()
    try:
        write_track(track, tmp_path / "track.npz")
        read_track(tmp_path / "track.npz").references.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        store.close()
        base.references.close()
    assert peak < 2**23


@pytest.mark.parametrize("name", ["details", "detail_ends"])
def test_an_entry_of_a_version_without_details_is_a_miss(whole, tmp_path, name):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w") as new:
        for member in set(old.namelist()) - {f"{name}.npy"}:
            new.writestr(member, old.read(member))
    assert finds(tmp_path, out.getvalue()) is None


def test_an_array_that_claims_to_be_huge_is_a_miss(whole, tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    assert finds(tmp_path, rebuilt(whole, {"pts.npy": header.getvalue() + bytes(800)})) is None
    longer = npy(np.arange(6)) + b"more"
    assert finds(tmp_path, rebuilt(whole, {"pts.npy": longer})) is None


def test_an_entry_under_another_name_is_a_miss(whole, tmp_path):
    (tmp_path / f"{OTHER}.npz").write_bytes(whole)
    assert AnalysisCache(tmp_path, limit_bytes=10**9).find(OTHER) is None


def test_a_damaged_entry_is_listed_and_replaced(tmp_path):
    track = made_track(4)
    with kept(tmp_path, track) as cache, closing(track.references):
        (tmp_path / f"{KEY}.npz").write_bytes(b"broken")
        (entry,) = cache.entries()
        assert (entry.source, entry.frames, entry.bytes) == ("", 0, 6)
        assert cache.keep(KEY, track, video=VIDEO)
        assert cache.entries()[0].source == "talk.mp4"
        found(cache).references.close()


def test_a_loaded_track_that_is_refused_leaves_no_file_open(whole, tmp_path, monkeypatch):
    closed = []
    original = ReferenceStore.close
    monkeypatch.setattr(ReferenceStore, "close", lambda self: (closed.append(self), original(self))[1])
    assert finds(tmp_path, rebuilt(whole, {"reference.npy": npy(np.full(6, 7, np.int32))})) is None
    assert len(closed) == 1


# ------------------------------------------------------------------------------------------------------- size, listing


def size_of_one(tmp_path: Path) -> int:
    track = made_track(50)
    with kept(tmp_path / "measure", track) as cache, closing(track.references):
        return cache.entries()[0].bytes


def test_entries_say_what_is_kept(tmp_path):
    track = made_track(12)
    with kept(tmp_path, track) as cache, closing(track.references):
        (entry,) = cache.entries()
        assert (entry.key, entry.source, entry.frames) == (KEY, "talk.mp4", 12)
        assert entry.bytes == (tmp_path / f"{KEY}.npz").stat().st_size
        assert abs(entry.used_s - time.time()) < 60
        assert (tmp_path / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(["keep", "find"]), st.integers(0, 7)), min_size=1, max_size=25), fits=st.integers(1, 5))
def test_the_limit_holds_and_what_was_used_last_stays(tmp_path_factory, steps, fits):
    """Against a plain model: a list of keys ordered by use, cut to what fits."""
    folder = tmp_path_factory.mktemp("lru")
    one = size_of_one(folder)
    cache = AnalysisCache(folder / "cache", limit_bytes=fits * (one + 40))
    clock, model = 1_000_000_000, []
    with closing((track := made_track(50)).references):
        for what, number in steps:
            key = f"{number:040x}"
            clock += 10
            if what == "keep":
                assert cache.keep(key, track, video=VIDEO)
                model = [k for k in model if k != key][-(fits - 1) :] if fits > 1 else []
                model.append(key)
            else:
                track_found = cache.find(key)
                assert (track_found is not None) == (key in model)
                if track_found is not None:
                    track_found.references.close()
                    model = [*(k for k in model if k != key), key]
            if key in model:  # the system's clock is too coarse to tell the steps of this test apart
                os.utime(cache.folder / f"{key}.npz", (clock, clock))
            assert [entry.key for entry in cache.entries()] == model[::-1]
            assert sum(entry.bytes for entry in cache.entries()) <= cache.limit_bytes


def test_a_hit_counts_as_use(tmp_path):
    track = made_track(4)
    with kept(tmp_path, track) as cache, closing(track.references):
        os.utime(tmp_path / f"{KEY}.npz", (5, 5))
        found(cache).references.close()
        assert cache.entries()[0].used_s > 1000


def test_a_track_above_the_limit_is_not_kept(tmp_path):
    track = made_track(50)
    cache = AnalysisCache(tmp_path, limit_bytes=100)
    with closing(track.references):
        assert not cache.keep(KEY, track, video=VIDEO)
    assert [p.name for p in tmp_path.iterdir()] == []


def test_clear_takes_all_or_what_is_old_and_nothing_else(tmp_path):
    track = made_track(4)
    mine = [tmp_path / name for name in ("notes.npz", "film.mp4", f"{KEY}.npz.bak", f"{'A' * 40}.npz")]
    for path in mine:
        path.write_bytes(b"mine")
    (tmp_path / ("e" * 40 + ".npz")).mkdir()
    with kept(tmp_path, track) as cache, closing(track.references):
        assert cache.keep(OTHER, track, video=VIDEO)
        os.utime(tmp_path / f"{KEY}.npz", (1000, 1000))
        size = (tmp_path / f"{KEY}.npz").stat().st_size
        assert cache.clear(older_than_s=3600) == (1, size)
        assert [entry.key for entry in cache.entries()] == [OTHER]
        assert cache.clear() == (1, size)
        assert cache.entries() == ()
    assert all(path.read_bytes() == b"mine" for path in mine)


def test_abandoned_temporary_files_go_and_young_ones_stay(tmp_path):
    old, young = (tmp_path / f".{KEY}.{'0' * 11}{i}.lipdub-part" for i in range(2))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    AnalysisCache(tmp_path, limit_bytes=10**9).trim()
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("remove", [AnalysisCache.clear, AnalysisCache.trim])
def test_the_digests_of_earlier_versions_go_and_other_files_stay(tmp_path, remove):
    digests = tmp_path / "digests"
    digests.mkdir()
    for name in (f"{KEY}.json", f".{KEY}.{'0' * 12}.lipdub-part"):
        (digests / name).write_bytes(b"{}")
    (digests / "mine.json").write_bytes(b"mine")
    remove(AnalysisCache(tmp_path))
    assert [path.name for path in digests.iterdir()] == ["mine.json"]
    (digests / "mine.json").unlink()
    remove(AnalysisCache(tmp_path))
    assert not digests.exists()


# ------------------------------------------------------------------------------------------------------------- sharing


def _keep_and_find(folder: str, seed: int, times: int) -> int:
    """In another process: keep and find one key many times; how often something else than the track came out."""
    cache, wrong = AnalysisCache(Path(folder), limit_bytes=10**9), 0
    track = made_track(60, seed=0)
    for _ in range(times):
        cache.keep(KEY, track, video=VIDEO)
        again = cache.find(KEY)
        wrong += again is None or not same(again, track)
        if again is not None:
            again.references.close()
    track.references.close()
    return wrong


def test_two_processes_may_write_the_same_key(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_keep_and_find, [(str(tmp_path), seed, 25) for seed in (1, 2)]) == [0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["CACHEDIR.TAG", f"{KEY}.npz"]


def test_an_entry_that_is_trimmed_while_it_is_read_is_read_whole(tmp_path):
    """Two threads that look, one that throws away and one that keeps: a find gives the whole track or nothing."""
    track, stop, bad = made_track(200), threading.Event(), []
    cache = AnalysisCache(tmp_path, limit_bytes=10**9)

    def look() -> None:
        with closing((wanted := made_track(200)).references):  # a store is for one thread
            while not stop.is_set():
                again = cache.find(KEY)
                if again is not None:
                    if not same(again, wanted):
                        bad.append(again)
                    again.references.close()

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(40):
            assert cache.keep(KEY, track, video=VIDEO)
            cache.clear()
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert bad == []
    track.references.close()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there; trimming passes it over")
def test_trimming_does_not_disturb_an_open_entry(tmp_path):
    track = made_track(20)
    with kept(tmp_path, track) as cache, closing(track.references):
        with open(tmp_path / f"{KEY}.npz", "rb") as file:
            assert cache.clear()[0] == 1
            again = read_track(file)
        with closing(again.references):
            assert same(again, track)


# ---------------------------------------------------------------------------------------------- folders that refuse


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = AnalysisCache(tmp_path / "file" / "cache", limit_bytes=10**9)
    track = made_track(3)
    with closing(track.references):
        assert cache.keep(KEY, track, video=VIDEO) is False
    assert cache.find(KEY) is None
    assert cache.entries() == ()


def test_a_read_only_folder_is_read_and_not_written(tmp_path, monkeypatch):
    """The tests may run as root, whom permissions do not stop: the system's refusals are played."""
    track = made_track(3)
    with kept(tmp_path, track) as cache, closing(track.references):

        def refuse(*args, **more):
            raise PermissionError(13, "Permission denied")

        for name in ("utime", "replace"):
            monkeypatch.setattr(cache_module.os, name, refuse)
        found(cache).references.close()
        assert cache.keep(OTHER, track, video=VIDEO) is False
        assert [entry.key for entry in cache.entries()] == [KEY]
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_full_disk_stops_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    track = made_track(3)

    def full(track, file):
        file.write(b"PK half a track")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_track", full)
    with closing(track.references):
        assert AnalysisCache(tmp_path, limit_bytes=10**9).keep(KEY, track, video=VIDEO) is False
    assert list(tmp_path.iterdir()) == []


def test_the_last_room_on_the_disk_is_left_to_the_dub(tmp_path, monkeypatch):
    track = made_track(3)
    usage = cache_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: usage._replace(free=10 * 2**20))
    with closing(track.references):
        assert AnalysisCache(tmp_path, limit_bytes=10**9).keep(KEY, track, video=VIDEO) is False
    assert list(tmp_path.iterdir()) == []


def test_a_keep_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(track, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "write_track", interrupted)
    track = made_track(3)
    with closing(track.references), pytest.raises(KeyboardInterrupt):
        AnalysisCache(tmp_path, limit_bytes=10**9).keep(KEY, track, video=VIDEO)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- videos that change


def cached(video: Path, cache: AnalysisCache | None, analyse=lambda: made_track(3)) -> tuple[FaceTrack, bool]:
    ((track, was_kept),) = cached_tracks(video, lambda choices: [analyse()], size_px=8, cache=cache)
    track.references.close()
    return track, was_kept


@pytest.fixture
def film(tmp_path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"frames" * 1000)
    return path


def test_a_video_is_analysed_once(film, tmp_path):
    cache = AnalysisCache(tmp_path / "cache")
    found = [cached(film, cache, lambda seed=seed: made_track(3, seed=seed)) for seed in range(3)]
    assert [was_kept for _, was_kept in found] == [False, True, True]
    assert all((track.similarity == found[0][0].similarity).all() for track, _ in found)
    assert cache.entries()[0].source == "film.mp4"


def test_of_several_people_those_are_looked_for_who_are_not_kept(film, tmp_path):
    cache, asked = AnalysisCache(tmp_path / "cache"), []

    def analyse(choices):
        asked.append(tuple(choices))
        return [made_track(3, seed=0 if choice is None else choice.number) for choice in choices]

    one, two = FaceChoice(1), FaceChoice(2)
    for choices, known in (((one,), [False]), ((None, one, two), [False, True, False]), ((two, None, one), [True] * 3)):
        found = cached_tracks(film, analyse, size_px=8, cache=cache, choices=choices)
        assert [was_kept for _, was_kept in found] == known
        for (track, _), choice in zip(found, choices, strict=True):
            wanted = made_track(3, seed=0 if choice is None else choice.number)
            np.testing.assert_array_equal(track.similarity, wanted.similarity)
            wanted.references.close()
            track.references.close()
    assert asked == [(one,), (None, two)]


def test_tracks_that_were_found_are_closed_where_another_cannot_be_made(film, tmp_path):
    cache = AnalysisCache(tmp_path / "cache")
    cached(film, cache)

    def analyse(choices):
        raise UnreadableMedia("no")

    with pytest.raises(UnreadableMedia):  # what stayed open would be told as a warning
        cached_tracks(film, analyse, size_px=8, cache=cache, choices=(None, FaceChoice(2)))


def test_without_a_cache_a_video_is_analysed_each_time(film, tmp_path):
    assert [cached(film, None)[1] for _ in range(2)] == [False, False]
    assert list(tmp_path.iterdir()) == [film]


def test_a_video_that_changes_before_it_is_kept_is_not_kept(film, tmp_path):
    cache = AnalysisCache(tmp_path / "cache", limit_bytes=10**9)

    def analyse() -> FaceTrack:
        film.write_bytes(b"other frames")
        return made_track(3)

    assert cached(film, cache, analyse)[1] is False
    assert cache.entries() == ()
    assert [cached(film, cache)[1] for _ in range(2)] == [False, True]


def test_a_change_is_seen_even_if_size_and_time_are_put_back(film, tmp_path):
    """A tool that writes a file anew and puts its time back cannot put back the inode's own."""
    cache = AnalysisCache(tmp_path / "cache")
    facts = film.stat()

    def analyse() -> FaceTrack:
        time.sleep(0.02)  # a tick of the file system's clock
        film.write_bytes(b"FRAMES" * 1000)
        os.utime(film, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        return made_track(3)

    assert cached(film, cache, analyse)[1] is False
    assert (film.stat().st_size, film.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert cache.entries() == ()
    assert [cached(film, cache)[1] for _ in range(2)] == [False, True]


def test_another_file_moved_into_the_place_is_seen(film, tmp_path):
    cache = AnalysisCache(tmp_path / "cache")

    def analyse() -> FaceTrack:
        other = tmp_path / "other"
        other.write_bytes(b"FRAMES" * 1000)
        os.utime(other, ns=(film.stat().st_atime_ns, film.stat().st_mtime_ns))
        os.replace(other, film)
        return made_track(3)

    assert cached(film, cache, analyse)[1] is False
    assert cache.entries() == ()
    assert [cached(film, cache)[1] for _ in range(2)] == [False, True]


def test_what_cannot_be_read_is_said_before_it_is_analysed(tmp_path):
    with pytest.raises(UnreadableMedia, match="check the path"):
        cached(tmp_path / "missing.mp4", AnalysisCache(tmp_path / "cache"), lambda: pytest.fail("analysed"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are no text")
def test_a_name_that_is_no_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/film\xff.mp4"))
    path.write_bytes(b"frames")
    cache = AnalysisCache(tmp_path / "cache", limit_bytes=10**9)
    assert [cached(path, cache)[1] for _ in range(2)] == [False, True]
    (entry,) = cache.entries()
    assert entry.source == "film\\xff.mp4"


def test_an_entry_whose_source_is_no_text_is_listed(whole, tmp_path):
    about = {"format": 1, "key": KEY, "source": "\ud800.mp4", "frames": 6}
    (tmp_path / f"{KEY}.npz").write_bytes(rebuilt(whole, {"about.json": json.dumps(about).encode()}))
    (entry,) = AnalysisCache(tmp_path).entries()
    assert (entry.source, entry.frames) == ("\\ud800.mp4", 6)


# ------------------------------------------------------------------------------------------------------------- settings


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("LIPDUB_CACHE_LIMIT", raising=False)
    monkeypatch.delenv("LIPDUB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default = default_cache()
    assert default is not None
    assert default.limit_bytes == DEFAULT_LIMIT_BYTES
    if sys.platform == "linux":
        assert default.folder == tmp_path / "lipdub" / "analysis"
    monkeypatch.setenv("LIPDUB_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("LIPDUB_CACHE_LIMIT", "5GB")
    named = default_cache()
    assert named is not None
    assert (named.folder, named.limit_bytes) == (tmp_path / "here", 5 * 10**9)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("value", ["", "off", "OFF", " "])
def test_no_cache(monkeypatch, value):
    monkeypatch.setenv("LIPDUB_CACHE", value)
    assert default_cache() is None


def test_a_limit_of_nothing_is_no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LIPDUB_CACHE", str(tmp_path))
    monkeypatch.setenv("LIPDUB_CACHE_LIMIT", "0")
    assert default_cache() is None


def test_a_limit_that_is_no_size_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("LIPDUB_CACHE", str(tmp_path))
    for value in ("much", "-5GB", "5 apples", "1e9", "GB", "9" * 400, "5iB"):
        monkeypatch.setenv("LIPDUB_CACHE_LIMIT", value)
        with pytest.raises(LipdubError, match="no size"):
            default_cache()


@given(number=st.integers(0, 10**6), unit=st.sampled_from(["", "k", "M", "g", "T"]), i=st.booleans(), b=st.booleans(), gap=st.booleans())
def test_sizes(number, unit, i, b, gap):
    if i and not unit:
        return
    text = f"{number}{' ' * gap}{unit}{'i' * i}{'B' * b}"
    assert parse_size(text) == number * (1024 if i else 1000) ** ["", "k", "m", "g", "t"].index(unit.lower())
