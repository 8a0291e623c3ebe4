"""The beginning of a video, without decoding it."""

from __future__ import annotations

from pathlib import Path

import ffmpeg

from lipdub.atomic import whole_file
from lipdub.media.containers import CONTAINERS
from lipdub.media.files import url_of
from lipdub.media.program import run_ffmpeg


def excerpt(video: Path, folder: Path, *, seconds: float) -> Path:
    """Copy the pictures of the first `seconds` of `video` into `folder`, bit for bit; the new file. Sound is left out.

    It may hold a few frames more: packets are cut where they are stored. Raises EncodingFailed, WriteFailed.
    """
    suffix = video.suffix.lower() if video.suffix.lower() in CONTAINERS else ".mkv"
    out = folder / f"excerpt{suffix}"
    with whole_file(out) as part:
        command = ffmpeg.input(url_of(video), t=f"{seconds:.3f}").video.output(url_of(part), c="copy", format=CONTAINERS[suffix].muxer)
        run_ffmpeg(command, out)
    return out
