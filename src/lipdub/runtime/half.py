"""Float16 arithmetic in the place of float32."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def in_half_precision(model: Any, *, kept_float32: tuple[str, ...] = (), kept_nodes: tuple[str, ...] = ()) -> Any:
    """An ``onnx.ModelProto`` with float16 arithmetic and weights in the place of float32, which the operators `kept_float32`, the nodes
    named `kept_nodes` and the graph's own inputs and outputs keep. Needs the package onnx."""
    before = list(sys.path)
    try:
        # Importing this subpackage puts its folder, which holds a benchmark.py and a metrics.py, on the path of all imports.
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    finally:
        sys.path[:] = before
    blocked = sorted({*DEFAULT_OP_BLOCK_LIST, *kept_float32})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers below float16's smallest become that; what comes of it is compared
        return convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked, node_block_list=list(kept_nodes))
