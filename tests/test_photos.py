"""Photos and animations: transparency is laid on white, animations play, orientation is found wherever it stands, large photos shrink."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from drawn import picture
from numpy.typing import NDArray
from PIL import Image

from lipdub import media
from lipdub.errors import UnreadableMedia
from lipdub.media.stills import FITTED_PX, LARGE_PHOTO_PX
from lipdub.media.turning import upright

SIZE = 96, 64
SHOWN_MS = (40, 80, 40, 120, 200)
STILLS = ("png", "palette.png", "grey.png", "deep.png", "webp", "lossy.webp", "avif", "tiff", "gif")
ANIMATIONS = ("webp", "lossy.webp", "avif", "gif", "png")
VIDEOS = {"webm": ("libvpx-vp9", "yuva420p"), "mov": ("prores_ks", "yuva444p10le"), "rle.mov": ("qtrle", "argb"), "mkv": ("ffv1", "bgra")}


def cut_out(index: int, *, opaque: bool = False) -> NDArray[np.uint8]:
    """Picture `index` with only a disc of it opaque, uint8 (H, W, 4) RGBA; loud colours lie hidden in the rest."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width]
    alpha = np.where((x - 34 - 3 * index) ** 2 + (y - 32) ** 2 < 400, 255, 255 if opaque else 0).astype(np.uint8)
    color = picture(index, SIZE)
    color[alpha == 0] = (250, 0, 120)
    return np.dstack([color, alpha])


def save(path: Path, pictures: list[NDArray[np.uint8]]) -> Path:
    """Write RGBA pictures as a still or an animation; the name says of what kind."""
    first, *more = [Image.fromarray(pixels) for pixels in pictures]
    options: dict[str, Any] = {"lossless": "lossy" not in path.name, "quality": 95, "exact": True} if path.suffix == ".webp" else {}
    if path.suffix == ".avif":
        options = {"quality": 95}
    if "palette" in path.name:
        first = first.quantize(128)
    elif "grey" in path.name:
        first = first.convert("LA")
    if more:
        options |= {"save_all": True, "append_images": more, "duration": list(SHOWN_MS)}
    if path.suffix == ".gif":
        options["disposal"] = 2
    if "deep" in path.name:
        path.write_bytes(deep_png(pictures[0]))
    else:
        first.save(path, **options)
    return path


def deep_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of 16 bits a channel, RGBA."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in pixels)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def save_video(path: Path, codec: str, pixel_format: str, pictures: list[NDArray[np.uint8]]) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = pixel_format
        for tick, pixels in enumerate(pictures):
            frame: Any = av.VideoFrame.from_ndarray(pixels, "rgba").reformat(format=pixel_format)
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(path: Path) -> NDArray[np.uint8]:
    """All pictures as RGB, once from RGB and once from planes; both must agree."""
    with closing(media.read_frames(path)) as chunks:
        pixels = np.concatenate([one.pixels for one in chunks])
    with closing(media.read_planes(path)) as planes:
        height, width = pixels.shape[1:3]
        by_planes = np.stack([one.picture(row).rgb(0, 0, width, height) for one in planes for row in range(len(one))])
    assert np.abs(pixels.astype(int) - by_planes).mean() < 6
    return pixels


