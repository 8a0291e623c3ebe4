"""Pictures and sound into one file, by the ffmpeg program."""

from __future__ import annotations

import math
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from lipdub.atomic import whole_file
from lipdub.errors import EncodingFailed, NoAudioStream
from lipdub.media.clock import shown_until_s
from lipdub.media.containers import container_of
from lipdub.media.facts import OLDEST_FFMPEG, may_be_hidden, programs
from lipdub.media.files import audio_stream, opened, url_of, video_stream
from lipdub.media.output import COMMENT, check_output
from lipdub.media.sound import GAP_S, sounds


def mux(video: Path, speech: Path, out: Path, *, duration_s: Fraction, force: bool) -> None:
    """Write `out`: the pictures of `video` as they are, with the sound of `speech`, cut where it is longer than `duration_s`.

    Sound time zero is video time zero, as in `read_audio`; shorter sound stays shorter. Its sample rate and channels are
    kept. It is copied bit for bit where the container takes its codec and nothing is to be cut; what it becomes otherwise
    is in `containers.CONTAINERS` (AAC at 256 kb/s or more).

    `out` appears by a rename when it is complete; after any error (Ctrl-C, too) nothing is left behind.

    Raises:
        OutputRefused: as `check_output`.
        UnreadableMedia, NoAudioStream: `speech` cannot be used.
        EncodingFailed: FFmpeg gave up (on a full disk, too); its last line is in the message.
        WriteFailed: the finished file cannot be renamed to `out`.
    """
    check_output(out, inputs=(video, speech), force=force)
    ticks_per_s, shown, coded, end = _picture_times(video)
    container = container_of(out)
    sound = _sound_of(speech)
    pictures = ffmpeg.input(url_of(video))["v:0"]
    taken = ffmpeg.input(url_of(speech), itsoffset=_seconds(-sound.origin_s))[str(sound.index)]
    as_it_is = sound.end_s <= duration_s and sound.start_s >= 0
    codec = container.sound_codec(sound.codec, as_it_is=as_it_is, begins_at_zero=sound.packet_s >= 0)
    options: dict[str, object] = {"c:v": "copy", "c:a": codec, "format": container.muxer, "metadata": f"comment={COMMENT}"}
    if shown < end:
        lasting = f"if(eq(PTS,{shown})+eq(DTS,{coded}),{end}-PTS,min(DURATION,{end}-PTS))"
        options["bsf:v"] = f"setts=pts=PTS:dts=DTS:duration='{lasting}'"
    if codec != "copy":
        # silence before a late start and in gaps goes into the samples, as in read_audio: players differ in honouring times
        taken = taken.filter("aresample", **{"async": 1, "min_hard_comp": float(GAP_S), "first_pts": 0})
        taken = taken.filter("atrim", end_sample=int(duration_s * sound.sample_rate_hz))
    if codec == "aac":
        options["b:a"] = f"{max(256, 96 * sound.channels)}k"
    # Fine enough for the pictures' start and the encoder's lead-in of the sound.
    edit_ticks_per_s = math.lcm(ticks_per_s, sound.sample_rate_hz)
    options |= container.muxer_options(ticks_per_s, edit_ticks_per_s if edit_ticks_per_s < 2**31 else ticks_per_s)
    with whole_file(out, hidden=may_be_hidden()) as part:
        command = ffmpeg.output(pictures, taken, url_of(part), map_chapters=-1, **options)
        run(command.global_args("-copyts"), out)
        check_output(out, inputs=(video, speech), force=force)


def _picture_times(video: Path) -> tuple[int, int, int, int]:
    """Of the pictures of `video`: ticks per second, and the ticks when the last is shown, the last is decoded, and they end.

    A plain copy would change the length of a video with B-frames or a variable rate: an .mp4 keeps durations in order of
    decoding, and some versions of FFmpeg replace them by their average. See also `Writer._finish`.
    """
    with opened(video) as container:
        stream = video_stream(container, video)
        assert stream.time_base is not None
        shown = coded = 0
        for packet in container.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                shown, coded = max(shown, packet.pts), packet.dts
        end = round((shown_until_s(container, stream, Fraction(0)) or Fraction(0)) / stream.time_base)
        return stream.time_base.denominator, shown, coded, end


