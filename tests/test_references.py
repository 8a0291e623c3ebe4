"""references.py: what goes in comes out, in any order; file and memory stay bounded; bytes that are no detail are refused."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.references.store import DETAIL_PX, LEAST_GAIN, MOST_JPEG_BYTES, ReferenceStore, detail_px

SIZE = 8
sides = st.integers(SIZE + 1, 90) | st.just(DETAIL_PX)
steps = st.lists(st.tuples(st.none() | st.integers(0, 5), st.integers(0, 99), st.none() | sides), min_size=1, max_size=15)
"""Add a reference (None) or replace one; a seed; the side of its detail."""


def noise(side: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def smooth_picture(side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Soft blobs of colour, each channel its own; the smaller the paler, so that no two neighbours differ much."""
    reach = min(100, 2 * side)
    coarse = (128 + np.random.default_rng(seed).integers(-reach, reach + 1, (4, 4, 3))).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)


@contextmanager
def opened(size: int = SIZE) -> Iterator[ReferenceStore]:
    with closing(ReferenceStore(size)) as store:
        yield store


def one_jpeg(side: int = 40, *, grey: bool = False, options: tuple[int, ...] = (), suffix: str = ".jpg", wide: int = 0) -> bytes:
    picture = cv2.resize(smooth_picture(side), (side + wide, side))
    done, data = cv2.imencode(suffix, picture[..., 0] if grey else picture, options)
    assert done
    return data.tobytes()


# --------------------------------------------------------------------------------------------------------- in and out


@given(steps=steps)
@settings(max_examples=40, deadline=None)
def test_what_goes_in_comes_out(steps: list[tuple[int | None, int, int | None]]) -> None:
    """Against a plain list: whatever is added and replaced in whatever order, every reference is the one put there last."""
    kept: list[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]] = []
    with opened() as store:
        for which, seed, side in steps:
            pixels, detail = noise(SIZE, seed), None if side is None else smooth_picture(side, seed)
            if which is None or not kept:
                assert store.add(pixels, detail) == len(kept)
                kept.append((pixels, detail))
            else:
                store.replace(which % len(kept), pixels, detail)
                kept[which % len(kept)] = (pixels, detail)
        assert store.count == len(kept)
        assert (store.jpeg_bytes() > 0).tolist() == [detail is not None for _, detail in kept]
        for number, (pixels, detail) in enumerate(kept):
            found = store.get(number)
            assert found.number == number
            assert (found.pixels == pixels).all()
            assert (store.pixels(number) == pixels).all()
            assert (found.detail is None) == (detail is None)
            assert len(store.jpeg(number)) == store.jpeg_bytes()[number]
            if found.detail is not None and detail is not None:
                assert found.detail.shape == detail.shape
                assert found.detail.dtype == np.uint8
                assert np.abs(found.detail.astype(int) - detail).mean() < 2


@pytest.mark.parametrize("side", [9, 40, 301, DETAIL_PX])
def test_colours_stay_as_sharp_as_brightness(side: int) -> None:
    """One red column in grey: with colour at half resolution it would bleed into its neighbours."""
    detail = np.full((side, side, 3), 100, np.uint8)
    detail[:, 4] = (200, 60, 60)
    with opened() as store:
        store.add(noise(SIZE), detail)
        found = store.get(0).detail
    assert found is not None
    assert np.abs(found.astype(int) - detail).max() < 12


def test_a_detail_is_moved_as_it_is_stored() -> None:
    with opened() as one, opened() as other:
        one.add(noise(SIZE), noise(60, 3))
        other.add(noise(SIZE, 1))
        other.attach(0, one.jpeg(0))
        assert other.jpeg(0) == one.jpeg(0)
        assert np.array_equal(other.get(0).detail, one.get(0).detail)
        assert (other.get(0).pixels == noise(SIZE, 1)).all()


