"""Sessions: the device is the one that really runs, and the graph is the one that was expected."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fakes import write_fake_bundle
from onnx import TensorProto, helper, numpy_helper

from lipdub import bundle, runtime
from lipdub.bundle import GraphTensors
from lipdub.errors import BundleInvalid, LipdubError, ModelError, ProviderUnavailable
from lipdub.records import Device
from lipdub.runtime import CPU, CUDA, Session, open_session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_fake_bundle(tmp_path)
    return tmp_path


@pytest.fixture
def memory(folder: Path) -> GraphTensors:
    return bundle.tensors(bundle.MEMORY_GRAPH, bundle.load_spec(folder))


@pytest.fixture(autouse=True)
def forget_preloading() -> Iterator[None]:
    yield
    runtime._preload_cuda.cache_clear()


def opened(path: Path, tensors: GraphTensors, device: Device = "cpu", threads: int | None = None) -> Session:
    return open_session(path, device=device, threads=threads, inputs=tensors.inputs, outputs=tensors.outputs)


def mel(count: int) -> dict[str, Any]:
    return {"mel": np.zeros((count, 1, 80, 16), np.float32)}


def save_identity(path: Path, shape: list[int | str], out_shape: list[int | str] | None = None, kind: int = TensorProto.FLOAT) -> None:
    """A graph a -> b that gives back what it gets."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "identity",
        [helper.make_tensor_value_info("a", kind, shape)],
        [helper.make_tensor_value_info("b", kind, out_shape or shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


IDENTITY = GraphTensors(inputs={"a": ("B", 3)}, outputs={"b": ("B", 3)})


# ---- running


@pytest.mark.parametrize("count", [1, 2, 16, 33])
def test_any_batch_size_runs(folder: Path, memory: GraphTensors, count: int) -> None:
    session = opened(folder / "memory.onnx", memory)
    answer = session.run(mel(count))
    assert session.provider == CPU
    assert list(answer) == ["address", "lip_feature"]
    assert answer["address"].shape == (count, 8)
    assert answer["address"].dtype == np.float32


def test_threads_really_reach_onnxruntime(folder: Path, memory: GraphTensors) -> None:
    """ORT swallows misspelt keywords (`sess_opt=`), and the options then never apply."""
    session: Any = opened(folder / "memory.onnx", memory, threads=1)
    options = session._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.use_deterministic_compute
    with pytest.raises(ValueError, match="threads must be positive"):
        opened(folder / "memory.onnx", memory, threads=0)


def test_an_input_that_does_not_fit_is_one_line(folder: Path, memory: GraphTensors) -> None:
    session = opened(folder / "memory.onnx", memory)
    with pytest.raises(ModelError, match=r"memory\.onnx failed on CPUExecutionProvider") as caught:
        session.run({"mel": np.zeros((1, 1, 80, 15), np.float32)})
    assert "\n" not in str(caught.value)


# ---- graphs that are refused


@pytest.mark.parametrize("content", [b"", b"no graph at all" * 20, None], ids=["empty", "garbage", "truncated"])
@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_a_corrupt_graph_is_the_bundles_fault_on_every_device(
    folder: Path, memory: GraphTensors, content: bytes | None, device: Device
) -> None:
    path = folder / "memory.onnx"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(BundleInvalid, match=r"memory\.onnx is no usable ONNX graph") as caught:
        opened(path, memory, device)
    assert "\n" not in str(caught.value)


def test_a_missing_graph_is_named(folder: Path, memory: GraphTensors) -> None:
    with pytest.raises(BundleInvalid, match=r"nowhere\.onnx cannot be read"):
        opened(folder / "nowhere.onnx", memory)


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_swapped_graphs_are_noticed(folder: Path, memory: GraphTensors, device: Device) -> None:
    with pytest.raises(BundleInvalid) as caught:
        opened(folder / "generator.onnx", memory, device)
    assert str(caught.value).endswith(
        "generator.onnx takes target float (B, 3, 32, 32), reference float (B, 3, 32, 32), lip_feature float (B, 4); "
        "expected mel float (B, 1, 80, 16): graphs swapped, or of another export?"
    )


@pytest.mark.parametrize(
    ("shape", "out_shape", "kind", "message"),
    [
        ([1, 3], None, TensorProto.FLOAT, r"takes a float \(1, 3\); expected a float \(B, 3\)"),
        (["B", 4], None, TensorProto.FLOAT, r"takes a float \(B, 4\)"),
        (["B", 3, 1], None, TensorProto.FLOAT, r"takes a float \(B, 3, 1\)"),
        (["B", "C"], None, TensorProto.FLOAT, r"takes a float \(B, C\)"),
        (["B", 3], None, TensorProto.FLOAT16, r"takes a float16 \(B, 3\)"),
    ],
)
def test_other_tensors_are_refused(
    tmp_path: Path, shape: list[int | str], out_shape: list[int | str] | None, kind: int, message: str
) -> None:
    save_identity(tmp_path / "a.onnx", shape, out_shape, kind)
    with pytest.raises(BundleInvalid, match=message):
        opened(tmp_path / "a.onnx", IDENTITY)


def test_an_output_may_leave_a_size_open_but_not_give_another(tmp_path: Path) -> None:
    save_identity(tmp_path / "a.onnx", ["B", 3], ["B", "C"])
    session = opened(tmp_path / "a.onnx", IDENTITY)
    assert session.run({"a": np.ones((2, 3), np.float32)})["b"].shape == (2, 3)
    # The size is computed while running, so only the answer itself can be checked.
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["a"], ["shape"]),
            helper.make_node("Mul", ["shape", "twice"], ["larger"]),
            helper.make_node("Expand", ["one", "larger"], ["b"]),
        ],
        "larger",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["B", 3])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", "C"])],
        [numpy_helper.from_array(np.array([1, 2]), "twice"), numpy_helper.from_array(np.ones((1, 1), np.float32), "one")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "a.onnx")
    session = opened(tmp_path / "a.onnx", IDENTITY)
    with pytest.raises(BundleInvalid, match=r"a\.onnx gave b of shape \(2, 6\), not \(2, 3\)"):
        session.run({"a": np.ones((2, 3), np.float32)})


