"""The journal, the lock, fingerprints and the plan: what is finished and unchanged is known, whatever happened in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from batch_jobs import Here, fake_work, make_job, manifest, run, script, scripted_rows, written
from hypothesis import given
from hypothesis import strategies as st

import lipdub
from lipdub.atomic import part_file
from lipdub.batch import State, Step, batch_lock, check_manifest, lock_path, make_plan, state_path
from lipdub.batch.lock import row_lock
from lipdub.batch.state import Entry
from lipdub.batch.storage import Identity, sweep
from lipdub.errors import ManifestError
from lipdub.options import DubOptions


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_job(tmp_path, monkeypatch)


def planned(
    path: Path, *, restart: bool = False, skip_existing: bool = False, defaults: DubOptions | None = None
) -> tuple[State, list[Step]]:
    state = State(path)
    checked = check_manifest(
        path, defaults, owned=lambda place, now: state.wrote(place, now) is not None, keep_existing=skip_existing
    )  # fmt: skip
    return state, list(make_plan(checked, state, restart=restart, skip_existing=skip_existing))


def go(path: Path, **how: object) -> list[str]:
    """Run the batch with fake work in this process; what it planned."""
    state, plan = planned(path, **how)  # type: ignore[arg-type]
    run(plan, Here(fake_work), state)
    return [step.action for step in plan]


def states(path: Path) -> list[tuple[str, str]]:
    """(state, why) of every row as the journal on the disk has it, in the manifest's order."""
    state = State(path)
    return [(entry.state, entry.why) for entry in sorted(state.entries.values(), key=lambda entry: entry.line)]


# ------------------------------------------------------------------------------------------------------ transitions


def test_a_batch_is_done_once(folder):
    path = manifest(folder, *scripted_rows(folder, "good", "bad", "good"))
    assert go(path) == ["dub"] * 3
    assert states(path) == [("done", ""), ("failed", "no face in it"), ("done", "")]
    assert go(path) == ["keep", "dub", "keep"]
    assert written(folder) == ["o0.mp4", "o2.mp4"]
    lines = [json.loads(line) for line in state_path(path).read_text().splitlines()]
    assert [line.get("state") for line in lines if line.get("output") == "o1.mp4"] == ["pending", "running", "failed"]
    assert all(line["facts"]["lipdub"] == ".".join(lipdub.__version__.split(".")[:2]) for line in lines[1:])
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_a_failed_row_is_tried_again_by_the_next_run(folder):
    path = manifest(folder, *scripted_rows(folder, "flaky"))
    go(path)
    assert states(path)[0][0] == "failed"
    go(path)
    assert states(path) == [("done", "")]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: script(folder, "v0.mp4", "good again"), "its video changed"),
        (lambda folder: (folder / "speech.wav").write_bytes(b"another"), "its speech changed"),
        (lambda folder: (folder / "o0.mp4").unlink(), "its output is gone"),
    ],
)
def test_what_changed_is_done_again_and_said(folder, change, why):
    path = manifest(folder, *scripted_rows(folder, "good"))
    go(path)
    change(folder)
    _, (step,) = planned(path)
    assert (step.action, step.why) == ("redo", why)
    go(path)
    assert written(folder) == ["o0.mp4"] * 2
    assert go(path) == ["keep"]


def test_changed_options_and_models_are_done_again(folder, tmp_path):
    path = manifest(folder, *scripted_rows(folder, "good"))
    go(path)
    _, (step,) = planned(path, defaults=DubOptions(crf=20, silence="keep"))
    assert (step.action, step.why) == ("redo", f"silence close -> keep, crf {DubOptions().crf} -> 20")
    assert step.row.options.force  # its own output
    _, (step,) = planned(path, defaults=DubOptions(threads=1, force=True))
    assert step.action == "keep"  # what the output does not show
    (tmp_path / "shelf" / "base" / "bundle.json").write_text((tmp_path / "shelf" / "base" / "bundle.json").read_text() + "\n")
    _, (step,) = planned(path)
    assert (step.action, step.why) == ("redo", "its model changed")


