"""Does a batch that is killed again and again write every output, right, exactly once?

Short rows are cut from the example (video and speech differ from row to row) and dubbed by ``lipdub batch`` in a process of its own. At
random moments it is killed with SIGKILL, in turn the process alone and its whole group, and started again. All the while the output
folder is watched: an output whose inode changes was written twice. In the end every output must hold the frames of its video and the
sound of its own speech, the journal must say done for every row, and no temporary file may lie about.

``--ray``: the same on a Ray cluster of two machines (processes here); in turn a worker process, a machine and the batch itself is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.record import record
from lipdub import media
from lipdub.batch import Entry, State, state_path
from lipdub.records import FrameChunk

FRAMES, SPEECH_S, HZ = 25, 1.0, 16000
VIDEOS, SPEECHES = 5, 10
EXAMPLES = Path("examples")
AFTER_S = 1.5
"""A kill comes at most so many seconds after its share of the rows is there: few enough that rows are left for the kills to come."""


@dataclass(slots=True)
class Watcher:
    """Looks at the output folder all the time. inodes: of each output, in the order in which they were seen."""

    folder: Path
    inodes: dict[str, list[int]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Until `stop`."""
        while not self._stop.wait(0.01):
            self.look()

    def look(self) -> None:
        """Note what stands there now."""
        for path in self.folder.glob("row*.mp4"):
            with suppress(FileNotFoundError):
                inode, seen = path.stat().st_ino, self.inodes.setdefault(path.name, [])
                if inode not in seen[-1:]:
                    seen.append(inode)

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()


