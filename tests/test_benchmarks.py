"""benchmarks/: what is counted, what is compared, what is written; the figures themselves are for quiet machines."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import draw_video, sine, write_wav
from faces_for_tests import portrait_frames, scaled
from fakes import write_fake_bundle
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import dub_once, footage, gpu, languages, memory_growth, profile, results, scale, speed
from benchmarks.__main__ import NAMES
from benchmarks.bilabials import Utterance
from lipdub import media
from lipdub.evaluate.openings import Openings
from lipdub.generators import open_generator
from lipdub.phonetics.alignment import Alignment, Phoneme

WORK = """
import os
def plain(task):
    return {"sum": sum(task["numbers"])}
def fails(task):
    raise ValueError("no such luck")
def says_nothing(task):
    os._exit(3)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that a new process can import."""
    (tmp_path / "work_of_a_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    return "work_of_a_test"


def test_every_measure_has_its_module():
    folder = Path(results.__file__).parent
    assert [name for name in NAMES if not (folder / f"{name.replace('-', '_')}.py").is_file()] == []


@pytest.mark.parametrize("name", ["speed", "scale", "wav2lip-shaped", "profile", "gpu", "results", "memory-growth", "languages"])
def test_help(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        import_module(f"benchmarks.{name.replace('-', '_')}").main(["--help"])
    assert left.value.code == 0
    assert f"python -m benchmarks {name}" in capsys.readouterr().out


# ---------------------------------------------------------------- processes of their own


def test_a_new_process_answers(work: str):
    answer = dub_once.measured(f"{work}:plain", {"numbers": [1, 2, 3]}, cores=1)
    assert answer["sum"] == 6
    assert answer["process_s"] > 0
    assert answer["cores"] == 1
    if Path("/proc/self/status").exists():
        assert 1 < answer["peak_mib"] < 100


@pytest.mark.parametrize(("function", "words"), [("fails", "ValueError: no such luck"), ("says_nothing", "exit code 3")])
def test_a_new_process_that_fails_says_so_in_one_line(work: str, function: str, words: str):
    with pytest.raises(SystemExit) as left:
        dub_once.measured(f"{work}:{function}", {})
    assert str(left.value).startswith(f"{work}:{function} failed: ")
    assert words in str(left.value)
    assert "\n" not in str(left.value)


# ---------------------------------------------------------------- footage


@given(st.sampled_from(sorted(footage.LINES)), st.integers(100, 4000), st.integers(100, 4000))
def test_a_size_keeps_the_shape_and_has_the_pixels(name: str, width: int, height: int):
    w, h = footage.size_of(name, width=width, height=height)
    lines = footage.LINES[name]
    assert w % 2 == h % 2 == 0
    assert abs(w * h / (lines * lines * 16 / 9) - 1) < 2 / min(w, h) + 0.01
    assert abs(w / h / (width / height) - 1) < 3 / min(w, h)


def test_a_source_of_that_size_stays_as_it_is():
    assert footage.size_of("720p", width=1280, height=720) == (1280, 720)


def test_footage_gets_its_size_and_length(tmp_path: Path):
    draw_video(tmp_path / "source.mp4", size=(96, 64), frames=20)
    write_wav(tmp_path / "source.wav", sine(0.5), 16000)
    small = footage.resized(tmp_path / "source.mp4", tmp_path / "small.mp4", (48, 32), seconds=0.4)
    long = footage.looped(small, tmp_path / "long.mp4", 2.0)
    info = media.probe(long)
    assert (info.width, info.height) == (48, 32)
    assert sum(len(chunk) for chunk in media.read_frames(long)) == pytest.approx(50, abs=3)
    sound = footage.looped_sound(tmp_path / "source.wav", tmp_path / "long.wav", 2.0)
    assert float(media.audio_duration_s(sound)) == pytest.approx(2.0, abs=0.1)


def test_ffmpeg_that_fails_says_so_in_one_line(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"^ffmpeg failed: .*nowhere\.mp4"):
        footage.looped(tmp_path / "nowhere.mp4", tmp_path / "out.mp4", 1.0)


# ---------------------------------------------------------------- gpu


@pytest.mark.parametrize(("real_time", "on_cuda", "code"), [(25.0, True, 0), (15.0, True, 1), (1.0, False, 0)])
def test_the_gpu_target_is_the_exit_code(real_time: float, on_cuda: bool, code: int):
    rows = [{"state": "cold", "times_real_time": real_time}, {"state": "warm", "times_real_time": 99.0}]
    assert gpu.verdict(rows, on_cuda=on_cuda) == code


def test_gpu_runs_on_the_cpu_as_a_test_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "MEASURED_S", 0.0)
    write_fake_bundle(tmp_path / "fake")
    arguments = ["--device", "cpu", "--model", str(tmp_path / "fake"), "--skip", "end-to-end", "--batches", "2"]
    assert gpu.main([*arguments, "--json", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["provider"] == "CPUExecutionProvider"
    assert [row["batch"] for row in found["generator"]] == [2]
    assert found["generator"][0]["faces_per_s"] == pytest.approx(2 / found["generator"][0]["seconds"], rel=0.1)  # rounded


def test_gpu_without_cuda_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_fake_bundle(tmp_path / "fake")
    try:
        open_generator(str(tmp_path / "fake"), device="cuda")
    except Exception:
        assert gpu.main(["--model", str(tmp_path / "fake"), "--json", str(tmp_path / "gpu.json")]) == 1
        assert "CUDA did not load" in capsys.readouterr().out
        assert not (tmp_path / "gpu.json").exists()
    else:
        pytest.skip("CUDA is there")


# ---------------------------------------------------------------- scale and profile


def run_of(*, wall_s: float = 1.0, cached: bool | None = False, peak_mib: float = 100.0) -> dict[str, Any]:
    """What `measure_dub` gives back."""
    report = {
        "frames": 50, "dubbed": 50, "output_s": 2.0, "wall_s": wall_s, "provider": "CPUExecutionProvider", "analysis_cached": cached,
        "stage_s": {"decode": 0.2 * wall_s, "draw": 0.5 * wall_s},
    }  # fmt: skip
    cpu_s = {"user": wall_s, "system": 0.0, "children": 0.0, "all": wall_s}
    return {"report": report, "cpu_s": cpu_s, "process_s": wall_s + 1, "peak_mib": peak_mib, "cores": 2}


def test_medians_are_of_all_runs():
    found = dub_once.summary([run_of(wall_s=wall_s) for wall_s in (9.0, 1.0, 2.0)])
    assert found["wall_s"] == 2.0
    assert found["frames_per_s"] == 25.0
    assert found["times_real_time"] == 1.0
    assert found["stage_s"] == {"decode": pytest.approx(0.4), "draw": pytest.approx(1.0)}
    assert found["wall_s_of_runs"] == [9.0, 1.0, 2.0]


def test_runs_that_differ_in_the_cache_are_not_taken_for_alike():
    assert dub_once.summary([run_of(cached=True)])["analysis_cached"] is True
    assert dub_once.summary([run_of(cached=None)])["analysis_cached"] is None
    assert dub_once.summary([run_of(cached=True), run_of(cached=False)])["analysis_cached"] not in (None, True, False)


def test_cases_are_all_combinations_and_small_ones_come_first():
    found = scale.cases(["4k", "360p"], [1.0, 60.0], [2, 1])
    assert len(set(found)) == 8
    assert (found[0], found[-1]) == (scale.Case("360p", 1.0, 1), scale.Case("4k", 60.0, 2))


def options_for(video: Path, speech: Path, **changes: Any) -> Any:
    from argparse import Namespace

    return Namespace(**{"video": video, "speech": speech, "model": "fake", "device": "cpu", "repeat": 2} | changes)


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, Path]:
    draw_video(tmp_path / "source.mp4", size=(96, 64), frames=5)
    write_wav(tmp_path / "source.wav", sine(0.2), 16000)
    return tmp_path / "source.mp4", tmp_path / "source.wav"


def test_a_warm_dub_follows_a_cold_one_with_its_cache(source: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Path, int]] = []

    def dubbed(video: Path, speech: Path, **options: Any) -> dict[str, Any]:
        seen.append((options["cache"], options["cores"]))
        warm = [cache for cache, _ in seen].count(options["cache"]) > 1
        return run_of(wall_s=1.0 if warm else 2.0, cached=warm)

    monkeypatch.setattr(scale, "measure_dub", dubbed)
    rows = scale.measure_case(scale.Case("360p", 0.2, 1), source[0], options_for(*source), ["cold", "warm"])
    assert {(row["width"], row["height"]) for row in rows} == {(96, 64)}
    assert [cache for cache, _ in seen] == [seen[0][0], seen[0][0], seen[2][0], seen[2][0]]
    assert seen[0][0] != seen[2][0]
    assert [(row["state"], row["frames_per_s"]) for row in rows] == [("cold", 25.0), ("warm", 50.0)]
    assert results.warm_over_cold(rows) == [(rows[1], 2.0)]


def test_a_warm_dub_that_was_none_is_not_counted(source: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scale, "measure_dub", lambda *files, **options: run_of(cached=False))
    with pytest.raises(SystemExit, match="warm dub said analysis_cached=False"):
        scale.measure_case(scale.Case("360p", 0.2, 1), source[0], options_for(*source), ["cold", "warm"])


def test_profiles_are_read_and_other_files_refused(tmp_path: Path):
    row = {"label": "before"} | dub_once.summary([run_of()])
    (tmp_path / "one.json").write_text(json.dumps({"benchmark": "profile", "rows": [row]}))
    (tmp_path / "other.json").write_text(json.dumps({"benchmark": "scale", "rows": []}))
    (tmp_path / "broken.json").write_text("{")
    assert profile.read(tmp_path / "one.json")[0]["label"] == "before"
    for name in ("other.json", "broken.json", "missing.json"):
        with pytest.raises(SystemExit, match=f"{name}' is no profile"):
            profile.read(tmp_path / name)


def test_a_whole_run_with_the_fake_model(tmp_path: Path):
    write_fake_bundle(tmp_path / "fake")
    frames: list[NDArray[np.uint8]] = [scaled(pixels, (256, 256)) for pixels in portrait_frames(10)]
    draw_video(tmp_path / "face.mp4", size=(256, 256), pictures=frames)
    write_wav(tmp_path / "speech.wav", sine(0.4), 16000)
    arguments = [str(tmp_path / "face.mp4"), "--speech", str(tmp_path / "speech.wav"), "--model", str(tmp_path / "fake")]
    arguments += ["--sizes", "360p", "--seconds", "0.4", "--threads", "1", "--repeat", "1", "--json", str(tmp_path / "scale.json")]
    assert scale.main(arguments) == 0
    found = json.loads((tmp_path / "scale.json").read_text())
    assert [row["state"] for row in found["rows"]] == ["cold", "warm"]
    assert all(row["frames"] >= 8 and row["dubbed"] == row["frames"] and row["peak_mib"] > 100 for row in found["rows"])
    if hasattr(os, "sched_setaffinity"):
        assert {row["cores"] for row in found["rows"]} == {1}
    assert found["command"].startswith("python -m benchmarks scale ")


def test_speed_is_of_whole_dubs(tmp_path: Path, source: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    seen: list[Path] = []

    def dubbed(video: Path, speech: Path, **options: Any) -> dict[str, Any]:
        seen.append(video)
        return run_of(wall_s=2.0)

    monkeypatch.setattr(speed, "measure_dub", dubbed)
    arguments = [str(source[0]), "--seconds", "0.1", "--json", str(tmp_path / "speed.json")]
    assert speed.main(arguments) == 0
    assert seen[0].name == "cut.mp4"
    found = json.loads((tmp_path / "speed.json").read_text())
    assert (found["rows"][0]["frames_per_s"], found["rows"][0]["size"]) == (25.0, "96x64")
    assert found["machine"]["cores_usable"] > 0


# ---------------------------------------------------------------- memory growth


@pytest.mark.parametrize(
    ("peaks", "size", "met"),
    [
        ((500, 540), (1920, 1080), True),
        ((500, 560), (1920, 1080), False),
        ((1000, 1030), (1920, 1080), False),
        ((1000, 1030), (1440, 1440), False),
        ((2000, 2030), (3840, 2160), True),
    ],
)
def test_memory_targets(peaks: tuple[int, int], size: tuple[int, int], met: bool):
    rows = [{"minutes": 59.0 * k + 1, "peak_mib": peak, "width": size[0], "height": size[1]} for k, peak in enumerate(peaks)]
    assert memory_growth.met(rows) is met
    assert memory_growth.met(rows[::-1]) is met


# ---------------------------------------------------------------- RESULTS.md

MACHINE = {"cpu": "Some CPU", "cores": 2, "cores_usable": 2, "load_1min": 0.1, "system": "Linux", "python": "3.11", "lipdub": "1.0"}


def record_of(benchmark: str, rows: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    about = {"command": f"python -m benchmarks {benchmark}", "day": "2026-11-21", "commit": "abc", "machine": MACHINE | {"packages": {}}}
    return {"benchmark": benchmark, "rows": rows} | about | facts


def scale_row(size: str, seconds: float, state: str, wall_s: float) -> dict[str, Any]:
    case = {"size": size, "width": 16 * footage.LINES[size] // 9, "height": footage.LINES[size], "seconds": seconds, "threads": 2}
    return case | {"state": state} | dub_once.summary([run_of(wall_s=wall_s, cached=state == "warm")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of every kind, and one of none."""
    place = tmp_path / "results"
    place.mkdir()
    rows = [
        scale_row(size, seconds, state, wall_s)
        for size in ("720p", "4k")
        for seconds in (20, 60)
        for state, wall_s in (("cold", 1.0), ("warm", 0.5))
    ]
    profiled = {"video": "a.mp4", "width": 64, "height": 64, "seconds": 2.0, "state": "cold", "threads": None}
    arm = {"frames": 50, "frames_per_s": 5.0, "times_real_time": 0.2, "wall_s": 10.0, "stage_s": {"draw": 9.0}, "peak_mib": 900.0}
    baseline = arm | {"arm": "baseline", "lipdub_is_faster": 4.5}
    wav2lip = {"video": "a|b.mp4", "size": "64x64", "seconds": 2.0, "device": "cpu"}
    dubs = [scale_row("720p", 120, "cold", 0.08)]
    grown = [{"minutes": m, "peak_mib": 900 + m, "width": 1920, "height": 1080, "frames": 9, "wall_s": 1.0} for m in (1, 60)]
    ours = arm | {"arm": "lipdub", "lipdub_is_faster": 1.0}
    card = {"device": "cuda", "card": {"name": "Some GPU"}, "provider": "CUDAExecutionProvider", "precision": "float16"}
    batches = [{"batch": batch, "seconds": 0.1, "faces_per_s": 10.0 * batch} for batch in (1, 128)]
    records = {
        "scale": record_of("scale", rows, settings={"video": "a.mp4", "device": "cpu"}),
        "after": record_of("profile", [profiled | {"label": "after"} | dub_once.summary([run_of()])]),
        "old": record_of("profile", [profiled | {"label": "before"} | dub_once.summary([run_of(wall_s=3.0)])]),
        "memory": record_of("memory-growth", grown, video="a.mp4", size="1080p"),
        "wav2lip": record_of("wav2lip-shaped", [baseline, ours], settings=wav2lip),
        "card": record_of("gpu", dubs, generator=batches, **card),
    }
    records |= {
        "resume": record_of("resume", [{"kill": 1, "killed": "the batch"}], figures={"rows": 50, "outputs that are right": 50}),
    }
    for name, record in records.items():
        (place / f"{name}.json").write_text(json.dumps(record))
    (place / "other.json").write_text("{}")
    return place


