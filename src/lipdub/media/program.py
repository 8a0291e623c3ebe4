"""The ffmpeg program, run to its end."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lipdub.errors import EncodingFailed
from lipdub.media.facts import OLDEST_FFMPEG, programs


def program() -> str:
    """The FFmpeg program to use: the first one that is new enough. Raises EncodingFailed."""
    for program in programs():
        if program.new_enough:
            return program.path
    raise EncodingFailed(f"there is no ffmpeg program of version {OLDEST_FFMPEG} or later; install FFmpeg")


def run(command: list[str], out: Path) -> None:
    """Run FFmpeg to its end; whatever interrupts us ends it, too. Raises EncodingFailed with its last line."""

    def start() -> subprocess.Popen[bytes]:
        # a session of its own: Ctrl-C comes to us alone, and we end the program
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    # Another thread starts it: Ctrl-C would break off the start itself here, and leave a program that nobody knows.
    with ThreadPoolExecutor(1) as starter:
        started = starter.submit(start)
        try:
            process = started.result()
            _, said = process.communicate()
        except OSError as error:
            raise EncodingFailed(
                f"cannot write '{out}': '{command[0]}' does not start ({error.strerror or error}); install FFmpeg"
            ) from error
        except BaseException:
            process = started.result()
            process.kill()
            process.communicate()
            raise
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"ffmpeg ended with code {process.returncode}"]
        # The first line names the cause; newer programs end with "Error opening output files".
        raise EncodingFailed(f"cannot write '{out}': {lines[0].strip()}; check the free space and the inputs, then run again")
