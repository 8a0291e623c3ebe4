"""README, docs/ and CONTRIBUTING.md: what they name is there."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import unknown_options
from test_layers import LEVELS

from benchmarks.__main__ import NAMES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_in(page: Path) -> list[list[str]]:
    """The command lines of the code blocks, without prompts, comments and folders."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").replace(".venv/bin/", "").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("lipdub ", "python -m "))]


def test_the_front_page_is_short():
    assert (ROOT / "README.md").stat().st_size <= 6000


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


@every_page
def test_commands_take_the_options_that_are_shown(page):
    for words in commands_in(page):
        if words[0] == "lipdub":
            assert unknown_options([word for word in words[1:] if word != "COMMAND"]) == set(), words
        elif words[2] == "benchmarks":
            assert words[3:4] == [] or words[3] in NAMES, words
        else:
            assert find_spec(words[2]) is not None, words


@every_page
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:src|tests|docs|benchmarks|examples|models)/[\w./-]*)`", page.read_text(encoding="utf-8"))
    # NAME stands for what a reader adds; models/<name>/ and models/encoder/ are not in every clone
    missing = [name for name in named if "NAME" not in name and not name.startswith("models/") and not (ROOT / name).exists()]
    assert missing == []


def test_every_part_is_in_the_table_of_rooms():
    rows = re.findall(r"^\| (\d+) \| `([\w]+)(?:\.py|/)` \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = {(int(level), part) for level, part in rows}
    assert told == {(level, part) for level, parts in enumerate(LEVELS) for part in parts if part != "__main__"} | {(9, "train")}


def test_code_cites_pages_of_this_repository_only():
    for file in (*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").glob("*.py")):
        for name in re.findall(r"\bdocs/\w+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), (file, name)
