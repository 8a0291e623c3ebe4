"""Importing this skips the test file where torch is absent; with LIPDUB_REQUIRE_TORCH=1 it fails instead, so that CI cannot pass by skipping."""

import importlib
import os

import pytest

for library in ("torch", "lightning_fabric", "onnx", "safetensors", "tensorboard"):
    if os.environ.get("LIPDUB_REQUIRE_TORCH") == "1":
        importlib.import_module(library)
    else:
        pytest.importorskip(library)
