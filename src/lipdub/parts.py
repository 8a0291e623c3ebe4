"""The parts of a dub: whose mouth moves by which sound, and what of all sounds is heard. One part for most dubs, one for each person where
several are dubbed in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.errors import NoAudioStream, OutputRefused
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.media.sound import SoundInfo
from lipdub.options import DubOptions, FaceChoice, Mix, Voice
from lipdub.records import DubWarning, Warn
from lipdub.speech.lip_curves import LipCurves, read_curves
from lipdub.timeline import tempo_for
from lipdub.times import Range

SAME_SHARE = 0.5
"""Two faces that are one in more of their frames than this are of one person."""
MISSED_S = 0.1
"""A stretched speech that misses the end of the picture by less fits."""


@dataclass(frozen=True, slots=True)
class Part:
    """face: None for who is most prominent in each shot. audible: what the output carries of this person, and `sound`, what it is. heard:
    what the lips follow. ranges: when this person is redrawn, None for always. curves: what the lips do instead, by the times of the speech
    before it was spoken `tempo` times as fast."""

    face: FaceChoice | None
    audible: Path
    sound: SoundInfo
    heard: Path
    ranges: tuple[Range, ...] | None = None
    curves: LipCurves | None = None
    tempo: Fraction = Fraction(1)

    @property
    def name(self) -> str:
        """The part as a user knows it."""
        return f"the face that speaks '{self.audible.name}'"

    def curves_at(self, times_s: NDArray[np.float64]) -> NDArray[np.float32] | None:
        """What the lips do at times (n,) of the sound, as ``listen`` takes it."""
        return None if self.curves is None else self.curves.at(times_s * float(self.tempo))

    def curves_missed(self, painted: int) -> list[DubWarning]:
        """The warning that the curves are in vain in so many frames, where there are both."""
        if self.curves is None or not painted:
            return []
        text = f"--lips moves nothing in {painted} frames, whose mouths are painted by the network; --draw warp draws the person's own"
        return [DubWarning("lips-painted", text)]


def parts_of(speech: Path, options: DubOptions, warn: Warn) -> tuple[Part, ...]:
    """The parts that are asked for, the one of `speech` first. Raises UnreadableMedia; NoAudioStream: nothing of a speech is left;
    CurvesInvalid."""
    others = () if options.also is None else Voice.others(options.also)
    face = FaceChoice.of(options.face) if options.face is not None else FaceChoice(1) if others else None
    ranges = [None] if options.ranges is None else media.ranges_of(options.ranges)
    found = []
    for number, (one, place) in enumerate(((face, speech), *((other.face, Path(other.speech)) for other in others))):
        sound = media.probe_sound(place, warn)
        if sound.end_s + Fraction(options.offset_ms, 1000) <= 0:
            raise NoAudioStream(f"--offset-ms {options.offset_ms} leaves nothing of '{place}', which lasts {float(sound.end_s):.1f} s")
        found.append(Part(one, place, sound, place, ranges[min(number, len(ranges) - 1)]))
    if options.driver is not None:
        driver = Path(options.driver)
        media.probe_sound(driver, warn)
        found[0] = replace(found[0], heard=driver)
    if options.lips is not None:
        if options.draw == "paint":
            raise OutputRefused("--lips moves nothing where mouths are painted by the network; leave out one of --lips and --draw paint")
        found[0] = replace(found[0], curves=read_curves(Path(options.lips)))
    return tuple(found)


def tempo_of(parts: Sequence[Part], room_s: Fraction, warn: Warn) -> Fraction:
    """How many times as fast the parts are to be spoken for the longest to last `room_s`. warn: told where that is more than is done."""
    longest_s = max(part.sound.end_s for part in parts)
    tempo = tempo_for(longest_s, room_s)
    if abs(left_s := longest_s / tempo - room_s) > MISSED_S:
        how = f"{abs(float(tempo) - 1):.0%} {'faster' if tempo > 1 else 'slower'}"
        left = f"{abs(float(left_s)):.1f} s {'longer' if left_s > 0 else 'shorter'}"
        lengths = f"the speech lasts {float(longest_s):.1f} s for {float(room_s):.1f} s of picture"
        warn(DubWarning("speech-stretched", f"{lengths}: spoken {how}, the most that is done, it is still {left}"))
    return tempo


@contextmanager
def stretched(parts: Sequence[Part], out: Path, *, tempo: Fraction) -> Iterator[tuple[Part, ...]]:
    """The parts spoken `tempo` times as fast, in files beside `out` that are removed at the end. Raises EncodingFailed, WriteFailed."""
    with ExitStack() as stack:
        found = []
        for part in parts:
            audible, sound = stack.enter_context(media.stretched(part.audible, part.sound, out, tempo=tempo))
            heard = audible
            if part.heard != part.audible:
                heard, _ = stack.enter_context(media.stretched(part.heard, media.probe_sound(part.heard), out, tempo=tempo))
            found.append(replace(part, audible=audible, sound=sound, heard=heard, tempo=tempo))
        yield tuple(found)


def arranged(
    parts: Sequence[Part], options: DubOptions, out: Path, *, offset_s: Fraction, until_s: Fraction
) -> AbstractContextManager[tuple[Path, SoundInfo]]:
    """What is heard of all parts and of --mix, as ``media.arranged`` gives it."""
    under = [media.Laid(part.audible, offset_s=offset_s) for part in parts[1:]]
    if options.mix is not None:
        mix = Mix.of(options.mix)
        under.append(media.Laid(Path(mix.path), mix.gain_db))
    first = parts[0]
    return media.arranged(first.audible, first.sound, out, offset_s=offset_s, until_s=until_s, under=under, lufs=options.loudness)


def require_different(parts: Sequence[Part], tracks: Sequence[FaceTrack]) -> None:
    """Raise OutputRefused where two parts are of one face."""
    for number, track in enumerate(tracks):
        for before, other in enumerate(tracks[:number]):
            both = (track.status == DUBBED) & (other.status == DUBBED)
            alike = both & (np.abs(track.similarity - other.similarity).max(axis=1) < 1e-9)
            if both.any() and alike.sum() > SAME_SHARE * both.sum():
                raise OutputRefused(f"{parts[before].name} and {parts[number].name} are one; lipdub faces shows who is there")
