"""Fixtures for every test."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest
from hypothesis import settings


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The global generators start alike in every test. Torch is not imported for it."""
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


# A shell without job control starts background jobs deaf to Ctrl-C; tests of interruptions need to hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests leave the user's analysis cache alone, and are not helped by it; those of the cache name a folder of their own.
os.environ["LIPDUB_CACHE"] = "off"
# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
