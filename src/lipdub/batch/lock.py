"""One batch at a time on one manifest, and none before the workers of a killed one have ended.

Bytes of one file are locked: byte 0 by the batch, byte 1 + n by the worker that is at row n.
When a process ends, even by a kill, the operating system gives its locks back.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lipdub.errors import ManifestError

ORPHANS_S: Final = 20.0
"""How long to wait for the workers of a batch that was killed; they notice within a second or two."""
_ROWS: Final = 2**30
_HELD: Final = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int, first: int, count: int, *, give_back: bool = False) -> None:
        os.lseek(file, first, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK if give_back else msvcrt.LK_NBLCK, count)
else:
    import fcntl

    def _lock(file: int, first: int, count: int, *, give_back: bool = False) -> None:
        fcntl.lockf(file, fcntl.LOCK_UN if give_back else fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)


def lock_path(manifest: Path) -> Path:
    """The file whose bytes are locked; hidden, beside the manifest, gone when the batch has ended well."""
    return manifest.with_name(f".{manifest.name}.lock")


@contextmanager
def batch_lock(manifest: Path, *, orphans_s: float = ORPHANS_S) -> Generator[None, None, None]:
    """Hold the manifest for this process alone while the block runs.

    Not to be combined with `row_lock` in one process: POSIX gives all of a process's locks on a file back when it closes any handle of it.

    Raises ManifestError: another batch holds it, workers of a killed one are still there after `orphans_s`, or locks are not possible.
    """
    path = lock_path(manifest)
    file = _hold(path, manifest)
    try:
        _wait_for_workers(file, manifest, orphans_s)
        yield
    finally:
        if sys.platform != "win32":  # there, an open file cannot be removed
            with suppress(OSError):
                path.unlink()
        os.close(file)


@contextmanager
def row_lock(path: Path | None, number: int) -> Generator[None, None, None]:
    """Hold row `number` (from 0) while the block runs, so that the next batch waits for it. Where the file cannot be reached or
    locked (a worker on another machine), nothing is held."""
    file = -1
    if path is not None:
        with suppress(OSError):
            file = os.open(path, os.O_RDWR)
            _lock(file, 1 + number, 1)
    try:
        yield
    finally:
        if file >= 0:
            os.close(file)


def _hold(path: Path, manifest: Path) -> int:
    """The lock file, open, its byte 0 locked."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            why = f"{error.strerror or error}; copy the manifest to a folder where you may write"
            raise ManifestError(f"cannot keep the state of the batch beside '{manifest}': {why}") from error
        try:
            _lock(file, 0, 1)
            with suppress(FileNotFoundError):
                # Another inode: whoever held the lock before has removed the file just now, and others will open a new one.
                if os.path.samestat(os.stat(path), os.fstat(file)):
                    return file
        except OSError as error:
            os.close(file)
            if error.errno in _HELD:
                raise ManifestError(f"another lipdub batch is at work on '{manifest}'; wait for it, or stop it first") from error
            why = f"{error.strerror or error}; copy the manifest to a folder on a disk of this machine"
            raise ManifestError(f"cannot lock '{path}': {why}") from error
        os.close(file)


def _wait_for_workers(file: int, manifest: Path, orphans_s: float) -> None:
    """Until no worker holds a row any more."""
    until = time.monotonic() + orphans_s
    while True:
        try:
            _lock(file, 1, _ROWS)
        except OSError as error:
            if error.errno not in _HELD or time.monotonic() > until:
                what = f"workers of an earlier batch on '{manifest}' are still running"
                raise ManifestError(f"{what}; end them, or wait and run again") from error
            time.sleep(0.1)
        else:
            _lock(file, 1, _ROWS, give_back=True)
            return