def test_the_page_shows_every_kind_and_says_what_it_leaves_out(folder: Path):
    out = folder.parent / "RESULTS.md"
    assert results.main([str(folder), "--out", str(out)]) == 0
    text = out.read_text()
    for title, _ in results.SECTIONS.values():
        assert f"\n## {title}\n" in text
    assert "other.json" in text.split("## Not shown")[1]
    assert text.index("before:") < text.index("after:")
    for name in ("scale", "profile", "memory-growth", "wav2lip-shaped", "gpu"):
        assert f"`python -m benchmarks {name}`" in text


def test_targets_are_judged(folder: Path):
    found = {row[0]: row[2] for row in results.targets(results.read(folder)[0])}
    assert list(found.values()) == [
        "**2.00** (met)",  # 2 s of video in 1 s
        "**2.00** (met)",
        "**1.065** (met)",
        "**960** (met)",
        "**25.00** (met)",
    ]
    slower = json.loads((folder / "scale.json").read_text())
    slower["rows"] = [scale_row("720p", 20, "cold", 2.0)]
    (folder / "slower.json").write_text(json.dumps(slower))
    again = results.targets(results.read(folder)[0])
    assert again[0][2] == "**1.00** (missed)", "the worst of several counts"
    assert "slower.json" in again[0][3]


