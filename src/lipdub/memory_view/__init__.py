"""A look into the audio-lip memory: which slots speech uses, the mouth of each, the address over time, slots against phonemes.

``look`` is what ``lipdub memory`` runs; ``closures`` is the bilabial measure.
"""

from __future__ import annotations

from lipdub.memory_view.closures import Closures, closures, random_closures
from lipdub.memory_view.look import MemoryReport, look

__all__ = ["Closures", "MemoryReport", "closures", "look", "random_closures"]
