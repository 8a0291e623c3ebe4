"""The contract of a memory: an answer for each mel window, in order, numbers or nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import fake_spec, rewrite_spec, write_fake_bundle
from numpy.typing import NDArray

from lipdub import runtime
from lipdub.bundles import bundle
from lipdub.errors import BundleInvalid
from lipdub.speech.memory import OnnxMemory, Recall

SPEC = fake_spec()


@pytest.fixture
def memory(tmp_path: Path) -> OnnxMemory:
    return OnnxMemory(tmp_path, write_fake_bundle(tmp_path), device="cpu")


def some_windows(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).uniform(-4.0, 4.0, (count, SPEC.mel.bands, SPEC.mel.window)).astype(np.float32)


# ---- the contract


@pytest.mark.parametrize("count", [0, 1, 8, 9, 33])
def test_recall_answers_each_window(memory: OnnxMemory, count: int) -> None:
    recall = memory.recall(some_windows(count))
    assert recall.address.shape == (count, SPEC.slots)
    assert recall.lip_feature.shape == (count, SPEC.lip_channels)
    assert recall.address.dtype == recall.lip_feature.dtype == np.float32
    assert len(recall) == count
    np.testing.assert_allclose(recall.address.sum(axis=1), 1.0, atol=1e-5)


def test_order_is_kept_across_batches(memory: OnnxMemory) -> None:
    """Rows of one big call are the rows of many small ones."""
    windows = some_windows(33)
    recall = memory.recall(windows)
    for row in range(33):
        one = slice(row, row + 1)
        np.testing.assert_allclose(memory.recall(windows[one]).lip_feature, recall.lip_feature[one], atol=1e-5)
        np.testing.assert_allclose(memory.recall(windows[one]).address, recall.address[one], atol=1e-5)


def test_windows_are_not_changed_and_the_answer_is_a_new_array(memory: OnnxMemory) -> None:
    windows = some_windows(17)
    before = windows.copy()
    windows.flags.writeable = False
    recall = memory.recall(windows)
    kept = recall.address.copy(), recall.lip_feature.copy()
    assert not any(np.shares_memory(answer, windows) for answer in (recall.address, recall.lip_feature))
    memory.recall(-windows)
    np.testing.assert_array_equal(recall.address, kept[0])
    np.testing.assert_array_equal(recall.lip_feature, kept[1])
    np.testing.assert_array_equal(windows, before)


def test_the_same_question_gets_the_same_answer(memory: OnnxMemory) -> None:
    first, second = memory.recall(some_windows(17)), memory.recall(some_windows(17))
    np.testing.assert_array_equal(first.address, second.address)
    np.testing.assert_array_equal(first.lip_feature, second.lip_feature)


def test_views_are_as_good_as_arrays(memory: OnnxMemory) -> None:
    turned = np.asfortranarray(some_windows(8))[::-2]
    np.testing.assert_array_equal(memory.recall(turned).address, memory.recall(turned.copy()).address)


def test_windows_of_another_kind_are_refused(memory: OnnxMemory) -> None:
    windows = some_windows(3)
    with pytest.raises(ValueError, match=r"windows must be float32 \(3, 80, 16\), got float64"):
        memory.recall(windows.astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="windows must be"):
        memory.recall(windows[:, :, :-1])


def test_threads_may_ask_at_once(memory: OnnxMemory) -> None:
    windows = some_windows(40)
    recalled = memory.recall(windows)
    with ThreadPoolExecutor(4) as pool:
        for answer in [pool.submit(memory.recall, windows) for _ in range(20)]:
            np.testing.assert_array_equal(answer.result().lip_feature, recalled.lip_feature)
            np.testing.assert_array_equal(answer.result().address, recalled.address)


def test_it_says_what_it_is(memory: OnnxMemory, tmp_path: Path) -> None:
    assert memory.spec == bundle.load_spec(tmp_path)
    assert repr(memory) == "OnnxMemory(fake, CPUExecutionProvider)"


# ---- the fake is fit for purpose


def test_louder_speech_opens_the_fake_mouth_and_silence_rests_it(memory: OnnxMemory) -> None:
    levels = np.linspace(-4.0, 4.0, 9, dtype=np.float32)
    recall = memory.recall(np.broadcast_to(levels[:, np.newaxis, np.newaxis], (9, 80, 16)).copy())
    opening = recall.lip_feature[:, 0]
    assert (np.diff(opening) > 0.05).all()
    assert opening[-1] > 0.99
    np.testing.assert_allclose(recall.lip_feature[0], SPEC.rest_feature, atol=1e-3)


# ---- ONNX


def test_half_precision_weights_answer_alike_behind_float32_tensors(tmp_path: Path) -> None:
    full, half = (
        OnnxMemory(tmp_path / name, write_fake_bundle(tmp_path / name, float16=name == "half"), device="cpu") for name in ("full", "half")
    )
    windows = some_windows(17)
    np.testing.assert_allclose(half.recall(windows).lip_feature, full.recall(windows).lip_feature, atol=0.02)


def test_windows_that_are_no_numbers_recall_nothing(memory: OnnxMemory) -> None:
    windows = some_windows(3)
    windows[1, 2, 3] = np.nan
    with pytest.raises(BundleInvalid, match=r"memory\.onnx recalled no address but NaN or infinity"):
        memory.recall(windows)


def test_a_batch_is_never_larger_than_stated(memory: OnnxMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = runtime.Session.run

    def watched(self: runtime.Session, feeds: Any) -> Any:
        sizes.append(len(feeds[bundle.MEL]))
        return run(self, feeds)

    monkeypatch.setattr(runtime.Session, "run", watched)
    most = memory._session.batch
    memory.recall(some_windows(2 * most + 1))
    memory.recall(some_windows(0))
    assert sum(sizes) == 2 * most + 1
    assert len(sizes) == 3
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1  # no rest of a single row, which would cost more than a row among others


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slots": 9}, r"memory\.onnx gives address float \(B, 8\).*expected address float \(B, 9\)"),
        ({"lip_channels": 3, "rest_feature": (0.0,) * 3}, r"memory\.onnx gives .*lip_feature float \(B, 4\).*expected .*float \(B, 3\)"),
    ],
)
def test_a_spec_that_the_graph_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_fake_bundle(tmp_path)
    with pytest.raises(BundleInvalid, match=says):
        OnnxMemory(tmp_path, rewrite_spec(tmp_path, **changes), device="cpu")


def test_a_fixed_batch_axis_is_refused(tmp_path: Path) -> None:
    spec = write_fake_bundle(tmp_path, batch=16)
    with pytest.raises(BundleInvalid, match=r"takes mel float \(16, 1, 80, 16\); expected mel float \(B, 1, 80, 16\)"):
        OnnxMemory(tmp_path, spec, device="cpu")


def test_the_generators_graph_is_no_memory(tmp_path: Path) -> None:
    spec = write_fake_bundle(tmp_path)
    (tmp_path / bundle.MEMORY_GRAPH).write_bytes((tmp_path / bundle.GENERATOR_GRAPH).read_bytes())
    with pytest.raises(BundleInvalid, match=r"memory\.onnx takes target .*expected mel .*graphs swapped"):
        OnnxMemory(tmp_path, spec, device="cpu")


@pytest.mark.parametrize(("address", "feature"), [((2,), (2, 4)), ((2, 8), (3, 4))])
def test_a_recall_checks_itself(address: tuple[int, ...], feature: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="address"):
        Recall(np.zeros(address, np.float32), np.zeros(feature, np.float32))
    with pytest.raises(ValueError, match="float32"):
        Recall(np.zeros((2, 8)), np.zeros((2, 4), np.float32))  # type: ignore[arg-type]
