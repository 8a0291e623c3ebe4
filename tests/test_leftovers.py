"""What killed processes leave behind, and who removes it; and a program from PATH that may not write where the output lies."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from drawn import draw_video, sine, write_wav
from fakes import write_fake_bundle

from lipdub import atomic, media
from lipdub.atomic import part_file, part_name, put_in_place, remove_stale_parts, whole_file, whole_folder
from lipdub.errors import EncodingFailed
from lipdub.media import facts
from lipdub.media import program as program_room
from lipdub.stages import ENDING

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="parts are not locked there")


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


OWNER = """
import sys, time
from pathlib import Path
from lipdub.atomic import part_file, put_in_place, whole_folder
out = Path(sys.argv[1])
if sys.argv[2] == "folder":
    with whole_folder(out) as part:
        (part / "half").write_text("half")
        print(part, flush=True); time.sleep(60)
with part_file(out) as part:
    if sys.argv[2] == "nested":
        with part_file(part) as inner:
            inner.write_text("half")
            put_in_place(inner, part)
            with part_file(part) as inner:
                print(part, flush=True); time.sleep(60)
    part.write_text("half")
    print(part, flush=True); time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process that is at work on `out.mp4`, or on the folder `out`."""
    out = tmp_path / ("out" if request.param == "folder" else "out.mp4")
    with subprocess.Popen([sys.executable, "-c", OWNER, out, request.param], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "lipdub-part" in process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize("owner", ["file", "nested", "folder"], indirect=True)
def test_parts_stay_while_their_owner_lives_and_go_when_it_was_killed(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    at_work = listed(tmp_path)
    (tmp_path / ".other.0123456789ab.lipdub-part.mp4").touch()
    for name in ("out.mp4", "out"):
        remove_stale_parts(tmp_path / name)
    assert listed(tmp_path) == sorted([*at_work, ".other.0123456789ab.lipdub-part.mp4"])
    owner.kill()
    owner.wait()
    with whole_file(tmp_path / "out.mp4") as part:
        part.write_text("whole")
    with whole_folder(tmp_path / "out"):
        pass
    assert listed(tmp_path) == [".other.0123456789ab.lipdub-part.mp4", "out", "out.mp4"]


@pytest.mark.parametrize(("files", "put_off"), [(0, False), (1200, True)])
def test_a_busy_machine_puts_off_no_look_and_a_large_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, put_off: bool
) -> None:
    """Every look takes a tenth of a second by the clock."""
    for number in range(files):
        (tmp_path / str(number)).touch()
    clock = itertools.count()
    monkeypatch.setattr(atomic.time, "monotonic", lambda: 0.1 * next(clock))
    for _ in range(2):
        stale = tmp_path / part_name("out", ".mp4")
        stale.touch()
        remove_stale_parts(tmp_path / "out.mp4")
    assert stale.exists() == put_off


def test_parts_of_one_process_do_not_take_each_other(tmp_path: Path) -> None:
    """A part that was itself written as a whole is another file than the one that was locked first."""
    out = tmp_path / "out.mp4"
    with part_file(out) as silent:
        with part_file(silent) as inner:
            inner.write_text("pictures")
            put_in_place(inner, silent)
        with whole_file(out) as part:
            assert silent.read_text() == "pictures"
            part.write_text("all")
        assert silent.exists()
    assert listed(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("stem", ["out", "ü" * 120, "a.b", "-x", "x.0123456789ab.lipdub-part"])
@pytest.mark.parametrize("hidden", [True, False])
def test_stale_parts_of_any_name_go_and_similar_names_stay(tmp_path: Path, stem: str, hidden: bool) -> None:
    out = tmp_path / f"{stem}.mkv" if len(stem) < 100 else tmp_path / f"{stem[:100]}.mkv"
    first = part_name(out.stem, ".mkv", hidden=hidden)
    stale = [first, part_name(Path(first).stem, ".mkv")]
    others = [part_name(out.stem, ".mp4"), f".{out.name}", f"{out.stem}.lipdub-part.mkv"]
    if len(out.stem.encode()) < 120:  # of longer names only the beginning is told apart, and what is alive by its lock
        others.append(part_name(f"{out.stem}2", ".mkv"))
    for name in {*stale, *others}:
        (tmp_path / name).touch()
    with part_file(out):
        pass
    assert listed(tmp_path) == sorted(others)


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    part = tmp_path / part_name("out", "")
    for folder in (part, part.with_name(f"{part.name}.old")):
        folder.mkdir()
        (folder / "made").write_text(folder.suffix)
    remove_stale_parts(tmp_path / "out")
    assert listed(tmp_path) == ["out"]
    assert (tmp_path / "out" / "made").read_text() == ".old"


def test_an_old_folder_whose_successor_stands_goes(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / f"{part_name('out', '')}.old").mkdir()
    remove_stale_parts(tmp_path / "out")
    assert listed(tmp_path) == ["out"]


def test_looking_at_a_huge_folder_is_not_repeated_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = os.listdir
    monkeypatch.setattr(atomic, "_MANY", -1)
    monkeypatch.setattr(os, "listdir", lambda folder: (looks.append(folder), time.sleep(0.02), look(folder))[2])
    for number in range(5):
        with part_file(tmp_path / f"{number}.npz"):
            pass
    assert len(looks) == 1


# --------------------------------------------------------------------------------------------------- a killed command


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="watches a folder while a dub runs")
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "fake")
    draw_video(tmp_path / "clip.mp4", frames=250, size=(320, 240))
    write_wav(tmp_path / "speech.wav", sine(1.0))
    options = ["--model", str(tmp_path / "fake"), "--device", "cpu", "--threads", "1", "--preset", "veryslow", "--no-cache", "-q"]
    words = ["sync", str(tmp_path / "clip.mp4"), str(tmp_path / "speech.wav"), "-o", str(tmp_path / "out.mp4"), *options]
    # No face is found in a drawn clip: a detector of our own says that there is one.
    program = (
        "import sys; from functools import partial; from faces_for_tests import ScriptedDetector, face_at; from lipdub import pipeline\n"
        "faces = lambda **more: ScriptedDetector([[face_at((160, 120), height=90)]] * 250)\n"
        "pipeline.dub = partial(pipeline.dub, detectors=faces)\n"
        "from lipdub.cli.app import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 90
        while not any(part.stat().st_size > 0 for part in tmp_path.glob(".*lipdub-part*")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert any("lipdub-part" in name for name in listed(tmp_path))
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert listed(tmp_path) == ["clip.mp4", "fake", "out.mp4", "speech.wav"]


# ------------------------------------------------------------------------------------------------------ the sandbox

SANDBOXED = """#!/bin/sh
case "$*" in *-version*) echo "ffmpeg version 7.1"; exit 0;; esac
for word; do case "$word" in
  file:*/.*) echo "[in] Error opening $word: Permission denied" >&2; exit 1;;
  {forbidden}) echo "[out] Error opening output $word: Permission denied" >&2; exit 1;;