def test_weights_in_a_second_file_are_refused(tmp_path: Path) -> None:
    """A hash of the graph would not cover them."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "weight"], ["b"])],
        "add",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["B", 3])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["B", 3])],
        [numpy_helper.from_array(np.ones(3, np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save_model(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.onnx.data", size_threshold=0)
    with pytest.raises(BundleInvalid, match="no usable ONNX graph"):
        opened(tmp_path / "a.onnx", IDENTITY)


# ---- devices


def test_auto_is_quiet(folder: Path, memory: GraphTensors, capfd: pytest.CaptureFixture[str]) -> None:
    session = opened(folder / "memory.onnx", memory, "auto")
    assert session.provider in (CPU, CUDA)
    assert capfd.readouterr() == ("", "")


def test_cuda_that_does_not_load_is_an_error(folder: Path, memory: GraphTensors, capfd: pytest.CaptureFixture[str]) -> None:
    if opened(folder / "memory.onnx", memory, "auto").provider == CUDA:
        pytest.skip("CUDA loads on this machine")
    with pytest.raises(ProviderUnavailable, match=r"CUDA did not load: .*or use --device cpu") as caught:
        opened(folder / "memory.onnx", memory, "cuda")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


class FakeSession:
    """Stands in for ``ort.InferenceSession`` on a machine whose CUDA loads, refuses, falls back or breaks when run."""

    behaviour = "loads"

    def __init__(self, graph: bytes, *, sess_options: object, providers: list[str], enable_fallback: int) -> None:
        assert enable_fallback == 0
        if providers[0] == CUDA and self.behaviour == "refuses":
            raise RuntimeError("CUDA failure 100:\nno CUDA-capable device is detected")
        self.real = REAL(graph, sess_options=sess_options, providers=[CPU])
        self.providers = [CPU] if self.behaviour == "falls back" else providers

    def get_providers(self) -> list[str]:
        return self.providers

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def run(self, names: list[str] | None, feeds: dict[str, Any]) -> Any:
        if self.behaviour == "breaks" and self.providers[0] == CUDA:
            raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED")
        return self.real.run(names, feeds)


REAL = ort.InferenceSession


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An onnxruntime with CUDA compiled in whose libraries load, and `FakeSession` for a session."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    return monkeypatch


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_cuda_that_loads_is_used(folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch, device: Device) -> None:
    session = opened(folder / "memory.onnx", memory, device)
    assert session.provider == CUDA
    assert session.run(mel(2))["address"].shape == (2, 8)


def test_cpu_asked_for_is_cpu_also_where_cuda_loads(folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch) -> None:
    assert opened(folder / "memory.onnx", memory, "cpu").provider == CPU


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("refuses", "CUDA failure 100: no CUDA-capable device is detected; check the driver with nvidia-smi"),
        ("falls back", "no usable GPU or driver; check with nvidia-smi"),
        ("breaks", "CUDNN_STATUS_NOT_INITIALIZED"),
    ],
)
def test_cuda_counts_only_after_it_has_run(
    folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch, behaviour: str, reason: str
) -> None:
    machine.setattr(FakeSession, "behaviour", behaviour)
    assert opened(folder / "memory.onnx", memory, "auto").provider == CPU
    with pytest.raises(ProviderUnavailable, match=reason):
        opened(folder / "memory.onnx", memory, "cuda")


def test_a_library_that_is_missing_is_named(
    folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ORT prints what it could not load; it reaches the user in the error, and nowhere else."""
    machine.setattr(FakeSession, "behaviour", "falls back")
    machine.setattr(ort, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublas.so.13: no such file\nPlease follow\n"))
    with pytest.raises(ProviderUnavailable, match=r"Failed to load libcublas\.so\.13: no such file; pip install"):
        opened(folder / "memory.onnx", memory, "cuda")
    assert capsys.readouterr().out == ""


def test_an_onnxruntime_without_cuda_says_what_to_install(folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(ort, "get_available_providers", lambda: [CPU])
    assert opened(folder / "memory.onnx", memory, "auto").provider == CPU
    with pytest.raises(ProviderUnavailable, match="install onnxruntime-gpu in place of onnxruntime"):
        opened(folder / "memory.onnx", memory, "cuda")


def test_every_onnxruntime_error_is_mapped() -> None:
    """Session errors leave `open_session` and `run` as ours only."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    for name in ("Fail", "InvalidGraph", "InvalidProtobuf", "InvalidArgument", "NoSuchFile", "RuntimeException", "EPFail"):
        assert getattr(state, name) in runtime._ORT_ERRORS
    assert not any(issubclass(LipdubError, kind) for kind in runtime._ORT_ERRORS)
