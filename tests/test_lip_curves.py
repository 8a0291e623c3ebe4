"""Lips as curves for animators: what each shape means, how lips take another, and the files that they are written to and read from."""

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

from lipdub.errors import CurvesInvalid
from lipdub.references.shapes import CORNERS, LOWER_INNER_LIP, UPPER_INNER_LIP
from lipdub.speech.lip_curves import CURVES, LipCurves, read_curves
from lipdub.speech.mouth_shapes import FULLY_NARROW, SHAPES, reshaped, shapes_of

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


def table_of(shapes: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([*shapes.values()], axis=1)


def spoken(moves: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Lips that speak: lower lip, upper lip, left and right corner moved by so much, the other points between them, and a little noise."""
    points = np.random.default_rng(len(moves)).normal(0, 0.003, (len(moves), 40, 2))
    for ring in (0, 20):
        along = np.arange(20) % 10 / 10
        for number, (lower, upper, left, right) in enumerate(moves):
            points[number, ring : ring + 20, 1] += np.where(np.arange(20) < 10, lower, upper) * np.sin(np.pi * along)
            points[number, ring : ring + 20, 0] += np.where(np.arange(20) == 10, left, right + along * (left - right))
    return points.astype(np.float32)


MOVES = st.tuples(st.floats(-0.05, 0.12), st.floats(-0.08, 0.04), st.floats(-0.04, 0.04), st.floats(-0.04, 0.04))
PAIRS = st.lists(st.tuples(MOVES, MOVES), min_size=1, max_size=20)


@given(PAIRS)
def test_lips_take_the_shapes_of_any_others(pairs: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    points, others = spoken([one for one, _ in pairs]), spoken([other for _, other in pairs])
    wanted = table_of(shapes_of(others))
    found = reshaped(points, wanted)
    assert found.shape == points.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(table_of(shapes_of(found)), wanted, atol=2e-3)


@given(PAIRS, st.integers(0, 255))
def test_lips_that_have_the_shapes_stay(pairs: list[tuple[tuple[float, ...], tuple[float, ...]]], left_out: int) -> None:
    """Whatever is left out, and as rounded as a file has them."""
    points = spoken([one for one, _ in pairs])
    wanted = table_of(shapes_of(points)).round(4)
    wanted[:, [bool(left_out >> bit & 1) for bit in range(8)]] = np.nan
    np.testing.assert_allclose(reshaped(points, wanted), points, atol=1e-4 * 0.2)


@given(PAIRS, st.sampled_from([*SHAPES]), st.floats(0, 1), st.integers(0, 5))
def test_a_shape_that_was_changed_counts_more_than_those_that_were_not(
    pairs: list[tuple[tuple[float, ...], tuple[float, ...]]], name: str, value: float, seed: int
) -> None:
    """Also where the others were read between two moments, and are no longer quite what is heard."""
    points = spoken([one for one, _ in pairs])
    shapes = shapes_of(points)
    noise = np.random.default_rng(seed).normal(0, 0.005, (len(points), 8))
    wanted = np.clip(table_of(shapes) + noise, 0, 1).astype(np.float32)
    changed = [*SHAPES].index(name)
    wanted[:, changed] = value
    clearly = np.abs(value - shapes[name]) > 0.1
    if name.startswith(("mouthUpper", "mouthLower")):  # two columns of one lip
        wanted[:, changed + (-1 if name.endswith("Right") else 1)] = value
    found = shapes_of(reshaped(points, wanted))[name]
    np.testing.assert_allclose(found[clearly], value, atol=0.02)


def test_an_open_jaw_is_the_same_mouth_whatever_little_the_other_shapes_differ() -> None:
    points = spoken([(0.02, -0.01, 0, 0)] * 50)
    wanted = table_of(shapes_of(points))
    wanted[:, 0] = 0.8
    wanted[:, 1:] += np.random.default_rng(0).uniform(0, 0.02, (50, 7))
    found = reshaped(points, wanted) - points
    assert found[:, LOWER_INNER_LIP, 1].mean() > 0.04
    assert np.ptp(found[:, UPPER_INNER_LIP, 1]) < 0.006
    assert (found[:, CORNERS, 1] == 0).all()


# ---- curves and their files


def test_curves_check_themselves() -> None:
    with pytest.raises(ValueError, match="a value for each moment"):
        LipCurves(np.arange(3.0), {"pause": np.zeros(3, np.float32), "jawOpen": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="rise"):
        LipCurves(np.array([0, 1, 1.0]), {"jawOpen": np.zeros(3, np.float32)})


@given(
    steps_ms=st.lists(st.integers(1, 900), min_size=1, max_size=20),
    values=st.lists(st.one_of(st.none(), st.floats(0, 1, width=16)), min_size=21, max_size=21),
    asked_ms=st.integers(-500, 20_000),
)
def test_between_near_values_lies_a_straight_line_and_nothing_elsewhere(
    steps_ms: list[int], values: list[float | None], asked_ms: int
) -> None:
    times_ms = np.cumsum([100, *steps_ms])
    values = values[: len(times_ms)]
    curves = LipCurves(times_ms / 1000, {"jawOpen": np.array([np.nan if value is None else value for value in values], np.float32)})
    (found,) = curves.at(np.array([asked_ms / 1000]))
    said = [(time_ms, value) for time_ms, value in zip(times_ms.tolist(), values, strict=True) if value is not None]
    before, after = [one for one in said if one[0] <= asked_ms][-1:], [one for one in said if one[0] >= asked_ms][:1]
    wanted = np.nan
    if before and after and after[0][0] - before[0][0] < 500:
        (first_ms, first), (last_ms, last) = before[0], after[0]
        wanted = first if first_ms == last_ms else first + (last - first) * (asked_ms - first_ms) / (last_ms - first_ms)
    np.testing.assert_allclose(found[CURVES.index("jawOpen")], wanted, atol=1e-6)
    assert np.isnan(np.delete(found, CURVES.index("jawOpen"))).all()


WRITTEN = "time_s,jawOpen,pause\n0,0.5,0\n0.25,,1\n0.5,1,0.25\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", WRITTEN.encode()),
        ("a.csv", WRITTEN.replace(",", ";").replace(".", ",").encode("utf-8-sig")),  # Excel where the comma is for decimals
        ("a.csv", WRITTEN.replace(",", "\t").replace("\n", "\r\n").encode("utf-16")),  # its "Unicode text"
        ("a.csv", WRITTEN.replace("jawOpen", "JAWOPEN").replace("\n", ",,\n").encode()),  # trailing cells
        ("a.csv", WRITTEN.replace("0.5,1,0.25", '"0,5",1,"0,25"').encode()),
        ("a.json", json.dumps({"moments": [{"time_s": 0, "jawOpen": 0.5, "pause": 0}, {"time_s": 0.25, "pause": 1, "jawOpen": None},
                                           {"time_s": 0.5, "jawOpen": 1, "pause": 0.25}]}).encode()),
    ],
)  # fmt: skip
def test_files_of_any_program_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = read_curves(tmp_path / name)
    assert found.times_s.tolist() == [0, 0.25, 0.5]
    assert {*found.curves} == {"jawOpen", "pause"}
    np.testing.assert_array_equal(found.curves["jawOpen"], np.array([0.5, np.nan, 1], np.float32))
    assert found.curves["pause"].tolist() == [0, 1, 0.25]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1: no column time_s"),
        (b"a;b\n1;2\n", "line 1: no column time_s"),
        (b"time_s,jawOpen\n", "no row has a value"),
        (b"time_s,jawOpen\n0,\n", "no row has a value"),
        (b"time_s,jawOpn\n0,1\n", "there is no curve 'jawopn'; there are pause, jawOpen,"),
        (b"time_s,jawOpen,jawopen\n0,1,1\n", "line 1: a column is there twice"),
        (b"time_s,jawOpen\n0,1\n\n0.5,1.2\n", "line 4: jawOpen must be a number from 0 to 1, or empty, got '1.2'"),
        (b"time_s,jawOpen\n0,nan\n", "line 2: jawOpen must be"),
        (b"time_s,jawOpen\n0,x\n", "line 2: jawOpen must be"),
        (b"time_s,jawOpen\n0,1\n0,1\n", "line 3: time_s must be seconds, more than in the row before, got '0'"),
        (b"time_s,jawOpen\n,1\n", "line 2: time_s must be"),
        (b"time_s,jawOpen\n-1,1\n", "line 2: time_s must be"),
        (b"time_s,jawOpen\ninf,1\n", "line 2: time_s must be"),
        (b"time_s,jawOpen\n0,04,0,5\n", "line 2: more cells than columns; put semicolons"),
        (b'time_s,jawOpen\n0,"1\n', "line 2: no CSV"),
        (b"PK\3\4", "it is a spreadsheet; save it as CSV"),
        (b"{", "Expecting"),
        (b"[]", "no list of moments"),
        (b"[" * 100_000, "holds no lip motion"),
        (b'{"moments": [{"time_s": 0, "jawOpen": 1}, 3]}', "moment 2: not an object"),
        (b'{"moments": [{"time_s": 0, "jawOpen": true}]}', "moment 1: jawOpen must be"),
        (b'{"moments": [{"time_s": 0, "jawOpen": NaN}]}', "moment 1: jawOpen must be"),
        (b'{"moments": [{"time_s": 0, "rate": 1}]}', "moment 1: there is no curve 'rate'"),
    ],
)
def test_a_file_that_lips_cannot_follow_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / ("lips.json" if content[:1] in b"[{" and content else "lips.csv")
    file.write_bytes(content)
    with pytest.raises(CurvesInvalid) as caught:
        read_curves(file)
    assert says in str(caught.value)
    assert f"'{file}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CurvesInvalid, match="cannot read the lip motion"):
        read_curves(tmp_path / "none.csv")


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
    for suffix in (".csv", ".json"):
        assert [*read_curves(tmp_path / f"lips{suffix}").rows()] == rows
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
