"""Test doubles that go through the real code: ONNX graphs of a few kB and a whole model bundle made of them.

The fake memory knows of a window only how loud it is: the mean of the mel picks slots, silence the first and the loudest sound
the last. Lip feature 0 is that loudness, from 0 (closed) to 1 (wide open); the other channels are fixed per slot. The fake
generator draws the reference's box, brightened by lip feature 0 (1 turns black into mid grey). So a test can follow sound
into pixels: louder speech, brighter box; silence, the reference as it is. Where it is to tell of copies, `painted` is the
reference's red, 1 for full red, and the flow its mean green and blue in each cell, in [-1/4, 1/4], plus an eighth of lip feature 0.

The fake speech encoder tells in channel 0 how loud a position is; a fake bundle on top of it hears that alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lipdub.bundles import bundle, encoder
from lipdub.bundles.bundle import BundleSpec
from lipdub.bundles.encoder import EncoderSpec
from lipdub.bundles.network import EncoderUse
from lipdub.records import CropSpec, MelSpec
from lipdub.speech.mel import cut_windows
from lipdub.speech.silence import silence_weight

OPSET = 17
IR_VERSION = 10
SHARPNESS = 8.0
"""Of the fake memory's softmax: high enough that silence recalls slot 0 and nothing else."""

TAPS = (-3, 0, 3)
"""Of a fake bundle on the fake speech encoder."""
SILENT, LOUD = -0.75, 1.0
"""Channel 0 of the fake speech encoder for digital silence, and for about the loudest sound."""

Draws = Literal["reference", "target", "nan", "nan painted", "nan flow"]


