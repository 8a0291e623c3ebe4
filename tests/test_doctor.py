"""The doctor: every look is guarded by itself, every red line says what to do, and nothing that is missing makes a traceback."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections import namedtuple
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fakes import write_fake_bundle
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lipdub import media
from lipdub.bundles import bundle
from lipdub.checkup import doctor, isolated, sample_media
from lipdub.checkup.doctor import libraries, machine, networks, self_dub, storage
from lipdub.checkup.doctor.finding import Finding, guarded, one_line
from lipdub.cli.app import app
from lipdub.errors import ProviderUnavailable
from lipdub.media import facts
from lipdub.records import FrameChunk

GIB = 2**30
POSIX = pytest.mark.skipif(os.name != "posix", reason="fake programs are scripts")


def program(folder: Path, name: str, script: str) -> Path:
    """A program that is a shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def colours(findings) -> dict[str, str]:
    return {finding.name: finding.colour for finding in findings}


# ------------------------------------------------------------------------------------------------------------ findings


def test_a_red_finding_says_what_to_do():
    with pytest.raises(ValueError, match="says what to do"):
        Finding("x", "red", "broken")
    with pytest.raises(ValueError, match="colour"):
        Finding("x", "blue", "fine")
    with pytest.raises(ValueError, match="one line"):
        Finding("x", "green", "two\nlines")
    with pytest.raises(ValueError, match="empty"):
        Finding("x", "green", "")


@given(st.text())
def test_whatever_an_error_says_is_one_line(text):
    line = one_line(RuntimeError(text))
    assert line
    assert len(line) <= 300
    assert len(line.splitlines()) == 1
    Finding("x", "red", line, "mend it")


@pytest.mark.parametrize("error", [RuntimeError("no\nway"), SystemExit(3), MemoryError(), KeyError("x"), OSError(5, "I/O")])
def test_a_look_that_breaks_is_a_red_line_and_keeps_what_it_found(error):
    def look():
        yield Finding("first", "green", "there")
        raise error

    first, second = guarded("the look", look, "mend it")
    assert first.colour == "green"
    assert (second.name, second.colour, second.fix) == ("the look", "red", "mend it")
    assert type(error).__name__ in second.what


# ------------------------------------------------------------------------------------------------------------- machine


def test_cores_that_a_container_leaves(tmp_path):
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("150000 0\n")
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    assert machine.cpu_quota(tmp_path) == 3


@pytest.mark.parametrize("content", ["", "1", "a b c", "\n\n"])
def test_a_quota_that_is_nonsense_breaks_nothing_but_its_own_line(tmp_path, content, monkeypatch):
    (tmp_path / "cpu.max").write_text(content)
    quota = machine.cpu_quota
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota(tmp_path))
    found = guarded("cores", machine.cores, "report this")
    assert len(found) == 1


def test_the_smaller_of_cores_and_quota_counts(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    finding = only(machine.cores())
    assert finding.colour == "yellow"
    assert "1.5 usable" in finding.what
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    assert "8 usable" in only(machine.cores()).what
    assert only(machine.cores()).colour == "green"


def meminfo(folder: Path, total_gib: float, available_gib: float) -> Path:
    path = folder / "meminfo"
    path.write_text(f"MemTotal: {int(total_gib * 2**20)} kB\nMemFree: 5 kB\nMemAvailable: {int(available_gib * 2**20)} kB\n")
    return path


def test_memory_that_a_container_leaves(tmp_path):
    lines = meminfo(tmp_path, 64, 32)
    assert machine.memory_bytes(tmp_path, lines) == (64 * GIB, 32 * GIB)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_bytes(tmp_path, lines) == (64 * GIB, 32 * GIB)
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    assert machine.memory_bytes(tmp_path, lines) == (4 * GIB, 4 * GIB)
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    assert machine.memory_bytes(tmp_path, lines) == (4 * GIB, 1 * GIB)
    assert machine.memory_bytes(tmp_path, tmp_path / "missing")[1] is None


@pytest.mark.parametrize(("available", "colour"), [(0.5, "red"), (1.5, "yellow"), (8.0, "green")])
def test_memory_has_a_colour(tmp_path, monkeypatch, available, colour):
    lines, measured = meminfo(tmp_path, 16, available), machine.memory_bytes
    monkeypatch.setattr(machine, "memory_bytes", lambda: measured(tmp_path, lines))
    assert only(machine.memory()).colour == colour


@pytest.mark.parametrize(
    ("free", "needed", "colour"), [(10, True, "green"), (1, True, "yellow"), (0.1, True, "red"), (0.1, False, "yellow")]
)
def test_disks_have_a_colour(tmp_path, monkeypatch, free, needed, colour):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage(0, 0, int(free * GIB)))
    finding = machine.disk("disk", tmp_path / "not" / "there", needed=needed, instead="go elsewhere")
    assert finding.colour == colour


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda *args: False)
    assert machine.disk("temp", tmp_path, needed=True, instead="set TMPDIR").colour == "red"
    assert machine.disk("here", tmp_path, needed=False, instead="go elsewhere").colour == "yellow"


