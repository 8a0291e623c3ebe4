"""The parts of a dub: whose mouth moves by which sound. One for most dubs, one for each person where several are dubbed in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from lipdub import media
from lipdub.errors import NoAudioStream, OutputRefused
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.media.sound import SoundInfo
from lipdub.options import DubOptions, FaceChoice, Voice
from lipdub.records import Warn

SAME_SHARE = 0.5
"""Two faces that are one in more of their frames than this are of one person."""


@dataclass(frozen=True, slots=True)
class Part:
    """face: None for who is most prominent in each shot. audible: what the output carries of this person, and `sound`, what it is. heard:
    what the lips follow."""

    face: FaceChoice | None
    audible: Path
    sound: SoundInfo
    heard: Path

    @property
    def name(self) -> str:
        """The part as a user knows it."""
        return f"the face that speaks '{self.audible.name}'"


def parts_of(speech: Path, options: DubOptions, warn: Warn) -> tuple[Part, ...]:
    """The parts that are asked for, the one of `speech` first. Raises UnreadableMedia; NoAudioStream: nothing of a speech is left."""
    others = () if options.also is None else Voice.others(options.also)
    face = FaceChoice.of(options.face) if options.face is not None else FaceChoice(1) if others else None
    found = []
    for one, place in ((face, speech), *((other.face, Path(other.speech)) for other in others)):
        sound = media.probe_sound(place, warn)
        if sound.end_s + Fraction(options.offset_ms, 1000) <= 0:
            raise NoAudioStream(f"--offset-ms {options.offset_ms} leaves nothing of '{place}', which lasts {float(sound.end_s):.1f} s")
        found.append(Part(one, place, sound, place))
    if options.driver is not None:
        driver = Path(options.driver)
        media.probe_sound(driver, warn)
        found[0] = replace(found[0], heard=driver)
    return tuple(found)


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
            found.append(replace(part, audible=audible, sound=sound, heard=heard))
        yield tuple(found)


def require_different(parts: Sequence[Part], tracks: Sequence[FaceTrack]) -> None:
    """Raise OutputRefused where two parts are of one face."""
    for number, track in enumerate(tracks):
        for before, other in enumerate(tracks[:number]):
            both = (track.status == DUBBED) & (other.status == DUBBED)
            alike = both & (np.abs(track.similarity - other.similarity).max(axis=1) < 1e-9)
            if both.any() and alike.sum() > SAME_SHARE * both.sum():
                raise OutputRefused(f"{parts[before].name} and {parts[number].name} are one; lipdub faces shows who is there")
