"""The voice detector on disk: which moments of a sound hold a voice, whatever else sounds.

    models/voice/
      voice.json    what it is: VoiceSpec below
      voice.onnx    frames of sound -> how likely each holds a voice
      LICENSE       of its weights

Ours is Silero VAD (Silero Team, github.com/snakers4/silero-vad; MIT) as it was published, in its form for many frames at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lipdub.bundles import bundle
from lipdub.bundles.bundle import BATCH, GraphTensors

FORMAT_VERSION: Final = 1
NAME: Final = "voice"
SPEC_FILE: Final = "voice.json"
GRAPH: Final = "voice.onnx"
FRAMES: Final = "input"
CELL: Final = ("h", "c")
PROBABILITY: Final = "speech_probs"
FRAME: Final = 512
"""Samples at 16 kHz that are judged together."""
BEFORE: Final = 64
"""Samples that the network sees before each frame."""
STATE: Final = 128
"""Channels of its memory of earlier frames."""
TENSORS: Final = GraphTensors(
    {FRAMES: (BATCH, BEFORE + FRAME)} | dict.fromkeys(CELL, (1, 1, STATE)),
    {PROBABILITY: (BATCH,)} | dict.fromkeys(("hn", "cn"), (1, 1, STATE)),
)


@dataclass(frozen=True, slots=True)
class VoiceSpec:
    """What a voice detector says of itself."""

    name: str
    format_version: int
    source: str
    license: str
    graphs: dict[str, str] = field(hash=False)
    """File name to sha256."""


def load_spec(folder: Path) -> VoiceSpec:
    """The spec of the detector in `folder`, its graph checked. Raises BundleNotFound, BundleInvalid."""
    text = bundle.read_spec(folder, SPEC_FILE)
    spec = bundle.read_record(text, VoiceSpec, where=str(folder / SPEC_FILE), version=FORMAT_VERSION)
    bundle.check_graphs(folder, spec.graphs, SPEC_FILE)
    return spec


def find() -> Path | None:
    """The folder of the detector that came with lipdub, checked; None where none did. Raises BundleInvalid: it is damaged."""
    if NAME not in bundle.available(SPEC_FILE):
        return None
    folder = bundle.resolve(NAME, spec_file=SPEC_FILE)
    load_spec(folder)
    return folder
