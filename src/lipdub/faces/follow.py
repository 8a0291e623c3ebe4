"""``follow``: the first pass over a video, or what the cache remembers of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lipdub import media
from lipdub.faces.analysis import analyse_each, sightings
from lipdub.faces.cache import AnalysisCache, Choices, cached_tracks
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.people import Person, people_in
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.options import FaceLimits
from lipdub.records import VideoInfo
from lipdub.stages import Clock, Stages, cores


def follow(
    video: Path,
    info: VideoInfo,
    choices: Choices = (None,),
    *,
    size: int,
    detectors: DetectorFactory = MediapipeDetector,
    cache: AnalysisCache | None = None,
    clock: Clock | None = None,
    on_frames: Callable[[int], None] | None = None,
    threads: int | None = None,
    limits: FaceLimits = FaceLimits(),
) -> list[tuple[FaceTrack, bool]]:
    """For each of the choices the face in every frame of `video`, whose `info` was read before, and whether the cache knew it. The video is
    watched once at most. The caller closes the references.

    choices: who is followed; None for who is most prominent in each shot.
    size: side of the reference crops in px.
    detectors: makes one detector, and more where there are cores for them.
    cache: where analyses are kept, None for nowhere.
    clock: has the time booked.
    on_frames: told how many frames each step took.
    threads: cores to use, None for all of this process; with fewer cores fewer detectors watch at once.
    limits: which faces can be dubbed.

    Raises UnreadableMedia, NoVideoStream. NoFaceFound: nobody is meant by a choice.
    """
    clock = clock or Clock()
    # Stages inside count for themselves: what is left for the cache is reading the file and the kept track.
    with nullcontext() if cache is None else clock("cache"):
        at_once = _side_by_side(threads or cores())
        analysed = partial(_analysed, video, info, size, detectors, clock, on_frames, at_once, limits)
        return cached_tracks(video, analysed, size_px=size, choices=choices, cache=cache, limits=limits)


def _analysed(
    video: Path,
    info: VideoInfo,
    size: int,
    detectors: DetectorFactory,
    clock: Clock,
    on_frames: Callable[[int], None] | None,
    at_once: int,
    limits: FaceLimits,
    choices: Choices,
) -> list[FaceTrack]:
    with clock("faces"), ExitStack() as stack:
        first, *more = [stack.enter_context(closing(detectors())) for _ in range(at_once)]
        stages = stack.enter_context(Stages())
        frames = stages.ahead(clock.timed("decode", media.read_planes(video)))
        found = analyse_each(clock.timed("wait", frames), first, choices, size=size, on_frames=on_frames, more=more, limits=limits)
    return [held_still(track) for track in found] if info.is_still else found


def people_of(
    video: Path, *, detectors: DetectorFactory = MediapipeDetector, on_frames: Callable[[int], None] | None = None
) -> list[Person]:
    """Who is in `video`. Raises UnreadableMedia, NoVideoStream."""
    with ExitStack() as stack:
        first, *more = [stack.enter_context(closing(detectors())) for _ in range(_side_by_side(cores()))]
        frames = stack.enter_context(Stages()).ahead(iter(media.read_planes(video)))
        return people_in(sightings(frames, first, on_frames=on_frames, more=more))


def held_still(track: FaceTrack) -> FaceTrack:
    """The one-frame track of a photo with full strength: a photo has no edges to fade at."""
    return replace(track, strength=(track.status == DUBBED).astype(np.float32))


def _side_by_side(threads: int) -> int:
    """Detectors that watch at once: one on up to three cores, where decoding and the mesh fill them; at most eight."""
    return min(8, max(1, threads // 2))
