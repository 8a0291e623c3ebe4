"""What a video holds beside its pictures and the sound that is replaced: what the output's container takes of it goes into the output.

Tags, chapters, subtitles, a cover, attached fonts, and the original sound where it is asked for. What is left out is said. All of it lies
on the source's own time line, so where pictures are played again it belongs to their first time, and it ends where the output ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import av
import ffmpeg
import numpy as np
from av.container import InputContainer, OutputContainer
from av.stream import Disposition

from lipdub.atomic import part_file
from lipdub.errors import EncodingFailed
from lipdub.media.containers import Container, container_of
from lipdub.media.facts import may_be_hidden
from lipdub.media.files import audio_stream, coded_from_s, is_photo_format, mapped, opened, origin_of_s, url_of, video_stream
from lipdub.media.output import COMMENT
from lipdub.media.program import run_ffmpeg
from lipdub.media.sound_plan import from_zero
from lipdub.records import DubWarning, Warn

_TECHNICAL: Final = frozenset({"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "comment"})
"""Tags that say how the source's file was made; the comment is kept beside our own."""
_PICTURE_TYPES: Final = MappingProxyType({"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")})

Kind = Literal["sound track", "subtitles", "attachment", "cover", "further pictures", "data"]
_LETTERS: Final[Mapping[Kind, str]] = MappingProxyType({"sound track": "a", "subtitles": "s", "attachment": "t", "cover": "v"})
"""How FFmpeg calls the kinds that are kept."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter, in seconds from time zero."""

    start_s: Fraction
    end_s: Fraction
    title: str


@dataclass(frozen=True, slots=True)
class KeptStream:
    """A stream of the source, and how it goes into the output. index: in the source. coded: how it is coded there, "" where FFmpeg does not
    know. title: what the source calls it. codec: "copy", or an encoder by FFmpeg's name.
    """

    index: int
    kind: Kind
    coded: str
    language: str
    title: str
    codec: str = "copy"

    def __str__(self) -> str:
        language = "" if self.language == "und" else self.language
        return f"{self.kind} ({', '.join(part for part in (f'stream {self.index}', self.coded, language) if part)})"


@dataclass(frozen=True, slots=True)
class Kept:
    """What goes into an output beside its pictures and its new sound. origin_s: time zero on the source's own clock. until_s: where the
    output ends. tags: of the whole file, our comment among them."""

    video: Path | None = None
    origin_s: Fraction = Fraction(0)
    until_s: Fraction = Fraction(0)
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"comment": COMMENT}))
    chapters: tuple[Chapter, ...] = ()
    streams: tuple[KeptStream, ...] = ()

    def into(self, container: OutputContainer) -> None:
        """Put tags and chapters into a file that is about to be written."""
        container.metadata.update(self.tags)
        if self.chapters:
            container.set_chapters(
                [
                    {
                        "id": number,
                        "start": round(1000 * one.start_s),
                        "end": round(1000 * one.end_s),
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": one.title} if one.title else {},
                    }
                    for number, one in enumerate(self.chapters)
                ]
            )

    @contextmanager
    def mapped_into(self, out: Path) -> Iterator[tuple[list[Any], dict[str, object]]]:
        """The kept streams as ffmpeg-python takes them, to come after pictures and sound, and the options that go with them."""
        options: dict[str, object] = {"metadata": f"comment={self.tags['comment']}", "map_chapters": 0 if self.chapters else -1}
        if not self.streams or self.video is None:
            yield [], options
            return
        source = ffmpeg.input(url_of(self.video), itsoffset=f"{float(-self.origin_s):.6f}", t=f"{float(self.until_s):.6f}")
        end_s = f"{float(self.until_s):.6f}"
        # What begins beyond the output's end is dropped, and what lasts beyond it is cut.
        cut = f"noise=drop='gte(pts*tb,{end_s})',setts=pts=PTS:dts=DTS:duration='min(DURATION,{end_s}/TB-PTS)'"
        numbers = {"sound track": 1, "subtitles": 0, "attachment": 0, "cover": 1}
        taken: list[Any] = []
        attached: KeptStream | None = None
        for stream in self.streams:
            if stream.kind == "cover" and container_of(out).attaches:
                attached = stream
                continue
            at = f"{_LETTERS[stream.kind]}:{numbers[stream.kind]}"
            numbers[stream.kind] += 1
            options[f"c:{at}"] = stream.codec
            input_stream = source[str(stream.index)]
            if stream.kind == "sound track" and stream.codec != "copy":
                # Filters lose what the stream is called.
                input_stream = from_zero(input_stream).filter("atrim", end=end_s)
                options[f"metadata:s:{at}"] = f"language={stream.language}"
            taken.append(input_stream)
            if stream.title:  # by the number of the stream, for each option is given once; before it are pictures and new sound
                options[f"metadata:s:{1 + len(taken)}"] = f"title={stream.title}"
            if stream.kind == "sound track":
                options |= {"disposition:a:0": "default", f"disposition:{at}": "0"}
            elif stream.kind == "subtitles":
                options[f"bsf:{at}"] = cut
            elif stream.kind == "cover":
                options[f"disposition:{at}"] = "attached_pic"
        if attached is None:
            yield taken, options
            return
        ending, media_type = _PICTURE_TYPES[attached.coded]
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / f"cover.{ending}"  # its name goes into the file
            picture.write_bytes(_packet(self.video, attached.index))
            yield taken, options | {"attach": str(picture), f"metadata:s:t:{numbers['attachment']}": f"mimetype={media_type}"}


