"""The ffmpeg program, run to its end."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import ffmpeg

from lipdub.errors import EncodingFailed
from lipdub.media.facts import OLDEST_FFMPEG, programs
from lipdub.stages import uninterrupted


def programs_to_try() -> list[str]:
    """The FFmpeg programs that are new enough, the preferred one first. Raises EncodingFailed: there is none."""
    found = [program.path for program in programs() if program.new_enough]
    if not found:
        raise EncodingFailed(f"there is no ffmpeg program of version {OLDEST_FFMPEG} or later; install FFmpeg")
    return found


def run_ffmpeg(command: Any, out: Path) -> None:
    """Run FFmpeg to its end, for ffmpeg-python's `command`, which writes `out`; whatever interrupts us ends it, too.

    Where the first program that is new enough fails, the next one tries: one from a sandbox (snap) may read and write some folders only.

    Raises EncodingFailed with the last program's own words.
    """
    command = command.global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-y")
    *others, last = programs_to_try()
    for program in others:
        with suppress(EncodingFailed):
            return run(ffmpeg.compile(command, cmd=program), out)
    return run(ffmpeg.compile(command, cmd=last), out)


def run(command: list[str], out: Path) -> None:
    """Run one program to its end. Raises EncodingFailed with its first line."""

    process = None
    try:
        with uninterrupted():  # Ctrl-C in the middle of the start would leave a program that nobody knows
            # a session of its own: Ctrl-C comes to us alone, and we end the program
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )
        _, said = process.communicate()
    except OSError as error:
        raise EncodingFailed(f"cannot write '{out}': '{command[0]}' does not start ({error.strerror or error}); install FFmpeg") from error
    except BaseException:
        if process is not None:
            process.kill()
            process.communicate()
        raise
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"ffmpeg ended with code {process.returncode}"]
        # The first line names the cause; newer programs end with "Error opening output files".
        raise EncodingFailed(f"cannot write '{out}': {lines[0].strip()}; check the free space and the inputs, then run again")
