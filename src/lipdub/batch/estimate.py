"""How long a batch may take: two seconds of the first row are dubbed, the rest is scaled by pixels and length. An estimate, no more."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

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


def estimate(steps: Sequence[Step], *, cache: bool = True) -> Estimate:
    """About how long the rows of `steps` take on this machine, one after the other. Writes only to a folder of its own, which goes.

    cache: a second row with the same video finds its faces done.

    Raises LipdubError: no row could be tried; why the first one could not.
    """
    loads: dict[int, tuple[float, float]] = {}
    seen: set[Location] = set()
    refused: list[LipdubError] = []
    for number, step in enumerate(steps):
        try:
            loads[number] = load_of(step.row, analysed=cache and step.row.video in seen)
            seen.add(step.row.video)
        except LipdubError as error:
            refused.append(error)
    for number in list(loads)[:3]:  # a first row without a face is no reason to give up
        try:
            start_s, pixels_per_s, tried_s = _try(steps[number].row)
        except LipdubError as error:
            refused.append(error)
            continue
        share = len(steps) / len(loads)
        work_s = sum(start_s + pixels / pixels_per_s for pixels, _ in loads.values())
        output_s = sum(seconds for _, seconds in loads.values())
        return Estimate(work_s * share, output_s * share, len(steps) - len(loads), steps[number].row.line, tried_s)
    raise refused[0] if refused else UnreadableMedia("no row could be tried; check the manifest")


def load_of(row: Row, *, analysed: bool) -> tuple[float, float]:
    """Pixels that have to be drawn, and looked at unless the video is `analysed`; seconds of output. Raises LipdubError."""
    if not isinstance(row.video, Path) or not isinstance(row.speech, Path):
        raise UnreadableMedia("videos and speech at URLs are not fetched for an estimate")
    info = media.probe(row.video)
    speech_s = float(media.audio_duration_s(row.speech))
    video_s = 0.0 if info.is_still else float(info.duration_s or speech_s)
    output_s = {"video": video_s or speech_s, "speech": speech_s}.get(row.options.fit, max(video_s, speech_s))
    frames = output_s * info.frame_rate + (0 if analysed else max(1, video_s * info.frame_rate))
    return float(info.width * info.height * frames), output_s


def _try(row: Row) -> tuple[float, float, float]:
    """Dub the first seconds of a row: seconds to get ready, then pixels a second, seconds of output. Raises LipdubError."""
    from lipdub.pipeline import dub

    assert isinstance(row.video, Path)
    assert isinstance(row.speech, Path)
    with tempfile.TemporaryDirectory(prefix="lipdub-") as name:
        folder = Path(name)
        video = row.video if media.probe(row.video).is_still else excerpt(row.video, folder, seconds=TRIED_S)
        speech = folder / "speech.wav"
        media.write_wav(speech, media.first_samples(row.speech, _SOUND_HZ, round(TRIED_S * _SOUND_HZ)), _SOUND_HZ)
        options = replace(row.options, fit="longest", strict=False)
        started = time.perf_counter()
        report = dub(video, speech, folder / "dubbed.mp4", options)
        wall_s = time.perf_counter() - started
        pixels, _ = load_of(replace(row, video=video, speech=speech, options=options), analysed=False)
    start_s = min(report.stage_s.get("open", 0.0), wall_s)
    return start_s, pixels / max(1e-9, wall_s - start_s), report.output_s
