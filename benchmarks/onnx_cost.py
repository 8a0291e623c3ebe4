"""What an ONNX graph costs: floating-point operations and bytes of its convolutions and matrix products, from inferred shapes.

Multiplications and additions count as one operation each. Norms, activations, resizing and the rest count nothing: they are
a few per cent of the operations, and a perfect engine would fuse them into their neighbours. So the time that follows from these
figures is one that cannot be gone below, and no estimate of a real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import helper, numpy_helper, shape_inference

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One convolution or matrix product. flops: operations; elements: numbers read (inputs, weights, bias) and written."""

    op: str
    name: str
    flops: int
    elements: int

    def seconds(self, *, flops_per_s: float, bytes_per_s: float, bytes_each: int) -> float:
        """The least time that it takes where so much can be computed and moved: the roofline."""
        return max(self.flops / flops_per_s, self.elements * bytes_each / bytes_per_s)


def costs(model: onnx.ModelProto, *, batch: int) -> list[NodeCost]:
    """The cost of every convolution and matrix product for a batch of that size. Raises ValueError where a shape stays unknown.

    Shapes are inferred for batches of 2 and 3 and the cost continued along the line between them, which is exact: an axis of 1 next to
    an unknown one could be stretched, so that a batch of 1 would leave shapes open.
    """
    low, high = _costs(model, 2), _costs(model, 3)

    def at(two: int, three: int) -> int:
        return two + (batch - 2) * (three - two)

    return [NodeCost(a.op, a.name, at(a.flops, b.flops), at(a.elements, b.elements)) for a, b in zip(low, high, strict=True)]


def _costs(model: onnx.ModelProto, batch: int) -> list[NodeCost]:
    inferred = shape_inference.infer_shapes(with_batch(model, batch), strict_mode=True, data_prop=True)
    shapes = _shapes(inferred.graph)
    found = []
    for number, node in enumerate(inferred.graph.node):
        if node.op_type not in _FLOPS:
            continue
        tensors = [name for name in (*node.input, *node.output) if name]
        unknown = [name for name in tensors if name not in shapes]
        if unknown:
            raise ValueError(f"the shape of {', '.join(unknown)} at {node.op_type} {node.name or number} is not known")
        flops = _FLOPS[node.op_type](node, shapes)
        found.append(NodeCost(node.op_type, node.name or str(number), flops, sum(prod(shapes[name]) for name in tensors)))
    return found


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy whose inputs have that size on their one open axis; what it says of the sizes of its outputs is dropped."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for tensor in fixed.graph.input:
        for axis in tensor.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = batch
    for tensor in fixed.graph.output:
        tensor.type.tensor_type.ClearField("shape")
    return fixed


def with_plain_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which weights that were stored as float16 and cast when used are float32 in the first place."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in plain.graph.initializer}
    casts = [
        node
        for node in plain.graph.node
        if node.op_type == "Cast" and node.input[0] in stored and _attribute(node, "to", 0) == onnx.TensorProto.FLOAT
    ]
    for node in casts:
        weights = numpy_helper.to_array(stored[node.input[0]]).astype("float32")
        plain.graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
        plain.graph.node.remove(node)
    used = {name for node in plain.graph.node for name in node.input}
    for tensor in list(plain.graph.initializer):
        if tensor.name not in used:
            plain.graph.initializer.remove(tensor)
    return plain


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for tensor in (*graph.input, *graph.value_info, *graph.output):
        axes = tensor.type.tensor_type.shape.dim
        if tensor.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            found[tensor.name] = tuple(axis.dim_value for axis in axes)
    return found


def _attribute(node: onnx.NodeProto, name: str, otherwise: int) -> int:
    return next((int(helper.get_attribute_value(found)) for found in node.attribute if found.name == name), otherwise)


def _convolution(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Each output pixel is a sum over the kernel; the weights are (out, in / group, kernel)."""
    return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])


def _transposed(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Each input pixel goes into a kernel of outputs; the weights are (in, out / group, kernel)."""
    return 2 * prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])


def _product(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Each output is a sum over the axis that both sides share: the last of the left side, or its first where it is turned."""
    left = shapes[node.input[0]]
    shared = left[0] if _attribute(node, "transA", 0) else left[-1]
    return 2 * prod(shapes[node.output[0]]) * shared


_FLOPS = {"Conv": _convolution, "ConvTranspose": _transposed, "Gemm": _product, "MatMul": _product}
