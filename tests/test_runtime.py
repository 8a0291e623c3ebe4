"""Sessions: the device is the one that really runs, and the graph is the one that was expected."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from drawn import draw_video, sine, write_wav
from faces_for_tests import portrait_frames, scaled
from fakes import write_fake_bundle
from onnx import TensorProto, helper, numpy_helper

from lipdub.bundles import bundle
from lipdub.bundles.bundle import GraphTensors
from lipdub.errors import BundleInvalid, LipdubError, ModelError, ProviderUnavailable
from lipdub.options import Device
from lipdub.runtime import CPU, CUDA, DeviceMemoryFull, Session, buffers, cuda, onnx_runtime, open_session
from lipdub.runtime import session as sessions


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
    cuda._preload_cuda.cache_clear()


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


def streamed(session: Session, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`rows` through the identity graph."""
    out = np.full_like(rows, np.nan)

    def fill(at: slice, inputs: Any) -> None:
        inputs["a"][...] = rows[at]

    def collect(at: slice, outputs: Any) -> None:
        out[at] = outputs["b"]
        outputs["b"][...] = -1.0  # the arrays are the caller's until the next batch

    session.stream(len(rows), fill=fill, collect=collect)
    return out


def numbered(count: int) -> np.ndarray[Any, Any]:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 40, 41])
def test_streamed_rows_come_back_in_order(tmp_path: Path, count: int) -> None:
    save_identity(tmp_path / "a.onnx", ["B", 3])
    session = opened(tmp_path / "a.onnx", IDENTITY)
    assert session.batch == 8
    for rows in (numbered(count), numbered(3), numbered(count) + 1.0):
        np.testing.assert_array_equal(streamed(session, rows), rows)


def test_a_stream_binds_each_batch_size_once_and_allocates_nothing_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = buffers.Buffers.__init__

    def watched(self: Any, session: Any, inputs: Any, outputs: Any, size: int, *rest: Any) -> None:
        made.append(size)
        real(self, session, inputs, outputs, size, *rest)

    monkeypatch.setattr(buffers.Buffers, "__init__", watched)
    save_identity(tmp_path / "a.onnx", ["B", 3])
    session = opened(tmp_path / "a.onnx", IDENTITY)
    assert session.batch == 8
    for _ in range(3):
        streamed(session, numbered(19))
    assert made == [7, 5]
    buffer_set = session._buffer_sets[0]
    assert np.shares_memory(buffer_set.buffers(7).inputs["a"], buffer_set.buffers(5).inputs["a"])
    assert not np.shares_memory(buffer_set.buffers(7).inputs["a"], buffer_set.buffers(7).outputs["b"])


def test_two_threads_may_stream_through_one_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "CPU_BATCH", 2)
    save_identity(tmp_path / "a.onnx", ["B", 3])
    session = opened(tmp_path / "a.onnx", IDENTITY)
    rows = [numbered(200) + 1000.0 * number for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda one: streamed(session, one), rows), rows, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_an_error_of_the_caller_leaves_the_session_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "CPU_BATCH", 2)
    save_identity(tmp_path / "a.onnx", ["B", 3])
    session = opened(tmp_path / "a.onnx", IDENTITY)

    def refuse(at: slice, arrays: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        session.stream(4, fill=refuse, collect=refuse)
    np.testing.assert_array_equal(streamed(session, numbered(5)), numbered(5))


# ---- options


def test_the_options_really_reach_onnxruntime(folder: Path, memory: GraphTensors) -> None:
    session: Any = opened(folder / "memory.onnx", memory)
    options = session._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.enable_cpu_mem_arena
    assert session.batch == session.preferred_batch == 8


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot bind a process to cores")
def test_no_more_threads_than_the_process_may_use(folder: Path, memory: GraphTensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 6})
    session: Any = opened(folder / "memory.onnx", memory)
    assert session._session.get_session_options().intra_op_num_threads == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    session = opened(folder / "memory.onnx", memory)
    assert session._session.get_session_options().intra_op_num_threads == 0


# ---- telemetry


