"""The files that lipdub reads and writes: one line for each kind of container."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from lipdub.options import Encoder

VIDEO_SUFFIXES: Final = frozenset(
    {".mp4", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".m4v", ".mts", ".ts", ".flv", ".wmv"}
)  # fmt: skip
"""What counts as a video where a folder is searched; a file that is named is read whatever its suffix."""

PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg")
"""What pictures are written as."""

PCM: Final = frozenset(
    f"pcm_{kind}" for kind in ("u8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le", "f64be")
)
_H26X: Final[tuple[Encoder, ...]] = ("libx264", "libx265", "h264_nvenc", "hevc_nvenc", "h264_videotoolbox")
_AV1: Final[tuple[Encoder, ...]] = ("libsvtav1",)
_VP9: Final[tuple[Encoder, ...]] = ("libvpx-vp9",)
_LOSSY: Final = frozenset({"aac", "mp3", "alac"})


@dataclass(frozen=True, slots=True)
class Container:
    """A kind of file that lipdub writes; codecs and the muxer by FFmpeg's names.

    copied: codecs of sound that it takes as they are; None for all.
    recoded: what other sound becomes.
    keeps_pcm: PCM that has to be cut stays PCM of its kind.
    keeps_ticks: it counts in the pictures' own ticks, not in milliseconds; its edit list lets coded sound begin before time zero.
    subtitles: what subtitles of text become that it does not take as they are.
    attaches: it holds a cover as an attached file, not as pictures.
    pictures: encoders whose pictures it takes, its usual one first.
    """

    muxer: str
    copied: frozenset[str] | None
    recoded: str
    keeps_pcm: bool
    keeps_ticks: bool
    subtitles: str
    attaches: bool
    pictures: tuple[Encoder, ...]

    def sound_codec(self, codec: str, *, as_it_is: bool, begins_at_zero: bool) -> str:
        """The codec for sound that comes in `codec`: "copy" where nothing need be done to it.

        as_it_is: the sound is not to be cut or padded. begins_at_zero: no coded sound, such as an encoder's lead-in, lies before
        time zero; where there is some, a muxer without edit list would move the pictures.
        """
        if as_it_is and (self.copied is None or codec in self.copied) and (begins_at_zero or self.keeps_ticks):
            return "copy"
        return codec if self.keeps_pcm and codec in PCM else self.recoded

    def muxer_options(self, ticks_per_s: int, edit_ticks_per_s: int) -> dict[str, str]:
        """Options of the muxer: the index before the data, the pictures' ticks, and the ticks that the edit list counts in."""
        if not self.keeps_ticks:
            return {}
        return {"movflags": "+faststart", "video_track_timescale": str(ticks_per_s), "movie_timescale": str(edit_ticks_per_s)}


CONTAINERS: Final[Mapping[str, Container]] = MappingProxyType(
    {
        ".mp4": Container(
            "mp4", _LOSSY, "aac", keeps_pcm=False, keeps_ticks=True, subtitles="mov_text", attaches=False, pictures=_H26X + _AV1
        ),
        ".mov": Container(
            "mov", _LOSSY | PCM, "aac", keeps_pcm=True, keeps_ticks=True, subtitles="mov_text", attaches=False, pictures=_H26X
        ),
        ".mkv": Container(
            "matroska", None, "flac", keeps_pcm=True, keeps_ticks=False, subtitles="subrip", attaches=True, pictures=_H26X + _AV1 + _VP9
        ),
        ".webm": Container(
            "webm",
            frozenset({"opus", "vorbis"}),
            "libopus",
            keeps_pcm=False,
            keeps_ticks=False,
            subtitles="webvtt",
            attaches=False,
            pictures=_VP9 + _AV1,
        ),
    }
)
"""By suffix."""

WRITTEN: Final = " and ".join(", ".join(CONTAINERS).rsplit(", ", 1))
"""The suffixes, for a sentence: ``.mp4, .mov, .mkv and .webm``."""


def container_of(out: Path) -> Container:
    """How a file of that suffix is written. Raises KeyError: lipdub does not write such files (`output.check_output`)."""
    return CONTAINERS[out.suffix.lower()]
