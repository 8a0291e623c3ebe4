"""What a measure leaves behind as JSON: the figures with the command, the day and the machine that they hold for."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.fresh import ROOT
from benchmarks.speed import machine_facts

MORE_PACKAGES = ("torch", "onnx", "librosa")


def record(benchmark: str, arguments: Sequence[str], rows: Sequence[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """The JSON of one measure. benchmark: its name on the command line; arguments: what stood after it; facts: more to keep."""
    machine = machine_facts()
    machine["packages"] |= _versions(MORE_PACKAGES)
    return {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", "benchmarks", benchmark, *arguments]),
        "day": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(ROOT),
        "machine": machine,
        **facts,
        "rows": list(rows),
    }


def commit(folder: Path) -> str | None:
    """The commit of the checkout that `folder` lies in, with ``+`` where files differ from it; None outside of one."""
    words = []
    for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        words.append(done.stdout.strip())
    return words[0] + ("+" if words[1] else "")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
