"""Files that cannot be read again and again as they are: pipes, and pictures that only Pillow reads. Each is copied once into the folder
for temporary files, and the copy is read in its place until the process ends."""

from __future__ import annotations

import atexit
import os
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import av.error
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray
from PIL import Image

from lipdub.atomic import part_file
from lipdub.errors import UnreadableMedia, WriteFailed

_PIECE_BYTES = 2**20
_HEAD_BYTES = 4096
_UNTIMED_MS, _USUAL_MS = 10, 100
"""A picture of an animation that asks for at most so long is shown for the other time, as browsers do."""

_MOST_COPIES = 8
"""A dub reads two at most; of more, the one that was read longest ago goes."""

_Key = tuple[object, ...]
_NewCopy = Callable[[str], Path]
"""Gives a place for a copy of that suffix."""


class _Copies:
    """The copies of this process, each by what it is a copy of."""

    def __init__(self) -> None:
        self._kept: dict[_Key, tuple[Path, ExitStack]] = {}
        self._lock = threading.RLock()
        atexit.register(self.let_go)

    def of(self, path: Path, make: Callable[[Path, _NewCopy], Path], *more: object) -> Path:
        """The copy of `path` that `make` makes, by writing to the place that its second argument gives for a suffix; made once for as
        long as neither the file nor `more` changes."""
        with self._lock:
            kept = self._kept.pop(self._key(path, more), None)
            if kept is None:
                with ExitStack() as stack:
                    copy = make(path, lambda suffix: stack.enter_context(part_file(Path(tempfile.gettempdir()) / f"lipdub-copy{suffix}")))
                    kept = copy, stack.pop_all()
            # The key of a pipe is settled when all of it was read: writing to it changes its time.
            self._kept[self._key(path, more)] = kept
            self.let_go(_MOST_COPIES)
            return kept[0]

    def let_go(self, most: int = 0) -> None:
        """Remove copies until `most` are left."""
        while len(self._kept) > most:
            _, stack = self._kept.pop(next(iter(self._kept)))
            stack.close()

    @staticmethod
    def _key(path: Path, more: tuple[object, ...]) -> _Key:
        found = path.stat()
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, *more


_copies = _Copies()


def readable(path: Path) -> Path:
    """The file to read in the place of `path`: `path` itself, but for these, of which a copy is made the first time:

    * a pipe (``<(...)`` of a shell, /dev/stdin) as it is, read to its end;
    * animated WebP and AVIF, and AVIF with transparent parts, which FFmpeg does not read, as lossless pictures at their own times.

    What is missing is given back as it is.

    Raises:
        UnreadableMedia: a device or a socket, or Pillow cannot read it.
        WriteFailed: no room for the copy.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return path
    if stat.S_ISDIR(mode):
        return path
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise UnreadableMedia(f"cannot read '{path}': it is a device, not a file; give a video, photo or sound file")
    if stat.S_ISREG(mode) and not _is_for_pillow(path):
        return path
    return _copies.of(path, _drained if stat.S_ISFIFO(mode) else _by_pillow)


def let_go_of_copies() -> None:
    """Remove all copies; for a process that ends without `atexit`."""
    _copies.let_go()


def fitted(photo: Path, pixels: NDArray[np.uint8]) -> Path:
    """The file to read in the place of `photo` once it is scaled: a lossless copy of `pixels`, uint8 (H, W, 3) RGB.

    Raises WriteFailed: no room for the copy.
    """

    def written(path: Path, new: _NewCopy) -> Path:
        with _room_for(path):
            copy = new(".png")
            Image.fromarray(pixels).save(copy, compress_level=1)
        return copy

    return _copies.of(photo, written, pixels.shape)


def _drained(pipe: Path, new: _NewCopy) -> Path:
    """A copy of what comes out of `pipe`. Python waits for it, not FFmpeg, so that Ctrl-C and a request to end are heard."""
    with open(pipe, "rb", buffering=0) as source, _room_for(pipe):
        copy = new(pipe.suffix)
        with copy.open("wb") as file:
            while piece := source.read(_PIECE_BYTES):
                file.write(piece)
    return copy


def _is_for_pillow(path: Path) -> bool:
    """Whether the file is animated WebP, animated AVIF, or AVIF with a second picture that says what is transparent."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:  # said where it is opened
        return False
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return bool(head[20] & 2) if len(head) > 20 else False
    if head[4:8] != b"ftyp":
        return False
    brand = head[8:12]
    return brand == b"avis" or (brand in (b"avif", b"mif1") and b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha" in head)


def _by_pillow(path: Path, new: _NewCopy) -> Path:
    """A lossless copy of the pictures of `path` with their transparency: .png of a single one, else .mkv."""
    pictures = _pictures(path)
    first = next(pictures, None)
    if first is None:
        raise UnreadableMedia(f"cannot read '{path}': not one of its pictures decodes; the file is damaged or cut off")
    second = next(pictures, None)
    with _room_for(path):
        copy = new(".png" if second is None else ".mkv")
        if second is None:
            Image.fromarray(first[0]).save(copy, compress_level=1)
        else:
            height, width = first[0].shape[:2]
            _write_video(copy, (width, height), chain((first, second), pictures))
    return copy


def _pictures(path: Path) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The pictures of `path`, uint8 (H, W, 4) RGBA, and how long each is shown in ms; a damaged file ends early."""
    try:
        with _quietly():
            file = Image.open(path)
        with file:
            for number in range(getattr(file, "n_frames", 1)):
                with _quietly():
                    file.seek(number)
                    pixels = np.asarray(file.convert("RGBA"), np.uint8)
                asked_ms = round(file.info.get("duration") or 0)
                yield pixels, asked_ms if asked_ms > _UNTIMED_MS else _USUAL_MS
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError):
        return


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings, of a large picture and of damaged metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _write_video(copy: Path, size: tuple[int, int], pictures: Iterable[tuple[NDArray[np.uint8], int]]) -> None:
    """Write pictures of `size` (width, height) without loss, at their own times. Matroska counts in milliseconds, as these files do."""
    milliseconds = Fraction(1, 1000)
    with av.open(os.fspath(copy), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(1000, _USUAL_MS))
        context = stream.codec_context
        context.width, context.height = size
        context.pix_fmt, context.time_base = "bgra", milliseconds
        context.flags |= Flags.frame_duration
        tick = 0
        for pixels, shown_ms in pictures:
            frame = av.VideoFrame.from_ndarray(pixels, "rgba").reformat(format="bgra")
            frame.pts, frame.duration, frame.time_base = tick, shown_ms, milliseconds
            container.mux(stream.encode(frame))
            tick += shown_ms
        container.mux(stream.encode(None))


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Turn what the system and FFmpeg raise while a copy is written into WriteFailed."""
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        where, why = tempfile.gettempdir(), error.strerror or error
        raise WriteFailed(
            f"cannot keep a copy of '{path}' in '{where}': {why}; make room there, or set TMPDIR to another folder"
        ) from error
