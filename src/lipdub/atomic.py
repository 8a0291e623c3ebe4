"""Files and folders that appear whole or not at all: written beside their place, brought to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lipdub.errors import WriteFailed

ADVICE = "check the free space and the folder"


def write_whole(out: Path, content: str | bytes, *, failed: str = "cannot write", advice: str = ADVICE) -> None:
    """Write a file; text is written as UTF-8. A file that was there is replaced. See `whole_file`."""
    with whole_file(out, failed=failed, advice=advice) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(out: Path, *, failed: str = "cannot write", advice: str = ADVICE) -> Iterator[Path]:
    """A path beside `out` to write to. The file is renamed to `out` when the block ends well; after any error nothing is left.

    failed, advice: how the message begins and ends.

    Raises:
        WriteFailed: an OSError in the block or in the rename.
    """
    with _told(out, failed, advice), part_file(out) as part:
        yield part
        put_in_place(part, out)


@contextmanager
def part_file(out: Path) -> Iterator[Path]:
    """A path beside `out`, hidden, unique, of the same suffix, for a file that is not finished; removed when the block ends.

    To keep the file, call `put_in_place` inside the block.
    """
    part = _part_of(out)
    try:
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def put_in_place(part: Path, out: Path) -> None:
    """Rename the finished file `part` to `out`, both of them safe from a power cut when this returns. Raises OSError."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, out)
    _sync_folder(out.absolute().parent)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into. It becomes `out` when the block ends well; after any error nothing is left.

    A folder that was there is replaced with all it holds, and removed only when the new one stands.

    Raises:
        WriteFailed: an OSError in the block or in the rename.
    """
    with _told(out), _part_folder(out) as part:
        yield part
        old = part.with_name(f"{part.name}.old")
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


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in `folder`; nothing else may be writing there. Raises OSError."""
    for part in folder.glob(".*.lipdub-part*"):
        part.unlink(missing_ok=True)


def _part_of(out: Path) -> Path:
    stem = out.stem.encode()[:120].decode(errors="ignore")  # file systems take 255 bytes
    return out.absolute().with_name(f".{stem}.{secrets.token_hex(6)}.lipdub-part{out.suffix}")


@contextmanager
def _part_folder(out: Path) -> Iterator[Path]:
    part = _part_of(out)
    try:
        part.mkdir()
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
