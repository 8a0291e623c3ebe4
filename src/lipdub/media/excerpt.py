"""The beginning of a video, without decoding it."""

from __future__ import annotations

import os
from pathlib import Path

import ffmpeg

from lipdub.media import muxing
from lipdub.media.files import url_of
from lipdub.media.output import FORMATS, part_file


def excerpt(video: Path, folder: Path, *, seconds: float) -> Path:
    """Copy the pictures of the first `seconds` of `video` into `folder`, bit for bit; the new file. Sound is left out.

    It may hold a few frames more: packets are cut where they are stored. Raises EncodingFailed.
    """
    suffix = video.suffix.lower() if video.suffix.lower() in FORMATS else ".mkv"
    out = folder / f"excerpt{suffix}"
    with part_file(out) as part:
        command = ffmpeg.input(url_of(video), t=f"{seconds:.3f}").video.output(url_of(part), c="copy", format=FORMATS[suffix])
        muxing._run(ffmpeg.compile(command, cmd=muxing._program()), out)
        os.replace(part, out)
    return out
