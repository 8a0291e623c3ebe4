"""What becomes of the frames of an output: which are redrawn, which are passed through and why, and whether it speaks at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub.errors import NoFaceFound
from lipdub.faces.people import moving
from lipdub.faces.track import DUBBED, NO_FACE, WHY, FaceTrack, runs
from lipdub.media import PictureEncoder
from lipdub.options import Silence
from lipdub.records import NOTHING_DUBBED, DubWarning, Span, VideoInfo
from lipdub.speech.lip_track import LipTrack
from lipdub.speech.pauses import Pauses
from lipdub.timeline import Timeline, amounts
from lipdub.times import Range

OUTSIDE, AT_REST = 255, 254
"""Status of frames that are not to be redrawn: by --ranges, and by --only-when-speaking."""
NOT_ASKED = {OUTSIDE: "outside of the ranges", AT_REST: "nobody speaks"}
BESIDE_S = 0.3
"""A mouth is redrawn for so long before and after it or the speech moves."""
HDR_TRANSFERS = (16, 18)
"""PQ and HLG (ITU-T H.273, table 3)."""
QUIET_GAIN = 4.0
"""Speech that has to be raised by more to be heard, 12 dB, may not be what was meant."""


def status_of(track: FaceTrack, shown: Timeline, amount: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """The status of each frame of the output, uint8 (K,). amount: how far each is to be redrawn, None for wholly."""
    status = track.status[shown.source]
    return status if amount is None else np.where(amount > 0, status, np.uint8(OUTSIDE))


def speaking(track: FaceTrack, shown: Timeline, lips: LipTrack) -> NDArray[np.float32]:
    """How far each frame of the output is to be redrawn where only those are in which the source's lips move or the speech sounds."""
    active = ~lips.in_pause | moving(track.opening, track.step_s)[shown.source]
    times_s, edges = shown.times_s, np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return amounts(times_s, [Range(max(0.0, times_s[first] - BESIDE_S), times_s[end - 1] + BESIDE_S) for first, end in edges.tolist()])


