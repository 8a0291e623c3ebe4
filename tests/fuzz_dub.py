"""Dubs of damaged files: whatever is wrong with them, each ends in a whole output or in one line, in time, and leaves nothing behind.

    python tests/fuzz_dub.py --cases 1000 --seed 0

A case is one video and one speech, made from the example in many containers; of each, bytes are flipped, zeroed, cut out, doubled or put in
from another file, or its end is missing. A case depends on the seed and its number alone. Dubs run in a process of their own, one after the
other; one that dies or takes more than a minute is a failure, and the next case gets a new one. Not part of the tests: `make fuzz`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"
LONGEST_S = 60
FRAMES = 12
VIDEOS = {
    "a.mp4": "libx264",
    "b.mkv": "libx264",
    "c.ts": "libx264",
    "d.avi": "mpeg4",
    "e.mov": "mpeg4",
    "f.webm": "libvpx",
    "g.mpg": "mpeg2video",
}
SPEECHES = {
    "a.wav": "pcm_s16le",
    "b.mp3": "libmp3lame",
    "c.flac": "flac",
    "d.m4a": "aac",
    "e.aac": "aac",
    "f.opus": "libopus",
    "g.mka": "pcm_f32le",
}
OPTIONS = ("--device", "cpu", "--threads", "1", "--preset", "ultrafast", "--report", "report.json", "-q")


def make_whole_files(folder: Path) -> None:
    """Half a second of the example as a video and as a speech, in every container."""
    import av

    with av.open(str(EXAMPLES / "portrait.mp4")) as source:
        pictures = [frame.reformat(256, 256, "yuv420p") for frame, _ in zip(source.decode(video=0), range(FRAMES), strict=False)]
    with av.open(str(EXAMPLES / "speech.wav")) as source:
        samples = np.concatenate([frame.to_ndarray().astype(np.float32).ravel() / 32768 for frame in source.decode(audio=0)])[: 48000 // 3]
    for name, codec in VIDEOS.items():
        with av.open(str(folder / f"video_{name}"), "w", container_options={"movflags": "faststart"} if name == "a.mp4" else {}) as target:
            stream: Any = target.add_stream(codec, rate=25, options={"g": "6"})
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 256, 256, "yuv420p", 2_000_000
            for tick, picture in enumerate(pictures):
                picture.pts, picture.time_base = tick, Fraction(1, 25)
                target.mux(stream.encode(picture))
            target.mux(stream.encode(None))
    for name, codec in SPEECHES.items():
        with av.open(str(folder / f"speech_{name}"), "w") as target:
            stream = target.add_stream(codec, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            for piece in av.AudioResampler(format=stream.format, layout="mono", rate=48000).resample(frame):
                target.mux(stream.encode(piece))
            target.mux(stream.encode(None))


def mutated(data: bytes, others: list[bytes], random: np.random.Generator) -> bytes:
    """`data` with one to four kinds of damage."""
    for _ in range(random.integers(1, 5)):
        if not data:
            return data
        at = int(random.integers(len(data)))
        end = min(len(data), at + int(random.integers(1, max(2, len(data) // 4))))
        other = others[random.integers(len(others))]
        taken = int(random.integers(max(1, len(other))))
        head = int(random.integers(min(len(data), 600)))
        kind = random.integers(8)
        if kind == 0:  # some bits anywhere
            changed = bytearray(data)
            for place in random.integers(len(data), size=random.integers(1, 40)):
                changed[place] ^= 1 << int(random.integers(8))
            data = bytes(changed)
        elif kind == 1:  # some bytes where headers are
            changed = bytearray(data)
            changed[head : head + 8] = random.bytes(len(changed[head : head + 8]))
            data = bytes(changed)
        elif kind == 2:  # the end is missing
            data = data[:at]
        elif kind == 3:  # a hole
            data = data[:at] + data[end:]
        elif kind == 4:  # a stretch of zeros
            data = data[:at] + bytes(end - at) + data[end:]
        elif kind == 5:  # twice
            data = data[:end] + data[at:]
        elif kind == 6:  # a piece of another file
            data = data[:at] + other[taken : taken + end - at] + data[end:]
        else:  # another file behind it, as cat does
            data = data + other
    return data


def write_case(whole: Path, folder: Path, seed: int, number: int) -> list[str]:
    """The files of a case in `folder`; the arguments of ``lipdub`` for it."""
    random = np.random.default_rng([seed, number])
    names = {kind: sorted(path.name for path in whole.glob(f"{kind}_*")) for kind in ("video", "speech")}
    contents = {name: (whole / name).read_bytes() for name in (*names["video"], *names["speech"])}
    damaged = random.integers(1, 4)  # the video, the speech, or both
    chosen = []
    for bit, kind in ((1, "video"), (2, "speech")):
        name = names[kind][random.integers(len(names[kind]))]
        data = contents[name]
        if damaged & bit:
            data = mutated(data, [contents[other] for other in names[kind]], random)
        (folder / name).write_bytes(data)
        chosen.append(name)
    fit = ("longest", "video", "speech")[random.integers(3)]
    out = ("out.mp4", "out.mkv", "out.mov")[random.integers(3)]
    return ["sync", *chosen, "-o", out, "--fit", fit, *OPTIONS]


def wrong_with(folder: Path, before: set[str], arguments: list[str], code: int, said: str) -> str:
    """What a dub should not have done; "" where all is well."""
    out, lines = arguments[4], said.splitlines()
    left = {path.name for path in folder.iterdir()} - before
    if code == 1:
        if len(lines) != 1 or not lines[0].startswith("error: "):
            return f"an error is not one line: {said!r}"
        return f"an error left {sorted(left)}" if left else ""
    if code not in (0, 3):
        return f"exit code {code}: {said[-2000:]}"
    if any(not line.startswith("warning: ") for line in lines):
        return f"said {said!r}"
    if left != {out, "report.json"}:
        return f"left {sorted(left)}"
    from lipdub import media

    report = json.loads((folder / "report.json").read_text())
    frames = sum(len(chunk) for chunk in media.read_planes(folder / out))
    if frames != report["frames"] or not media.has_sound(folder / out):
        return f"not whole: {frames} frames of {report['frames']}"
    if report["output_s"] > 60:
        return f"an output of {report['output_s']} s"
    return ""


def work(pipe: Connection) -> None:
    """Run the dubs that come through the pipe, each in its folder; answer with exit code and standard error."""
    os.environ["LIPDUB_CACHE"] = "off"
    from lipdub.cli import console
    from lipdub.cli.app import main

    while True:
        folder, arguments = pipe.recv()
        os.chdir(folder)
        sys.argv, code, said = ["lipdub", *arguments], 0, io.StringIO()
        console.errors.cache_clear()
        console.results.cache_clear()
        with contextlib.redirect_stderr(said):
            try:
                main()
            except SystemExit as left:
                code = int(left.code or 0)
            except BaseException as error:  # a bug: a user would see its traceback
                import traceback

                code = 99
                said.write("".join(traceback.format_exception(error)))
        pipe.send((code, said.getvalue()))


class Worker:
    """The process that dubs; a new one where the last one died."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, folder: Path, arguments: list[str], limit_s: float) -> tuple[int, str]:
        """Exit code and standard error; code -1 where it died, -2 where it took too long."""
        self.pipe.send((str(folder), arguments))
        try:
            if self.pipe.poll(limit_s):
                return self.pipe.recv()  # type: ignore[no-any-return]
            code, said = -2, f"no end after {limit_s} s"
        except EOFError:
            code, said = -1, "the process died"
        self.end()
        self._start()
        return code, said

    def end(self) -> None:
        """No more dubs."""
        self._process.kill()
        self._process.join()


