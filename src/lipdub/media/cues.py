"""Times of subtitle cues."""

from __future__ import annotations

from pathlib import Path

import av
from av.error import FFmpegError

from lipdub.errors import UnreadableMedia
from lipdub.media.copies import readable
from lipdub.media.files import mapped, url_of
from lipdub.times import Range, is_cue_file, joined, parsed_ranges

_FORMATS = {".srt": "srt", ".vtt": "webvtt"}


def ranges_of(text: str) -> tuple[Range, ...]:
    """The ranges that `text` writes, or those of the cues of the file that it names. Raises UnreadableMedia; ``ValueError``: neither."""
    return ranges_in(Path(text)) if is_cue_file(text) else parsed_ranges(text)


def ranges_in(path: Path) -> tuple[Range, ...]:
    """When the cues of an .srt or .vtt file are shown, in order, those that touch as one. Raises UnreadableMedia."""
    if not path.is_file():
        raise UnreadableMedia(f"cannot read '{path}': there is no such file; check the path")
    found = []
    try:
        with (
            mapped(path),
            av.open(url_of(readable(path)), "r", format=_FORMATS[path.suffix.lower()], metadata_errors="replace") as container,
        ):
            for packet in container.demux():
                if packet.pts is not None and packet.duration and packet.time_base is not None:
                    start = packet.pts * packet.time_base
                    found.append(Range(max(0.0, float(start)), float(start + packet.duration * packet.time_base)))
    except (FFmpegError, ValueError) as error:
        raise UnreadableMedia(f"cannot read '{path}': it holds no cues of this kind; save it as SubRip or WebVTT") from error
    if not found:
        raise UnreadableMedia(f"cannot read '{path}': it holds no cues; give ranges such as 0:05-0:12 instead")
    return joined(found)
