"""What FFmpeg there is on this machine, the program and the libraries inside PyAV, and what of it really encodes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.error
import imageio_ffmpeg
import numpy as np

OLDEST_FFMPEG = 5
"""Before it, neither ``setts=duration`` nor ``movie_timescale`` exist."""
_SIDE_PX = 256
"""Hardware encoders refuse pictures that are much smaller."""


@dataclass(frozen=True, slots=True)
class Program:
    """An ffmpeg program. version: as it says itself, "" where it does not run. new_enough: lipdub can use it."""

    path: str
    version: str
    new_enough: bool


def programs() -> Iterator[Program]:
    """The ffmpeg programs there are: the one on PATH, then the one that came with imageio-ffmpeg. The first that is new enough is used."""
    on_path = shutil.which("ffmpeg")
    if on_path:
        yield _described(on_path)
    with suppress(RuntimeError):
        bundled = str(imageio_ffmpeg.get_ffmpeg_exe())
        if bundled != on_path:
            yield _described(bundled)


def may_be_hidden() -> bool:
    """Whether the program that is used may open files whose name begins with a dot; one from a sandbox (snap, Flatpak) may not."""
    used = next((program.path for program in programs() if program.new_enough), "")
    places = {part.lower() for path in (used, os.path.realpath(used)) for part in Path(path).parts}
    return places.isdisjoint(("snap", "snapd", "flatpak"))


def program_encodes(program: Program, codec: str) -> bool:
    """Whether the program lists the encoder."""
    try:
        said = subprocess.run(
            [program.path, "-hide_banner", "-encoders"], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return re.search(rf"^ [A-Z.]{{6}} {re.escape(codec)} ".encode(), said, re.MULTILINE) is not None


def versions() -> str:
    """Versions of PyAV and of the FFmpeg libraries inside it."""
    codec = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return f"PyAV {av.__version__}, libavcodec {codec}"


def complaint_of_encoder(codec: str, options: dict[str, str] | None = None, pix_fmt: str = "yuv420p") -> str:
    """Why an encoder inside PyAV does not encode one picture of `pix_fmt` or a moment of silence, in one line; "" where it does."""
    try:
        context = av.CodecContext.create(codec, "w")
        context.options = options or {}
        packets = list(_encoded_sound(context) if isinstance(context, av.AudioCodecContext) else _encoded_picture(context, pix_fmt))
    except (av.error.FFmpegError, ValueError, TypeError, OSError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return "" if sum(packet.size for packet in packets) > 0 else "it gave no data"


def _encoded_picture(context: av.CodecContext, pix_fmt: str) -> list[Any]:
    assert isinstance(context, av.VideoCodecContext)
    context.width = context.height = _SIDE_PX
    context.pix_fmt, context.time_base, context.framerate = pix_fmt, Fraction(1, 25), Fraction(25)
    frame = av.VideoFrame.from_ndarray(np.full((_SIDE_PX * 3 // 2, _SIDE_PX), 128, np.uint8), format="yuv420p")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    return [*context.encode(frame), *context.encode(None)]


def _encoded_sound(context: av.AudioCodecContext) -> list[Any]:
    context.sample_rate, context.layout, context.format = 48000, "mono", "fltp"
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    return [*context.encode(frame), *context.encode(None)]


@cache
def _described(path: str) -> Program:
    try:
        said = subprocess.run([path, "-version"], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return Program(path, "", False)
    match = re.match(rb"ffmpeg version (n?(?:(\d+)\.)?\S*)", said)
    version = match[1].decode(errors="replace") if match else "of unknown version"
    # One built from a snapshot counts as new.
    return Program(path, version, not (match and match[2]) or int(match[2]) >= OLDEST_FFMPEG)