def check_disc(pixels: NDArray[np.uint8], index: int, *, grey: bool = False) -> None:
    """White well outside of the disc, the picture's own colours well inside."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width]
    from_middle = np.hypot(x - 34 - 3 * index, y - 32)
    assert pixels[from_middle > 23].min() > 245
    own = picture(index, SIZE)[from_middle < 17].astype(int)
    if grey:
        own = (own @ [0.299, 0.587, 0.114]).round().astype(int)[:, None]
    assert np.abs(pixels[from_middle < 17] - own).mean() < 12


@pytest.fixture(autouse=True)
def _copies_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Copies lie in a folder of the test's own, and none is left when they are let go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    media.let_go_of_copies()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", STILLS)
def test_transparent_photos_are_laid_on_white(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / f"cut_out.{kind}", [cut_out(0)])
    info = media.probe(path)
    assert (info.is_still, info.is_transparent, info.path) == (True, True, path)
    (pixels,) = shown(path)
    check_disc(pixels, 0, grey=kind.startswith("grey"))


@pytest.mark.parametrize("kind", VIDEOS)
def test_transparent_videos_are_laid_on_white(tmp_path: Path, kind: str) -> None:
    path = save_video(tmp_path / f"cut_out.{kind}", *VIDEOS[kind], [cut_out(k) for k in range(6)])
    assert media.probe(path).is_transparent
    pixels = shown(path)
    assert len(pixels) == 6
    for index in (0, 5):
        check_disc(pixels[index], index)
    backwards = media.read_span(path, np.concatenate([one.pts for one in media.read_planes(path)]), 4, 6)
    check_disc(backwards.picture(1).rgb(0, 0, *SIZE), 5)


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "avif"])
def test_half_transparent_is_mixed_and_opaque_stays(tmp_path: Path, kind: str) -> None:
    pixels = cut_out(0, opaque=True)
    opaque = save(tmp_path / f"opaque.{kind}", [pixels])
    assert not media.probe(opaque).is_transparent
    assert np.abs(shown(opaque)[0].astype(int) - pixels[..., :3]).mean() < 5
    if kind in ("png", "webp"):
        pixels[..., :3], pixels[..., 3] = (0, 100, 200), 128
        assert np.abs(shown(save(tmp_path / f"half.{kind}", [pixels]))[0].astype(int) - (127, 177, 227)).max() <= 1


@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("kind", ANIMATIONS)
def test_animations_play_at_their_own_times(tmp_path: Path, kind: str, opaque: bool) -> None:
    pictures = [cut_out(k, opaque=opaque) for k in range(len(SHOWN_MS))]
    path = save(tmp_path / f"talk.{kind}", pictures)
    info = media.probe(path)
    assert (info.is_still, info.is_transparent) == (False, not opaque)
    if info.duration_s is not None:  # APNG keeps none
        assert info.duration_s == Fraction(sum(SHOWN_MS), 1000)
    with closing(media.read_frames(path)) as chunks:
        times_s = np.concatenate([one.pts * float(one.time_base) for one in chunks])
    np.testing.assert_allclose(times_s, np.cumsum([0, *SHOWN_MS[:-1]]) / 1000, atol=1e-9)
    for index, pixels in enumerate(shown(path)):
        if opaque:
            assert np.abs(pixels.astype(int) - pictures[index][..., :3]).mean() < 6
        else:
            check_disc(pixels, index)


def test_an_animation_without_times_plays_ten_pictures_a_second(tmp_path: Path) -> None:
    first, *more = [Image.fromarray(cut_out(k)) for k in range(3)]
    first.save(tmp_path / "fast.webp", save_all=True, append_images=more, duration=0)
    assert media.probe(tmp_path / "fast.webp").duration_s == Fraction(3, 10)


def test_an_animation_of_one_picture_is_a_photo(tmp_path: Path) -> None:
    path = save(tmp_path / "many.webp", [cut_out(0), cut_out(1)])
    data = path.read_bytes()
    last = data.rindex(b"ANMF")
    (tmp_path / "one.webp").write_bytes(b"RIFF" + struct.pack("<I", last - 8) + data[8:last])
    info = media.probe(tmp_path / "one.webp")
    assert (info.is_still, info.duration_s) == (True, None)
    check_disc(shown(tmp_path / "one.webp")[0], 0)


@pytest.mark.parametrize("kind", ["webp", "avif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_damaged_animation_gives_what_it_has_or_one_line(tmp_path: Path, kind: str, share: float) -> None:
    data = save(tmp_path / f"whole.{kind}", [cut_out(k) for k in range(5)]).read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(share * len(data))])
    found, said = 0, ""
    try:
        found = len(shown(path))
    except UnreadableMedia as error:
        said = str(error)
    assert (1 <= found <= 5) != (str(path) in said)
    assert "\n" not in said


def test_a_file_that_changes_is_copied_again_and_few_copies_are_kept(tmp_path: Path) -> None:
    for index in range(12):
        path = save(tmp_path / "talk.webp", [cut_out(index), cut_out(index + 1)])
        check_disc(shown(path)[0], index)
    assert len(list((tmp_path / "temporary").iterdir())) <= 8


# ------------------------------------------------------------------------------------------------------- orientation


def exif(orientation: int) -> bytes:
    return b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"


def oriented(folder: Path, kind: str, orientation: int) -> Path:
    """Picture 0 in a photo whose orientation comes early or late in the file."""
    photo, wanted = Image.fromarray(picture(0, SIZE)), Image.Exif()
    wanted[0x0112] = orientation
    path = folder / f"photo.{kind.rpartition('.')[2]}"
    if kind == "late.png":
        photo.save(path)
        data = path.read_bytes()
        path.write_bytes(data[:-12] + chunk(b"eXIf", exif(orientation)) + data[-12:])
    elif kind == "late.jpg":
        photo.save(path, quality=97)
        data, filling = path.read_bytes(), b"\xff\xe2" + struct.pack(">H", 60002) + b"x" * 60000
        segment = b"Exif\0\0" + exif(orientation)
        path.write_bytes(data[:2] + 8 * filling + b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + data[2:])
    elif kind == "tiff":
        photo.save(path, tiffinfo={0x0112: orientation})
    else:
        photo.save(path, exif=wanted, **({} if kind == "png" else {"quality": 97}))
    return path


TURNS = ((1, 0, 0, 1), (-1, 0, 0, 1), (-1, 0, 0, -1), (1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0), (0, -1, 1, 0))
"""How photos of the orientations 1 to 8 are shown, as `display_matrix` says it."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "late.jpg", "png", "late.png", "webp", "avif", "tiff"])
def test_photos_come_upright_wherever_their_orientation_stands(tmp_path: Path, kind: str, orientation: int) -> None:
    path = oriented(tmp_path, kind, orientation)
    expected = upright(picture(0, SIZE), TURNS[orientation - 1])
    info = media.probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert np.abs(shown(path)[0].astype(int) - expected).mean() < 6


