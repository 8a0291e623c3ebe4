"""Give a video of a person speaking new speech: ``lipdub.dub(video, speech, out)`` redraws the mouth and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipdub.errors import LipdubError

if TYPE_CHECKING:
    from lipdub.pipeline import dub
    from lipdub.records import DubReport

__version__ = "0.1.0"
__all__ = ["DubReport", "LipdubError", "__version__", "dub"]


def __getattr__(name: str) -> Any:
    # Lazily (PEP 562): ``lipdub --help`` must not wait for numpy and its friends.
    if name == "dub":
        from lipdub.pipeline import dub

        return dub
    if name == "DubReport":
        from lipdub.records import DubReport

        return DubReport
    raise AttributeError(f"module 'lipdub' has no attribute {name!r}")
