"""The generator's graph rewritten for a GPU: float16 arithmetic, and pictures that go in and come out as uint8.

A GPU waits for its pictures. As uint8 they have a quarter of the bytes, and the CPU has nothing to convert.
The rewriting is done in memory when a bundle is opened, so every bundle gets it. Only this needs the package ``onnx`` (``lipdub[cuda]``).

    target_levels ──► to [-1, 1], rows below the mask 0 ──┐
    reference_levels ──► to [-1, 1] ──────────────────────┼──► the graph as it was ──► face_levels, face_mean
    lip_feature ──────────────────────────────────────────┘         and, with copies, painted_levels, painted_mean, flow
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from lipdub import runtime
from lipdub.bundles import bundle
from lipdub.bundles.bundle import BATCH, BundleSpec, GraphTensors, Shape
from lipdub.errors import BundleInvalid

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

TARGET_LEVELS: Final = "target_levels"
REFERENCE_LEVELS: Final = "reference_levels"
FACE_LEVELS: Final = "face_levels"
FACE_MEAN: Final = "face_mean"
PAINTED_LEVELS: Final = "painted_levels"
PAINTED_MEAN: Final = "painted_mean"
_AS_LEVELS: Final = (TARGET_LEVELS, REFERENCE_LEVELS, FACE_LEVELS, PAINTED_LEVELS)
"""uint8; every other tensor is float32."""

_KEPT_FLOAT32: Final = ("GridSample", "Resize")
"""Where a picture is looked up at positions: float16 knows the 128 columns of a crop to a sixteenth of a pixel only, and CUDA has
GridSample in float32 alone."""


def why_not() -> str:
    """Why graphs cannot be rewritten here, in a few words; or ''."""
    return "" if importlib.util.find_spec("onnx") is not None else 'the package onnx is missing; pip install "lipdub[cuda]"'


def tensors(spec: BundleSpec) -> GraphTensors:
    """Tensors of the rewritten graph.

    target_levels: uint8 (B, rows above the mask, S, 3) RGB. reference_levels: uint8 (B, S, S, 3) RGB. lip_feature: float32 (B, C).
    face_levels: uint8 (B, h, w, 3) RGB, the drawn box, rounded and clipped. face_mean: float32 (B, 3, 1, 1), mean of each channel
    before that: NaN or infinite where the network drew no numbers, which uint8 would hide.

    Where the bundle says `has_flow`: painted_levels, uint8 (B, h, w), 255 times painted, rounded and clipped; painted_mean, float32
    (B, 1, 1, 1); flow, as the bundle's graph gives it.
    """
    y0, y1, x0, x1 = spec.crop.drawn
    size = spec.crop.size
    copied: dict[str, Shape] = {}
    if spec.has_flow:
        flow = bundle.tensors(bundle.GENERATOR_GRAPH, spec).outputs[bundle.FLOW]
        copied = {PAINTED_LEVELS: (BATCH, y1 - y0, x1 - x0), PAINTED_MEAN: (BATCH, 1, 1, 1), bundle.FLOW: flow}
    return GraphTensors(
        inputs={
            TARGET_LEVELS: (BATCH, spec.crop.masked_from, size, 3),
            REFERENCE_LEVELS: (BATCH, size, size, 3),
            bundle.LIP_FEATURE: (BATCH, spec.lip_channels),
        },
        outputs={FACE_LEVELS: (BATCH, y1 - y0, x1 - x0, 3), FACE_MEAN: (BATCH, 3, 1, 1), **copied},
    )


def rewritten(graph: bytes, spec: BundleSpec, *, half: bool) -> bytes:
    """The generator graph of a bundle with the tensors of `tensors`. half: compute in float16, conversions excepted.

    Raises BundleInvalid: a graph that cannot be rewritten. ``ImportError`` where `why_not` says why.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(graph)
        if half:
            model = _half(model)
        _wrap(model, spec)
        onnx.checker.check_model(model)
    except Exception as error:
        # onnx and protobuf raise whatever they like here; all of it means the same to the caller.
        raise BundleInvalid(
            f"the generator graph of {spec.name} cannot be rewritten for the GPU ({' '.join(str(error).split())[:200]})"
        ) from error
    return bytes(model.SerializeToString())


