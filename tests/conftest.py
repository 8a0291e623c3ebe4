"""Fixtures for every test."""

from __future__ import annotations

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


# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
