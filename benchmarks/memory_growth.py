"""Does peak memory stay the same when the video gets longer?

A clip is looped to several lengths, without coding it again, and each length is dubbed by a process of its own; its peak
resident memory (with that of the ffmpeg it starts) is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET_RATIO = 1.10
_DUB = "import sys, pathlib, lipdub.pipeline as p; v, s, o, m = sys.argv[1:]; p.dub(*map(pathlib.Path, (v, s, o)), model=m, force=True)"


def main(arguments: list[str]) -> int:
    """Measure, print, write the JSON; exit code 1 where memory grew beyond the target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory-growth", description=__doc__)
    parser.add_argument("video", type=Path, nargs="?", default=Path("examples/portrait.mp4"), help="clip to loop")
    parser.add_argument("--speech", type=Path, default=Path("examples/speech.wav"), help="sound to loop")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 5.0])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory(prefix="lipdub-memory-") as name:
        for minutes in sorted(options.minutes):
            video = _looped(options.video, Path(name) / f"{minutes:g}min.mp4", 60 * minutes, ["-an"])
            speech = _looped(options.speech, Path(name) / f"{minutes:g}min.wav", 60 * minutes, ["-vn"])
            out = Path(name) / "dubbed.mp4"
            started = time.perf_counter()
            peak = _peak_mib([sys.executable, "-c", _DUB, *map(str, (video, speech, out)), options.model])
            rows.append({"minutes": minutes, "peak_mib": round(peak, 1), "wall_s": round(time.perf_counter() - started, 1)})
            print(f"{minutes:g} min: peak {peak:.0f} MiB, {rows[-1]['wall_s']:.0f} s", flush=True)
            for made in (video, speech, out):
                made.unlink()
    ratio = rows[-1]["peak_mib"] / rows[0]["peak_mib"]
    print(f"{rows[-1]['minutes']:g} min over {rows[0]['minutes']:g} min: {ratio:.3f} (target: at most {TARGET_RATIO:.2f})")
    if options.json is not None:
        options.json.write_text(json.dumps({"video": str(options.video), "lengths": rows, "ratio": ratio}, indent=2) + "\n")
    return 0 if ratio <= TARGET_RATIO else 1


def _looped(source: Path, out: Path, seconds: float, options: list[str]) -> Path:
    """`source` again and again until `seconds` are full, its streams copied."""
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-v", "error", "-y", "-stream_loop", "-1", "-i", str(source), "-t", f"{seconds:g}", *options]
    subprocess.run([*command, "-c", "copy", str(out)], check=True, stdin=subprocess.DEVNULL)
    return out


def _peak_mib(command: list[str]) -> float:
    """Run `command` to its end: the peak resident memory of the largest process in it, MiB."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said.decode(errors="replace"))
    return used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
