"""``dub()``: the sequence that everybody reads first. Decode, find the face, hear the speech, draw the mouth, paste, encode, mux."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Generator as TypeGenerator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import __version__, media
from lipdub.errors import NoFaceFound, UnreadableMedia
from lipdub.faces import crop
from lipdub.faces.cache import AnalysisCache, cached_track
from lipdub.faces.detector import MediapipeDetector
from lipdub.faces.follow import analyse, repeat_still
from lipdub.faces.track import DUBBED, NO_FACE, WHY, FaceTrack
from lipdub.generators import Generator, open_generator
from lipdub.media.planes import YuvChunk, YuvColor
from lipdub.paste.blend import paste_planes
from lipdub.paste.detail import FineReference
from lipdub.records import Crops, Device, Drawn, DubReport, Fit, Silence, Span, VideoInfo
from lipdub.references.store import ReferenceStore
from lipdub.speech.mel import MelTrack
from lipdub.speech.windows import hear
from lipdub.stages import Clock, Stages, cores, spread
from lipdub.timeline import Timeline, plan

HELD_FRAMES = 8
"""A held frame is handed on in pieces of this many."""
HELD_REFERENCES = 8
"""References that are held with their planes, at most 3 MB each; a shot uses two or three."""
GATHERED_BYTES = 256 * 2**20
"""Frames that wait for a batch to fill take at most this much."""
DEFAULT_CRF = 12
DEFAULT_PRESET = "veryfast"
"""At crf 12 x264's veryfast keeps the picture as well as medium at 14 does, to a decibel, with a quarter more bytes in 0.4 of the time."""

OnProgress = Callable[[str, int, int | None], None]
"""Told (stage, frames done, frames in all or None) as work goes on."""


def dub(
    video: Path,
    speech: Path,
    out: Path,
    *,
    model: str = "base",
    device: Device = "auto",
    fit: Fit = "longest",
    silence: Silence = "close",
    crf: int = DEFAULT_CRF,
    preset: str = DEFAULT_PRESET,
    threads: int | None = None,
    strict: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
    generator: Generator | None = None,
    track: FaceTrack | None = None,
    cache: AnalysisCache | None = None,
) -> DubReport:
    """Redraw the mouth in `video` so that it speaks `speech`; write `out`. Everything else stays as it was.

    Two passes over the video: one to follow the face, one to redraw it. Memory does not grow with length but for about 300 bytes
    a frame. `out` appears when it is complete, or not at all.

    generator: opened before, in the place of `model`. track: an analysis of `video` made before, which saves the first pass; its
    references are of the generator's crop size, and they are closed at the end. cache: where analyses are kept; one that is there
    saves the first pass as well.

    Raises:
        OutputRefused, UnreadableMedia, NoVideoStream, NoAudioStream, BundleNotFound, BundleInvalid, ProviderUnavailable,
        EncodingFailed. NoFaceFound: no face in any frame, or with `strict` a frame that cannot be dubbed.
    """
    started = time.perf_counter()
    clock = Clock()
    tell = on_progress or (lambda stage, done, total: None)
    media.check_output(out, inputs=[video, speech], force=force)
    with clock("open"):
        info = media.probe(video)
        speech_s = media.audio_duration_s(speech)
        generator = generator or open_generator(model, device=device, threads=threads)
    cached = track is not None
    if track is None:
        # Stages inside count for themselves: what is left for the cache is reading the file and the kept track.
        with nullcontext() if cache is None else clock("cache"):
            found = partial(_analyse, video, info, generator, clock, tell)
            track, cached = cached_track(video, found, size_px=generator.spec.crop.size, cache=cache)
    with closing(track.references), closing(media.read_audio(speech, generator.spec.mel.sample_rate_hz)) as sound:
        tell("finding faces", len(track), len(track))  # what the file says of its length is a guess
        _require_faces(track, video, strict)
        timeline = plan(track.pts, track.time_base, video_s=info.duration_s, speech_s=speech_s, fit=fit, is_still=info.is_still)
        mel = MelTrack(sound, generator.spec.mel)
        silent_frames = 0
        with media.part_file(out) as silent_video:
            # What is left to encode when the block ends counts as encoding, so the writer is entered under that clock.
            with clock("encode"), media.Writer(silent_video, info, crf=crf, preset=preset, time_base=timeline.time_base) as writer:
                writer.end_s = timeline.duration_s
                with clock("wait"), Stages() as stages:
                    for piece in _redrawn(stages, clock, video, track, timeline, generator, mel, silence):
                        with clock("encode"):
                            writer.write(piece.frames)
                        silent_frames += piece.silent
                        tell("redrawing", piece.frames.index + len(piece.frames), len(timeline))
            with clock("mux"):
                media.mux(silent_video, speech, out, duration_s=timeline.duration_s, force=force)
    clock.seconds.pop("wait", None)
    spans = _spans(track, timeline)
    passed = sum(span.end - span.first for span in spans)
    return DubReport(
        video=str(video), speech=str(speech), output=str(out), model=generator.spec.name, provider=generator.provider, fit=fit,
        silence=silence, frames=len(timeline), dubbed=len(timeline) - passed, passed_through=passed, spans=spans,
        silent_frames=silent_frames, video_s=float(info.duration_s or 0), speech_s=float(speech_s),
        output_s=float(timeline.duration_s), wall_s=time.perf_counter() - started, stage_s=clock.seconds, version=__version__,
        analysis_cached=cached,
    )  # fmt: skip


