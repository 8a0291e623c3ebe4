"""Pieces of clips to measure on: the list of clips, pictures and sound cut out of them."""

from __future__ import annotations

import csv
import wave
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.atomic import whole_file
from lipdub.errors import LipdubError, UnreadableMedia

SOUND_HZ = 16000


@dataclass(frozen=True, slots=True)
class ListedClip:
    """A clip of a set. speaker: as the manifest names them, empty where it does not."""

    path: Path
    speaker: str = ""


def seconds_of(video: Path) -> float:
    """How long the pictures of `video` last, 0 where the file does not say. Raises UnreadableMedia, NoVideoStream."""
    return float(media.probe(video).duration_s or Fraction(0))


def list_clips(folder: Path, *, seconds_min: float) -> tuple[list[ListedClip], dict[str, str]]:
    """The clips of `folder` to measure on, and which ones cannot be read and why.

    Those that the manifest beside the folder (``../manifest.csv``) lists with ``use=measure``, at least `seconds_min` long; every video
    file of that length where there is no manifest, or where it names none of the folder's. Raises UnreadableMedia: a manifest that
    cannot be read.
    """
    listed = _manifest_rows(folder)
    named = [(folder.parent / row["file"], row) for row in listed if row["file"].startswith(f"{folder.name}/")]
    if named:
        chosen = [
            ListedClip(path, row.get("speaker") or "")
            for path, row in named
            if row.get("use", "measure") == "measure" and _number(row.get("seconds"), seconds_min) >= seconds_min
        ]
        return chosen, {}
    found, unreadable = [], {}
    for path in sorted(file for file in folder.iterdir() if file.suffix.lower() in media.VIDEO_SUFFIXES and file.is_file()):
        try:
            if seconds_of(path) >= seconds_min:
                found.append(ListedClip(path))
        except LipdubError as error:
            unreadable[path.name] = str(error)
    return found, unreadable


def clips_in(folder: Path, *, seconds_min: float) -> list[Path]:
    """The paths of ``list_clips``; files that cannot be read are left out."""
    return [clip.path for clip in list_clips(folder, seconds_min=seconds_min)[0]]


def _manifest_rows(folder: Path) -> list[dict[str, str]]:
    manifest = folder.resolve().parent / "manifest.csv"
    if not manifest.is_file():
        return []
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableMedia(f"cannot read '{manifest}' beside the clips: {error}; mend it, or move it away") from error
    if rows and "file" not in rows[0]:
        return []
    return [row for row in rows if row["file"]]


def _number(text: str | None, otherwise: float) -> float:
    try:
        return float(text) if text else otherwise
    except ValueError:
        return otherwise


def cut_pictures(video: Path, out: Path, first: int, end: int, *, crf: int = 0, preset: str = "ultrafast") -> None:
    """Write the frames [first, end) of `video` to `out` with the first one at time zero; by default without loss."""
    info = media.probe(video)
    with media.Writer(out, replace(info, duration_s=None), crf=crf, preset=preset) as writer:
        shift: int | None = None
        with closing(media.read_planes(video)) as chunks:
            for chunk in chunks:
                low, high = max(first, chunk.index), min(end, chunk.index + len(chunk))
                if low < high:
                    part = chunk.part(low - chunk.index, high - chunk.index)
                    shift = int(part.pts[0]) if shift is None else shift
                    writer.write(part.timed(low - first, part.pts - shift, part.time_base))
                if chunk.index + len(chunk) > end and shift is not None:
                    # What is cut off says how long the last picture is shown.
                    writer.end_s = (int(chunk.pts[end - chunk.index]) - shift) * chunk.time_base
                    return
        if shift is not None and info.duration_s is not None:
            writer.end_s = info.duration_s - shift * info.time_base


def cut_sound(source: Path, out: Path, seconds: float, *, start_s: float = 0.0) -> None:
    """Write the sound of `source` from `start_s` on for `seconds` as 16-bit mono WAV at 16 kHz; silence where it is shorter."""
    samples = np.zeros(max(1, round(seconds * SOUND_HZ)), np.float32)
    skip, filled = round(start_s * SOUND_HZ), 0
    with closing(media.read_audio(source, SOUND_HZ)) as blocks:
        for block in blocks:
            dropped = min(skip, len(block))
            skip -= dropped
            piece = block[dropped : dropped + len(samples) - filled]
            samples[filled : filled + len(piece)] = piece
            filled += len(piece)
            if filled >= len(samples):
                break
    write_wav(out, samples)


def write_wav(out: Path, samples: NDArray[np.float32]) -> None:
    """Write mono samples in [-1, 1] at 16 kHz as 16-bit WAV."""
    with whole_file(out) as part, wave.open(str(part), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_HZ)
        file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
