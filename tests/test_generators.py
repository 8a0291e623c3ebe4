"""The contract of a generator, held against every entry of `GENERATORS`; then what is special to the ONNX backend; opening a model."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes import Draws, as_version_1, fake_spec, rewrite_spec, write_fake_bundle
from numpy.typing import NDArray

from lipdub.bundles import bundle
from lipdub.bundles.bundle import BundleSpec
from lipdub.errors import BundleInvalid, BundleNotFound
from lipdub.generators import GENERATORS, Generator, OnnxGenerator, device_graph, onnx_generator, open_generator
from lipdub.generators.drawing import ConvertedByHost, ConvertedOnDevice
from lipdub.generators.onnx_generator import on_device, smooth_pictures
from lipdub.model import Model, open_model
from lipdub.options import Device
from lipdub.records import Copied, CropSpec, Drawn
from lipdub.runtime import CPU, CUDA, buffers, onnx_runtime, session
from lipdub.speech.memory import OnnxMemory

COUNTS = (0, 1, 8, 9, 33)
Y0, Y1, X0, X1 = DRAWN = (16, 32, 4, 28)
CHANNELS = fake_spec().lip_channels


@pytest.fixture(params=[(backend, has_flow) for backend in GENERATORS for has_flow in (False, True)], ids=str)
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> BundleSpec:
    """Of a bundle in the test's folder."""
    backend, has_flow = request.param
    return write_fake_bundle(tmp_path, drawn=DRAWN, backend=backend, has_flow=has_flow)


@pytest.fixture
def generator(spec: BundleSpec, tmp_path: Path) -> Generator:
    return opened(tmp_path)


def opened(folder: Path, device: Device = "cpu") -> Generator:
    return open_generator(folder, bundle.load_spec(folder), device=device, threads=1)


def some_windows(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).uniform(-4.0, 4.0, (count, 80, 16)).astype(np.float32)


