"""What is heard in the output, where that is not the speech as it is: faster or slower, begun later or earlier, and with music under
it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import ffmpeg

from lipdub.atomic import part_file
from lipdub.media.facts import may_be_hidden
from lipdub.media.files import url_of
from lipdub.media.program import run_ffmpeg
from lipdub.media.sound import SoundInfo, decode_sound, probe_sound
from lipdub.media.sound_plan import from_zero

_KEPT_WHOLE: Final = {"format": "matroska", "c:a": "flac", "sample_fmt": "s32"}
_UNHEARD_LUFS: Final = -70.0
"""Of sound of which nothing passes the gate of EBU R128."""
_PEAK: Final = 0.97
"""Louder moments of a mix are turned down to this."""


@contextmanager
def stretched(sound: Path, info: SoundInfo, out: Path, *, tempo: Fraction) -> Iterator[tuple[Path, SoundInfo]]:
    """`sound` spoken `tempo` times as fast at its own pitch, from time zero on: a file beside `out` that is removed at the end, and what it
    is; with a tempo of 1 the sound itself.

    Raises EncodingFailed, WriteFailed.
    """
    if tempo == 1:
        yield sound, info
        return
    with part_file(out.with_suffix(".mka"), hidden=may_be_hidden()) as part:
        taken = from_zero(ffmpeg.input(url_of(sound), itsoffset=f"{float(-info.origin_s):.6f}")[str(info.index)])
        command = ffmpeg.output(taken.filter("atempo", f"{float(tempo):.6f}"), url_of(part), **_KEPT_WHOLE)
        run_ffmpeg(command.global_args("-copyts"), out)
        yield part, replace(probe_sound(part), language=info.language)


@dataclass(frozen=True, slots=True)
class Laid:
    """A sound that is laid under another: how much louder, and when it begins in the output, below 0 for what has begun before."""

    path: Path
    gain_db: float = 0.0
    offset_s: Fraction = Fraction(0)


@contextmanager
def arranged(
    speech: Path,
    info: SoundInfo,
    out: Path,
    *,
    offset_s: Fraction,
    until_s: Fraction,
    under: Sequence[Laid] = (),
    lufs: float | None = None,
) -> Iterator[tuple[Path, SoundInfo]]:
    """The sound of an output and what it is, up to `until_s`: `speech` itself, or a file beside `out` that is removed at the end.

    info: of the speech. offset_s: the speech begins so much later. under: what is laid under it. lufs: loudness that all of it is
    brought to (EBU R128; ITU-R BS.1770), peaks limited; sound of which nothing is heard stays as it is.

    Raises UnreadableMedia, NoAudioStream, EncodingFailed, WriteFailed.
    """
    if not under and not offset_s and lufs is None:
        yield speech, info
        return
    with ExitStack() as stack:

        def heard(path: Path, of: SoundInfo) -> Any:
            if of.changes_s:  # a program trusts its beginning
                whole = stack.enter_context(part_file(out.with_suffix(".mka"), hidden=may_be_hidden()))
                decode_sound(path, whole, sample_rate_hz=of.sample_rate_hz, layout=of.layout, until_s=until_s)
                path, of = whole, replace(of, index=0, origin_s=Fraction(0))
            return from_zero(ffmpeg.input(url_of(path), itsoffset=f"{float(-of.origin_s):.6f}")[str(of.index)])

        layers = [(Laid(speech, 0.0, offset_s), info), *((laid, probe_sound(laid.path)) for laid in under)]
        rate_hz = max(of.sample_rate_hz for _, of in layers)
        layout = max((of for _, of in layers), key=lambda of: of.channels).layout
        sounds = []
        for laid, of in layers:
            sound = heard(laid.path, of)
            if moved := round(laid.offset_s * of.sample_rate_hz):
                later, earlier = {"delays": f"{moved}S", "all": 1}, {"start_sample": -moved}
                sound = sound.filter("adelay", **later) if moved > 0 else sound.filter("atrim", **earlier).filter("asetpts", "PTS-STARTPTS")
            if laid.gain_db:
                sound = sound.filter("volume", f"{laid.gain_db}dB")
            sounds.append(sound.filter("aformat", sample_rates=rate_hz, channel_layouts=layout) if under else sound)
        (sound, *more) = sounds
        if more:
            mixed = ffmpeg.filter(sounds, "amix", inputs=len(sounds), normalize=0)
            sound = mixed.filter("alimiter", limit=_PEAK, level=0, latency=1)
        sound = sound.filter("atrim", end_sample=int(until_s * rate_hz))
        part = stack.enter_context(part_file(out.with_suffix(".mka"), hidden=may_be_hidden()))
        command = ffmpeg.output(sound, url_of(part), **_KEPT_WHOLE)
        run_ffmpeg(command.global_args("-copyts"), out)
        if lufs is not None and (now := loudness_of(part, out)) > _UNHEARD_LUFS:
            louder = ffmpeg.input(url_of(part))["0"].filter("volume", f"{lufs - now:.2f}dB")
            louder = louder.filter("alimiter", limit=_PEAK, level=0, latency=1)
            part = stack.enter_context(part_file(out.with_suffix(".mka"), hidden=may_be_hidden()))
            run_ffmpeg(ffmpeg.output(louder, url_of(part), **_KEPT_WHOLE).global_args("-copyts"), out)
        yield part, replace(probe_sound(part), language=info.language)


def loudness_of(sound: Path, out: Path) -> float:
    """Integrated loudness of a sound, LUFS (EBU R128, gated); -70 for silence. out: beside it the program's words lie for a moment.

    Raises EncodingFailed, WriteFailed.
    """
    with part_file(out.with_suffix(".txt"), hidden=may_be_hidden()) as told:
        metered = ffmpeg.input(url_of(sound))["0"].filter("ebur128", metadata=1)
        said = metered.filter("ametadata", mode="print", key="lavfi.r128.I", file=str(told))
        run_ffmpeg(ffmpeg.output(said, "-", format="null"), out)
        found = [value for line in told.read_text().splitlines() for _, equals, value in [line.partition("=")] if equals]
    return float(found[-1]) if found else _UNHEARD_LUFS