esac; done
exec "{real}" "$@"
"""


def sandboxed(folder: Path, monkeypatch: pytest.MonkeyPatch, *, forbidden: str = "nowhere") -> Path:
    """An ffmpeg on PATH that opens no hidden file, as one from a snap."""
    real = next(program.path for program in facts.programs() if program.new_enough)
    program = folder / "snap" / "bin" / "ffmpeg"
    program.parent.mkdir(parents=True)
    program.write_text(SANDBOXED.format(real=real, forbidden=forbidden))
    program.chmod(0o755)
    monkeypatch.setattr(facts.shutil, "which", lambda name: str(program))
    return program


def muxed(folder: Path) -> Path:
    draw_video(folder / "silent.mp4", frames=10)
    write_wav(folder / "speech.wav", sine(0.4))
    media.mux(folder / "silent.mp4", folder / "speech.wav", folder / "out.mp4", duration_s=Fraction(2, 5), force=False)
    return folder / "out.mp4"


def test_a_program_from_a_sandbox_is_given_no_hidden_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts.may_be_hidden()
    program = sandboxed(tmp_path, monkeypatch)
    assert not facts.may_be_hidden()
    tried = []
    run = program_room.run
    monkeypatch.setattr(program_room, "run", lambda command, out: (tried.append(command[0]), run(command, out))[1])
    with media.unfinished(tmp_path / "out.mp4") as part:
        assert part.name.startswith("out.")
    assert media.has_sound(muxed(tmp_path))
    assert {*tried} == {str(program)}
    assert [name for name in listed(tmp_path) if "part" in name] == []


def test_where_the_program_on_path_cannot_write_the_other_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandboxed(tmp_path, monkeypatch, forbidden="file:*lipdub-part*")
    assert media.has_sound(muxed(tmp_path))


def test_where_no_program_can_write_the_last_one_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = sandboxed(tmp_path, monkeypatch, forbidden="file:*lipdub-part*")
    shutil.copy(program, tmp_path / "other")
    monkeypatch.setattr(facts.imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(tmp_path / "other"))
    with pytest.raises(EncodingFailed, match=r"^cannot write '.*out\.mp4': \[out\] Error opening output .*; check the free space"):
        muxed(tmp_path)
    assert [name for name in listed(tmp_path) if "part" in name or name == "out.mp4"] == []


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_program_is_ended_if_the_interrupt_comes_while_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)
            signal.raise_signal(number)
            signal.raise_signal(number)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                program_room.run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "out.mp4")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert [process.poll() is None for process in started] == [False]
