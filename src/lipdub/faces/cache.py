"""The analysis cache: what the first pass over a video found, kept so that a second language costs only the render.

    <folder>/
      CACHEDIR.TAG   tells backup programs to leave the folder out
      <key>.npz      one track and ``about.json``; the time of its last change is when it was used last

A cache saves time or does nothing: what cannot be read is not found, what cannot be written is not kept, and nothing raises.
An entry is written under a temporary name and renamed, and it is opened before it is read, so several processes and machines may share
a folder. Files that lipdub did not name are never touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import platformdirs

from lipdub.atomic import part_file, put_in_place
from lipdub.errors import LipdubError
from lipdub.faces.analysis_key import analysis_key
from lipdub.faces.track import FaceTrack
from lipdub.faces.track_file import TrackDamaged, read_track, write_track
from lipdub.options import FaceChoice, FaceLimits

FOLDER_VARIABLE: Final = "LIPDUB_CACHE"
LIMIT_VARIABLE: Final = "LIPDUB_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES: Final = 2 * 2**30
UNLIMITED_BYTES: Final = sys.maxsize
FREE_BYTES: Final = 256 * 2**20
"""Never fill the disk further than this: the dub itself needs room more than the cache does."""
ABANDONED_S: Final = 3600.0
"""A temporary file older than this belongs to a process that was killed."""

_ABOUT: Final = "about.json"
_ABOUT_FORMAT: Final = 1
_MOST_ABOUT_BYTES: Final = 65536
_ENTRY: Final = re.compile(r"[0-9a-f]{40}\.npz")
_PART: Final = re.compile(r"\.[0-9a-f]{40}\.[0-9a-f]{12}\.lipdub-part(\.npz|\.json)?")
_OLD_DIGEST: Final = re.compile(rf"[0-9a-f]{{40}}\.json|{_PART.pattern}")
"""Files of ``digests/``, a folder that earlier versions kept."""
_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# Kept by lipdub; see https://bford.info/cachedir/\n"
_SIZE: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One kept analysis.

    source: file name of the video, "" where the entry is damaged.
    frames: of the video, 0 where the entry is damaged.
    used_s: when it was last used, seconds since 1970.
    """

    key: str
    source: str
    bytes: int
    frames: int
    used_s: float


