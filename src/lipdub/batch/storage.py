"""Files by path or by URL: what stands there, fetching it, putting it, and removing what a killed attempt left behind.

Paths go to the operating system; URLs (``s3://``, ``gs://``, ``file://`` and what else fsspec knows) go through fsspec, which is
imported only when a URL is used: extra ``lipdub[cloud]``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from lipdub.atomic import is_part_of, part_name
from lipdub.batch.rows import Location, one_line
from lipdub.errors import LipdubError, OutputRefused, StorageFailed, UnreadableMedia

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_STAMPS: Final = ("mtime", "ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "updated", "modified", "created")
"""What storages say of a file that changes when the file does, the most telling one first."""
_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """Which content stands at a place, without reading it. size: bytes. stamp: time of the last change in ns for a path, ETag or the
    like for a URL. No inode: one file may have another one on each machine that mounts it."""

    size: int
    stamp: str


def is_url(text: Location) -> bool:
    """Whether `text` is a URL, not a path."""
    return isinstance(text, str) and _URL.match(text) is not None


def suffix_of(place: Location) -> str:
    """The ending of the file's name, with its dot."""
    return PurePosixPath(place).suffix if isinstance(place, str) else place.suffix


def identity(place: Location) -> Identity | None:
    """What stands at `place`; None where nothing does. Raises UnreadableMedia, StorageFailed."""
    if isinstance(place, str):
        with _mapped("look at", place):
            system, path = _system(place)
            try:
                about = system.info(path)
            except FileNotFoundError:
                return None
        stamp = next((str(about[name]) for name in _STAMPS if about.get(name) is not None), "")
        return Identity(int(about.get("size") or 0), stamp)
    try:
        found = place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UnreadableMedia(f"cannot use '{place}': {getattr(error, 'strerror', None) or error}; check the path") from error
    return Identity(found.st_size, str(found.st_mtime_ns))


def identities(places: Iterable[Location]) -> dict[Location, Identity | LipdubError | None]:
    """What stands at each of `places`, or why that cannot be told. URLs are asked for many at once: each one is a round trip."""

    def look(place: Location) -> Identity | LipdubError | None:
        try:
            return identity(place)
        except LipdubError as error:
            return error

    distinct = list(dict.fromkeys(places))
    remote = [place for place in distinct if is_url(place)]
    found = {place: look(place) for place in distinct if not is_url(place)}
    if remote:
        with ThreadPoolExecutor(min(_AT_ONCE, len(remote))) as pool:
            found |= zip(remote, pool.map(look, remote), strict=True)
    return found


def check_place(url: str) -> None:
    """Raise LipdubError unless a file may be written at `url` as far as that can be told without writing."""
    with _mapped("write", url):
        system, path = _system(url)
        folder = system._parent(path)
        if not PurePosixPath(path).name or url.endswith("/"):
            raise OutputRefused(f"cannot write '{url}': it names no file; give a file name")
        # Buckets have no folders; a file system does, and makes none by itself.
        if "file" in _protocols(system) and not system.isdir(folder):
            raise OutputRefused(f"cannot write '{url}': there is no folder '{folder}'; create it first")


def fetch(url: str, folder: Path) -> Path:
    """Copy the file at `url` into `folder` under its own name; the copy's path. Raises UnreadableMedia, StorageFailed."""
    copy = folder / PurePosixPath(url.split("?", 1)[0]).name
    with _mapped("fetch", url):
        system, path = _system(url)
        try:
            system.get_file(path, str(copy))
        except FileNotFoundError as error:
            raise UnreadableMedia(f"cannot read '{url}': there is no such file; check the URL") from error
    return copy


def put(file: Path, url: str) -> None:
    """Copy `file` to `url`, whole or not at all: under a temporary key first, then moved. Raises StorageFailed."""
    with _mapped("write", url):
        system, path = _system(url)
        name = PurePosixPath(path)
        part = f"{system._parent(path)}/{part_name(name.stem, name.suffix)}"
        try:
            system.put_file(str(file), part)
            system.mv(part, path)
        except BaseException:
            with suppress(Exception):
                system.rm(part)
            raise


def sweep(places: Iterable[Location]) -> int:
    """Remove the temporary files that killed attempts to write `places` left beside them; how many were removed.

    What cannot be looked at or removed stays: it does no harm. Only for whoever holds the batch's lock.
    """
    removed = 0
    folders: dict[Location, set[tuple[str, str]]] = {}
    for place in places:
        name = PurePosixPath(place) if isinstance(place, str) else place
        folder: Location = place.rpartition("/")[0] if isinstance(place, str) else place.parent
        folders.setdefault(folder, set()).add((name.stem, name.suffix))
    for folder, names in folders.items():
        with suppress(Exception):
            if isinstance(folder, str):
                system, path = _system(folder)
                remove, there = system.rm, {PurePosixPath(found).name: found for found in system.ls(path, detail=False)}
            else:
                remove, there = os.unlink, {found.name: found for found in folder.iterdir()}
            for stale in (found for name, found in there.items() if is_part_of(name, names)):
                with suppress(Exception):
                    remove(stale)
                    removed += 1
    return removed


def _system(url: str) -> tuple[Any, str]:
    """The file system behind `url` and the path in it. Listings are not cached: other machines write, too."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url, use_listings_cache=False)
    return system, str(path)


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


@contextmanager
def _mapped(doing: str, url: str) -> Generator[None, None, None]:
    """Errors of fsspec and of what lies behind it, as ours: storages raise whatever their own libraries do."""
    try:
        yield
    except LipdubError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {one_line(error)}; check the URL, the network and the credentials"
        if isinstance(error, ImportError):
            why = 'files in the cloud need more packages; install them with: pip install "lipdub[cloud]"'
        elif isinstance(error, ValueError):
            unknown = "rotocol not known" in str(error)
            why = "no such kind of storage; check the part before '://'" if unknown else f"{one_line(error)}; check the URL"
        elif isinstance(error, FileNotFoundError):
            why = "there is no such place; check the URL"
        raise StorageFailed(f"cannot {doing} '{url}': {why}") from error
