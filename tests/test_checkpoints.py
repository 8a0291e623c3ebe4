"""Checkpoints: whole or not at all, and never run as code."""

from __future__ import annotations

import errno
import os
import pickle
from contextlib import suppress
from pathlib import Path

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipdub.errors import CheckpointInvalid, WriteFailed
from lipdub.train import checkpoints

CONTENT = {"settings": {"network": {"slots": 12}, "rate": 1e-3}, "step": 3, "modules": {"a": {"w": torch.arange(6.0)}}}


class Trojan:
    """Pickles into a call of os.system."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "new" / "latest.pt"
    checkpoints.save(path, CONTENT)
    loaded = checkpoints.load(path)
    assert loaded["settings"] == CONTENT["settings"]
    assert torch.equal(loaded["modules"]["a"]["w"], torch.arange(6.0))
    assert [file.name for file in path.parent.iterdir()] == ["latest.pt"]


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("deep", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path: Path, as_zip: bool, deep: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "trojan.pt"
    content: object = {"lipdub_checkpoint": 1, "modules": {"memory": Trojan(mark)}} if deep else Trojan(mark)
    if as_zip:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointInvalid, match=r"would run code when loaded" if as_zip else "is no checkpoint") as caught:
        checkpoints.load(path)
    assert not mark.exists()
    assert "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Trojan(mark)))  # the trojan is one
    assert mark.exists()


def test_no_file_text_another_zip_and_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are my notes\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"lipdub_checkpoint": 99}, tmp_path / "newer.pt")
    for name in ("missing.pt", ".", "notes.txt", "empty.pt", "foreign.pt", "list.pt", "newer.pt"):
        with pytest.raises(CheckpointInvalid, match=r"give (one|a checkpoint) that lipdub train wrote") as caught:
            checkpoints.load(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "c.pt"
    checkpoints.save(path, CONTENT)
    return path.read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, whole: bytes, share: float) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointInvalid):
        checkpoints.load(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 0.999), noise=st.binary(min_size=1, max_size=12))
def test_a_damaged_checkpoint_is_refused_or_loads(tmp_path: Path, whole: bytes, at: float, noise: bytes) -> None:
    """Whatever bytes are hit, no other exception gets out."""
    path, first = tmp_path / "hit.pt", int(at * len(whole))
    path.write_bytes(whole[:first] + noise + whole[first + len(noise) :])
    with suppress(CheckpointInvalid):
        assert isinstance(checkpoints.load(path), dict)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x04\x95"]))
def test_noise_is_refused(tmp_path: Path, noise: bytes, start: bytes) -> None:
    path = tmp_path / "noise.pt"
    path.write_bytes(start + noise)
    with pytest.raises(CheckpointInvalid):
        checkpoints.load(path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = tmp_path / "latest.pt"
    checkpoints.save(path, CONTENT)
    before = path.read_bytes()

    def half(content: object, part: Path) -> None:
        Path(part).write_bytes(before[: len(before) // 2])
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(WriteFailed, match="the previous checkpoint is untouched"):
        checkpoints.save(path, {"step": 4})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["latest.pt"]


def test_ctrl_c_while_saving_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest.pt"
    checkpoints.save(path, CONTENT)

    def stopped(content: object, part: Path) -> None:
        Path(part).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, {"step": 4})
    monkeypatch.undo()
    assert checkpoints.load(path)["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["latest.pt"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailed, match="cannot write"):
        checkpoints.save(tmp_path / "file" / "latest.pt", CONTENT)


def test_other_settings_are_named_one_by_one(tmp_path: Path) -> None:
    saved = {"rate": 1e-3, "network": {"slots": 12, "mel": {"hop": 200}}, "batch": 4}
    checkpoints.require_same(tmp_path, saved, {"rate": 1e-3, "network": {"slots": 12, "mel": {"hop": 200}}})
    with pytest.raises(CheckpointInvalid, match=r"network\.mel\.hop: 200 there, 160 now; seed: None there, 1 now") as caught:
        checkpoints.require_same(tmp_path, saved, {"network": {"slots": 12, "mel": {"hop": 160}}, "batch": 4, "seed": 1})
    assert "slots" not in str(caught.value)
