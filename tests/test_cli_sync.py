"""``lipdub sync`` as a user meets it: exit codes, one line per error, nothing lost and nothing left, odd file names, Ctrl-C."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Ran, Run, in_this_process
from drawn import draw_video, write_wav
from faces_for_tests import ScriptedDetector, face_at, portrait_frames, scaled
from fakes import rewrite_spec, write_fake_bundle

from lipdub import __version__, media, pipeline
from lipdub.bundles import bundle
from lipdub.stages import ENDING

FRAMES, SIDE, RATE = 12, 256, 16000
FAST = ("--device", "cpu", "--preset", "ultrafast", "--threads", "1")
PROGRAM = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from lipdub.cli.app import main; main()"
"""Ctrl-C as in a terminal, also where the tests themselves run in the background."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of the portrait, speech for it, and the fake bundle; made once, copied for every test."""
    folder = tmp_path_factory.mktemp("made")
    pictures = [scaled(pixels, (SIDE, SIDE)) for pixels in portrait_frames(FRAMES)]
    draw_video(folder / "clip.mp4", pictures=pictures, fps=25)
    write_wav(folder / "speech.wav", np.random.default_rng(0).uniform(-0.9, 0.9, round(0.48 * RATE)))
    write_fake_bundle(folder / "fake")
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with clip.mp4, speech.wav and the bundle ./fake."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `lipdub` with arguments, in this process."""
    with in_this_process(monkeypatch, capfd) as run:
        yield run


