"""``listen``: a whole speech as lip motion, before a pixel is drawn. The only place that turns sound into lips."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.bundles.bundle import POINTS, BundleSpec
from lipdub.row_file import RowFile
from lipdub.speech.memory import Memory, Recalls
from lipdub.speech.mouth_shapes import reshaped
from lipdub.speech.pauses import Pauses, brought, pauses_of
from lipdub.speech.voice import open_voice
from lipdub.speech.windows import SpeechWindows, windows_of
from lipdub.stages import cores, spread

SAMPLE_RATE_HZ = 16000
"""Of the sound as encoders and memories take it."""
BLOCK_FRAMES = 64
"""Moments that are recalled together: a second or two, so that cores share a short speech, too."""
PAUSE = 0.5
"""From this silence on a moment counts as a pause."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Lips:
    """Lip motion at N moments of a speech."""

    feature: NDArray[np.float32]
    """(N, C), the lip feature that the generator draws."""
    silence: NDArray[np.float32]
    """(N,), how far each moment is a pause, from 0 (sounding) to 1 (silent)."""
    points: NDArray[np.float32] | None
    """(N, 40, 2), lip points relative to the closed mouth, unit crop; None from a bundle that does not tell."""
    address: NDArray[np.float32] | None = None
    """(N, slots), the share of each memory slot; not kept in a `LipTrack`."""

    def __len__(self) -> int:
        return len(self.feature)

    def at_rest_in_pauses(self, rest_feature: NDArray[np.float32]) -> Lips:
        """The same, with the resting mouth, whose feature is (C,), taking over as far as the speech pauses."""
        feature = self.feature + self.silence[:, None] * (rest_feature - self.feature)
        points = None if self.points is None else self.points * (1 - self.silence)[:, None, None]
        return Lips(feature, self.silence, points, self.address)

    def pausing(self, pause: NDArray[np.float32]) -> Lips:
        """The same, pausing as far as `pause` (N,) says; as it is where that is NaN."""
        return replace(self, silence=np.where(np.isnan(pause), self.silence, pause))

    def moved(self, strength: float, rest_feature: NDArray[np.float32]) -> Lips:
        """The same, moved `strength` times as far from the resting mouth, whose feature is (C,)."""
        points = None if self.points is None else strength * self.points
        return Lips(rest_feature + strength * (self.feature - rest_feature), self.silence, points, self.address)


class LipTrack:
    """Lip motion at each frame of an output, in order; N frames. Lies in an unnamed temporary file, so that memory does not grow with
    the speech. For one thread at a time.

    strength: how far the lips were moved, times what was heard. rests: whether the mouth rests in pauses. shapes: float32 (N, 8), in the
    order of ``SHAPES``, what the lips are to look like before they are moved so far; NaN where, and None if, they are as heard."""

    def __init__(self, spec: BundleSpec, strength: float = 1.0, shapes: NDArray[np.float32] | None = None, *, rests: bool = False) -> None:
        self.strength, self.rests = strength, rests
        self._shapes = shapes
        self._columns = np.cumsum([spec.lip_channels, 1, 2 * POINTS if spec.points else 0]).tolist()
        self.has_points = spec.points
        """Whether the bundle tells where the lips lie."""
        self._rows = RowFile(self._columns[-1])
        self._in_pause: list[NDArray[np.bool_]] = []

    def __len__(self) -> int:
        return self._rows.count

    def __repr__(self) -> str:
        return f"LipTrack(frames={len(self)}, pauses={self.pauses})"

    def add(self, lips: Lips) -> None:
        """Put the next moments at the end; their addresses are not kept."""
        points = [] if lips.points is None else [lips.points.reshape(len(lips), 2 * POINTS)]
        self._rows.extend(np.column_stack([lips.feature, lips.silence, *points]))
        self._in_pause.append(lips.silence > PAUSE)

    @property
    def in_pause(self) -> NDArray[np.bool_]:
        """Which frames count as pauses, (N,)."""
        return np.concatenate([np.zeros(0, np.bool_), *self._in_pause])

    @property
    def pauses(self) -> int:
        """How many frames count as pauses."""
        return int(self.in_pause.sum())

    def frames(self, first: int, end: int) -> Lips:
        """The frames [first, end), with the shapes that are asked for."""
        lips = self.heard(first, end)
        if self._shapes is None or lips.points is None or not self.strength:
            return lips
        points = self.strength * reshaped(lips.points / np.float32(self.strength), self._shapes[first:end])
        return replace(lips, points=points)

    def heard(self, first: int, end: int) -> Lips:
        """The frames [first, end) as heard."""
        feature, silence, points, _ = np.split(self._rows.rows(np.arange(first, end)), self._columns, axis=1)
        return Lips(feature, silence[:, 0], points.reshape(end - first, POINTS, 2) if self.has_points else None)

    def close(self) -> None:
        """Give the file back."""
        self._rows.close()


