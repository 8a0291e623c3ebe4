"""``lipdub batch`` as a user runs it: what it prints, its exit codes, the plan, and the whole chain on a few frames."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from batch_jobs import fake_work, make_job, manifest, scripted_rows, written
from drawn import draw_video

from lipdub import media
from lipdub.batch import State, batch_lock, state_path
from lipdub.batch.loop import Pool
from lipdub.cli import batch as command
from lipdub.cli import console
from lipdub.cli.batch_view import BatchView, clock_s
from lipdub.stages import ENDING

PORTRAIT = Path(__file__).parent.parent / "examples" / "portrait.mp4"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIPDUB_CACHE", str(tmp_path / "cache"))
    return make_job(tmp_path, monkeypatch)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes, no dubs."""
    from batch_jobs import Here

    def pool(*arguments: object) -> Pool:
        return Here(fake_work)

    monkeypatch.setattr(command, "_pool", pool)


def lipdub(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the real command line in this process; its exit code."""
    import signal

    from lipdub.cli.app import main

    console.results.cache_clear()
    console.errors.cache_clear()
    monkeypatch.setattr(sys, "argv", ["lipdub", *map(str, arguments)])
    handlers = {number: signal.getsignal(number) for number in ENDING}
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        console.results.cache_clear()
        console.errors.cache_clear()
    assert isinstance(left.value.code, int)
    return left.value.code


def test_every_problem_is_printed_on_its_line(folder, fakes, monkeypatch, capsys):
    path = manifest(folder, "none.mp4,speech.wav,o.mp4", "talk.mp4,none.wav,p.mp4", "talk.mp4,speech.wav,q.mp4")
    assert lipdub(monkeypatch, "batch", path) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line[:7] for line in err.splitlines()] == ["line 2:", "line 3:", "error: "]
    assert not state_path(path).exists()
    assert not list(folder.glob(".*"))


def test_a_single_problem_is_one_line(folder, fakes, monkeypatch, capsys):
    assert lipdub(monkeypatch, "batch", manifest(folder, "none.mp4,speech.wav,o.mp4")) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert lipdub(monkeypatch, "batch", folder / "none.csv") == 1
    assert capsys.readouterr().err.startswith("error: cannot read manifest")
    assert not list(folder.glob(".*"))


def test_exit_codes_lines_and_table(folder, fakes, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")  # paths of temporary folders are long
    path = manifest(folder, *scripted_rows(folder, "good", "bad"), "v0.mp4,speech.wav,[red]p.mp4")
    assert lipdub(monkeypatch, "batch", path) == 1
    out, err = capsys.readouterr()
    assert "2 of 3 rows dubbed, 1 failed" in out
    assert "[red]p.mp4" in out
    assert "line 3 failed: no face in it" in err
    assert "line 2: dubbed (1 of 3" in err
    assert lipdub(monkeypatch, "batch", path, "--quiet") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "line 3 failed: no face in it\n"
    (folder / "v1.mp4").write_text("good")
    assert lipdub(monkeypatch, "batch", path) == 0
    assert "3 of 3 rows dubbed, 2 of them before" in capsys.readouterr().out
    assert lipdub(monkeypatch, "batch", path) == 0
    assert "3 of 3 rows dubbed, 3 of them before" in capsys.readouterr().out
    assert written(folder) == ["o0.mp4", "[red]p.mp4", "o1.mp4"]
    assert lipdub(monkeypatch, "batch", path, "--restart") == 0
    assert len(written(folder)) == 6


def test_rows_in_which_nothing_was_dubbed_have_a_state_a_code_and_a_warning_of_their_own(folder, fakes, monkeypatch, capsys):
    path = manifest(folder, *scripted_rows(folder, "good", "nothing"))
    rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{rows[0]},report", f"{rows[1]},", f"{rows[2]},r.json"]) + "\n")

    def states() -> list[str]:
        return [entry.state for entry in State(path).entries.values()]

    assert lipdub(monkeypatch, "batch", path, "-q") == 3
    assert capsys.readouterr() == ("", "line 3: warning: nothing was dubbed\n")
    assert states() == ["done", "nothing-dubbed"]
    report = json.loads((folder / "r.json").read_text())
    assert report["nothing_dubbed"] is True
    assert report["warnings"] == [{"kind": "nothing-dubbed", "text": "nothing was dubbed", "times": []}]
    # It is finished: the same command does nothing, and says the same. Its report can be written again without a dub.
    (folder / "r.json").unlink()
    for _ in range(2):
        assert lipdub(monkeypatch, "batch", path) == 3
        assert states() == ["done", "nothing-dubbed"]
    assert json.loads((folder / "r.json").read_text()) == report
    assert written(folder) == ["o0.mp4", "o1.mp4"]
    capsys.readouterr()
    assert lipdub(monkeypatch, "batch", path, "--restart") == 3
    assert "2 of 2 rows dubbed, nothing dubbed in 1 of them" in capsys.readouterr().out
    (folder / "v0.mp4").write_text("bad")
    assert lipdub(monkeypatch, "batch", path) == 1


def test_an_output_of_somebody_else_is_refused_skipped_or_replaced(folder, fakes, monkeypatch, capsys):
    path = manifest(folder, *scripted_rows(folder, "good", "good"))
    (folder / "o0.mp4").write_text("mine")
    assert lipdub(monkeypatch, "batch", path) == 1
    assert "exists already" in capsys.readouterr().err
    assert lipdub(monkeypatch, "batch", path, "--skip-existing") == 0
    assert "1 of 2 rows dubbed, 1 skipped, their outputs were there" in capsys.readouterr().out
    assert (folder / "o0.mp4").read_text() == "mine"
    assert lipdub(monkeypatch, "batch", path, "--force") == 0
    assert (folder / "o0.mp4").read_text() != "mine"


def test_two_batches_on_one_manifest(folder, fakes, monkeypatch, capsys, tmp_path):
    path = manifest(folder, *scripted_rows(folder, "good"))
    code = (
        "import sys\nfrom pathlib import Path\nfrom lipdub.batch.lock import batch_lock\n"
        "with batch_lock(Path(sys.argv[1])):\n    print('x', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert lipdub(monkeypatch, "batch", path) == 1
        assert capsys.readouterr().err.startswith("error: another lipdub batch is at work on")
        assert lipdub(monkeypatch, "batch", path, "--dry-run") == 0  # looking on is allowed
        other.communicate("\n")
    with batch_lock(path):
        pass


def test_usage(folder, fakes, monkeypatch, capsys):
    path = manifest(folder, *scripted_rows(folder, "good"))
    for arguments in (("--jobs", "0"), ("--retry", "-1"), ("--jobs", "2", "--ray", "auto"), ("--resume",)):
        assert lipdub(monkeypatch, "batch", path, *arguments) == 2
    assert lipdub(monkeypatch, "batch") == 2


def test_without_the_packages_one_line_says_what_to_install(folder, monkeypatch, capsys):
    path = manifest(folder, *scripted_rows(folder, "good"))
    monkeypatch.setitem(sys.modules, "ray", None)
    assert lipdub(monkeypatch, "batch", path, "--ray", "auto", "--quiet") == 1
    err = capsys.readouterr().err
    assert 'pip install "lipdub[ray]"' in err
    assert len(err.splitlines()) == 1
    assert not list(folder.glob(".*"))
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert lipdub(monkeypatch, "batch", manifest(folder, "s3://bucket/talk.mp4,speech.wav,o.mp4")) == 1
    assert 'pip install "lipdub[cloud]"' in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom lipdub.cli.app import main\nsys.argv = ['lipdub', 'batch', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted({'numpy', 'av', 'ray', 'fsspec', 'multiprocessing', 'lipdub.batch'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "LOADED []"
    assert "manifest.csv --dry-run" in out


# --------------------------------------------------------------------------------------------------------- the plan


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(folder, fakes, monkeypatch, capsys):
    path = manifest(folder, *scripted_rows(folder, "good", "bad", "good"))
    assert lipdub(monkeypatch, "batch", path, "--quiet") == 1
    (folder / "v2.mp4").write_text("good again")
    before = sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir())
    capsys.readouterr()
    assert lipdub(monkeypatch, "batch", path, "--dry-run") == 0
    out, _ = capsys.readouterr()
    assert "1 to dub, 1 to dub again, 1 done and unchanged" in out
    assert "its video changed" in out
    assert "failed before: no face in it" in out
    assert "no estimate of the time: " in out  # these are no videos
    assert sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir()) == before


def face_video(path: Path, frames: int) -> None:
    chunks = media.read_frames(PORTRAIT)
    pictures = list(next(chunks).pixels[:frames, ::2, ::2])
    chunks.close()
    draw_video(path, pictures=pictures)


def test_the_estimate_is_measured_and_scaled(folder, monkeypatch, capsys):
    face_video(folder / "face.mp4", 6)
    path = manifest(folder, *(f"face.mp4,speech.wav,o{number}.mp4" for number in range(3)))
    assert lipdub(monkeypatch, "batch", path, "--dry-run", "--device", "cpu", "--jobs", "2") == 0
    out = capsys.readouterr().out
    assert "3 to dub" in out
    assert "estimate: " in out
    assert "for 1 s of output" in out
    assert "with 2 at once" in out
    assert not state_path(path).exists()
    assert not list(folder.glob("o*.mp4"))[1:]  # other.mp4 was there


def test_the_estimate_grows_with_length_and_shrinks_with_the_cache(folder, monkeypatch):
    from lipdub.batch import check_manifest, make_plan
    from lipdub.batch.estimate import estimate, load_of

    face_video(folder / "face.mp4", 6)
    rows = [f"face.mp4,speech.wav,o{number}.mp4" for number in range(4)]
    path = manifest(folder, *rows)
    plan = make_plan(check_manifest(path), State(path))
    monkeypatch.setattr(
        "lipdub.batch.estimate._try",
        lambda row: (1.0, load_of(row, analysed=False)[0] / 12.0, 0.24),
    )
    one, four, uncached = estimate(plan[:1]), estimate(plan), estimate(plan, cache=False)
    assert one.work_s == pytest.approx(13.0)
    assert uncached.work_s == pytest.approx(4 * 13.0)
    assert four.work_s == pytest.approx(4 * 1.0 + 12.0 + 3 * 12.0 * 6 / 12)
    assert four.output_s == pytest.approx(4 * 0.24)


# ------------------------------------------------------------------------------------------------------ the display


def test_times_as_people_read_them():
    assert [clock_s(seconds) for seconds in (0.4, 59.4, 65, 7800)] == ["0 s", "59 s", "1 min 05 s", "2 h 10 min"]


def test_the_live_table_shows_rows_stages_counts_and_the_time_left(folder, monkeypatch):
    from rich.console import Console

    from lipdub.batch import RowResult, check_manifest, make_plan

    path = manifest(folder, *scripted_rows(folder, "good", "good", "good"))
    plan = make_plan(check_manifest(path), State(path))
    screen = Console(force_terminal=True, width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    monkeypatch.setattr("lipdub.cli.batch_view.errors", lambda: screen)
    view = BatchView(plan, quiet=False)
    with view.shown():
        view.started(plan[0])
        view.started(plan[1])
        view.progress(plan[0], "redrawing", 50, 200)
        assert view.left_s() is None
        view.finished(plan[1], RowResult(plan[1].row, None, "no face", 1.0), False)
        screen.print(view._table())
    shown = screen.export_text()
    assert "redrawing" in shown
    assert "25%" in shown
    assert "0 of 3 done, 1 failed, 1 running, 1 waiting" in shown
    assert "left" in shown
    screen.file.close()


# -------------------------------------------------------------------------------------------------- the whole chain


def test_a_video_without_a_face_between_two_with_one(folder, monkeypatch, capsys):
    """Worker processes, faces, cache and all; then a second language, which finds the first one's analysis."""
    face_video(folder / "face.mp4", 6)
    lines = [
        "face.mp4,speech.wav,one.mp4,,one.json",
        "talk.mp4,speech.wav,two.mp4,,two.json",
        "face.mp4,speech.wav,three.mkv,speech,three.json",
    ]
    path = manifest(folder, *lines, head="video,speech,output,fit,report")
    options = ("--preset", "ultrafast", "--device", "cpu", "--threads", "1", "--model", folder.parent / "shelf" / "base")
    assert lipdub(monkeypatch, "batch", path, *options) == 1
    out, err = capsys.readouterr()
    assert "2 of 3 rows dubbed" in out
    assert "line 3 failed: no face in" in err
    assert json.loads((folder / "one.json").read_text())["dubbed"] == 6
    assert json.loads((folder / "one.json").read_text())["analysis_cached"] is False
    assert json.loads((folder / "three.json").read_text())["analysis_cached"] is True
    assert media.probe(folder / "three.mkv").has_audio
    assert sorted(file.name for file in folder.iterdir() if file.name.startswith((".", "t"))) == ["talk.mp4", "three.json", "three.mkv"]
    # As JSON lines, with files at URLs, side by side with the table's outputs; and again, which does nothing.
    urls = {"video": f"file://{folder}/face.mp4", "speech": f"file://{folder}/speech.wav", "output": f"file://{folder}/four.mp4"}
    more = manifest(folder, json.dumps(urls | {"report": f"file://{folder}/four.json", "crf": 30}), head="", name="more.jsonl")
    assert lipdub(monkeypatch, "batch", more, *options) == 0
    report = json.loads((folder / "four.json").read_text())
    assert (report["output"], report["dubbed"], report["analysis_cached"]) == (urls["output"], 6, True)
    inode = (folder / "four.mp4").stat().st_ino
    assert lipdub(monkeypatch, "batch", more, *options) == 0
    assert (folder / "four.mp4").stat().st_ino == inode
    assert not list(folder.glob(".*"))