# ------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "detail",
    [
        noise(SIZE), noise(DETAIL_PX + 1), noise(20)[:10], noise(20)[..., :2], noise(20)[..., 0], noise(20).astype(np.float32),
        np.zeros((0, 0, 3), np.uint8),
    ],
)  # fmt: skip
def test_what_is_no_detail_is_refused_and_changes_nothing(detail: NDArray[np.uint8]) -> None:
    with opened() as store:
        store.add(noise(SIZE), noise(20))
        before = store.get(0)
        for put in (lambda: store.add(noise(SIZE, 1), detail), lambda: store.replace(0, noise(SIZE, 1), detail)):
            with pytest.raises(ValueError, match="a detail is uint8"):
                put()
        assert store.count == 1
        assert (store.get(0).pixels == before.pixels).all()
        assert (store.get(0).detail == before.detail).all()


def test_what_is_no_crop_is_refused() -> None:
    with opened() as store:
        for pixels in (noise(SIZE + 1), noise(SIZE)[:5], noise(SIZE).astype(np.int16)):
            with pytest.raises(ValueError, match="a reference is uint8"):
                store.add(pixels)
        assert store.count == 0


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_that_was_not_given_is_refused(number: int) -> None:
    with opened() as store:
        for _ in range(2):
            store.add(noise(SIZE))
        asked = (
            store.get, store.pixels, store.jpeg,
            lambda number: store.replace(number, noise(SIZE)), lambda number: store.attach(number, one_jpeg()),
        )  # fmt: skip
        for ask in asked:
            with pytest.raises(IndexError, match="there are 2"):
                ask(number)


def claiming(height: int, width: int) -> bytes:
    """A JPEG of 40 x 40 px that says it is of another size."""
    jpeg = bytearray(one_jpeg(40))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(jpeg)


def hidden_header() -> bytes:
    """A JPEG that claims to be huge, with a marker in front that has no length; whoever jumps over it as if it had one lands at a header
    that claims 40 x 40 px."""
    front = b"\xff\xd8\xff\x01" + claiming(65535, 65535)[2:]
    jump = 4 + int.from_bytes(front[4:6], "big")
    header = claiming(40, 40)
    return front.ljust(jump, b"\0") + header[header.index(b"\xff\xc0") :]


def two_headers(first: int, second: int) -> bytes:
    """A JPEG with two frame headers, of these sides: decoders may differ in which one they believe."""
    one, other = claiming(first, first), claiming(second, second)
    at = one.index(b"\xff\xc0")
    return one[: at + 19] + other[at:]


def damaged_exif() -> bytes:
    """A whole JPEG whose EXIF has an entry that lies outside of it."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x010F, 2, 5000, 9000) + b"\0\0\0\0"
    jpeg = one_jpeg(40)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]


def test_damaged_exif_is_no_matter() -> None:
    with closing(ReferenceStore(SIZE)) as store:
        store.add(noise(SIZE))
        store.attach(0, damaged_exif())
        assert store.get(0).detail is not None


@pytest.mark.parametrize(
    "jpeg",
    [
        b"", b"\xff\xd8", b"\xff\xd8\xff", b"no picture" * 50, one_jpeg(suffix=".png"), one_jpeg(suffix=".bmp"), one_jpeg(grey=True),
        one_jpeg(wide=1), one_jpeg(SIZE), one_jpeg(DETAIL_PX + 2), one_jpeg(options=(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        claiming(65535, 65535), claiming(40, 65535), claiming(65535, 40), claiming(0, 0), hidden_header(), two_headers(65535, 40),
        two_headers(40, 65535), b"\xff\xd8\xff\xe0\0\0" * 50,
    ],
)  # fmt: skip
def test_bytes_that_are_no_detail_are_refused_before_they_are_decoded(jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some claim 65535 x 65535 px."""
    decoded: list[int] = []
    monkeypatch.setattr(cv2, "imdecode", lambda *given: decoded.append(1))
    with opened() as store:
        store.add(noise(SIZE))
        with pytest.raises(ValueError, match=r"JPEG|a detail has a side"):
            store.attach(0, jpeg)
        assert store.get(0).detail is None
    assert decoded == []