def test_damaged_orientation_is_none(tmp_path: Path) -> None:
    path = oriented(tmp_path, "late.jpg", 6)
    path.write_bytes(path.read_bytes().replace(exif(6), b"II*\0" + b"\xff" * (len(exif(6)) - 4)))
    assert np.abs(shown(path)[0].astype(int) - picture(0, SIZE)).mean() < 6


# -------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((2000, 2000), (2000, 2000)),
        ((2001, 2000), (1920, 1920)),
        ((6000, 4000), (1920, 1280)),
        ((1500, 4500), (640, 1920)),
        ((9001, 600), (1920, 128)),
    ],
)
def test_large_photos_are_scaled_to_fit(tmp_path: Path, size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert (size[0] * size[1] > LARGE_PHOTO_PX) == (size != fitted)
    photo = Image.fromarray(picture(0, SIZE)).resize(size, Image.Resampling.BILINEAR)
    path = tmp_path / "photo.jpg"
    photo.save(path, quality=90)
    at, info = media.fitted_photo(path, media.probe(path))
    assert (info.width, info.height, info.path, info.is_still) == (*fitted, path, True)
    assert max(fitted) <= FITTED_PX or at == path
    with closing(media.read_frames(at)) as chunks:
        (pixels,) = next(chunks).pixels
    expected = np.asarray(photo.resize(fitted, Image.Resampling.BOX))
    assert np.abs(pixels.astype(int) - expected).mean() < 4


def test_large_videos_keep_their_size(tmp_path: Path) -> None:
    path = save_video(tmp_path / "large.mkv", "ffv1", "bgra", [cut_out(0)])
    info = media.probe(path)
    large = type(info)(path, 3000, 2000, info.time_base, info.frame_rate, Fraction(1))
    assert media.fitted_photo(path, large) == (path, large)
