"""ONNX Runtime sessions: which device they really run on, how they are tuned, and whether the graph is the expected one.

The only importer of onnxruntime, and the one place where its exceptions become ours. Two of its habits shape it: asked for a
device that it cannot load, it logs a warning and runs on the CPU; and ``get_available_providers`` lists what was compiled in,
not what loads. So a device counts only after a session on it has run once.

    session = open_session(path, device="cuda", inputs=..., outputs=...)
    session.run({"mel": windows})                    # one call, any batch, fresh arrays
    session.stream(count, fill=..., collect=...)     # many rows through buffers that are bound once and used again
"""

from __future__ import annotations

from lipdub.runtime.half import in_half_precision
from lipdub.runtime.opening import open_session
from lipdub.runtime.ort_words import CPU, CUDA, TENSORRT, Shapes
from lipdub.runtime.session import Collect, DeviceMemoryFull, Fill, Session
from lipdub.runtime.tuning import TENSORRT_VARIABLE, TUNING, Tuning, tensorrt_wanted

__all__ = [
    "CPU",
    "CUDA",
    "TENSORRT",
    "TENSORRT_VARIABLE",
    "TUNING",
    "Collect",
    "DeviceMemoryFull",
    "Fill",
    "Session",
    "Shapes",
    "Tuning",
    "in_half_precision",
    "open_session",
    "tensorrt_wanted",
]