@pytest.mark.parametrize(
    ("option", "value"), [("mix", "music.wav:-6"), ("driver", "music.wav"), ("ranges", "cues.srt"), ("lips", "lips.csv")]
)
def test_files_that_options_name_count_by_their_content(folder, option, value):
    for name in ("music.wav", "cues.srt", "lips.csv"):
        (folder / name).write_bytes(b"one")
    chosen = DubOptions(**{option: str(folder / value)})
    path = manifest(folder, *scripted_rows(folder, "good"))
    go(path)
    _, (step,) = planned(path, defaults=chosen)
    assert (step.action, step.why) == ("redo", f"{option} None -> {value}")
    go(path, defaults=chosen)
    assert planned(path, defaults=chosen)[1][0].action == "keep"
    (folder / value.removesuffix(":-6")).write_bytes(b"another")
    assert planned(path, defaults=chosen)[1][0].why == f"its {option} changed"
    (folder / value.removesuffix(":-6")).unlink()
    assert planned(path, defaults=chosen)[1][0].action == "redo"


def test_another_version_of_lipdub_does_it_again_but_not_for_a_correction(folder, monkeypatch):
    path = manifest(folder, *scripted_rows(folder, "good"))
    go(path)
    monkeypatch.setattr("lipdub.batch.fingerprint.__version__", ".".join([*lipdub.__version__.split(".")[:2], "99"]))
    assert planned(path)[1][0].action == "keep"
    monkeypatch.setattr("lipdub.batch.fingerprint.__version__", "99.0.0")
    assert "-> 99.0" in planned(path)[1][0].why


def test_a_row_keeps_its_state_when_lines_move(folder):
    rows = scripted_rows(folder, "good", "good", "good")
    path = manifest(folder, *rows[:2])
    go(path)
    manifest(folder, "", rows[2], rows[1], rows[0])
    assert [(step.row.line, step.action) for step in planned(path)[1]] == [(3, "dub"), (4, "keep"), (5, "keep")]
    go(path)
    assert written(folder) == ["o0.mp4", "o1.mp4", "o2.mp4"]


def test_a_row_that_was_taken_out_may_come_back(folder):
    rows = scripted_rows(folder, "good", "good")
    path = manifest(folder, *rows)
    go(path)
    manifest(folder, rows[0])
    assert go(path) == ["keep"]
    manifest(folder, *rows)
    assert go(path) == ["keep", "keep"]


def test_the_whole_job_may_be_moved(folder, tmp_path):
    path = manifest(folder, *scripted_rows(folder, "good"))
    go(path)
    folder.rename(tmp_path / "moved")
    assert planned(tmp_path / "moved" / path.name)[1][0].action == "keep"


def test_restart_does_all_again_and_goes_on_with_that_after_a_stop(folder):
    path = manifest(folder, *scripted_rows(folder, "good", "good"))
    go(path)
    assert go(path, restart=True) == ["redo", "redo"]
    assert written(folder) == ["o0.mp4", "o1.mp4"] * 2
    state, plan = planned(path, restart=True)

    def stop(task, tell):
        if task.number == 1:
            raise KeyboardInterrupt
        return fake_work(task, tell)

    with pytest.raises(KeyboardInterrupt):
        run(plan, Here(stop), state)
    assert states(path) == [("done", ""), ("pending", "interrupted")]
    assert go(path) == ["keep", "dub"]
    assert written(folder)[-2:] == ["o0.mp4", "o1.mp4"]


def test_an_output_that_somebody_changed_is_not_replaced(folder):
    path = manifest(folder, *scripted_rows(folder, "good"))
    go(path)
    (folder / "o0.mp4").write_text("edited by hand")
    with pytest.raises(ManifestError, match="exists already"):
        planned(path)
    with pytest.raises(ManifestError, match="exists already"):
        planned(path, restart=True)
    assert planned(path, defaults=DubOptions(force=True))[1][0].action == "dub"
    assert go(path, skip_existing=True) == ["skip"]
    assert (folder / "o0.mp4").read_text() == "edited by hand"
    assert states(path)[0][0] == "skipped"


def test_two_manifests_do_not_own_each_others_outputs(folder):
    go(manifest(folder, *scripted_rows(folder, "good")))
    with pytest.raises(ManifestError, match="exists already"):
        planned(manifest(folder, "v0.mp4,speech.wav,o0.mp4", name="second.csv"))


# ------------------------------------------------------------------------------------------------------------ kills


