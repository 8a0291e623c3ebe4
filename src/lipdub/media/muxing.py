"""Pictures and sound into one file, by the ffmpeg program."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ffmpeg

from lipdub.atomic import whole_file
from lipdub.errors import EncodingFailed
from lipdub.media.clock import shown_until_s
from lipdub.media.containers import container_of
from lipdub.media.facts import may_be_hidden
from lipdub.media.files import opened, url_of, video_stream
from lipdub.media.kept import NOTHING_KEPT, Kept
from lipdub.media.output import check_output
from lipdub.media.sound_plan import SoundPlan, plan_sound, write_sound
from lipdub.records import DubWarning, Warn


def mux(
    video: Path, speech: Path, out: Path, *, duration_s: Fraction, force: bool, sound: SoundPlan | None = None, kept: Kept = NOTHING_KEPT,
    warn: Warn = lambda _: None,
) -> None:  # fmt: skip
    """Write `out`: the pictures of `video` as they are, its tags and chapters, and the sound of `speech`, cut where it is longer than
    `duration_s`.

    Sound time zero is video time zero, as in `read_audio`; shorter sound stays shorter. sound: how it goes into the file, as `plan_sound`
    found before; None to find it now. kept: what else goes into the file. Where that fails after all, the plan's next way is taken, at last
    without `kept`'s streams, and `warn` is told.

    `out` appears by a rename when it is complete; after any error (Ctrl-C, too) nothing is left behind.

    Raises:
        OutputRefused: as `check_output`.
        UnreadableMedia, NoAudioStream: `speech` cannot be used.
        EncodingFailed: FFmpeg gave up (on a full disk, too); its last line is in the message.
        WriteFailed: the finished file cannot be renamed to `out`.
    """
    check_output(out, inputs=(video, speech), force=force)
    sound = sound or plan_sound(speech, out, duration_s=duration_s, warn=warn)
    ticks_per_s, shown, coded, end = _picture_times(video)
    container = container_of(out)
    pictures = ffmpeg.input(url_of(video))["v:0"]
    options: dict[str, object] = {"c:v:0": "copy"}
    if shown < end:
        lasting = f"if(eq(PTS,{shown})+eq(DTS,{coded}),{end}-PTS,min(DURATION,{end}-PTS))"
        options["bsf:v:0"] = f"setts=pts=PTS:dts=DTS:duration='{lasting}'"
    # Fine enough for the pictures' start and the encoder's lead-in of the sound.
    edit_ticks_per_s = math.lcm(ticks_per_s, sound.info.sample_rate_hz)
    options |= container.muxer_options(ticks_per_s, edit_ticks_per_s if edit_ticks_per_s < 2**31 else ticks_per_s)
    trials = [(way, kept) for way in sound.ways]
    if kept.streams:
        trials += [(way, replace(kept, streams=())) for way in sound.ways]
    for number, (way, beside) in enumerate(trials):
        try:
            with whole_file(out, hidden=may_be_hidden()) as part, beside.mapped_into(out) as (others, more):
                write_sound(
                    speech, sound.info, way, part, pictures=pictures, others=others, options=options | more, duration_s=duration_s, out=out
                )
                check_output(out, inputs=(video, speech), force=force)
            return
        except EncodingFailed as error:
            if number + 1 == len(trials):
                raise
            reason = str(error).partition(": ")[2].partition("; check")[0]
            if number + 1 == len(sound.ways):
                names = ", ".join(map(str, kept.streams))
                warn(DubWarning("left-out", f"{names} did not go into the file as planned ({reason}): the output is without"))
            else:
                text = f"the sound did not go into the file as planned ({reason}): it was coded in another way"
                warn(DubWarning("sound-coded-anew", text))


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
