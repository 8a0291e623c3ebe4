"""``render``: the second pass. Decode, crop, draw, paste, encode; every stage runs ahead of the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.bundles.bundle import BundleSpec
from lipdub.choose import BESIDE_SHARE, Choices
from lipdub.faces import crop
from lipdub.faces.overlays import lies_on, over_crop
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.generators import Generator
from lipdub.generators.interior import InteriorPainter
from lipdub.generators.warp import Warp
from lipdub.media.label import Label
from lipdub.media.planes import YuvChunk, beside
from lipdub.paste.blend import OnTop, paste
from lipdub.paste.detail import FineReferences, LitReference
from lipdub.records import Crops, Drawn, DubWarning, VideoInfo, Warn
from lipdub.speech.lip_track import LipTrack
from lipdub.stages import Clock, Stages, cores, spread
from lipdub.timeline import Timeline

GATHERED_BYTES = 256 * 2**20
"""Frames that wait for a batch to fill take at most this much."""
_ROWS = 4096
"""So many rows of a track are looked at together."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Speaker:
    """A person who is dubbed. lips, choices: one row for each of the K frames of the output. amount: float32 (K,), how far each of them is
    to be redrawn, None for wholly."""

    track: FaceTrack
    lips: LipTrack
    choices: Choices
    amount: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Scene:
    """All that is known before a pixel is drawn. speakers: whose tracks are of `video`. keep_pauses: the source's own picture shows through
    where the speech pauses. kept: tags and chapters of the output."""

    video: Path
    info: VideoInfo
    speakers: tuple[Speaker, ...]
    shown: Timeline
    spec: BundleSpec
    generator: Generator
    interior: InteriorPainter | None = None
    """Paints between the lips where no page was chosen; None where nothing is to be painted, or all of the mouth is the generator's."""
    keep_pauses: bool = False
    kept: media.Kept = media.NOTHING_KEPT
    label: str | None = None
    """Written on every frame."""
    side_by_side: bool = False
    """The source is shown on the left, the dub on the right."""
    warn: Warn = lambda _: None
    """Told what had to be mended in the pictures."""

    def __post_init__(self) -> None:
        rows = {len(self.shown), *(len(part) for one in self.speakers for part in (one.lips, one.choices))}
        if not self.speakers or len(rows) > 1:
            raise ValueError(f"speakers have a row of lips and a choice for each frame, got {len(self.speakers)} speakers and {rows} rows")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Part:
    """M mouths of a piece that are drawn in the same way.

    crops: of their frames. references: for each the page it is drawn from, as it looks in the frame. strength: float32 (M,), how far it is
    redrawn. lip_features: float32 (M, C), what is painted; None where all is warped. shown, own, wanted: float32 (M, 64, 2), where the
    points are on the page and in the frame, and where they are to lie. on_top: what lies upon each of them and its page; empty where
    nothing lies anywhere. beside: another page that is blended into some of them.
    """

    crops: Crops
    references: tuple[LitReference, ...]
    strength: NDArray[np.float32]
    lip_features: NDArray[np.float32] | None
    shown: NDArray[np.float32]
    own: NDArray[np.float32]
    wanted: NDArray[np.float32]
    on_top: tuple[OnTop, ...] = ()
    beside: _Beside | None = None


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Beside:
    """Pages that are blended into K mouths of a part. slots: int64 (K,), into which. references and shown: as in `_Part`."""

    slots: NDArray[np.int64]
    references: tuple[LitReference, ...]
    shown: NDArray[np.float32]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Piece:
    """Frames on their way through the stages, with what is to be drawn in them. source: they as they were, where that is shown."""

    frames: YuvChunk
    parts: tuple[_Part, ...]
    source: YuvChunk | None = None


def render(
    scene: Scene, out: Path, *, crf: int, preset: str, clock: Clock, on_frames: Callable[[int], None], encoder: media.PictureEncoder,
    copies: media.Copies | None = None,
) -> None:  # fmt: skip
    """Write the frames of the scene with new mouths in them to `out`, without sound.

    clock: has the time of each stage booked. on_frames: told how many frames each step took. copies: what is taken from the source as it
    is coded there, as `copied` found.

    Raises UnreadableMedia, NoVideoStream, EncodingFailed, BundleInvalid, ModelError.
    """
    # What is left to encode when the block ends counts as encoding, so the writer is entered under that clock.
    info = scene.info.doubled if scene.side_by_side else scene.info
    writing: media.Writer
    if copies is None:
        writing = media.Writer(out, info, crf=crf, preset=preset, time_base=scene.shown.time_base, kept=scene.kept, encoder=encoder)
    else:
        writing = media.Joiner(out, info, copies, scene.shown, crf=crf, preset=preset, kept=scene.kept, encoder=encoder)
        on_frames(len(copies))
    with clock("encode"), writing as writer:
        writer.end_s = scene.shown.duration_s
        with clock("wait"), Stages() as stages:
            label = None if scene.label is None else Label(scene.label, scene.info.height, scene.info.width)
            for piece in _redrawn(scene, stages, clock, () if copies is None else copies.stretches):
                with clock("encode"):
                    if label is not None:
                        label.put_on(piece.frames)
                    writer.write(piece.frames if piece.source is None else beside(piece.source, piece.frames))
                on_frames(len(piece.frames))
    clock.seconds.pop("wait", None)


