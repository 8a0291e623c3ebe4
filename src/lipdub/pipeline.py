"""``dub()``: the sequence that everybody reads first. Decode, find the face, hear the speech, draw the mouth, paste, encode, mux."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Generator as TypeGenerator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lipdub import __version__, crop, media
from lipdub.errors import NoFaceFound, UnreadableMedia
from lipdub.faces import MediapipeDetector
from lipdub.generators import Generator, open_generator
from lipdub.mel import MelTrack, silence_weight
from lipdub.records import Device, DubReport, Fit, FrameChunk, Silence, Span, VideoInfo
from lipdub.timeline import Timeline, plan
from lipdub.tracks import DUBBED, NO_FACE, WHY, FaceTrack, analyse, repeat_still

T = TypeVar("T")
PixelPieces = TypeGenerator[NDArray[np.uint8], None, None]

HELD_FRAMES = 8
"""A held frame is handed on in pieces of this many."""
DEFAULT_CRF = 14
DEFAULT_PRESET = "medium"

OnProgress = Callable[[str, int, int | None], None]
"""Told (stage, frames done, frames in all or None) as work goes on."""


@dataclass(slots=True)
class _Clock:
    """Seconds per stage; while a stage runs inside another one, only the inner one's time counts."""

    seconds: dict[str, float] = field(default_factory=dict)
    _running: list[str] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._book()
        self._running.append(stage)
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    def _book(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] = self.seconds.get(self._running[-1], 0.0) + now - self._since
        self._since = now

    def timed(self, stage: str, items: Iterator[T]) -> Iterator[T]:
        """The same items, with the time that making them takes booked on `stage`."""
        while True:
            with self(stage):
                item = next(items, None)
            if item is None:
                return
            yield item


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
) -> DubReport:
    """Redraw the mouth in `video` so that it speaks `speech`; write `out`. Everything else stays as it was.

    Two passes over the video: one to follow the face, one to redraw it. Memory does not grow with length but for about 300 bytes
    a frame. `out` appears when it is complete, or not at all.

    generator: opened before, in the place of `model`. track: an analysis of `video` made before, which saves the first pass; its
    references are of the generator's crop size, and they are closed at the end.

    Raises:
        OutputRefused, UnreadableMedia, NoVideoStream, NoAudioStream, BundleNotFound, BundleInvalid, ProviderUnavailable,
        EncodingFailed. NoFaceFound: no face in any frame, or with `strict` a frame that cannot be dubbed.
    """
    started = time.perf_counter()
    clock = _Clock()
    tell = on_progress or (lambda stage, done, total: None)
    media.check_output(out, inputs=[video, speech], force=force)
    with clock("open"):
        info = media.probe(video)
        speech_s = media.audio_duration_s(speech)
        generator = generator or open_generator(model, device=device, threads=threads)
    track = _analyse(video, info, generator, clock, tell) if track is None else track
    with closing(track.references), closing(media.read_audio(speech, generator.spec.mel.sample_rate_hz)) as sound:
        tell("finding faces", len(track), len(track))  # what the file says of its length is a guess
        _require_faces(track, video, strict)
        timeline = plan(track.pts, track.time_base, video_s=info.duration_s, speech_s=speech_s, fit=fit, is_still=info.is_still)
        mel = MelTrack(sound, generator.spec.mel)
        silent_frames = 0
        with media.part_file(out) as silent_video:
            # What is left to encode when the block ends counts as encoding, so the clock is the outer one.
            with (
                clock("encode"),
                media.Writer(silent_video, info, crf=crf, preset=preset, time_base=timeline.time_base) as writer,
            ):
                writer.end_s = timeline.duration_s
                with closing(_source_frames(video, track, timeline)) as source_frames:
                    for frames, sources in clock.timed("decode", source_frames):
                        drawn, silent = _redraw(frames, sources, track, generator, mel, silence, clock)
                        silent_frames += silent
                        writer.write(drawn)
                        tell("redrawing", int(frames.index) + len(frames), len(timeline))
            with clock("mux"):
                media.mux(silent_video, speech, out, duration_s=timeline.duration_s, force=force)
    spans = _spans(track, timeline)
    passed = sum(span.end - span.first for span in spans)
    return DubReport(
        video=str(video), speech=str(speech), output=str(out), model=generator.spec.name, provider=generator.provider, fit=fit,
        silence=silence, frames=len(timeline), dubbed=len(timeline) - passed, passed_through=passed, spans=spans,
        silent_frames=silent_frames, video_s=float(info.duration_s or 0), speech_s=float(speech_s),
        output_s=float(timeline.duration_s), wall_s=time.perf_counter() - started, stage_s=clock.seconds, version=__version__,
    )  # fmt: skip


