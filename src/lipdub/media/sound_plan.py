"""How the sound of a dub goes into its file: decided before the first frame is drawn, by trying a second of it in the real muxer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import ffmpeg

from lipdub.atomic import part_file
from lipdub.errors import EncodingFailed
from lipdub.media.containers import container_of
from lipdub.media.facts import may_be_hidden
from lipdub.media.files import url_of
from lipdub.media.program import run_ffmpeg
from lipdub.media.sound import GAP_S, SoundInfo, decode_sound, probe_sound
from lipdub.records import DubWarning, Warn

_TRIED_S: Final = Fraction(1)


@dataclass(frozen=True, slots=True)
class SoundWay:
    """One way of sound into a file. codec: "copy", or an encoder by FFmpeg's name. decoded: by lipdub first, to one rate and layout.
    stereo: then it is mixed down to two channels (FFmpeg's own mix of many clips)."""

    codec: str
    decoded: bool = False
    stereo: bool = False


@dataclass(frozen=True, slots=True)
class SoundPlan:
    """What the sound is, and the ways that it may go into the file; the first one works, and each one asks less than the one before."""

    info: SoundInfo
    ways: tuple[SoundWay, ...]


def plan_sound(speech: Path, out: Path, *, duration_s: Fraction, info: SoundInfo | None = None, warn: Warn = lambda _: None) -> SoundPlan:
    """How the sound of `speech` goes into `out`, of which `duration_s` are kept.

    It is copied bit for bit where the container takes it and nothing is to be cut; what it becomes otherwise is in
    `containers.CONTAINERS` (AAC at 256 kb/s or more). Sound whose format changes on the way is decoded by lipdub and coded anew: players
    and muxers trust its beginning. info: of `speech`, None to look. warn: told where it changes, and of channels that are mixed down.

    Raises UnreadableMedia, NoAudioStream; EncodingFailed: no way works.
    """
    info = info or probe_sound(speech)
    container = container_of(out)
    if info.changes_s:
        ways = [SoundWay(container.recoded, decoded=True)]
        times = tuple((float(at), float(info.end_s)) for at in info.changes_s[:1])
        warn(DubWarning("sound-changes-format", "the format of the speech changes on the way: it was decoded and coded anew", times))
    else:
        as_it_is = info.end_s <= duration_s and info.start_s >= 0
        codec = container.sound_codec(info.codec, as_it_is=as_it_is, begins_at_zero=info.packet_s >= 0)
        ways = list(dict.fromkeys([SoundWay(codec), SoundWay(container.recoded)]))
    ways.append(SoundWay(container.recoded, decoded=True, stereo=True))
    failed: EncodingFailed | None = None
    for first, way in enumerate(ways):
        try:
            with part_file(out, hidden=may_be_hidden()) as part:
                write_sound(speech, info, way, part, duration_s=min(duration_s, _TRIED_S), out=out)
        except EncodingFailed as error:
            failed = error
            continue
        if way.stereo:
            text = f"the speech has {info.channels} channels, which do not go into {out.suffix}: it was mixed down to stereo"
            warn(DubWarning("sound-mixed-down", text))
        return SoundPlan(info, tuple(ways[first:]))
    assert failed is not None
    raise failed


def write_sound(
    speech: Path, info: SoundInfo, way: SoundWay, part: Path, *, duration_s: Fraction, out: Path, pictures: Any = None,
    others: Sequence[Any] = (), options: dict[str, object] | None = None,
) -> None:  # fmt: skip
    """Write `part`: the sound of `speech` up to `duration_s`, beside `pictures` (a stream of ffmpeg-python) and `others` if there are any.

    options: more ones of the output. out: what the file will be called, for messages. Raises EncodingFailed, WriteFailed.
    """
    with ExitStack() as stack:
        shift_s, stream = -info.origin_s, str(info.index)
        if way.decoded:
            whole = stack.enter_context(part_file(out.with_suffix(".mka"), hidden=may_be_hidden()))
            layout = "stereo" if way.stereo else info.layout
            decode_sound(speech, whole, sample_rate_hz=info.sample_rate_hz, layout=layout, until_s=duration_s)
            speech, shift_s, stream = whole, Fraction(0), "0"
        taken = ffmpeg.input(url_of(speech), itsoffset=_seconds(shift_s))[stream]
        container = container_of(out)
        given: dict[str, object] = {"c:a:0": way.codec, "format": container.muxer, **(options or {})}
        if way.codec == "copy":
            given |= {} if pictures is not None else {"t": _seconds(duration_s)}
        else:
            taken = from_zero(taken).filter("atrim", end_sample=int(duration_s * info.sample_rate_hz))
        if way.codec == "aac":
            given["b:a:0"] = f"{max(256, 96 * (2 if way.stereo else info.channels))}k"
        if info.language != "und":
            given["metadata:s:a:0"] = f"language={info.language}"
        streams = [taken] if pictures is None else [pictures, taken, *others]
        command = ffmpeg.output(*streams, url_of(part), **given)
        run_ffmpeg(command.global_args("-copyts"), out)


def from_zero(sound: Any) -> Any:
    """Sound of ffmpeg-python laid out from time zero on: silence before a late start and in gaps goes into the samples, as in `read_audio`,
    for players differ in honouring times."""
    return sound.filter("aresample", **{"async": 1, "min_hard_comp": float(GAP_S), "first_pts": 0})


def _seconds(time_s: Fraction) -> str:
    """A time as FFmpeg's options take it, in microseconds."""
    return f"{float(time_s):.6f}"
