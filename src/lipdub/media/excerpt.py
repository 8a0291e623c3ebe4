"""A stretch of a video or of a sound, taken out without reading the rest."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import ffmpeg

from lipdub.atomic import whole_file
from lipdub.errors import UnreadableMedia
from lipdub.media.containers import CONTAINERS
from lipdub.media.files import opened, origin_of_s, url_of, video_stream
from lipdub.media.program import run_ffmpeg
from lipdub.media.sound import probe_sound

_LITTLE_S = 0.0005
"""Where a seek goes to: a little behind a key frame, so that rounding does not lead to the one before."""
_LEAST_S = 0.1
"""A sound that has ended goes on in silence for so long."""


def key_frame_s(video: Path, at_s: float) -> Fraction:
    """When the last key frame of `video` at or before `at_s` is shown, from time zero. Raises UnreadableMedia, NoVideoStream."""
    with opened(video) as container:
        stream, origin_s = video_stream(container, video), origin_of_s(container)
        assert stream.time_base is not None
        container.seek(int((Fraction(at_s) + origin_s) / stream.time_base), stream=stream, backward=True)
        for packet in container.demux(stream):
            if packet.pts is not None and packet.is_keyframe:
                return max(Fraction(0), packet.pts * stream.time_base - origin_s)
    raise UnreadableMedia(f"'{video}' holds no key frame; convert it first")


def excerpt(video: Path, folder: Path, *, seconds: float, start_s: Fraction = Fraction(0)) -> Path:
    """Copy the pictures of `seconds` of `video` into `folder`, bit for bit; the new file. Sound is left out.

    start_s: a time that `key_frame_s` gave. It may hold a few frames more: packets are cut where they are stored. Raises EncodingFailed,
    WriteFailed.
    """
    suffix = video.suffix.lower() if video.suffix.lower() in CONTAINERS else ".mkv"
    out = folder / f"excerpt{suffix}"
    from_here = {"ss": f"{float(start_s) + _LITTLE_S:.6f}"} if start_s else {}
    back = {"output_ts_offset": _LITTLE_S} if start_s else {}  # an .mp4 does not show what lies before zero
    with whole_file(out) as part:
        taken = ffmpeg.input(url_of(video), t=f"{seconds:.3f}", **from_here)
        run_ffmpeg(taken.video.output(url_of(part), c="copy", format=CONTAINERS[suffix].muxer, **back), out)
    return out


def sound_excerpt(sound: Path, out: Path, *, start_s: Fraction, seconds: float, tempo: Fraction = Fraction(1)) -> None:
    """Write `out`, a .wav: `seconds` of `sound` from `start_s` on, from time zero, spoken `tempo` times as fast; a little silence where it
    has ended before. Raises UnreadableMedia, NoAudioStream, EncodingFailed, WriteFailed."""
    with opened(sound) as container:
        if not container.streams.audio:
            probe_sound(sound)  # says what it is instead
    with whole_file(out) as part:
        taken = ffmpeg.input(url_of(sound), ss=f"{float(start_s):.6f}", t=f"{seconds:.3f}").audio
        taken = taken if tempo == 1 else taken.filter("atempo", f"{float(tempo):.6f}")
        taken = taken.filter("apad", whole_dur=_LEAST_S)
        run_ffmpeg(taken.output(url_of(part), format="wav", **{"c:a": "pcm_s24le"}), out)