def run(cases: range, seed: int, keep: Path, tell: Callable[[str], None]) -> int:
    """Run the cases; how many of them failed. keep: where the files of failures go."""
    counts: dict[int, int] = {}
    failures, slowest = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="lipdub-fuzz-") as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        make_whole_files(whole)
        worker = Worker()
        first = Path(name) / "first"  # loading takes its time, which is no case's
        first.mkdir()
        shutil.copytree(whole, first, dirs_exist_ok=True)
        arguments = ["sync", "video_a.mp4", "speech_a.wav", "-o", "out.mp4", "-q", "--device", "cpu"]
        assert worker.run(first, arguments, 300) == (0, "")
        for number in cases:
            folder = Path(name) / f"case{number}"
            folder.mkdir()
            arguments = write_case(whole, folder, seed, number)
            before, started = {path.name for path in folder.iterdir()}, time.monotonic()
            code, said = worker.run(folder, arguments, LONGEST_S)
            slowest = max(slowest, time.monotonic() - started)
            counts[code] = counts.get(code, 0) + 1
            wrong = wrong_with(folder, before, arguments, code, said)
            if wrong:
                failures += 1
                tell(f"case {number}: {' '.join(arguments)}: {wrong}")
                shutil.copytree(folder, keep / f"seed{seed}_case{number}", dirs_exist_ok=True)
            shutil.rmtree(folder)
        worker.end()
    tell(f"{len(cases)} cases of seed {seed}, {failures} failed; exit codes {dict(sorted(counts.items()))}; slowest {slowest:.1f} s")
    return failures


def say(line: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="folder for the files of cases that failed")
    asked = parser.parse_args()
    sys.exit(1 if run(range(asked.first, asked.first + asked.cases), asked.seed, asked.keep, say) else 0)
