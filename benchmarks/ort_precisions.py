"""The generator's graph in other precisions, for measurement only: nothing of this is shipped.

bfloat16 is missing on purpose: ONNX Runtime's CPU provider has no bfloat16 arithmetic at all (microsoft/onnxruntime issue 28768);
its one fast path, ``mlas.enable_gemm_fastmath_arm64_bfloat16``, is for Arm's matrix products. float16 has no x86 kernels either:
ORT puts casts around float32 ones, which the row `float16` shows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.onnx_cost import with_plain_weights
from lipdub.runtime import in_half_precision

PRECISIONS: Final = ("float32", "float16", "int8-dynamic", "int8-static", "int8-static-noflow", "int8-static-inner", "int8-static-s8s8")
"""float32: as shipped. float16: arithmetic, where there are kernels. int8-dynamic: weights int8, activations as they come (U8U8).
int8-static: weights int8 per channel, activations uint8 from calibration on crops (QDQ, U8S8), all Conv. int8-static-noflow: all but the
one that says where pixels of the reference go, since an offset that is rounded moves them. int8-static-inner: nor the one that takes the
pictures and the one that gives them. int8-static-s8s8: as int8-static, activations int8, too."""
_CALIBRATION_BATCH: Final = 4

Feeds = dict[str, NDArray[np.float32]]


class _Crops(CalibrationDataReader):  # type: ignore[misc]
    """Batches of real crops for the calibration."""

    def __init__(self, feeds: Feeds) -> None:
        count = len(next(iter(feeds.values())))
        self._batches: Iterator[Feeds] = iter(
            [{name: rows[at : at + _CALIBRATION_BATCH] for name, rows in feeds.items()} for at in range(0, count, _CALIBRATION_BATCH)]
        )

    def get_next(self) -> Feeds | None:
        """The next batch, None after the last."""
        return next(self._batches, None)


def write_in_precision(source: Path, out: Path, precision: str, feeds: Feeds) -> None:
    """Write the float32 generator graph `source` in another precision to `out`. feeds: what real crops are to the graph."""
    plain = with_plain_weights(onnx.load(str(source)))
    if precision == "float32":
        onnx.save(plain, str(out))
        return
    if precision == "float16":
        half = in_half_precision(plain, kept_float32=("GridSample", "Resize"))
        out.write_bytes(_sorted(half).SerializeToString())
        return
    with tempfile.TemporaryDirectory(prefix="lipdub-int8-") as name:
        ready = Path(name) / "ready.onnx"
        quant_pre_process(plain, str(ready), skip_symbolic_shape=True)
        if precision == "int8-dynamic":
            # ConvInteger has no kernel for signed weights on the CPU.
            quantize_dynamic(str(ready), str(out), op_types_to_quantize=["Conv", "MatMul", "Gemm"], weight_type=QuantType.QUInt8)
            return
        quantize_static(
            str(ready), str(out), _Crops(feeds), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"], per_channel=True,
            activation_type=QuantType.QInt8 if precision.endswith("s8s8") else QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax, nodes_to_exclude=_left_out(ready, precision),
        )  # fmt: skip


def _left_out(path: Path, precision: str) -> list[str]:
    """Names of the convolutions that stay float32."""
    names = [node.name for node in onnx.load(str(path)).graph.node if node.op_type == "Conv"]
    flow = [name for name in names if "flow" in name]
    if precision.endswith("noflow"):
        return flow
    return [names[0], *flow, *(name for name in names if "picture" in name)] if precision.endswith("inner") else []


def _sorted(model: Any) -> Any:
    from lipdub.generators.device_graph import sort

    sort(model)
    return model