@pytest.fixture
def sync(run: Run) -> Run:
    """Run `lipdub sync` with the fake bundle; `clip.mp4 speech.wav -o out.mp4` unless other paths are given."""

    def sync(*arguments: str, video: str = "clip.mp4", speech: str = "speech.wav", out: str = "out.mp4", model: str = "./fake") -> Ran:
        return run("sync", video, speech, "-o", out, "--model", model, *FAST, *arguments)

    return sync


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder under `folder`, and what is in it."""
    return {
        os.fsdecode(os.fsencode(path.relative_to(folder))): "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def frame_count(path: Path) -> int:
    return sum(len(chunk) for chunk in media.read_frames(path))


# -------------------------------------------------------------------------------------------------------- that it works


def test_a_dub_ends_with_one_table_and_nothing_on_standard_error(work: Path, sync: Run) -> None:
    before = contents(work)
    ran = sync()
    assert (ran.code, ran.err) == (0, "")
    for words in ("dubbed out.mp4", "frames", "12 (0.48 s)", "passed through", "none", "frames/s", "decode", "CPUExecutionProvider"):
        assert words in ran.out
    assert frame_count(work / "out.mp4") == FRAMES
    after = contents(work)
    assert set(after) - set(before) == {"out.mp4"}
    assert {name: after[name] for name in before} == before


def test_the_report_is_json(work: Path, sync: Run) -> None:
    ran = sync("--report", "report.json", "--fit", "video", "--silence", "keep", "--quiet")
    assert ran == Ran(0, "", "")
    report = json.loads((work / "report.json").read_text())
    assert report["frames"] == report["dubbed"] + report["passed_through"] == FRAMES
    assert (report["video"], report["speech"], report["output"]) == ("clip.mp4", "speech.wav", "out.mp4")
    assert (report["fit"], report["silence"], report["spans"], report["version"]) == ("video", "keep", [], __version__)
    assert report["provider"] == "CPUExecutionProvider"
    assert report["frames_per_s"] > 0
    assert report["stage_s"]["encode"] > 0
    assert {"model", "silent_frames", "video_s", "speech_s", "output_s", "wall_s"} <= set(report)


def test_faces_that_are_too_small_pass_through_and_it_says_so(work: Path, sync: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[face_at((128, 128), height=25)]] * FRAMES
    monkeypatch.setattr(pipeline, "dub", partial(pipeline.dub, detectors=lambda: ScriptedDetector(script)))
    ran = sync("--report", "report.json")
    said = "warning: nothing was dubbed, for no frame can be (face too small); the output shows the source untouched\n"
    assert (ran.code, ran.err) == (3, said)
    assert "12: 0.00-0.48 s face too small" in ran.out
    report = json.loads((work / "report.json").read_text())
    assert report["nothing_dubbed"] is True
    assert [warning["kind"] for warning in report["warnings"]] == ["nothing-dubbed"]
    (span,) = report["spans"]
    assert span == {"first": 0, "end": 12, "start_s": 0.0, "end_s": 0.48, "why": "face too small"}


@pytest.mark.parametrize("silence", ["close", "keep", "off"])
def test_nothing_dubbed_has_an_output_a_warning_in_spite_of_q_and_a_code_of_its_own(work, sync, monkeypatch, silence) -> None:
    script = [[face_at((128, 128), height=25)]] * FRAMES
    monkeypatch.setattr(pipeline, "dub", partial(pipeline.dub, detectors=lambda: ScriptedDetector(script)))
    ran = sync("-q", "--silence", silence)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("warning: nothing was dubbed")
    assert ran.err.count("\n") == 1
    assert frame_count(work / "out.mp4") == FRAMES


def test_speech_that_sounds_only_where_there_is_no_face_dubs_nothing(work, sync, monkeypatch) -> None:
    script = [[face_at((128, 128), height=120)]] * 6 + [[face_at((128, 128), height=25)]] * 6
    monkeypatch.setattr(pipeline, "dub", partial(pipeline.dub, detectors=lambda: ScriptedDetector(script)))
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, round(0.48 * RATE))
    write_wav(work / "late.wav", np.where(np.arange(len(noise)) < 0.4 * RATE, 0, noise))
    ran = sync("-q", speech="late.wav")
    assert (ran.code, ran.err[:28]) == (3, "warning: nothing was dubbed,")
    assert sync("-q", "--force").code == 0


def test_a_pause_throughout_is_kept_as_the_source_has_it_and_so_nothing_is_dubbed(work, sync) -> None:
    write_wav(work / "silent.wav", np.zeros(round(0.48 * RATE), np.float32))
    assert sync("-q", speech="silent.wav") == Ran(0, "", "")
    ran = sync("-q", "--force", "--silence", "keep", speech="silent.wav")
    assert (ran.code, ran.err[:28]) == (3, "warning: nothing was dubbed,")


def test_force_replaces(work: Path, sync: Run) -> None:
    (work / "out.mp4").write_bytes(b"old")
    (work / "report.json").write_bytes(b"old")
    assert sync("--force", "--report", "report.json").code == 0
    assert frame_count(work / "out.mp4") == FRAMES
    assert json.loads((work / "report.json").read_text())["frames"] == FRAMES


# ------------------------------------------------------------------------------------------------------------ bad input


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def faceless(work: Path) -> None:
    draw_video(work / "waves.mp4", size=(160, 120), frames=6)


def not_a_number(work: Path) -> None:
    samples = np.zeros(4000)
    samples[2000] = np.nan
    write_wav(work / "nan.wav", samples, floats=True)


def swap_graphs(work: Path) -> None:
    memory, generator = work / "fake" / bundle.MEMORY_GRAPH, work / "fake" / bundle.GENERATOR_GRAPH
    one, other = memory.read_bytes(), generator.read_bytes()
    memory.write_bytes(other)
    generator.write_bytes(one)
    rewrite_spec(work / "fake")


def other_version(work: Path) -> None:
    file = work / "fake" / bundle.SPEC_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))


def alter(work: Path) -> None:
    with (work / "fake" / bundle.MEMORY_GRAPH).open("ab") as file:
        file.write(b"!")


@dataclass(frozen=True)
class Bad:
    """Something wrong with the call or its files: what to prepare, what to call, what must be said."""

    says: str
    prepare: Callable[[Path], object] = lambda work: None
    video: str = "clip.mp4"
    speech: str = "speech.wav"
    out: str = "out.mp4"
    model: str = "./fake"
    options: tuple[str, ...] = ()


BAD = {
    "missing video": Bad("'gone.mp4': there is no such file; check the path", video="gone.mp4"),
    "missing speech": Bad("'gone.wav': there is no such file; check the path", speech="gone.wav"),
    "empty video": Bad("the file is empty", lambda work: (work / "empty.mp4").touch(), video="empty.mp4"),
    "empty speech": Bad("the file is empty", lambda work: (work / "empty.wav").touch(), speech="empty.wav"),
    "video cut off": Bad("cannot read 'clip.mp4'", lambda work: cut_off(work / "clip.mp4")),
    "video is text": Bad("cannot read 'text.mp4'", lambda work: (work / "text.mp4").write_text("hello\n" * 99), video="text.mp4"),
    "speech is text": Bad("cannot read 'text.wav'", lambda work: (work / "text.wav").write_text("hello\n" * 99), speech="text.wav"),
    "video is noise": Bad(
        "cannot read 'noise.mp4'",
        lambda work: (work / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(9999)),
        video="noise.mp4",
    ),
    "video is a folder": Bad("it is a folder", video="fake"),
    "speech is a folder": Bad("it is a folder", speech="fake"),
    "video is sound": Bad("holds no pictures; give a video or a photo", video="speech.wav"),
    "nobody in the video": Bad("no face in 'waves.mp4'", faceless, video="waves.mp4"),
    "speech without sound": Bad("holds no sound; give a file with speech in it", speech="clip.mp4"),
    "speech of no length": Bad("no samples", lambda work: write_wav(work / "none.wav", np.zeros(0)), speech="none.wav"),
    "speech with NaN": Bad("not finite numbers; export it again", not_a_number, speech="nan.wav"),
    "output in a missing folder": Bad("there is no folder 'gone'; create it first", out="gone/out.mp4"),
    "output is a folder": Bad("it is a folder; give a file name", lambda work: (work / "dir.mp4").mkdir(), out="dir.mp4"),
    "output is the video": Bad("it is the input 'clip.mp4'; choose another name", out="clip.mp4"),
    "output is the video, by force": Bad("it is the input 'clip.mp4'", out="./fake/../clip.mp4", options=("--force",)),
    "output is the video's link": Bad(
        "it is the input 'clip.mp4'", lambda work: os.link(work / "clip.mp4", work / "link.mp4"), out="link.mp4", options=("--force",)
    ),
    "output is the speech": Bad("it is the input 'talk.mp4'", lambda work: speech_video(work), speech="talk.mp4", out="talk.mp4"),
    "output exists": Bad("exists already; add --force", lambda work: (work / "out.mp4").write_bytes(b"precious")),
    "output of another kind": Bad("lipdub writes .mp4, .mov, .mkv and .webm", out="out.gif"),
    "report in a missing folder": Bad("there is no folder 'gone'", options=("--report", "gone/report.json")),
    "report exists": Bad("exists already; add --force", lambda work: (work / "r.json").write_text("{}"), options=("--report", "r.json")),
    "report is the output": Bad("is the output", options=("--report", "./fake/../out.mp4")),
    "report is an input": Bad("is an input", options=("--report", "speech.wav", "--force")),
    "no such bundle": Bad("no model bundle at 'gone'", model="gone"),
    "bundle is a file": Bad("is a file; give the folder", model="./clip.mp4"),
    "bundle is another folder": Bad("holds no bundle.json", lambda work: (work / "dir").mkdir(), model="./dir"),
    "bundle altered": Bad("was altered since it was exported", alter),
    "bundle of another version": Bad("is of format version 99", other_version),
    "bundle with swapped graphs": Bad("graphs swapped", swap_graphs),
    "bundle without a graph": Bad("is missing from the bundle", lambda work: (work / "fake" / bundle.GENERATOR_GRAPH).unlink()),
    "bundle that is no JSON": Bad("is no JSON", lambda work: (work / "fake" / bundle.SPEC_FILE).write_text("{")),
    "bundle that draws no numbers": Bad("drew no picture but NaN", lambda work: write_fake_bundle(work / "fake", draws="nan")),
    "no CUDA": Bad("CUDA did not load", options=("--device", "cuda")),
}


def speech_video(work: Path) -> None:
    draw_video(work / "talk.mp4", frames=10, audio_s=0.4)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(work: Path, sync: Run, monkeypatch: pytest.MonkeyPatch, bad: Bad) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    bad.prepare(work)
    before = contents(work)
    ran = sync(*bad.options, video=bad.video, speech=bad.speech, out=bad.out, model=bad.model)
    assert ran.code == 1
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    assert bad.says in line
    assert contents(work) == before


def test_a_read_only_folder_is_refused(work: Path, sync: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "locked").mkdir()
    may = os.access

    def access(path: Any, mode: int, **options: Any) -> bool:  # root may write everywhere, so permissions alone would show nothing
        return not (Path(path).name == "locked" and mode & os.W_OK) and may(path, mode, **options)

    monkeypatch.setattr(os, "access", access)
    ran = sync(out="locked/out.mp4")
    assert ran.code == 1
    assert ran.err.startswith("error: cannot write 'locked/out.mp4': no permission")
    assert len(ran.err.splitlines()) == 1
    assert list((work / "locked").iterdir()) == []


def test_a_bug_shows_its_traceback(work: Path, sync: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "dub", broken)
    with pytest.raises(ZeroDivisionError):
        sync()


# ---------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["sync"],
        ["sync", "clip.mp4"],
        ["sync", "clip.mp4", "speech.wav"],
        ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "more.mp4"],
        ["sync", "clip.mp4", "speech.wav", "-o"],
        ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "--nonsense"],
        ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "--crf", "99"],
        ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "--crf", "good"],
        ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "--fit", "loosely"],
        ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "--device", "tpu"],
        ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "--threads", "0"],
        ["synk"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_exit_code_2(work: Path, run: Run, arguments: list[str]) -> None:
    before = contents(work)
    ran = run(*arguments)
    assert ran.code == 2
    assert "Usage" in ran.err + ran.out or ran.err.startswith("Error: ")
    assert "Traceback" not in ran.err
    assert contents(work) == before


def test_help_shows_examples_and_every_option(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = run("sync", "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "Examples" in ran.out
    assert "lipdub sync talk.mp4 german.wav -o talk_de.mp4" in ran.out
    for option in ("--model", "--device", "--fit", "--silence", "--crf", "--preset", "--force", "--strict", "--report", "--quiet"):
        assert option in ran.out
    assert "sync" in run("--help").out
    assert "sync" in run("-h").out


def test_version(run: Run) -> None:
    assert run("--version") == Ran(0, f"lipdub {__version__}\n", "")


# ---------------------------------------------------------------------------------------------------------- file names

NAMES = {
    "space": "a talk",
    "quotes": 'it\'s "quoted"',
    "letters": "Übung 日本語 عربى",
    "percent": "100%d %s %(name)s %03d",
    "brackets": "[bold]x [link=y]",
    "emoji": ":smile:",
    "protocol": "file:data,concat|x",
    "glob": "*?[a-z]",
    "backslash": "a\\b",
    "newline": "two\nlines",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_any_file_name_works(work: Path, sync: Run, name: str) -> None:
    try:
        os.rename(work / "clip.mp4", work / f"{name}.mp4")
    except OSError:
        pytest.skip("no such file names here")
    os.rename(work / "speech.wav", work / f"{name}.wav")
    out = work / f"out {name}.mp4"
    ran = sync("--report", f"{name}.json", video=f"{name}.mp4", speech=f"{name}.wav", out=out.name)
    assert (ran.code, ran.err) == (0, "")
    assert frame_count(out) == FRAMES
    assert json.loads((work / f"{name}.json").read_text(encoding="utf-8"))["output"] == out.name
    again = sync(video=f"{name}.mp4", speech=f"{name}.wav", out=out.name)
    assert again.code == 1
    assert len(again.err.splitlines()) == 1
    if name.isprintable():
        assert f"'{out.name}' exists already" in again.err
        assert out.name in ran.out.replace("\n", "").replace("  ", " ") or len(out.name) > 40


@pytest.mark.parametrize("which", ["video", "speech", "out", "--report"])
def test_a_name_that_is_no_utf_8_is_refused_in_one_line(work: Path, sync: Run, which: str) -> None:
    name = os.fsdecode(b"\xff.mp4")
    if which in ("video", "speech"):
        try:
            os.rename(work / ("clip.mp4" if which == "video" else "speech.wav"), work / name)
        except OSError:
            pytest.skip("no such file names here")
    before = contents(work)
    ran = sync(which, name) if which == "--report" else sync(**{which: name})
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert "name is no UTF-8" in ran.err
    assert contents(work) == before


@pytest.mark.parametrize("style", ["./-x", "--"])
def test_names_that_begin_with_a_dash_work(work: Path, run: Run, style: str) -> None:
    os.rename(work / "clip.mp4", work / "-x.mp4")
    os.rename(work / "speech.wav", work / "-s.wav")
    paths = ["./-x.mp4", "./-s.wav"] if style == "./-x" else ["--", "-x.mp4", "-s.wav"]
    output = ["-o", "./-out.mp4"] if style == "./-x" else ["--output=-out.mp4"]
    ran = run("sync", *output, "--model", "./fake", *FAST, *paths)
    assert (ran.code, ran.err) == (0, "")
    assert frame_count(work / "-out.mp4") == FRAMES


def test_a_terminal_that_knows_only_ascii_gets_its_table_too(work: Path) -> None:
    os.rename(work / "clip.mp4", work / "ü.mp4")
    arguments = ["sync", "ü.mp4", "speech.wav", "-o", "日.mp4", "--model", "./fake", *FAST]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, env=environment, timeout=120, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"\\u65e5.mp4" in ran.stdout


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = [scaled(pixels, (SIDE, SIDE)) for pixels in portrait_frames(FRAMES)]
    clip = tmp_path_factory.mktemp("long") / "clip.mp4"
    draw_video(clip, pictures=(pictures + pictures[::-1]) * 5, fps=25)
    return clip


@pytest.fixture
def long_work(work: Path, long_clip: Path) -> Path:
    """`work` with a clip that takes a second or two."""
    shutil.copy(long_clip, work / "clip.mp4")
    return work


def holds_open(process: subprocess.Popen[bytes], path: Path) -> bool:
    folder = Path(f"/proc/{process.pid}/fd")
    for link in list(folder.iterdir()):
        try:
            if os.readlink(link) == str(path):
                return True
        except OSError:
            continue
    return False


def loaded(process: subprocess.Popen[bytes], library: str) -> bool:
    return library in Path(f"/proc/{process.pid}/maps").read_text()


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


FAKE_FFMPEG = """#!/bin/sh
case "$*" in *-version*) echo "ffmpeg version 7.0"; exit 0;; esac
for word; do case "$word" in *lipdub-part*) part="${word#file:}";; esac; done
echo half > "$part"
case "$*" in *"-c:v:0 copy"*) ;; *) exit 0;; esac # a second of sound, tried before the first frame
echo $$ > muxing
exec sleep 60
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("moment", ["finding faces", "redrawing", "muxing"])
@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_an_interrupted_dub_leaves_nothing(long_work: Path, moment: str, number: signal.Signals) -> None:
    programs = long_work / "programs"
    programs.mkdir()
    environment = dict(os.environ)
    if moment == "muxing":
        (programs / "ffmpeg").write_text(FAKE_FFMPEG)
        (programs / "ffmpeg").chmod(0o755)
        environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    before = contents(long_work)
    preset = "ultrafast" if moment == "muxing" else "slow"
    arguments = ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "--model", "./fake", *FAST, "--preset", preset, "--fit", "video"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            reached = {
                "finding faces": lambda: loaded(process, "mediapipe") and holds_open(process, long_work / "clip.mp4"),
                "redrawing": lambda: any(holds_open(process, part) for part in long_work.glob("*.lipdub-part.mp4")),
                "muxing": lambda: (long_work / "muxing").exists() and (long_work / "muxing").read_text().endswith("\n"),
            }[moment]
            until(reached, process)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.decode().splitlines() in (["stopped; nothing was written"], ["stopped"])
    assert out == b""
    if moment == "muxing":
        with pytest.raises(ProcessLookupError):  # the program that was muxing has gone, too
            os.kill(int((long_work / "muxing").read_text()), 0)
        (long_work / "muxing").unlink()
    assert contents(long_work) == before


def test_an_interruption_that_a_library_swallowed_still_stops_the_dub(work: Path, sync: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Swallowing(ScriptedDetector):
        def detect(self, pixels: Any) -> Any:
            if self.seen == 3:
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
            return super().detect(pixels)

    monkeypatch.setattr(pipeline, "dub", partial(pipeline.dub, detectors=lambda: Swallowing([[face_at((128, 128), height=90)]] * FRAMES)))
    before = contents(work)
    assert sync() == Ran(130, "", "stopped; nothing was written\n")
    assert contents(work) == before


def test_an_interruption_that_a_library_made_another_error_of_is_no_bug(work: Path, sync: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mangling(ScriptedDetector):
        def detect(self, pixels: Any) -> Any:
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt as error:
                raise ImportError("a part failed to load") from error

    monkeypatch.setattr(pipeline, "dub", partial(pipeline.dub, detectors=lambda: Mangling([])))
    before = contents(work)
    assert sync() == Ran(130, "", "stopped\n")
    assert contents(work) == before


def test_a_closed_pipe_is_no_traceback(work: Path) -> None:
    arguments = ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "--model", "./fake", *FAST]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.wait(timeout=90)
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    assert frame_count(work / "out.mp4") == FRAMES
