"""Files and folders that appear whole or not at all: written beside their place, brought to the disk, then renamed.

An output that is a link stays one: what it leads to is written.

Until then they are *parts*: ``.NAME.0123456789ab.lipdub-part.SUFFIX`` beside the output, removed whatever ends the block, and at the
latest when the process ends: an interrupt may come between two lines of ours. A process that is killed leaves them. Their owner holds a
lock on them, which the system gives back when it ends, so the next run that writes the same output knows them for stale and removes them.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lipdub.errors import WriteFailed

if sys.platform != "win32":  # there, a file that is open cannot be renamed: parts are neither locked nor swept
    import fcntl

ADVICE = "check the free space and the folder"
_PART: Final = re.compile(r"\.?(?P<stem>.+)\.[0-9a-f]{12}\.lipdub-part(?P<suffix>\.[^.]+)?", re.DOTALL)
_STEM_BYTES: Final = 120
"""Longer names are cut: file systems take 255 bytes."""
_OLD: Final = ".old"
"""After the name of a folder's part: the folder that it replaces, for a moment."""
_LOOKS_SHARE, _QUICK_S, _MANY = 0.02, 0.01, 1000
"""Looking for stale parts may take this share of the time in a folder of many files in which a look is not quick. In any other a look that
took long says that the machine is busy, and the next one is not put off."""
_next_look: dict[Path, float] = {}
_locks: dict[Path, int] = {}
"""Parts of this process, and the handles that hold their locks."""
_parts: set[Path] = set()
"""Parts that this process made or was about to make, and has not removed or put in place."""
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_parts.clear)


def write_whole(out: Path, content: str | bytes, *, failed: str = "cannot write", advice: str = ADVICE) -> None:
    """Write a file; text is written as UTF-8. A file that was there is replaced. See `whole_file`."""
    with whole_file(out, failed=failed, advice=advice) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(out: Path, *, failed: str = "cannot write", advice: str = ADVICE, hidden: bool = True) -> Iterator[Path]:
    """A path beside `out` to write to. The file is renamed to `out` when the block ends well; after any error nothing is left.

    failed, advice: how the message begins and ends. hidden: as for `part_file`.

    Raises:
        WriteFailed: an OSError in the block or in the rename.
    """
    with _told(out, failed, advice), part_file(out, hidden=hidden) as part:
        yield part
        put_in_place(part, out)


@contextmanager
def part_file(out: Path, *, hidden: bool = True) -> Iterator[Path]:
    """An empty file beside `out`, unique, of the same suffix, to be written to; removed when the block ends.

    To keep the file, call `put_in_place` inside the block. hidden: its name begins with a dot. Parts of `out` that killed processes left
    are removed first. Raises OSError.
    """
    remove_stale_parts(out)
    part = _claimed(out, hidden=hidden)
    try:
        yield part
    finally:
        _let_go(part)
        _remove(part)


def put_in_place(part: Path, out: Path) -> None:
    """Rename the finished file `part` to `out`, both of them safe from a power cut when this returns. Raises OSError."""
    out = target_of(out)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, out)
    if out in _locks and part in _locks:  # a part that was itself written as a whole goes on being ours
        os.close(_locks[out])
        _locks[out] = _locks.pop(part)
    _sync_folder(out.absolute().parent)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into. It becomes `out` when the block ends well; after any error nothing is left.

    A folder that was there is replaced with all it holds, and removed only when the new one stands.

    Raises:
        WriteFailed: an OSError in the block or in the rename.
    """
    out = target_of(out)
    with _told(out), _part_folder(out) as part:
        yield part
        old = part.with_name(part.name + _OLD)
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(part, out)
        except BaseException:
            if old.exists():
                os.replace(old, out)
            raise
        _sync_folder(out.absolute().parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def files_into(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write files into. They move into `out`, which may hold others, when the block ends well.

    Raises:
        WriteFailed: an OSError in the block or in the moves.
    """
    with _told(out, "cannot write into"), _part_folder(out) as part:
        yield part
        out.mkdir(exist_ok=True)
        for file in sorted(part.iterdir()):
            put_in_place(file, out / file.name)


def target_of(out: Path) -> Path:
    """Where what is written to `out` lies, absolute: itself, or what it leads to as a link, there or not."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out.absolute()


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in `folder`; nothing else may be writing there. Raises OSError."""
    for part in folder.glob(".*.lipdub-part*"):
        part.unlink(missing_ok=True)