def at_rest(status: NDArray[np.uint8], spoken: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """The status of frames (K,) where only those that `speaking` found are redrawn; as it is for None."""
    return status if spoken is None else np.where((status == DUBBED) & (spoken == 0), np.uint8(AT_REST), status)


def together(each: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The status of frames in which several people are dubbed, uint8 (K,): dubbed where one of them is, else that of the first."""
    dubbed = np.logical_or.reduce([one == DUBBED for one in each])
    return np.where(dubbed, np.uint8(DUBBED), each[0])


def require_faces(track: FaceTrack, video: Path) -> None:
    """No face at all is an error; a face that cannot be dubbed is passed through."""
    if (track.status == NO_FACE).all():
        raise NoFaceFound(f"no face in '{video}'; lipdub needs a face that is at least about 40 pixels high and looks at the camera")


def require_all(spans: tuple[Span, ...], video: Path) -> None:
    """With --strict no frame may be passed through that was to be dubbed."""
    failed = [span for span in spans if span.why not in NOT_ASKED.values()]
    if failed:
        raise NoFaceFound(
            f"'{video}' has {sum(s.end - s.first for s in failed)} frames that cannot be dubbed, the first at {failed[0].start_s:.2f} s "
            f"({failed[0].why}); leave --strict away to pass them through"
        )


def nothing_dubbed(
    status: NDArray[np.uint8], lips: LipTrack, pauses: Pauses, spans: tuple[Span, ...], silence: Silence
) -> list[DubWarning]:
    """The warning that the output does not speak, where that is so. status: of the output's frames."""
    dubbed = status == DUBBED
    if not dubbed.any():
        why = " and ".join(sorted({span.why for span in spans}))
        return [DubWarning(NOTHING_DUBBED, f"nothing was dubbed, for no frame can be ({why}); the output shows the source untouched")]
    if not lips.in_pause[dubbed].all():
        return []
    if silence == "keep":
        text = "nothing was dubbed, for the speech pauses in all that could be; the output shows the source untouched"
        return [DubWarning(NOTHING_DUBBED, text)]
    if silence == "close" and pauses.sounds and lips.in_pause.all():
        text = "nothing was dubbed, for the sound is taken for one long pause; listen to it, or draw what is heard by --silence off"
        return [DubWarning(NOTHING_DUBBED, text)]
    if not lips.in_pause.all():
        text = "nothing was dubbed, for the speech sounds only where no face can be; the mouth rests in all that was redrawn"
        return [DubWarning(NOTHING_DUBBED, text)]
    return []


def silence_warnings(names: Sequence[str], each: Sequence[list[DubWarning]]) -> list[DubWarning]:
    """Of what `nothing_dubbed` says of each person: that the output does not speak where none does, else who does not."""
    if all(each):
        return each[0]
    return [
        DubWarning("face-not-dubbed", f"{name} does not speak: {warning.text}")
        for name, found in zip(names, each, strict=True)
        for warning in found
    ]


def what_is_lost(info: VideoInfo, encoder: PictureEncoder) -> list[DubWarning]:
    """The warnings of what the output, which `encoder` makes, cannot hold of a video's pictures."""
    found = []
    if info.is_transparent:
        found.append(DubWarning("transparency", "transparent parts of the picture are laid on white"))
    if info.bits > encoder.bits and not info.is_still:
        hdr = ", high dynamic range" if info.color.transfer in HDR_TRANSFERS else ""
        bands = "; smooth gradients may band" if encoder.bits == 8 else ""
        kept = f"the output has {encoder.bits} by {encoder.name}, with the same colour tags{bands}"
        found.append(DubWarning("fewer-bits", f"the pictures have {info.bits} bits a colour{hdr}: {kept}"))
    unsaid = {"mastering display": info.hdr.display, "content light level": info.hdr.light} if encoder.hdr is None else {}
    if left_out := [*(name for name, value in unsaid.items() if value is not None), *info.hdr.others]:
        text = f"metadata of high dynamic range that are left out: {', '.join(left_out)}; the colour tags are kept"
        found.append(DubWarning("hdr-metadata", text))
    if info.is_interlaced:
        text = "the pictures are interlaced: both fields stay woven in each picture; deinterlace the video before if it shows combs"
        found.append(DubWarning("interlaced", text))
    return found


def too_quiet(pauses: Pauses) -> list[DubWarning]:
    """The warning that a speech had to be raised to be heard, where that is so."""
    if pauses.gain <= QUIET_GAIN:
        return []
    text = f"the speech is quiet: it is heard {20 * math.log10(pauses.gain):.0f} dB louder, and goes into the output as it is"
    return [DubWarning("quiet-speech", text)]


def kept_on_top(tracks: Sequence[FaceTrack], status: Sequence[NDArray[np.uint8]], shown: Timeline) -> list[DubWarning]:
    """The warning that graphics lie before mouths that are redrawn, where there are any. status: of each of the people, (K,)."""
    over = np.zeros(len(shown), bool)
    for track, of in zip(tracks, status, strict=True):
        covered = np.zeros(len(track), bool)
        for first, end in track.overlays.spans[:, :2].tolist():
            covered[first:end] = True
        over |= covered[shown.source] & (of == DUBBED)
    times_s = [*shown.times_s.tolist(), float(shown.duration_s)]
    times = tuple((times_s[first], times_s[end]) for first, end in runs(over.astype(np.int64)) if over[first])
    text = "a caption or a logo lies before the mouth: it is kept on top, and what it hides is as it was"
    return [DubWarning("overlay-kept", text, times)] if times else []


def passed_through(status: NDArray[np.uint8], shown: Timeline) -> tuple[Span, ...]:
    """Stretches of the output that were passed through, in output frames and times. status: of its frames."""
    times_s = [*shown.times_s.tolist(), float(shown.duration_s)]
    why = {**WHY, **NOT_ASKED}
    return tuple(
        Span(first, end, times_s[first], times_s[end], why[int(status[first])])
        for first, end in runs(status.astype(np.int64))
        if status[first] != DUBBED
    )
