"""``dub()``: follow the face, plan the frames, listen to the speech, render. Everything else is a detail of one of these words."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path

from lipdub import __version__, media
from lipdub.choose import choose
from lipdub.errors import NoAudioStream, OutputRefused
from lipdub.faces.cache import AnalysisCache
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.follow import follow
from lipdub.faces.more_footage import with_footage
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.media.label import drawable
from lipdub.model import Model, open_model
from lipdub.options import DubOptions, FaceChoice, Mix
from lipdub.outcome import nothing_dubbed, passed_through, require_all, require_faces, status_of, stretch_missed
from lipdub.records import DubReport, DubWarning, VideoInfo
from lipdub.render import Scene, render
from lipdub.speech.lip_track import listen, pauses_in
from lipdub.stages import Clock, OnProgress, counted
from lipdub.timeline import amounts, pictures_end_s, plan, tempo_for
from lipdub.times import Range, is_cue_file, parsed_ranges

QUIET_GAIN = 4.0
"""Speech that has to be raised by more to be heard, 12 dB, may not be what was meant."""


def dub(
    video: Path,
    speech: Path,
    out: Path,
    options: DubOptions = DubOptions(),
    *,
    model: Model | None = None,
    track: FaceTrack | None = None,
    detectors: DetectorFactory = MediapipeDetector,
    cache: AnalysisCache | None = None,
    exclude_own_s: float = 0.0,
    span: Range | None = None,
    on_scene: Callable[[Scene], None] | None = None,
    on_progress: OnProgress | None = None,
) -> DubReport:
    """Redraw the mouth in `video` so that it speaks `speech`; write `out`. Everything else stays as it was.

    Two passes over the video: one to follow the face, one to redraw it. Memory does not grow with length but for about 300 bytes
    a frame. `out` appears when it is complete, or not at all.

    model: opened before, in the place of the one that `options` name. track: an analysis of `video` made before, which saves the first
    pass; its references are of the model's crop size, and they are closed at the end. detectors: makes what finds faces. cache: where
    analyses are kept; one that is there saves the first pass as well. exclude_own_s: no mouth is drawn from a frame as near as this to the
    one that is redrawn: for measuring. span: write these times of the output alone, which then begins there. on_scene: told all that is
    known before a pixel is drawn.

    Raises:
        OutputRefused, UnreadableMedia, NoVideoStream, NoAudioStream, BundleNotFound, BundleInvalid, ProviderUnavailable,
        EncodingFailed, WriteFailed. NoFaceFound: no face in any frame, or with ``options.strict`` a frame that cannot be dubbed.
    """
    started = time.perf_counter()
    clock = Clock()
    warnings: dict[DubWarning, None] = {}  # each once, in the order in which they were found

    def warn(warning: DubWarning) -> None:
        warnings[warning] = None

    tell = on_progress or (lambda stage, done, total: None)
    audible, heard, offset_s = speech, Path(options.driver or speech), Fraction(options.offset_ms, 1000)
    mix = None if options.mix is None else Mix.of(options.mix)
    media.check_output(out, inputs=[video, speech, heard, *([] if mix is None else [Path(mix.path)])], force=options.force)
    if options.label is not None and not drawable(options.label):
        raise OutputRefused(f"the label '{options.label}' has letters without a shape here; write it in Latin ones")
    with clock("open"):
        info = media.probe(video)
        if info.is_transparent:
            warn(DubWarning("transparency", "transparent parts of the picture are laid on white"))
        # A track that was made before is of the photo as it was.
        pictures, info = (video, info) if options.full_size or track is not None else media.fitted_photo(video, info, warn)
        sound = media.probe_sound(speech, warn)
        driving = sound if heard == speech else media.probe_sound(heard, warn)
        if (speech_s := sound.end_s + offset_s) <= 0:
            raise NoAudioStream(f"--offset-ms {options.offset_ms} leaves nothing of '{speech}', which lasts {float(sound.end_s):.1f} s")
        ranges = _ranges(options.ranges)
        model = model or open_model(options.model, device=options.device, threads=options.threads)
    cached = track is not None

    def followed(place: Path, of: VideoInfo, choice: FaceChoice | None = None) -> tuple[FaceTrack, bool]:
        told, size = counted(tell, "finding faces", of.frames_guessed), model.spec.crop.size
        return follow(place, of, size=size, detectors=detectors, cache=cache, clock=clock, on_frames=told, choice=choice)

    if track is None:
        track, cached = followed(pictures, info, None if options.face is None else FaceChoice.of(options.face))
    with ExitStack() as stack:
        stack.callback(track.references.close)
        tell("finding faces", len(track), len(track))  # what the file says of its length is a guess
        require_faces(track, video)
        if options.references is not None:
            track = with_footage(track, Path(options.references), followed)
            stack.callback(track.references.close)
        if options.fit == "stretch" and not info.is_still:
            room_s = pictures_end_s(track.pts, track.time_base, video_s=info.duration_s) - offset_s
            tempo = tempo_for(sound.end_s, room_s)
            if (missed := stretch_missed(sound.end_s, room_s, tempo)) is not None:
                warn(missed)
            alike = heard == speech
            audible, sound = stack.enter_context(media.stretched(speech, sound, out, tempo=tempo))
            heard = audible if alike else stack.enter_context(media.stretched(heard, driving, out, tempo=tempo))[0]
            speech_s = sound.end_s + offset_s
        shown = plan(track.pts, track.time_base, video_s=info.duration_s, speech_s=speech_s, fit=options.fit, is_still=info.is_still)
        amount = None if ranges is None else amounts(shown.times_s, ranges)
        if span is not None:
            first, end = shown.within(span)
            offset_s -= int(shown.pts[first]) * shown.time_base
            shown, amount = shown.part(first, end), None if amount is None else amount[first:end]
        status = status_of(track, shown, amount)
        spans = passed_through(status, shown)
        if options.strict:
            require_all(spans, video)
        with clock("open"):  # before a frame is drawn: what cannot be written is said now
            arranged = media.arranged(audible, sound, out, offset_s=offset_s, mix=mix, until_s=shown.duration_s)
            audible, sound = stack.enter_context(arranged)
            sound_plan = media.plan_sound(audible, out, duration_s=shown.duration_s, info=sound, warn=warn)
            kept = media.plan_kept(video, out, duration_s=shown.duration_s, keep_audio=options.keep_original_audio, warn=warn)
        with clock("recall"):
            told = counted(tell, "listening", len(shown))
            pauses = pauses_in(heard)
            if pauses.gain > QUIET_GAIN:
                text = f"the speech is quiet: it is heard {20 * math.log10(pauses.gain):.0f} dB louder, and goes into the output as it is"
                warn(DubWarning("quiet-speech", text))
            lips = listen(
                heard, model.memory, shown.times_s - float(offset_s), pauses=pauses, rest_in_pauses=options.silence == "close",
                strength=options.strength, on_frames=told,
            )  # fmt: skip
        stack.enter_context(closing(lips))
        silent_video = stack.enter_context(media.unfinished(out))
        with clock("choose"):
            choices = choose(track, shown, lips, draw=options.draw, exclude_s=exclude_own_s)
        stack.enter_context(closing(choices))
        scene = Scene(
            pictures, info, track, shown, lips, choices, model.spec, model.generator,
            keep_pauses=options.silence == "keep", kept=kept, amount=amount, label=options.label,
            warn=warn,
        )  # fmt: skip
        if on_scene is not None:
            on_scene(scene)
        render(scene, silent_video, crf=options.crf, preset=options.preset, clock=clock, on_frames=counted(tell, "redrawing", len(shown)))
        with clock("mux"):
            media.mux(silent_video, audible, out, duration_s=shown.duration_s, force=options.force, sound=sound_plan, kept=kept, warn=warn)
    video_s = Fraction(0) if info.is_still else pictures_end_s(track.pts, track.time_base, video_s=info.duration_s)
    if not any(warning.kind == "clock-jump" for warning in warnings) and (cut := media.cut_off(info, video_s)) is not None:
        warn(cut)
    passed = sum(span.end - span.first for span in spans)
    warnings |= dict.fromkeys(nothing_dubbed(status, lips, pauses, spans, options.silence))
    return DubReport(
        video=str(video), speech=str(speech), output=str(out), model=model.spec.name, provider=model.generator.provider, options=options,
        frames=len(shown), dubbed=len(shown) - passed, passed_through=passed, spans=spans,
        silent_frames=int((lips.in_pause & (status == DUBBED)).sum()),
        video_s=float(video_s), speech_s=float(speech_s), output_s=float(shown.duration_s),
        wall_s=time.perf_counter() - started, stage_s=clock.seconds, version=__version__, analysis_cached=cached,
        warnings=tuple(warnings), pages=len(track.pages), painted=choices.painted,
    )  # fmt: skip


def _ranges(asked: str | None) -> tuple[Range, ...] | None:
    """What ``--ranges`` means, None for all of the video. Raises UnreadableMedia."""
    if asked is None:
        return None
    return media.ranges_in(Path(asked)) if is_cue_file(asked) else parsed_ranges(asked)
