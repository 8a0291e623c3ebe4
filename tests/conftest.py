"""Fixtures for every test."""

from __future__ import annotations

import os
import signal
import sys

# Networks here are tiny, and several test processes share the cores: more threads only wait for each other. Read at the imports below.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings


@pytest.fixture(autouse=True)
def _begun_alike() -> None:
    """The global generators start alike in every test, and no Ctrl-C of an earlier one is remembered. Nothing is imported for it."""
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "lipdub.cli.console" in sys.modules:
        sys.modules["lipdub.cli.console"].interrupted.clear()


# A shell without job control starts background jobs deaf to Ctrl-C; tests of interruptions need to hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does nohup with a closed terminal: the programs that tests start would wait for ever.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Tests leave the user's analysis cache alone, and are not helped by it; those of the cache name a folder of their own.
os.environ["LIPDUB_CACHE"] = "off"
# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
