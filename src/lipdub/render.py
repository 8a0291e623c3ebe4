"""``render``: the second pass. Decode, crop, draw, paste, encode; every stage runs ahead of the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.bundles.bundle import BundleSpec
from lipdub.faces import crop
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.generators import Generator
from lipdub.media.planes import YuvChunk
from lipdub.paste.blend import paste
from lipdub.paste.detail import FineReference, FineReferences
from lipdub.records import Crops, Drawn, VideoInfo
from lipdub.speech.lip_track import LipTrack
from lipdub.stages import Clock, Stages, cores, spread
from lipdub.timeline import Timeline

GATHERED_BYTES = 256 * 2**20
"""Frames that wait for a batch to fill take at most this much."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Scene:
    """All that is known before a pixel is drawn. track: of `video`. lips: one row for each frame of `shown`. keep_pauses: the source's own
    picture shows through where the speech pauses."""

    video: Path
    info: VideoInfo
    track: FaceTrack
    shown: Timeline
    lips: LipTrack
    spec: BundleSpec
    generator: Generator
    keep_pauses: bool = False

    def __post_init__(self) -> None:
        if len(self.lips) != len(self.shown):
            raise ValueError(f"one row of lip motion for each frame shown, got {len(self.lips)} for {len(self.shown)}")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Piece:
    """Frames on their way through the stages, with what is to be drawn in them: crops of the M frames that are redrawn, and for each of
    these its reference, its lip feature, float32 (M, C), and how far it is redrawn, float32 (M,)."""

    frames: YuvChunk
    crops: Crops
    references: tuple[FineReference, ...]
    lip_features: NDArray[np.float32]
    strength: NDArray[np.float32]


def render(scene: Scene, out: Path, *, crf: int, preset: str, clock: Clock, on_frames: Callable[[int], None]) -> None:
    """Write the frames of the scene with new mouths in them to `out`, without sound.

    clock: has the time of each stage booked. on_frames: told how many frames each step took.

    Raises UnreadableMedia, NoVideoStream, EncodingFailed, BundleInvalid, ModelError.
    """
    # What is left to encode when the block ends counts as encoding, so the writer is entered under that clock.
    with clock("encode"), media.Writer(out, scene.info, crf=crf, preset=preset, time_base=scene.shown.time_base) as writer:
        writer.end_s = scene.shown.duration_s
        with clock("wait"), Stages() as stages:
            for piece in _redrawn(scene, stages, clock):
                with clock("encode"):
                    writer.write(piece.frames)
                on_frames(len(piece.frames))
    clock.seconds.pop("wait", None)


def _redrawn(scene: Scene, stages: Stages, clock: Clock) -> Iterator[_Piece]:
    """The frames of the output in order with new mouths in them."""
    references = FineReferences(scene.track.references)

    def cropped(decoded: tuple[YuvChunk, NDArray[np.int64]]) -> _Piece:
        with clock("crop"):
            return _cropped(scene, *decoded, references)

    def pasted(drawn: tuple[_Piece, Drawn]) -> _Piece:
        piece, mouths = drawn
        with clock("paste"):
            paste(piece.frames, piece.crops, mouths, piece.strength, scene.spec.crop, piece.references)
        return piece

    decoded = stages.ahead(clock.timed("decode", media.play(scene.video, scene.track.pts, scene.shown)))
    taken = stages.ahead(map(cropped, decoded))
    drawn = stages.ahead(_drawn(taken, scene.generator, clock))
    # Two cores have enough to do; where there are many, one thread that pastes would hold up a GPU.
    return stages.ahead(spread(pasted, drawn, workers=max(1, cores() // 3)))


def _cropped(scene: Scene, frames: YuvChunk, sources: NDArray[np.int64], references: FineReferences) -> _Piece:
    """Crops of the frames that are redrawn, with what is drawn in them. sources: int64 (N,), which source frame each frame is."""
    track = scene.track
    lips = scene.lips.frames(frames.index, frames.index + len(frames))
    strength = track.strength[sources]
    if scene.keep_pauses:
        strength = strength * (1 - lips.silence)
    rows = np.flatnonzero((track.status[sources] == DUBBED) & (strength > 0))
    of = sources[rows]
    crops = crop.take(frames, rows, track.similarity[of], track.outline[of].astype(np.float32), scene.spec.crop.size)
    seen = tuple(references.get(int(number), frames.color) for number in track.reference[of])
    return _Piece(frames, crops, seen, lips.feature[rows], strength[rows])


def _drawn(pieces: Iterator[_Piece], generator: Generator, clock: Clock) -> Iterator[tuple[_Piece, Drawn]]:
    """Each piece with the mouths drawn for it; pieces are gathered until they fill a batch of the generator."""
    waiting: list[_Piece] = []
    for piece in pieces:
        waiting.append(piece)
        # Frames count, not crops: a stretch without a face has nothing to draw, and must not pile up.
        full = sum(len(one.frames) for one in waiting) >= generator.preferred_batch
        if full or sum(one.frames.data.nbytes for one in waiting) >= GATHERED_BYTES:
            yield from _draw(waiting, generator, clock)
            waiting = []
    yield from _draw(waiting, generator, clock)


def _draw(pieces: list[_Piece], generator: Generator, clock: Clock) -> list[tuple[_Piece, Drawn]]:
    """All pieces drawn in one go."""
    if not pieces:
        return []
    with clock("draw"):
        mouths = generator.draw(
            np.concatenate([piece.crops.pixels for piece in pieces]),
            np.concatenate([_seen(piece) for piece in pieces]),
            np.concatenate([piece.lip_features for piece in pieces]),
        )
    ends = np.cumsum([len(piece.crops) for piece in pieces]).tolist()
    return [(piece, mouths.part(end - len(piece.crops), end)) for piece, end in zip(pieces, ends, strict=True)]


def _seen(piece: _Piece) -> NDArray[np.uint8]:
    """The references of a piece as the generator sees them, uint8 (M, S, S, 3)."""
    seen = np.empty_like(piece.crops.pixels)
    for slot, reference in enumerate(piece.references):
        seen[slot] = reference.pixels
    return seen
