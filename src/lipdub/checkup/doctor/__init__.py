"""``lipdub doctor``: what this machine really has and uses, and what to do about what is missing.

Every look is guarded by itself. What loads native libraries runs in processes of its own, so that one that crashes or hangs is a red
line; the modules here import nothing heavy before they are asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator

from lipdub.checkup import isolated
from lipdub.checkup.doctor import machine
from lipdub.checkup.doctor.finding import Finding, guarded, one_line
from lipdub.checkup.doctor.libraries import REINSTALL
from lipdub.checkup.doctor.self_dub import SECONDS
from lipdub.errors import LipdubError

__all__ = ["Finding", "examine"]

_HERE: tuple[tuple[str, Callable[[], Iterable[Finding]], str], ...] = (
    ("system", machine.system, REINSTALL),
    ("cores", machine.cores, "report this with 'lipdub doctor --json'"),
    ("memory", machine.memory, "report this with 'lipdub doctor --json'"),
    ("GPU", machine.gpu, "look at the driver: nvidia-smi"),
    ("disk", machine.disks, "change to a folder that is there, and set TMPDIR to one that you may write to"),
)
"""Name, look, and what to do where the look itself breaks."""

_APART = (("cache", "storage"), ("libraries", "libraries"), ("models", "networks"))
"""Name, and the module whose ``look`` runs in a process of its own."""

_PATIENCE_S = 120.0
_PATIENCE_FOR_DUB = 60.0
"""Seconds of patience per second of the self-dub."""


def examine(*, dub: bool = True, seconds: float = SECONDS, on_look: Callable[[str], None] | None = None) -> Iterator[Finding]:
    """All findings, as they are made. dub: end with a dub of `seconds`. on_look: told what is looked at next.

    Raises nothing for what the machine lacks.
    """
    tell = on_look or (lambda name: None)
    for name, look, fix in _HERE:
        tell(name)
        yield from guarded(name, look, fix)
    for name, module in _APART:
        tell(name)
        yield from _apart(name, module, None, _PATIENCE_S)
    if dub:
        tell("self-dub")
        yield from guarded("self-dub", lambda: _self_dub(seconds), "set TMPDIR to a folder that you may write to")


def _self_dub(seconds: float) -> list[Finding]:
    """The folder is ours, so that it goes even if the process that works in it is ended."""
    with tempfile.TemporaryDirectory(prefix="lipdub-doctor-", ignore_cleanup_errors=True) as folder:
        task = {"folder": folder, "seconds": seconds}
        return _apart("self-dub", "self_dub", task, _PATIENCE_S + _PATIENCE_FOR_DUB * seconds)


def _apart(name: str, module: str, task: object, patience_s: float) -> list[Finding]:
    """The findings of a module that looks in a process of its own; one red one where that process does not answer."""
    try:
        answer = isolated.run_isolated(f"lipdub.checkup.doctor.{module}:look", task, timeout_s=patience_s).answer
        return [Finding(**finding) for finding in answer]
    except (isolated.ProcessFailed, LipdubError, TypeError, ValueError) as error:
        return [Finding(name, "red", one_line(error), REINSTALL)]
