"""How long a batch may take: two seconds of the first row are dubbed, the rest is scaled by pixels and length. An estimate, no more."""

from __future__ import annotations

import tempfile
import time
import wave
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from lipdub import media
from lipdub.batch.plan import Step
from lipdub.batch.rows import Location, Row
from lipdub.errors import LipdubError, UnreadableMedia
from lipdub.media.excerpt import excerpt

TRIED_S: Final = 2.0
"""Seconds of video that are dubbed for an estimate."""
_SOUND_HZ: Final = 16000


@dataclass(frozen=True, slots=True)
class Estimate:
    """work_s: seconds of one worker for all rows. output_s: length of all outputs. unknown: rows whose size or length could not be
    told, taken as the average of the others. line: of the row that was tried, and how many seconds of it."""

    work_s: float
    output_s: float
    unknown: int
    line: int
    tried_s: float


@dataclass(frozen=True, slots=True)
class _Load:
    """What a row asks for. pixels: of one picture. frames: of the output. seen: frames whose face has to be found first."""

    pixels: int
    frames: float
    seen: float
    output_s: float

    @property
    def work(self) -> float:
        return self.pixels * (self.frames + self.seen)


def estimate(steps: Sequence[Step], *, cache: bool = True) -> Estimate:
    """About how long the rows of `steps` take on this machine, one after the other. Writes only to a folder of its own, which goes.

    cache: a second row with the same video finds its faces done.

    Raises LipdubError: no row could be tried; why the first one could not.
    """
    loads: dict[int, _Load] = {}
    seen: set[Location] = set()
    first_error: LipdubError | None = None
    for number, step in enumerate(steps):
        try:
            loads[number] = _load(step.row, known=cache and step.row.video in seen)
            seen.add(step.row.video)
        except LipdubError as error:
            first_error = first_error or error
    for number in list(loads)[:3]:  # a first row without a face is no reason to give up
        try:
            start_s, work_s, tried = _try(steps[number].row)
        except LipdubError as error:
            first_error = first_error or error
            continue
        known_s = [start_s + work_s * load.work / tried.work for load in loads.values()]
        unknown = len(steps) - len(loads)
        share = len(steps) / len(loads)
        output_s = sum(load.output_s for load in loads.values()) * share
        return Estimate(sum(known_s) * share, output_s, unknown, steps[number].row.line, tried.output_s)
    raise first_error or UnreadableMedia("no row could be tried; check the manifest")


def _load(row: Row, *, known: bool) -> _Load:
    if not isinstance(row.video, Path) or not isinstance(row.speech, Path):
        raise UnreadableMedia("videos and speech at URLs are not fetched for an estimate")
    info = media.probe(row.video)
    speech_s = float(media.audio_duration_s(row.speech))
    video_s = 0.0 if info.is_still else float(info.duration_s or speech_s)
    output_s = {"longest": max(video_s, speech_s), "video": video_s or speech_s, "speech": speech_s}[row.options.fit]
    rate = float(info.frame_rate)
    return _Load(info.width * info.height, output_s * rate, 0.0 if known else max(1.0, video_s * rate), output_s)


def _try(row: Row) -> tuple[float, float, _Load]:
    """Dub the first seconds of a row: seconds to get ready, seconds of work, and how much work that was. Raises LipdubError."""
    from lipdub.pipeline import dub

    assert isinstance(row.video, Path)
    assert isinstance(row.speech, Path)
    with tempfile.TemporaryDirectory(prefix="lipdub-") as name:
        folder = Path(name)
        info = media.probe(row.video)
        video, speech = row.video, folder / "speech.wav"
        if not info.is_still:
            video = excerpt(row.video, folder, seconds=TRIED_S)
        _cut_speech(row.speech, speech)
        options = replace(row.options, fit="longest", strict=False)
        started = time.perf_counter()
        report = dub(video, speech, folder / "dubbed.mp4", options)
        wall_s = time.perf_counter() - started
        tried = _load(replace(row, video=video, speech=speech, options=options), known=False)
    start_s = min(report.stage_s.get("open", 0.0), wall_s)
    return start_s, wall_s - start_s, replace(tried, output_s=report.output_s)


def _cut_speech(speech: Path, copy: Path) -> None:
    """The first seconds of a speech as WAV."""
    pieces, count = [], 0
    with closing(media.read_audio(speech, _SOUND_HZ)) as sound:
        for piece in sound:
            pieces.append(piece)
            count += len(piece)
            if count >= TRIED_S * _SOUND_HZ:
                break
    samples = np.concatenate(pieces)[: round(TRIED_S * _SOUND_HZ)]
    with wave.open(str(copy), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SOUND_HZ)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
