"""Does looking at a small picture, and going on from the frame before, cost accuracy?

The shipped detector averages the window around a face down to 256 px, and its mesh starts from where the face was in the frame before.
It is compared with the dear way: the window in full resolution, and every frame searched anew. Also shown: smaller windows, and
landmarks for every second frame only, with the ones between interpolated.

moved: distance of the aligned crop's corners from where the dear way puts them, share of the crop's side, median and 99th percentile
(a crop of 128 px has pixels of 0.8 %). opening r: correlation of the mouth's opening with the dear way's. shake: second difference in time
of the raw alignment, over the dear way's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common, record
from lipdub import media
from lipdub.faces import crop
from lipdub.faces import detector as detector_module
from lipdub.faces.detector import MediapipeDetector
from lipdub.faces.follow import analyse
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.media.planes import Picture, YuvChunk
from lipdub.records import Face

FULL_PX = 4096
CORNERS = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], np.float64)


@dataclass(frozen=True)
class Way:
    """One way of finding landmarks. mesh_px: longest side of a window; anew: search every frame; every: frames between two looks."""

    name: str
    mesh_px: int = detector_module.MESH_PX
    anew: bool = False
    every: int = 1


WAYS = (
    Way("full window, every frame anew", mesh_px=FULL_PX, anew=True),
    Way("full window, tracked", mesh_px=FULL_PX),
    Way("256 px, tracked (shipped)"),
    Way("192 px, tracked", mesh_px=192),
    Way("128 px, tracked", mesh_px=128),
    Way("256 px, every second frame", every=2),
)


class _Looking:
    """The detector as a `Way` has it."""

    def __init__(self, detector: MediapipeDetector, way: Way) -> None:
        self._detector, self._way, self._number = detector, way, 0
        self.raw: list[NDArray[np.float64]] = []
        self.seconds = 0.0

    def detect(self, picture: Picture | NDArray[np.uint8]) -> list[Face]:
        self._number += 1
        if (self._number - 1) % self._way.every:
            return []
        if self._way.anew:
            self._detector.reset()
        started = time.thread_time()
        found = self._detector.detect(picture)
        self.seconds += time.thread_time() - started
        if found:
            self.raw.append(crop.unit_to_frame(crop.fit_similarity(found[0].landmarks))[0])
        return found

    def reset(self) -> None:
        self._detector.reset()

    def close(self) -> None:
        self._detector.close()


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks landmarks", description=__doc__)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=150, help="of each video")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    rows: dict[str, list[dict[str, float]]] = {way.name: [] for way in WAYS}
    for video in options.videos:
        dear: tuple[FaceTrack, float] | None = None
        for way in WAYS:
            track, shake, seconds = look(video, way, options.frames)
            dear = dear or (track, shake)
            rows[way.name].append(compare(track, dear[0]) | {"shake": shake / dear[1], "ms_per_frame": 1e3 * seconds / len(track)})
        common.CONSOLE.print(f"{common.short(video)}: {len(track)} frames")
    means = {name: {key: float(np.mean([row[key] for row in found])) for key in found[0]} for name, found in rows.items()}
    common.table(
        f"{len(options.videos)} videos, mean",
        ["", "moved, median %", "moved, 99th %", "opening r", "found", "shake", "ms/frame"],
        [
            [name, *(row[key] for key in ("moved", "moved_99", "opening_r", "found", "shake", "ms_per_frame"))]
            for name, row in means.items()
        ],
    )
    found = [{"way": name, **row} for name, row in means.items()]
    names = [video.name for video in options.videos]
    common.write_json(options.json, record.record("landmarks", arguments, found, videos=names, frames=options.frames))
    return 0


def look(video: Path, way: Way, frames: int) -> tuple[FaceTrack, float, float]:
    """The track of the first `frames`, the shake of the raw alignment, and the seconds of processor time in the calling thread."""
    detector_module.MESH_PX, kept = way.mesh_px, detector_module.MESH_PX
    try:
        with MediapipeDetector() as detector, closing(media.read_planes(video)) as chunks:
            looking = _Looking(detector, way)
            track = analyse(_first(chunks, frames), looking, size=32)
            track.references.close()
    finally:
        detector_module.MESH_PX = kept
    raw = np.stack(looking.raw) @ CORNERS.T
    return track, float(np.abs(np.diff(raw, n=2, axis=0)).mean()), looking.seconds


def compare(track: FaceTrack, dear: FaceTrack) -> dict[str, float]:
    """A track beside the dear one's."""
    both = (track.why == DUBBED) & (dear.why == DUBBED)
    one, other = (crop.unit_to_frame(kind.similarity[both]) @ CORNERS.T for kind in (track, dear))
    side = np.linalg.norm(other[:, :, 1] - other[:, :, 0], axis=1)
    moved = 100 * np.linalg.norm(one - other, axis=1).max(axis=1) / side
    return {
        "moved": float(np.median(moved)),
        "moved_99": float(np.percentile(moved, 99)),
        "opening_r": float(np.corrcoef(track.opening[both], dear.opening[both])[0, 1]),
        "found": float((track.why == DUBBED).mean()),
    }


def _first(chunks: Iterator[YuvChunk], frames: int) -> Iterator[Any]:
    for chunk in chunks:
        yield chunk.part(0, min(len(chunk), frames - chunk.index))
        if chunk.index + len(chunk) >= frames:
            return
