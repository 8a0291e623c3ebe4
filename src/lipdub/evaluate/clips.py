"""Pieces of clips to measure on: the list of clips, pictures and sound cut out of them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from lipdub import media
from lipdub.errors import LipdubError, UnreadableMedia
from lipdub.tables import TableError, read_table, text_of

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


def _manifest_rows(folder: Path) -> list[dict[str, str]]:
    manifest = folder.resolve().parent / "manifest.csv"
    if not manifest.is_file():
        return []
    try:
        rows = [row for _, row in read_table(text_of(manifest.read_bytes()), ("file", "speaker", "use", "seconds")).records()]
    except (OSError, TableError) as error:
        raise UnreadableMedia(f"cannot read '{manifest}' beside the clips: {error}; mend it, or move it away") from error
    return [row for row in rows if row.get("file")]


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
    skipped = round(start_s * SOUND_HZ)
    heard = media.first_samples(source, SOUND_HZ, skipped + len(samples))[skipped:]
    samples[: len(heard)] = heard
    media.write_wav(out, samples, SOUND_HZ)
