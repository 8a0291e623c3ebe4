"""The analysis cache: what the first pass over a video found, kept so that a second language costs only the render.

    <folder>/
      CACHEDIR.TAG          tells backup programs to leave the folder out
      <key>.npz             one track and ``about.json``; the time of its last change is when it was used last
      digests/<place>.json  content hashes by path, size, times and inode, so that a film is not read again to know it

A cache only ever saves time: what cannot be read is a miss, what cannot be written is not kept, and nothing raises. Entries are
written to a temporary name and renamed, and opened before they are read, so several processes and machines may share a folder.
Files that lipdub did not name are never touched.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

import platformdirs

from lipdub.errors import LipdubError, UnreadableMedia
from lipdub.faces.track import ANALYSIS_VERSION, FaceTrack
from lipdub.faces.track_file import TrackDamaged, read_track, write_track

FOLDER_VARIABLE: Final = "LIPDUB_CACHE"
LIMIT_VARIABLE: Final = "LIPDUB_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES: Final = 2 * 2**30
FREE_BYTES: Final = 256 * 2**20
"""Never fill the disk further than this: the dub itself needs room more than the cache does."""
SETTLED_S: Final = 2.0
"""A file changed less than this ago may change again within one tick of its clock: its hash is not remembered."""
ABANDONED_S: Final = 3600.0
"""A temporary file older than this belongs to a process that was killed."""
MOST_DIGESTS: Final = 4096

_ABOUT: Final = "about.json"
_ABOUT_FORMAT: Final = 1
_MOST_ABOUT_BYTES: Final = 65536
_PIECE_BYTES: Final = 4 * 2**20
_ENTRY: Final = re.compile(r"[0-9a-f]{40}\.npz")
_PART: Final = re.compile(r"\.[0-9a-f]{40}\.[0-9a-f]{12}\.lipdub-part")
_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# Kept by lipdub; see https://bford.info/cachedir/\n"
_SIZE: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One kept analysis. source: file name of the video, "" where the entry is damaged. frames: of the video, 0 where it is
    damaged. used_s: when it was last used, seconds since 1970."""

    key: str
    source: str
    bytes: int
    frames: int
    used_s: float


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What changes when a file does, known without reading it. The inode's own time (`ctime_ns`) also tells of a change whose author
    has put the time of the content back."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


