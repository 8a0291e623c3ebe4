"""The analysis cache: where it lies, what it holds, whether it can be written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from lipdub.checkup.doctor.finding import Finding, guarded
from lipdub.checkup.doctor.machine import disk


def look(task: object) -> list[dict[str, str]]:
    """All findings about the cache, as JSON."""
    return [asdict(finding) for finding in guarded("cache", cache, "set LIPDUB_CACHE to a folder that you may write to, or to off")]


def cache() -> Iterator[Finding]:
    """Size, limit and room of the cache; it is never needed."""
    from lipdub.faces.cache import FREE_BYTES, default_cache

    kept = default_cache()
    if kept is None:
        yield Finding("cache", "green", "off: a video is analysed anew for every dub")
        return
    entries = kept.entries()
    total = sum(entry.bytes for entry in entries)
    what = f"{len(entries)} analyses, {total / 2**20:.0f} MiB of at most {kept.limit_bytes / 2**20:.0f} MiB, in {kept.folder}"
    room = disk("cache", kept.folder, needed=False, instead="set LIPDUB_CACHE to a folder with room that you may write to")
    if room.colour == "yellow" and room.what.startswith("no permission"):
        yield Finding("cache", "yellow", f"{what}: {room.what}", room.fix)
    elif room.fix and "make room;" in room.fix:
        yield Finding("cache", "yellow", f"{what}; less than {FREE_BYTES // 2**20} MiB free, so nothing is kept", room.fix)
    else:
        yield Finding("cache", "green", what)