@pytest.mark.parametrize("keep", [300, -40, 700])
def test_a_detail_that_is_cut_off_is_refused(keep: int) -> None:
    with opened() as store:
        store.add(noise(SIZE))
        with pytest.raises(ValueError, match="JPEG"):
            store.attach(0, one_jpeg(60)[:keep])
        assert store.get(0).detail is None


@given(changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=4), keep=st.integers(0, 2000))
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_refused_or_a_picture(changes: list[tuple[int, int]], keep: int) -> None:
    damaged = bytearray(one_jpeg(40)[: keep if keep % 2 else None])
    for at, by in changes:
        if damaged:
            damaged[at % len(damaged)] ^= by
    with opened() as store:
        store.add(noise(SIZE))
        try:
            store.attach(0, bytes(damaged))
        except ValueError:
            assert store.get(0).detail is None
        else:
            detail = store.get(0).detail
            assert detail is not None
            assert SIZE < len(detail) <= DETAIL_PX


# ---------------------------------------------------------------------------------------------------- memory, disk, files


def test_memory_does_not_grow_with_the_references() -> None:
    pixels, detail = noise(4), smooth_picture(16)
    with opened(4) as store:
        store.add(pixels, detail)
        tracemalloc.start()
        try:
            for _ in range(3000):
                store.add(pixels, detail)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert store.count == 3001
    assert held < 3000 * 40 + 2**16


@given(seeds=st.lists(st.tuples(st.integers(9, 120), st.booleans()), min_size=1, max_size=60))
@example(seeds=[(side, True) for side in range(9, 90)])
@settings(max_examples=20, deadline=None)
def test_the_file_does_not_grow_with_what_is_replaced(seeds: list[tuple[int, bool]]) -> None:
    with opened() as store:
        store.add(noise(SIZE))
        other = store.add(noise(SIZE, 9), noise(30, 9))
        untouched, longest = store.jpeg(other), 0
        for side, noisy in seeds:
            store.replace(0, noise(SIZE), noise(side) if noisy else smooth_picture(side))
            longest = max(longest, len(store.jpeg(0)))
        store._file.flush()
        taken = os.fstat(store._file.fileno()).st_size
        assert taken <= 2 * 3 * SIZE**2 + len(untouched) + 4 * longest
        assert store.jpeg(other) == untouched


def test_no_picture_takes_more_than_the_most() -> None:
    with opened() as store:
        store.add(noise(SIZE), noise(DETAIL_PX))
        assert 2 * store.jpeg_bytes()[0] < MOST_JPEG_BYTES


def test_the_file_is_given_back() -> None:
    store = ReferenceStore(SIZE)
    store.add(noise(SIZE), noise(20))
    store.close()
    assert store._file.closed
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.get(0)


# --------------------------------------------------------------------------------------------------------- the side


@given(native=st.floats(1, 5000), angle=st.floats(0, 6.3), size=st.integers(1, 600))
def test_the_side_is_that_of_the_frame(native: float, angle: float, size: int) -> None:
    similarity = np.array([np.cos(angle) / native, np.sin(angle) / native, 3.0, -2.0])
    side = detail_px(similarity, size)
    if side is None:
        assert native < LEAST_GAIN * size + 1e-6 or size >= DETAIL_PX - 1
    else:
        assert native > LEAST_GAIN * size - 1e-6
        assert side > size
        assert side % 2 == 0 or side == size + 2
        assert side in (DETAIL_PX, size + 2, size + 3) or round(1.5 * native) <= side <= 1.5 * native + 2
        assert side <= DETAIL_PX


def test_a_face_without_a_size_has_the_longest_side() -> None:
    assert detail_px(np.zeros(4), 128) == DETAIL_PX


@pytest.mark.parametrize(
    ("native", "side"),
    [
        (51.0, None),
        (52.0, 130),
        (84.0, 130),
        (100.0, 150),
        (148.4, 224),
        (149.0, 224),
        (300.6, 452),
        (511.0, 766),
        (512.0, 768),
        (1400.0, 768),
    ],
)
def test_sides_at_128_px(native: float, side: int | None) -> None:
    assert detail_px(np.array([0.0, 1 / native, 0, 0]), 128) == side
