"""``lipdub bench``: honest figures from processes of their own; and those processes themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import wave
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fakes import write_fake_bundle
from typer.testing import CliRunner

from lipdub import media
from lipdub.checkup import bench, isolated, sample_media
from lipdub.checkup.bench import BenchReport, DubSpeed
from lipdub.cli import bench as command
from lipdub.cli.app import app
from lipdub.errors import LipdubError, OutputRefused
from lipdub.media.excerpt import excerpt

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of other processes' memory")
MIB = 2**20


# ---------------------------------------------------------------------------------------------- a process of its own


def test_work_is_done_elsewhere():
    outcome = isolated.run_isolated("isolated_work:echo", {"a": [1, None, "ü"]})
    assert outcome.answer["task"] == {"a": [1, None, "ü"]}
    assert outcome.answer["pid"] != os.getpid()
    assert outcome.wall_s > 0


def test_what_it_writes_does_not_stop_it():
    assert isolated.run_isolated("isolated_work:flood", None, timeout_s=30).answer == "done"


def test_its_errors_are_ours_and_its_bugs_are_one_line():
    with pytest.raises(LipdubError, match=r"no face in 'talk\.mp4'; use another one"):
        isolated.run_isolated("isolated_work:refuse", None)
    with pytest.raises(isolated.ProcessFailed, match="ZeroDivisionError") as caught:
        isolated.run_isolated("isolated_work:divide", 0)
    assert "\n" not in str(caught.value)
    assert "in divide" in caught.value.said
    with pytest.raises(isolated.ProcessFailed, match="No module named"):
        isolated.run_isolated("no_such_module:work", None)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system ties no process to cores")
def test_it_is_tied_to_cores():
    assert isolated.run_isolated("isolated_work:where", None, cores=1).answer == sorted(os.sched_getaffinity(0))[:1]
    assert isolated.run_isolated("isolated_work:where", None).answer == sorted(os.sched_getaffinity(0))


def test_modules_of_another_folder_come_first(tmp_path):
    """Also those of a lipdub that has no such runner: its own code is ours."""
    (tmp_path / "lipdub").mkdir()
    (tmp_path / "lipdub" / "__init__.py").write_text("OLD = True")
    (tmp_path / "lipdub" / "errors.py").write_text("class LipdubError(Exception): pass")
    (tmp_path / "old_work.py").write_text("import lipdub\n\ndef old(task):\n    return lipdub.OLD\n")
    assert isolated.run_isolated("old_work:old", None, source=tmp_path).answer is True


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_crash_is_told_by_name():
    with pytest.raises(isolated.ProcessFailed, match=r"crashed \(SIGABRT\) after: about to crash"):
        isolated.run_isolated("isolated_work:crash", None)


def test_a_process_that_hangs_is_ended(tmp_path):
    started = time.perf_counter()
    with pytest.raises(isolated.ProcessFailed, match="did not end within"):
        isolated.run_isolated("isolated_work:sleep", str(tmp_path / "pid"), timeout_s=1)
    assert time.perf_counter() - started < 20


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z" if sys.platform == "linux" else False


@LINUX
def test_it_ends_when_we_are_killed(tmp_path):
    """SIGKILL leaves nobody to clean up: the process notices by itself."""
    marker = tmp_path / "pid"
    work = f"isolated.run_isolated('isolated_work:sleep', {str(marker)!r})"
    code = f"import sys; sys.path[:] = {sys.path!r}; from lipdub.checkup import isolated; {work}"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.time() + 20
    while not (marker.exists() and marker.read_text()) and time.time() < deadline:
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    child = int(marker.read_text())
    while not gone(child) and time.time() < deadline:
        time.sleep(0.05)
    assert gone(child)


@LINUX
def test_its_memory_is_its_own():
    """Not what the caller holds (Linux tells a new process's peak from before it began), and its children's with it."""
    ours = bytearray(300 * MIB)
    ours[::4096] = b"x" * len(ours[::4096])
    nothing = isolated.run_isolated("isolated_work:hold", 0).peak_bytes
    own = isolated.run_isolated("isolated_work:hold", 150).peak_bytes
    with_child = isolated.run_isolated("isolated_work:hold_in_a_child", 150).peak_bytes
    assert len(ours) == 300 * MIB
    assert nothing < 200 * MIB
    assert 145 * MIB < own - nothing < 175 * MIB
    assert 145 * MIB < with_child - nothing < 200 * MIB


# --------------------------------------------------------------------------------------------------------- trial media


def test_the_trial_video_is_as_asked_for(tmp_path):
    told = []
    sample_media.write_video(
        tmp_path / "v.mp4", seconds=0.6, width=320, height=180, on_frames=lambda done, total: told.append((done, total))
    )
    info = media.probe(tmp_path / "v.mp4")
    assert (info.width, info.height, float(info.duration_s), info.has_audio) == (320, 180, 0.6, False)
    assert told[-1] == (15, 15)
    with closing(media.read_frames(tmp_path / "v.mp4")) as chunks:
        frames = np.concatenate([chunk.pixels for chunk in chunks])
    assert len(frames) == 15
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).mean() > 0.3  # it moves


def test_the_trial_speech_speaks_and_pauses(tmp_path):
    sample_media.write_speech(tmp_path / "s.wav", seconds=5)
    with wave.open(str(tmp_path / "s.wav")) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (80000, 16000, 1)
        samples = np.frombuffer(file.readframes(80000), "<i2") / 32768
    loudness = np.sqrt((samples.reshape(-1, 800) ** 2).mean(axis=1))
    assert np.abs(samples).max() < 0.6
    assert (loudness < 1e-4).mean() > 0.1
    assert (loudness > 0.02).mean() > 0.4


def test_the_portrait_is_small_enough_to_ship():
    assert sample_media.PORTRAIT.stat().st_size < 60_000
    assert "public domain" in (sample_media.PORTRAIT.parent / "README.md").read_text()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_excerpt_has_the_same_pictures(tmp_path, suffix):
    source = tmp_path / f"long{suffix}"
    sample_media.write_video(source, seconds=3, width=128, height=96)
    folder = tmp_path / "out"
    folder.mkdir()
    short = excerpt(source, folder, seconds=1)
    assert [path.name for path in folder.iterdir()] == [short.name]
    assert 0.9 < float(media.probe(short).duration_s) < 1.3
    with closing(media.read_frames(source)) as one, closing(media.read_frames(short)) as other:
        before, after = next(one).pixels, next(other).pixels
    assert (before[:20] == after[:20]).all()


# --------------------------------------------------------------------------------------------------------------- bench


def speed(**changes) -> DubSpeed:
    values = {
        "frames": 100, "dubbed": 100, "wall_s": 4.0, "process_s": 5.0, "stage_s": {"faces": 2.0, "encode": 3.0}, "peak_bytes": 500 * MIB,
        "analysis_cached": False, "provider": "CPUExecutionProvider",
    } | changes  # fmt: skip
    return DubSpeed(**values)


def report(**changes) -> BenchReport:
    values = {
        "video": "", "width": 1280, "height": 720, "video_s": 4.0, "model": "base", "device": "auto", "threads": None, "first": speed(),
        "again": speed(wall_s=2.0, stage_s={"encode": 1.5}, analysis_cached=True), "machine": bench.machine(), "versions": bench.versions(),
        "date": "2026-01-01T00:00:00+00:00",
    } | changes  # fmt: skip
    return BenchReport(**values)


def test_rates_are_frames_over_seconds():
    found = report()
    assert (found.first.frames_per_s, found.again.frames_per_s) == (25, 50)
    assert (found.times_real_time(found.first), found.times_real_time(found.again)) == (1, 2)
    assert (found.first.stage_frames_per_s("faces"), found.again.stage_frames_per_s("faces")) == (50, 0)
    told = json.loads(found.to_json())
    assert told["again"]["times_real_time"] == 2
    assert told["first"]["stage_frames_per_s"] == {"faces": 50, "encode": 33.3}
    assert told["versions"]["mediapipe"]
    assert told["machine"]["usable_cores"] >= 1


def test_what_stands_below_the_table():
    assert "another language costs 50% of the first" in " ".join(command.notes(report()))
    lines = " ".join(command.notes(report(again=speed(), first=speed(dubbed=90))))
    assert "did not find the analysis" in lines
    assert "10 of 100 frames could not be dubbed" in lines


def test_a_bench_measures_a_first_and_a_second_dub(tmp_path, monkeypatch):
    """With the toy model, and small: what it draws does not matter here. Nor does how warm the machine is."""
    monkeypatch.setattr(bench, "_warm_up", lambda *args: None)
    write_fake_bundle(tmp_path / "fake")
    sample_media.write_video(tmp_path / "talk.mp4", seconds=0.6, width=256, height=256)
    told, before = [], sorted(Path(tempfile.gettempdir()).glob("lipdub-bench-*"))
    found = bench.measure(
        tmp_path / "talk.mp4", model=str(tmp_path / "fake"), threads=1, on_progress=lambda what, done, total: told.append((what, done))
    )
    assert sorted(Path(tempfile.gettempdir()).glob("lipdub-bench-*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "talk.mp4"]
    assert (found.first.analysis_cached, found.again.analysis_cached) == (False, True)
    assert (found.first.frames, found.first.dubbed, found.width, found.height, found.video_s) == (15, 15, 256, 256, 0.6)
    assert "faces" in found.first.stage_s
    assert "faces" not in found.again.stage_s
    for dub in (found.first, found.again):
        assert 0 < dub.wall_s < dub.process_s
        assert min(dub.stage_s.values()) >= 0
        assert dub.peak_bytes is None or dub.peak_bytes > 50 * MIB
    assert told == [("first dub", 0), ("first dub", 15), ("dub again", 0), ("dub again", 15)]


def test_without_a_video_a_portrait_is_dubbed_and_a_long_one_is_cut(tmp_path, monkeypatch):
    dubbed = []

    def timed(task):
        dubbed.append(task | {"info": media.probe(Path(task["video"]))})
        return speed()

    monkeypatch.setattr(bench, "_timed", timed)
    assert bench.measure(seconds=1.0).video == ""
    sample_media.write_video(tmp_path / "long.mkv", seconds=4, width=128, height=96)
    assert bench.measure(tmp_path / "long.mkv", seconds=1.0).video == str(tmp_path / "long.mkv")
    warm, first, again, _, cut, _ = dubbed
    assert (warm["info"].width, first["info"].width, first["info"].height) == (512, 1280, 720)
    assert first["video"] == again["video"]
    assert float(first["info"].duration_s) == 1.0
    assert 0.9 < float(cut["info"].duration_s) < 1.5
    assert cut["info"].width == 128


def test_a_dub_that_fails_is_an_error_in_one_line(tmp_path, monkeypatch):
    def fails(work, task):
        raise isolated.ProcessFailed("crashed (SIGKILL)")

    monkeypatch.setattr(isolated, "run_isolated", fails)
    with pytest.raises(LipdubError, match="SIGKILL"):
        bench.measure(seconds=1.0)


def test_the_command_shows_a_table_and_writes_a_file(tmp_path, monkeypatch):
    asked = {}

    def measured(video, **options):
        asked.update(options, video=video)
        return report(video="films/[b]talk[/b].mp4", threads=2)

    monkeypatch.setattr(bench, "measure", measured)
    file = tmp_path / "bench.json"
    arguments = ["bench", "talk.mp4", "--model", "m", "--device", "cpu", "--threads", "2", "--seconds", "30", "--json", str(file)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for what in ("[b]talk[/b].mp4", "1280 x 720", "faces", "encode", "in all", "times real time", "500 MiB", "50%", "CPUExecutionProvider"):
        assert what in done.stdout, what
    assert {key: asked[key] for key in ("video", "model", "device", "threads", "seconds")} == {
        "video": Path("talk.mp4"), "model": "m", "device": "cpu", "threads": 2, "seconds": 30,
    }  # fmt: skip
    assert json.loads(file.read_text())["first"]["frames_per_s"] == 25
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, OutputRefused)
    assert CliRunner().invoke(app, [*arguments, "--force", "--quiet"]).stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_the_file_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *args, **more: pytest.fail("measured first"))
    done = CliRunner().invoke(app, ["bench", "--json", str(tmp_path / "no" / "bench.json")])
    assert isinstance(done.exception, OutputRefused)