NOTHING_KEPT: Final = Kept()
"""Of a photo, and of pictures that somebody drew."""


def plan_kept(video: Path, out: Path, *, duration_s: Fraction, keep_audio: bool = False, warn: Warn = lambda _: None) -> Kept:
    """What of `video` goes into `out` beside pictures and new sound: each stream is tried in the real muxer, tags are read back.

    duration_s: of the output. keep_audio: its own sound tracks, too. warn: told what is left out.

    Raises UnreadableMedia, NoVideoStream.
    """
    with opened(video) as container:
        if is_photo_format(container):
            return NOTHING_KEPT
        origin_s = origin_of_s(container)
        chapters = tuple(_chapters(container, origin_s, duration_s))
        comment = container.metadata.get("comment", container.metadata.get("COMMENT", ""))
        tags = {key: value for key, value in container.metadata.items() if key.lower() not in _TECHNICAL and "=" not in key}
        found = list(_found(container, video, container_of(out), origin_s, keep_audio, has_chapters=bool(chapters)))
    tags["comment"] = COMMENT if not comment or comment.startswith(COMMENT) else f"{COMMENT}. {comment}"
    whole = Kept(video, origin_s, duration_s, MappingProxyType(tags), chapters)
    left_out: list[str] = []
    streams: list[KeptStream] = []
    for stream, codecs in found:
        for way in (replace(stream, codec=codec) for codec in codecs):
            language = _language_taken(whole, way, out)
            if language is not None:
                streams.append(way)
                if way.language not in ("und", language):
                    left_out.append(f"the language of {way}")
                break
        else:
            left_out.append(str(stream))
    lost = tags.keys() - _tags_taken(whole, out) if tags != NOTHING_KEPT.tags else set()
    left_out += [f"tag {key}" for key in sorted(lost)]
    if left_out:
        how = "; --keep-original-audio keeps sound tracks" if not keep_audio and any(one.startswith("sound") for one in left_out) else ""
        warn(DubWarning("left-out", f"the output is without what else the video holds: {', '.join(left_out)}{how}"))
    tags = {key: value for key, value in tags.items() if key not in lost or key == "comment"}
    return replace(whole, tags=MappingProxyType(tags), streams=tuple(streams))


def _chapters(container: InputContainer, origin_s: Fraction, until_s: Fraction) -> Iterator[Chapter]:
    """The chapters of a file that begin before `until_s`."""
    for one in container.chapters():
        base = one["time_base"] or Fraction(1)
        start_s, end_s = max(Fraction(0), one["start"] * base - origin_s), min(until_s, one["end"] * base - origin_s)
        if start_s < end_s:
            yield Chapter(start_s, end_s, one["metadata"].get("title", ""))


