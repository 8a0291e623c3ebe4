"""Running a batch: retries, rows that fail in every way, worker processes that die, interruptions, and one analysis for each video."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from batch_jobs import Here, a_report, fake_work, make_job, manifest, run, scripted_rows, written

from lipdub import pipeline
from lipdub.batch import Row, RowResult, State, Step, Task, Workers, check_manifest, dub_row, make_plan
from lipdub.batch.local import attempt
from lipdub.batch.loop import Event, Finished, Progress
from lipdub.batch.row import dub_task, work_on
from lipdub.errors import NoFaceFound, WriteFailed
from lipdub.options import DubOptions
from lipdub.stages import ENDING

TESTS = Path(__file__).parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_job(tmp_path, monkeypatch)


def planned(folder: Path, *scripts: str) -> tuple[State, tuple[Step, ...]]:
    path = manifest(folder, *scripted_rows(folder, *scripts))
    state = State(path)
    return state, make_plan(check_manifest(path, owned=lambda place, now: state.wrote(place, now) is not None), state)


class Noted:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, step: Step) -> None:
        self.told.append(f"{step.row.line} started")

    def progress(self, step: Step, stage: str, done: int, total: int | None) -> None:
        self.told.append(f"{step.row.line} {stage}")

    def finished(self, step: Step, result: RowResult, again: bool) -> None:
        self.told.append(f"{step.row.line} {'again' if again else 'done' if result.ok else 'failed'}")


# ----------------------------------------------------------------------------------------------------- in one process


def test_one_bad_row_stops_no_other(folder):
    state, plan = planned(folder, "good", "bad", "good")
    watch = Noted()
    results = run(plan, Here(fake_work), state, watch=watch)
    assert [result.ok for result in results] == [True, False, True]
    assert results[1].why == "no face in it"
    assert watch.told[:4] == ["2 started", "2 finding faces", "2 redrawing", "2 done"]
    assert written(folder) == ["o0.mp4", "o2.mp4"]


def test_retries_come_after_the_others_and_only_where_they_may_help(folder):
    state, plan = planned(folder, "flaky", "bad", "good")
    watch = Noted()
    results = run(plan, Here(fake_work), state, retry=2, watch=watch)
    assert [told for told in watch.told if told.split()[1] in ("again", "done", "failed")] == ["2 again", "3 failed", "4 done", "2 done"]
    assert sorted(result.ok for result in results) == [False, True, True]


def test_without_retry_a_flaky_row_fails(folder):
    state, plan = planned(folder, "flaky")
    assert [result.ok for result in run(plan, Here(fake_work), state)] == [False]


def test_a_video_is_analysed_by_one_row_at_a_time(folder):
    """Two free workers, three rows of one video and one of another: the others wait until the first one's faces are found."""
    scripted_rows(folder, "good", "good")
    path = manifest(folder, *(f"v{video}.mp4,speech.wav,o{number}.mp4" for number, video in enumerate((0, 0, 0, 1))))
    state = State(path)
    plan = make_plan(check_manifest(path), state)

    class Two:
        """Two slots; every call of `events` goes one step on: analysis, then drawing, then the end."""

        shares_cache = True

        def __init__(self) -> None:
            self.at: dict[int, int] = {}
            self.started: list[tuple[int, tuple[int, ...]]] = []
            self.tasks: dict[int, Task] = {}

        def free(self) -> int:
            return 2 - len(self.at)

        def start(self, task: Task) -> None:
            self.started.append((task.number, tuple(number for number, step in self.at.items() if step == 0)))
            self.at[task.number], self.tasks[task.number] = 0, task

        def events(self, timeout_s: float) -> Iterator[Event]:
            for number in list(self.at):
                self.at[number] += 1
                if self.at[number] == 1:
                    yield Progress(number, "redrawing", 1, 2)
                else:
                    del self.at[number]
                    yield Finished(number, fake_work(self.tasks[number], lambda *said: None))

        def stop(self) -> None:
            pass

    pool = Two()
    run(plan, pool, state)
    assert pool.started[0] == (0, ())
    assert pool.started[1] == (3, (0,))
    assert sorted(number for number, _ in pool.started) == [0, 1, 2, 3]
    for number, analysing in pool.started:
        assert not {plan[other].row.video for other in analysing} & {plan[number].row.video}


