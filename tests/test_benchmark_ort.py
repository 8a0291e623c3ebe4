"""The sweep over ONNX Runtime's settings: what it feeds, what it compares, and that each precision runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes import write_fake_bundle

from benchmarks import ort
from benchmarks.ort_precisions import PRECISIONS, write_in_precision
from lipdub.bundles import bundle
from lipdub.runtime import Tuning


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Two clips as `lipdub prepare` leaves them, larger than the network's crop by a margin; rows of each clip bear its number."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    for number in (1, 2):
        crops = np.full((5, 40, 40, 3), 100 * number, np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
        np.save(folder / f"{number}.crops.npy", crops)
        np.savez(folder / f"{number}.npz", mel=np.zeros((80, 40), np.float16), times_s=np.arange(5) / 25)
    return folder


def test_held_out_crops_are_of_other_clips(prepared: Path, tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "model")
    ort.write_crops(prepared, tmp_path / "model", tmp_path)
    with np.load(tmp_path / "crops.npz") as rows:
        assert rows["targets"].shape == rows["references"].shape == (ort.CALIBRATION_ROWS + ort.HELD_OUT_ROWS, 32, 32, 3)
        assert rows["features"].shape == (ort.CALIBRATION_ROWS + ort.HELD_OUT_ROWS, 4)
        assert (rows["targets"][: ort.CALIBRATION_ROWS] < 200).all()
        assert (rows["targets"][-ort.HELD_OUT_ROWS :] >= 200).all()
        assert (rows["targets"] != rows["references"]).all()


def test_a_folder_without_clips_is_said(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "model")
    with pytest.raises(SystemExit, match="holds fewer than two prepared clips"):
        ort.write_crops(tmp_path, tmp_path / "model", tmp_path)


def test_a_row_measures_and_compares_with_the_first(prepared: Path, tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "model")
    ort.write_crops(prepared, tmp_path / "model", tmp_path)
    model = str(tmp_path / "model")
    task: dict[str, Any] = {
        "crops": str(tmp_path),
        "device": "cpu",
        "seconds": 0.01,
        "threads": 1,
        "tuning": {},
        "model": model,
        "spec": model,
    }
    first = ort.measure(task)
    assert (first["psnr_db"], first["max_levels"], first["batch"]) == (None, 0.0, 8)
    assert first["crops_per_s"] == pytest.approx(1e3 / first["wall_ms"])
    assert ort.measure(task | {"tuning": {"batch": 3, "spin": True}})["batch"] == 3
    darker = np.load(tmp_path / "drawn.npy").astype(int) - 2
    np.save(tmp_path / "drawn.npy", darker)
    other = ort.measure(task)
    assert other["max_levels"] == 2.0
    assert other["psnr_db"] == pytest.approx(10 * np.log10(255**2 / 4))


@pytest.mark.parametrize("changes", [ort.CPU_CHANGES, ort.CUDA_CHANGES])
def test_every_change_is_one_that_there_is(changes: tuple[dict[str, Any], ...]) -> None:
    assert len({Tuning(**change) for change in changes}) == len(changes)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_gives_a_graph_that_differs_as_it_should(tmp_path: Path, precision: str) -> None:
    """A convolution of its own: the fake bundle has none."""
    names = (bundle.TARGET, bundle.REFERENCE, bundle.LIP_FEATURE)
    weights = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32) / 5
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", [bundle.TARGET, "weights"], ["one"], name="one", pads=[1] * 4),
            onnx.helper.make_node("Conv", ["one", "weights"], ["two"], name="two", pads=[1] * 4),
            *(onnx.helper.make_node("Conv", [f"{low}", "weights"], [high], name=high, pads=[1] * 4) for low, high in zip(
                ("two", "three", "four", "five"), ("three", "four", "five", bundle.FACE), strict=True)),
        ],
        "convolutions",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 3, 8, 8]) for name in names[:1]],
        [onnx.helper.make_tensor_value_info(bundle.FACE, onnx.TensorProto.FLOAT, ["B", 3, 8, 8])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10), tmp_path / "a.onnx")
    feeds = {bundle.TARGET: np.random.default_rng(1).uniform(-1, 1, (8, 3, 8, 8)).astype(np.float32)}
    write_in_precision(tmp_path / "a.onnx", tmp_path / "b.onnx", precision, feeds)
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "b.onnx")).graph.node}
    wanted = {"float32": {"Conv"}, "float16": {"Cast", "Conv"}, "int8-dynamic": {"ConvInteger"}}.get(precision, {"QuantizeLinear", "Conv"})
    assert wanted <= kinds
    assert ("QuantizeLinear" in kinds) == precision.startswith("int8-static")
