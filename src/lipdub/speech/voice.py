"""How likely a sound holds a voice, moment by moment, whatever else sounds (see ``lipdub.bundles.voice``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.bundles import voice
from lipdub.bundles.voice import BEFORE, CELL, FRAME, FRAMES, GRAPH, PROBABILITY, STATE, TENSORS
from lipdub.runtime import Session, open_session

_AT_ONCE: Final = 512
"""Frames that go through the network together: 16 s."""


def open_voice() -> Session | None:
    """The detector that came with lipdub, on the processor; None where none did. Raises BundleInvalid."""
    folder = voice.find()
    return None if folder is None else _opened(folder)


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Session:
    return open_session(folder / GRAPH, device="cpu", threads=1, inputs=TENSORS.inputs, outputs=TENSORS.outputs)


def voice_in(blocks: Iterable[NDArray[np.float32]], session: Session) -> NDArray[np.float32]:
    """How likely each frame of 512 samples holds a voice, float32 (frames,) in [0, 1]; the last frame ends in silence.

    blocks: mono float32 samples at 16 kHz, as ``media.read_audio`` yields them.
    """
    state = {name: np.zeros((1, 1, STATE), np.float32) for name in CELL}
    found = [np.zeros(0, np.float32)]
    for samples in _joined(blocks):
        windows = np.lib.stride_tricks.sliding_window_view(samples, BEFORE + FRAME)[::FRAME]
        answer = session.run({FRAMES: np.ascontiguousarray(windows)} | state)
        found.append(answer[PROBABILITY])
        state = dict(zip(CELL, (answer["hn"], answer["cn"]), strict=True))
    return np.concatenate(found)


def _joined(blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The sound in pieces of `_AT_ONCE` frames and what lies before them; of the last piece as many frames as it takes."""
    held, whole = np.zeros(BEFORE, np.float32), BEFORE + _AT_ONCE * FRAME
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= whole:
            yield held[:whole]
            held = held[whole - BEFORE :]
    if len(held) > BEFORE:
        yield np.pad(held, (0, -(len(held) - BEFORE) % FRAME))
