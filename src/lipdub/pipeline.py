"""``dub()``: follow the face, plan the frames, listen to the speech, render. Everything else is a detail of one of these words."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path

import numpy as np

from lipdub import __version__, media, outcome
from lipdub.cast import followed
from lipdub.choose import choose
from lipdub.faces.cache import AnalysisCache
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.generators.interior import open_interior
from lipdub.model import Model
from lipdub.opened import open_dub
from lipdub.options import DubOptions
from lipdub.parts import arranged, stretched, tempo_of
from lipdub.records import DubReport, DubWarning
from lipdub.render import Scene, Speaker, copied, render
from lipdub.speech.lip_track import listen, pauses_in
from lipdub.stages import Clock, OnProgress, counted
from lipdub.timeline import amounts, lesser, pictures_end_s, plan
from lipdub.times import Range


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
        EncodingFailed, WriteFailed, CurvesInvalid. NoFaceFound: no face in any frame, or with ``options.strict`` a frame that cannot be
        dubbed.
    """
    started, clock = time.perf_counter(), Clock()
    warnings: dict[DubWarning, None] = {}  # each once, in the order in which they were found

    def warn(warning: DubWarning) -> None:
        warnings[warning] = None

    tell = on_progress or (lambda stage, done, total: None)
    with clock("open"):
        # A track that was made before is of the photo as it was.
        opened = open_dub(video, speech, out, options, model=model, full_size=options.full_size or track is not None, warn=warn)
    info, model, parts = opened.info, opened.model, opened.parts
    offset_s = Fraction(options.offset_ms, 1000)
    with ExitStack() as stack:
        cast = stack.enter_context(followed(opened, track, detectors=detectors, cache=cache, clock=clock, tell=tell))
        first = cast.tracks[0]
        pictures_s = Fraction(0) if info.is_still else pictures_end_s(first.pts, first.time_base, video_s=info.duration_s)
        if options.fit == "stretch" and not info.is_still:
            tempo = tempo_of(parts, pictures_s - offset_s, warn)
            parts = stack.enter_context(stretched(parts, out, tempo=tempo))
        speech_s = max(part.sound.end_s for part in parts) + offset_s
        shown = plan(first.pts, first.time_base, video_s=info.duration_s, speech_s=speech_s, fit=options.fit, is_still=info.is_still)
        amount = [None if part.ranges is None else amounts(shown.times_s, part.ranges) for part in parts]
        if span is not None:
            begin, end = shown.within(span)
            offset_s -= int(shown.pts[begin]) * shown.time_base
            shown, amount = shown.part(begin, end), [None if one is None else one[begin:end] for one in amount]
        each = [outcome.status_of(one, shown, redrawn) for one, redrawn in zip(cast.tracks, amount, strict=True)]
        if options.strict:
            outcome.require_all(outcome.passed_through(outcome.together(each), shown), video)
        with clock("open"):  # before a frame is drawn: what cannot be written is said now
            audible, sound = stack.enter_context(arranged(parts, options, out, offset_s=offset_s, until_s=shown.duration_s))
            sound_plan = media.plan_sound(audible, out, duration_s=shown.duration_s, info=sound, warn=warn)
            kept = media.plan_kept(video, out, duration_s=shown.duration_s, keep_audio=options.keep_original_audio, warn=warn)
        speakers, silent, heard_s = [], [], shown.times_s - float(offset_s)
        for number, (part, one) in enumerate(zip(parts, cast.tracks, strict=True)):
            with clock("recall"):
                pauses = pauses_in(part.heard)
                for quiet in outcome.too_quiet(pauses):
                    warn(quiet)
                lips = listen(
                    part.heard, model.memory, heard_s, pauses=pauses, rest_in_pauses=options.silence == "close", strength=options.strength,
                    curves=part.curves_at(heard_s), on_frames=counted(tell, "listening", len(shown)),
                )  # fmt: skip
                stack.enter_context(closing(lips))
            spoken = outcome.speaking(one, shown, lips) if options.only_when_speaking else None
            each[number] = outcome.at_rest(each[number], spoken)
            with clock("choose"):
                choices = choose(one, shown, lips, draw=options.draw, exclude_s=exclude_own_s, style=cast.style)
                stack.enter_context(closing(choices))
            for missed in part.curves_missed(choices.painted):
                warn(missed)
            speakers.append(Speaker(one, lips, choices, lesser(amount[number], spoken)))
            silent.append(outcome.nothing_dubbed(each[number], lips, pauses, outcome.passed_through(each[number], shown), options.silence))
        for kept_over in outcome.kept_on_top(cast.tracks, each, shown):
            warn(kept_over)
        status = outcome.together(each)
        spans = outcome.passed_through(status, shown)
        silent_video = stack.enter_context(media.unfinished(out))
        painted = sum(speaker.choices.painted for speaker in speakers)
        interior = open_interior(model.spec, device=options.device, threads=options.threads) if painted else None
        scene = Scene(
            opened.pictures, info, tuple(speakers), shown, model.spec, model.generator, interior,
            keep_pauses=options.silence == "keep", kept=kept, label=options.label, side_by_side=options.side_by_side, warn=warn,
        )  # fmt: skip
        if on_scene is not None:
            on_scene(scene)
        with clock("open"):
            copies = copied(scene, opened.encoder, crf=options.crf) if options.copy_outside else None
        told = counted(tell, "redrawing", len(shown))
        render(
            scene, silent_video, crf=options.crf, preset=options.preset, encoder=opened.encoder, clock=clock, on_frames=told, copies=copies
        )
        with clock("mux"), opened.finished(out) as whole:
            force = options.force or whole != out
            media.mux(silent_video, audible, whole, duration_s=shown.duration_s, force=force, sound=sound_plan, kept=kept, warn=warn)
    if not any(warning.kind == "clock-jump" for warning in warnings) and (cut := media.cut_off(info, pictures_s)) is not None:
        warn(cut)
    passed = sum(span.end - span.first for span in spans)
    warnings |= dict.fromkeys(outcome.silence_warnings([part.name for part in parts], silent))
    in_pause = np.logical_and.reduce([speaker.lips.in_pause for speaker in speakers])
    return DubReport(
        video=str(video), speech=str(speech), output=str(out), model=model.spec.name, provider=model.generator.provider, options=options,
        frames=len(shown), dubbed=len(shown) - passed, passed_through=passed, spans=spans,
        silent_frames=int((in_pause & (status == DUBBED)).sum()),
        video_s=float(pictures_s), speech_s=float(speech_s), output_s=float(shown.duration_s),
        wall_s=time.perf_counter() - started, stage_s=clock.seconds, version=__version__, analysis_cached=cast.cached,
        warnings=tuple(warnings), pages=sum(len(one.pages) for one in cast.tracks),
        painted=painted,
        copied=0 if copies is None else len(copies),
    )  # fmt: skip
