"""Importing this skips a test file where torch is absent; with LIPDUB_REQUIRE_TORCH=1 it fails, so that CI cannot pass by skipping."""

import importlib
import os
import sys

import pytest

for library in ("torch", "lightning_fabric", "onnx", "safetensors", "tensorboard"):
    if os.environ.get("LIPDUB_REQUIRE_TORCH") == "1":
        importlib.import_module(library)
    else:
        pytest.importorskip(library)

if "torch" in sys.modules:
    # Toy networks are too small to share out: more threads would only wait for each other.
    sys.modules["torch"].set_num_threads(1)