def part_name(stem: str, suffix: str, *, hidden: bool = True) -> str:
    """A new name for a part of the output `stem` + `suffix`."""
    return f"{'.' if hidden else ''}{_cut(stem)}.{secrets.token_hex(6)}.lipdub-part{suffix}"


def is_part_of(name: str, outputs: set[tuple[str, str]]) -> bool:
    """Whether `name` is what `part_name` makes of one of `outputs` (stem, suffix), or of such a part again."""
    found = _PART.fullmatch(name)
    if found is None:
        return False
    stem, suffix = found["stem"], found["suffix"] or ""
    for output, ending in outputs:
        first = _cut(output)
        of_part = re.fullmatch(rf"\.?{re.escape(first)}\.[0-9a-f]{{12}}\.lipdub-part", stem)
        cut_again = len(stem.encode()) > _STEM_BYTES - 4 and f".{first}.".startswith(stem[: len(first) + 2])
        if suffix == ending and (stem == first or of_part or cut_again):
            return True
    return False


def remove_stale_parts(out: Path) -> None:
    """Remove the parts of `out` whose owners are dead, files and folders. Parts that cannot be locked, or removed, stay."""
    stem, suffix, out = target_of(out).stem, out.suffix, target_of(out)
    folder, now = out.parent, time.monotonic()
    if sys.platform == "win32" or now < _next_look.get(folder, now):
        return
    with suppress(OSError):
        names = {name.removesuffix(_OLD) for name in os.listdir(folder)}
        took_s = time.monotonic() - now
        _next_look[folder] = now + (took_s / _LOOKS_SHARE if took_s > _QUICK_S and len(names) > _MANY else 0.0)
        for name in names:
            if is_part_of(name, {(stem, suffix)}):
                _remove_stale(folder / name, out)


def _remove_stale(part: Path, out: Path) -> None:
    """Remove a part and, of a folder, the one that it was to replace; that one comes back if its owner died in between."""
    if sys.platform == "win32":
        return
    old = part.with_name(part.name + _OLD)
    with suppress(OSError):
        if part.exists():
            lock = os.open(part, os.O_RDONLY if part.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if old.exists() and not out.exists():
                    os.replace(old, out)
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            finally:
                os.close(lock)
        shutil.rmtree(old, ignore_errors=True)


def _cut(stem: str) -> str:
    return stem.encode()[:_STEM_BYTES].decode(errors="ignore")


def _claimed(out: Path, *, hidden: bool = True, folder: bool = False) -> Path:
    """A new part of `out`, locked until `_let_go`."""
    while True:
        at = target_of(out)
        part = at.with_name(part_name(at.stem, out.suffix, hidden=hidden))
        _parts.add(part)
        if folder:
            part.mkdir()
        else:
            os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        if sys.platform == "win32":
            return part
        with suppress(FileNotFoundError):  # somebody looked for stale parts between our making it and our locking it
            handle = os.open(part, os.O_RDONLY if folder else os.O_RDWR)  # network file systems lock what may be written
            if _locked(handle, part):
                _locks[part] = handle
                return part
            os.close(handle)


def _let_go(part: Path) -> None:
    with suppress(KeyError, OSError):
        os.close(_locks.pop(part))


def _remove(part: Path) -> None:
    """Remove a part of ours, file or folder, if it is still there."""
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    _parts.discard(part)


@atexit.register
def _remove_all() -> None:
    for part in tuple(_parts):
        _remove(part)


def _locked(handle: int, part: Path) -> bool:
    """Whether the part behind `handle` is ours, and will be for as long as that is open."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are no locks here: nobody can take the part for stale, either
        return True
    try:
        return os.path.samestat(os.stat(part), os.fstat(handle))
    except OSError:
        return False


@contextmanager
def _part_folder(out: Path) -> Iterator[Path]:
    remove_stale_parts(out)
    part = _claimed(out, folder=True)
    try:
        yield part
    finally:
        _let_go(part)
        _remove(part)


@contextmanager
def _told(out: Path, failed: str = "cannot write", advice: str = ADVICE) -> Iterator[None]:
    """Turn an OSError into one line for the user."""
    try:
        yield
    except OSError as error:
        raise WriteFailed(f"{failed} '{out}': {error.strerror or error}; {advice}") from error


def _sync_folder(folder: Path) -> None:
    """Bring a rename in `folder` to the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
