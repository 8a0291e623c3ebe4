"""Silence for libraries that write to standard error past Python."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lipdub.stages import ENDING


@contextmanager
def _interruptions_later() -> Iterator[None]:
    """Let Ctrl-C and a request to end wait until the block is left; they only ever come to the main thread."""
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


_silence = threading.RLock()


@contextmanager
def native_log_silenced() -> Iterator[None]:
    """Keep what the C++ parts of mediapipe and ONNX Runtime write to standard error, past Python, away from the user: no setting silences
    all of it.

    One thread at a time: a second one would take the silence for the stream to go back to.
    """
    # Broken off in the middle, a model would go on being built and log when the silence has ended.
    with _silence, _interruptions_later():
        sys.stderr.flush()
        kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
