"""Manifests: everything that is wrong is found before a frame is touched; a row that fails does not stop the others."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from drawn import draw_video, sine, write_wav
from fakes import write_fake_bundle

from lipdub import batch, bundle, media, pipeline
from lipdub.batch import Options, Row, dub_row, read_manifest, run
from lipdub.errors import EncodingFailed, ManifestError, NoFaceFound
from lipdub.records import DubReport
from lipdub.reports import write_report

PORTRAIT = Path(__file__).parent.parent / "examples" / "portrait.mp4"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def manifest(folder: Path, *lines: str, head: str = "video,speech,output") -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join((head, *lines)) + "\n", encoding="utf-8")
    return path


def problems_of(path: Path, defaults: Options | None = None) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, defaults)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value.problems


def a_report(row_output: Path, **changes: Any) -> DubReport:
    report = DubReport(
        video="v", speech="s", output=str(row_output), model="fake", provider="cpu", fit="longest", silence="close", frames=8,
        dubbed=8, passed_through=0, spans=(), silent_frames=0, video_s=0.3, speech_s=0.2, output_s=0.3, wall_s=0.5, stage_s={},
        version="0",
    )  # fmt: skip
    return replace(report, **changes)


@pytest.fixture
def dubs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """In place of the real dub: notes its calls, writes a file, and fails for videos called ``bad*``."""
    calls: list[dict[str, Any]] = []

    def dub(video: Path, speech: Path, out: Path, **options: Any) -> DubReport:
        calls.append({"video": video, "speech": speech, "out": out, **options})
        if options["on_progress"] is not None:
            options["on_progress"]("finding faces", 1, 1)
        if video.name.startswith("stop"):
            raise KeyboardInterrupt
        if video.name.startswith("bad"):
            raise NoFaceFound(f"no face in\n'{video}'; lipdub needs one")
        out.write_bytes(b"dubbed")
        return a_report(out)

    monkeypatch.setattr(pipeline, "dub", dub)
    return calls


# ---------------------------------------------------------------------------------------------------------- reading


def test_options_are_those_of_dub_with_its_defaults():
    wanted = {
        name: parameter.default
        for name, parameter in inspect.signature(pipeline.dub).parameters.items()
        # What only another program can hand over is no option of a row.
        if parameter.kind is parameter.KEYWORD_ONLY and name not in ("on_progress", "generator", "track")
    }
    assert asdict(Options()) == wanted


def test_every_option_of_sync_is_a_column_and_its_choices_are_the_same():
    from lipdub.cli import batch as command
    from lipdub.cli import sync

    assert set(inspect.signature(sync.sync).parameters) - {"quiet"} == {field.name for field in fields(Row)} - {
        "line",
        "options",
    } | set(asdict(Options()))
    assert tuple(choice.value for choice in sync.PresetChoice) == batch.PRESETS
    assert {*asdict(Options()), "manifest", "quiet"} == set(inspect.signature(command.batch).parameters)
    for name, value in asdict(Options()).items():
        default = inspect.signature(command.batch).parameters[name].default
        assert getattr(default, "value", default) == value


def test_a_row_as_it_stands(folder):
    (row,) = read_manifest(manifest(folder, "talk.mp4,speech.wav,out.mp4"))
    assert row == Row(2, folder / "talk.mp4", folder / "speech.wav", folder / "out.mp4")


def test_every_column(folder):
    head = "report,force,strict,threads,preset,crf,silence,fit,device,model,output,speech,video"
    line = "r.json,yes,TRUE,2,fast,23,keep,speech,cpu,mine,out.mkv,speech.wav,talk.mp4"
    (row,) = read_manifest(manifest(folder, line, head=head))
    model = str(folder / "mine")
    assert row.options == Options(model, "cpu", "speech", "keep", 23, "fast", 2, True, True)
    assert row.report == folder / "r.json"
    assert bundle.resolve(row.options.model) == folder / "mine"


def test_an_empty_cell_takes_the_default_and_a_cell_wins_over_it(folder):
    path = manifest(
        folder,
        "talk.mp4,speech.wav,a.mp4,,,base",
        "talk.mp4,speech.wav,b.mp4,0,no,",
        head="video,speech,output,crf,strict,model",
    )
    one, other = read_manifest(path, Options(model=str(folder / "mine"), crf=30, strict=True))
    assert one.options == Options("base", crf=30, strict=True)
    assert other.options == Options(str(folder / "mine"), crf=0, strict=False)


def test_force_in_a_cell_is_for_its_row(folder):
    (folder / "there.mp4").write_bytes(b"old")
    head = "video,speech,output,force"
    (row,) = read_manifest(manifest(folder, "talk.mp4,speech.wav,there.mp4,yes", head=head))
    assert row.options.force
    problems = problems_of(manifest(folder, "talk.mp4,speech.wav,there.mp4,no", head=head), Options(force=True))
    assert len(problems) == 1
    assert "exists already" in problems[0]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffvideo,speech,output\ntalk.mp4,speech.wav,out.mp4\n",
        "video,speech,output\r\ntalk.mp4,speech.wav,out.mp4\r\n",
        'Video , SPEECH,output\n"talk.mp4", speech.wav ,out.mp4',
        "\nvideo,speech,output\n\n,,\ntalk.mp4,speech.wav,out.mp4\n  \n",
    ],
    ids=["BOM", "Windows", "spaces, quotes, capitals", "empty lines"],
)
def test_what_spreadsheets_write_is_taken(folder, text):
    (folder / "manifest.csv").write_bytes(text.encode())
    (row,) = read_manifest(folder / "manifest.csv")
    assert (row.video.name, row.speech.name, row.output.name) == ("talk.mp4", "speech.wav", "out.mp4")


def test_lines_are_counted_as_an_editor_does(folder):
    (folder / "two\nlines.mp4").write_bytes((folder / "talk.mp4").read_bytes())
    path = manifest(folder, '"two\nlines.mp4",speech.wav,a.mp4', "", "talk.mp4,speech.wav,b.mp4")
    assert [row.line for row in read_manifest(path)] == [2, 5]


def test_absolute_paths_and_a_relative_manifest(folder, monkeypatch):
    monkeypatch.chdir(folder)
    manifest(folder, f"{folder / 'talk.mp4'},speech.wav,out.mp4")
    (row,) = read_manifest(Path("manifest.csv"))
    assert row.video == folder / "talk.mp4"
    assert row.output == Path("out.mp4")


def test_a_bundle_that_came_with_lipdub_wins_over_a_folder_of_its_name(folder):
    (folder / "base").mkdir()
    (row,) = read_manifest(manifest(folder, "talk.mp4,speech.wav,out.mp4,base", head="video,speech,output,model"))
    assert row.options.model == "base"


# --------------------------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "check the path"),
        (b"", "is empty"),
        (b"\n ,\n", "is empty"),
        (b"video,speech,output\n\xff\xfe\n", "UTF-8"),
        (b'video,speech,output\na,b,"c\n', "quotes"),
        (b'video,speech,output\na,b,"c"d\n', "line 2: no CSV"),
    ],
)
def test_a_file_that_is_no_manifest(folder, content, word):
    path = folder / "manifest.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=word) as caught:
        read_manifest(path)
    assert caught.value.problems == ()


def test_a_folder_is_no_manifest(folder):
    with pytest.raises(ManifestError, match="directory"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("head", "lines", "wanted"),
    [
        ("video,speech,output", [], ["line 1: no row"]),
        ("video;speech;output", [], ["line 1: the columns are not separated by commas", "line 1: no row"]),
        ("video,speech,output,colour", ["talk.mp4,speech.wav,o.mp4,red"], ["line 1: unknown column 'colour'"]),
        ("video,speech,output,", ["talk.mp4,speech.wav,o.mp4,"], ["line 1: column 4 has no name"]),
        ("video,speech,output,crf,CRF", ["talk.mp4,speech.wav,o.mp4,1,2"], ["line 1: column 'crf' is there 2 times"]),
        ("video,output", ["talk.mp4,o.mp4"], ["line 1: column 'speech' is missing"]),
        ("speech", ["speech.wav"], ["line 1: column 'video' is missing", "line 1: column 'output' is missing"]),
    ],
)
def test_columns(folder, head, lines, wanted):
    problems = problems_of(manifest(folder, *lines, head=head))
    assert len(problems) == len(wanted)
    for problem, start in zip(problems, wanted, strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize(
    ("column", "cell", "word"),
    [
        ("crf", "52", "from 0 to 51"),
        ("crf", "-1", "from 0 to 51"),
        ("crf", "18.5", "whole number"),
        ("crf", "9" * 5000, "whole number"),
        ("crf", "good", "whole number"),
        ("threads", "0", "from 1 to"),
        ("fit", "shortest", "longest, video, speech"),
        ("silence", "open", "close, keep, off"),
        ("device", "tpu", "auto, cpu, cuda"),
        ("preset", "placebo", "ultrafast"),
        ("strict", "maybe", "true or false"),
        ("force", "2", "true or false"),
        ("model", "none-such", "no model bundle"),
        ("model", "talk.mp4", "is a file"),
        ("model", ".", "holds no bundle.json"),
        ("report", "none/r.json", "folder"),
        ("report", "mine", "it is a folder"),
        ("report", "other.mp4", "exists already"),
        ("report", "speech.wav", "it is an input"),
        ("report", "o.mp4", "it is the output"),
    ],
)
def test_cells(folder, column, cell, word):
    path = manifest(folder, f"talk.mp4,speech.wav,o.mp4,{cell}", head=f"video,speech,output,{column}")
    problems = problems_of(path)
    assert problems[0].startswith("line 2: ")
    assert word in problems[0]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("talk.mp4,speech.wav", "2 cells for 3 columns; leave none out"),
        ("talk.mp4,speech.wav,o.mp4,x", "4 cells for 3 columns; quote"),
        (",speech.wav,o.mp4", "no video"),
        ("talk.mp4,,o.mp4", "no speech"),
        ("talk.mp4,speech.wav,", "no output"),
        ("none.mp4,speech.wav,o.mp4", "there is no such file"),
        ("talk.mp4,none.wav,o.mp4", "there is no such file"),
        ("mine,speech.wav,o.mp4", "it is a folder"),
        ("empty.mp4,speech.wav,o.mp4", "the file is empty"),
        ("ta\0lk.mp4,speech.wav,o.mp4", "NUL"),
        (f"{'x' * 300}.mp4,speech.wav,o.mp4", "check the path"),
        ("talk.mp4,speech.wav,o.avi", ".mp4, .mov and .mkv"),
        ("talk.mp4,speech.wav,o", ".mp4, .mov and .mkv"),
        ("talk.mp4,speech.wav,none/o.mp4", "folder"),
        ("talk.mp4,speech.wav,other.mp4", "exists already"),
        ("talk.mp4,speech.wav,talk.mp4", "it is the input"),
        ("talk.mp4,talk.mp4,./talk.mp4", "it is the input"),
    ],
)
def test_rows(folder, line, word):
    (folder / "empty.mp4").touch()
    path = manifest(folder, line)
    if "\0" in line and sys.version_info < (3, 11):
        with pytest.raises(ManifestError, match="NUL"):
            read_manifest(path)
        return
    (problem,) = problems_of(path)
    assert problem.startswith("line 2: ")
    assert word in problem


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(folder):
    (folder / "talk.mp4").chmod(0)
    (folder / "locked").mkdir(mode=0o500)
    problems = problems_of(manifest(folder, "talk.mp4,speech.wav,locked/o.mp4"))
    assert len(problems) == 2
    assert all("permission" in problem for problem in problems)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["talk.mp4,speech.wav,o.mp4,", "other.mp4,speech.wav,o.mp4,"], "line 3: output .* is written by line 2, too"),
        (["talk.mp4,speech.wav,o.mp4,", "other.mp4,speech.wav,./mine/../o.mp4,"], "line 3: output .* is written by line 2, too"),
        (["talk.mp4,speech.wav,o.mp4,", "other.mp4,speech.wav,link/o.mp4,"], "line 3: output .* is written by line 2, too"),
        (["talk.mp4,speech.wav,other.mp4,", "other.mp4,speech.wav,o.mp4,"], "line 2: output .* is an input of line 3"),
        (["talk.mp4,speech.wav,o.mp4,", "other.mp4,speech.wav,link/talk.mp4,"], "line 3: output .* is an input of line 2"),
        (["talk.mp4,speech.wav,o.mp4,r", "other.mp4,speech.wav,p.mp4,r"], "line 3: report .* is written by line 2, too"),
        (["talk.mp4,speech.wav,o.mp4,o.mp4"], "line 2: .* report .* it is the output"),
        (["talk.mp4,speech.wav,o.mp4,talk.mp4"], "line 2: .* report .* it is an input"),
        (["talk.mp4,speech.wav,o.mp4,manifest.csv"], "line 2: report .* is the manifest"),
    ],
)
def test_no_file_is_written_twice_nor_one_that_is_read(folder, lines, wanted):
    (folder / "link").symlink_to(folder, target_is_directory=True)
    path = manifest(folder, *lines, head="video,speech,output,report")
    with pytest.raises(ManifestError, match=wanted) as caught:
        read_manifest(path, Options(force=True))
    assert len(caught.value.problems) == 1


def test_what_one_row_writes_another_cannot_read(folder):
    """Rows are checked before the first is dubbed, so a chain of dubs needs two manifests."""
    problems = problems_of(manifest(folder, "talk.mp4,speech.wav,o.mp4", "o.mp4,speech.wav,p.mp4"))
    assert "is an input of line 3" in problems[0]
    assert "no such file" in problems[1]


def test_inputs_may_be_used_by_many_rows(folder):
    rows = read_manifest(manifest(folder, "talk.mp4,talk.mp4,a.mp4", "talk.mp4,speech.wav,b.mp4"))
    assert [row.line for row in rows] == [2, 3]


def test_all_problems_are_listed_in_order_and_the_message_names_the_first(folder):
    path = manifest(
        folder,
        "none.mp4,speech.wav,o.mp4,99",
        "talk.mp4,speech.wav,a.mp4,",
        "talk.mp4,none.wav,a.mp4,",
        head="video,speech,output,crf",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert [problem[:7] for problem in caught.value.problems] == ["line 2:"] * 2 + ["line 4:"] * 2
    assert "has 4 problems" in str(caught.value)
    assert caught.value.problems[0] in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems) == (str(caught.value), caught.value.problems)


def test_a_default_model_is_looked_for_where_the_command_runs(folder):
    path = manifest(folder, "talk.mp4,speech.wav,o.mp4")
    assert "no model bundle" in problems_of(path, Options(model="mine"))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert read_manifest(path, Options(model="mine"))[0].options.model == "mine"


def test_an_altered_bundle_is_found_before_the_first_row(folder):
    (folder / "mine" / bundle.MEMORY_GRAPH).write_bytes(b"another")
    (problem,) = problems_of(manifest(folder, "talk.mp4,speech.wav,o.mp4,mine", head="video,speech,output,model"))
    assert "altered" in problem


# ---------------------------------------------------------------------------------------------------------- running


def test_a_failing_row_is_passed_over(folder, dubs):
    rows = [Row(line, folder / f"{name}.mp4", folder / "s.wav", folder / f"{name}_out.mp4") for line, name in enumerate("abc", 2)]
    rows[1] = replace(rows[1], video=folder / "bad.mp4", options=Options(crf=30))
    told: list[str] = []

    @contextmanager
    def on_row(row: Row) -> Iterator[Any]:
        told.append(f"start {row.line}")
        yield lambda stage, done, total: told.append(stage)
        told.append("end")

    results = run(rows, on_row=on_row, on_result=lambda result: told.append(str(result.ok)))
    assert [result.ok for result in results] == [True, False, True]
    assert results[1].why == f"no face in '{folder / 'bad.mp4'}'; lipdub needs one"
    assert results[1].report is None
    assert results[0].report == a_report(rows[0].output)
    assert results[0].row == rows[0]
    assert (folder / "c_out.mp4").is_file()
    assert [call["crf"] for call in dubs] == [14, 30, 14]
    assert told == [step for n, ok in ((2, True), (3, False), (4, True)) for step in (f"start {n}", "finding faces", "end", str(ok))]


def test_an_interruption_stops_the_batch_and_keeps_what_was_told(folder, dubs):
    rows = [Row(2, folder / "a.mp4", folder / "s.wav", folder / "a_out.mp4"), Row(3, folder / "stop.mp4", folder / "s", folder / "o.mp4")]
    told = []
    with pytest.raises(KeyboardInterrupt):
        run(rows, on_result=told.append)
    assert [result.row.line for result in told] == [2]
    assert (folder / "a_out.mp4").is_file()


def test_a_bug_is_no_failing_row(folder, monkeypatch):
    def dub(*paths: Path, **options: Any) -> DubReport:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "dub", dub)
    with pytest.raises(ZeroDivisionError):
        run([Row(2, folder / "a.mp4", folder / "s.wav", folder / "o.mp4")])


def test_a_report_is_written_if_asked_for(folder, dubs):
    row = Row(2, folder / "a.mp4", folder / "s.wav", folder / "o.mp4", report=folder / "r.json")
    assert dub_row(row).ok
    content = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert content["frames"] == 8
    assert content["frames_per_s"] == 16.0
    assert not list(folder.glob(".*"))


def test_a_report_that_cannot_be_written_fails_its_row(folder, dubs):
    result = dub_row(Row(2, folder / "a.mp4", folder / "s.wav", folder / "o.mp4", report=folder / "none" / "r.json"))
    assert not result.ok
    assert result.report is not None
    assert "was written, but not the report" in result.why
    with pytest.raises(EncodingFailed):
        write_report(result.report, folder / "mine")


def test_a_row_and_its_result_can_be_sent_to_another_process(folder, dubs):
    result = dub_row(Row(2, folder / "a.mp4", folder / "s.wav", folder / "o.mp4"))
    assert pickle.loads(pickle.dumps(result)) == result


# ------------------------------------------------------------------------------------------------- the command line


def lipdub(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the real command line in this process; its exit code."""
    from lipdub.cli import console
    from lipdub.cli.app import main

    console.results.cache_clear()
    console.errors.cache_clear()
    monkeypatch.setattr(sys, "argv", ["lipdub", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    console.results.cache_clear()
    console.errors.cache_clear()
    assert isinstance(left.value.code, int)
    return left.value.code


def test_every_problem_is_printed_on_its_line(folder, dubs, monkeypatch, capsys):
    path = manifest(folder, "none.mp4,speech.wav,o.mp4", "talk.mp4,none.wav,p.mp4", "talk.mp4,speech.wav,q.mp4")
    assert lipdub(monkeypatch, "batch", path) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line[:7] for line in err.splitlines()] == ["line 2:", "line 3:", "error: "]
    assert dubs == []


def test_a_single_problem_is_one_line(folder, dubs, monkeypatch, capsys):
    assert lipdub(monkeypatch, "batch", manifest(folder, "none.mp4,speech.wav,o.mp4")) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_exit_codes_and_table(folder, dubs, monkeypatch, capsys):
    (folder / "bad[red].mp4").write_bytes(b"x")
    good = manifest(folder, "talk.mp4,speech.wav,o.mp4", "other.mp4,speech.wav,[red]p.mp4")
    assert lipdub(monkeypatch, "batch", good, "--crf", "40", "--fit", "speech") == 0
    assert "2 of 2 rows dubbed" in capsys.readouterr().out
    assert [(call["crf"], call["fit"]) for call in dubs] == [(40, "speech")] * 2

    mixed = manifest(folder, "bad[red].mp4,speech.wav,p.mp4", "talk.mp4,speech.wav,q.mp4")
    assert lipdub(monkeypatch, "batch", mixed) == 1
    out, err = capsys.readouterr()
    assert "1 of 2 rows dubbed" in out
    assert "line 2 failed: no face in" in err
    assert "bad[red].mp4" in err
    assert (folder / "q.mp4").is_file()

    assert lipdub(monkeypatch, "batch", mixed, "--force", "--quiet") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("line 2 failed: ")
    assert len(err.splitlines()) == 1


def test_ctrl_c_keeps_what_is_done_and_says_so(folder, dubs, monkeypatch, capsys):
    (folder / "stop.mp4").write_bytes(b"x")
    path = manifest(folder, "talk.mp4,speech.wav,o.mp4", "stop.mp4,speech.wav,p.mp4", "talk.mp4,speech.wav,q.mp4")
    assert lipdub(monkeypatch, "batch", path) == 130
    out, err = capsys.readouterr()
    assert "1 of 3 rows dubbed" in out
    assert "stopped in line 3" in err
    assert [file.name for file in sorted(folder.glob("?.mp4"))] == ["o.mp4"]


def test_a_video_without_a_face_between_two_with_one(folder, monkeypatch, capsys):
    """The whole chain, faces and all, on a few frames of the example."""
    frames = media.read_frames(PORTRAIT)
    pictures = list(next(frames).pixels[:6, ::2, ::2])
    frames.close()
    draw_video(folder / "face.mp4", pictures=pictures)
    path = manifest(
        folder,
        "face.mp4,speech.wav,one.mp4,,one.json",
        "talk.mp4,speech.wav,two.mp4,,two.json",
        "face.mp4,speech.wav,three.mkv,speech,",
        head="video,speech,output,fit,report",
    )
    assert lipdub(monkeypatch, "batch", path, "--preset", "ultrafast", "--device", "cpu", "--threads", "1") == 1
    out, err = capsys.readouterr()
    assert "2 of 3 rows dubbed" in out
    assert "line 3 failed: no face in" in err
    assert json.loads((folder / "one.json").read_text())["dubbed"] == 6
    assert media.probe(folder / "three.mkv").has_audio
    assert sorted(file.name for file in folder.iterdir() if file.name.startswith((".", "t"))) == ["talk.mp4", "three.mkv"]