def _analyse(video: Path, info: VideoInfo, generator: Generator, clock: Clock, tell: OnProgress) -> FaceTrack:
    """First pass: the face in every frame."""
    total = None if info.duration_s is None else max(1, round(info.duration_s * info.frame_rate))
    done = 0

    def count(frames: int) -> None:
        nonlocal done
        done += frames
        tell("finding faces", done, None if total is None else max(total, done))

    with clock("faces"), ExitStack() as stack:
        first, *more = [stack.enter_context(MediapipeDetector()) for _ in range(_watchers())]
        stages = stack.enter_context(Stages())
        frames = stages.ahead(clock.timed("decode", media.read_planes(video)))
        track = analyse(clock.timed("wait", frames), first, size=generator.spec.crop.size, on_frames=count, more=more)
    return repeat_still(track) if info.is_still else track


def _watchers() -> int:
    """How many detectors watch side by side: one on up to three cores, where decoding and the mesh fill them; at most eight."""
    return min(8, max(1, cores() // 2))


def _require_faces(track: FaceTrack, video: Path, strict: bool) -> None:
    """No face at all is an error; a face that cannot be dubbed is passed through, unless `strict`."""
    if (track.why == NO_FACE).all():
        raise NoFaceFound(f"no face in '{video}'; lipdub needs a face that is at least about 40 pixels high and looks at the camera")
    spans = track.spans()
    if strict and spans:
        raise NoFaceFound(
            f"'{video}' has {sum(s.end - s.first for s in spans)} frames that cannot be dubbed, the first at {spans[0].start_s:.2f} s "
            f"({spans[0].why}); leave --strict away to pass them through"
        )


def _source_frames(video: Path, track: FaceTrack, timeline: Timeline) -> TypeGenerator[tuple[YuvChunk, NDArray[np.int64]], None, None]:
    """Frames in the order of the output with their output timestamps, and which source frame each one is."""
    for first, end in timeline.runs():
        sources = timeline.source[first:end]
        if sources[0] == sources[-1]:
            pieces = _held(video, track, int(sources[0]), len(sources))
        elif sources[0] < sources[-1]:
            pieces = _forward(video, int(sources[0]), int(sources[-1]) + 1)
        else:
            pieces = _backward(video, track, int(sources[-1]), int(sources[0]) + 1)
        done = first
        with closing(pieces):
            for piece in pieces:
                here = slice(done, done + len(piece))
                yield piece.timed(done, timeline.pts[here], timeline.time_base), timeline.source[here]
                done += len(piece)
        if done != end:
            raise UnreadableMedia(f"'{video}' gave {done - first} frames where {end - first} were seen before; was it changed meanwhile?")


def _forward(video: Path, first: int, end: int) -> TypeGenerator[YuvChunk, None, None]:
    with closing(media.read_planes(video)) as chunks:
        for chunk in chunks:
            low, high = max(first, chunk.index), min(end, chunk.index + len(chunk))
            if low < high:
                yield chunk.part(low - chunk.index, high - chunk.index)
            if high >= end:
                return


def _backward(video: Path, track: FaceTrack, first: int, end: int) -> TypeGenerator[YuvChunk, None, None]:
    """The frames [first, end), last one first, a few at a time: each piece is decoded forwards from the key frame before it."""
    while end > first:
        piece = media.read_span_planes(video, track.pts, max(first, end - media.SPAN_FRAMES), end)
        yield replace(piece, data=piece.data[::-1])
        end = piece.index


def _held(video: Path, track: FaceTrack, source: int, count: int) -> TypeGenerator[YuvChunk, None, None]:
    """One frame, shown `count` times."""
    picture = media.read_span_planes(video, track.pts, source, source + 1)
    for first in range(0, count, HELD_FRAMES):
        shown = min(HELD_FRAMES, count - first)
        yield replace(picture, data=np.repeat(picture.data, shown, axis=0), pts=np.arange(shown, dtype=np.int64))


@dataclass(frozen=True, slots=True, repr=False)
class _Piece:
    """Frames on their way through the stages, with what is to be drawn in them.

    silent: how many of the frames fall into pauses of the speech. crops: of the frames that are redrawn, and for each of these the
    M references, lip features float32 (M, C) and strength float32 (M,).
    """

    frames: YuvChunk
    silent: int
    crops: Crops
    references: tuple[FineReference, ...]
    lip_features: NDArray[np.float32]
    strength: NDArray[np.float32]


def _redrawn(
    stages: Stages,
    clock: Clock,
    video: Path,
    track: FaceTrack,
    timeline: Timeline,
    generator: Generator,
    mel: MelTrack,
    silence: Silence,
) -> Iterator[_Piece]:
    """Second pass: the frames of the output in order with new mouths in them. Every stage runs ahead of the next one."""
    references = _References(track.references)

    def heard(frames: YuvChunk, sources: NDArray[np.int64]) -> _Piece:
        return _hear_and_take(frames, sources, track, references, generator, mel, silence, clock)

    def pasted(drawn: tuple[_Piece, Drawn]) -> _Piece:
        piece, mouths = drawn
        with clock("paste"):
            paste_planes(piece.frames, piece.crops, mouths, piece.strength, generator.spec.crop, piece.references)
        return piece

    decoded = stages.ahead(clock.timed("decode", _source_frames(video, track, timeline)))
    taken = stages.ahead(heard(frames, sources) for frames, sources in decoded)
    drawn = stages.ahead(_drawn(taken, generator, clock))
    # Two cores have enough to do; where there are many, one thread that pastes would hold up a GPU.
    return stages.ahead(spread(pasted, drawn, workers=max(1, cores() // 3)))


class _References:
    """The references of a track in the planes of its video; the ones that were used last are held."""

    def __init__(self, store: ReferenceStore) -> None:
        self._store = store
        self._held: dict[tuple[int, YuvColor], FineReference] = {}

    def get(self, number: int, color: YuvColor) -> FineReference:
        """The reference of that number for frames of that colour."""
        key = number, color
        found = self._held.pop(key, None) or FineReference(self._store.get(number), color)
        self._held[key] = found
        while len(self._held) > HELD_REFERENCES:
            del self._held[next(iter(self._held))]
        return found


def _hear_and_take(
    frames: YuvChunk,
    sources: NDArray[np.int64],
    track: FaceTrack,
    references: _References,
    generator: Generator,
    mel: MelTrack,
    silence: Silence,
    clock: Clock,
) -> _Piece:
    """The lip features of the frames, and crops of those that are redrawn."""
    spec = generator.spec
    with clock("recall"):
        lip_features, silent = _hear(frames.times_s, generator, mel)
        strength = track.strength[sources]
        if silence == "close":
            resting = np.asarray(spec.rest_feature, np.float32)
            lip_features = lip_features + silent[:, None] * (resting - lip_features)
        elif silence == "keep":
            strength = strength * (1 - silent)
    rows = np.flatnonzero((track.why[sources] == DUBBED) & (strength > 0))
    of = sources[rows]
    with clock("crop"):
        crops = crop.take(frames, rows, track.similarity[of], track.outline[of].astype(np.float32), spec.crop.size)
        seen = tuple(references.get(int(number), frames.color) for number in track.reference[of])
    return _Piece(frames, int((silent > 0.5).sum()), crops, seen, lip_features[rows], strength[rows])


def _drawn(pieces: Iterator[_Piece], generator: Generator, clock: Clock) -> TypeGenerator[tuple[_Piece, Drawn], None, None]:
    """Each piece with the mouths drawn for it; pieces are gathered until they fill a batch of the generator."""
    waiting: list[_Piece] = []
    for piece in pieces:
        waiting.append(piece)
        # Frames count, not crops: a stretch without a face has nothing to draw, and must not pile up.
        full = sum(len(one.frames) for one in waiting) >= generator.batch
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


def _hear(times_s: NDArray[np.float64], generator: Generator, mel: MelTrack) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lip features (N, C) and how far each moment is a pause (N,), both float32. No frame rate is needed, and no look ahead over frames."""
    heard = hear(times_s, generator.spec, mel.windows)
    return heard.mean(generator.recall(heard.windows).lip_feature), heard.silent


def _spans(track: FaceTrack, timeline: Timeline) -> tuple[Span, ...]:
    """Stretches of the output that were passed through, in output frames and times."""
    why = track.why[timeline.source]
    edges = [0, *(np.flatnonzero(np.diff(why)) + 1).tolist(), len(why)]
    times = timeline.pts * float(timeline.time_base)
    return tuple(
        Span(
            first,
            end,
            float(times[first]),
            float(times[end]) if end < len(times) else float(timeline.duration_s),
            WHY[int(why[first])],
        )
        for first, end in pairwise(edges)
        if why[first] != DUBBED
    )
