"""Lips as curves for animators: what each shape means, and the files that they are written to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import Run, in_this_process
from drawn import write_wav
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lipdub.references.shapes import CORNERS, LOWER_INNER_LIP, UPPER_INNER_LIP
from lipdub.speech.lip_curves import FULLY_NARROW, LipCurves, shapes_of

SPEECH = Path(__file__).parent.parent / "examples" / "speech.wav"


def moved(**by: tuple[float, float]) -> np.ndarray:
    points = np.zeros((1, 40, 2), np.float32)
    for name, (x, y) in by.items():
        points[0, {"upper": UPPER_INNER_LIP, "lower": LOWER_INNER_LIP, "right": CORNERS[0], "left": CORNERS[1]}[name]] = x, y
    return points


@given(arrays.arrays(np.float32, (3, 40, 2), elements=st.floats(-0.25, 0.25, width=32)))
def test_shapes_lie_between_rest_and_one(points: np.ndarray) -> None:
    shapes = shapes_of(points)
    assert all(curve.shape == (3,) and curve.dtype == np.float32 and (curve >= 0).all() and (curve <= 1).all() for curve in shapes.values())
    assert all((curve == 0).all() for curve in shapes_of(np.zeros_like(points)).values())


@given(st.floats(0.005, 0.04))
def test_each_shape_is_what_its_name_says(by: float) -> None:
    def moving(points: np.ndarray) -> set[str]:
        return {name for name, curve in shapes_of(points).items() if curve[0] > 0}

    lower, upper = {"mouthLowerDownLeft", "mouthLowerDownRight"}, {"mouthUpperUpLeft", "mouthUpperUpRight"}
    assert moving(moved(lower=(0, by))) == lower | {"jawOpen"}
    assert moving(moved(upper=(0, -by))) == upper | {"jawOpen"}
    assert moving(moved(upper=(0, by))) == set()
    assert moving(moved(left=(by, 0))) == {"mouthStretchLeft"}
    assert moving(moved(right=(-by, 0))) == {"mouthStretchRight"}
    assert moving(moved(left=(-by, 0), right=(by, 0))) == {"mouthPucker"}
    assert shapes_of(moved(left=(-FULLY_NARROW, 0)))["mouthPucker"][0] == pytest.approx(1, abs=1e-5)


def test_curves_have_a_value_for_each_moment() -> None:
    with pytest.raises(ValueError, match="a value for each moment"):
        LipCurves(np.zeros(3), np.zeros(3, np.float32), {"jawOpen": np.zeros(2, np.float32)})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    with in_this_process(monkeypatch, capfd) as ready:
        yield ready


@pytest.mark.parametrize("rate", [25, 60])
def test_both_kinds_of_file_say_the_same(run: Run, tmp_path: Path, rate: int) -> None:
    for suffix in (".csv", ".json"):
        ran = run("lips", SPEECH, "-o", tmp_path / f"lips{suffix}", "--rate", str(rate))
        assert ran.code == 0, ran.err
    told = json.loads((tmp_path / "lips.json").read_text())
    with (tmp_path / "lips.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == told["moments"]
    assert (told["model"], told["rate_hz"]) == ("base", rate)
    assert [row["time_s"] for row in rows] == pytest.approx([number / rate for number in range(len(rows))], abs=1e-6)
    assert max(row["jawOpen"] for row in rows) > 0.3
    assert min(row["jawOpen"] for row in rows) < 0.05


def test_in_silence_lips_rest(run: Run, tmp_path: Path) -> None:
    write_wav(tmp_path / "silence.wav", np.zeros(16000, np.float32))
    assert run("lips", tmp_path / "silence.wav", "-o", tmp_path / "lips.json", "-q").code == 0
    for row in json.loads((tmp_path / "lips.json").read_text())["moments"]:
        assert row.pop("pause") == 1
        del row["time_s"]
        assert set(row.values()) == {0.0}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{speech}", "-o", "{folder}/lips.txt"], ".csv or .json"),
        (["missing.wav", "-o", "{folder}/lips.csv"], "missing.wav"),
        (["{speech}", "-o", "{folder}/there.csv"], "--force"),
        (["{speech}", "-o", "{folder}/none/lips.csv"], "there is no folder"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "there.csv").write_text("kept")
    ran = run("lips", *[word.format(speech=SPEECH, folder=tmp_path) for word in words])
    assert ran.code == 1
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["there.csv"]
    assert (tmp_path / "there.csv").read_text() == "kept"
