"""The scorecard of a model on a set of clips: cross-dubs with everything that has to stand beside them.

Each clip is cut in two. Its second half is dubbed with the first half's sound (*cross*: the true mouth for that sound is known) and with
its own (*own*: the true pixels are known); beside them the first half itself coded as a dub is (*ground truth*), another clip's sound
(*wrong audio*) and the mouth of one reference frame (*frozen*). What is done is kept: a second run goes on where the first one stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import __version__, media
from lipdub.atomic import remove_leftovers, write_whole
from lipdub.bundles import bundle
from lipdub.bundles.expert import SPEC_FILE as EXPERT_FILE
from lipdub.errors import LipdubError, NoAudioStream, OutputRefused, UnreadableMedia
from lipdub.evaluate import drawings
from lipdub.evaluate.clips import SOUND_HZ, ListedClip, cut_pictures, cut_sound, list_clips, seconds_of
from lipdub.evaluate.frozen import FrozenMouth, with_one_reference
from lipdub.evaluate.openings import MEASURABLE, open_share, openings_of
from lipdub.evaluate.page_use import PageUse
from lipdub.evaluate.scorecard import numbers, summarise
from lipdub.evaluate.scoring import Judges, Known, address_of, clip_record, faces_at, open_judges, score
from lipdub.evaluate.sync import PublicSync
from lipdub.evaluate.watch import tracked
from lipdub.faces.analysis_key import content_digest
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.model import Model, open_model
from lipdub.options import Device, Draw, DubOptions, Fit, Silence
from lipdub.pipeline import dub
from lipdub.reports import plain
from lipdub.stages import cores

FIGURES_VERSION = 6
"""Goes up whenever a figure is measured otherwise than before: kept results are measured again then."""
SILENCE_S = 4.0
"""So long is the sound of digital silence that each clip is dubbed with for the silent leak."""
OWN_FRAME_S = 0.2
"""Where a frame may not be drawn from itself, neither may it from frames as near as this."""
FEWEST_FRAMES = 50
RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class SetOptions:
    """What every clip is measured with.

    model, expert: by name or folder.
    out: folder for results and dubs.
    pieces: folder for what does not depend on the model.
    draw, exclude_own_s: how mouths are drawn, and how near to a redrawn frame no mouth is taken from; see ``dub``.
    threads: cores for one clip.
    open_public: opens the public SyncNet; `public_key` names its weights.
    detectors: makes what finds faces.
    """

    model: str
    out: Path
    pieces: Path
    silence: Silence = "close"
    draw: Draw = "auto"
    exclude_own_s: float = 0.0
    expert: str = "expert"
    device: Device = "cpu"
    threads: int = 1
    open_public: Callable[[], PublicSync] | None = field(default=None, compare=False)
    public_key: str = ""
    detectors: DetectorFactory = field(default=MediapipeDetector, compare=False)


@dataclass(frozen=True, slots=True)
class ClipTask:
    """A clip to measure, and the clip whose sound is the wrong one for it; None where there is no other."""

    clip: Path
    name: str
    other: Path | None


@dataclass(frozen=True, slots=True)
class ClipResult:
    """What became of a clip.

    record: as it stands in the JSON; None where the clip was left out.
    why: why it was left out, one line.
    kept: the record is of an earlier run.
    """

    name: str
    record: dict[str, Any] | None
    why: str = ""
    kept: bool = False


def find_clips(sources: Sequence[Path], *, seconds_min: float) -> tuple[list[ListedClip], dict[str, str]]:
    """The clips among `sources` (files, and folders as ``list_clips`` reads them), each once, and those left out with the reason.

    A file that is named is taken whatever its length. Raises UnreadableMedia: no such path, or no clip at all.
    """
    found: dict[Path, ListedClip] = {}
    left_out: dict[str, str] = {}
    for source in sources:
        if source.is_dir():
            listed, unreadable = list_clips(source, seconds_min=seconds_min)
            left_out |= unreadable
            found |= {clip.path.resolve(): clip for clip in listed}
        elif source.exists():
            found.setdefault(source.resolve(), ListedClip(source))
        else:
            raise UnreadableMedia(f"cannot read '{source}': there is no such file or folder; check the path")
    if not found:
        where = ", ".join(f"'{source}'" for source in sources)
        raise UnreadableMedia(
            f"no clip of at least {seconds_min:g} s to measure in {where} (looked for {', '.join(sorted(media.VIDEO_SUFFIXES))}); "
            "name other clips, or lower --seconds-min"
        )
    return sorted(found.values(), key=lambda clip: str(clip.path)), left_out


def tasks_of(clips: Sequence[ListedClip], only: str = "") -> list[ClipTask]:
    """A task per clip whose name holds `only`. Whose sound is the wrong one is chosen among all clips, so `only` changes no figure:
    the clip half the list further on, or the first after it by another speaker where speakers are known. Raises UnreadableMedia: no
    clip's name holds `only`."""
    tasks = []
    names = _unique_names([clip.path for clip in clips])
    for number, clip in enumerate(clips):
        if only not in clip.path.name:
            continue
        others = [clips[(number + len(clips) // 2 + step) % len(clips)] for step in range(len(clips))]
        others = [other for other in others if other.path != clip.path and _is_heard(other.path)]
        strangers = [other for other in others if not clip.speaker or other.speaker != clip.speaker]
        chosen = next(iter(strangers or others), None)
        tasks.append(ClipTask(clip.path, names[number], None if chosen is None else chosen.path))
    if not tasks:
        raise UnreadableMedia(f"no clip's name holds '{only}' (--only); there are {', '.join(clip.path.name for clip in clips[:8])}")
    return tasks


@lru_cache(maxsize=4096)
def _is_heard(clip: Path) -> bool:
    """Whether a clip has sound that can be read."""
    with suppress(LipdubError):
        return media.has_sound(clip)
    return False


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """File stems, with some hex digits where two clips share one."""
    stems = [path.stem[:80] for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem}.{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]}"
        for stem, path in zip(stems, paths, strict=True)
    ]


def run_settings(options: SetOptions) -> dict[str, str]:
    """What decides the figures beside the clips: the model's graphs and conventions, the judges, the code. Names to short values.

    Raises BundleNotFound, BundleInvalid.
    """
    folder = bundle.resolve(options.model)
    spec = bundle.load_spec(folder)
    expert = "none"
    with suppress(LipdubError):
        expert = content_digest(bundle.resolve(options.expert, spec_file=EXPERT_FILE) / EXPERT_FILE)[:16]
    return {
        "model": spec.name,
        "bundle": content_digest(folder / bundle.SPEC_FILE)[:16],  # which holds the graphs' hashes, as the expert's does
        "silence": options.silence,
        "draw": options.draw,
        "exclude_own_s": f"{options.exclude_own_s:g}",
        "expert": expert,
        "syncnet": options.public_key or "none",
        "figures": str(FIGURES_VERSION),
        "lipdub": __version__,
    }


def begin(options: SetOptions, *, force: bool) -> dict[str, str]:
    """Make the folders ready and note the settings in ``run.json``; the settings.

    Raises OutputRefused: the folder holds results of other settings and `force` is not given, or cannot be written.
    """
    settings = run_settings(options)
    note = options.out / RUN_FILE
    before: dict[str, str] = {}
    with suppress(OSError, ValueError):
        before = json.loads(note.read_text(encoding="utf-8"))
    differing = [f"{name} {before.get(name)} -> {value}" for name, value in settings.items() if before.get(name) != value]
    if before and differing and not force:
        raise OutputRefused(
            f"'{options.out}' holds a scorecard of other settings ({', '.join(differing)}); choose another folder, or add --force"
        )
    try:
        for folder in (options.out, options.out / "clips", options.out / "dubbed", options.pieces):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
    except OSError as error:
        raise OutputRefused(f"cannot write into '{options.out}': {error.strerror or error}; choose another folder") from error
    write_whole(note, json.dumps(settings, indent=2))
    return settings


def run_set(
    tasks: Sequence[ClipTask], options: SetOptions, settings: dict[str, str], *, jobs: int, on_clip: Callable[[ClipResult], None]
) -> list[ClipResult]:
    """Measure all clips, `jobs` at a time, and tell `on_clip` of each; in the order of `tasks`.

    Clips that were measured before with the same settings are not measured again. A clip that cannot be measured gives a reason; even
    one that brings its worker down does not end the run.
    """
    done: dict[str, ClipResult] = {}

    def book(result: ClipResult) -> None:
        done[result.name] = result
        on_clip(result)

    todo = []
    for task in tasks:
        kept = _kept(task, options, settings)
        if kept is None:
            todo.append(task)
        else:
            book(ClipResult(task.name, kept, kept=True))
    work = partial(measure, options, settings)
    if jobs == 1:
        for task in todo:
            book(work(task))
        todo = []
    for task in _in_pool(todo, work, jobs, book):
        # One of the clips that were under way brought a worker down: each on its own, so that it is known which.
        for unlucky in _in_pool([task], work, 1, book):
            book(ClipResult(unlucky.name, None, "its worker died, most likely for want of memory"))
    return [done[task.name] for task in tasks]


def _in_pool(
    tasks: Sequence[ClipTask], work: Callable[[ClipTask], ClipResult], jobs: int, book: Callable[[ClipResult], None]
) -> list[ClipTask]:
    """Do `tasks` in fresh processes; those that a dead worker left undone."""
    if not tasks:
        return []
    undone: list[ClipTask] = []
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn"), initializer=_quiet_worker)
    try:
        waiting = {pool.submit(work, task): task for task in tasks}
        while waiting:
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                task = waiting.pop(future)
                try:
                    book(future.result())
                except BrokenProcessPool:
                    undone.append(task)
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()
        raise
    return undone


def _quiet_worker() -> None:
    """A worker says nothing (mediapipe's native log lines) and, told to stop, cleans up before it does."""
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal is for the process that ends the workers
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def measure(options: SetOptions, settings: dict[str, str], task: ClipTask) -> ClipResult:
    """Measure one clip and keep the result in ``OUT/clips``; what goes wrong is a reason, never an exception."""
    cv2.setNumThreads(options.threads)
    try:
        record, pictures = measure_clip(options, task)
        record["key"] = _key(task, settings)
        for suffix, data in pictures.items():
            write_whole(options.out / "clips" / f"{task.name}{suffix}", data)
        write_whole(options.out / "clips" / f"{task.name}.json", json.dumps(record, allow_nan=False))
    except LipdubError as error:
        return ClipResult(task.name, None, str(error))
    except OSError as error:
        return ClipResult(task.name, None, f"{error.strerror or error} ({error.filename or 'no file'}); check the free space")
    except Exception as error:  # a bug that one clip brings out must not cost the other clips' hours
        return ClipResult(task.name, None, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return ClipResult(task.name, record)


def _key(task: ClipTask, settings: dict[str, str]) -> str:
    others = "" if task.other is None else content_digest(task.other)
    return hashlib.sha256(f"{content_digest(task.clip)} {others} {sorted(settings.items())}".encode()).hexdigest()[:16]


def _kept(task: ClipTask, options: SetOptions, settings: dict[str, str]) -> dict[str, Any] | None:
    """The record of an earlier run with the same clips and settings."""
    try:
        record: dict[str, Any] = json.loads((options.out / "clips" / f"{task.name}.json").read_text(encoding="utf-8"))
        return record if record["key"] == _key(task, settings) else None
    except (OSError, ValueError, KeyError, TypeError, LipdubError):
        return None


@lru_cache(maxsize=1)
def _opened(options: SetOptions) -> tuple[Model, Judges]:
    """The model and the judges, once per process."""
    model = open_model(options.model, device=options.device, threads=options.threads)
    public = None if options.open_public is None else options.open_public()
    return model, open_judges(options.expert, threads=options.threads, public=public)


@dataclass(frozen=True, slots=True)
class Pieces:
    """What is cut out of one clip.

    picture: second half. truth: first half. copy: the latter coded as a dub is.
    Sounds: of the first half, of the second, of another clip, and none.
    """

    picture: Path
    truth: Path
    copy: Path
    first_sound: Path
    own_sound: Path
    wrong_sound: Path | None
    silence: Path


def measure_clip(options: SetOptions, task: ClipTask) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record of one clip, ready for JSON, and its pictures by file name ending.

    Raises LipdubError where the clip cannot be measured.
    """
    model, judges = _opened(options)
    size = model.spec.crop.size
    pieces = cut_clip(task, options.pieces)
    known = partial(tracked, size=size, cache=options.pieces / "tracks", detectors=options.detectors, threads=options.threads)
    with ExitStack() as stack:
        source, truth = (Known(path, known(path)) for path in (pieces.picture, pieces.truth))
        for analysed in (source, truth):
            stack.enter_context(closing(analysed.track.references))
        own, true = openings_of(source.track), openings_of(truth.track)
        pages: dict[str, PageUse] = {}
        against = partial(score, mask=model.spec.crop, judges=judges, detectors=options.detectors)

        def dubbed(row: str, sound: Path, *, fit: Fit = "video", frozen: bool = False) -> Path:
            out = options.out / "dubbed" / f"{task.name}.{row}.mp4"
            track = known(pieces.picture)
            choices = DubOptions(fit=fit, silence=options.silence, draw=options.draw, threads=options.threads, force=True)
            if frozen:
                choices = replace(choices, silence="off", draw="paint")
            # Where a bundle does not tell where lips lie, all of the mouth is the generator's.
            still = replace(model, generator=FrozenMouth(model.spec), spec=replace(model.spec, points=False))
            drawn_by = still if frozen else model
            dub(
                pieces.picture,
                sound,
                out,
                choices,
                model=drawn_by,
                track=with_one_reference(track) if frozen else track,
                exclude_own_s=options.exclude_own_s,
                on_scene=lambda scene: pages.update({row: PageUse.of(scene)}),
            )
            return out

        cross = against(dubbed("cross", pieces.first_sound), source, pieces.first_sound, truth=truth, unwanted=own)
        silent = against(dubbed("silence", pieces.silence, fit="speech"), source, pieces.silence, judges=Judges(), unwanted=None).drawn
        cross.figures["silent_leak"] = open_share(silent)
        cross.left_out.pop("silent_leak", None)
        scores = {
            "cross": cross,
            "own": against(dubbed("own", pieces.own_sound), source, pieces.own_sound, truth=source),
            "ground_truth": against(pieces.copy, truth, pieces.first_sound, truth=truth, unwanted=own),
        }
        if pieces.wrong_sound is not None:
            wrong = dubbed("wrong_audio", pieces.wrong_sound)
            scores["wrong_audio"] = against(wrong, source, pieces.first_sound, truth=truth, unwanted=own)
        frozen = dubbed("frozen", pieces.first_sound, frozen=True)
        scores["frozen"] = against(frozen, source, pieces.first_sound, truth=truth, unwanted=own)
        scores["frozen_own"] = against(frozen, source, pieces.own_sound, truth=source)
        address = address_of(model, pieces.first_sound, cross.drawn.times_s)
        record = plain(
            {
                "wrong_audio_of": None if task.other is None else task.other.name,
                "measurable": bool(scores["ground_truth"].figures["r_cross"] >= MEASURABLE),
                "source_open_share": open_share(own),
                "pages": pages["cross"].record(),
                **clip_record(scores, {"truth": true, "source": own}, address, clip=task.clip.name, name=task.name),
            }
        )
        strips = [cross.source_strip, cross.strip, faces_at(truth, cross.strip_s)]
    return record, drawings.pictures_of(strips, address)


def cut_clip(task: ClipTask, folder: Path) -> Pieces:
    """Cut a clip into `folder`; pieces that are there already are left alone (their folder changes with the clip).

    Raises NoAudioStream, NoVideoStream, UnreadableMedia (also for fewer than ``FEWEST_FRAMES`` frames), EncodingFailed, WriteFailed.
    """
    clip = task.clip
    if not media.has_sound(clip):
        raise NoAudioStream(f"'{clip}' has no sound; a clip is measured by its own")
    at = folder / f"{task.name}.{content_digest(clip)[:12]}"
    at.mkdir(parents=True, exist_ok=True)
    remove_leftovers(at)
    times_s = _times_of(clip)
    if len(times_s) < FEWEST_FRAMES:
        raise UnreadableMedia(f"'{clip}' has {len(times_s)} frames; a clip of at least {FEWEST_FRAMES} is needed")
    middle, middle_s = len(times_s) // 2, float(times_s[len(times_s) // 2])
    pieces = Pieces(
        picture=at / "second.mp4",
        truth=at / "first.mp4",
        copy=at / "first_coded.mp4",
        first_sound=at / "first.wav",
        own_sound=at / "second.wav",
        wrong_sound=None if task.other is None else at / f"wrong.{content_digest(task.other)[:12]}.wav",
        silence=at / "silence.wav",
    )
    if not pieces.picture.exists():
        cut_pictures(clip, pieces.picture, middle, len(times_s))
    if not pieces.truth.exists():
        cut_pictures(clip, pieces.truth, 0, middle)
    if not pieces.copy.exists():
        cut_pictures(clip, pieces.copy, 0, middle, crf=DubOptions().crf, preset=DubOptions().preset)
    seconds = seconds_of(pieces.picture)
    for sound, of, start_s, length_s in (
        (pieces.first_sound, clip, 0.0, middle_s),
        (pieces.own_sound, clip, middle_s, seconds),
        (pieces.wrong_sound, task.other, 0.0, seconds),
    ):
        if sound is not None and of is not None and not sound.exists():
            cut_sound(of, sound, length_s, start_s=start_s)
    if not pieces.silence.exists():
        media.write_wav(pieces.silence, np.zeros(round(min(SILENCE_S, seconds) * SOUND_HZ)), SOUND_HZ)
    return pieces


def _times_of(video: Path) -> NDArray[np.float64]:
    """Times of all frames, float64 (N,)."""
    with closing(media.read_planes(video)) as chunks:
        return np.concatenate([chunk.times_s for chunk in chunks])


def set_scorecard(results: Sequence[ClipResult], settings: dict[str, str], left_out: dict[str, str]) -> dict[str, Any]:
    """The scorecard of a set, ready for JSON: statistics over all clips and over the measurable ones, the clips, those left out."""
    clips = [result.record for result in results if result.record is not None]
    rows = [{row: numbers(figures) for row, figures in clip["rows"].items()} for clip in clips]
    measurable = [row for row, clip in zip(rows, clips, strict=True) if clip["measurable"]]
    return {
        "settings": settings,
        "summary": {"all": summarise(rows), "measurable": summarise(measurable)},
        "clips": clips,
        "left_out": left_out | {result.name: result.why for result in results if result.record is None},
    }


def pictures_of(results: Sequence[ClipResult], options: SetOptions) -> dict[str, dict[str, bytes]]:
    """The pictures that lie beside the records: clip name to pictures by file name ending."""
    found: dict[str, dict[str, bytes]] = {}
    for result in results:
        for ending in (".strip.jpg", ".address.png"):
            with suppress(OSError):
                found.setdefault(result.name, {})[ending] = (options.out / "clips" / f"{result.name}{ending}").read_bytes()
    return found


def with_threads(options: SetOptions, jobs: int) -> SetOptions:
    """The options with the processor's cores shared out among `jobs` processes."""
    return replace(options, threads=max(1, cores() // max(1, jobs)))
