"""Manifests, CSV and JSON lines: everything that is wrong is found before a frame is touched."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from batch_jobs import make_job, manifest, read_manifest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from lipdub import batch
from lipdub.batch import Row, check_manifest
from lipdub.batch.manifest import _KNOWN
from lipdub.bundles import bundle
from lipdub.cli.app import app
from lipdub.errors import ManifestError
from lipdub.options import DubOptions, dub_options


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_job(tmp_path, monkeypatch)


def problems_of(path: Path, defaults: DubOptions | None = None) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, defaults)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value.problems


def json_lines(folder: Path, *objects: object) -> Path:
    return manifest(folder, *(json.dumps(value) for value in objects), head="", name="manifest.jsonl")


# ---------------------------------------------------------------------------------------------------------- reading


def test_every_option_of_a_dub_is_one_of_sync_and_of_batch_and_a_column():
    """One field of ``DubOptions`` is all that has to be written."""
    names = set(asdict(DubOptions()))

    def parameters(command):
        return {parameter.name: parameter for parameter in get_command(app).commands[command].params}

    sync, batch = parameters("sync"), parameters("batch")
    assert set(sync) - {"quiet", "no_cache", "help", "speech_of"} == {field.name for field in fields(Row)} - {"line", "options"} | names
    of_the_batch = {"manifest", "quiet", "jobs", "ray", "retry", "restart", "skip_existing", "dry_run", "no_cache", "help"}
    assert set(batch) - {"help"} == (names | of_the_batch) - {"help"}
    for name, value in asdict(DubOptions()).items():
        assert sync[name].default == batch[name].default == value
        assert sync[name].help
    assert names < set(_KNOWN)


def test_a_row_as_it_stands(folder):
    (row,) = read_manifest(manifest(folder, "talk.mp4,speech.wav,out.mp4"))
    assert row == Row(2, folder / "talk.mp4", folder / "speech.wav", folder / "out.mp4")


def test_every_column(folder):
    head = "report,force,strict,threads,preset,crf,keep_original_audio,draw,silence,fit,device,model,output,speech,video"
    line = "r.json,yes,TRUE,2,fast,23,no,paint,keep,speech,cpu,mine,out.mkv,speech.wav,talk.mp4"
    (row,) = read_manifest(manifest(folder, line, head=head))
    model = str(folder / "mine")
    assert row.options == DubOptions(model, "cpu", "speech", "keep", "paint", False, 23, "fast", 2, True, True)
    assert row.report == folder / "r.json"
    assert bundle.resolve(row.options.model) == folder / "mine"


def test_an_empty_cell_takes_the_default_and_a_cell_wins_over_it(folder):
    path = manifest(
        folder,
        "talk.mp4,speech.wav,a.mp4,,,base",
        "talk.mp4,speech.wav,b.mp4,0,no,",
        head="video,speech,output,crf,strict,model",
    )
    one, other = read_manifest(path, DubOptions(model=str(folder / "mine"), crf=30, strict=True))
    assert one.options == DubOptions("base", crf=30, strict=True)
    assert other.options == DubOptions(str(folder / "mine"), crf=0, strict=False)


def test_force_in_a_cell_is_for_its_row(folder):
    (folder / "there.mp4").write_bytes(b"old")
    head = "video,speech,output,force"
    (row,) = read_manifest(manifest(folder, "talk.mp4,speech.wav,there.mp4,yes", head=head))
    assert row.options.force
    problems = problems_of(manifest(folder, "talk.mp4,speech.wav,there.mp4,no", head=head), DubOptions(force=True))
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
        ("video;speech;output", [], ["line 1: no row"]),
        ("video,speech,output,colour", ["talk.mp4,speech.wav,o.mp4,red"], ["line 1: unknown column 'colour'"]),
        ("video,speech,output,", ["talk.mp4,speech.wav,o.mp4,23"], ["line 1: column 4 has no name"]),
        ("video,,speech,output", ["talk.mp4,note,speech.wav,o.mp4"], ["line 1: column 2 has no name"]),
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
        ("talk.mp4,speech.wav,o.avi", ".mp4, .mov, .mkv and .webm"),
        ("talk.mp4,speech.wav,o", ".mp4, .mov, .mkv and .webm"),
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
        read_manifest(path, DubOptions(force=True))
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
    assert "no model bundle" in problems_of(path, DubOptions(model="mine"))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert read_manifest(path, DubOptions(model="mine"))[0].options.model == "mine"


def test_an_altered_bundle_is_found_before_the_first_row(folder):
    (folder / "mine" / bundle.MEMORY_GRAPH).write_bytes(b"another")
    (problem,) = problems_of(manifest(folder, "talk.mp4,speech.wav,o.mp4,mine", head="video,speech,output,model"))
    assert "altered" in problem


@pytest.mark.parametrize("name", ["manifest.csv.state.jsonl", ".manifest.csv.lock"])
def test_the_batchs_own_files_are_no_outputs(folder, name):
    (problem,) = problems_of(manifest(folder, f"talk.mp4,speech.wav,o.mp4,{name}", head="video,speech,output,report"))
    assert "line 2: report" in problem


# ------------------------------------------------------------------------------------------------------- JSON lines

ROW = {"video": "talk.mp4", "speech": "speech.wav", "output": "out.mp4"}


def test_json_lines_mean_what_the_table_means(folder):
    one = json_lines(folder, ROW | {"crf": 23, "strict": True, "fit": "speech", "threads": None, "model": "mine", "report": "r.json"})
    head = "video,speech,output,crf,strict,fit,threads,model,report"
    other = manifest(folder, "talk.mp4,speech.wav,out.mp4,23,true,speech,,mine,r.json", head=head)
    assert [row.options for row in read_manifest(one)] == [row.options for row in read_manifest(other)]
    assert read_manifest(one)[0].report == folder / "r.json"


def test_a_json_line_may_hold_every_option_as_the_number_or_truth_that_it_is(folder):
    typed = {option.name: True if option.kind is bool else option.low for option in dub_options() if option.kind is not str}
    (row,) = read_manifest(json_lines(folder, ROW | typed))
    assert {name: getattr(row.options, name) for name in typed} == typed


def test_options_that_name_files_start_from_the_manifests_folder(folder):
    head = "video,speech,output,driver,mix,ranges,lips"
    (row,) = read_manifest(manifest(folder, "talk.mp4,speech.wav,o.mp4,clean.wav,music.mp3:-12,cues.srt#Anna,lips.csv", head=head))
    assert row.options.driver == str(folder / "clean.wav")
    assert row.options.mix == f"{folder / 'music.mp3'}:-12"
    assert row.options.ranges == f"{folder / 'cues.srt'}#Anna"
    assert row.options.lips == str(folder / "lips.csv")
    (row,) = read_manifest(manifest(folder, 'talk.mp4,speech.wav,o.mp4,,,"0:05-0:12,1:00-"', head=head))
    assert (row.options.driver, row.options.mix, row.options.ranges) == (None, None, "0:05-0:12,1:00-")


@pytest.mark.parametrize(("name", "cell"), [("ranges", "5"), ("strength", "2"), ("strength", "x"), ("offset-ms", "0.5"), ("mix", "a:-99")])
def test_a_cell_that_means_nothing_is_a_problem_of_its_line(folder, name, cell):
    (problem,) = problems_of(manifest(folder, f"talk.mp4,speech.wav,o.mp4,{cell}", head=f"video,speech,output,{name}"))
    assert problem.startswith("line 2: ")


@pytest.mark.parametrize(("cell", "strength"), [("0.5", 0.5), ('"1,25"', 1.25), ("1", 1.0)])
def test_numbers_with_decimals_as_spreadsheets_write_them(folder, cell, strength):
    (row,) = read_manifest(manifest(folder, f"talk.mp4,speech.wav,o.mp4,{cell}", head="video,speech,output,strength"))
    assert row.options.strength == strength


def test_json_lines_are_counted_and_empty_ones_passed_over(folder):
    path = manifest(folder, json.dumps(ROW), "", "  ", json.dumps(ROW | {"output": "b.mp4", "crf": 18.0}), head="", name="manifest.NDJSON")
    assert [(row.line, row.options.crf) for row in read_manifest(path)] == [(1, DubOptions().crf), (4, 18)]


def test_json_lines_with_a_byte_order_mark_and_windows_line_ends(folder):
    (folder / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    assert len(read_manifest(folder / "manifest.jsonl")) == 1


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ("null", "no JSON object"),
        ('"talk.mp4"', "no JSON object"),
        ('{"video": NaN}', "NaN"),
        ("[" * 100000, "no JSON"),
        ('{"crf": ' + "9" * 5000 + "}", ""),
        (json.dumps(ROW | {"colour": "red"}), "unknown key 'colour'"),
        (json.dumps(ROW)[:-1] + ', "Video": "x"}', "key 'Video' is there twice"),
        (json.dumps(ROW | {"video": None}), "no video"),
        (json.dumps({"video": "talk.mp4", "output": "o.mp4"}), "no speech"),
        (json.dumps(ROW | {"video": 5}), "video cannot be 5"),
        (json.dumps(ROW | {"video": ["talk.mp4"]}), "video cannot be"),
        (json.dumps(ROW | {"crf": True}), "crf cannot be true"),
        (json.dumps(ROW | {"crf": 18.5}), "whole number"),
        (json.dumps(ROW | {"crf": -1}), "from 0 to 51"),
        (json.dumps(ROW | {"strict": 1.5}), "strict cannot be 1.5"),
        (json.dumps(ROW | {"fit": "shortest"}), "longest, video, speech"),
        (json.dumps(ROW | {"video": "ta\0lk.mp4"}), "NUL"),
        (json.dumps(ROW | {"video": "none.mp4"}), "no such file"),
    ],
)
def test_what_is_wrong_with_a_json_line_is_told_with_its_number(folder, line, word):
    path = manifest(folder, json.dumps(ROW | {"output": "good.mp4"}), line, head="", name="manifest.jsonl")
    problems = problems_of(path)
    assert problems[0].startswith("line 2: ")
    assert word in problems[0]


@pytest.mark.parametrize(("content", "word"), [(b"", "is empty"), (b"\n \n", "is empty"), (b"\xff\xfe", "UTF-8")])
def test_a_file_that_holds_no_json_lines(folder, content, word):
    (folder / "manifest.jsonl").write_bytes(content)
    with pytest.raises(ManifestError, match=word):
        read_manifest(folder / "manifest.jsonl")


@given(st.binary(max_size=200), st.sampled_from(["manifest.csv", "manifest.jsonl"]))
def test_no_bytes_make_anything_but_a_manifest_error(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


TEXT = st.one_of(st.sampled_from(["talk.mp4", "speech.wav", "o.mp4", "memory://b/x.mp4", "x://", "file://", "~", "."]), st.text())
VALUE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT, st.lists(TEXT, max_size=2))


@given(st.lists(st.dictionaries(st.sampled_from(["video", "speech", "output", "report", "crf", "strict", "model"]), VALUE), max_size=3))
def test_no_values_make_anything_but_rows_or_a_manifest_error(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    path = json_lines(folder, *rows)
    with contextlib.suppress(ManifestError):
        state = batch.State(path)
        batch.make_plan(check_manifest(path), state)


# ------------------------------------------------------------------------------------------- outputs that are there


def test_an_output_of_this_batch_is_no_problem_and_one_of_another_is(folder):
    for name in ("mine.mp4", "theirs.mp4"):
        (folder / name).write_bytes(b"x")
    path = manifest(folder, "talk.mp4,speech.wav,mine.mp4", "talk.mp4,speech.wav,theirs.mp4")
    with pytest.raises(ManifestError) as caught:
        check_manifest(path, owned=lambda place, now: place.name == "mine.mp4" and now.size == 1)
    assert [problem[:7] for problem in caught.value.problems] == ["line 3:"]
    assert len(check_manifest(path, keep_existing=True).rows) == 2


def test_a_report_that_is_there_is_kept_with_its_output_only(folder):
    (folder / "r.json").write_bytes(b"x")
    path = manifest(folder, "talk.mp4,speech.wav,o.mp4,r.json", head="video,speech,output,report")
    with pytest.raises(ManifestError, match=r"r\.json' exists already"):
        check_manifest(path, keep_existing=True)


def test_what_was_looked_at_is_handed_on(folder):
    found = check_manifest(manifest(folder, "talk.mp4,speech.wav,o.mp4")).found
    assert found[folder / "o.mp4"] is None
    assert found[folder / "talk.mp4"].size == (folder / "talk.mp4").stat().st_size
