"""Are the pixels outside the mask left as they were?

PSNR between the video and its dub at the default quality, over all pixels of all frames that the paste mask does not reach.
The mask is worked out again from the video and grown by 8 px, since a codec spreads a change within its blocks. ``codec
alone`` is the same for the video just decoded and encoded again: what is lost beyond it is the dub's doing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from lipdub import media
from lipdub.bundles import bundle
from lipdub.evaluate.clips import cut_pictures
from lipdub.evaluate.outside import OutsideError, outside_mask
from lipdub.faces.detector import MediapipeDetector
from lipdub.faces.follow import analyse
from lipdub.pipeline import DEFAULT_CRF, DEFAULT_PRESET, dub

TARGET_DB = 42.0


@dataclass(frozen=True)
class Options:
    """What every video is dubbed with."""

    model: str
    speech: Path
    out: Path
    threads: int
    crf: int


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks outside", description=__doc__)
    parser.add_argument("videos", type=Path, nargs="*", help="default: the clips of --clips and examples/portrait.mp4")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--clips", type=Path, default=Path("../shared/clips/val"), help="folder of clips")
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"))
    parser.add_argument("--seconds-min", type=float, default=8.0, help="clips of --clips that are shorter are left out")
    parser.add_argument("--crf", type=int, default=DEFAULT_CRF)
    parser.add_argument("--out", type=Path, required=True, help="folder for the dubs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    videos = options.videos or common.default_videos(options.clips, seconds_min=options.seconds_min)
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = Options(options.model, options.speech, options.out, common.threads_per_job(options.jobs), options.crf)
    rows = common.spread(partial(measure_video, chosen), videos, jobs=options.jobs, label=common.short)
    common.table(
        f"PSNR outside the mask in dB, crf {options.crf}, model {options.model} (target: at least {TARGET_DB:g})",
        ["clip", "size", "frames", "outside", "RGB", "luma", "worst frame", "codec alone: RGB", "luma", ""],
        [
            [
                common.short(Path(row["clip"])), row["size"], row["frames"], row["share_outside"], row["dub"]["rgb_db"],
                row["dub"]["luma_db"], row["dub"]["worst_frame_rgb_db"], row["codec"]["rgb_db"], row["codec"]["luma_db"],
                "" if row["dub"]["rgb_db"] >= TARGET_DB else "below",
            ]
            for row in rows
        ],
    )  # fmt: skip
    reached = [row["dub"]["rgb_db"] for row in rows]
    common.CONSOLE.print(f"RGB: mean {np.mean(reached):.2f}, worst {min(reached):.2f} dB")
    common.write_json(options.json, {"model": options.model, "crf": options.crf, "target_db": TARGET_DB, "clips": rows})
    return 0


def measure_video(options: Options, video: Path) -> dict[str, Any]:
    """Figures of one video."""
    cv2.setNumThreads(options.threads)
    spec = bundle.load_spec(bundle.resolve(options.model)).crop
    dubbed, coded = options.out / f"{video.stem}.mp4", options.out / f"{video.stem}.codec.mp4"
    dub(video, options.speech, dubbed, model=options.model, fit="video", crf=options.crf, threads=options.threads, force=True)
    cut_pictures(video, coded, 0, 2**31, crf=options.crf, preset=DEFAULT_PRESET)
    with MediapipeDetector() as detector, closing(media.read_planes(video)) as frames:
        track = analyse(frames, detector, size=spec.size)
    by_dub, by_codec = OutsideError(), OutsideError()
    total = 0
    with closing(track.references):
        for number, (source, new, again) in enumerate(zip(_frames(video), _frames(dubbed), _frames(coded), strict=True)):
            height, width = source.shape[:2]
            where = outside_mask(track, number, spec, (height, width))
            by_dub.add(source, new[:height, :width], where)
            by_codec.add(source, again[:height, :width], where)
            total += height * width
    return {
        "clip": video.name,
        "size": f"{width}x{height}",
        "frames": len(track),
        "share_outside": by_dub.pixels / total,
        "dub": _figures(by_dub),
        "codec": _figures(by_codec),
    }


def _figures(error: OutsideError) -> dict[str, float]:
    return {"rgb_db": error.rgb_db(), "luma_db": error.luma_db(), "worst_frame_rgb_db": error.worst_frame_rgb_db()}


def _frames(video: Path) -> Iterator[NDArray[np.uint8]]:
    with closing(media.read_frames(video)) as chunks:
        for chunk in chunks:
            yield from chunk.pixels
