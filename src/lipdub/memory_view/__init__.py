"""A look into the audio-lip memory: which slots speech uses, the mouth of each, the address over time, slots against phonemes."""

from __future__ import annotations

from lipdub.memory_view.look import MemoryReport, look

__all__ = ["MemoryReport", "look"]