def some_crops(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def some_features(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).uniform(0.0, 1.0, (count, CHANNELS)).astype(np.float32)


def at_rest(count: int) -> NDArray[np.float32]:
    return np.zeros((count, CHANNELS), np.float32)


def assert_same(one: Drawn, other: Drawn) -> None:
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert (one.copied is None) == (other.copied is None)
    if one.copied is not None and other.copied is not None:
        np.testing.assert_array_equal(one.copied.paint_mask, other.copied.paint_mask)
        np.testing.assert_array_equal(one.copied.flow, other.copied.flow)


# ---- the contract


@pytest.mark.parametrize("count", COUNTS)
def test_draw_answers_each_crop(spec: BundleSpec, generator: Generator, count: int) -> None:
    targets = some_crops(count)
    drawn = generator.draw(targets, some_crops(count, 1), some_features(count))
    assert drawn.pixels.shape == targets.shape
    assert drawn.pixels.dtype == np.uint8
    assert (drawn.copied is not None) == spec.has_flow
    if drawn.copied is not None:
        assert drawn.copied.paint_mask.shape == (count, Y1 - Y0, X1 - X0)
        assert drawn.copied.flow.shape == (count, 2, (Y1 - Y0) // 4, (X1 - X0) // 4)


def plainly_copied(references: NDArray[np.uint8], features: NDArray[np.float32]) -> Copied:
    """What the fake has to say of copies, reckoned from the pictures."""
    box = references[:, Y0:Y1, X0:X1]
    count, height, width, _ = box.shape
    cells = box[..., 1:].reshape(count, height // 4, 4, width // 4, 4, 2).mean(axis=(2, 4)) / 127.5 - 1
    flow = 0.25 * cells.transpose(0, 3, 1, 2) + 0.125 * features[:, 0][:, None, None, None]
    return Copied(box[..., 0], flow.astype(np.float32))


@pytest.mark.parametrize("count", COUNTS)
def test_what_was_copied_is_told_of_each_crop(spec: BundleSpec, generator: Generator, count: int) -> None:
    targets, references, features = some_crops(count), some_crops(count, 1), some_features(count)
    drawn = generator.draw(targets, references, features)
    if not spec.has_flow:
        assert drawn.copied is None
        return
    assert drawn.copied is not None
    expected = plainly_copied(references, features)
    np.testing.assert_array_equal(drawn.copied.paint_mask, expected.paint_mask)
    np.testing.assert_allclose(drawn.copied.flow, expected.flow, atol=1e-6)


def test_nothing_outside_the_drawn_box_changes(generator: Generator) -> None:
    targets = some_crops(17)
    drawn = generator.draw(targets, some_crops(17, 1), some_features(17)).pixels
    outside = np.ones(targets.shape[1:3], bool)
    outside[Y0:Y1, X0:X1] = False
    np.testing.assert_array_equal(drawn[:, outside], targets[:, outside])
    assert (drawn[:, ~outside] != targets[:, ~outside]).any()


def test_order_is_kept_across_batches(generator: Generator) -> None:
    """Rows of one big call are the rows of many small ones. One grey level: sums may be grouped by batch size."""
    targets, references, features = some_crops(33), some_crops(33, 1), some_features(33)
    drawn = generator.draw(targets, references, features)
    for row in range(33):
        one = slice(row, row + 1)
        alone = generator.draw(targets[one], references[one], features[one])
        assert np.abs(alone.pixels.astype(int) - drawn.pixels[one].astype(int)).max() <= 1
        if alone.copied is not None and drawn.copied is not None:
            np.testing.assert_allclose(alone.copied.flow, drawn.copied.flow[one], atol=1e-6)
            assert np.abs(alone.copied.paint_mask.astype(int) - drawn.copied.paint_mask[one].astype(int)).max() <= 1


def test_inputs_are_not_changed_and_the_answer_is_a_new_array(generator: Generator) -> None:
    targets, references, features = inputs = some_crops(17), some_crops(17, 1), some_features(17)
    before = [array.copy() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    drawn = generator.draw(targets, references, features)
    answers = [drawn.pixels, *([] if drawn.copied is None else [drawn.copied.paint_mask, drawn.copied.flow])]
    assert not any(np.shares_memory(answer, array) for answer in answers for array in inputs)
    kept = [answer.copy() for answer in answers]
    generator.draw(references, targets, 1 - features)
    for answer, was in zip(answers, kept, strict=True):
        np.testing.assert_array_equal(answer, was)
    for array, was in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, was)


def test_the_same_question_gets_the_same_answer(generator: Generator) -> None:
    targets, features = some_crops(17), some_features(17)
    assert_same(generator.draw(targets, targets, features), generator.draw(targets, targets, features))


def test_views_are_as_good_as_arrays(generator: Generator) -> None:
    """What crop.take hands over may be a slice, a flipped view or in any memory order."""
    targets, features = some_crops(8), some_features(8)
    every_other = generator.draw(targets[::2, :, ::-1], targets[1::2], features[::2])
    copies = generator.draw(targets[::2, :, ::-1].copy(), targets[1::2].copy(), features[::2].copy())
    assert_same(every_other, copies)


def test_arrays_of_another_kind_are_refused(generator: Generator) -> None:
    targets, features = some_crops(3), some_features(3)
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
    assert generator.provider == "CPUExecutionProvider"
    assert 1 <= generator.preferred_batch <= 64


# ---- the fake is fit for purpose: lip features reach pixels


def test_the_wider_the_fake_mouth_is_open_the_brighter_it_is(generator: Generator) -> None:
    features = at_rest(9)
    features[:, 0] = np.linspace(0.0, 1.0, 9)
    black = np.zeros((9, 32, 32, 3), np.uint8)
    drawn = generator.draw(black, black, features)
    np.testing.assert_allclose(drawn.pixels[:, Y0:Y1, X0:X1].mean(axis=(1, 2, 3)), features[:, 0] * 127.5, atol=0.5)


# ---- the ONNX backend


def test_every_grey_level_survives_the_network(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    generator = opened(tmp_path)
    references = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3)).copy()
    references[..., 1] = 255 - references[..., 1]
    drawn = generator.draw(np.zeros_like(references), references, at_rest(256))
    np.testing.assert_array_equal(drawn.pixels[:, Y0:Y1, X0:X1], references[:, Y0:Y1, X0:X1])


def test_too_bright_is_white_and_too_dark_is_black(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    generator = opened(tmp_path)
    grey = np.full((2, 32, 32, 3), 128, np.uint8)
    features = at_rest(2)
    features[:, 0] = 50.0, -50.0
    drawn = generator.draw(grey, grey, features).pixels[:, Y0:Y1, X0:X1]
    assert (drawn[0] == 255).all()
    assert (drawn[1] == 0).all()


@pytest.mark.parametrize("masked_from", [10, 16, 24])
def test_the_network_does_not_see_the_targets_lower_rows(tmp_path: Path, masked_from: int) -> None:
    """A strip of the true jaw would leak the answer. Rows that are hidden reach the network as 0, which is mid grey."""
    write_fake_bundle(tmp_path, drawn=(8, 32, 4, 28), masked_from=masked_from, draws="target")
    generator = opened(tmp_path)
    targets = some_crops(17)
    drawn = generator.draw(targets, targets, at_rest(17)).pixels
    np.testing.assert_array_equal(drawn[:, 8:masked_from, 4:28], targets[:, 8:masked_from, 4:28])
    assert (drawn[:, masked_from:, 4:28] == 128).all()


@pytest.mark.parametrize("has_flow", [False, True])
def test_half_precision_weights_answer_alike_behind_float32_tensors(tmp_path: Path, has_flow: bool) -> None:
    write_fake_bundle(tmp_path / "full", has_flow=has_flow)
    write_fake_bundle(tmp_path / "half", float16=True, has_flow=has_flow)
    full, half = (opened(tmp_path / name) for name in ("full", "half"))
    crops, features = some_crops(17), some_features(17)
    assert_same(half.draw(crops, crops, features), full.draw(crops, crops, features))


@pytest.mark.parametrize("draws", ["nan", "nan painted", "nan flow"])
def test_a_network_that_draws_no_numbers_is_refused(tmp_path: Path, draws: Draws) -> None:
    write_fake_bundle(tmp_path, draws=draws, has_flow=draws != "nan")
    generator = opened(tmp_path)
    crops = some_crops(1)
    with pytest.raises(BundleInvalid, match="drew no picture"):
        generator.draw(crops, crops, some_features(1))


def test_a_batch_is_never_larger_than_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = buffers.Buffers.run

    def watched(self: buffers.Buffers) -> None:
        sizes.append(len(next(iter(self.inputs.values()))))
        run(self)

    monkeypatch.setattr(buffers.Buffers, "run", watched)
    write_fake_bundle(tmp_path)
    generator = opened(tmp_path)
    batch = generator.preferred_batch
    generator.draw(*[some_crops(2 * batch + 1)] * 2, some_features(2 * batch + 1))
    generator.draw(*[some_crops(0)] * 2, some_features(0))
    assert sum(sizes) == 2 * batch + 1
    assert len(sizes) == 3
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 2  # no rest of a single row, which would cost more than a row among others


def test_recall_and_draw_run_at_the_same_time_from_other_threads(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    model = open_model(str(tmp_path), device="cpu", threads=1)
    windows, crops, features = some_windows(40), some_crops(40), some_features(40)
    recalled, drawn = model.memory.recall(windows), model.generator.draw(crops, crops, features)
    with ThreadPoolExecutor(4) as pool:
        recalls = [pool.submit(model.memory.recall, windows) for _ in range(10)]
        draws = [pool.submit(model.generator.draw, crops, crops, features) for _ in range(10)]
        for recall in recalls:
            np.testing.assert_array_equal(recall.result().lip_feature, recalled.lip_feature)
        for draw in draws:
            assert_same(draw.result(), drawn)


# ---- pictures into the network and out of it


def plainly_to_network(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(127.5) - np.float32(1.0)


def plainly_from_network(pictures: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint((pictures + 1.0).clip(0.0, 2.0) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


class Scripted:
    """A session that keeps what it is given, and draws what it is told."""

    path = Path("scripted.onnx")

    def __init__(self, spec: bundle.BundleSpec, faces: NDArray[np.float32], **beside: NDArray[np.float32]) -> None:
        names = bundle.tensors(bundle.GENERATOR_GRAPH, spec).inputs
        self.inputs = {name: np.zeros((len(faces), *shape[1:]), np.float32) for name, shape in names.items()}  # type: ignore[arg-type]
        self.faces = faces
        self.beside = beside

    def stream(self, count: int, *, fill: Any, collect: Any) -> None:
        fill(slice(0, count), self.inputs)
        collect(slice(0, count), {bundle.FACE: self.faces, **self.beside})


def awkward_values(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Every half level, its neighbours in float32, values far outside, zeros of both signs."""
    halves = ((np.arange(-2, 514) / 2) / 127.5 - 1.0).astype(np.float32)
    special = np.array([0.0, -0.0, 1e30, -1e30, 3e38, 1e-40, 1.0, -1.0], np.float32)
    values = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9)), special])
    return rng.permutation(np.resize(values, int(np.prod(shape)))).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("masked_from", [10, 24])
def test_conversion_is_that_of_the_plain_reference_bit_for_bit(masked_from: int) -> None:
    spec, rng = fake_spec(masked_from=masked_from, drawn=DRAWN), np.random.default_rng(3)
    targets, references = rng.integers(0, 256, (2, 9, 32, 32, 3), dtype=np.uint8)
    features = rng.normal(size=(9, spec.lip_channels)).astype(np.float32)
    faces = awkward_values(rng, (9, 3, Y1 - Y0, X1 - X0))
    session = Scripted(spec, faces.copy())
    drawn = ConvertedByHost(session, spec).draw(targets, references, features).pixels  # type: ignore[arg-type]
    expected = plainly_to_network(targets)
    expected[:, :, masked_from:] = 0.0
    for got, wanted in ((session.inputs[bundle.TARGET], expected), (session.inputs[bundle.REFERENCE], plainly_to_network(references))):
        assert got.tobytes() == wanted.tobytes()
    np.testing.assert_array_equal(session.inputs[bundle.LIP_FEATURE], features)
    whole = targets.copy()
    whole[:, Y0:Y1, X0:X1] = plainly_from_network(faces)
    np.testing.assert_array_equal(drawn, whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_pixel_that_is_no_number_is_enough_to_refuse(bad: float) -> None:
    spec = fake_spec(drawn=DRAWN)
    faces = np.zeros((2, 3, Y1 - Y0, X1 - X0), np.float32)
    faces[1, 2, 3, 4] = bad
    crops = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(BundleInvalid, match="drew no picture"):
        ConvertedByHost(Scripted(spec, faces), spec).draw(crops, crops, np.zeros((2, 4), np.float32))  # type: ignore[arg-type]


def test_shares_are_rounded_and_clipped_and_places_kept_as_they_are() -> None:
    spec, rng = fake_spec(drawn=DRAWN, has_flow=True), np.random.default_rng(5)
    box = (Y1 - Y0, X1 - X0)
    painted = rng.permutation(np.resize(np.arange(-10, 521, dtype=np.float32) / 510, 9 * box[0] * box[1])).reshape(9, 1, *box)
    flow = rng.normal(size=(9, 2, box[0] // 4, box[1] // 4)).astype(np.float32)
    crops, features = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8), np.zeros((9, 4), np.float32)
    session = Scripted(spec, np.zeros((9, 3, *box), np.float32), painted=painted.copy(), flow=flow.copy())
    copied = ConvertedByHost(session, spec).draw(crops, crops, features).copied  # type: ignore[arg-type]
    assert copied is not None
    np.testing.assert_array_equal(copied.paint_mask, np.rint(painted[:, 0].clip(0, 1) * np.float32(255)).astype(np.uint8))
    assert copied.flow.tobytes() == flow.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [bundle.PAINT_MASK, bundle.FLOW])
def test_one_share_or_place_that_is_no_number_is_enough_to_refuse(where: str, bad: float) -> None:
    spec = fake_spec(drawn=DRAWN, has_flow=True)
    outputs = bundle.tensors(bundle.GENERATOR_GRAPH, spec).outputs
    drawn = {name: np.zeros((2, *shape[1:]), np.float32) for name, shape in outputs.items()}  # type: ignore[arg-type]
    drawn[where][1, 0, 2, 1] = bad
    faces = drawn.pop(bundle.FACE)
    crops = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(BundleInvalid, match="drew no picture"):
        ConvertedByHost(Scripted(spec, faces, **drawn), spec).draw(crops, crops, np.zeros((2, 4), np.float32))  # type: ignore[arg-type]


# ---- the way of a GPU, walked by the CPU


@pytest.mark.parametrize("draws", ["reference", "target"])
@pytest.mark.parametrize("has_flow", [False, True])
@pytest.mark.parametrize("masked_from", [10, 24, 31])
def test_a_graph_that_converts_itself_draws_the_same(tmp_path: Path, draws: Draws, masked_from: int, has_flow: bool) -> None:
    spec = write_fake_bundle(tmp_path, drawn=(8, 32, 4, 28), masked_from=masked_from, draws=draws, has_flow=has_flow)
    generator = opened(tmp_path)
    targets, references, features = some_crops(19), some_crops(19, 1), some_features(19)
    drawing = on_device(tmp_path, spec, device="cpu", half=False)
    assert_same(drawing.draw(targets, references, features), generator.draw(targets, references, features))


def test_a_graph_that_converts_itself_rounds_and_clips_as_the_host_does(tmp_path: Path) -> None:
    spec = write_fake_bundle(tmp_path, has_flow=True)
    generator = opened(tmp_path)
    grey = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3))
    features = at_rest(256)
    features[:, 0] = np.linspace(-1.1, 1.1, 256)
    drawing = on_device(tmp_path, spec, device="cpu", half=False)
    assert_same(drawing.draw(grey, grey, features), generator.draw(grey, grey, features))


@pytest.mark.parametrize("float16", [False, True])
def test_half_precision_arithmetic_draws_within_a_level(tmp_path: Path, float16: bool) -> None:
    spec = write_fake_bundle(tmp_path, float16=float16)
    generator = opened(tmp_path)
    crops, references, features = some_crops(9), some_crops(9, 1), some_features(9)
    drawing = on_device(tmp_path, spec, device="cpu", half=True)
    difference = drawing.draw(crops, references, features).pixels.astype(int) - generator.draw(crops, references, features).pixels
    assert np.abs(difference).max() <= 1
    rewritten = onnx.load_model_from_string(device_graph.rewritten((tmp_path / bundle.GENERATOR_GRAPH).read_bytes(), spec, half=True))
    kinds = {value.name: value.data_type for value in rewritten.graph.initializer}
    assert kinds["pick_half" if float16 else "pick"] == onnx.TensorProto.FLOAT16
    half_way = {node.input[0] for node in rewritten.graph.node if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT}
    assert "pick_half" not in half_way
    assert kinds["levels_half"] == onnx.TensorProto.FLOAT  # the conversions keep every level apart


@pytest.mark.parametrize("float16", [False, True])
def test_places_stay_float32_where_the_rest_is_half_precision(tmp_path: Path, float16: bool) -> None:
    """A fiftieth of a pixel, of a crop that has 128: what is copied from a video of 4k is looked up there."""
    spec = write_fake_bundle(tmp_path, float16=float16, has_flow=True)
    rewritten = onnx.load_model_from_string(device_graph.rewritten((tmp_path / bundle.GENERATOR_GRAPH).read_bytes(), spec, half=True))
    makers = {name: node for node in rewritten.graph.node for name in node.output}
    kinds = {value.name: value.data_type for value in rewritten.graph.initializer}

    def maker(name: str) -> onnx.NodeProto:
        """Of a tensor, seen through what changes nothing."""
        return maker(makers[name].input[0]) if makers[name].op_type == "Identity" else makers[name]

    assert maker(bundle.FLOW).op_type == "Add"
    places = maker(maker(bundle.FLOW).input[0])
    assert places.op_type == "Conv"
    weight = places.input[1]
    if float16:
        assert (maker(weight).op_type, maker(weight).attribute[0].i) == ("Cast", onnx.TensorProto.FLOAT)
    else:
        assert kinds[weight] == onnx.TensorProto.FLOAT
    generator = opened(tmp_path)
    crops, references, features = some_crops(9), some_crops(9, 1), some_features(9)
    one = generator.draw(crops, references, features).copied
    other = on_device(tmp_path, spec, device="cpu", half=True).draw(crops, references, features).copied
    assert one is not None
    assert other is not None
    assert 128 * np.abs(one.flow - other.flow).max() < 0.02
    assert np.abs(one.paint_mask.astype(int) - other.paint_mask).max() <= 1


@pytest.mark.parametrize("draws", ["nan", "nan painted", "nan flow"])
def test_a_graph_that_converts_itself_still_tells_of_pictures_that_are_no_numbers(tmp_path: Path, draws: Draws) -> None:
    spec = write_fake_bundle(tmp_path, draws=draws, has_flow=draws != "nan")
    drawing = on_device(tmp_path, spec, device="cpu", half=False)
    crops = np.zeros((3, 32, 32, 3), np.uint8)
    with pytest.raises(BundleInvalid, match="drew no picture"):
        drawing.draw(crops, crops, np.zeros((3, 4), np.float32))


def test_a_graph_that_cannot_be_rewritten_is_refused() -> None:
    with pytest.raises(BundleInvalid, match="generator graph of fake cannot be rewritten"):
        device_graph.rewritten(b"no graph at all" * 20, fake_spec(), half=False)


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose CUDA loads; what it is given is done by the CPU."""

    class Gpu:
        def __init__(self, real: Any, provider: str) -> None:
            self.real = real
            self.provider = provider

        def get_providers(self) -> list[str]:
            return [self.provider, CPU]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    def open_cuda(graph: bytes, threads: int | None, inputs: Any) -> tuple[Any, str]:
        return Gpu(onnx_runtime.new_session(graph, CPU, threads), CUDA), ""

    monkeypatch.setattr(session, "open_cuda", open_cuda)
    monkeypatch.setattr(buffers, "_DEVICES", {CUDA: "cpu"})
    monkeypatch.setattr(buffers, "_cuda_runtime", lambda: None)
    return monkeypatch


def drawn_alike(generator: Generator, folder: Path, count: int = 300) -> int:
    """Largest difference to the CPU, in grey levels."""
    plain = opened(folder)
    crops, references, features = some_crops(count), some_crops(count, 1), some_features(count)
    drawn, expected = generator.draw(crops, references, features), plain.draw(crops, references, features)
    difference = drawn.pixels.astype(int) - expected.pixels
    if drawn.copied is not None and expected.copied is not None:
        np.testing.assert_allclose(drawn.copied.flow, expected.copied.flow, atol=1e-4)
        assert np.abs(drawn.copied.paint_mask.astype(int) - expected.copied.paint_mask).max() <= 1
    return int(np.abs(difference).max())


@pytest.mark.parametrize("has_flow", [False, True])
def test_a_gpu_draws_in_float16_with_pictures_as_uint8(tmp_path: Path, gpu_machine: pytest.MonkeyPatch, has_flow: bool) -> None:
    write_fake_bundle(tmp_path, has_flow=has_flow)
    generator = opened(tmp_path, "cuda")
    assert isinstance(generator, OnnxGenerator)
    assert isinstance(generator._drawing, ConvertedOnDevice)
    assert (generator.provider, generator.precision, generator.notes) == (CUDA, "float16", ())
    assert generator.preferred_batch == 256
    assert drawn_alike(generator, tmp_path) <= 1


def test_a_graph_that_float16_does_not_suit_stays_float32(tmp_path: Path, gpu_machine: pytest.MonkeyPatch) -> None:
    write_fake_bundle(tmp_path)
    differences = iter((onnx_generator.HALF_TOLERANCE_LEVELS + 0.1, 0.0))
    gpu_machine.setattr(onnx_generator, "_difference_levels", lambda one, other, crop: next(differences))
    generator = opened(tmp_path, "cuda")
    assert isinstance(generator, OnnxGenerator)
    assert isinstance(generator._drawing, ConvertedOnDevice)
    assert generator.precision == "float32"
    assert [note.startswith("float16: drawn pictures differ by") for note in generator.notes] == [True]
    assert drawn_alike(generator, tmp_path) == 0


def test_a_graph_that_copies_from_elsewhere_in_float16_stays_float32(tmp_path: Path, gpu_machine: pytest.MonkeyPatch) -> None:
    write_fake_bundle(tmp_path, has_flow=True)
    differences = iter((onnx_generator.FLOW_TOLERANCE_PX + 0.1, 0.0))
    gpu_machine.setattr(onnx_generator, "_difference_px", lambda one, other, crop: next(differences))
    generator = opened(tmp_path, "cuda")
    assert isinstance(generator, OnnxGenerator)
    assert generator.precision == "float32"
    assert generator.notes == ("float16: pixels are copied from places that differ by 0.20 px",)


def test_only_places_that_pixels_are_copied_from_are_compared() -> None:
    crop = CropSpec(size=32, drawn=DRAWN, masked_from=16)
    painted = np.full((1, 16, 24), 255, np.uint8)
    painted[0, 5, 9] = 127  # in the cell (1, 2)
    pixels, flow = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 2, 4, 6), np.float32)
    one = Drawn(pixels, Copied(painted, flow))
    for at, px in (((0, 0), 0.0), ((1, 3), 0.0), ((1, 2), 1.6)):
        moved = flow.copy()
        moved[0, 1, at[0], at[1]] = -0.05
        assert onnx_generator._difference_px(one, Drawn(pixels, Copied(painted, moved)), crop) == pytest.approx(px)
    assert onnx_generator._difference_px(Drawn(pixels), Drawn(pixels), crop) == 0.0


def test_a_gpu_without_the_package_onnx_converts_by_the_cpu_and_says_so(tmp_path: Path, gpu_machine: pytest.MonkeyPatch) -> None:
    write_fake_bundle(tmp_path)
    gpu_machine.setattr(importlib.util, "find_spec", lambda name: None)
    generator = opened(tmp_path, "cuda")
    assert isinstance(generator, OnnxGenerator)
    assert isinstance(generator._drawing, ConvertedByHost)
    assert generator.precision == "float32"
    assert "lipdub[cuda]" in generator.notes[0]
    assert drawn_alike(generator, tmp_path) == 0


def test_a_network_that_draws_no_numbers_opens_on_a_gpu_and_is_refused_when_it_draws(
    tmp_path: Path, gpu_machine: pytest.MonkeyPatch
) -> None:
    write_fake_bundle(tmp_path, draws="nan")
    generator = opened(tmp_path, "cuda")
    crops = some_crops(1)
    with pytest.raises(BundleInvalid, match="drew no picture"):
        generator.draw(crops, crops, some_features(1))


def test_the_shipped_generator_draws_on_both_ways_alike() -> None:
    """The operators of the real network survive the rewriting, not only those of the fake."""
    folder = bundle.resolve("base")
    spec = bundle.load_spec(folder)
    generator = opened(folder)
    pictures = smooth_pictures(spec.crop, 3)
    features = np.tile(np.asarray(spec.rest_feature, np.float32), (3, 1))
    drawn = generator.draw(pictures, pictures[::-1], features)
    one, other = (
        on_device(folder, spec, device="cpu", threads=1, half=half).draw(pictures, pictures[::-1], features) for half in (False, True)
    )
    assert_same(one, drawn)
    assert onnx_generator._difference_px(other, drawn, spec.crop) < onnx_generator.FLOW_TOLERANCE_PX
    difference = np.abs(other.pixels.astype(int) - drawn.pixels)
    assert 0 < difference.max() <= 6
    assert difference.mean() < onnx_generator.HALF_TOLERANCE_LEVELS


def test_smooth_pictures_are_smooth() -> None:
    pictures = smooth_pictures(CropSpec(size=64, drawn=(32, 64, 8, 56), masked_from=32), 2).astype(int)
    assert np.abs(np.diff(pictures, axis=1)).max() < 12
    assert pictures.std() > 20
    assert (pictures[0] != pictures[1]).any()


# ---- opening


def test_a_bundle_of_version_1_draws_as_before_and_tells_nothing_of_copies(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "now", has_flow=True)
    write_fake_bundle(tmp_path / "then", has_flow=True)
    as_version_1(tmp_path / "then")
    now, then = (opened(tmp_path / name) for name in ("now", "then"))
    targets, references, features = some_crops(9), some_crops(9, 1), some_features(9)
    drawn = then.draw(targets, references, features)
    assert drawn.copied is None
    np.testing.assert_array_equal(drawn.pixels, now.draw(targets, references, features).pixels)


@pytest.mark.parametrize("has_flow", [False, True])
def test_a_graph_that_does_not_keep_its_word_on_copies_is_refused(tmp_path: Path, has_flow: bool) -> None:
    write_fake_bundle(tmp_path, has_flow=has_flow)
    rewrite_spec(tmp_path, has_flow=not has_flow)
    with pytest.raises(BundleInvalid, match=r"generator\.onnx gives face .*graphs swapped, or of another export"):
        opened(tmp_path)


def test_swapped_graphs_are_refused(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    memory, generator = (tmp_path / graph for graph in (bundle.MEMORY_GRAPH, bundle.GENERATOR_GRAPH))
    first, second = memory.read_bytes(), generator.read_bytes()
    memory.write_bytes(second)
    generator.write_bytes(first)
    with pytest.raises(BundleInvalid, match="hash differs"):
        open_model(str(tmp_path))
    rewrite_spec(tmp_path)
    with pytest.raises(BundleInvalid, match=r"generator\.onnx takes mel .*expected target .*graphs swapped"):
        open_model(str(tmp_path), device="cpu")


def test_a_fixed_batch_axis_is_refused(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, batch=16)
    with pytest.raises(BundleInvalid, match=r"takes target float \(16, 3, 32, 32\).*expected target float \(B, 3, 32, 32\)"):
        opened(tmp_path)


def test_an_unknown_backend_lists_those_there_are(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, backend="wav2lip")
    with pytest.raises(BundleInvalid, match="needs backend 'wav2lip', this lipdub has memory"):
        opened(tmp_path)


# ---- a model: a generator and the memory that it draws for


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_is_the_memory_and_the_generator_of_its_bundle(tmp_path: Path, gpu_machine: pytest.MonkeyPatch, device: Device) -> None:
    write_fake_bundle(tmp_path)
    model = open_model(str(tmp_path), device=device)
    assert isinstance(model, Model)
    assert model.spec == model.memory.spec == bundle.load_spec(tmp_path)
    assert model.generator.provider == {"cpu": CPU, "cuda": CUDA}[device]
    plain, windows = OnnxMemory(tmp_path, model.spec, device="cpu"), some_windows(300)
    np.testing.assert_allclose(model.memory.recall(windows).lip_feature, plain.recall(windows).lip_feature, atol=1e-5)


def test_louder_speech_makes_the_fake_brighter(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path)
    model = open_model(str(tmp_path), device="cpu")
    levels = np.linspace(-4.0, 4.0, 9, dtype=np.float32)
    recall = model.memory.recall(np.broadcast_to(levels[:, np.newaxis, np.newaxis], (9, 80, 16)).copy())
    black = np.zeros((9, 32, 32, 3), np.uint8)
    drawn = model.generator.draw(black, black, recall.lip_feature)
    np.testing.assert_allclose(drawn.pixels[:, Y0:Y1, X0:X1].mean(axis=(1, 2, 3)), recall.lip_feature[:, 0] * 127.5, atol=0.5)


def test_a_memory_that_the_spec_does_not_fit_is_no_model(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, slots=8)
    rewrite_spec(tmp_path, slots=9)
    with pytest.raises(BundleInvalid, match=r"memory\.onnx gives address float \(B, 8\).*expected address float \(B, 9\)"):
        open_model(str(tmp_path), device="cpu")


def test_an_unknown_name_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_bundle(tmp_path / "compact")
    monkeypatch.setattr(bundle, "_shelves", lambda: (tmp_path,))
    assert open_model("compact", device="cpu").spec.name == "fake"
    with pytest.raises(BundleNotFound, match="compact"):
        open_model("compakt", device="cpu")
