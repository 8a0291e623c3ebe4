"""Clips to training data: aligned crops with a margin, mel, lip landmarks. Resumable, in parallel; says what was dropped and why.

Each clip becomes ``<id>.npz`` (facts) and ``<id>.crops.npy`` (uint8 crops, memory-mapped in training). Both are written under a
temporary name and renamed, the facts last: a clip with facts is whole. ``index.json`` lists what was kept and what was dropped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as TypeGenerator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.atomic import remove_leftovers, whole_file, write_whole
from lipdub.errors import LipdubError, OutputRefused, TrainingDataError, TrainingError, WriteFailed
from lipdub.faces import crop
from lipdub.faces.analysis import analyse
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.media.planes import YuvChunk
from lipdub.records import MelSpec
from lipdub.speech.mel import cut_windows, log_mel
from lipdub.speech.silence import silence_weight
from lipdub.tables import TableError, read_table, text_of

FORMAT = 1
MARGIN = 1.25
"""Prepared crops show this much more than the network sees: room for jittered margins."""
GRID_HZ = 25.0
SHORTEST_S = 0.6
FACE_SHARE = 0.7
_GO_ON = "free some disk space and run again, it goes on"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of one clip. `why` is None where it was kept, else the reason for dropping it."""

    source: str
    clip_id: str
    frames: int
    why: str | None
    speaker: str = ""
    """Who speaks, where a manifest says so; else empty. Training draws speakers evenly rather than clips."""


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """Crop side in px as the network sees it (the stored crops are ``MARGIN`` times larger) and the mel convention."""

    size: int = 128
    mel: MelSpec = field(default_factory=MelSpec)

    @property
    def stored_px(self) -> int:
        """Side of the stored crops."""
        return round(self.size * MARGIN)


def read_speakers(manifest: Path) -> dict[str, str]:
    """File name to speaker, from a CSV with the columns ``file`` and ``speaker``. Raises TrainingDataError where they are missing."""
    try:
        table = read_table(text_of(manifest.read_bytes()), ("file", "speaker"))
    except (OSError, TableError) as error:
        raise TrainingDataError(f"cannot read '{manifest}': {error}; give a CSV with the columns file and speaker") from error
    if not table.rows or not {"file", "speaker"} <= set(table.columns):
        raise TrainingDataError(f"'{manifest}' lacks the columns file and speaker; give a CSV that has both")
    return {Path(row["file"]).name: row["speaker"] for _, row in table.records()}


def find_clips(sources: Sequence[Path]) -> list[Path]:
    """Video files among `sources` and below the folders among them, sorted. Raises TrainingDataError where there is none."""
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            found.extend(path for path in source.rglob("*") if path.suffix.lower() in media.VIDEO_SUFFIXES and path.is_file())
        elif source.exists():
            found.append(source)
        else:
            raise TrainingDataError(f"'{source}' does not exist; give clips or folders of clips")
    if not found:
        raise TrainingDataError(f"no video files in {', '.join(repr(str(s)) for s in sources)}; give clips or folders of clips")
    return sorted(set(found))


