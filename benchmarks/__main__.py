"""``python -m benchmarks NAME ...``: run one of the measures."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = {
    "bilabials": "do the lips close at p, b and m",
    "languages": "does a face speak other languages as well as English",
    "memory-growth": "does peak memory stay the same when the video gets longer, and below 1 GiB",
    "end-to-end": "do whole videos, as users have them, come out whole",
    "resume": "does a batch that is killed again and again write every output exactly once",
    "speed": "frames per second end to end, and where the time goes",
    "scale": "end to end and per stage: sizes, lengths, cores, first and second dub",
    "wav2lip-shaped": "beside a baseline in the shape of Wav2Lip (needs lipdub[train])",
    "profile": "where the time of a dub goes; two profiles side by side",
    "gpu": "does the GPU draw, and how fast: batches of the generator, and end to end with all cores",
    "results": "RESULTS.md from the JSON files of the others",
}


def main(arguments: list[str]) -> int:
    """Hand the rest of the command line to the measure that its first word names; exit code."""
    if not arguments or arguments[0] not in NAMES:
        print("usage: python -m benchmarks NAME ... (NAME --help lists its options)", file=sys.stderr)
        for name, what in NAMES.items():
            print(f"  {name:<14} {what}", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    # Imported only when asked for: PyTorch and mediapipe take seconds.
    code: int = import_module(f"benchmarks.{arguments[0].replace('-', '_')}").main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
