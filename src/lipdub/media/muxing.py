"""Pictures and sound into one file, by the ffmpeg program."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import ffmpeg

from lipdub.atomic import whole_file
from lipdub.errors import EncodingFailed
from lipdub.media.clock import shown_until_s
from lipdub.media.containers import container_of
from lipdub.media.facts import may_be_hidden
from lipdub.media.files import opened, url_of, video_stream
from lipdub.media.output import COMMENT, check_output
from lipdub.media.sound_plan import SoundPlan, plan_sound, write_sound
from lipdub.records import DubWarning, Warn


def mux(
    video: Path, speech: Path, out: Path, *, duration_s: Fraction, force: bool, sound: SoundPlan | None = None, warn: Warn = lambda _: None
) -> None:
    """Write `out`: the pictures of `video` as they are, with the sound of `speech`, cut where it is longer than `duration_s`.

    Sound time zero is video time zero, as in `read_audio`; shorter sound stays shorter. sound: how it goes into the file, as `plan_sound`
    found before; None to find it now. Where that fails after all, the plan's next way is taken, and `warn` is told.

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
    options: dict[str, object] = {"c:v": "copy", "metadata": f"comment={COMMENT}", "map_chapters": -1}
    if shown < end:
        lasting = f"if(eq(PTS,{shown})+eq(DTS,{coded}),{end}-PTS,min(DURATION,{end}-PTS))"
        options["bsf:v"] = f"setts=pts=PTS:dts=DTS:duration='{lasting}'"
    # Fine enough for the pictures' start and the encoder's lead-in of the sound.
    edit_ticks_per_s = math.lcm(ticks_per_s, sound.info.sample_rate_hz)
    options |= container.muxer_options(ticks_per_s, edit_ticks_per_s if edit_ticks_per_s < 2**31 else ticks_per_s)
    for number, way in enumerate(sound.ways):
        try:
            with whole_file(out, hidden=may_be_hidden()) as part:
                write_sound(speech, sound.info, way, part, pictures=pictures, options=options, duration_s=duration_s, out=out)
                check_output(out, inputs=(video, speech), force=force)
            return
        except EncodingFailed as error:
            if number + 1 == len(sound.ways):
                raise
            reason = str(error).partition(": ")[2].partition("; check")[0]
            warn(DubWarning("sound-coded-anew", f"the sound did not go into the file as planned ({reason}): it was coded in another way"))


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