def lips_of(windows: SpeechWindows, memory: Recalls) -> Lips:
    """What `memory` recalls for the moments that the windows belong to."""
    recall = memory.recall(windows.windows)
    points = None
    if recall.lip_points is not None:
        flat = recall.lip_points.reshape(len(recall), 2 * POINTS)
        points = windows.mean(flat).reshape(len(windows.silence), POINTS, 2)
    return Lips(windows.mean(recall.lip_feature), windows.silence, points, windows.mean(recall.address))


def pauses_in(speech: Path) -> Pauses:
    """Where `speech` pauses, and how much louder it is to be heard; it is read to its end. Raises UnreadableMedia, NoAudioStream."""
    return pauses_of(lambda: media.read_audio(speech, SAMPLE_RATE_HZ), open_voice())


def lips_at(speech: Path, memory: Memory, times_s: NDArray[np.float64], pauses: Pauses | None = None) -> Generator[Lips, None, None]:
    """The lip motion that `speech` asks for at the times `times_s` (N,), float64, rising: some moments at a time, in order.

    pauses: as `pauses_in` found them; None to find them first.

    Raises UnreadableMedia, NoAudioStream, BundleInvalid.
    """
    if not len(times_s):
        return
    pauses = pauses_in(speech) if pauses is None else pauses
    with closing(media.read_audio(speech, SAMPLE_RATE_HZ)) as blocks_of_sound:
        sound = memory.track(brought(blocks_of_sound, pauses.gain))
        blocks = (times_s[first : first + BLOCK_FRAMES] for first in range(0, len(times_s), BLOCK_FRAMES))
        windows = (windows_of(block, memory.spec, sound, pauses) for block in blocks)
        with closing(spread(lambda block: lips_of(block, memory), windows, workers=cores())) as pieces:
            yield from pieces


def listen(
    speech: Path,
    memory: Memory,
    times_s: NDArray[np.float64],
    *,
    pauses: Pauses | None = None,
    rest_in_pauses: bool,
    strength: float = 1.0,
    curves: NDArray[np.float32] | None = None,
    on_frames: Callable[[int], None] | None = None,
) -> LipTrack:
    """The lip motion that `speech` asks for at the times `times_s` (N,), float64, rising; the caller closes it.

    pauses: as for `lips_at`. rest_in_pauses: the resting mouth takes over where the speech pauses. strength: how far the lips move, times
    what is heard. curves: float32 (N, 9), a pause and shapes in the place of what is heard, NaN where they stay. on_frames: told how many
    frames each step took.

    Raises UnreadableMedia, NoAudioStream, BundleInvalid.
    """
    track = LipTrack(memory.spec, strength, None if curves is None else curves[:, 1:], rests=rest_in_pauses)
    rest = np.asarray(memory.spec.rest_feature, np.float32)
    try:
        with closing(lips_at(speech, memory, times_s, pauses)) as pieces:
            for lips in pieces:
                if curves is not None:
                    lips = lips.pausing(curves[len(track) : len(track) + len(lips), 0])
                lips = lips.at_rest_in_pauses(rest) if rest_in_pauses else lips
                track.add(lips if strength == 1 else lips.moved(strength, rest))
                if on_frames is not None:
                    on_frames(len(lips))
    except BaseException:
        track.close()
        raise
    return track
