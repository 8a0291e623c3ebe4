"""Work for `run_isolated`, which imports it in each new process: a module of tests would cost a third of a second every time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from lipdub.errors import LipdubError

MIB = 2**20


def echo(task):
    sys.stdout.write("what a library prints is no answer\n")
    os.write(1, b"nor is this\n")
    return {"task": task, "pid": os.getpid(), "numpy": "numpy" in sys.modules}


def refuse(task):
    raise LipdubError("no face in 'talk.mp4'; use another one")


def crash(task):
    os.write(2, b"about to crash\n")
    os.abort()


def hold(mib):
    block = bytearray(mib * MIB)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(0.3)
    return len(block)


def hold_in_a_child(mib):
    code = f"import time; block = bytearray({mib * MIB}); block[::4096] = b'x' * len(block[::4096]); time.sleep(0.6)"
    subprocess.run([sys.executable, "-c", code], check=True)


def flood(task):
    sys.stdout.write("x" * 10_000_000)
    sys.stderr.write("y" * 10_000_000)
    return "done"


def sleep(marker):
    Path(marker).write_text(str(os.getpid()))
    time.sleep(60)


def divide(by):
    return 1 / by


def where(task):
    return sorted(os.sched_getaffinity(0))
