"""Batches for tests: a job folder, manifests, and work that a worker does in place of a dub.

What a fake dub does stands in the video file, word by word: ``sleep 0.2``, ``bad`` (no face), ``flaky`` (fails once), ``bug``, ``die``
(SIGKILL), ``die-once``, ``die-after`` (SIGKILL once, between the output and the answer), ``faces 0.2`` (so long for the analysis),
``nothing`` (dubbed: a warning).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drawn import draw_video, sine, write_wav
from fakes import write_fake_bundle

from lipdub import batch
from lipdub.atomic import part_file, put_in_place
from lipdub.batch import Pool, Row, RowResult, State, Step, Task, Watch, check_manifest
from lipdub.batch.loop import Event, Finished, Progress
from lipdub.batch.row import Work, dub_task, work_on, write_row_report
from lipdub.bundles import bundle
from lipdub.errors import EncodingFailed, NoFaceFound, OutputRefused
from lipdub.options import DubOptions
from lipdub.records import NOTHING_DUBBED, DubReport, DubWarning
from lipdub.reports import content_of


def make_job(tmp_path: Path, monkeypatch: Any) -> Path:
    """A folder with two videos, a sound and a bundle; the working directory is another one, and no bundle comes with lipdub."""
    here = tmp_path / "job"
    here.mkdir()
    draw_video(here / "talk.mp4", frames=3)
    draw_video(here / "other.mp4", frames=3)
    write_wav(here / "speech.wav", sine(0.2))
    write_fake_bundle(tmp_path / "shelf" / "base")
    write_fake_bundle(here / "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(bundle, "_shelves", lambda: (tmp_path / "shelf",))
    return here


def manifest(folder: Path, *lines: str, head: str = "video,speech,output", name: str = "manifest.csv") -> Path:
    path = folder / name
    path.write_text("\n".join((head, *lines)) + "\n" if head else "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def script(folder: Path, name: str, words: str = "good") -> Path:
    """A video that says what its dub does."""
    path = folder / name
    path.write_text(words, encoding="utf-8")
    return path


def scripted_rows(folder: Path, *scripts: str) -> list[str]:
    """Lines of a manifest, one video, one output for each script."""
    for number, words in enumerate(scripts):
        script(folder, f"v{number}.mp4", words)
    return [f"v{number}.mp4,speech.wav,o{number}.mp4" for number in range(len(scripts))]


def a_report(row: Row, *warnings: DubWarning) -> DubReport:
    return DubReport(
        video=str(row.video), speech=str(row.speech), output=str(row.output), model="fake", provider="cpu", options=row.options,
        frames=8, dubbed=8, passed_through=0, spans=(), silent_frames=0, video_s=0.3, speech_s=0.2, output_s=0.3, wall_s=0.5, stage_s={},
        version="0", warnings=warnings,
    )  # fmt: skip


def fake_work(task: Task, tell: Any) -> RowResult:
    """In place of `dub_task`, with the same promises: an output appears whole, by one rename, and none is replaced without force."""
    row = task.row
    assert isinstance(row.video, Path)
    assert isinstance(row.output, Path)
    words = row.video.read_text().split()
    once = row.video.with_name(f"{row.video.name}.tried")
    first = not once.exists()
    tell("finding faces", 1, 2)
    if "faces" in words:
        time.sleep(float(words[words.index("faces") + 1]))
    tell("redrawing", 1, 2)
    if "die" in words or ("die-once" in words and first):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "bug" in words:
        raise ZeroDivisionError("nothing to divide")
    if "flaky" in words and first:
        once.touch()
        return failed(task, EncodingFailed("the disk is full for now"))
    if "bad" in words:
        return failed(task, NoFaceFound("no face in it"))
    with part_file(row.output) as part:
        part.write_text(f"{os.getpid()} {time.monotonic_ns()}")
        until = time.monotonic() + (float(words[words.index("sleep") + 1]) if "sleep" in words else 0.0)
        while time.monotonic() < until:  # as a dub, it comes by Python now and then
            time.sleep(0.02)
        if row.output.exists() and not row.options.force:
            return failed(task, OutputRefused(f"'{row.output}' exists already"))
        put_in_place(part, row.output)
    if "die-after" in words and first:
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    nothing = DubWarning(NOTHING_DUBBED, "nothing was dubbed")
    report = a_report(row, *([nothing] if "nothing" in words else []))
    if row.report is not None:
        write_row_report(content_of(report), row.report)
    with open(row.output.parent / "written.log", "a") as log:
        log.write(f"{row.output.name} {row.options.threads}\n")
    return RowResult(row, report, "", 0.01)


def failed(task: Task, error: Exception) -> RowResult:
    return RowResult(task.row, None, str(error), 0.01, transient=isinstance(error, EncodingFailed))


def written(folder: Path) -> list[str]:
    """Names of outputs in the order in which they were finished, once for each time."""
    log = folder / "written.log"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def read_manifest(path: Path, defaults: DubOptions | None = None) -> tuple[Row, ...]:
    return check_manifest(path, defaults).rows


class Here:
    """A pool without workers: one row at a time, in this process."""

    shares_cache = True

    def __init__(self, work: Work = dub_task) -> None:
        self._work = work
        self._task: Task | None = None

    def free(self) -> int:
        return 0 if self._task is not None else 1

    def start(self, task: Task) -> None:
        self._task = task

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Do the task; what happened meanwhile is told after it."""
        task = self._task
        if task is None:
            return
        told: list[Event] = []
        result = work_on(task, self._work, lambda stage, done, total: told.append(Progress(task.number, stage, done, total)))
        self._task = None
        yield from (*told, Finished(task.number, result))

    def stop(self) -> None:
        self._task = None


class Unwatched:
    """Nobody looks on."""

    def started(self, step: Step) -> None: ...

    def progress(self, step: Step, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, step: Step, result: RowResult, again: bool) -> None: ...


def run(
    plan: Sequence[Step], pool: Pool, state: State, *, retry: int = 0, cache: bool = True, watch: Watch | None = None
) -> tuple[RowResult, ...]:
    return batch.run(plan, pool, state, watch or Unwatched(), retry=retry, cache=cache)


def options(**changes: Any) -> DubOptions:
    return DubOptions(**changes)


def main() -> None:
    """``python batch_jobs.py SHELF ARGUMENTS...``: the real command line in a process of its own, with fake work and bundles."""
    from lipdub.batch import local
    from lipdub.cli.app import main as command

    shelf = Path(sys.argv[1])
    bundle._shelves = lambda: (shelf,)
    import batch_jobs  # by this name, a worker finds it; under __main__, it would not

    local.dub_task = batch_jobs.fake_work
    sys.argv = ["lipdub", *sys.argv[2:]]
    command()


if __name__ == "__main__":
    main()
