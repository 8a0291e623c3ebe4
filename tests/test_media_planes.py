"""media.read_planes: the same pictures at the same times as read_frames, and stored bits reach the output untouched."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import draw_photo, draw_video, picture
from numpy.typing import NDArray

from lipdub.errors import UnreadableMedia
from lipdub.media import Writer, probe, read_frames, read_planes, read_span, to_planes
from lipdub.media.pictures import SPAN_FRAMES
from lipdub.records import FrameChunk


def planes(path: Path) -> NDArray[np.uint8]:
    return np.concatenate([chunk.data for chunk in read_planes(path)])


def shown(path: Path) -> NDArray[np.int16]:
    """What the planes show, int16 RGB."""
    return np.stack(
        [
            chunk.picture(row).rgb(0, 0, chunk.width, chunk.height).astype(np.int16)
            for chunk in read_planes(path)
            for row in range(len(chunk))
        ]
    )


def pictures(path: Path) -> NDArray[np.int16]:
    return np.concatenate([chunk.pixels for chunk in read_frames(path)]).astype(np.int16)


def calm(count: int = 4, size: tuple[int, int] = (96, 64)) -> list[NDArray[np.uint8]]:
    """Coloured pictures without edges: how chroma is sampled makes no difference to them."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    waves = [128 + 60 * np.sin(x / 30), 128 + 50 * np.cos(y / 25), 128 + 40 * np.sin((x + y) / 40)]
    return [(np.stack(waves, -1) + 3 * k).astype(np.uint8) for k in range(count)]


TAGS = [(1, 1, 1, 1), (1, 2, 1, 1), (5, 1, 6, 6), (6, 2, 6, 6), (9, 1, 9, 14), (4, 1, 4, 4), (7, 1, 7, 7)]


