"""Under which key an analysis is kept: it changes with everything that gives a video another track, and nobody raises a version by hand.

Beside the video and the size of the crops these shape a track:

* The constants of ``lipdub.faces`` and ``lipdub.references``, with the values that they have when the key is made.
* The source text of these packages, of ``lipdub.media``, which decodes, and of ``lipdub.records``. A number inside a function counts,
  and so does a changed formula. A changed comment costs one analysis that was not needed.
* The versions of mediapipe and PyAV.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pkgutil
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np

from lipdub import media
from lipdub.errors import UnreadableMedia
from lipdub.options import FaceChoice, FaceLimits

_ROOMS: Final = ("lipdub.faces", "lipdub.references")
_KEEPING: Final = ("lipdub.faces.analysis_key", "lipdub.faces.cache")
"""Modules that keep tracks and shape none."""
_PACKAGES: Final = ("mediapipe", "av")
_CONSTANT: Final = re.compile("_*[A-Z][A-Z0-9_]*")
_PIECE_BYTES: Final = 4 * 2**20


def analysis_key(video: Path, *, size_px: int, choice: FaceChoice | None = None, limits: FaceLimits = FaceLimits()) -> str:
    """40 hex digits that change with the content of `video` and with everything that changes its track with crops of `size_px`
    that follows `choice` within `limits`.

    The ending of the file's name counts as well: FFmpeg looks at it. The file is read once. Raises UnreadableMedia.
    """
    shaping = {
        "content": content_digest(media.readable(video)),
        "suffix": video.suffix.lower(),
        "size_px": size_px,
        "constants": track_constants(),
        "source": _SOURCE_DIGEST,
        "packages": [_version(package) for package in _PACKAGES],
    }
    if choice is not None:
        picture = None if choice.picture is None else content_digest(media.readable(Path(choice.picture)))
        shaping["choice"] = asdict(replace(choice, picture=picture))
    if limits != FaceLimits():
        shaping["limits"] = asdict(limits)
    text = json.dumps(shaping, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def content_digest(file: Path) -> str:
    """blake2b of the content of `file`, 64 hex digits. Raises UnreadableMedia: it is missing, unreadable or no plain file."""
    hashed = hashlib.blake2b(digest_size=32)
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UnreadableMedia(f"cannot read '{file}': it is no plain file, which can be read twice; check the path")
        with open(file, "rb", buffering=0) as opened:
            while piece := opened.read(_PIECE_BYTES):
                hashed.update(piece)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UnreadableMedia(f"cannot read '{file}': {reason}; check the path and its permissions") from error
    return hashed.hexdigest()


def track_constants() -> dict[str, object]:
    """The constants that shape a track, by full name, as they are now: every UPPER_CASE name of the modules that is no type or module."""
    return {
        f"{module}.{name}": value
        for module in _modules(*_ROOMS)
        for name, value in vars(import_module(module)).items()
        if _CONSTANT.fullmatch(name) and not isinstance(value, type | ModuleType)
    }


def _modules(*packages: str) -> Iterator[str]:
    for package in packages:
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            if module.name not in _KEEPING:
                yield module.name


def _plain(value: object) -> object:
    """What JSON can hold in the place of `value`, equal in every process. Raises TypeError: a type that has nothing of the kind."""
    if isinstance(value, np.ndarray | np.generic):
        return [value.dtype.str, value.shape, value.tolist()]
    if isinstance(value, np.dtype):
        return value.str
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a constant that shapes a track must be of a type that can be hashed by its content, got {value!r}")


def _source_digest() -> str:
    """blake2b of the source text of what shapes a track."""
    hashed = hashlib.blake2b(digest_size=20)
    for module in sorted([*_modules(*_ROOMS, "lipdub.media"), "lipdub.records"]):
        loader = getattr(find_spec(module), "loader", None)
        hashed.update(f"{module}\n{loader.get_source(module) if loader else ''}\n".encode())
    return hashed.hexdigest()


_SOURCE_DIGEST: Final = _source_digest()
"""Made on import: when the files are replaced later, this process goes on with the code that it has read."""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
