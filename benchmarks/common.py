"""What the measures share: mouth openings over time, pieces of clips, the list of clips, tables and JSON."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import wave
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lipdub import crop, media
from lipdub.faces import MediapipeDetector
from lipdub.records import FrameChunk
from lipdub.tracks import opening_of

T = TypeVar("T")
Task = TypeVar("Task")
CONSOLE = Console(highlight=False, width=None if Console().is_terminal else 160)
SOUND_HZ = 16000
_CACHE_VERSION = 1


@dataclass(frozen=True)
class Openings:
    """Mouth opening in each of N frames.

    times_s: float64 (N,). opening: float64 (N,), inner-lip distance over eye distance, NaN where no face was found.
    similarity: float64 (N, 4), frame to unit crop, NaN likewise.
    """

    times_s: NDArray[np.float64]
    opening: NDArray[np.float64]
    similarity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.times_s)

    def __getitem__(self, rows: slice) -> Openings:
        return Openings(self.times_s[rows], self.opening[rows], self.similarity[rows])

    @property
    def step_s(self) -> float:
        """Usual time from one frame to the next, seconds."""
        return float(np.median(np.diff(self.times_s))) if len(self) > 1 else 0.04

    def from_zero(self) -> Openings:
        """The same with the first frame at time zero."""
        return Openings(self.times_s - self.times_s[0], self.opening, self.similarity)

    def at(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Opening of the frame nearest to each time, NaN where none is within one frame's time."""
        after = np.clip(np.searchsorted(self.times_s, times_s), 1, max(1, len(self) - 1))
        before = after - 1
        after = np.minimum(after, len(self) - 1)
        nearest = np.where(times_s - self.times_s[before] <= self.times_s[after] - times_s, before, after)
        close = np.abs(self.times_s[nearest] - times_s) <= self.step_s
        return np.where(close, self.opening[nearest], np.nan)


def measure(video: Path) -> Openings:
    """Openings of the largest face in each frame of `video`, as the mediapipe detector sees it."""
    times, openings, similarities = [], [], []
    with MediapipeDetector() as detector, closing(media.read_frames(video)) as chunks:
        for chunk in chunks:
            times.append(chunk.times_s)
            for pixels in chunk.pixels:
                faces = detector.detect(pixels)
                face = max(faces, key=lambda one: float(one.box[3] - one.box[1]), default=None)
                openings.append(np.nan if face is None else opening_of(face.landmarks))
                similarities.append(np.full(4, np.nan) if face is None else crop.fit_similarity(face.landmarks))
    return Openings(np.concatenate(times), np.array(openings), np.array(similarities))


def measured(video: Path, cache: Path) -> Openings:
    """`measure`, kept in the folder `cache` until the file changes."""
    facts = video.stat()
    key = f"{_CACHE_VERSION} {video.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    kept = cache / f"{video.stem[:80]}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    if kept.exists():
        with np.load(kept, allow_pickle=False) as data:
            return Openings(data["times_s"], data["opening"], data["similarity"])
    found = measure(video)
    cache.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f".{os.getpid()}.{kept.name}")
    np.savez(part, times_s=found.times_s, opening=found.opening, similarity=found.similarity)
    os.replace(part, kept)
    return found