@dataclass(frozen=True, slots=True)
class AnalysisCache:
    """Tracks in one folder, at most `limit_bytes` of them; what was not used for longest goes first. Safe to share."""

    folder: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES

    def __post_init__(self) -> None:
        if self.limit_bytes < 0:
            raise ValueError(f"limit_bytes must not be negative, got {self.limit_bytes}")

    def find(self, key: str) -> FaceTrack | None:
        """The track kept under `key`, the caller's to close; None where there is none, or none that is whole."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                if _about(file, key) is None:
                    return None
                track = read_track(file)
        except (OSError, TrackDamaged):
            return None
        with suppress(OSError):
            os.utime(path)
        return track

    def keep(self, key: str, track: FaceTrack, *, video: Path) -> bool:
        """Keep `track`, found in `video`, under `key`.

        False where it was not kept: the folder cannot be written, the disk is (almost) full, or the track is larger than the limit.
        """
        about = {"format": _ABOUT_FORMAT, "key": key, "source": _printable(video.name), "frames": len(track)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part_file(self._path(key)) as part:
                with open(part, "wb") as file:
                    write_track(track, file)
                with zipfile.ZipFile(part, "a") as archive:
                    archive.writestr(_ABOUT, json.dumps(about))
                if part.stat().st_size > self.limit_bytes or shutil.disk_usage(self.folder).free < FREE_BYTES:
                    return False
                put_in_place(part, self._path(key))
            _write_tag(self.folder)
        except (OSError, zipfile.BadZipFile):
            return False
        self.trim()
        return True

    def entries(self) -> tuple[CacheEntry, ...]:
        """What is kept, the one used last first."""
        found = []
        for path, facts in _listed(self.folder, _ENTRY):
            about = None
            with suppress(OSError), open(path, "rb") as file:
                about = _about(file, path.stem)
            source, frames = about or ("", 0)
            found.append(CacheEntry(path.stem, source, facts.st_size, frames, facts.st_mtime))
        return tuple(sorted(found, key=lambda entry: (-entry.used_s, entry.key)))

    def clear(self, older_than_s: float | None = None) -> tuple[int, int]:
        """Remove all entries, or those not used for `older_than_s`; how many went, and how many bytes. What cannot be removed stays."""
        before = float("inf") if older_than_s is None else time.time() - older_than_s
        entries = _listed(self.folder, _ENTRY)
        removed = [facts.st_size for path, facts in entries if facts.st_mtime < before and _remove(path)]
        self._remove_leftovers()
        return len(removed), sum(removed)

    def trim(self) -> None:
        """Remove what was not used for longest until the limit holds."""
        by_use = sorted(_listed(self.folder, _ENTRY), key=lambda item: (item[1].st_mtime, item[0].name))
        total = sum(facts.st_size for _, facts in by_use)
        for path, facts in by_use:
            if total <= self.limit_bytes:
                break
            if _remove(path):
                total -= facts.st_size
        self._remove_leftovers()

    def _path(self, key: str) -> Path:
        if not _ENTRY.fullmatch(f"{key}.npz"):
            raise ValueError(f"a key is 40 hex digits, got {key!r}")
        return self.folder / f"{key}.npz"

    def _remove_leftovers(self) -> None:
        """Remove what killed processes and earlier versions left behind."""
        for path, facts in _listed(self.folder, _PART):
            if facts.st_mtime < time.time() - ABANDONED_S:
                _remove(path)
        for path, _ in _listed(self.folder / "digests", _OLD_DIGEST):
            _remove(path)
        with suppress(OSError):
            (self.folder / "digests").rmdir()


Choices = Sequence[FaceChoice | None]


def cached_tracks(
    video: Path,
    analyse: Callable[[Choices], list[FaceTrack]],
    *,
    size_px: int,
    cache: AnalysisCache | None,
    choices: Choices = (None,),
    limits: FaceLimits = FaceLimits(),
) -> list[tuple[FaceTrack, bool]]:
    """The tracks of `video` with reference crops of `size_px` that follow `choices` within `limits`, the caller's to close, and whether
    `cache` had each.

    `analyse` makes those that it had not, all together, and they are kept, unless the video has changed meanwhile. Raises UnreadableMedia,
    and whatever `analyse` raises.
    """
    if cache is None:
        return [(track, False) for track in analyse(choices)]
    before = _stamp(video)
    keys = [analysis_key(video, size_px=size_px, choice=choice, limits=limits) for choice in choices]
    found = [cache.find(key) for key in keys]
    missing = [number for number, track in enumerate(found) if track is None]
    with ExitStack() as stack:
        for track in found:
            if track is not None:
                stack.callback(track.references.close)
        made = analyse([choices[number] for number in missing]) if missing else []
        stack.pop_all()
    for number, track in zip(missing, made, strict=True):
        found[number] = track
        if _stamp(video) == before:
            cache.keep(keys[number], track, video=video)
    return [(track, number not in missing) for number, track in enumerate(found) if track is not None]


def default_cache() -> AnalysisCache | None:
    """The cache of this user: in the folder that ``LIPDUB_CACHE`` names (empty or ``off``: none at all), else where the system keeps
    caches; limited to ``LIPDUB_CACHE_LIMIT``, such as ``5GB`` (0: none at all), else 2 GiB.

    Raises LipdubError: a limit that is no size.
    """
    folder, limit = os.environ.get(FOLDER_VARIABLE), os.environ.get(LIMIT_VARIABLE, "").strip()
    if folder is not None and folder.strip().lower() in ("", "off"):
        return None
    try:
        limit_bytes = parse_size(limit) if limit else DEFAULT_LIMIT_BYTES
    except ValueError as error:
        raise LipdubError(f"{LIMIT_VARIABLE} is {limit!r}, which is no size; write one such as 5GB or 500MB") from error
    if limit_bytes == 0:
        return None
    if folder is None:
        return AnalysisCache(platformdirs.user_cache_path("lipdub", appauthor=False) / "analysis", limit_bytes=limit_bytes)
    return AnalysisCache(Path(os.path.expanduser(folder.strip())), limit_bytes=limit_bytes)


def parse_size(text: str) -> int:
    """Bytes of a size: ``5GB`` (thousands), ``2GiB`` (1024s), ``500 mb``, ``1000000``. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"no size: {text!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))


def _stamp(video: Path) -> tuple[int, ...] | None:
    """What changes when a file does, known without reading it; None where there is none. The inode's own time (``st_ctime_ns``) also
    tells of a change after which the time of the content was put back."""
    with suppress(OSError, ValueError):
        facts = os.stat(video)
        return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev
    return None


def _about(file: IO[bytes], key: str) -> tuple[str, int] | None:
    """The video's file name and its number of frames, as the open entry of `key` has them; None where it is damaged or another's."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(_ABOUT) as member:
            about = json.loads(member.read(_MOST_ABOUT_BYTES))
        if (about["format"], about["key"]) != (_ABOUT_FORMAT, key):
            return None
        return str(about["source"]).encode("utf-8", "backslashreplace").decode(), int(about["frames"])
    except Exception:  # a damaged archive makes zipfile, zlib and json raise almost anything
        return None


def _listed(folder: Path, names: re.Pattern[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """Plain files of the folder whose name fits, with their facts; those that go away meanwhile are left out."""
    try:
        with os.scandir(folder) as items:
            paths = [Path(item.path) for item in items if names.fullmatch(item.name)]
    except OSError:
        return
    for path in paths:
        with suppress(OSError):
            facts = os.stat(path, follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode):
                yield path, facts


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _write_tag(folder: Path) -> None:
    with suppress(OSError), open(folder / "CACHEDIR.TAG", "x", encoding="ascii") as file:
        file.write(_TAG)


def _printable(text: str) -> str:
    """Text that every JSON file and terminal takes: bytes of a file name that are no UTF-8 are shown escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