def test_without_the_cache_nobody_waits(folder):
    scripted_rows(folder, "good")
    path = manifest(folder, *(f"v0.mp4,speech.wav,o{number}.mp4" for number in range(2)))
    state = State(path)
    plan = make_plan(check_manifest(path), state)
    seen = []

    class Wide(Here):
        def free(self) -> int:
            return 1 if len(seen) < 2 else 0

        def start(self, task: Task) -> None:
            seen.append(task)

        def events(self, timeout_s: float) -> Iterator[Event]:
            assert len(seen) == 2
            for task in seen:
                yield Finished(task.number, fake_work(task, lambda *said: None))

    run(plan, Wide(), state, cache=False)
    assert [task.cache for task in seen] == [False, False]


def test_what_an_interruption_finds_running_is_pending_and_what_was_done_stays(folder):
    state, plan = planned(folder, "good", "good")

    def work(task, tell):
        if task.number:
            raise KeyboardInterrupt
        return fake_work(task, tell)

    with pytest.raises(KeyboardInterrupt):
        run(plan, Here(work), state)
    again = State(folder / "manifest.csv")
    assert [(entry.state, entry.why) for entry in again.entries.values()] == [("done", ""), ("pending", "interrupted")]


def test_a_row_that_just_made_it_when_the_batch_was_interrupted_is_done(folder):
    state, plan = planned(folder, "good")

    def work(task, tell):
        fake_work(task, tell)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, Here(work), state)
    assert [(entry.state, entry.why) for entry in State(folder / "manifest.csv").entries.values()] == [("done", "recovered")]


# ------------------------------------------------------------------------------------------------------------- a row


@pytest.fixture
def dubs(monkeypatch):
    """In place of the real dub: notes its options, writes a file, and fails for videos called ``bad*``, ``full*``."""
    calls = []

    def dub(video: Path, speech: Path, out: Path, options: DubOptions, **others: object):
        calls.append(asdict(options) | others)
        if video.name.startswith("bad"):
            raise NoFaceFound(f"no face in\n'{video}'; lipdub needs one")
        if video.name.startswith("full"):
            raise WriteFailed("no space left")
        out.write_bytes(b"dubbed")
        return a_report(Row(2, video, speech, out))

    monkeypatch.setattr(pipeline, "dub", dub)
    return calls


def a_row(folder: Path, name: str = "a", **changes) -> Row:
    return Row(2, folder / f"{name}.mp4", folder / "s.wav", folder / "o.mp4", **changes)


def test_errors_become_reasons_and_say_whether_another_try_may_help(folder, dubs):
    result = dub_row(a_row(folder, "bad"))
    assert (result.ok, result.report, result.transient) == (False, None, False)
    assert result.why == f"no face in '{folder / 'bad.mp4'}'; lipdub needs one"
    assert dub_row(a_row(folder, "full")).transient


def test_a_report_is_written_if_asked_for(folder, dubs):
    assert dub_row(a_row(folder, report=folder / "r.json")).ok
    assert '"frames_per_s": 16.0' in (folder / "r.json").read_text()
    assert not list(folder.glob(".*"))


def test_a_report_that_cannot_be_written_fails_its_row(folder, dubs):
    result = dub_row(a_row(folder, report=folder / "none" / "r.json"))
    assert not result.ok
    assert result.report is not None
    assert "was written, but not the report" in result.why


