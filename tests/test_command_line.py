"""What all commands share: usage lines, help on narrow terminals, completion, ``--json``, outputs that are links, silence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from lipdub import media
from lipdub.atomic import files_into, part_file, put_in_place, whole_folder, write_whole
from lipdub.checkup import doctor as looking
from lipdub.checkup.doctor import Finding
from lipdub.cli.app import app
from lipdub.cli.commands import Command, Group
from lipdub.errors import OutputRefused


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands with the words that call them, those that hold others, too."""
    yield words, command
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, (*words, name))


COMMANDS = {" ".join(words): command for words, command in commands(typer.main.get_command(app))}


def help_of(words: str, monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("TERMINAL_WIDTH", raising=False)
    ran = CliRunner().invoke(app, [*words.split(), "--help"])
    assert ran.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", ran.stdout)


# -------------------------------------------------------------------------------------------------------------- help


def test_every_command_is_one_of_ours() -> None:
    assert all(isinstance(command, Command | Group) for command in COMMANDS.values())


@pytest.mark.parametrize("columns", [20, 40, 71])
@pytest.mark.parametrize("words", COMMANDS)
def test_narrow_terminals_show_every_option_whole(words: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(words, monkeypatch, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert not re.search(r"\[/?bold\]|\\\[|…", text)
    joined = " ".join(text.split())
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "argument":
            assert parameter.name.upper() in joined
        elif columns >= 40:
            for option in parameter.opts:
                assert option in joined
    if columns == 40 and words == "sync":
        assert "--silence <close|keep|off> Pauses of the speech: close the mouth, keep the source's own picture" in joined
        assert "lipdub sync talk.mp4 german.wav -o talk_de.mp4" in joined


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ("sync", "sync [OPTIONS] VIDEO SPEECH"),
        ("batch", "batch [OPTIONS] MANIFEST"),
        ("bench", "bench [OPTIONS] [VIDEO]"),
        ("evaluate", "evaluate [OPTIONS] PATHS..."),
        ("train offsets", "train offsets [OPTIONS] PREPARED"),
    ],
)
def test_usage_lines_name_the_arguments(words: str, usage: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usage in " ".join(help_of(words, monkeypatch, columns).split())


def test_wide_terminals_get_tables_with_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of("sync", monkeypatch, 100)
    assert "│ *    VIDEO " in text
    assert "--full-size" in text


@pytest.mark.parametrize(("shell", "sign"), [("bash", "complete -o default -F"), ("zsh", "#compdef"), ("fish", "complete --command")])
def test_completion_of_the_shells(shell: str, sign: str) -> None:
    environment = {**os.environ, "_LIPDUB_COMPLETE": f"source_{shell}"}
    program = "import sys; sys.argv[0] = 'lipdub'; from lipdub.cli.app import main; main()"
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert sign in ran.stdout


def test_completion_offers_commands_and_options() -> None:
    for words, wanted in (("lipdub s", "sync"), ("lipdub sync --fu", "--full-size")):
        environment = {**os.environ, "_LIPDUB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        program = "import sys; sys.argv[0] = 'lipdub'; from lipdub.cli.app import main; main()"
        ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
        assert wanted in ran.stdout.split(), ran.stderr


# ------------------------------------------------------------------------------------------------------------ --json


def test_json_is_one_option_wherever_it_is() -> None:
    options = [parameter for command in COMMANDS.values() for parameter in command.params if "--json" in parameter.opts]
    assert len(options) == 4
    assert len({(option.help, option.metavar) for option in options}) == 1


@pytest.mark.parametrize("colour", ["green", "red"])
def test_doctor_as_json_to_a_file_or_instead_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: Any) -> None:
    monkeypatch.setattr(looking, "examine", lambda **more: iter([Finding("part", colour, "found", "mend it")]))
    file, code = tmp_path / "doctor.json", int(colour == "red")
    for words in (["--json"], ["--json", "-"], ["--json", "--no-dub"], ["--no-dub", "--json"]):
        ran = CliRunner().invoke(app, ["doctor", *words])
        assert (ran.exit_code, json.loads(ran.stdout)["works"]) == (code, colour == "green")
    ran = CliRunner().invoke(app, ["doctor", "--json", str(file)])
    assert (ran.exit_code, json.loads(file.read_text())["findings"][0]["colour"]) == (code, colour)
    assert {"green": "nothing is bad: lipdub works here", "red": "1 of 1 lines are bad: part"}[colour] in ran.stdout
    assert "red" not in ran.stdout
    ran = CliRunner().invoke(app, ["doctor", "--json", str(file)])
    assert isinstance(ran.exception, OutputRefused)
    assert CliRunner().invoke(app, ["doctor", "--json", str(file), "--force"]).exit_code == code


# ------------------------------------------------------------------------------------------------------------- links


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """``here/out.mp4``, which leads to ``there/film``, by a relative path."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "film").write_text("old")
    (tmp_path / "here" / "out.mp4").symlink_to("../there/film")
    return tmp_path / "here" / "out.mp4"


def test_an_output_that_is_a_link_stays_one(link: Path) -> None:
    target = link.parent.parent / "there" / "film"
    with pytest.raises(OutputRefused, match="exists already"):
        media.check_output(link, inputs=[], force=False)
    media.check_output(link, inputs=[], force=True)
    with part_file(link) as part:
        assert (part.parent, part.suffix) == (target.parent.resolve(), ".mp4")
        part.write_text("first")
        put_in_place(part, link)
    assert (link.is_symlink(), target.read_text()) == (True, "first")
    write_whole(link, "second")
    with pytest.raises(IsADirectoryError), part_file(link) as part:
        part.write_bytes(link.parent.read_bytes())
    assert (link.is_symlink(), target.read_text()) == (True, "second")
    assert [sorted(os.listdir(folder)) for folder in (link.parent, target.parent)] == [["out.mp4"], ["film"]]


def test_a_link_that_leads_nowhere_yet(link: Path) -> None:
    target = link.parent.parent / "there" / "film"
    target.unlink()
    media.check_output(link, inputs=[], force=True)
    write_whole(link, "new")
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    target.unlink()
    target.parent.rmdir()
    with pytest.raises(OutputRefused, match="there is no folder"):
        media.check_output(link, inputs=[], force=True)


def test_a_link_to_an_input_is_the_input(link: Path) -> None:
    with pytest.raises(OutputRefused, match="it is the input"):
        media.check_output(link, inputs=[link.parent.parent / "there" / "film"], force=True)


def test_links_to_folders(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "out").symlink_to("real")
    with whole_folder(tmp_path / "out") as part:
        (part / "new").touch()
    assert (os.listdir(tmp_path / "real"), (tmp_path / "out").is_symlink()) == (["new"], True)
    with files_into(tmp_path / "out") as part:
        (part / "more").touch()
    assert (sorted(os.listdir(tmp_path / "real")), (tmp_path / "out").is_symlink()) == (["more", "new"], True)


# ----------------------------------------------------------------------------------------------------------- silence

TALKATIVE = """
import os, sys
os.write(2, b"\\x1b[0;93m2026-11-26 [W:onnxruntime:Default, device_discovery.cc] GPU device discovery failed\\x1b[m\\n")
here = os.path.dirname(os.path.dirname(__file__))
sys.path[:] = [place for place in sys.path if os.path.abspath(place) != here]
del sys.modules["onnxruntime"]
import onnxruntime
"""


def test_what_onnx_runtime_warns_of_when_it_is_loaded_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(TALKATIVE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    ran = {
        code: subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stderr
        for code in ("import onnxruntime", "import lipdub.runtime")
    }
    assert "device discovery failed" in ran["import onnxruntime"]
    assert ran["import lipdub.runtime"] == ""