class AnalysisCache:
    """Tracks in one folder, at most `limit_bytes` of them; what was not used for longest goes first. Safe to share."""

    def __init__(self, folder: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes must not be negative, got {limit_bytes}")
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._seen: dict[str, FileFacts] = {}  # key -> facts of the video when it was hashed

    def __repr__(self) -> str:
        return f"AnalysisCache('{self.folder}', limit_bytes={self.limit_bytes})"

    def find(self, key: str) -> FaceTrack | None:
        """The track kept under `key`, the caller's to close; None where there is none, or none that is whole."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                if _about(file).get("key") != key:
                    return None
                track = read_track(file)
        except (OSError, TrackDamaged):
            return None
        with suppress(OSError):
            os.utime(path)
        return track

    def keep(self, key: str, track: FaceTrack, *, video: Path) -> bool:
        """Keep `track`, found in `video`, under `key`. False where it was not kept: the folder cannot be written, the disk is (almost)
        full, the track is larger than the limit, or `video` has changed since it was hashed."""
        seen = self._seen.get(key)
        if seen is not None and seen != _facts(video):
            return False
        about = {"format": _ABOUT_FORMAT, "key": key, "source": _printable(video.name), "frames": len(track)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _part_file(self.folder / f".{key}.{secrets.token_hex(6)}.lipdub-part") as part:
                with open(part, "xb") as file:
                    write_track(track, file)
                with zipfile.ZipFile(part, "a") as archive:
                    archive.writestr(_ABOUT, json.dumps(about))
                if part.stat().st_size > self.limit_bytes or shutil.disk_usage(self.folder).free < FREE_BYTES:
                    return False
                os.replace(part, self._path(key))
            _write_tag(self.folder)
        except (OSError, zipfile.BadZipFile):
            return False
        self.trim()
        return True

    def entries(self) -> tuple[CacheEntry, ...]:
        """What is kept, the one used last first."""
        found = []
        for path, facts in self._files():
            about: dict[str, object] = {}
            with suppress(OSError), open(path, "rb") as file:
                about = _about(file)
            source, frames = about.get("source"), about.get("frames")
            whole = isinstance(source, str) and isinstance(frames, int) and about.get("key") == path.stem
            found.append(
                CacheEntry(
                    key=path.stem,
                    source=_printable(source) if whole and isinstance(source, str) else "",
                    bytes=facts.st_size,
                    frames=frames if whole and isinstance(frames, int) else 0,
                    used_s=facts.st_mtime,
                )
            )
        return tuple(sorted(found, key=lambda entry: (-entry.used_s, entry.key)))

    def clear(self, older_than_s: float | None = None) -> tuple[int, int]:
        """Remove all entries, or those not used for `older_than_s`; how many went, and how many bytes. What cannot be removed stays."""
        before = time.time() - (older_than_s or 0.0)
        removed = [facts.st_size for path, facts in self._files() if (older_than_s is None or facts.st_mtime < before) and _remove(path)]
        for path, facts in self._digests():
            if older_than_s is None or facts.st_mtime < before:
                _remove(path)
        self._remove_abandoned()
        return len(removed), sum(removed)

    def trim(self) -> tuple[int, int]:
        """Remove what was not used for longest until the limit holds; how many entries went, and how many bytes."""
        by_use = sorted(self._files(), key=lambda item: (item[1].st_mtime, item[0].name))
        total, count, freed = sum(facts.st_size for _, facts in by_use), 0, 0
        for path, facts in by_use:
            if total <= self.limit_bytes:
                break
            if _remove(path):
                total, count, freed = total - facts.st_size, count + 1, freed + facts.st_size
        digests = sorted(self._digests(), key=lambda item: item[1].st_mtime)
        for path, _ in digests[: max(0, len(digests) - MOST_DIGESTS)]:
            _remove(path)
        self._remove_abandoned()
        return count, freed

    def _remembered_digest(self, video: Path, facts: FileFacts) -> str | None:
        """The content hash of `video`, where it was hashed before and none of its `facts` has changed since."""
        path = self._digest_path(video)
        try:
            kept = json.loads(path.read_bytes()[:_MOST_ABOUT_BYTES])
        except (OSError, ValueError, RecursionError):
            return None
        digest = kept.get("digest") if isinstance(kept, dict) and kept.get("facts") == asdict(facts) else None
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            return None
        with suppress(OSError):
            os.utime(path)
        return digest

    def _remember_digest(self, video: Path, facts: FileFacts, digest: str) -> None:
        """Remember the content hash of `video` as long as its `facts` stay."""
        path = self._digest_path(video)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _part_file(path.with_name(f".{path.stem}.{secrets.token_hex(6)}.lipdub-part")) as part:
                part.write_text(json.dumps({"facts": asdict(facts), "digest": digest}), encoding="utf-8")
                os.replace(part, path)
            _write_tag(self.folder)

    def _path(self, key: str) -> Path:
        if not _ENTRY.fullmatch(f"{key}.npz"):
            raise ValueError(f"a key is 40 hex digits, got {key!r}")
        return self.folder / f"{key}.npz"

    def _digest_path(self, video: Path) -> Path:
        place = hashlib.blake2b(os.fsencode(os.path.realpath(video)), digest_size=20).hexdigest()
        return self.folder / "digests" / f"{place}.json"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        return _listed(self.folder, _ENTRY)

    def _digests(self) -> Iterator[tuple[Path, os.stat_result]]:
        return _listed(self.folder / "digests", re.compile(r"[0-9a-f]{40}\.json"))

    def _remove_abandoned(self) -> None:
        for folder in (self.folder, self.folder / "digests"):
            for path, facts in _listed(folder, _PART):
                if facts.st_mtime < time.time() - ABANDONED_S:
                    _remove(path)


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


def analysis_key(video: Path, *, size_px: int, cache: AnalysisCache | None = None) -> str:
    """40 hex digits that change with the content of `video` and with everything that changes its analysis for crops of `size_px`.

    The file is read once; `cache` remembers its hash until path, size, times or inode change. The ending of the name counts, too:
    FFmpeg looks at it. Raises UnreadableMedia.
    """
    facts = _facts(video)
    if facts is None:
        raise UnreadableMedia(f"cannot read '{video}': it is missing, or no file that can be read twice; check the path")
    digest = None if cache is None else cache._remembered_digest(video, facts)
    if digest is None:
        settled = max(facts.mtime_ns, facts.ctime_ns) / 1e9 < time.time() - SETTLED_S
        digest = _digest(video)
        if cache is not None and settled and _facts(video) == facts:
            cache._remember_digest(video, facts, digest)
    counts = {
        "content": digest,
        "suffix": video.suffix.lower(),
        "size_px": size_px,
        "analysis": ANALYSIS_VERSION,
        **{package: _version(package) for package in ("mediapipe", "av")},
    }
    key = hashlib.blake2b(json.dumps(counts, sort_keys=True).encode(), digest_size=20).hexdigest()
    if cache is not None:
        cache._seen[key] = facts
    return key


def _facts(video: Path) -> FileFacts | None:
    """The facts of a plain file; None where there is none."""
    try:
        facts = os.stat(video)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    return FileFacts(_printable(os.path.realpath(video)), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev)


def _digest(video: Path) -> str:
    """blake2b of the content, 64 hex digits. Raises UnreadableMedia."""
    hashed = hashlib.blake2b(digest_size=32)
    try:
        with open(video, "rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                hashed.update(piece)
    except OSError as error:
        raise UnreadableMedia(f"cannot read '{video}': {error.strerror or error}; check the path and its permissions") from error
    return hashed.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _about(file: IO[bytes]) -> dict[str, object]:
    """What an open entry says of itself; empty where it is damaged or foreign. Leaves the file at its beginning."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(_ABOUT) as member:
            about = json.loads(member.read(_MOST_ABOUT_BYTES))
    except OSError:
        raise
    except Exception:  # a damaged archive makes zipfile, zlib and json raise almost anything
        return {}
    return about if isinstance(about, dict) and about.get("format") == _ABOUT_FORMAT else {}


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


@contextmanager
def _part_file(part: Path) -> Iterator[Path]:
    """A temporary file that is gone when the block ends, unless it was renamed in it."""
    try:
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _write_tag(folder: Path) -> None:
    with suppress(OSError), open(folder / "CACHEDIR.TAG", "x", encoding="ascii") as file:
        file.write(_TAG)


def _printable(text: str) -> str:
    """Text that every JSON file and terminal takes: bytes of a file name that are no UTF-8 are shown escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
