"""Files and folders that appear whole or not at all, and the one error where they cannot be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lipdub.atomic import files_into, part_file, remove_leftovers, whole_file, whole_folder, write_whole
from lipdub.bundles import bundle
from lipdub.errors import LipdubError, WriteFailed
from lipdub.reports import write_content


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_part_files(tmp_path: Path) -> None:
    out = tmp_path / ("ü" * 120 + ".mkv")
    with part_file(out) as one, part_file(out) as two:
        assert one != two
        assert one.name.startswith(".ü")
        assert one.name.endswith(".lipdub-part.mkv")
        one.write_text("x")
    assert list(tmp_path.iterdir()) == []


_INTERRUPTED = """
import sys
from pathlib import Path

from lipdub import atomic

def interrupted(*_):
    raise KeyboardInterrupt

atomic._locked = interrupted
with getattr(atomic, sys.argv[1])(Path(sys.argv[2])):
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="parts are not locked there")
@pytest.mark.parametrize("way", ["part_file", "whole_file", "whole_folder", "files_into"])
def test_an_interrupt_between_making_a_part_and_minding_it_leaves_nothing(tmp_path: Path, way: str) -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED, way, str(tmp_path / "a")], capture_output=True, check=False)
    assert b"KeyboardInterrupt" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("content", "written"), [("ü\n", b"\xc3\xbc\n"), (b"\0\xff", b"\0\xff"), ("", b"")])
def test_a_file_is_written_and_replaced(tmp_path: Path, content: str | bytes, written: bytes) -> None:
    for _ in range(2):
        write_whole(tmp_path / "a.json", content)
        assert (tmp_path / "a.json").read_bytes() == written
        assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_whole(Path("a"), "x")
    assert os.listdir(tmp_path) == ["a"]


def test_file_and_folder_are_on_the_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("folder" if os.path.isdir(f"/dev/fd/{handle}") else "file"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda part, out: (done.append("rename"), rename(part, out)))
    write_whole(tmp_path / "a", "x")
    assert done[:2] == ["file", "rename"]
    if os.name == "posix":
        assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    out = tmp_path / "a.png"
    out.write_bytes(b"old")
    monkeypatch.setattr(os, at, no_space)
    with pytest.raises(WriteFailed, match=r"^cannot write '.*a\.png': No space left on device; check the free space and the folder$"):
        write_whole(out, b"new")
    assert (out.read_bytes(), os.listdir(tmp_path)) == (b"old", ["a.png"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, LipdubError])
@pytest.mark.parametrize("whole", [whole_file, whole_folder, files_into])
def test_whatever_ends_the_block_leaves_what_was_there(tmp_path: Path, error: type[BaseException], whole: Callable[..., object]) -> None:
    out = tmp_path / "out"

    def stopped() -> None:
        with whole(out) as part:  # type: ignore[attr-defined]
            (part if whole is whole_file else part / "a").write_bytes(b"half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        stopped()
    assert os.listdir(tmp_path) == []


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with whole_folder(tmp_path / "v1.0") as part:
            (part / name).write_text(name)
        assert [file.name for file in tmp_path.rglob("*")] == ["v1.0", name]


def test_files_go_into_a_folder_that_holds_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with files_into(tmp_path / "out") as part:
            (part / name).write_text(name)
            (part / "both").write_text(name)
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b", "both"]
    assert (tmp_path / "out" / "both").read_text() == "b"
    assert os.listdir(tmp_path) == ["out"]


def test_leftovers_are_told_from_what_is_not_ours(tmp_path: Path) -> None:
    with part_file(tmp_path / "a.npz") as part:
        pass
    part.touch()
    for name in ("mine.part", ".hidden", "a.lipdub-part.npz"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a.lipdub-part.npz", "mine.part"]


def test_a_report_that_cannot_be_written_says_that_the_dub_was(tmp_path: Path) -> None:
    with pytest.raises(
        WriteFailed, match=r"^'talk\.mp4' was written, but not the report '.*none/r\.json': No such file.*; check the free space"
    ):
        write_content({"output": "talk.mp4"}, tmp_path / "none" / "r.json")


def test_a_bundle_description_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bundle.load_spec(bundle.resolve("base"))
    for graph in bundle.TENSORS:
        (tmp_path / graph).write_bytes(b"graph")
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(WriteFailed, match=r"bundle\.json.*No space left"):
        bundle.finish(tmp_path, replace(spec, graphs={}))
    assert sorted(os.listdir(tmp_path)) == sorted(bundle.TENSORS)


def test_it_loads_the_standard_library_only() -> None:
    code = "import sys; import lipdub.atomic; print(*(name for name in ('numpy', 'av', 'cv2', 'PIL', 'ffmpeg') if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