def prepare(
    clips: Sequence[Path],
    out: Path,
    settings: PrepareSettings,
    *,
    workers: int,
    on_clip: Callable[[Prepared], None],
    speakers: Mapping[str, str] | None = None,
) -> list[Prepared]:
    """Prepare `clips` into the folder `out`; `on_clip` hears of each as it is done. Clips that are already there are not done again.

    speakers: file name (without folders) to speaker. A broken clip is dropped with its reason; nothing it does ends the run.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
    except OSError as error:
        raise OutputRefused(f"cannot write into '{out}': {error.strerror}; choose another folder with -o") from error
    done: list[Prepared] = []
    todo = []
    for clip in clips:
        known = _already(out, _clip_id(clip, settings))
        if known is not None:
            done.append(known)
            on_clip(known)
        else:
            todo.append(clip)
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn"), initializer=_quiet_worker) as pool:
        futures = [pool.submit(prepare_clip, clip, out, settings) for clip in todo]
        try:
            for future in as_completed(futures):
                done.append(future.result())
                on_clip(done[-1])
        except (BrokenProcessPool, MemoryError) as error:
            raise TrainingError(
                "a worker died, most likely for want of memory; run again with fewer --workers, it goes on where it stopped"
            ) from error
        except OSError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise WriteFailed(f"cannot write into '{out}': {error}; {_GO_ON}") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    named = speakers or {}
    done = [replace(item, speaker=named.get(Path(item.source).name, "")) for item in sorted(done, key=lambda item: item.source)]
    _write_json(out / "index.json", {"format": FORMAT, "size": settings.size, "clips": [asdict(item) for item in done]})
    return done


def require_some(done: Sequence[Prepared]) -> None:
    """Raise TrainingDataError unless at least one clip was kept."""
    if not any(clip.why is None for clip in done):
        first = next((clip for clip in done), None)
        reason = f"; the first, '{first.source}': {first.why}" if first is not None else ""
        raise TrainingDataError(f"none of the {len(done)} clips can be used{reason}; give clips of one person who speaks to the camera")


def prepare_clip(
    clip: Path,
    out: Path,
    settings: PrepareSettings,
    *,
    face_share: float = FACE_SHARE,
    until_s: float = math.inf,
    detectors: DetectorFactory = MediapipeDetector,
    on_frames: Callable[[int], None] | None = None,
) -> Prepared:
    """Prepare one clip; a clip that cannot be used gives a reason, never an exception. What goes wrong with the folder `out` or with this
    machine is no clip's fault and is raised: WriteFailed, OSError, MemoryError.

    face_share: the clip is dropped where fewer of its frames have a usable face. until_s: what is shown later is not looked at.
    detectors: makes what finds faces. on_frames: told how many frames each step of following the face took.
    """
    clip_id = _clip_id(clip, settings)
    try:
        frames, why = _write_clip(clip, out, clip_id, settings, face_share, until_s, detectors, on_frames)
    except (WriteFailed, OSError, MemoryError):
        raise  # of this machine, not of the clip: the run ends, and goes on here the next time
    except LipdubError as error:
        frames, why = 0, str(error)
    except Exception as error:
        # One odd clip among thousands must not end the run; it is named with what it led to.
        frames, why = 0, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    result = Prepared(str(clip), clip_id, frames, why)
    _write_json(out / f"{clip_id}.json", asdict(result))
    return result


def _write_clip(
    clip: Path,
    out: Path,
    clip_id: str,
    settings: PrepareSettings,
    face_share: float,
    until_s: float,
    detectors: DetectorFactory,
    on_frames: Callable[[int], None] | None,
) -> tuple[int, str | None]:
    info = media.probe(clip)
    if info.is_still:
        return 0, "a photo"
    with closing(media.read_audio(clip, settings.mel.sample_rate_hz)) as sound:
        mel = log_mel(np.concatenate(list(_heard_until(sound, until_s, settings.mel.sample_rate_hz))), settings.mel)
    with closing(detectors(max_faces=2)) as detector, closing(media.read_planes(clip)) as frames:
        track = analyse(_seen_until(frames, until_s), detector, size=settings.size, on_frames=on_frames)
    track.references.close()
    rows = _grid(track)
    if len(rows) / GRID_HZ < SHORTEST_S:
        return 0, f"a usable face for {len(rows) / GRID_HZ:.1f} s only" if len(track) else "no frames"
    if (track.status == DUBBED).mean() < face_share:
        reasons = sorted({span.why for span in track.spans()})
        return 0, f"no usable face in {(track.status != DUBBED).mean():.0%} of the frames ({', '.join(reasons)})"
    windows = cut_windows(mel, track.times_s[rows], settings.mel)
    if silence_weight(windows).mean() > 0.8:
        return 0, "the sound is (almost) silent"
    written = _write_crops(clip, track, rows, settings.stored_px, out / f"{clip_id}.crops.npy")
    if written != len(rows):
        return 0, f"it gave {written} frames where {len(rows)} were seen before; was it changed meanwhile?"
    with whole_file(out / f"{clip_id}.npz", advice=_GO_ON) as part:
        np.savez(
            part,
            mel=mel.astype(np.float16),
            times_s=track.times_s[rows],
            lips=track.lips[rows].astype(np.float32),
            opening=track.opening[rows],
            pose=track.pose[rows],
            shot=track.shot[rows],
        )
    return len(rows), None


def _heard_until(blocks: Iterable[NDArray[np.float32]], end_s: float, rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """The blocks of sound that begin before `end_s`."""
    heard = 0
    for block in blocks:
        yield block
        heard += len(block)
        if heard / rate_hz >= end_s:
            return


def _seen_until(chunks: Iterable[YuvChunk], end_s: float) -> Iterator[YuvChunk]:
    """The chunks that begin before `end_s`."""
    for chunk in chunks:
        if chunk.times_s[0] >= end_s:
            return
        yield chunk


def _grid(track: FaceTrack) -> NDArray[np.int64]:
    """Frames to keep: the ones nearest to a 25 Hz grid, or all of a slower video."""
    usable = np.flatnonzero((track.status == DUBBED) & (track.strength > 0.9))
    times = track.times_s
    if len(usable) < 2 or float(np.median(np.diff(times))) > 0.9 / GRID_HZ:
        return usable
    grid = np.arange(times[usable[0]], times[usable[-1]] + 1e-6, 1 / GRID_HZ)
    nearest = np.clip(np.searchsorted(times, grid - 0.5 * float(np.median(np.diff(times)))), 0, len(times) - 1)
    return np.intersect1d(np.unique(nearest), usable)


def _write_crops(clip: Path, track: FaceTrack, rows: NDArray[np.int64], stored_px: int, out: Path) -> int:
    """Write the crops of these frames to the array file `out`; how many there were.

    Not through a memory map: on a full disk that ends the process with a bus error instead of raising OSError.
    """
    written = 0
    with (
        whole_file(out, advice=_GO_ON) as part,
        part.open("wb") as stream,
        closing(_stored_crops(clip, track, rows, stored_px)) as pieces,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), stored_px, stored_px, 3)}
        np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
        for pixels in pieces:
            stream.write(np.ascontiguousarray(pixels).tobytes())
            written += len(pixels)
    return written


def _stored_crops(clip: Path, track: FaceTrack, rows: NDArray[np.int64], stored_px: int) -> TypeGenerator[NDArray[np.uint8], None, None]:
    """The crops of these frames in order, uint8 (n, stored_px, stored_px, 3) a piece."""
    widened = widen(track.similarity, MARGIN)
    with closing(media.read_planes(clip)) as chunks:
        for chunk in chunks:
            if len(rows) and chunk.index > rows[-1]:
                return
            here = rows[(rows >= chunk.index) & (rows < chunk.index + len(chunk))]
            if len(here):
                yield crop.take(chunk, here - chunk.index, widened[here], track.outline[here].astype(np.float32), stored_px).pixels


def widen(similarity: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """Frame-to-unit transforms (N, 4) whose crop shows `margin` times as much around the same centre."""
    wide = similarity / margin
    wide[:, 2:] += 0.5 - 0.5 / margin
    return wide


def _clip_id(clip: Path, settings: PrepareSettings) -> str:
    status = clip.stat()
    key = f"{FORMAT}|{clip.resolve()}|{status.st_size}|{status.st_mtime_ns}|{settings}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _already(out: Path, clip_id: str) -> Prepared | None:
    """What became of a clip before; None where that is not known, or where its files have been lost or damaged since."""
    try:
        known = Prepared(**json.loads((out / f"{clip_id}.json").read_text(encoding="utf-8")))
        if known.why is None:
            with zipfile.ZipFile(out / f"{clip_id}.npz") as facts:
                whole = facts.testzip() is None
            crops = np.load(out / f"{clip_id}.crops.npy", mmap_mode="r", allow_pickle=False)
            return known if whole and len(crops) == known.frames else None
        return known
    except Exception:
        # Whatever stray bytes lead json, zipfile and numpy to: the clip is prepared anew.
        return None


def _write_json(path: Path, content: object) -> None:
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1), advice=_GO_ON)


def _quiet_worker() -> None:
    """One clip per worker is the parallelism; more threads inside would only fight."""
    cv2.setNumThreads(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # mediapipe's native log lines; errors come back as results