def _analyse(video: Path, info: VideoInfo, generator: Generator, clock: _Clock, tell: OnProgress) -> FaceTrack:
    """First pass: the face in every frame."""
    total = None if info.duration_s is None else max(1, round(info.duration_s * info.frame_rate))
    done = 0

    def count(frames: int) -> None:
        nonlocal done
        done += frames
        tell("finding faces", done, None if total is None else max(total, done))

    with clock("faces"), MediapipeDetector() as detector, closing(media.read_frames(video)) as frames:
        track = analyse(clock.timed("decode", frames), detector, size=generator.spec.crop.size, on_frames=count)
    return repeat_still(track) if info.is_still else track


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


def _source_frames(video: Path, track: FaceTrack, timeline: Timeline) -> TypeGenerator[tuple[FrameChunk, NDArray[np.int64]], None, None]:
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
            for pixels in pieces:
                here = slice(done, done + len(pixels))
                yield FrameChunk(done, pixels, timeline.pts[here], timeline.time_base), timeline.source[here]
                done += len(pixels)
        if done != end:
            raise UnreadableMedia(f"'{video}' gave {done - first} frames where {end - first} were seen before; was it changed meanwhile?")


def _forward(video: Path, first: int, end: int) -> PixelPieces:
    with closing(media.read_frames(video)) as chunks:
        for chunk in chunks:
            low, high = max(first, chunk.index), min(end, chunk.index + len(chunk))
            if low < high:
                yield chunk.pixels[low - chunk.index : high - chunk.index]
            if high >= end:
                return


def _backward(video: Path, track: FaceTrack, first: int, end: int) -> PixelPieces:
    """The frames [first, end), last one first, a few at a time: each piece is decoded forwards from the key frame before it."""
    while end > first:
        piece = media.read_span(video, track.pts, max(first, end - media.SPAN_FRAMES), end)
        yield piece.pixels[::-1]
        end = piece.index


def _held(video: Path, track: FaceTrack, source: int, count: int) -> PixelPieces:
    """One frame, shown `count` times."""
    picture = media.read_span(video, track.pts, source, source + 1).pixels
    for first in range(0, count, HELD_FRAMES):
        yield np.repeat(picture, min(HELD_FRAMES, count - first), axis=0)


def _redraw(
    frames: FrameChunk,
    sources: NDArray[np.int64],
    track: FaceTrack,
    generator: Generator,
    mel: MelTrack,
    silence: Silence,
    clock: _Clock,
) -> tuple[FrameChunk, int]:
    """The frames with new mouths, and how many of them fall into pauses of the speech."""
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
    paused = int((silent > 0.5).sum())
    if len(rows) == 0:
        return frames, paused
    of = sources[rows]
    with clock("crop"):
        crops = crop.take(frames, rows, track.similarity[of], track.outline[of].astype(np.float32), spec.crop.size)
        stored = {int(number): track.references.get(int(number)) for number in np.unique(track.reference[of])}
        references = np.stack([stored[int(number)] for number in track.reference[of]])
    with clock("draw"):
        drawn = generator.draw(crops.pixels, references, lip_features[rows])
    with clock("paste"):
        pixels = crop.paste(frames.pixels, crops, drawn, strength[rows], spec.crop)
    return FrameChunk(frames.index, pixels, frames.pts, frames.time_base), paused


def _hear(times_s: NDArray[np.float64], generator: Generator, mel: MelTrack) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lip features (N, C) and how far each moment is a pause (N,), both float32.

    The bundle's smoothing is three taps around each time, so it needs no frame rate and no look ahead over frames.
    """
    reach = generator.spec.smoothing_s
    taps, weights = ((-reach, 0.0, reach), (0.25, 0.5, 0.25)) if reach > 0 else ((0.0,), (1.0,))
    windows = mel.windows(np.concatenate([times_s + tap for tap in taps]))
    recalled = generator.recall(windows).lip_feature.reshape(len(taps), len(times_s), -1)
    lip_features = np.einsum("k,knc->nc", np.array(weights, np.float32), recalled)
    silent = np.einsum("k,kn->n", np.array(weights, np.float32), silence_weight(windows).reshape(len(taps), -1))
    return lip_features, silent


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
