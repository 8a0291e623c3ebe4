"""Pipes and devices as inputs and outputs: a pipe is read once, to its end; what is no file is refused; nothing waits deaf."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from drawn import draw_photo, draw_video, sine, write_wav

from lipdub import media
from lipdub.errors import LipdubError, OutputRefused, UnreadableMedia
from lipdub.faces.analysis_key import analysis_key
from lipdub.reports import check_report
from lipdub.stages import ENDING

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; nothing is left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    media.let_go_of_copies()
    assert list(folder.iterdir()) == []


def fed(pipe: Path, data: bytes) -> Path:
    """`pipe`, which is made, and whose reader gets `data`."""
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError):  # whoever reads may give up
            pipe.write_bytes(data)

    threading.Thread(target=write, daemon=True).start()
    return pipe


@pytest.mark.parametrize("name", ["talk.mp4", "talk.mkv", "talk"])
def test_a_video_from_a_pipe_is_read_again_and_again(tmp_path: Path, name: str) -> None:
    drawn = draw_video(tmp_path / "file.mkv", size=(320, 240), frames=30, audio_s=1.0, options={"crf": "1"})
    data = (tmp_path / "file.mkv").read_bytes()
    assert len(data) > 2**16, "more than a pipe holds"
    pipe = fed(tmp_path / name, data)
    assert media.probe(pipe).has_audio
    for _ in range(2):
        with closing(media.read_frames(pipe)) as chunks:
            assert sum(len(chunk) for chunk in chunks) == len(drawn)
    with closing(media.read_planes(pipe)) as planes:
        pts = np.concatenate([chunk.pts for chunk in planes])
    assert len(media.read_span(pipe, pts, 20, 22)) == 2
    assert media.audio_duration_s(pipe) == media.audio_duration_s(tmp_path / "file.mkv")
    assert analysis_key(pipe, size_px=64) != analysis_key(tmp_path / "file.mkv", size_px=128)
    media.mux(tmp_path / "file.mkv", pipe, tmp_path / "out.mp4", duration_s=media.audio_duration_s(pipe), force=False)
    assert media.has_sound(tmp_path / "out.mp4")


def test_a_photo_from_a_pipe(tmp_path: Path) -> None:
    draw_photo(tmp_path / "file.jpg", orientation=6)
    info = media.probe(fed(tmp_path / "photo.jpg", (tmp_path / "file.jpg").read_bytes()))
    assert (info.is_still, info.height, info.width) == (True, 96, 64)


def test_process_substitution_as_shells_give_it(tmp_path: Path) -> None:
    write_wav(tmp_path / "speech.wav", sine(2.0))
    with subprocess.Popen(["cat", tmp_path / "speech.wav"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        path = Path(f"/dev/fd/{cat.stdout.fileno()}")
        assert media.audio_duration_s(path) == 2
        assert sum(map(len, media.read_audio(path, 16000))) == 32000


def test_another_writer_is_another_sound(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    for seconds in (1, 2):
        write_wav(tmp_path / "file.wav", sine(seconds))
        pipe.unlink(missing_ok=True)
        assert media.audio_duration_s(fed(pipe, (tmp_path / "file.wav").read_bytes())) == seconds


def test_what_comes_out_of_a_pipe_may_be_nothing_or_no_media(tmp_path: Path) -> None:
    for number, (data, why) in enumerate([(b"", "the file is empty"), (b"hello\n" * 100, "no media")]):
        pipe = fed(tmp_path / str(number), data)
        with pytest.raises(UnreadableMedia, match=rf"cannot read '.*/{number}': .*{why}") as caught:
            media.probe(pipe)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "socket"])
def test_devices_and_sockets_are_refused(tmp_path: Path, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        place = Path(path) if path.startswith("/") else tmp_path / path
        if path == "socket":
            listening.bind(str(place))
        for read in (media.probe, media.audio_duration_s, lambda place: next(media.read_planes(place))):
            with pytest.raises(UnreadableMedia, match="it is a device, not a file"):
                read(place)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_outputs_are_files(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.mp4"
    if kind == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to("/dev/null")
    for check in (
        lambda: media.check_output(out, inputs=[], force=True),
        lambda: media.check_file(out, force=True),
        lambda: check_report(out, inputs=[], output=None, force=True),
    ):
        with pytest.raises(OutputRefused, match="it is a pipe or a device"):
            check()
    assert out.exists()
    assert not out.is_file()


def test_no_room_for_what_a_pipe_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(LipdubError, match=r"cannot keep a copy of '.*pipe' in '.*none': No such file.*; make room there, or set TMPDIR"):
        media.probe(fed(tmp_path / "pipe", b"x"))


PROGRAM = "from lipdub.cli.app import main; main()"


@pytest.mark.parametrize("writing", ["nobody", "forever"])
@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_waiting_for_a_pipe_hears_the_end(tmp_path: Path, temporary: Path, number: signal.Signals, writing: str) -> None:
    draw_video(tmp_path / "clip.mp4", frames=5)
    pipe = tmp_path / "speech.wav"
    os.mkfifo(pipe)
    stop = threading.Event()

    def write() -> None:
        with suppress(BrokenPipeError), open(pipe, "wb", buffering=0) as end:
            while not stop.wait(0.01):
                end.write(b"x" * 1000)

    if writing == "forever":
        threading.Thread(target=write, daemon=True).start()
    before = sorted(os.listdir(tmp_path))
    words = ["sync", "clip.mp4", "speech.wav", "-o", "out.mp4", "-q", "--no-cache"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        until, seen = time.monotonic() + 60, 0
        while seen < 10:  # opening any file looks like this for a moment
            seen = seen + 1 if (any(temporary.iterdir()) if writing == "forever" else _waits_for_a_pipe(process.pid)) else 0
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    stop.set()
    assert (process.returncode, said) == (130, "stopped; nothing was written\n")
    assert sorted(os.listdir(tmp_path)) == before


def _waits_for_a_pipe(pid: int) -> bool:
    try:
        return "fifo" in Path(f"/proc/{pid}/wchan").read_text() or Path(f"/proc/{pid}/syscall").read_text().startswith("257 ")
    except OSError:
        return False
