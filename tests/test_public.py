"""What `import lipdub` gives, what it loads, and whether the error tree is the one that is drawn."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import lipdub
from lipdub import errors

HEAVY = {
    "numpy",
    "cv2",
    "av",
    "ffmpeg",
    "librosa",
    "mediapipe",
    "onnxruntime",
    "onnx",
    "torch",
    "typer",
    "rich",
    "lightning",
    "safetensors",
}


def test_all_names_what_is_public() -> None:
    assert lipdub.__all__ == sorted(lipdub.__all__)
    assert set(lipdub.__all__) == {"DubReport", "LipdubError", "__version__", "dub"}
    for name in lipdub.__all__:
        assert getattr(lipdub, name) is not None
    # Beside submodules, which any import adds, nothing else is there.
    public = {name for name, value in vars(lipdub).items() if not name.startswith("_") and type(value).__name__ != "module"}
    assert public - {"TYPE_CHECKING", "Any", "annotations"} <= set(lipdub.__all__)


def test_star_import_gives_all() -> None:
    names: dict[str, object] = {}
    exec("from lipdub import *", names)
    assert set(lipdub.__all__) <= set(names)


def test_the_public_names_are_the_real_ones() -> None:
    from lipdub.pipeline import dub
    from lipdub.records import DubReport

    assert lipdub.dub is dub
    assert lipdub.DubReport is DubReport
    assert lipdub.LipdubError is errors.LipdubError
    assert re.fullmatch(r"\d+\.\d+\.\d+", lipdub.__version__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lipdub' has no attribute 'dubb'"):
        lipdub.dubb  # noqa: B018
    with pytest.raises(ImportError):
        exec("from lipdub import dubb")


def test_importing_lipdub_loads_nothing_heavy() -> None:
    code = "import sys, lipdub; lipdub.LipdubError; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert set(loaded) & HEAVY == set()


def tree() -> list[type[Exception]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


def test_the_error_tree_is_the_one_that_is_drawn() -> None:
    assert errors.__doc__ is not None
    drawn: list[str] = []
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ((?:[│├└─ ]{4})*)(\w+)  ", line)
        if found is None:
            continue
        depth, name = len(found[1]) // 4, found[2]
        path[depth:] = [name]
        drawn.append(name)
        parents[name] = path[depth - 1] if depth else "Exception"
    assert sorted(drawn) == sorted(kind.__name__ for kind in tree())
    assert parents == {kind.__name__: kind.__bases__[0].__name__ for kind in tree()}


def test_every_error_is_documented_and_one_tree() -> None:
    for kind in tree():
        assert kind.__doc__
        assert issubclass(kind, lipdub.LipdubError)
    assert not issubclass(lipdub.LipdubError, (OSError, ValueError))
    assert errors.ManifestError("bad", ("line 2: no video",)).problems == ("line 2: no video",)