def _half(model: ModelProto) -> ModelProto:
    """The graph with float16 arithmetic, but for what looks pictures up at positions and for what gives the flow."""
    from onnx import TensorProto

    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
    own = {node.name for node in model.graph.node}
    half: ModelProto = runtime.in_half_precision(model, kept_float32=_KEPT_FLOAT32, kept_nodes=_flow_head(model))
    # The conversion casts for each of two nodes that take one tensor, by the same name.
    nodes = {tuple(node.output): node for node in half.graph.node}
    # And it rounds to float16 between two nodes that both stay float32.
    rounded = {
        node.output[0]: node.input[0]
        for node in nodes.values()
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16 and node.name not in own
    }
    for node in nodes.values():
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT and node.input[0] in rounded:
            node.op_type, node.input[0] = "Identity", rounded[node.input[0]]
            del node.attribute[:]
    kept = list(nodes.values())
    del half.graph.node[:], half.graph.value_info[:]
    half.graph.node.extend(kept)
    sort(half)
    return half


def _flow_head(model: ModelProto) -> tuple[str, ...]:
    """Names of the nodes that make the flow out of the last features before it, the convolution among them: as _KEPT_FLOAT32. None where
    the graph gives no flow."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: list[str] = []
    waiting = [bundle.FLOW]
    while waiting:
        node = makers.pop(waiting.pop(), None)
        if node is not None:
            found.append(node.name)
            # The weights' own casts come before a convolution, too: they stay as they are converted.
            waiting += [] if node.op_type == "Conv" else list(node.input)
    return tuple(found)


def sort(model: ModelProto) -> None:
    """Bring nodes into the order in which they run: the conversion to float16 has added its casts at the end."""
    graph = model.graph
    waiting = list(graph.node)
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    ordered: list[NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if known.issuperset(node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError(f"nothing gives the input of {later[0].name}")
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)


def _wrap(model: ModelProto, spec: BundleSpec) -> None:
    """Put the conversions in front of and behind the graph; its float32 tensors become inner ones."""
    from onnx import TensorProto, helper, numpy_helper

    declared = tensors(spec)
    constants = {
        "levels_half": np.float32(127.5), "levels_one": np.float32(1), "levels_zero": np.float32(0), "levels_two": np.float32(2),
        "levels_below": np.array([0, 0, 0, 0, 0, 0, spec.crop.size - spec.crop.masked_from, 0], np.int64),
    }  # fmt: skip
    before = [
        *_to_network(TARGET_LEVELS, "target_seen"),
        helper.make_node("Pad", ["target_seen", "levels_below", "levels_zero"], [bundle.TARGET]),
        *_to_network(REFERENCE_LEVELS, bundle.REFERENCE),
    ]
    behind = [
        helper.make_node("Add", [bundle.FACE, "levels_one"], ["face_shifted"]),
        helper.make_node("Clip", ["face_shifted", "levels_zero", "levels_two"], ["face_clipped"]),
        helper.make_node("Mul", ["face_clipped", "levels_half"], ["face_scaled"]),
        helper.make_node("Round", ["face_scaled"], ["face_rounded"]),
        helper.make_node("Cast", ["face_rounded"], ["face_planes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["face_planes"], [FACE_LEVELS], perm=[0, 2, 3, 1]),
        helper.make_node("GlobalAveragePool", [bundle.FACE], [FACE_MEAN]),
    ]
    if spec.has_flow:
        constants |= {"levels_most": np.float32(255), "levels_channel": np.array([1], np.int64)}
        behind += [
            helper.make_node("Clip", [bundle.PAINT_MASK, "levels_zero", "levels_one"], ["painted_clipped"]),
            helper.make_node("Mul", ["painted_clipped", "levels_most"], ["painted_scaled"]),
            helper.make_node("Round", ["painted_scaled"], ["painted_rounded"]),
            helper.make_node("Cast", ["painted_rounded"], ["painted_plane"], to=TensorProto.UINT8),
            helper.make_node("Squeeze", ["painted_plane", "levels_channel"], [PAINTED_LEVELS]),
            helper.make_node("GlobalAveragePool", [bundle.PAINT_MASK], [PAINTED_MEAN]),
        ]
    graph = model.graph
    nodes = [*before, *graph.node, *behind]
    for field, values in (
        ("node", nodes),
        ("input", _infos(declared.inputs)),
        ("output", _infos(declared.outputs)),
    ):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(values)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())


def _to_network(levels: str, name: str) -> list[NodeProto]:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]: the same arithmetic as on the host, bit for bit."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Transpose", [levels], [f"{name}_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [f"{name}_planes"], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Div", [f"{name}_float", "levels_half"], [f"{name}_scaled"]),
        helper.make_node("Sub", [f"{name}_scaled", "levels_one"], [name]),
    ]


def _infos(shapes: Mapping[str, tuple[int | str, ...]]) -> list[ValueInfoProto]:
    from onnx import TensorProto, helper

    return [
        helper.make_tensor_value_info(name, TensorProto.UINT8 if name in _AS_LEVELS else TensorProto.FLOAT, list(shape))
        for name, shape in shapes.items()
    ]
