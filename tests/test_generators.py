"""The contract of a generator, held against every entry of `GENERATORS`; then what is special to the memory backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import rewrite_spec, write_fake_bundle
from numpy.typing import NDArray

from lipdub import bundle
from lipdub.errors import BundleInvalid, BundleNotFound
from lipdub.generators import GENERATORS, Generator, Recall, open_generator
from lipdub.generators.memory import BATCH_SIZE

COUNTS = (0, 1, 16, 17, 33)
Y0, Y1, X0, X1 = DRAWN = (16, 32, 4, 28)


@pytest.fixture(params=list(GENERATORS))
def generator(request: pytest.FixtureRequest, tmp_path: Path) -> Generator:
    write_fake_bundle(tmp_path, drawn=DRAWN, backend=request.param)
    return open_generator(str(tmp_path), device="cpu", threads=1)


def some_windows(generator: Generator, count: int) -> NDArray[np.float32]:
    mel = generator.spec.mel
    return np.random.default_rng(count).uniform(-4.0, 4.0, (count, mel.bands, mel.window)).astype(np.float32)


def some_crops(generator: Generator, count: int, seed: int = 0) -> NDArray[np.uint8]:
    size = generator.spec.crop.size
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def some_features(generator: Generator, count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).uniform(0.0, 1.0, (count, generator.spec.lip_channels)).astype(np.float32)


# ---- the contract


@pytest.mark.parametrize("count", COUNTS)
def test_recall_answers_each_window(generator: Generator, count: int) -> None:
    recall = generator.recall(some_windows(generator, count))
    assert recall.address.shape == (count, generator.spec.slots)
    assert recall.lip_feature.shape == (count, generator.spec.lip_channels)
    assert recall.address.dtype == recall.lip_feature.dtype == np.float32
    assert len(recall) == count
    np.testing.assert_allclose(recall.address.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("count", COUNTS)
def test_draw_answers_each_crop(generator: Generator, count: int) -> None:
    targets = some_crops(generator, count)
    drawn = generator.draw(targets, some_crops(generator, count, 1), some_features(generator, count))
    assert drawn.shape == targets.shape
    assert drawn.dtype == np.uint8


def test_nothing_outside_the_drawn_box_changes(generator: Generator) -> None:
    targets = some_crops(generator, 17)
    drawn = generator.draw(targets, some_crops(generator, 17, 1), some_features(generator, 17))
    outside = np.ones(targets.shape[1:3], bool)
    y0, y1, x0, x1 = generator.spec.crop.drawn
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(drawn[:, outside], targets[:, outside])
    assert (drawn[:, ~outside] != targets[:, ~outside]).any()


def test_order_is_kept_across_batches(generator: Generator) -> None:
    """Rows of one big call are the rows of many small ones. One grey level: sums may be grouped by batch size."""
    windows, targets = some_windows(generator, 33), some_crops(generator, 33)
    references, features = some_crops(generator, 33, 1), some_features(generator, 33)
    recall, drawn = generator.recall(windows), generator.draw(targets, references, features)
    for row in range(33):
        one = slice(row, row + 1)
        np.testing.assert_allclose(generator.recall(windows[one]).lip_feature, recall.lip_feature[one], atol=1e-5)
        alone = generator.draw(targets[one], references[one], features[one])
        assert np.abs(alone.astype(int) - drawn[one].astype(int)).max() <= 1


def test_inputs_are_not_changed_and_the_answer_is_a_new_array(generator: Generator) -> None:
    windows, targets = some_windows(generator, 17), some_crops(generator, 17)
    references, features = some_crops(generator, 17, 1), some_features(generator, 17)
    inputs = (windows, targets, references, features)
    before = [array.copy() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    generator.recall(windows)
    drawn = generator.draw(targets, references, features)
    assert not any(np.shares_memory(drawn, array) for array in inputs)
    for array, was in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, was)


def test_the_same_question_gets_the_same_answer(generator: Generator) -> None:
    windows, targets, features = some_windows(generator, 17), some_crops(generator, 17), some_features(generator, 17)
    first, second = generator.recall(windows), generator.recall(windows)
    np.testing.assert_array_equal(first.address, second.address)
    np.testing.assert_array_equal(first.lip_feature, second.lip_feature)
    np.testing.assert_array_equal(generator.draw(targets, targets, features), generator.draw(targets, targets, features))


def test_views_are_as_good_as_arrays(generator: Generator) -> None:
    """What crop.take hands over may be a slice, a flipped view or in any memory order."""
    windows, targets, features = some_windows(generator, 8), some_crops(generator, 8), some_features(generator, 8)
    every_other = generator.draw(targets[::2, :, ::-1], targets[1::2], features[::2])
    copies = generator.draw(targets[::2, :, ::-1].copy(), targets[1::2].copy(), features[::2].copy())
    np.testing.assert_array_equal(every_other, copies)
    turned = np.asfortranarray(windows)[::-2]
    np.testing.assert_array_equal(generator.recall(turned).address, generator.recall(turned.copy()).address)


def test_arrays_of_another_kind_are_refused(generator: Generator) -> None:
    windows, targets, features = some_windows(generator, 3), some_crops(generator, 3), some_features(generator, 3)
    with pytest.raises(ValueError, match=r"windows must be float32 \(3, 80, 16\), got float64"):
        generator.recall(windows.astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="windows must be"):
        generator.recall(windows[:, :, :-1])
    with pytest.raises(ValueError, match="targets must be uint8"):
        generator.draw(targets.astype(np.float32), targets, features)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="targets must be"):
        generator.draw(targets[:, :-1], targets, features)
    with pytest.raises(ValueError, match="references must be"):
        generator.draw(targets, targets[:2], features)
    with pytest.raises(ValueError, match="lip_features must be"):
        generator.draw(targets, targets, features[:, :1])
    with pytest.raises(ValueError, match="lip_features must be"):
        generator.draw(targets, targets, features[:2])


def test_it_says_what_it_is(generator: Generator) -> None:
    assert generator.spec.backend in GENERATORS
    assert generator.provider == "CPUExecutionProvider"


# ---- the fake is fit for purpose: sound reaches pixels


def test_louder_speech_opens_the_fake_mouth_and_silence_rests_it(generator: Generator) -> None:
    levels = np.linspace(-4.0, 4.0, 9, dtype=np.float32)
    recall = generator.recall(np.broadcast_to(levels[:, np.newaxis, np.newaxis], (9, 80, 16)).copy())
    opening = recall.lip_feature[:, 0]
    assert (np.diff(opening) > 0.05).all()
    assert opening[-1] > 0.99
    np.testing.assert_allclose(recall.lip_feature[0], generator.spec.rest_feature, atol=1e-3)

    black = np.zeros((9, 32, 32, 3), np.uint8)
    drawn = generator.draw(black, black, recall.lip_feature)
    np.testing.assert_allclose(drawn[:, Y0:Y1, X0:X1].mean(axis=(1, 2, 3)), opening * 127.5, atol=0.5)


# ---- the memory backend


def at_rest(generator: Generator, count: int) -> NDArray[np.float32]:
    return np.zeros((count, generator.spec.lip_channels), np.float32)


def test_every_grey_level_survives_the_network(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    generator = open_generator(str(tmp_path), device="cpu")
    references = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3)).copy()
    references[..., 1] = 255 - references[..., 1]
    drawn = generator.draw(np.zeros_like(references), references, at_rest(generator, 256))
    np.testing.assert_array_equal(drawn[:, Y0:Y1, X0:X1], references[:, Y0:Y1, X0:X1])


def test_too_bright_is_white_and_too_dark_is_black(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    generator = open_generator(str(tmp_path), device="cpu")
    grey = np.full((2, 32, 32, 3), 128, np.uint8)
    features = at_rest(generator, 2)
    features[:, 0] = 50.0, -50.0
    drawn = generator.draw(grey, grey, features)[:, Y0:Y1, X0:X1]
    assert (drawn[0] == 255).all()
    assert (drawn[1] == 0).all()


@pytest.mark.parametrize("masked_from", [10, 16, 24])
def test_the_network_does_not_see_the_targets_lower_rows(tmp_path: Path, masked_from: int) -> None:
    """A strip of the true jaw would leak the answer. Rows that are hidden reach the network as 0, which is mid grey."""
    write_fake_bundle(tmp_path, drawn=(8, 32, 4, 28), masked_from=masked_from, draws="target")
    generator = open_generator(str(tmp_path), device="cpu")
    targets = some_crops(generator, 17)
    drawn = generator.draw(targets, targets, at_rest(generator, 17))
    np.testing.assert_array_equal(drawn[:, 8:masked_from, 4:28], targets[:, 8:masked_from, 4:28])
    assert (drawn[:, masked_from:, 4:28] == 128).all()


def test_half_precision_weights_answer_alike_behind_float32_tensors(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "full")
    write_fake_bundle(tmp_path / "half", float16=True)
    full, half = (open_generator(str(tmp_path / name), device="cpu") for name in ("full", "half"))
    windows, crops, features = some_windows(full, 17), some_crops(full, 17), some_features(full, 17)
    np.testing.assert_allclose(half.recall(windows).lip_feature, full.recall(windows).lip_feature, atol=0.02)
    np.testing.assert_array_equal(half.draw(crops, crops, features), full.draw(crops, crops, features))


def test_a_network_that_draws_no_numbers_is_refused(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, draws="nan")
    generator = open_generator(str(tmp_path), device="cpu")
    crops = some_crops(generator, 1)
    with pytest.raises(BundleInvalid, match="drew no picture"):
        generator.draw(crops, crops, some_features(generator, 1))


def test_windows_that_are_no_numbers_recall_nothing(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    generator = open_generator(str(tmp_path), device="cpu")
    with pytest.raises(BundleInvalid, match="recalled no lip feature"):
        generator.recall(np.full((1, 80, 16), np.nan, np.float32))


def test_a_batch_is_never_larger_than_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lipdub.runtime import Session

    sizes: list[int] = []
    run = Session.run

    def watched(self: Session, feeds: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        sizes.append(len(next(iter(feeds.values()))))
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", watched)
    write_fake_bundle(tmp_path)
    generator = open_generator(str(tmp_path), device="cpu")
    generator.recall(some_windows(generator, 33))
    generator.draw(*[some_crops(generator, 0)] * 2, some_features(generator, 0))
    assert sizes == [BATCH_SIZE, BATCH_SIZE, 1]


# ---- opening


def test_swapped_graphs_are_refused(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    memory, generator = (tmp_path / graph for graph in (bundle.MEMORY_GRAPH, bundle.GENERATOR_GRAPH))
    first, second = memory.read_bytes(), generator.read_bytes()
    memory.write_bytes(second)
    generator.write_bytes(first)
    with pytest.raises(BundleInvalid, match="hash differs"):
        open_generator(str(tmp_path))
    rewrite_spec(tmp_path)
    with pytest.raises(BundleInvalid, match=r"memory\.onnx takes target .*expected mel .*graphs swapped"):
        open_generator(str(tmp_path), device="cpu")


def test_a_spec_that_the_graphs_do_not_fit_is_refused(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, slots=8)
    rewrite_spec(tmp_path, slots=9)
    with pytest.raises(BundleInvalid, match=r"memory\.onnx gives address float \(B, 8\).*expected address float \(B, 9\)"):
        open_generator(str(tmp_path), device="cpu")


def test_a_fixed_batch_axis_is_refused(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, batch=16)
    with pytest.raises(BundleInvalid, match=r"takes mel float \(16, 1, 80, 16\); expected mel float \(B, 1, 80, 16\)"):
        open_generator(str(tmp_path), device="cpu")


def test_an_unknown_backend_lists_those_there_are(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, backend="wav2lip")
    with pytest.raises(BundleInvalid, match="needs backend 'wav2lip', this lipdub has memory"):
        open_generator(str(tmp_path), device="cpu")


def test_an_unknown_name_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_bundle(tmp_path / "compact")
    monkeypatch.setattr(bundle, "_shelves", lambda: (tmp_path,))
    assert open_generator("compact", device="cpu").spec.name == "fake"
    with pytest.raises(BundleNotFound, match="compact"):
        open_generator("compakt", device="cpu")


@pytest.mark.parametrize(("address", "feature"), [((2,), (2, 4)), ((2, 8), (3, 4))])
def test_a_recall_checks_itself(address: tuple[int, ...], feature: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="address"):
        Recall(np.zeros(address, np.float32), np.zeros(feature, np.float32))
    with pytest.raises(ValueError, match="float32"):
        Recall(np.zeros((2, 8)), np.zeros((2, 4), np.float32))  # type: ignore[arg-type]