@pytest.mark.skipif(os.name != "posix", reason="HOME and XDG folders")
def test_a_dub_leaves_no_foreign_file_at_home(tmp_path: Path) -> None:
    """ONNX Runtime would keep a device's number and a database there, matplotlib (which mediapipe imports) its list of fonts."""
    home = tmp_path / "home"
    home.mkdir()
    write_fake_bundle(tmp_path / "fake")
    draw_video(tmp_path / "face.mp4", size=(256, 256), pictures=[scaled(pixels, (256, 256)) for pixels in portrait_frames(5)])
    write_wav(tmp_path / "speech.wav", sine(0.2), 16000)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_", "MPL", "LIPDUB_"))}
    arguments = ["face.mp4", "speech.wav", "-o", "out.mp4", "--model", "fake", "--device", "cpu", "--no-cache"]
    done = subprocess.run(
        [sys.executable, "-m", "lipdub", "sync", *arguments],
        cwd=tmp_path, env=kept | {"HOME": str(home)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").is_file()
    assert [str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir()] == []


CALLS_NOBODY = """
import socket, os, sys
def refuse(*given, **more):
    os.write(2, b"a socket was used")
    os._exit(77)
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.create_connection = socket.getaddrinfo = refuse
from lipdub.cli.app import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="HOME")
def test_a_dub_calls_nobody(tmp_path: Path) -> None:
    """Nothing in Python opens a connection or looks up a name, whatever a library would report home."""
    write_fake_bundle(tmp_path / "fake")
    draw_video(tmp_path / "face.mp4", size=(256, 256), pictures=[scaled(pixels, (256, 256)) for pixels in portrait_frames(5)])
    write_wav(tmp_path / "speech.wav", sine(0.2), 16000)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "LIPDUB_"))}
    arguments = ["sync", "face.mp4", "speech.wav", "-o", "out.mp4", "--model", "fake", "--device", "cpu", "--no-cache"]
    done = subprocess.run(
        [sys.executable, "-c", CALLS_NOBODY, *arguments],
        cwd=tmp_path, env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert (tmp_path / "out.mp4").is_file()


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
    with pytest.raises(BundleInvalid, match=r"a\.onnx gave an output of another shape than expected") as caught:
        streamed(session, numbered(2))
    assert "\n" not in str(caught.value)


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
    """Stands in for ``ort.InferenceSession`` on a machine whose GPU loads, refuses, falls back, breaks when run or is too small.

    The work is done by the CPU, the bookkeeping is that of a GPU: batches in flight, staged copies, batch sizes. behaviour: of CUDA. rows:
    batches that were run. fits: rows that its memory holds.
    """

    behaviour = "loads"
    fits = 1_000_000
    rows: list[int] = []  # noqa: RUF012

    def __init__(self, graph: bytes, *, sess_options: object, providers: list[Any], enable_fallback: int) -> None:
        assert enable_fallback == 0
        self.given = {one[0]: one[1] for one in providers if not isinstance(one, str)}
        names = [one if isinstance(one, str) else one[0] for one in providers]
        self.behaviour = type(self).behaviour if names[0] == CUDA else "loads"
        if self.behaviour == "refuses":
            raise RuntimeError("CUDA failure 100:\nno CUDA-capable device is detected")
        if self.behaviour == "full":
            raise RuntimeError("x" * 400 + " CUDA failure 2: out of memory ; GPU=0")
        if self.behaviour == "old driver":
            raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version")
        self.real = REAL(graph, sess_options=sess_options, providers=[CPU])
        self.providers = names[1:] if self.behaviour == "falls back" else names

    def get_providers(self) -> list[str]:
        return self.providers

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def get_provider_graph_assignment_info(self) -> Any:
        return [SimpleNamespace(ep_name=CPU if self.behaviour == "takes nothing" else self.providers[0])]

    def run(self, names: list[str] | None, feeds: dict[str, Any]) -> Any:
        if self.behaviour == "breaks":
            raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED")
        return self.real.run(names, feeds)

    def io_binding(self) -> Any:
        return self.real.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        size = binding._bound_outputs["b"].shape()[0]
        if size > self.fits:
            raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 99")
        self.rows.append(size)
        self.real.run_with_iobinding(binding)


REAL = ort.InferenceSession


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An onnxruntime with CUDA compiled in, a driver and libraries that load, and `FakeSession` for a session."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    monkeypatch.setattr(cuda, "_no_driver", lambda: "")
    monkeypatch.setattr(buffers, "_DEVICES", {CPU: "cpu", CUDA: "cpu"})
    monkeypatch.setattr(FakeSession, "rows", [])
    return monkeypatch


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_cuda_that_loads_is_used(folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch, device: Device) -> None:
    session = opened(folder / "memory.onnx", memory, device)
    assert session.provider == CUDA
    assert session.notes == ()
    assert session.run(mel(2))["address"].shape == (2, 8)


def test_cuda_is_told_how_to_work(folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch) -> None:
    session: Any = opened(folder / "memory.onnx", memory, "cuda")
    given = session._session.given[CUDA]
    assert given["cudnn_conv_algo_search"] == "HEURISTIC"
    assert given["do_copy_in_default_stream"] == "1"
    assert given["arena_extend_strategy"] == "kSameAsRequested"


def test_cpu_asked_for_is_cpu_also_where_cuda_loads(folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch) -> None:
    assert opened(folder / "memory.onnx", memory, "cpu").provider == CPU


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("refuses", "CUDA did not load: CUDA failure 100: no CUDA-capable device is detected; check the driver with nvidia-smi"),
        ("falls back", "CUDA did not load: no usable GPU; check the driver with nvidia-smi, or use --device cpu"),
        ("breaks", "CUDNN_STATUS_NOT_INITIALIZED"),
        ("full", "stop what else uses the GPU .nvidia-smi lists it., or use --device cpu"),
        ("old driver", "update the NVIDIA driver to one for CUDA"),
        ("takes nothing", "it took no node of this graph"),
    ],
)
def test_cuda_counts_only_after_it_has_run(
    folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch, behaviour: str, reason: str
) -> None:
    machine.setattr(FakeSession, "behaviour", behaviour)
    session = opened(folder / "memory.onnx", memory, "auto")
    assert session.provider == CPU
    assert len(session.notes) == 1
    with pytest.raises(ProviderUnavailable, match=reason) as caught:
        opened(folder / "memory.onnx", memory, "cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        ("libcublas.so.13", r"a library of the CUDA runtime is missing \(Failed to load libcublas\.so\.13: no such file\)"),
        ("libcudnn.so.9", r"cuDNN 9 is missing \(Failed to load libcudnn\.so\.9: no such file\)"),
    ],
)
def test_a_library_that_is_missing_is_named(
    folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], library: str, reason: str
) -> None:
    """ORT prints what it could not load; it reaches the user in the error, and nowhere else."""
    machine.setattr(FakeSession, "behaviour", "falls back")
    machine.setattr(ort, "preload_dlls", lambda: sys.stdout.write(f"Failed to load {library}: no such file\nPlease follow\n"))
    with pytest.raises(ProviderUnavailable, match=rf'{reason}; pip install "lipdub\[cuda\]", or use --device cpu'):
        opened(folder / "memory.onnx", memory, "cuda")
    assert capsys.readouterr().out == ""


def test_a_complaint_about_a_library_that_is_not_needed_is_no_reason(
    folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch
) -> None:
    machine.setattr(ort, "preload_dlls", lambda: sys.stdout.write("Failed to load libnvrtc.so.13: no such file\n"))
    assert opened(folder / "memory.onnx", memory, "cuda").provider == CUDA


def test_an_onnxruntime_without_cuda_says_what_to_install(folder: Path, memory: GraphTensors, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(ort, "get_available_providers", lambda: [CPU])
    machine.setattr(sys, "platform", "linux")
    machine.setattr(cuda, "_installed", lambda package: package == "onnxruntime")
    assert opened(folder / "memory.onnx", memory, "auto").provider == CPU
    with pytest.raises(ProviderUnavailable, match=r'pip uninstall -y onnxruntime, then pip install "lipdub\[cuda\]"'):
        opened(folder / "memory.onnx", memory, "cuda")
    machine.setattr(cuda, "_installed", lambda package: True)
    with pytest.raises(ProviderUnavailable, match="both installed and overwrite each other"):
        opened(folder / "memory.onnx", memory, "cuda")
    machine.setattr(sys, "platform", "darwin")
    with pytest.raises(ProviderUnavailable, match="macOS has none; use --device cpu"):
        opened(folder / "memory.onnx", memory, "cuda")


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *rest: Any) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert "there is no NVIDIA driver" in cuda._no_driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *rest: None)
    assert cuda._no_driver() == ""


# ---- the way of a GPU, walked by the CPU


def on_gpu(path: Path, machine: pytest.MonkeyPatch, *, batch: int, in_flight: int = 2) -> Session:
    machine.setattr(sessions, "CUDA_BATCH", batch)
    machine.setattr(sessions, "CUDA_BATCHES_IN_FLIGHT", in_flight)
    save_identity(path, ["B", 3])
    return opened(path, IDENTITY, "cuda")


@pytest.mark.parametrize("count", [0, 1, 8, 9, 61])
def test_batches_in_flight_keep_the_order(tmp_path: Path, machine: pytest.MonkeyPatch, count: int) -> None:
    session = on_gpu(tmp_path / "a.onnx", machine, batch=8, in_flight=3)
    assert (session.batch, session.preferred_batch) == (8, 24)
    for rows in (numbered(count), numbered(count) + 1.0):
        np.testing.assert_array_equal(streamed(session, rows), rows)


def test_a_gpu_meets_few_batch_sizes(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    """For each new one cuDNN looks for its convolutions anew."""
    session = on_gpu(tmp_path / "a.onnx", machine, batch=12)
    for count in range(1, 30):
        streamed(session, numbered(count))
    assert set(FakeSession.rows) == {1, 2, 4, 8, 12}


def test_batches_are_in_flight_together(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    """The second batch is handed over before the first has ended; with one in flight that would wait for ever."""
    meeting = threading.Barrier(2, timeout=10)
    real = FakeSession.run_with_iobinding

    def together(self: FakeSession, binding: Any) -> None:
        meeting.wait()
        real(self, binding)

    machine.setattr(FakeSession, "run_with_iobinding", together)
    session = on_gpu(tmp_path / "a.onnx", machine, batch=4)
    np.testing.assert_array_equal(streamed(session, numbered(16)), numbered(16))


def test_a_batch_that_memory_does_not_hold_is_made_smaller_once(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(FakeSession, "fits", 5)
    session = on_gpu(tmp_path / "a.onnx", machine, batch=16)
    np.testing.assert_array_equal(streamed(session, numbered(50)), numbered(50))
    assert session.batch == 4
    assert max(FakeSession.rows) == 4
    machine.setattr(FakeSession, "fits", 2)
    with pytest.raises(DeviceMemoryFull, match=r"needs more memory than CUDAExecutionProvider has left .*nvidia-smi.*--device cpu"):
        streamed(session, numbered(50))
    machine.setattr(FakeSession, "fits", 5)
    np.testing.assert_array_equal(streamed(session, numbered(50)), numbered(50))


def test_memory_that_runs_out_midway_loses_and_repeats_no_row(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    session = on_gpu(tmp_path / "a.onnx", machine, batch=8)
    collected: list[int] = []

    def fill(at: slice, inputs: Any) -> None:
        inputs["a"][...] = numbered(60)[at]

    def collect(at: slice, outputs: Any) -> None:
        np.testing.assert_array_equal(outputs["b"], numbered(60)[at])
        collected.extend(range(at.start, at.stop))
        if len(collected) == 24:
            machine.setattr(FakeSession, "fits", 3)

    session.stream(60, fill=fill, collect=collect)
    assert collected == list(range(60))
    assert session.batch == 2


class FakeCudaRuntime:
    """Counts what is page-locked. refuses: as under a limit on locked memory."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.locked: dict[int, int] = {}
        self.errors_cleared = 0

    def cudaHostRegister(self, pointer: Any, size: Any, flags: Any) -> int:
        if self.refuses:
            return 2
        self.locked[pointer.value] = size.value
        return 0

    def cudaHostUnregister(self, pointer: Any) -> int:
        return 0 if self.locked.pop(pointer.value, None) else 1

    def cudaGetLastError(self) -> int:
        self.errors_cleared += 1
        return 0


def test_host_memory_is_page_locked_while_it_is_used(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    cudart = FakeCudaRuntime()
    machine.setattr(buffers, "_cuda_runtime", lambda: cudart)
    session = on_gpu(tmp_path / "a.onnx", machine, batch=8, in_flight=1)
    streamed(session, numbered(8))
    assert sorted(cudart.locked.values()) == [8 * 3 * 4, 8 * 3 * 4]
    del session
    gc.collect()
    assert cudart.locked == {}


def test_memory_that_cannot_be_locked_is_used_as_it_is(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    cudart = FakeCudaRuntime(refuses=True)
    machine.setattr(buffers, "_cuda_runtime", lambda: cudart)
    session = on_gpu(tmp_path / "a.onnx", machine, batch=8, in_flight=1)
    np.testing.assert_array_equal(streamed(session, numbered(9)), numbered(9))
    assert cudart.errors_cleared > 0


def test_every_onnxruntime_error_is_mapped() -> None:
    """Session errors leave `open_session` and `run` as ours only."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    for name in ("Fail", "InvalidGraph", "InvalidProtobuf", "InvalidArgument", "NoSuchFile", "RuntimeException", "EPFail"):
        assert getattr(state, name) in onnx_runtime.ORT_ERRORS
    assert not any(issubclass(LipdubError, kind) for kind in onnx_runtime.ORT_ERRORS)