def test_a_dub_whose_report_could_not_be_written_is_not_dubbed_again(folder, dubs):
    path = manifest(folder, "talk.mp4,speech.wav,o.mp4,sub/r.json", head="video,speech,output,report")
    (folder / "sub").mkdir()
    for expected in ("dub", "report", "keep"):
        state = State(path)
        (step,) = plan = make_plan(check_manifest(path, owned=lambda place, now, state=state: state.wrote(place, now) is not None), state)
        assert step.action == expected
        if expected == "dub":
            (folder / "sub").rmdir()
        run(plan, Here(), state)
        (folder / "sub").mkdir(exist_ok=True)
    assert len(dubs) == 1


def test_the_cache_is_handed_over_unless_it_is_off(folder, dubs, monkeypatch, tmp_path):
    monkeypatch.setenv("LIPDUB_CACHE", str(tmp_path / "cache"))
    dub_row(a_row(folder), cache=True)
    dub_row(a_row(folder), cache=False)
    assert dubs[0]["cache"].folder == tmp_path / "cache"
    assert dubs[1]["cache"] is None


def test_a_row_and_its_result_can_be_sent_to_another_process(folder, dubs):
    result = dub_row(a_row(folder))
    assert pickle.loads(pickle.dumps(result)) == result


def test_an_attempt_finds_what_a_killed_one_has_finished(folder, dubs):
    task = Task(0, a_row(folder))
    assert work_on(task, dub_task, lambda *said: None).report is not None
    assert work_on(task, dub_task, lambda *said: None).recovered
    with_report = Task(0, a_row(folder, report=folder / "r.json"))
    assert work_on(with_report, dub_task, lambda *said: None).report is not None
    assert len(dubs) == 2
    assert dubs[1]["force"]


def test_an_attempt_takes_away_what_a_killed_one_left_unfinished(folder, dubs):
    """On a cluster nobody else does: its lost worker is replaced without a word, and then the batch itself may be killed."""
    row = Row(2, folder / "a.mp4", folder / "a.wav", folder / "out.mp4")
    left = [folder / ".out.0123456789ab.lipdub-part.mp4", folder / "..out.0123456789ab.lipdub-part.ba9876543210.lipdub-part.mp4"]
    others = [folder / ".other.0123456789ab.lipdub-part.mp4", folder / ".out.mp4"]
    for path in (*left, *others):
        path.write_bytes(b"unfinished")
    work_on(Task(0, row, (None, None), False, None), dub_task, lambda *said: None)
    assert [path.name for path in left if path.exists()] == []
    assert all(path.exists() for path in others)


def test_a_bug_is_the_rows_failure_and_keeps_its_trace(folder):
    def work(task, tell):
        raise ZeroDivisionError("by\nnothing")

    result = attempt(Task(0, a_row(folder)), work, lambda *said: None)
    assert result.why.startswith("unexpected ZeroDivisionError: by nothing (a bug")
    assert "raise ZeroDivisionError" in result.trace
    assert not result.transient


# ----------------------------------------------------------------------------------------------------------- workers


def test_workers_share_the_rows_and_die_alone(folder):
    state, plan = planned(folder, "die", "good", "bug", "die-after", "good")
    watch = Noted()
    results = run(plan, Workers(2, work=fake_work), state, watch=watch)
    by_line = {result.row.line: result for result in results}
    assert {line: result.ok for line, result in by_line.items()} == {2: False, 3: True, 4: False, 5: True, 6: True}
    assert "SIGKILL" in by_line[2].why
    assert "ZeroDivisionError" in by_line[4].why
    assert by_line[5].recovered
    assert written(folder) in (["o1.mp4", "o4.mp4"], ["o4.mp4", "o1.mp4"])  # the fourth could not note it any more
    assert (folder / "o3.mp4").exists()
    assert not list(folder.glob(".*"))
    traces = [entry.trace for entry in State(folder / "manifest.csv").entries.values() if entry.line == 4]
    assert "nothing to divide" in traces[0]


def test_a_killed_worker_is_replaced_and_its_row_tried_again(folder):
    state, plan = planned(folder, "die-once")
    (result,) = run(plan, Workers(1, work=fake_work), state, retry=1)
    assert result.ok
    assert written(folder) == ["o0.mp4"]