class Machines:
    """Two Ray machines of one processor each, as processes of this one."""

    def __init__(self) -> None:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        from ray.cluster_utils import Cluster

        self._options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes = [self._cluster.add_node(**self._options) for _ in range(2)]
        self.address = str(self._cluster.address)

    def kill_machine(self) -> str:
        """One machine is gone at once; another one joins."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)
        self._nodes.append(self._cluster.add_node(**self._options))
        return "a machine"

    def kill_worker(self) -> str:
        """A process that is at a row."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            rows = [pid for pid in _descendants(os.getpid()) if _command(pid).startswith("ray::lipdub line")]
            if rows:
                os.kill(random.choice(rows), signal.SIGKILL)
                return "a worker process"
            time.sleep(0.02)
        return "nothing: no row was running"

    def stop(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


def main(arguments: list[str]) -> int:
    """Make the rows, run, kill, resume, check, print; exit code 1 unless every output is right exactly once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks resume", description=__doc__)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster of two machines on this one")
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and outputs; its 'job' folder is made anew")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    folder = options.out / "job"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    manifest = _make_rows(folder, options.rows)
    machines = Machines() if options.ray else None
    command = [sys.executable, "-m", "lipdub", "batch", str(manifest), "--device", "cpu", "--preset", "ultrafast", "--model", options.model]
    command += ["--ray", machines.address] if machines is not None else ["--jobs", str(options.jobs)]
    watcher = Watcher(folder)
    watching = threading.Thread(target=watcher.watch, daemon=True)
    watching.start()
    started = time.perf_counter()
    try:
        kills = _run(command, folder, manifest, options.rows, options.kills, machines)
        last = _last_run(command)
    finally:
        wall_s = time.perf_counter() - started
        if machines is not None:
            machines.stop()
        watcher.stop()
        watching.join()
    watcher.look()
    return _report(options, arguments, folder, manifest, watcher, kills, last, wall_s)


def _run(command: list[str], folder: Path, manifest: Path, rows: int, count: int, machines: Machines | None) -> list[dict[str, Any]]:
    """Start, kill, start again, `count` times."""
    kills: list[dict[str, Any]] = []
    process: subprocess.Popen[bytes] | None = None
    for number in range(count):
        before = _outputs(folder)
        if process is None:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        started = time.perf_counter()
        # Spread over the whole run, and then at any moment: while reading the manifest, loading, dubbing, writing.
        enough = round(rows * number / (count + 1))
        while _outputs(folder) < enough and process.poll() is None:
            time.sleep(0.02)
        time.sleep(random.uniform(0.0, AFTER_S))
        if process.poll() is not None:
            kills.append({"kill": number + 1, "killed": "nothing: it had ended", "after_s": 0.0, "outputs": _outputs(folder)})
            break
        way = number % 3 if machines is not None else 2 + number % 2
        if machines is not None and way == 0:
            what = machines.kill_worker()
        elif machines is not None and way == 1:
            what = machines.kill_machine()
        else:
            what = "the batch" if way == 2 else "its process group"
            (os.kill if way == 2 else os.killpg)(process.pid, signal.SIGKILL)
            process.wait()
            process = None
        kills.append(
            {
                "kill": number + 1,
                "killed": what,
                "after_s": time.perf_counter() - started,
                "outputs": _outputs(folder),
                "new": _outputs(folder) - before,
                "running": sum(entry.state == "running" for entry in _raw_states(manifest)),
                "parts": len(list(folder.glob(".*lipdub-part*"))),
            }
        )
    if process is not None:
        process.wait()
    return kills


def _last_run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    title = next((line for line in done.stdout.splitlines() if "rows dubbed" in line), done.stderr.strip()[-300:])
    return {"code": done.returncode, "says": title.strip()}


def _report(
    options: argparse.Namespace,
    arguments: list[str],
    folder: Path,
    manifest: Path,
    watcher: Watcher,
    kills: list[dict[str, Any]],
    last: dict[str, Any],
    wall_s: float,
) -> int:
    """Check everything, print the tables; exit code."""
    speeches = [_samples(folder / f"speech{number}.wav") for number in range(SPEECHES)]
    verdicts = Counter(_verdict(folder / f"row{number:03d}.mp4", speeches, number % SPEECHES) for number in range(options.rows))
    state = State(manifest)
    states = Counter(entry.state for entry in state.entries.values())
    notes = Counter(entry.why for entry in state.entries.values() if entry.why)
    twice = sorted(name for name, inodes in watcher.inodes.items() if len(inodes) > 1)
    strays = sorted(path.name for path in folder.glob(".*"))
    common.table(
        f"{len(kills)} kills", ("kill", "killed", "after s", "outputs then", "new", "rows running", "part files"),
        [[kill.get(key, "-") for key in ("kill", "killed", "after_s", "outputs", "new", "running", "parts")] for kill in kills],
    )  # fmt: skip
    figures = {
        "rows": options.rows,
        "outputs that are right": verdicts["right"],
        "wrong or missing": str({key: value for key, value in verdicts.items() if key != "right"} or "none"),
        "written more than once": ", ".join(twice) or "none",
        "states in the journal": str(dict(states)),
        "of them recovered": notes["recovered"],
        "temporary files left": ", ".join(strays) or "none",
        "last run": f"exit code {last['code']}: {last['says']}",
        "seconds in all": wall_s,
    }
    common.table("every output exactly once?" + (" (Ray, two machines)" if options.ray else ""), ("", ""), list(figures.items()))
    common.write_json(options.json, record("resume", arguments, kills, figures=figures))
    good = verdicts["right"] == options.rows and not twice and not strays and states == {"done": options.rows} and last["code"] == 0
    common.CONSOLE.print("[bold]right[/bold]" if good else "[bold red]NOT right[/bold red]")
    return 0 if good else 1


def _make_rows(folder: Path, rows: int) -> Path:
    """Short videos, short speeches, and a manifest of all pairs until there are enough rows."""
    info = media.probe(EXAMPLES / "portrait.mp4")
    wanted = FRAMES + 7 * (VIDEOS - 1)
    pictures: list[NDArray[np.uint8]] = []
    with closing(media.read_frames(EXAMPLES / "portrait.mp4")) as chunks:
        for chunk in chunks:
            pictures.extend(chunk.pixels)
            ticks, time_base = chunk.pts, chunk.time_base
            if len(pictures) >= wanted:
                break
    step = int(np.median(np.diff(ticks)))
    for number in range(VIDEOS):
        cut = np.stack(pictures[7 * number : 7 * number + FRAMES])
        pts = np.arange(len(cut), dtype=np.int64) * step
        with media.Writer(folder / f"video{number}.mp4", info, crf=14, preset="ultrafast", time_base=time_base) as writer:
            writer.write(media.to_planes(FrameChunk(0, cut, pts, time_base), info))
    with closing(media.read_audio(EXAMPLES / "speech.wav", HZ)) as sound:
        samples = np.concatenate(list(sound))
    length = round(SPEECH_S * HZ)
    starts = np.linspace(0, len(samples) - length, SPEECHES).astype(int)
    for number, start in enumerate(starts):
        media.write_wav(folder / f"speech{number}.wav", samples[start : start + length], common.SOUND_HZ)
    manifest = folder / "rows.jsonl"
    lines = [
        {"video": f"video{number % VIDEOS}.mp4", "speech": f"speech{number % SPEECHES}.wav", "output": f"row{number:03d}.mp4"}
        for number in range(rows)
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return manifest


def _verdict(out: Path, speeches: list[NDArray[np.float32]], mine: int) -> str:
    """right, or what is wrong with an output: all frames can be decoded, and its sound is its own speech and no other one."""
    if not out.is_file():
        return "missing"
    with closing(media.read_frames(out)) as chunks:
        frames = sum(len(chunk) for chunk in chunks)
    if frames != FRAMES:
        return f"{frames} frames"
    sound = _samples(out)
    likeness = [_likeness(sound, speech) for speech in speeches]
    return "right" if int(np.argmax(likeness)) == mine and likeness[mine] > 0.9 else "another speech"


def _likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Correlation of two sounds of the same length, whatever the codec's delay of up to 100 ms."""
    length = min(len(one), len(other))
    one, other = one[:length], other[:length]
    spectrum = np.fft.rfft(one, 2 * length) * np.conj(np.fft.rfft(other, 2 * length))
    reach = HZ // 10
    correlation = np.fft.irfft(spectrum)
    best = max(correlation[:reach].max(), correlation[-reach:].max())
    return float(best / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-9))


def _samples(path: Path) -> NDArray[np.float32]:
    with closing(media.read_audio(path, HZ)) as sound:
        return np.concatenate(list(sound))


def _outputs(folder: Path) -> int:
    return sum(1 for _ in folder.glob("row*.mp4"))


def _raw_states(manifest: Path) -> list[Entry]:
    """The journal as it stands, not yet judged."""
    last: dict[str, Entry] = {}
    with suppress(FileNotFoundError):
        for line in state_path(manifest).read_text(encoding="utf-8").split("\n")[1:-1]:
            entry = Entry.from_json(line)
            last[entry.key] = entry
    return list(last.values())


def _descendants(root: int) -> list[int]:
    """Process numbers below `root` (Linux)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