def pearson(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Correlation over the frames where both are known; NaN for fewer than 10 of them or for a constant."""
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 10 or one[both].std() < 1e-9 or other[both].std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(one[both], other[both])[0, 1])


def cut_pictures(video: Path, out: Path, first: int, end: int, *, crf: int = 0, preset: str = "ultrafast") -> None:
    """Write the frames [first, end) of `video` to `out` with the first one at time zero; by default without loss."""
    info = media.probe(video)
    with media.Writer(out, replace(info, duration_s=None), crf=crf, preset=preset) as writer:
        shift: int | None = None
        with closing(media.read_frames(video)) as chunks:
            for chunk in chunks:
                low, high = max(first, chunk.index), min(end, chunk.index + len(chunk))
                if low < high:
                    here = slice(low - chunk.index, high - chunk.index)
                    shift = int(chunk.pts[here][0]) if shift is None else shift
                    writer.write(FrameChunk(low - first, chunk.pixels[here], chunk.pts[here] - shift, chunk.time_base))
                if chunk.index + len(chunk) > end and shift is not None:
                    # What is cut off says how long the last picture is shown.
                    writer.end_s = (int(chunk.pts[end - chunk.index]) - shift) * chunk.time_base
                    return
        if shift is not None and info.duration_s is not None:
            writer.end_s = info.duration_s - shift * info.time_base


def cut_sound(source: Path, out: Path, seconds: float) -> None:
    """Write the sound of `source` from time zero on for `seconds` as 16-bit mono WAV at 16 kHz; silence where it is shorter."""
    samples = np.zeros(round(seconds * SOUND_HZ), np.float32)
    filled = 0
    with closing(media.read_audio(source, SOUND_HZ)) as blocks:
        for block in blocks:
            piece = block[: len(samples) - filled]
            samples[filled : filled + len(piece)] = piece
            filled += len(piece)
            if filled >= len(samples):
                break
    write_wav(out, samples)


def write_wav(out: Path, samples: NDArray[np.float32]) -> None:
    """Write mono samples in [-1, 1] at 16 kHz as 16-bit WAV."""
    part = out.with_name(f".{os.getpid()}.{out.name}")
    with wave.open(str(part), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_HZ)
        file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    os.replace(part, out)


def seconds_of(video: Path) -> float:
    """How long the pictures of `video` last, 0 where the file does not say."""
    return float(media.probe(video).duration_s or Fraction(0))


def clips_in(folder: Path, *, seconds_min: float) -> list[Path]:
    """The clips to measure on: those of `folder` that its manifest (``../manifest.csv``) lists with ``use=measure``, at least
    `seconds_min` long; every .mp4 of that length where there is no manifest."""
    manifest = folder.parent / "manifest.csv"
    if not manifest.exists():
        return [clip for clip in sorted(folder.glob("*.mp4")) if seconds_of(clip) >= seconds_min]
    with manifest.open(newline="", encoding="utf-8") as file:
        return [
            folder.parent / row["file"]
            for row in csv.DictReader(file)
            if row["use"] == "measure" and row["file"].startswith(f"{folder.name}/") and float(row["seconds"]) >= seconds_min
        ]


def default_videos(folder: Path, *, seconds_min: float) -> list[Path]:
    """What is measured where no video is named: the clips of the folder, if it is there, and the example."""
    return [*(clips_in(folder, seconds_min=seconds_min) if folder.is_dir() else []), Path("examples/portrait.mp4")]


def short(clip: Path) -> str:
    """A clip's name as tables show it."""
    return clip.stem.split("__", 1)[-1].replace("_withaudio", "")[:34]


def spread(work: Callable[[Task], T], tasks: Sequence[Task], *, jobs: int, label: Callable[[Task], str]) -> list[T]:
    """The answers to `tasks` in order, worked on by `jobs` fresh processes; each finished one is named on standard error."""
    errors = Console(stderr=True, highlight=False)
    answers: dict[int, T] = {}
    with ProcessPoolExecutor(min(jobs, max(1, len(tasks))), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(work, task): number for number, task in enumerate(tasks)}
        for future in as_completed(waiting):
            number = waiting[future]
            answers[number] = future.result()
            errors.print(f"{len(answers)}/{len(tasks)} {label(tasks[number])}")
    return [answers[number] for number in range(len(tasks))]


def threads_per_job(jobs: int) -> int:
    """CPU threads for each of `jobs` processes that run beside each other."""
    return max(1, (os.cpu_count() or 1) // max(1, jobs))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: text to the left, numbers to the right with three decimals."""
    shown = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    CONSOLE.print(shown)


def write_json(file: Path | None, value: object) -> None:
    """Write `value` to `file`, where one is given; NaN becomes null."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