@dataclass(frozen=True, slots=True)
class _Sound:
    """What `mux` must know of a sound stream; times in seconds from time zero.

    index: of the stream in its file.
    codec: by FFmpeg's name.
    origin_s: time zero on the file's own clock.
    packet_s: where the coded sound starts, an encoder's lead-in that nobody hears included.
    start_s, end_s: of the sound that is heard.
    """

    index: int
    codec: str
    sample_rate_hz: int
    channels: int
    origin_s: Fraction
    packet_s: Fraction
    start_s: Fraction
    end_s: Fraction


def _sound_of(path: Path) -> _Sound:
    """The facts of the sound of `path`; it is decoded to its end. Raises UnreadableMedia, NoAudioStream."""
    with opened(path) as container:
        stream = audio_stream(container, path)
        packet = next(container.demux(stream))
        packet_s = Fraction(0) if packet.pts is None else packet.pts * packet.time_base
    with opened(path) as container:
        stream = audio_stream(container, path)
        context = stream.codec_context
        start_s: Fraction | None = None
        origin_s = end_s = Fraction(0)
        for time_s, frame in sounds(container, stream):
            if start_s is None:
                start_s = time_s
                if frame.pts is not None and frame.time_base is not None:
                    origin_s = frame.pts * frame.time_base - time_s
            end_s = time_s + Fraction(frame.samples, frame.sample_rate)
        if start_s is None or end_s <= 0:
            raise NoAudioStream(f"the sound of '{path}' has no samples; give a file with speech in it")
        return _Sound(
            index=stream.index,
            codec=context.codec.canonical_name,
            sample_rate_hz=context.sample_rate,
            channels=context.channels,
            origin_s=origin_s,
            packet_s=packet_s - origin_s,
            start_s=start_s,
            end_s=end_s,
        )


def _seconds(time_s: Fraction) -> str:
    """A time as FFmpeg's options take it, in microseconds."""
    return f"{float(time_s):.6f}"


def run(command: Any, out: Path) -> None:
    """Run FFmpeg to its end, for ffmpeg-python's `command`, which writes `out`; whatever interrupts us ends it, too.

    Where the first program that is new enough fails, the next one tries: one from a sandbox (snap) may read and write some folders only.

    Raises EncodingFailed with the last program's own words.
    """
    command = command.global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-y")
    *others, last = _programs()
    for program in others:
        with suppress(EncodingFailed):
            return _run(ffmpeg.compile(command, cmd=program), out)
    return _run(ffmpeg.compile(command, cmd=last), out)


def _programs() -> list[str]:
    """The FFmpeg programs that are new enough, the preferred one first. Raises EncodingFailed: there is none."""
    found = [program.path for program in programs() if program.new_enough]
    if not found:
        raise EncodingFailed(f"there is no ffmpeg program of version {OLDEST_FFMPEG} or later; install FFmpeg")
    return found


def _run(command: list[str], out: Path) -> None:
    """Run one program to its end. Raises EncodingFailed with its first line."""

    def start() -> subprocess.Popen[bytes]:
        # a session of its own: Ctrl-C comes to us alone, and we end the program
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    # Another thread starts it: Ctrl-C would break off the start itself here, and leave a program that nobody knows.
    with ThreadPoolExecutor(1) as starter:
        started = starter.submit(start)
        try:
            process = started.result()
            _, said = process.communicate()
        except OSError as error:
            raise EncodingFailed(
                f"cannot write '{out}': '{command[0]}' does not start ({error.strerror or error}); install FFmpeg"
            ) from error
        except BaseException:
            process = started.result()
            process.kill()
            process.communicate()
            raise
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"ffmpeg ended with code {process.returncode}"]
        # The first line names the cause; newer programs end with "Error opening output files".
        raise EncodingFailed(f"cannot write '{out}': {lines[0].strip()}; check the free space and the inputs, then run again")