def test_a_worker_that_died_while_it_had_nothing_to_do_harms_no_row(folder):
    lines = scripted_rows(folder, "good", "good")
    pool = Workers(1, work=fake_work)
    pids = []
    for line in lines:
        path = manifest(folder, line, name=f"{len(pids)}.csv")
        state = State(path)
        stop, pool.stop = pool.stop, lambda: None
        try:
            (result,) = run(make_plan(check_manifest(path), state), pool, state)
        finally:
            pool.stop = stop
        assert result.ok
        (worker,) = pool._idle
        pids.append(worker.process.pid)
        worker.process.kill()
        worker.process.join()
    pool.stop()
    assert len(set(pids)) == 2


def test_threads_are_shared_out_but_for_rows_that_say(folder, monkeypatch):
    monkeypatch.setattr("lipdub.batch.local.cores", lambda: 6)
    lines = scripted_rows(folder, "good", "good")
    path = manifest(folder, f"{lines[0]},", f"{lines[1]},5", head="video,speech,output,threads")
    state = State(path)
    run(make_plan(check_manifest(path), state), Workers(2, work=fake_work), state)
    assert sorted((folder / "written.log").read_text().splitlines()) == ["o0.mp4 3", "o1.mp4 5"]
    assert Workers(1).threads is None


# --------------------------------------------------------------------------------------------- the command, killed


def batch_process(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The real command line with fake work, in a process group of its own."""
    command = [
        sys.executable,
        str(TESTS / "batch_jobs.py"),
        str(folder.parent / "shelf"),
        "batch",
        str(folder / "manifest.csv"),
        *arguments,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_killed_again_and_again_every_output_is_written_once(folder):
    """The parent alone is killed, or its whole group; the next run waits for what is left of the last one and goes on."""
    rows = scripted_rows(folder, *["sleep 0.15"] * 10)
    manifest(folder, *rows)
    seen: dict[str, int] = {}
    for number, group in enumerate((False, True, False)):
        process = batch_process(folder, "--jobs", "2")
        wait_for(lambda least=2 * number, one=process: len(list(folder.glob("o[0-9]*.mp4"))) > least or one.poll() is not None)
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        for path in folder.glob("o[0-9]*.mp4"):
            assert seen.setdefault(path.name, path.stat().st_ino) == path.stat().st_ino
    process = batch_process(folder, "--jobs", "2")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "10 of 10 rows dubbed" in out
    for path in folder.glob("o[0-9]*.mp4"):
        assert seen.setdefault(path.name, path.stat().st_ino) == path.stat().st_ino
    assert len(seen) == 10
    assert len(written(folder)) == len(set(written(folder)))
    assert not list(folder.glob(".*"))
    state = State(folder / "manifest.csv")
    assert {entry.state for entry in state.entries.values()} == {"done"}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", ENDING)
def test_interrupted_it_cleans_up_and_says_how_to_go_on(folder, number):
    manifest(folder, *scripted_rows(folder, "good", "sleep 30", "good"))
    process = batch_process(folder)
    wait_for(lambda: list(folder.glob(".o1.*")) or process.poll() is not None)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # as a terminal does
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "1 of 3 rows dubbed" in out
    assert "2 rows are left" in err
    assert "Traceback" not in err
    assert not list(folder.glob(".*"))
    state = State(folder / "manifest.csv")
    assert [entry.state for entry in sorted(state.entries.values(), key=lambda entry: entry.line)] == ["done", "pending", "pending"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_workers_do_not_outlive_a_killed_batch(folder):
    manifest(folder, *scripted_rows(folder, "sleep 60"))
    process = batch_process(folder)
    wait_for(lambda: any(part.stat().st_size for part in folder.glob(".o0.*")) or process.poll() is not None)
    (part,) = folder.glob(".o0.*")
    worker = int(part.read_text().split()[0])
    process.kill()
    process.communicate()

    def gone() -> bool:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{worker}/stat").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z"

    wait_for(gone, 6.0)
    assert not list(folder.glob(".o0.*"))  # it has even cleaned up
