"""The machine: system, cores, memory, free disk, GPU. Nothing heavy is imported, so these lines come whatever else is broken."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lipdub import __version__
from lipdub.checkup.doctor.finding import Finding
from lipdub.stages import cores as usable_cores

PYTHONS = (3, 10), (3, 12)
ENOUGH_MEMORY, LEAST_MEMORY = 2 * 2**30, 2**30
ENOUGH_DISK, LEAST_DISK = 2 * 2**30, 2**28
_UNLIMITED = 2**60
"""A memory limit above this is none."""


def system() -> Iterator[Finding]:
    """lipdub, Python and the system."""
    yield Finding("lipdub", "green", f"{__version__} in {Path(__file__).resolve().parents[2]}")
    version = platform.python_version()
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        yield Finding("Python", "green", f"{version} at {sys.executable}")
    else:
        yield Finding(
            "Python", "red", f"{version} at {sys.executable}", "install lipdub into Python 3.10, 3.11 or 3.12: mediapipe has no other"
        )
    yield Finding("system", "green", f"{platform.platform()}, {platform.machine()}")


def cores() -> Iterator[Finding]:
    """Cores that this process may use: what the scheduler and the container leave of those that there are."""
    there, allowed, quota = os.cpu_count() or 1, usable_cores(), cpu_quota()
    usable = allowed if quota is None else min(float(allowed), quota)
    what = f"{usable:g} usable of {there}" + (f", limited by the container to {quota:g}" if quota is not None and quota < allowed else "")
    if usable < 2:
        yield Finding("cores", "yellow", what, "lipdub works, slowly; stages overlap with two cores or more")
    else:
        yield Finding("cores", "green", what)


def memory() -> Iterator[Finding]:
    """Memory that is free, and how much of the machine's the container may have."""
    total, available = memory_bytes()
    if available is None:
        yield Finding("memory", "green", "this system does not tell" if total is None else f"{_gib(total)} in all")
        return
    what = f"{_gib(available)} free of {_gib(total or available)}"
    if available < LEAST_MEMORY:
        yield Finding("memory", "red", what, "close other programs, or give the container more memory: a dub at 1080p needs up to 1 GiB")
    elif available < ENOUGH_MEMORY:
        yield Finding("memory", "yellow", what, "enough for one dub at a time; leave --jobs at 1")
    else:
        yield Finding("memory", "green", what)


def disks() -> Iterator[Finding]:
    """Free space where dubs are made: here, and in the folder for temporary files."""
    yield disk("disk here", Path.cwd(), needed=False, instead="run lipdub in a folder that you may write to, or give -o a path in one")
    yield disk("disk for temporary files", Path(tempfile.gettempdir()), needed=True, instead="set TMPDIR to a folder that you may write to")


def disk(name: str, folder: Path, *, needed: bool, instead: str) -> Finding:
    """Free space of the folder, or of the nearest one above it that is there. needed: red where it cannot be written."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    what = f"{_gib(free)} free in {folder}"
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "red" if needed else "yellow", f"no permission to write in {there}", instead)
    if free < LEAST_DISK:
        return Finding(name, "red" if needed else "yellow", what, f"make room; or {instead}")
    return (
        Finding(name, "green", what)
        if free >= ENOUGH_DISK
        else Finding(name, "yellow", what, "enough for short videos; make room for long ones")
    )


def gpu() -> Iterator[Finding]:
    """NVIDIA's cards, as the driver's own program tells."""
    cards, why = gpus()
    if cards:
        yield from (Finding("GPU", "green", card) for card in cards)
    elif why:
        yield Finding("GPU", "yellow", why, "look at the driver: nvidia-smi fails by itself, too")
    else:
        yield Finding("GPU", "green", "no NVIDIA GPU here (there is no nvidia-smi); the processor does all the work")


def gpus() -> tuple[list[str], str]:
    """One line per card, and what is wrong where nvidia-smi fails; both empty where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], ""
    query = [program, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"nvidia-smi does not run ({type(error).__name__})"
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode or not lines:
        return [], f"nvidia-smi: {' '.join((lines or ['no card'])[-1].split())[:200]}"
    cards = []
    for line in lines:
        fields = [field.strip() for field in line.split(",")]
        whole = len(fields) == 4 and fields[1].isdigit() and fields[2].isdigit()
        cards.append(
            f"{fields[0]}, {int(fields[1]) / 1024:.1f} GiB ({int(fields[2]) / 1024:.1f} free), driver {fields[3]}"
            if whole
            else line.strip()
        )
    return cards, ""


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores that the container may keep busy (cgroup, both versions); None for no limit."""
    limit, period = (
        _words(root / "cpu.max") or [*_words(root / "cpu/cpu.cfs_quota_us"), *_words(root / "cpu/cpu.cfs_period_us")] or ["", ""]
    )
    if not limit.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(limit) / int(period)


def memory_bytes(root: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Memory in all and free, less where the container has a limit (cgroup, both versions); None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return _total_elsewhere(), None
    for limit_file, used_file in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        limit, used = _words(root / limit_file), _words(root / used_file)
        if limit and limit[0].isdigit() and int(limit[0]) < min(total, _UNLIMITED):
            total = int(limit[0])
            available = min(available, total - int(used[0])) if used and used[0].isdigit() else min(available, total)
            break
    return total, max(0, available)


def _total_elsewhere() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
