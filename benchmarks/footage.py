"""Footage to measure on, made by ffmpeg from one source: other sizes, other lengths."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

LINES = {"360p": 360, "480p": 480, "720p": 720, "1080p": 1080, "1440p": 1440, "4k": 2160}
"""Name of a size to the height of a 16:9 picture of that size."""


def ffmpeg() -> str:
    """The ffmpeg program: the one on PATH, else the one that pip installed."""
    found = shutil.which("ffmpeg")
    if found is None:
        import imageio_ffmpeg

        found = str(imageio_ffmpeg.get_ffmpeg_exe())
    return found


def run_ffmpeg(*arguments: str) -> None:
    """Run it to its end. Raises SystemExit with one line where it fails: the end of what it wrote, the last line of which names no file."""
    command = [ffmpeg(), "-nostdin", "-v", "error", "-y", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise SystemExit(f"ffmpeg failed: {'; '.join(done.stderr.strip().splitlines()[-3:]) or 'without a word'}")


def looped(source: Path, out: Path, seconds: float) -> Path:
    """The pictures of `source` again and again until `seconds` are full, not coded again."""
    run_ffmpeg("-stream_loop", "-1", "-i", str(source), "-t", f"{seconds:g}", "-map", "0:v:0", "-c", "copy", str(out))
    return out


def looped_sound(source: Path, out: Path, seconds: float) -> Path:
    """The sound of `source`, whatever its format, again and again until `seconds` are full: 16-bit WAV."""
    run_ffmpeg("-stream_loop", "-1", "-i", str(source), "-t", f"{seconds:g}", "-map", "0:a:0", "-c:a", "pcm_s16le", str(out))
    return out


def size_of(name: str, *, width: int, height: int) -> tuple[int, int]:
    """Width and height, even, of a picture in the shape of `width` x `height` that has as many pixels as one of 16:9 of the size `name`."""
    lines = LINES[name]
    factor = (lines * lines * 16 / 9 / (width * height)) ** 0.5
    return 2 * round(width * factor / 2), 2 * round(height * factor / 2)


def resized(source: Path, out: Path, size: tuple[int, int], *, seconds: float | None = None) -> Path:
    """The pictures of `source` at another size, width and height, coded again (H.264, near the source's quality); at most `seconds`."""
    length = () if seconds is None else ("-t", f"{seconds:g}")
    filters = f"scale={size[0]}:{size[1]}:flags=bicubic,setsar=1"
    coded = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p")
    run_ffmpeg("-i", str(source), *length, "-map", "0:v:0", "-vf", filters, *coded, str(out))
    return out