def _found(
    container: InputContainer, video: Path, into: Container, origin_s: Fraction, keep_audio: bool, *, has_chapters: bool
) -> Iterator[tuple[KeptStream, tuple[str, ...]]]:
    """Every other stream of the video, and the codecs in which it may go into the output, the best one first; none: it does not go."""
    pictures, has_cover = video_stream(container, video), False
    replaced = audio_stream(container, video) if any(one.codec_context for one in container.streams.audio) else None
    for stream in container.streams:
        if stream.index == pictures.index:
            continue
        coded = "" if stream.codec_context is None else stream.codec_context.codec.canonical_name
        codecs: tuple[str, ...] = ()
        kind: Kind = "data"
        if isinstance(stream, av.VideoStream):
            kind = "cover" if stream.disposition & Disposition.attached_pic and not has_cover else "further pictures"
            has_cover |= kind == "cover"
            if kind == "cover" and coded in _PICTURE_TYPES:
                codecs = ("copy",)
        elif isinstance(stream, av.AudioStream):
            kind = "sound track"
            if keep_audio and coded:
                begins_s = coded_from_s(video, stream.index)
                best = into.sound_codec(coded, as_it_is=True, begins_at_zero=begins_s is None or begins_s >= origin_s)
                codecs = tuple(dict.fromkeys([best, into.recoded]))
            elif replaced is not None and stream.index == replaced.index:
                continue
        elif stream.type == "subtitle":
            kind = "subtitles"
            codecs = ("copy", into.subtitles) if coded and av.Codec(coded, "r").text_sub else ("copy",)
        elif stream.type == "attachment":
            kind, codecs = "attachment", ("copy",)
        elif has_chapters and "mp4" in container.format.name:  # there, chapters have a data stream of their own
            continue
        tags = stream.metadata
        yield KeptStream(stream.index, kind, coded, tags.get("language", "und"), tags.get("name", tags.get("title", ""))), codecs


def _language_taken(whole: Kept, stream: KeptStream, out: Path) -> str | None:
    """The language by which a second of the stream is known in such a file, beside silence; None: it does not go in."""
    container = container_of(out)
    alone = Kept(whole.video, whole.origin_s, min(whole.until_s, Fraction(1)), streams=(stream,))
    try:
        with part_file(out, hidden=may_be_hidden()) as part, alone.mapped_into(out) as (streams, options):
            pictures = ffmpeg.input("color=size=64x64", f="lavfi", t="1")
            silence = ffmpeg.input("anullsrc", f="lavfi", t="1")
            given = {"c:v:0": container.pictures[0], "c:a:0": container.recoded, "format": container.muxer} | options
            run_ffmpeg(ffmpeg.output(pictures, silence, *streams, url_of(part), **given).global_args("-copyts"), out)
            with opened(part) as written:
                there = [one for one in written.streams if one.index > 1 and one.type != "data"]
                return there[0].metadata.get("language", "und") if there else None
    except EncodingFailed:
        return None


def _tags_taken(whole: Kept, out: Path) -> set[str]:
    """Which tags are there again when they have been written into such a file."""
    with part_file(out, hidden=may_be_hidden()) as part:
        with mapped(out, writing=True), av.open(url_of(part), "w", format=container_of(out).muxer) as container:
            whole.into(container)
            one_picture(container, out)
        with opened(part) as written:
            there = {key.lower(): value for key, value in written.metadata.items()}
    return {key for key, value in whole.tags.items() if there.get(key.lower()) == value}


def one_picture(container: OutputContainer, out: Path) -> None:
    """Write one small picture into a file that is to show what a file of the kind of `out` can hold."""
    stream = container.add_stream(container_of(out).pictures[0], rate=25)
    assert isinstance(stream, av.VideoStream)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for frame in (av.VideoFrame.from_ndarray(np.zeros((96, 64), np.uint8), "yuv420p"), None):
        container.mux(stream.encode(frame))


def _packet(video: Path, index: int) -> bytes:
    """The picture of a cover as it is coded."""
    with opened(video) as container:
        return next(bytes(packet) for packet in container.demux(container.streams[index]) if packet.size)
