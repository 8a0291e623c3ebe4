"""The house keeps its floors: imports run downward, foreign libraries have one owner, `--help` loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lipdub"

LEVELS = (
    {"errors", "options", "times"},
    {"records", "stages"},
    {"timeline", "row_file", "atomic", "tables", "native_log"},
    {"media", "phonetics"},
    {"runtime", "references"},
    {"bundles"},
    {"faces", "speech"},
    {"paste", "generators"},
    {"choose", "model", "outcome", "parts", "reports"},
    {"render", "opened"},
    {"cast"},
    {"pipeline", "memory_view"},
    {"batch", "evaluate", "checkup"},
    {"cli", "__main__"},
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts} | {"train": 9}
"""`train` may use what lies below `pipeline`; who may import `train` is a rule of its own."""

SIDEWAYS = {("__main__", "cli"), ("options", "times")}
"""The only imports between two parts on one level."""

HEAVY = {"numpy", "cv2", "mediapipe", "librosa", "onnxruntime", "torch", "av"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    """``src/lipdub/cli/app.py`` -> ``lipdub.cli.app``; a package's ``__init__.py`` is the package."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """``lipdub.cli.app`` -> ``cli``; the package itself -> ``""``."""
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.Module, file: Path) -> Iterator[tuple[str, bool, int]]:
    """Yield (dotted name, does not run on import, line) for every import in the file, relative ones made absolute.

    What stands inside a function runs when it is called; what stands under ``if TYPE_CHECKING:`` never runs.
    """
    inside = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING")
        for node in ast.walk(block)
    }
    package = module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield f"{base}.{alias.name}", id(node) in inside, node.lineno


def violations(source: str, file: Path) -> list[str]:
    """What is wrong with the imports of lipdub's own parts in one file, one line each."""
    found = []
    part = part_of(module_name(file))
    for name, in_function, line in imports(ast.parse(source), file):
        target = part_of(name)
        if name.split(".")[0] != "lipdub" or target == part or target not in LEVEL:
            continue  # foreign, the own package, or a plain name such as `from lipdub import __version__`
        if target == "train":
            allowed = part == "cli" and in_function
        elif part == "":
            allowed = target != "cli"
        else:
            allowed = LEVEL[target] < LEVEL[part] or (part, target) in SIDEWAYS
        if not allowed:
            found.append(f"{file.relative_to(ROOT)}:{line}: {part or 'lipdub'} may not import {target} here")
    return found


def test_every_part_has_its_level():
    parts = {part_of(module_name(file)) for file in FILES} - {""}
    assert parts <= set(LEVEL), f"give these a place in LEVELS: {sorted(parts - set(LEVEL))}"


def test_imports_run_downward():
    assert [line for file in FILES for line in violations(file.read_text(encoding="utf-8"), file)] == []


@pytest.mark.parametrize(
    ("source", "file", "count"),
    [
        ("from lipdub.pipeline import dub", "speech/mel.py", 1),
        ("from lipdub import pipeline", "speech/mel.py", 1),
        ("from .. import pipeline", "speech/mel.py", 1),
        ("from ..pipeline import dub", "generators/memory.py", 1),
        ("from lipdub.runtime import open_session", "generators/memory.py", 0),
        ("from lipdub.faces.detector import Detector", "paste/mask.py", 0),
        ("from lipdub.paste.mask import mask_of", "faces/track.py", 1),
        ("from lipdub import __version__", "bundles/bundle.py", 0),
        ("from lipdub.train.loop import run", "cli/train.py", 1),
        ("def command():\n    from lipdub.train.loop import run", "cli/train.py", 0),
        ("if TYPE_CHECKING:\n    from lipdub.train.loop import run", "cli/train.py", 0),
        ("def command():\n    from lipdub.train.loop import run", "pipeline.py", 1),
        ("from lipdub.pipeline import dub", "train/data.py", 1),
        ("from lipdub.faces.track import FaceTrack", "train/data.py", 0),
        ("from .data import Clips", "train/loop.py", 0),
    ],
)
def test_the_rule_itself(source, file, count):
    assert len(violations(source, PACKAGE / file)) == count


def test_foreign_libraries_have_one_owner():
    """Ruff exempts an owner's file from the whole rule; here each library is held to the owner that its message names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    banned = project["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    owners = {}
    for library, entry in banned.items():
        message = re.fullmatch(r"only (lipdub\.[\w.]+(?:, lipdub\.[\w.]+)*) imports it", entry["msg"])
        assert message, f"{library}: no owner in {entry['msg']!r}"
        owners[library] = message[1].split(", ")
    found = [
        f"{file.relative_to(ROOT)}:{line}: {library} belongs to {', '.join(owners[library])}"
        for file in FILES
        for name, _, line in imports(ast.parse(file.read_text(encoding="utf-8")), file)
        if (library := name.split(".")[0]) in owners
        and not any(f"{module_name(file)}.".startswith(f"{owner}.") for owner in owners[library])
    ]
    assert found == []


def test_help_loads_nothing_heavy():
    """`lipdub --help` must answer at once: no array, video or model library is loaded for it."""
    code = (
        "import sys\n"
        "from lipdub.cli.app import main\n"
        "sys.argv = ['lipdub', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        f"print('LOADED', *sorted({HEAVY} & sys.modules.keys()))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].split() == ["LOADED"]


def test_both_locks_agree():
    """`make test` installs the dev lock over the runtime lock; a version that differed would be what nobody runs."""

    def pins(name: str) -> set[str]:
        lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
        return {line.split()[0] for line in lines if line and not line.startswith("#")}

    assert pins("runtime.txt") <= pins("dev.txt")