def killed_at(folder: Path, *, output: str | None, report: str | None = None) -> Path:
    """A batch whose parent was killed while its only row ran, and what the row left."""
    lines = [f"{line},{'r.json' if report is not None else ''}" for line in scripted_rows(folder, "good")]
    path = manifest(folder, *lines, head="video,speech,output,report")
    state, plan = planned(path)

    def die(task, tell):
        if output is not None:
            (folder / "o0.mp4").write_text(output)
        if report is not None and report:
            (folder / "r.json").write_text(report)
        (folder / ".o0.0123456789ab.lipdub-part.mp4").write_text("half")
        (folder / "..o0.0123456789ab.lipdub-part.ba9876543210.lipdub-part.mp4").write_text("half")
        (folder / ".other.0123456789ab.lipdub-part.mp4").write_text("somebody else's")
        raise SystemExit  # settled below as if nothing had been settled

    before = state_path(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lipdub.batch.loop._Run.settle", lambda run: None)
        with pytest.raises(SystemExit):
            run(plan, Here(die), state)
    assert json.loads(before.read_text().splitlines()[-1])["state"] == "running"
    return path


def test_killed_before_the_output_appeared(folder):
    path = killed_at(folder, output=None)
    assert states(path) == [("pending", "interrupted")]
    assert go(path) == ["dub"]
    assert states(path) == [("done", "")]
    assert sorted(file.name for file in folder.glob(".*")) == [".other.0123456789ab.lipdub-part.mp4"]


def test_killed_between_the_rename_and_the_journal(folder):
    path = killed_at(folder, output="whole")
    assert states(path) == [("done", "recovered")]
    assert go(path) == ["keep"]
    assert (folder / "o0.mp4").read_text() == "whole"
    assert written(folder) == []
    assert go(path) == ["keep"]


def test_killed_between_the_output_and_its_report(folder):
    """The report's figures died with the process: the row is done again, over its own output."""
    path = killed_at(folder, output="whole", report="")
    assert go(path) == ["redo"]
    assert written(folder) == ["o0.mp4"]
    assert (folder / "r.json").exists()


def test_killed_after_the_report(folder):
    path = killed_at(folder, output="whole", report="{}")
    assert go(path) == ["keep"]


def test_a_missing_report_is_written_from_the_journal(folder):
    rows = [f"{line},r.json" for line in scripted_rows(folder, "good")]
    path = manifest(folder, *rows, head="video,speech,output,report")
    go(path)
    before = (folder / "r.json").read_text()
    (folder / "r.json").unlink()
    assert go(path) == ["report"]
    assert (folder / "r.json").read_text() == before
    assert written(folder) == ["o0.mp4"]
    assert go(path) == ["keep"]


def test_a_row_that_wants_a_report_later_is_not_dubbed_again(folder):
    rows = scripted_rows(folder, "good")
    go(manifest(folder, *rows))
    path = manifest(folder, f"{rows[0]},r.json", head="video,speech,output,report")
    assert go(path) == ["report"]
    assert json.loads((folder / "r.json").read_text())["frames"] == 8


def test_an_input_that_changed_while_the_batch_was_dead_is_done_again(folder):
    path = killed_at(folder, output="whole")
    script(folder, "v0.mp4", "good again")
    assert [(step.action, step.why) for step in planned(path)[1]] == [("redo", "its video changed")]
    go(path)
    assert written(folder) == ["o0.mp4"]


@pytest.mark.parametrize("written_first", [False, True], ids=["before its line is written", "after it"])
def test_a_crash_at_any_line_of_the_journal_loses_and_repeats_nothing(folder, written_first, monkeypatch):
    """Every point between two lines, in turn; a crash there settles nothing. Then the same command again, as often as it takes."""

    class Crashed(BaseException):
        pass

    record = State.record
    for point in range(1, 20):
        job = folder / f"at{point}"
        job.mkdir()
        (job / "speech.wav").write_bytes(b"sound")
        path = manifest(job, *scripted_rows(job, "good", "bad", "good"))
        calls = 0

        def crashing(state, *entries, point=point):
            nonlocal calls
            calls += 1
            if calls == point and not written_first:
                raise Crashed
            record(state, *entries)
            if calls == point:
                raise Crashed

        with monkeypatch.context() as patch:
            patch.setattr(State, "record", crashing)
            patch.setattr("lipdub.batch.loop._Run.settle", lambda run: None)
            try:
                go(path)
            except Crashed:
                pass
            else:
                assert point == 7  # three rows, each running and then done or failed
                return
        go(path)
        assert sorted(written(job)) == ["o0.mp4", "o2.mp4"]
        assert [state for state, _ in states(path)] == ["done", "failed", "done"]
        assert go(path) == ["keep", "dub", "keep"]


# ---------------------------------------------------------------------------------------------------------- journal


@given(st.integers(min_value=1, max_value=400))
def test_a_torn_journal_costs_at_most_its_last_line(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("torn")
    path = folder / "m.csv"
    state = State(path)
    entries = [Entry(f"{number:032x}", "done", number, f"o{number}.mp4", files={f"o{number}.mp4": Identity(1, "2")}) for number in range(4)]
    state.begin(entries[:2])
    state.record(*entries[2:])
    state.close()
    whole = state_path(path).read_bytes()
    state_path(path).write_bytes(whole[:-cut])
    left = State(path)
    lines = whole[:-cut].count(b"\n")
    assert list(left.entries) == [entry.key for entry in entries][: max(0, lines - 1)]
    assert left.damaged == 0
    left.begin(())  # it can be gone on with
    left.record(entries[3])
    left.close()
    assert State(path).entries[entries[3].key].files == entries[3].files


def test_a_journal_damaged_in_its_middle_keeps_the_other_rows(folder):
    path = manifest(folder, *scripted_rows(folder, "good", "good"))
    go(path)
    lines = state_path(path).read_text().splitlines()
    state_path(path).write_text("\n".join([lines[0], "{torn", '{"state": "sleeping"}', "[]", *lines[1:]]) + "\n")
    state = State(path)
    assert state.damaged == 3
    assert [entry.state for entry in state.entries.values()] == ["done", "done"]


def test_a_journal_of_the_future_is_left_alone(folder):
    path = manifest(folder, *scripted_rows(folder, "good"))
    state_path(path).write_text('{"lipdub_batch": 99}\n')
    with pytest.raises(ManifestError, match="another version of lipdub"):
        State(path)


def test_the_journal_stays_small(folder):
    path = manifest(folder, *scripted_rows(folder, "good", "bad"))
    for _ in range(5):
        go(path)
    assert len(state_path(path).read_text().splitlines()) == 1 + 2 + 2


def test_an_entry_survives_its_line():
    entry = Entry(
        "k", "failed", 3, "o.mp4", report="r.json", facts={"video": ["v", 1, "2"]}, at=1.5, attempt=2,
        before={"o.mp4": None, "r.json": Identity(5, "6")}, files={"o.mp4": Identity(1, "etag")}, why="ü", wall_s=1.25,
        done={"frames": 8}, trace="t",
    )  # fmt: skip
    assert Entry.from_json(entry.to_json()) == entry
    assert "\n" not in replace(entry, why="a\nb").to_json()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_that_cannot_be_written_is_said(folder):
    path = manifest(folder, *scripted_rows(folder, "good"))
    folder.chmod(0o500)
    with pytest.raises(ManifestError, match="state"), batch_lock(path):
        pass


# ------------------------------------------------------------------------------------------------------------- lock


def in_another_process(code: str) -> subprocess.Popen[str]:
    """A process that says a word when it is there, and ends when its input does."""
    before = "import sys\nfrom pathlib import Path\nfrom lipdub.batch.lock import *\n"
    code = f"{before}{code}\n    print('there', flush=True)\n    sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def test_one_batch_at_a_time(tmp_path):
    path = tmp_path / "m.csv"
    with in_another_process(f"with batch_lock(Path({str(path)!r})):") as process:
        with pytest.raises(ManifestError, match="another lipdub batch is at work"), batch_lock(path):
            pass
        process.kill()
    with batch_lock(path):  # a killed batch holds nothing
        assert lock_path(path).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_batch_waits_for_the_workers_of_a_killed_one(tmp_path):
    path = tmp_path / "m.csv"
    lock_path(path).touch()
    with in_another_process(f"with row_lock(lock_path(Path({str(path)!r})), 5):") as process:
        with pytest.raises(ManifestError, match="workers of an earlier batch"), batch_lock(path, orphans_s=0.2):
            pass
        process.kill()
    with batch_lock(path):
        pass


def test_a_worker_out_of_reach_of_the_lock_works_all_the_same(tmp_path):
    for path in (None, tmp_path / "none"):
        with row_lock(path, 3):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_takes_its_own_parts_only(tmp_path):

    long = "ä" * 90 + ".mp4"
    names = ("a.mp4", "a.b.mkv", long)
    for name in names:
        for path in (tmp_path / name, tmp_path / f"x{name}"):
            with part_file(path) as part, part_file(part) as inner:
                left = (part, inner)
            # What a killed attempt leaves: the same names, once the blocks that would have cleared them are over.
            for file in left:
                file.touch()
    before = len(list(tmp_path.iterdir()))
    assert before == 12
    assert sweep(tmp_path / name for name in names) == 6
    assert all(file.name.lstrip(".").startswith("x") for file in tmp_path.iterdir())
    assert sweep([tmp_path / "none" / "a.mp4"]) == 0