def fake_spec(
    *,
    size: int = 32,
    drawn: tuple[int, int, int, int] = (16, 32, 4, 28),
    masked_from: int | None = None,
    slots: int = 8,
    channels: int = 4,
    name: str = "fake",
    backend: str = "memory",
    tap_distance_s: float = 0.0,
    has_flow: bool = False,
    points: bool = False,
    heard_by: EncoderSpec | None = None,
) -> BundleSpec:
    """The spec of a fake bundle, hashes left out. masked_from: None for half of `size`. heard_by: the speech encoder that it stands on;
    None for one that hears mel."""
    use = None if heard_by is None else EncoderUse(heard_by.name, heard_by.graphs[encoder.GRAPH], heard_by.channels, TAPS)
    return BundleSpec(
        name=name,
        backend=backend,
        format_version=bundle.FORMAT_VERSION,
        crop=CropSpec(size=size, drawn=drawn, masked_from=size // 2 if masked_from is None else masked_from),
        mel=MelSpec() if use is None else None,
        slots=slots,
        lip_channels=channels,
        rest_feature=tuple(float(value) for value in slot_values(slots, channels)[0]),
        license="CC0-1.0",
        training_data="none: made by tests/fakes.py",
        graphs={},
        created_with="0.0.0",
        tap_distance_s=tap_distance_s,
        has_flow=has_flow,
        points=points,
        encoder=use,
    )


def write_fake_bundle(
    folder: Path,
    *,
    size: int = 32,
    drawn: tuple[int, int, int, int] = (16, 32, 4, 28),
    masked_from: int | None = None,
    slots: int = 8,
    channels: int = 4,
    name: str = "fake",
    backend: str = "memory",
    tap_distance_s: float = 0.0,
    has_flow: bool = False,
    heard_by: EncoderSpec | None = None,
    draws: Draws = "reference",
    float16: bool = False,
    batch: str | int = bundle.BATCH,
) -> BundleSpec:
    """Write a complete bundle into `folder` (made where it is missing) and give back its spec, hashes included.

    draws: ``target`` draws the masked target's box in place of the reference's, ``nan`` no numbers at all, ``nan painted`` and
    ``nan flow`` none there alone. float16: weights inside the graphs are float16. batch: a number fixes the batch axis, which lipdub
    must refuse.
    """
    spec = fake_spec(
        size=size,
        drawn=drawn,
        masked_from=masked_from,
        slots=slots,
        channels=channels,
        name=name,
        backend=backend,
        tap_distance_s=tap_distance_s,
        has_flow=has_flow,
        heard_by=heard_by,
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(memory_graph(spec, float16=float16, batch=batch), folder / bundle.MEMORY_GRAPH)
    onnx.save(generator_graph(spec, draws=draws, float16=float16, batch=batch), folder / bundle.GENERATOR_GRAPH)
    return bundle.finish(folder, spec)


def write_fake_encoder(folder: Path, *, channels: int = 6, core_s: float = 1.0, context_s: float = 0.2, nan: bool = False) -> EncoderSpec:
    """Write a complete speech encoder into `folder` (made where it is missing) and give back its spec, hash included.

    Channel 0 is the mean over the bands at a position, smoothed over 20 ms; channel 1 the mean over the whole window, as an encoder that
    attends to all of it knows; the others are fixed noise over five columns. nan: channel 0 is no number at all.
    """
    spec = EncoderSpec(
        name=folder.name, format_version=encoder.FORMAT_VERSION, layers=(1, 2), channels=channels, bands=80, floor=-7.0, core_s=core_s,
        context_s=context_s, source="none: made by tests/fakes.py", license="CC0-1.0", graphs={}, created_with="0.0.0",
    )  # fmt: skip
    around = np.random.default_rng(5).normal(0, 0.05, (channels, spec.bands, 5)).astype(np.float32)
    around[0] = np.array([0.0, 0.25, 0.5, 0.25, 0.0]) / spec.bands * (np.nan if nan else 1.0)
    around[1] = 0.0
    only_1 = np.zeros((1, channels, 1), np.float32)
    only_1[0, 1] = 1.0
    nodes = [
        helper.make_node("Conv", [encoder.LOG_MEL, "around"], ["near"], strides=[2], pads=[2, 2]),
        helper.make_node("ReduceMean", [encoder.LOG_MEL], ["mean"], axes=[1, 2], keepdims=1),
        helper.make_node("Mul", ["mean", "only_1"], ["everywhere"]),
        helper.make_node("Add", ["near", "everywhere"], ["by_channel"]),
        helper.make_node("Transpose", ["by_channel"], [encoder.FEATURES], perm=[0, 2, 1]),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_graph(encoder.GRAPH, spec.tensors, nodes, {"around": around, "only_1": only_1}, {}), folder / encoder.GRAPH)
    return encoder.finish(folder, spec)


class MelSound:
    """A `SpeechTrack` and a `PauseTrack` of ``lipdub.speech.windows`` over a whole mel (bands, columns)."""

    def __init__(self, mel: NDArray[np.float32], spec: MelSpec) -> None:
        self._mel, self._spec = mel, spec

    def windows(self, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
        return cut_windows(self._mel, times_s, self._spec)

    def at(self, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
        return silence_weight(self.windows(times_s))


def rewrite_spec(folder: Path, **changes: object) -> BundleSpec:
    """Hash the graphs of a bundle anew after a test has put others there; `changes` are fields of its spec."""
    old = BundleSpec.from_json((folder / bundle.SPEC_FILE).read_text(encoding="utf-8"))
    return bundle.finish(folder, replace(old, **changes))  # type: ignore[arg-type]


def as_version_1(folder: Path) -> None:
    """Make the bundle in `folder` one of format version 1: its generator gives the face alone, and its description knows no copies."""
    _keep_outputs(folder / bundle.GENERATOR_GRAPH, bundle.FACE)
    rewrite_spec(folder, has_flow=False, voice_bands=0, network=None)
    as_version_2(folder)
    described = json.loads((folder / bundle.SPEC_FILE).read_text(encoding="utf-8"))
    del described["copies"], described["voice_bands"]
    (folder / bundle.SPEC_FILE).write_text(json.dumps(described | {"format_version": 1}), encoding="utf-8")


def _keep_outputs(graph_file: Path, *names: str) -> None:
    graph = onnx.load(graph_file)
    kept = [output for output in graph.graph.output if output.name in names]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    onnx.save(graph, graph_file)


def as_version_2(folder: Path) -> None:
    """Make the bundle in `folder` one of format version 2: its memory tells no lip points, and neither its description nor its weights
    tell of the network."""
    _keep_outputs(folder / bundle.MEMORY_GRAPH, bundle.ADDRESS, bundle.LIP_FEATURE)
    rewrite_spec(folder, points=False)
    described = json.loads((folder / bundle.SPEC_FILE).read_text(encoding="utf-8"))
    del described["network"], described["encoder"], described["points"]
    described |= {"format_version": 2, "smoothing_s": described.pop("tap_distance_s"), "copies": described.pop("has_flow")}
    (folder / bundle.SPEC_FILE).write_text(json.dumps(described), encoding="utf-8")
    weights = folder / "weights.safetensors"
    if weights.is_file():
        import safetensors.numpy

        weights.write_bytes(safetensors.numpy.save(safetensors.numpy.load(weights.read_bytes())))


def slot_values(slots: int, channels: int) -> NDArray[np.float32]:
    """The fake value memory, float32 (slots, channels): channel 0 rises from 0 to 1, the others are fixed noise."""
    values = np.random.default_rng(7).normal(size=(slots, channels)).astype(np.float32)
    values[:, 0] = np.linspace(0.0, 1.0, slots)
    return values


def memory_graph(spec: BundleSpec, *, float16: bool = False, batch: str | int = bundle.BATCH) -> onnx.ModelProto:
    """mel, or features, -> address, lip feature: softmax over the distance of how loud a window is from each slot's level in [-4, 4]."""
    levels = np.linspace(-4.0, 4.0, spec.slots)
    weights = {
        "towards": (SHARPNESS * 2.0 * levels[np.newaxis]).astype(np.float32),
        "against": (-SHARPNESS * levels**2).astype(np.float32),
        "values": slot_values(spec.slots, spec.lip_channels),
    }
    if spec.encoder is None:
        hears = [
            helper.make_node("ReduceMean", [bundle.MEL], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "last_axis"], ["loudness"]),
        ]
    else:
        middle = (SILENT + LOUD) / 2
        weights["channel_0"] = np.zeros((spec.encoder.channels, 1), np.float32)
        weights["channel_0"][0] = 8 / (LOUD - SILENT)
        weights["middle"] = np.array(-middle * 8 / (LOUD - SILENT), np.float32)
        hears = [
            helper.make_node("ReduceMean", [bundle.FEATURES], ["mean"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "channel_0"], ["scaled"]),
            helper.make_node("Add", ["scaled", "middle"], ["loudness"]),
        ]
    nodes = [
        *hears,
        helper.make_node("MatMul", ["loudness", "towards"], ["pull"]),
        helper.make_node("Add", ["pull", "against"], ["closeness"]),
        helper.make_node("Softmax", ["closeness"], [bundle.ADDRESS], axis=-1),
        helper.make_node("MatMul", [bundle.ADDRESS, "values"], [bundle.LIP_FEATURE]),
    ]
    shapes = {"last_axis": np.array([1])} if spec.encoder is None else {}
    return _graph(bundle.MEMORY_GRAPH, bundle.tensors(bundle.MEMORY_GRAPH, spec), nodes, weights, shapes, float16=float16, batch=batch)


def generator_graph(
    spec: BundleSpec, *, draws: Draws = "reference", float16: bool = False, batch: str | int = bundle.BATCH
) -> onnx.ModelProto:
    """target, reference, lip feature -> face: the box `drawn` of one of the pictures plus lip feature 0, at most 1; with copies, painted
    and flow."""
    y0, y1, x0, x1 = spec.crop.drawn
    pick = np.zeros((spec.lip_channels, 1), np.float32)
    pick[0] = np.nan if draws == "nan" else 1.0
    shapes = {"box_from": np.array([y0, x0]), "box_to": np.array([y1, x1]), "rows_columns": np.array([2, 3])}
    nodes = [
        helper.make_node("Slice", [draws if draws == "target" else bundle.REFERENCE, *shapes], ["box"]),
        helper.make_node("MatMul", [bundle.LIP_FEATURE, "pick"], ["opening"]),
        helper.make_node("Unsqueeze", ["opening", "rows_columns"], ["light"]),
        helper.make_node("Add", ["box", "light"], ["lit"]),
        helper.make_node("Min", ["lit", "white"], [bundle.FACE]),
    ]
    weights = {"pick": pick, "white": np.ones((), np.float32)}
    if spec.has_flow:
        cell = [bundle.FLOW_STRIDE] * 2
        shapes |= {"red_from": np.array([0]), "red_to": np.array([1]), "channels": np.array([1])}
        nodes += [
            helper.make_node("Slice", [bundle.REFERENCE, "box_from", "box_to", "rows_columns"], ["seen"]),
            helper.make_node("Slice", ["seen", "red_from", "red_to", "channels"], ["red"]),
            helper.make_node("Add", ["red", "white"], ["red_from_zero"]),
            helper.make_node("Mul", ["red_from_zero", "share"], [bundle.PAINT_MASK]),
            helper.make_node("AveragePool", ["seen"], ["cells"], kernel_shape=cell, strides=cell),
            helper.make_node("Conv", ["cells", "sideways"], ["places"], name="places"),
            helper.make_node("Mul", ["light", "eighth"], ["by_light"], name="by_light"),
            helper.make_node("Add", ["places", "by_light"], [bundle.FLOW], name="to_flow"),
        ]
        sideways = np.zeros((2, 3, 1, 1), np.float32)
        sideways[0, 1] = sideways[1, 2] = np.nan if draws == "nan flow" else 0.25
        weights |= {
            "share": np.array(np.nan if draws == "nan painted" else 0.5, np.float32),
            "sideways": sideways,
            "eighth": np.array(0.125, np.float32),
        }
    tensors = bundle.tensors(bundle.GENERATOR_GRAPH, spec)
    return _graph(bundle.GENERATOR_GRAPH, tensors, nodes, weights, shapes, float16=float16, batch=batch)


def _graph(
    graph: str,
    tensors: bundle.GraphTensors,
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[np.float32]],
    shapes: dict[str, NDArray[np.int64]],
    *,
    float16: bool = False,
    batch: str | int = bundle.BATCH,
) -> onnx.ModelProto:
    """A graph with these tensors. float16: weights are stored half and cast as they are used."""

    def infos(named: Mapping[str, bundle.Shape]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch if axis == bundle.BATCH else axis for axis in shape])
            for name, shape in named.items()
        ]

    constants = [numpy_helper.from_array(value.astype(np.int64), name) for name, value in shapes.items()]
    casts = []
    for name, value in weights.items():
        constants.append(
            numpy_helper.from_array(value.astype(np.float16), f"{name}_half") if float16 else numpy_helper.from_array(value, name)
        )
        if float16:
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    model = helper.make_model(
        helper.make_graph(casts + nodes, Path(graph).stem, infos(tensors.inputs), infos(tensors.outputs), constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model
