"""What a measure leaves behind as JSON: the figures with the command, the day and the machine that they hold for."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lipdub.checkup import bench

ROOT = Path(__file__).resolve().parent.parent


def record(benchmark: str, arguments: Sequence[str], rows: Sequence[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """The JSON of one measure. benchmark: its name on the command line; arguments: what stood after it; facts: more to keep."""
    return {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", "benchmarks", benchmark, *arguments]),
        "day": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(ROOT),
        "machine": machine_facts(),
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


def machine_facts() -> dict[str, Any]:
    """What the figures hold for: processor, cores, load, versions."""
    machine, packages = bench.machine(), bench.versions()
    return {
        "cpu": machine["processor"],
        "cores": machine["cores"],
        "cores_usable": machine["usable_cores"],
        "load_1min": round(os.getloadavg()[0], 1),
        "system": machine["system"],
        "python": packages.pop("python"),
        "lipdub": packages.pop("lipdub"),
        "packages": packages,
    }
