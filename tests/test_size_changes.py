"""Pictures whose size changes on the way: all of them come in the first one's, in both directions of play."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from drawn import draw_video
from numpy.typing import NDArray

from lipdub.media import play, probe, read_frames, read_planes, read_span
from lipdub.records import DubWarning
from lipdub.timeline import plan

SIZES = [
    ((96, 64), (64, 96)),
    ((64, 96), (96, 64)),
    ((98, 62), (64, 64)),
    ((96, 64), (48, 32)),
    ((48, 32), (96, 64)),
    ((96, 64), (128, 32)),
]


def joined(folder: Path, first: tuple[int, int], second: tuple[int, int], suffix: str) -> Path:
    """Thirty frames of one size, thirty of another, joined as ``cat`` does; white, with a red patch in the middle."""
    whole = b""
    for size in (first, second):
        white = np.full((size[1], size[0], 3), 255, np.uint8)
        white[size[1] // 2 - 8 : size[1] // 2 + 8, size[0] // 2 - 8 : size[0] // 2 + 8] = (200, 20, 20)
        codec = "mpeg2video" if suffix == ".mpg" else "libx264"
        draw_video(folder / f"piece{suffix}", pictures=[white] * 30, codec=codec, options={"g": "5", "b": "4000000"})
        whole += (folder / f"piece{suffix}").read_bytes()
    path = folder / f"joined{suffix}"
    path.write_bytes(whole)
    return path


def box_of_light(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height of what is not black."""
    lit = pixels.max(axis=2) > 60
    return int(lit.any(axis=0).sum()), int(lit.any(axis=1).sum())


@pytest.mark.parametrize("suffix", [".h264", ".ts", ".mpg"])
@pytest.mark.parametrize(("first", "second"), SIZES)
def test_all_pictures_have_the_first_size_and_none_is_squeezed(tmp_path: Path, suffix: str, first, second) -> None:
    path, warnings = joined(tmp_path, first, second, suffix), []
    list(read_planes(path, warn=warnings.append))
    frames = np.concatenate([chunk.pixels for chunk in read_frames(path)])
    assert frames.shape[1:3] == first[::-1]
    assert len(frames) >= 59
    assert [warning.kind for warning in warnings] == ["picture-size-changes"]
    assert f"from {first[0]}x{first[1]} to {second[0]}x{second[1]}" in warnings[0].text
    scale = min(first[0] / second[0], first[1] / second[1])
    width, height = box_of_light(frames[-1])
    assert abs(width - scale * second[0]) <= 2
    assert abs(height - scale * second[1]) <= 2
    red = (frames[-1][..., 0] > 120) & (frames[-1][..., 1] < 120)
    assert red.any(axis=0).sum() == pytest.approx(red.any(axis=1).sum(), abs=3)  # the patch is as wide as high
    assert box_of_light(frames[0]) == first


@pytest.mark.parametrize("suffix", [".h264", ".ts"])
@pytest.mark.parametrize(("first", "second"), SIZES[:2])
def test_forth_and_back_a_frame_is_the_same_picture(tmp_path: Path, suffix: str, first, second) -> None:
    path = joined(tmp_path, first, second, suffix)
    chunks = list(read_planes(path))
    pts, base = np.concatenate([chunk.pts for chunk in chunks]), chunks[0].time_base
    forth = np.concatenate([chunk.data for chunk in chunks])
    shown = plan(pts, base, video_s=probe(path).duration_s, speech_s=Fraction(5), fit="longest", is_still=False)
    warnings: list[DubWarning] = []
    played = list(play(path, pts, shown, warnings.append))
    assert {(chunk.height, chunk.width) for chunk, _ in played} == {first[::-1]}
    pictures, sources = np.concatenate([chunk.data for chunk, _ in played]), np.concatenate([source for _, source in played])
    assert sources.tolist() == shown.source.tolist()
    assert (np.diff(sources) < 0).any()
    np.testing.assert_array_equal(pictures, forth[sources])
    np.testing.assert_array_equal(read_span(path, pts, len(pts) - 1, len(pts)).data[0], forth[-1])


def test_one_warning_for_many_changes(tmp_path: Path) -> None:
    whole = joined(tmp_path, (96, 64), (64, 96), ".h264").read_bytes()
    (tmp_path / "often.h264").write_bytes(3 * whole)
    warnings: list[DubWarning] = []
    assert sum(len(chunk) for chunk in read_planes(tmp_path / "often.h264", warn=warnings.append)) >= 178
    assert len(warnings) == 1