def test_what_was_not_measured_is_not_claimed(folder: Path):
    for file in folder.glob("*.json"):
        if file.stem != "wav2lip":
            file.unlink()
    assert {row[2] for row in results.targets(results.read(folder)[0])} == {"not measured"}


def test_an_old_page_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]):
    out = folder.parent / "RESULTS.md"
    assert results.main([str(folder), "--out", str(out), "--check"]) == 1
    assert not out.exists()
    assert results.main([str(folder), "--out", str(out)]) == 0
    assert results.main([str(folder), "--out", str(out), "--check"]) == 0
    out.write_text(out.read_text().replace("met", "MET"))
    assert results.main([str(folder), "--out", str(out), "--check"]) == 1
    assert "python -m benchmarks results" in capsys.readouterr().out


def test_a_broken_file_is_named(folder: Path):
    (folder / "broken.json").write_text("{")
    with pytest.raises(SystemExit, match=r"broken\.json' is no JSON"):
        results.main([str(folder), "--out", str(folder / "page.md")])


def test_cells_cannot_break_a_table():
    assert results.markdown(["a", "b"], [["x|y", 1]]) == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |"]


# ---------------------------------------------------------------- languages


@given(scale=st.floats(0.01, 5), shift=st.floats(-1, 1), fps=st.sampled_from([20.0, 25.0, 50.0]))
def test_jitter_is_of_the_shape_of_a_motion_alone(scale: float, shift: float, fps: float) -> None:
    times_s = np.arange(0, 4, 1 / fps)
    calm = np.sin(2 * np.pi * times_s)
    found = languages.jitter(times_s, shift + scale * calm)
    assert found == pytest.approx(languages.jitter(times_s, calm), rel=1e-6)
    # A sine of 1 Hz at 25 frames/s: the second difference is (2 pi / 25)^2 of it.
    assert found == pytest.approx((2 * np.pi / 25) ** 2 * np.sqrt(2) * 2 / np.pi, rel=0.15)
    trembling = calm + 0.2 * (-1.0) ** np.arange(len(calm))
    if fps == 25:
        assert languages.jitter(times_s, trembling) > 5 * found


def test_jitter_of_next_to_nothing_is_unknown() -> None:
    assert np.isnan(languages.jitter(np.arange(9) / 25, np.full(9, np.nan)))


def test_a_language_is_measured_on_its_own_sentences() -> None:
    times_s = np.arange(100) / 25
    opening = np.where((times_s > 1.0) & (times_s < 1.2), 0.0, 0.1 + 0.02 * np.sin(9 * times_s))
    opening[60:] = 5.0  # of another language
    alignment = Alignment((Phoneme(0.2, 1.0, "a"), Phoneme(1.0, 1.2, "p"), Phoneme(1.2, 2.0, "a")))
    drawn = Openings(times_s, opening)
    row = languages.of_language("de", [Utterance("de+f2", "apa", 0.2, 2.0, alignment)], drawn, source_spread=0.04)
    assert (row["speech"], row["p b m"], row["closed"]) == ("de", 1, 1.0)
    assert row["articulation"] == pytest.approx(opening[5:50].std() / 0.04, rel=0.05)
    assert 0 < row["chance"] < 1


def test_the_sentences_are_of_twelve_languages() -> None:
    assert len({voice.split("+")[0] for voice, _ in languages.SENTENCES}) == 12
