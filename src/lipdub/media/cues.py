"""Times of subtitle cues."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import av
from av.error import FFmpegError

from lipdub.errors import UnreadableMedia
from lipdub.media.copies import readable
from lipdub.media.files import mapped, url_of
from lipdub.times import Cues, Range, joined, parsed_ranges

_FORMATS = {".srt": "srt", ".vtt": "webvtt"}
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
"""A voice span of WebVTT (W3C, WebVTT, 4.2.2): ``<v Anna>Hello``."""
_TAG = re.compile(r"<[^>]*>")
_NAME = re.compile(r"^[\s\-\u2013\u2014]*\[?(\w[^:\]\n]{0,39})\]?:(?=\s|$)", re.MULTILINE)
"""A speaker at the beginning of a line, as people and programs write it: ``ANNA: Hello``, ``- Anna: Hello``, ``[SPEAKER_00]: Hello``."""
_MOST_NAMED = 8


def ranges_of(text: str) -> list[tuple[Range, ...]]:
    """The ranges that each part of `text`, with ``;`` between, writes, or those of the cues that it names. Raises UnreadableMedia;
    ``ValueError``: neither."""
    parts = ((part, Cues.of(part)) for part in text.split(";"))
    return [parsed_ranges(part) if cues is None else ranges_in(Path(cues.path), cues.speaker) for part, cues in parts]


def ranges_in(path: Path, speaker: str | None = None) -> tuple[Range, ...]:
    """When the cues of an .srt or .vtt file are shown, in order, those that touch as one. speaker: whose, upper and lower case alike; None
    for all cues. Raises UnreadableMedia."""
    if not path.is_file():
        raise UnreadableMedia(f"cannot read '{path}': there is no such file; check the path")
    found, names = [], dict[str, str]()
    wanted = None if speaker is None else speaker.strip().casefold()
    is_empty = True
    try:
        with (
            mapped(path),
            av.open(url_of(readable(path)), "r", format=_FORMATS[path.suffix.lower()], metadata_errors="replace") as container,
        ):
            for packet in container.demux():
                if packet.pts is not None and packet.duration and packet.time_base is not None:
                    is_empty = False
                    speakers = {name.casefold(): name for name in _speakers(bytes(packet).decode(errors="replace"))}
                    names |= speakers
                    if wanted is None or wanted in speakers:
                        start = packet.pts * packet.time_base
                        found.append(Range(max(0.0, float(start)), float(start + packet.duration * packet.time_base)))
    except (FFmpegError, ValueError) as error:
        raise UnreadableMedia(f"cannot read '{path}': it holds no cues of this kind; save it as SubRip or WebVTT") from error
    if is_empty:
        raise UnreadableMedia(f"cannot read '{path}': it holds no cues; give ranges such as 0:05-0:12 instead")
    if not found:
        known = ", ".join([*names.values()][:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
        raise UnreadableMedia(f"'{path}' has no cue of the speaker '{speaker}'; there are cues of {known or 'nobody by name'}")
    return joined(found)


def _speakers(text: str) -> Iterator[str]:
    """Who speaks in a cue."""
    for name in (*_VOICE.findall(text), *_NAME.findall(_TAG.sub("", text))):
        yield " ".join(name.split())