@pytest.mark.parametrize("tags", [None, *TAGS])
def test_planes_show_the_colours_of_every_matrix_and_range(tmp_path: Path, tags: Any) -> None:
    draw_video(tmp_path / "in.mp4", pictures=calm(), tags=tags, options={"crf": "1"})
    assert np.abs(shown(tmp_path / "in.mp4") - pictures(tmp_path / "in.mp4")).max() <= 3


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("libx264", "yuv420p"), ("libx264", "yuv422p"), ("libx264", "yuv444p"), ("libx264", "yuv420p10le"), ("libx264", "gray"),
     ("libx264rgb", "rgb24"), ("ffv1", "bgr0"), ("mjpeg", "yuvj422p"), ("mpeg2video", "yuv420p")],
)  # fmt: skip
def test_every_kind_of_pixel_is_sampled_into_the_same_picture(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    options = {"crf": "1"} if codec.startswith("libx264") else {"qmin": "1", "qmax": "2"} if codec != "ffv1" else {}
    grey = pix_fmt == "gray"
    drawn = [np.repeat(pixels[..., :1], 3, axis=2) if grey else pixels for pixels in calm()]
    tags = (5, 2, 5, 5) if pix_fmt == "yuvj422p" else None
    draw_video(tmp_path / "in.mkv", pictures=drawn, codec=codec, pix_fmt=pix_fmt, options=options, tags=tags)
    difference = np.abs(shown(tmp_path / "in.mkv") - pictures(tmp_path / "in.mkv"))
    # Chroma that was sharper, or RGB, is rounded once more on its way into planes.
    assert difference.max() <= 6
    assert difference.mean() < 1.2


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [(96, 64), (97, 63)])
def test_planes_are_upright(tmp_path: Path, degrees: int, mirrored: bool, size: tuple[int, int]) -> None:
    options = {"pix_fmt": "yuv444p"} if size[0] % 2 else {}
    draw_video(tmp_path / "in.mp4", pictures=calm(size=size), display=(degrees, mirrored), **options)  # type: ignore[arg-type]
    seen = shown(tmp_path / "in.mp4")
    assert seen.shape == pictures(tmp_path / "in.mp4").shape
    difference = np.abs(seen - pictures(tmp_path / "in.mp4"))
    assert difference.max() <= 6
    assert difference.mean() < 1.2


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg"])
@pytest.mark.parametrize("size", [(96, 64), (97, 63)])
def test_a_photo_becomes_the_planes_that_its_output_carries(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    draw_photo(tmp_path / name, size=size)
    (chunk,) = read_planes(tmp_path / name)
    assert not chunk.color.full
    with Writer(tmp_path / "a.mp4", probe(tmp_path / name), crf=0, preset="medium", time_base=Fraction(1, 25)) as writer:
        writer.write(chunk.timed(0, np.zeros(1, np.int64), Fraction(1, 25)))
    (pixels,) = read_frames(tmp_path / name)
    drawn = to_planes(FrameChunk(0, pixels.pixels, np.zeros(1, np.int64), Fraction(1, 25)), probe(tmp_path / name))
    assert drawn.color == chunk.color
    with Writer(tmp_path / "b.mp4", probe(tmp_path / name), crf=0, time_base=Fraction(1, 25), preset="medium") as writer:
        writer.write(drawn)
    assert (pictures(tmp_path / "a.mp4") == pictures(tmp_path / "b.mp4")).all()


@pytest.mark.parametrize("tags", [None, *TAGS])
@pytest.mark.parametrize("size", [(96, 64), (97, 63)])
def test_drawn_pictures_become_planes_that_show_them(tmp_path: Path, tags: Any, size: tuple[int, int]) -> None:
    """In the colours of any video, and in those of none."""
    draw_video(tmp_path / "in.mp4", frames=1, tags=tags)
    drawn = FrameChunk(3, np.stack(calm(size=size)), np.array([2, 5, 6, 9]), Fraction(1, 30))
    for info in (probe(tmp_path / "in.mp4"), None):
        chunk = to_planes(drawn, info)
        assert (chunk.index, chunk.pts.tolist(), chunk.time_base) == (3, [2, 5, 6, 9], Fraction(1, 30))
        assert (chunk.width, chunk.height, chunk.color.full) == (*size, info is None or info.color.range == 2)
        shown = np.stack([chunk.picture(row).rgb(0, 0, *size) for row in range(4)]).astype(int)
        assert np.abs(shown - drawn.pixels).max() <= 6
        assert np.abs(shown - drawn.pixels).mean() < 1.2


@pytest.mark.parametrize("tags", [None, (1, 1, 1, 1), (6, 2, 6, 6)])
@pytest.mark.parametrize("size", [(96, 64), (98, 62)])
def test_stored_bits_reach_the_output_untouched(tmp_path: Path, tags: Any, size: tuple[int, int]) -> None:
    draw_video(tmp_path / "in.mp4", size=size, frames=9, tags=tags)
    info = probe(tmp_path / "in.mp4")
    with Writer(tmp_path / "out.mp4", info, crf=0, preset="ultrafast") as writer:
        for chunk in read_planes(tmp_path / "in.mp4"):
            writer.write(chunk)
    assert (planes(tmp_path / "in.mp4") == planes(tmp_path / "out.mp4")).all()
    assert probe(tmp_path / "out.mp4").color == info.color


def test_times_and_chunks_are_those_of_read_frames(tmp_path: Path) -> None:
    ticks = [507, 1531, 2043, 2044, 4000, 9001, 9500, 15360, 15361, 30000]
    draw_video(tmp_path / "in.mp4", pts=ticks, time_base=Fraction(1, 15360))
    one, other = (list(read(tmp_path / "in.mp4")) for read in (read_frames, read_planes))
    assert np.concatenate([chunk.pts for chunk in other]).tolist() == np.concatenate([chunk.pts for chunk in one]).tolist()
    assert [chunk.time_base for chunk in other] == [chunk.time_base for chunk in one]
    small = list(read_planes(tmp_path / "in.mp4", chunk_bytes=1))
    assert [(chunk.index, len(chunk)) for chunk in small] == [(k, 1) for k in range(10)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".h264", ".gif"])
def test_a_span_of_planes_is_what_reading_on_gives(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in{suffix}"
    coded: dict[str, Any] = {"codec": "gif", "pix_fmt": "rgb8", "fps": 10} if suffix == ".gif" else {"options": {"bf": "2", "g": "10"}}
    draw_video(path, frames=45, **coded)
    pts = np.concatenate([chunk.pts for chunk in read_planes(path)])
    whole = planes(path)
    for first, end in ((0, 1), (0, 3), (7, 12), (8, 9), (9, 11), (10, 12), (20, 36), (5, 45), (44, 45)):
        span = read_span(path, pts, first, end)
        assert span.index == max(first, end - SPAN_FRAMES)
        assert span.index + len(span) == end
        assert (span.data == whole[span.index : end]).all()
        assert span.pts.tolist() == pts[span.index : end].tolist()
    with pytest.raises(UnreadableMedia, match="no longer holds"):
        read_span(path, np.arange(100) * int(pts[1]), 60, 62)


def test_a_picture_of_another_size_in_the_middle_is_scaled_to_the_first(tmp_path: Path) -> None:
    for name, size, first in (("a", (96, 64), 0), ("b", (64, 48), 6)):
        drawn = [picture(0, size)] * 6
        draw_video(tmp_path / f"{name}.ts", pictures=drawn, pts=range(first, first + 6), codec="mpeg2video", options={"qmax": "3"})
    (tmp_path / "joined.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    chunks = list(read_planes(tmp_path / "joined.ts"))
    assert {(chunk.width, chunk.height) for chunk in chunks} == {(96, 64)}
    assert sum(len(chunk) for chunk in chunks) > 6