def test_another_python(monkeypatch):
    monkeypatch.setattr(machine.sys, "version_info", (3, 14, 0))
    assert colours(machine.system())["Python"] == "red"


@POSIX
@pytest.mark.parametrize(
    ("script", "colour", "says"),
    [
        ("echo 'NVIDIA H200, 143771, 143000, 570.86.15'", "green", "NVIDIA H200, 140.4 GiB (139.6 free), driver 570.86.15"),
        ("echo 'A, B, 1, 2, 3'", "green", "A, B, 1, 2, 3"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "yellow", "version mismatch"),
        ("exit 9", "yellow", "no card"),
        ("printf '\\377\\376'", "green", ""),
    ],
)
def test_what_nvidia_smi_says(tmp_path, monkeypatch, script, colour, says):
    program(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    finding = only(machine.gpu())
    assert finding.colour == colour
    assert says in finding.what


@POSIX
def test_two_cards_are_two_lines(tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", "echo 'A, 1024, 512, 1'; echo 'B, 2048, 512, 1'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [finding.what[0] for finding in machine.gpu()] == ["A", "B"]


def test_no_nvidia_smi_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert only(machine.gpu()).colour == "green"


# ----------------------------------------------------------------------------------------------------------- libraries


def test_one_package_brings_cv2():
    assert only(libraries.packages_of("cv2")).colour == "green"


@pytest.mark.parametrize(
    ("module", "second"), [("cv2", "opencv-python"), ("cv2", "opencv-python-headless"), ("onnxruntime", "onnxruntime")]
)
def test_two_packages_in_one_folder_are_red(monkeypatch, module, second):
    first = {"cv2": "opencv-contrib-python", "onnxruntime": "onnxruntime-gpu"}[module]
    monkeypatch.setattr(libraries, "version_of", lambda package: "1.0" if package in (first, second) else "")
    finding = only(libraries.packages_of(module))
    assert finding.colour == "red"
    assert first in finding.what
    assert "pip uninstall -y" in finding.fix
    assert second in finding.fix
    assert finding.fix.endswith(f"pip install {first}")


def test_a_library_that_does_not_load_hides_no_other(monkeypatch):
    def broken(name):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(libraries.importlib, "import_module", broken)
    found = {finding.name: finding for finding in libraries.imports()}
    assert found["cv2"].colour == "red"
    assert "libgl1" in found["cv2"].fix
    assert "numpy" in found["libraries"].what


def test_faces_are_really_found():
    assert only(libraries.faces()).colour == "green"


def test_the_encoders_really_encode():
    assert {name: colour for name, colour in colours(libraries.encoders()).items() if name != "h264_nvenc"} == {
        "libx264": "green",
        "aac": "green",
    }
    assert facts.complaint_of_encoder("no_such_encoder")


def test_an_encoder_that_is_missing_is_red(monkeypatch):
    monkeypatch.setattr(facts, "complaint_of_encoder", lambda codec: "UnknownCodecError: nothing of that name")
    assert colours(libraries.encoders()) == {"libx264": "red", "aac": "red"}


@POSIX
def test_the_programs_there_can_be(tmp_path, monkeypatch):
    """On PATH too old: the one that imageio-ffmpeg brings is used, and that is said; too old and alone: red."""
    old = program(tmp_path, "ffmpeg", "echo 'ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright'")
    new = program(tmp_path, "bundled", "echo 'ffmpeg version 7.0.2-static Copyright'; echo ' A....D aac                  AAC'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(facts.imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(new))
    finding = only(libraries.ffmpeg())
    assert finding.colour == "yellow"
    assert str(new) in finding.what
    assert "4.4.2" in finding.what
    monkeypatch.setattr(facts.imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(old))
    assert only(libraries.ffmpeg()).colour == "red"


@POSIX
def test_no_program_at_all_and_one_without_aac(tmp_path, monkeypatch):
    def none_there() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(facts.imageio_ffmpeg, "get_ffmpeg_exe", none_there)
    monkeypatch.setattr(facts.shutil, "which", lambda name: None)
    assert only(libraries.ffmpeg()).colour == "red"
    lean = program(tmp_path, "ffmpeg", "echo 'ffmpeg version 6.1 Copyright'")
    monkeypatch.setattr(facts.shutil, "which", lambda name: str(lean))
    assert colours(libraries.ffmpeg()) == {"ffmpeg": "green", "ffmpeg's aac": "red"}


# ------------------------------------------------------------------------------------------------------------- networks


def test_an_altered_model_is_red_and_hides_no_other(tmp_path, monkeypatch):
    for name in ("good", "altered", "torn"):
        write_fake_bundle(tmp_path / name, name=name)
    (tmp_path / "altered" / bundle.MEMORY_GRAPH).write_bytes(b"other weights")
    (tmp_path / "torn" / bundle.SPEC_FILE).write_text("{")
    monkeypatch.setattr(bundle, "_shelves", lambda: (tmp_path,))
    found = {finding.name: finding for finding in networks.bundles()}
    assert {name: finding.colour for name, finding in found.items()} == {"model good": "green", "model altered": "red", "model torn": "red"}
    assert "licence CC0-1.0" in found["model good"].what


def test_no_model_is_red(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "_shelves", lambda: (tmp_path,))
    assert only(networks.bundles()).colour == "red"


@pytest.mark.parametrize(("cards", "colour"), [(["NVIDIA H200"], "red"), ([], "green")])
def test_cuda_that_does_not_load_is_red_only_where_there_is_a_card(monkeypatch, cards, colour):
    def unavailable(device):
        raise ProviderUnavailable("CUDA did not load: libcudnn.so.9: cannot open shared object file")

    monkeypatch.setattr(networks, "_ran", unavailable)
    monkeypatch.setattr(networks, "gpus", lambda: (cards, ""))
    finding = only(networks.cuda())
    assert finding.colour == colour
    assert "libcudnn" in finding.what


def test_a_card_that_the_cpu_install_leaves_alone_is_a_note(monkeypatch):
    def unavailable(device):
        raise ProviderUnavailable("CUDA did not load: this onnxruntime was built without it")

    monkeypatch.setattr(networks, "_ran", unavailable)
    monkeypatch.setattr(networks, "gpus", lambda: (["NVIDIA L4, 22.5 GiB"], ""))
    monkeypatch.setattr(networks, "version_of", lambda package: "1.0" if package == "onnxruntime" else "")
    finding = only(networks.cuda())
    assert (finding.colour, "this is the CPU install" in finding.what) == ("yellow", True)
    assert "pip uninstall -y onnxruntime && pip install" in finding.fix


@pytest.mark.parametrize(
    ("package", "kind"), [("onnxruntime", "the CPU install"), ("onnxruntime-gpu", "the install for CPUs and NVIDIA GPUs")]
)
def test_the_doctor_knows_which_install_it_sits_in(monkeypatch, package, kind):
    monkeypatch.setattr(libraries, "version_of", lambda name: "1.0" if name == package else "")
    finding = only(libraries.packages_of("onnxruntime"))
    assert (finding.colour, kind in finding.what) == ("green", True)


def test_the_processor_is_proved_by_a_session():
    finding = only(networks.processor())
    assert finding.colour == "green"
    assert "CPUExecutionProvider" in finding.what


# -------------------------------------------------------------------------------------------------------------- storage


def test_the_cache_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPDUB_CACHE", str(tmp_path / "kept"))
    monkeypatch.delenv("LIPDUB_CACHE_LIMIT", raising=False)
    finding = only(storage.cache())
    assert finding.colour in ("green", "yellow")
    assert str(tmp_path / "kept") in finding.what
    monkeypatch.setenv("LIPDUB_CACHE", "off")
    assert "off" in only(storage.cache()).what
    monkeypatch.setenv("LIPDUB_CACHE", str(tmp_path))
    monkeypatch.setenv("LIPDUB_CACHE_LIMIT", "much")
    assert [finding["colour"] for finding in storage.look(None)] == ["red"]


# ------------------------------------------------------------------------------------------------------------- self-dub


def test_a_dub_that_works(tmp_path):
    finding = only(self_dub.dub_of(1.0, tmp_path))
    assert finding.colour in ("green", "yellow"), finding
    assert "1 s dubbed in" in finding.what


def recoded(video: Path, speech: Path, out: Path, **more: object):
    """In the place of a dub: the same pictures, encoded once more, without sound."""
    info = media.probe(video)
    with media.Writer(out, info, crf=20, preset="medium") as writer:
        for chunk in media.read_planes(video):
            writer.write(chunk)
    report = namedtuple("report", "frames dubbed wall_s provider")
    return report(25, 20, 0.5, "CPUExecutionProvider")


def test_a_dub_that_draws_nothing_is_found_out(tmp_path, monkeypatch):
    import lipdub.pipeline

    monkeypatch.setattr(lipdub.pipeline, "dub", recoded)
    finding = only(self_dub.dub_of(1.0, tmp_path))
    assert finding.colour == "red"
    for what in ("20 of 25 frames", "no sound", "was not redrawn"):
        assert what in finding.what


def test_the_box_of_the_mouth_is_where_the_mouth_is(tmp_path):
    """A change there is seen, one elsewhere is not."""
    for name in ("source", "mouth", "eyes"):
        sample_media.write_video(tmp_path / f"{name}.mp4", seconds=0.2, width=256, height=256)
    info = media.probe(tmp_path / "source.mp4")
    frames = next(media.read_frames(tmp_path / "source.mp4")).pixels
    for name, row in (("mouth", 0.45), ("eyes", 0.3)):
        other = frames.copy()
        other[:, int(row * 256) - 6 : int(row * 256) + 6, 115:143] = 0
        with media.Writer(tmp_path / f"{name}.mp4", info, crf=14, preset="medium") as writer:
            ticks = np.arange(len(other)) * int(Fraction(1, 25) / info.time_base)
            writer.write(media.to_planes(FrameChunk(0, other, ticks, info.time_base), info))
    assert self_dub.mouth_change(tmp_path / "source.mp4", tmp_path / "mouth.mp4") > 10 * self_dub._MOVES
    assert self_dub.mouth_change(tmp_path / "source.mp4", tmp_path / "eyes.mp4") < self_dub._MOVES


# ---------------------------------------------------------------------------------------------------------- the command


def test_a_look_that_crashes_or_hangs_is_a_red_line_and_the_others_are_there(monkeypatch):
    def crashes(work, task, *, timeout_s=None):
        if "libraries" in work:
            raise isolated.ProcessFailed("crashed (SIGILL) after: mediapipe")
        if "networks" in work:
            raise isolated.ProcessFailed("did not end within 120 s")
        return isolated.Outcome([{"name": "fine", "colour": "green", "what": "works", "fix": ""}], 1.0, None)

    monkeypatch.setattr(isolated, "run_isolated", crashes)
    found = list(doctor.examine(dub=True, seconds=1.0))
    assert {"lipdub", "Python", "cores", "memory", "GPU", "libraries", "models", "fine"} <= {finding.name for finding in found}
    assert {finding.name: finding.what for finding in found if finding.colour == "red"} == {
        "libraries": "crashed (SIGILL) after: mediapipe",
        "models": "did not end within 120 s",
    }


@pytest.mark.parametrize(("colour", "code"), [("green", 0), ("yellow", 0), ("red", 1)])
def test_the_command_says_it_and_its_exit_code_too(monkeypatch, colour, code):
    finding = Finding("ffmpeg", colour, "[bold]4.4[/bold] at /usr/bin/ffmpeg", "install FFmpeg 5")
    monkeypatch.setattr(doctor, "examine", lambda dub, on_look: iter([finding]))
    shown = CliRunner().invoke(app, ["doctor", "--no-dub"])
    assert shown.exit_code == code
    assert "[bold]4.4[/bold] at /usr/bin/ffmpeg -> install FFmpeg 5" in shown.stdout
    told = CliRunner().invoke(app, ["doctor", "--json"])
    assert told.exit_code == code
    content = json.loads(told.stdout)
    assert content["works"] == (code == 0)
    assert content["findings"] == [{"name": "ffmpeg", "colour": colour, "what": finding.what, "fix": finding.fix}]


def run_doctor(**environment: str) -> tuple[int, dict, str]:
    """The real command with another environment: exit code, JSON, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "lipdub", "doctor", "--no-dub", "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_machine_that_lacks_things_gets_red_lines_and_no_traceback(tmp_path):
    """cv2 crashes the process, there is no PATH, no home, no folder for temporary files, and a cache that is set wrongly."""
    (tmp_path / "cv2.py").write_text("import os\nos.abort()\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, content, _ = run_doctor(
        PYTHONPATH=path, PATH="/nowhere", HOME="/nowhere", TMPDIR="/nowhere", LIPDUB_CACHE="/proc/nowhere", LIPDUB_CACHE_LIMIT="much"
    )
    assert code == 1
    assert not content["works"]
    red = {finding["name"]: finding for finding in content["findings"] if finding["colour"] == "red"}
    assert {"cache", "libraries", "models"} <= set(red)
    assert "SIGABRT" in red["libraries"]["what"] or os.name != "posix"
    assert all(finding["fix"] for finding in red.values())
    assert {"lipdub", "Python", "system"} <= {finding["name"] for finding in content["findings"]}


def test_the_folder_of_the_dub_goes_though_its_process_crashes(monkeypatch):
    seen = []

    def crashes(work, task, *, timeout_s=None):
        if "self_dub" in work:
            seen.append(Path(task["folder"]))
            (seen[0] / "half.mp4").write_bytes(b"half")
        raise isolated.ProcessFailed("crashed (SIGSEGV)")

    monkeypatch.setattr(isolated, "run_isolated", crashes)
    found = list(doctor.examine(seconds=1.0))
    assert found[-1].name == "self-dub"
    assert found[-1].colour == "red"
    assert seen
    assert not seen[0].exists()
