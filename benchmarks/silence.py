"""Does digital silence close the mouth?

Clips are dubbed with digital silence and ``--silence close``; counted are the frames whose mouth is open all the same
(inner-lip distance over eye distance above 0.06), beside those of the untouched clip.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import common
from lipdub import media
from lipdub.bundles.bundle import load_spec, resolve
from lipdub.evaluate.clips import SOUND_HZ, cut_pictures, seconds_of, write_wav
from lipdub.evaluate.openings import OPEN_ABOVE, Openings, open_share, openings_of
from lipdub.evaluate.watch import openings_beside, tracked
from lipdub.options import Silence
from lipdub.pipeline import dub


@dataclass(frozen=True)
class Options:
    """What every clip is dubbed with."""

    model: str
    out: Path
    seconds: float
    threads: int
    silence: Silence


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks silence", description=__doc__)
    parser.add_argument("videos", type=Path, nargs="*", help="default: the clips of --clips and examples/portrait.mp4")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--clips", type=Path, default=Path("../shared/clips/val"), help="folder of clips")
    parser.add_argument("--out", type=Path, required=True, help="folder for cut clips, dubs and the cache")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each video, from its start")
    parser.add_argument("--seconds-min", type=float, default=8.0, help="clips of --clips that are shorter are left out")
    parser.add_argument("--silence", choices=("close", "keep", "off"), default="close")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    videos = options.videos or common.default_videos(options.clips, seconds_min=options.seconds_min)
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = Options(options.model, options.out, options.seconds, common.threads_per_job(options.jobs), options.silence)
    rows = common.spread(partial(measure_video, chosen), videos, jobs=options.jobs, label=common.short)
    total = {key: sum(row[key] for row in rows) for key in ("frames_with_face", "open", "untouched_frames_with_face", "untouched_open")}
    overall = {
        "share_open": total["open"] / max(1, total["frames_with_face"]),
        "untouched_share_open": total["untouched_open"] / max(1, total["untouched_frames_with_face"]),
    }
    common.table(
        f"dubbed with digital silence, --silence {options.silence}, model {options.model}: share of frames with an open mouth",
        ["clip", "frames", "open", "untouched open", "mean opening", "highest", "faceless"],
        [
            *(
                [
                    common.short(Path(row["clip"])), row["frames"], row["share_open"], row["untouched_share_open"],
                    row["mean_opening"], row["highest_opening"], row["frames"] - row["frames_with_face"],
                ]
                for row in rows
            ),
            ["overall", sum(row["frames"] for row in rows), overall["share_open"], overall["untouched_share_open"], "", "", ""],
        ],
    )  # fmt: skip
    common.write_json(options.json, {"model": options.model, "silence": options.silence, **overall, "clips": rows})
    return 0


def measure_video(options: Options, video: Path) -> dict[str, Any]:
    """Figures of one video."""
    cv2.setNumThreads(options.threads)
    cut, sound, dubbed = (options.out / f"{video.stem}.{ending}" for ending in ("cut.mp4", "silence.wav", "silent.mp4"))
    info = media.probe(video)
    cut_pictures(video, cut, 0, max(1, round(options.seconds * info.frame_rate)))
    seconds = seconds_of(cut)
    write_wav(sound, np.zeros(max(1, round(seconds * SOUND_HZ)), np.float32))
    dub(cut, sound, dubbed, model=options.model, fit="video", silence=options.silence, threads=options.threads, force=True)
    with closing((track := tracked(cut, size=load_spec(resolve(options.model)).crop.size)).references):
        drawn, own = openings_beside(dubbed, cut, track), openings_of(track)
    faces, own_faces = int(np.isfinite(drawn.opening).sum()), int(np.isfinite(own.opening).sum())
    opened, own_opened = _open_frames(drawn), _open_frames(own)
    return {
        "clip": video.name,
        "frames": len(drawn),
        "frames_with_face": faces,
        "open": opened,
        "share_open": open_share(drawn),
        "mean_opening": float(np.nanmean(drawn.opening)) if faces else float("nan"),
        "highest_opening": float(np.nanmax(drawn.opening)) if faces else float("nan"),
        "untouched_frames_with_face": own_faces,
        "untouched_open": own_opened,
        "untouched_share_open": open_share(own),
    }


def _open_frames(found: Openings) -> int:
    return int((found.opening > OPEN_ABOVE).sum())
