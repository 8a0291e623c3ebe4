"""A dub of ten seconds, from a file to a file, with all that a real one uses, and a look at what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lipdub.checkup.doctor.finding import Finding, guarded

SECONDS = 10.0
SIDE_PX = 512
_FIX = "mend what is bad above; if all is well there, report this with 'lipdub doctor --json'"
_MOVES = 3.0
"""Grey levels by which the box around the mouth must differ from the source; encoding alone changes it by less than one."""


def look(task: Mapping[str, Any]) -> list[dict[str, str]]:
    """The finding of the dub, as JSON. task: {"folder": an empty one, "seconds": length of the dub}."""
    return [asdict(finding) for finding in guarded("self-dub", lambda: dub_of(task["seconds"], Path(task["folder"])), _FIX)]


def dub_of(seconds: float, folder: Path) -> Iterator[Finding]:
    """Dub `seconds` of the portrait, and look at what was written. Files go to `folder` and stay there."""
    from lipdub import media
    from lipdub.checkup import sample_media
    from lipdub.pipeline import dub

    video, speech, out = (folder / name for name in ("portrait.mp4", "speech.wav", "dubbed.mp4"))
    sample_media.write_video(video, seconds=seconds, width=SIDE_PX, height=SIDE_PX)
    sample_media.write_speech(speech, seconds=seconds)
    report = dub(video, speech, out)
    info = media.probe(out)
    wrong = []
    if report.dubbed != report.frames:
        wrong.append(f"only {report.dubbed} of {report.frames} frames were dubbed")
    if not info.has_audio:
        wrong.append("the output has no sound")
    if info.duration_s is None or abs(float(info.duration_s) - seconds) > 0.1:
        wrong.append(f"the output lasts {float(info.duration_s or 0):.2f} s, not {seconds:.2f} s")
    change = mouth_change(video, out)
    if change < _MOVES:
        wrong.append(f"the mouth was not redrawn (it differs from the source by {change:.2f} grey levels)")
    speed = report.frames / report.wall_s / sample_media.FRAMES_PER_S if report.wall_s > 0 else 0.0
    what = f"{seconds:g} s dubbed in {report.wall_s:.1f} s, {speed:.1f} x real time, on {report.provider}"
    if wrong:
        yield Finding("self-dub", "red", f"{what}; but {'; '.join(wrong)}", _FIX)
    elif speed < 1:
        yield Finding("self-dub", "yellow", what, "slower than real time: is the machine busy? 'lipdub bench' shows which stage takes it")
    else:
        yield Finding("self-dub", "green", what)


def mouth_change(source: Path, dubbed: Path) -> float:
    """Mean difference of two videos in the box around the portrait's mouth, in grey levels, over a few frames."""
    import numpy as np

    from lipdub import media

    with closing(media.read_frames(source)) as one, closing(media.read_frames(dubbed)) as other:
        before, after = (next(chunks).pixels[:25] for chunks in (one, other))
    count, height, width = min(len(before), len(after)), *before.shape[1:3]
    # the mouth of sample_media.PORTRAIT, as shares of a square picture
    box = np.s_[:count, int(0.42 * height) : int(0.5 * height), int(0.45 * width) : int(0.56 * width)]
    return float(np.abs(before[box].astype(np.int16) - after[box].astype(np.int16)).mean())