def copied(scene: Scene, encoder: media.PictureEncoder, *, crf: int) -> media.Copies | None:
    """What of the source is to be copied as it is coded; None where nothing is, and ``scene.warn`` is told why. Raises UnreadableMedia."""
    untouched = np.full(len(scene.shown), scene.label is None and not scene.side_by_side)
    for first in range(0, len(untouched), _ROWS):
        rows = slice(first, min(len(untouched), first + _ROWS))
        for speaker in scene.speakers:
            untouched[rows] &= _strength(scene, speaker, rows.start, rows.stop) == 0
    try:
        return media.plan_copies(scene.info, scene.speakers[0].track.pts, scene.shown, untouched, encoder=encoder, crf=crf)
    except media.CannotCopy as why:
        scene.warn(DubWarning("not-copied", f"no pictures were copied, all were encoded: {why}"))
        return None


def _redrawn(scene: Scene, stages: Stages, clock: Clock, without: Sequence[media.Stretch]) -> Iterator[_Piece]:
    """The frames of the output in order with new mouths in them, but for those of `without`."""
    speakers = [(speaker, FineReferences(speaker.track.references)) for speaker in scene.speakers]

    def cropped(decoded: tuple[YuvChunk, NDArray[np.int64]]) -> _Piece:
        with clock("crop"):
            frames, sources = decoded
            parts = tuple(part for speaker, fine in speakers for part in _cropped(scene, speaker, frames, sources, fine))
            return _Piece(frames, parts, replace(frames, data=frames.data.copy()) if scene.side_by_side else None)

    def pasted(drawn: tuple[_Piece, list[Drawn]]) -> _Piece:
        piece, mouths = drawn
        with clock("paste"):
            for part, of in zip(piece.parts, mouths, strict=True):
                paste(piece.frames, part.crops, of, part.strength, scene.spec.crop, part.references, part.on_top)
        return piece

    played = media.play(scene.video, scene.speakers[0].track.pts, scene.shown, scene.warn, without=without)
    decoded = stages.ahead(clock.timed("decode", played))
    taken = stages.ahead(map(cropped, decoded))
    drawn = stages.ahead(_drawn(taken, scene, clock))
    # Two cores have enough to do; where there are many, one thread that pastes would hold up a GPU.
    return stages.ahead(spread(pasted, drawn, workers=max(1, cores() // 3)))


def _strength(scene: Scene, speaker: Speaker, first: int, end: int) -> NDArray[np.float32]:
    """How far a speaker is redrawn in the frames [first, end) of the output, float32 (N,), 0 for not at all."""
    track, sources = speaker.track, scene.shown.source[first:end]
    strength = np.where(track.status[sources] == DUBBED, track.strength[sources], np.float32(0))
    if speaker.amount is not None:
        strength = strength * speaker.amount[first:end]
    if scene.keep_pauses:
        strength = strength * (1 - speaker.lips.frames(first, end).silence)
    return strength


def _cropped(scene: Scene, speaker: Speaker, frames: YuvChunk, sources: NDArray[np.int64], references: FineReferences) -> tuple[_Part, ...]:
    """Crops of the frames in which a speaker is redrawn, with what is drawn in them. sources: int64 (N,), the source frame of each."""
    track = speaker.track
    lips = speaker.lips.frames(frames.index, frames.index + len(frames))
    strength = _strength(scene, speaker, frames.index, frames.index + len(frames))
    redrawn = strength > 0
    chosen = speaker.choices.frames(frames.index, frames.index + len(frames))

    def lit(pages: NDArray[np.int64], rows: NDArray[np.int64], taken: NDArray[np.uint8]) -> tuple[LitReference, ...]:
        """The pages as they look in the frames `rows`, whose crops are `taken`."""
        return tuple(
            LitReference.of(references.get(page, frames.color), pixels, frames.picture(int(row)), track.similarity[sources[row]])
            for page, row, pixels in zip(pages.tolist(), rows, taken, strict=True)
        )

    def points(pages: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.concatenate([track.pages.lips[pages], track.pages.outline[pages]], axis=1)

    def lying(frame: int, page: int) -> OnTop:
        """What lies upon a mouth and its page."""
        size = scene.spec.crop.size
        here, there = track.overlays.at(frame), track.overlays.at(int(track.pages.frame[page]))
        return OnTop(
            here,
            over_crop(here, track.similarity[frame], size) if here else None,
            over_crop(there, track.pages.similarity[page], size) if there else None,
        )

    def part(rows: NDArray[np.int64], painted: bool) -> _Part:
        of = sources[rows]
        crops = crop.take(frames, rows, track.similarity[of], track.outline[of].astype(np.float32), scene.spec.crop.size)
        pages = track.reference[of].astype(np.int64) if painted else chosen.page[rows]
        on_top = tuple(map(lying, of.tolist(), pages.tolist())) if len(track.overlays) else ()
        others, beside = chosen.beside[rows], None
        # What lies upon a page is not to be blended in with it.
        slots = np.array([at for at in np.flatnonzero(others >= 0) if not lies_on(track.pages, others[at], track.overlays)], np.int64)
        if len(slots):
            beside = _Beside(slots, lit(others[slots], rows[slots], crops.pixels[slots]), points(others[slots]))
        own = np.concatenate([track.lips[of], track.outline[of]], axis=1).astype(np.float32)
        return _Part(
            crops, lit(pages, rows, crops.pixels), strength[rows], lips.feature[rows] if painted else None, points(pages), own,
            chosen.points[rows], on_top, beside,
        )  # fmt: skip

    ways = [(np.flatnonzero(redrawn & ((chosen.page < 0) == painted)), painted) for painted in (False, True)]
    return tuple(part(rows, painted) for rows, painted in ways if len(rows))


def _drawn(pieces: Iterator[_Piece], scene: Scene, clock: Clock) -> Iterator[tuple[_Piece, list[Drawn]]]:
    """Each piece with the mouths drawn for it; pieces are gathered until they fill a batch of the generator."""
    waiting: list[_Piece] = []
    warp = Warp(scene.spec.crop)
    for piece in pieces:
        waiting.append(piece)
        # Frames count, not crops: a stretch without a face has nothing to draw, and must not pile up.
        full = sum(len(one.frames) for one in waiting) >= scene.generator.preferred_batch
        if full or sum(one.frames.data.nbytes for one in waiting) >= GATHERED_BYTES:
            yield from _draw(waiting, scene, warp, clock)
            waiting = []
    yield from _draw(waiting, scene, warp, clock)


def _draw(pieces: list[_Piece], scene: Scene, warp: Warp, clock: Clock) -> list[tuple[_Piece, list[Drawn]]]:
    """All pieces drawn in one go: warped from pages, and where none was chosen with an inside that is painted; all of the mouth by the
    generator, where the bundle does not tell where the lips lie."""
    with clock("draw"):
        whole = [part for piece in pieces for part in piece.parts if part.lip_features is not None and scene.interior is None]
        mouths = None
        if whole:
            mouths = scene.generator.draw(
                np.concatenate([part.crops.pixels for part in whole]),
                np.concatenate([_seen(part.references) for part in whole]),
                np.concatenate([part.lip_features for part in whole if part.lip_features is not None]),
            )
        drawn, end = [], 0
        for piece in pieces:
            found = []
            for part in piece.parts:
                if part.lip_features is None:
                    found.append(_warped(part, warp))
                elif scene.interior is not None:
                    found.append(scene.interior.paint(_warped(part, warp), part.wanted))
                else:
                    assert mouths is not None
                    end += len(part.crops)
                    found.append(mouths.part(end - len(part.crops), end))
            drawn.append((piece, found))
    return drawn


def _warped(part: _Part, warp: Warp) -> Drawn:
    """The mouths of a part warped from their pages, and from those that are blended in."""
    pixels, beside = part.crops.pixels, part.beside
    shown = [[page] for page in part.shown]
    if beside is not None:
        for slot, points in zip(beside.slots.tolist(), beside.shown, strict=True):
            shown[slot].append(points)
    flows = []
    for points, wanted in zip(shown, part.wanted, strict=True):
        # Nothing of a page is seen that is painted over.
        inside = None if part.lip_features is None else warp.mouth(wanted)
        flows.append(warp.flows(np.stack(points), wanted, inside))
        for flow, of_page in zip(flows[-1], points, strict=True):
            flow[...] = warp.behind_lips(flow, of_page, wanted)
    drawn = warp.draw(pixels, _seen(part.references), np.stack([flow[0] for flow in flows]))
    if beside is not None:
        slots = beside.slots
        other = warp.draw(pixels[slots], _seen(beside.references), np.stack([flows[slot][1] for slot in slots]))
        drawn.pixels[slots] = warp.blended(drawn.pixels[slots], other.pixels, BESIDE_SHARE, part.wanted[slots])
    skin = np.stack([warp.skin_flow(own, wanted) for own, wanted in zip(part.own, part.wanted, strict=True)])
    return warp.around(drawn, pixels, skin, part.wanted)


def _seen(references: Sequence[LitReference]) -> NDArray[np.uint8]:
    """References as a generator sees them, uint8 (M, S, S, 3)."""
    return np.stack([reference.pixels for reference in references])
