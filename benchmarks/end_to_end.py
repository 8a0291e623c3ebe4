"""Do whole videos, as users have them, come out whole?

Every video of a manifest with ``use=end_to_end`` is dubbed with foreign speech; ffprobe then says how many frames the output has,
at what times, and for how long picture and sound last. All source times must be there, tick for tick; the picture must last as long
as the longer of picture and speech (``--fit longest``), the sound as long as the speech. A contact sheet of each lies beside it, to be
looked at.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import common
from lipdub import media
from lipdub.checkup.sheet import contact_sheet
from lipdub.errors import LipdubError
from lipdub.options import DubOptions
from lipdub.pipeline import dub


def main(arguments: list[str]) -> int:
    """Dub, check, print the table, write the JSON; exit code 1 if any video is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks end-to-end", description=__doc__)
    parser.add_argument("--manifest", type=Path, default=Path("../shared/clips/manifest.csv"))
    parser.add_argument("--speech", type=Path, nargs="+", help="given in turn; default: the files in speech/ beside the manifest")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="just the videos whose name holds this")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    if shutil.which("ffprobe") is None:
        parser.error("ffprobe is needed to check the outputs; install ffmpeg")
    options.out.mkdir(parents=True, exist_ok=True)
    speeches = options.speech or sorted((options.manifest.parent / "speech").glob("*.wav"), key=lambda path: path.stat().st_size)
    with options.manifest.open(newline="", encoding="utf-8") as stream:
        videos = [options.manifest.parent / row["file"] for row in csv.DictReader(stream) if row["use"] == "end_to_end"]
    chosen = [(video, speeches[number % len(speeches)]) for number, video in enumerate(videos) if options.only in video.name]
    rows = [check(video, speech, options.out, options.model) for video, speech in chosen]
    keys = ("video", "speech", "frames", "source_frames", "dubbed", "why", "picture_s", "speech_s", "sound_s", "fps", "verdict")
    heads = [{"source_frames": "source", "why": "passed through", "fps": "frames/s"}.get(key, key.replace("_s", " s")) for key in keys]
    common.table(f"whole videos, model {options.model}", heads, [[row[key] for key in keys] for row in rows])
    common.write_json(options.json, rows)
    return 0 if all(row["verdict"] == "right" for row in rows) else 1


def check(video: Path, speech: Path, folder: Path, model: str) -> dict[str, Any]:
    """Dub one video with one speech and compare what came out with what the rule says."""
    out = folder / f"{video.stem}.mp4"
    row: dict[str, Any] = {key: "" for key in ("frames", "source_frames", "dubbed", "why", "picture_s", "speech_s", "sound_s", "fps")}
    row |= {"video": video.name, "speech": speech.name}
    try:
        report = dub(video, speech, out, DubOptions(model=model, force=True))
    except LipdubError as error:
        return row | {"verdict": f"failed: {error}"}
    contact_sheet(out, out.with_suffix(".png"), force=True)
    before, after = _times(video), _times(out)
    # The copy keeps what the source's clock says; a source that starts late keeps its start.
    shift = after[0] - before[0]
    tick = Fraction(1, 1000)
    problems = []
    if len(after) < len(before) or any(abs(a - b - shift) > tick for a, b in zip(after, before, strict=False)):
        problems.append("source times changed")
    if any(b <= a for a, b in pairwise(after)):
        problems.append("times do not increase")
    info = media.probe(video)
    wanted_s = max(float(info.duration_s or 0), report.speech_s)
    picture_s, sound_s = _duration(out, "v:0"), _duration(out, "a:0")
    step = float(1 / info.frame_rate)
    if abs(picture_s - wanted_s) > step:
        problems.append(f"picture lasts {picture_s:.3f} s, should {wanted_s:.3f} s")
    if abs(sound_s - report.speech_s) > 0.05:
        problems.append(f"sound lasts {sound_s:.3f} s, speech {report.speech_s:.3f} s")
    if report.frames != len(after):
        problems.append(f"{len(after)} frames, reported {report.frames}")
    why = sorted({span.why for span in report.spans})
    return row | {
        "frames": len(after),
        "source_frames": len(before),
        "dubbed": report.dubbed,
        "why": f"{report.passed_through} {', '.join(why)}" if why else "0",
        "picture_s": f"{picture_s:.3f}",
        "speech_s": f"{report.speech_s:.3f}",
        "sound_s": f"{sound_s:.3f}",
        "fps": f"{report.frames_per_s:.1f}",
        "verdict": "; ".join(problems) or "right",
    }


def _times(video: Path) -> list[Fraction]:
    """Presentation times of all pictures that are shown, in order, as ffprobe tells them: an edit list discards some (flag D)."""
    found = _ffprobe(video, "v:0", "packet=pts,flags:stream=time_base")
    base = Fraction(found["streams"][0]["time_base"])
    return sorted(int(packet["pts"]) * base for packet in found["packets"] if "pts" in packet and "D" not in packet["flags"])


def _duration(video: Path, stream: str) -> float:
    found = _ffprobe(video, stream, "stream=duration")["streams"]
    return float(found[0]["duration"]) if found else 0.0


def _ffprobe(video: Path, stream: str, entries: str) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-select_streams", stream, "-show_entries", entries, "-of", "json", str(video)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
