"""ONNX Runtime sessions: which device they really run on, and whether the graph is the expected one.

The only importer of onnxruntime, and the one place where its exceptions become ours. Three of its habits matter:

- Asked for a device that it cannot load, it logs a warning and runs on the CPU; and ``get_available_providers`` lists what was compiled
  in, not what loads. So a device counts only after a session on it has run once.
- From release 1.29 on it reports on its use, and keeps a device's number and a database in the home folder. That is switched off here,
  before anything can import it.

    session = open_session(path, device="cuda", inputs=..., outputs=...)
    session.run({"mel": windows})                    # one call, any batch, fresh arrays
    session.stream(count, fill=..., collect=...)     # many rows through buffers that are bound once and used again
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded

from lipdub.native_log import native_log_silenced

with native_log_silenced():  # it looks for GPUs, and warns of those that it cannot look at
    import onnxruntime

from lipdub.runtime.onnx_runtime import CPU, CUDA, LOG_FATAL_ONLY, Shapes, in_half_precision
from lipdub.runtime.session import Collect, DeviceMemoryFull, Fill, Session, open_session

onnxruntime.set_default_logger_severity(LOG_FATAL_ONLY)  # what it warns of in colours, lipdub finds out and says in a line
if hasattr(onnxruntime, "disable_telemetry_events"):
    onnxruntime.disable_telemetry_events()

__all__ = [
    "CPU",
    "CUDA",
    "Collect",
    "DeviceMemoryFull",
    "Fill",
    "Session",
    "Shapes",
    "in_half_precision",
    "open_session",
]
