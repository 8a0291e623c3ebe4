"""What lies between the lips: where it is painted and where nothing changes, how fine it is, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from test_warp import CROP, drawn_by, face, painted_mouth

from lipdub.bundles import bundle, interior
from lipdub.bundles.interior import CHANNELS, FINER, GRAPH, PAINTED, SEEN, SIZE, WINDOW
from lipdub.errors import BundleInvalid
from lipdub.generators.interior import STEP_PX, InteriorPainter, corner_of, hole_of, open_interior, seen_with_hole
from lipdub.generators.warp import SHUT, Warp
from lipdub.records import CropSpec, Drawn


def toy_interior(folder: Path, *, red: float = 1.0, green: float = -1.0, stripes: float = 0.0, by_mean: float = 0.0) -> Path:
    """A folder with a network that paints one colour, in [-1, 1], with vertical `stripes` of one px of that strength in blue, and redder
    by so much of the mean of what it sees."""
    rows, columns = (FINER * extent for extent in WINDOW)
    colour = np.zeros((1, 3, rows, columns), np.float32)
    colour[:, 0], colour[:, 1] = red, green
    colour[:, 2, :, ::2], colour[:, 2, :, 1::2] = stripes, -stripes
    only_red = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
    nodes = [
        helper.make_node("ReduceMean", [SEEN, "axes"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "by_mean"], ["more"]),
        helper.make_node("Add", ["more", "colour"], [PAINTED]),
    ]
    constants = {"colour": colour, "by_mean": by_mean * only_red, "axes": np.array([1, 2, 3], np.int64)}
    graph = helper.make_graph(
        nodes, "toy",
        [helper.make_tensor_value_info(SEEN, TensorProto.FLOAT, ["batch", CHANNELS, *WINDOW])],
        [helper.make_tensor_value_info(PAINTED, TensorProto.FLOAT, ["batch", 3, rows, columns])],
        [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()],
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / GRAPH)
    interior.finish(folder, interior.InteriorSpec("toy", interior.FORMAT_VERSION, "CC0-1.0", "nothing", {}, "0"))
    return folder


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> InteriorPainter:
    return InteriorPainter(toy_interior(tmp_path_factory.mktemp("red")), CROP, device="cpu", threads=1)


def warped(opening: float) -> tuple[Drawn, NDArray[np.float32]]:
    """A drawn mouth as far open as that, and where its points lie."""
    points = face(opening)
    picture = painted_mouth(points, 20)
    return drawn_by(picture, picture, points, points), points


@given(opening=st.floats(0.02, 0.08), across=st.floats(-0.1, 0.1), down=st.floats(-0.1, 0.1))
@settings(max_examples=30, deadline=None)
def test_the_hole_lies_in_the_window_and_covers_what_is_between_the_lips(opening: float, across: float, down: float) -> None:
    points = face(opening) + np.array([across, down], np.float32)
    corner = corner_of(points)
    assert all(at % STEP_PX == 0 and 0 <= at <= SIZE - extent for at, extent in zip(corner, WINDOW, strict=True))
    hole = hole_of(points, corner)
    assert hole.shape == tuple(FINER * extent for extent in WINDOW)
    inner = points[20:40]
    middle = np.floor(FINER * (SIZE * inner.mean(axis=0) - np.array(corner[::-1]))).astype(int)
    assert hole[middle[1], middle[0]] == 1
    # Somewhat larger than the polygon of the inner lips, by a margin that is the same all around.
    x, y = inner.T
    area = 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) * (FINER * SIZE) ** 2
    around = float(np.linalg.norm(inner - np.roll(inner, 1, axis=0), axis=1).sum()) * FINER * SIZE
    assert area < hole.sum() < area + 4.5 * around


@given(opening=st.floats(0.02, 0.06), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_network_never_sees_what_was_between_the_lips(opening: float, seed: int) -> None:
    points = face(opening)
    corner = corner_of(points)
    hole, random = hole_of(points, corner), np.random.default_rng(seed)
    one, other = random.integers(0, 256, (2, *WINDOW, 3), dtype=np.uint8)
    seen = seen_with_hole(one, hole)
    whole = seen[3] == 1
    assert whole.sum() > 20
    assert (seen[:3, whole] == 0).all()
    changed = np.where(whole[..., None], other, one)
    assert (seen_with_hole(changed, hole) == seen).all()
    outside = seen[3] == 0
    np.testing.assert_allclose(127.5 * (seen[:3, outside].T + 1), one[outside], atol=0.01)


@given(opening=st.floats(1.2 * SHUT, 0.06))
@settings(max_examples=15, deadline=None)
def test_the_inside_is_painted_and_all_else_stays(red: InteriorPainter, opening: float) -> None:
    before, points = warped(opening)
    found = red.paint(before, points[None])
    assert found.copied is not None
    assert before.copied is not None
    share = np.zeros((SIZE, SIZE), np.uint8)
    share[64:128, 16:112] = found.copied.paint_mask[0]
    assert (found.pixels[0][share == 0] == before.pixels[0][share == 0]).all()
    assert share[painted_mouth(points, 20)[..., 0] == 180].max() < 128
    assert found.copied.own is before.copied.own
    if opening > 2 * SHUT:
        inside = found.pixels[0][share > 250]
        assert len(inside) > 20
        assert (inside[:, 0] > 240).mean() > 0.6
        assert (inside[:, 1] < 15).mean() > 0.6


def test_lips_that_are_shut_are_not_painted(red: InteriorPainter) -> None:
    before, points = warped(0.25 * SHUT)
    found = red.paint(before, points[None])
    assert (found.pixels == before.pixels).all()
    assert found.copied is not None
    assert not found.copied.paint_mask.any()
    assert found.finer is not None
    assert not found.finer.any()


def test_each_mouth_is_painted_as_alone(tmp_path: Path) -> None:
    """Whatever is drawn together, shut ones among them; each hole brings its own picture."""
    painter = InteriorPainter(toy_interior(tmp_path, red=-1.0, by_mean=2.0), CROP, device="cpu", threads=1)
    mouths = [warped(opening) for opening in (0.02, 0.001, 0.06, 0.04)]
    alone = [painter.paint(drawn, points[None]) for drawn, points in mouths]
    together = drawn_together([drawn for drawn, _ in mouths])
    found = painter.paint(together, np.stack([points for _, points in mouths]))
    for slot, one in enumerate(alone):
        np.testing.assert_array_equal(found.pixels[slot], one.pixels[0])
        assert found.finer is not None
        assert one.finer is not None
        np.testing.assert_array_equal(found.finer[slot], one.finer[0])
    assert alone[0].pixels[0, 92, 64, 0] != alone[2].pixels[0, 92, 64, 0]


def drawn_together(parts: list[Drawn]) -> Drawn:
    copied = [part.copied for part in parts if part.copied is not None]
    whole = type(copied[0])(np.concatenate([one.paint_mask for one in copied]), np.concatenate([one.flow for one in copied]))
    return Drawn(np.concatenate([part.pixels for part in parts]), whole)


def test_what_a_crop_cannot_hold_is_handed_on(tmp_path: Path) -> None:
    """Stripes of half a px: of them the crop shows the mean, and `finer` all the rest."""
    painter = InteriorPainter(toy_interior(tmp_path, stripes=0.8), CROP, device="cpu", threads=1)
    before, points = warped(0.06)
    found = painter.paint(before, points[None])
    assert found.finer is not None
    assert found.finer.shape == (1, FINER * 64, FINER * 96, 3)
    y, x = FINER * (92 - 64), FINER * (64 - 16)
    row = found.finer[0, y, x - 8 : x + 8]
    np.testing.assert_allclose(np.abs(row[:, 2]), 0.8 * 127.5, atol=2)
    assert (np.sign(row[:-1, 2]) == -np.sign(row[1:, 2])).all()
    np.testing.assert_allclose(row[:, :2], 0, atol=1)
    assert abs(int(found.pixels[0, 92, 64, 2]) - 128) <= 2
    corners = found.finer[0][[0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any()


def test_a_network_that_paints_no_picture_is_named(tmp_path: Path) -> None:
    painter = InteriorPainter(toy_interior(tmp_path, red=float("nan")), CROP, device="cpu", threads=1)
    drawn, points = warped(0.05)
    with pytest.raises(BundleInvalid, match="NaN"):
        painter.paint(drawn, points[None])


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = toy_interior(tmp_path / "interior")
    assert interior.load_spec(folder).name == "toy"
    (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes() + b"x")
    with pytest.raises(BundleInvalid, match=GRAPH):
        interior.load_spec(folder)
    (folder / interior.SPEC_FILE).write_text("{}")
    with pytest.raises(BundleInvalid):
        interior.load_spec(folder)


def test_a_bundle_that_does_not_tell_where_lips_lie_has_none() -> None:
    spec = bundle.load_spec(bundle.resolve("base"))
    assert open_interior(spec, device="cpu", threads=1) is not None
    assert open_interior(replace(spec, points=False), device="cpu", threads=1) is None


@pytest.mark.parametrize("size", [64, 96, 256])
def test_crops_of_another_size_are_painted_alike(red: InteriorPainter, tmp_path: Path, size: int) -> None:
    whole = CropSpec(size, (size // 2, size, size // 8, size - size // 8), size // 2)
    other = InteriorPainter(toy_interior(tmp_path), whole, device="cpu", threads=1)
    points = face(0.05)
    picture = cv2.resize(painted_mouth(points, 20), (size, size), interpolation=cv2.INTER_AREA)
    (flow,) = Warp(whole).flows(points[None], points)
    drawn = Warp(whole).draw(picture[None], picture[None], flow[None])
    found, wanted = other.paint(drawn, points[None]), red.paint(warped(0.05)[0], points[None])
    assert (found.finer is None) == (256 % size != 0 or size == 256)
    here, there = (cv2.resize(one.pixels[0], (64, 64), interpolation=cv2.INTER_AREA).astype(int) for one in (found, wanted))
    assert np.abs(here - there).mean() < 3


def test_ours_paints_a_dark_or_toothed_inside_and_not_skin() -> None:
    """On a drawn face: what is painted differs from the skin around, and is the same twice."""
    spec = bundle.load_spec(bundle.resolve("base"))
    painter = open_interior(spec, device="cpu", threads=1)
    assert painter is not None
    before, points = warped(0.05)
    found, again = (painter.paint(before, points[None]) for _ in range(2))
    np.testing.assert_array_equal(found.pixels, again.pixels)
    assert found.copied is not None
    inside = found.copied.paint_mask[0] > 250
    painted = found.pixels[0, 64:128, 16:112][inside].astype(float)
    assert np.abs(painted - 180).mean() > 25
    assert painted.std() > 5
