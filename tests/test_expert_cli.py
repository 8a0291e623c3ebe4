"""The expert on the command line: training it, training a generator against it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from test_expert import TOY, USE
from toys import COMPACT, write_clips

from lipdub.cli.app import main
from lipdub.stages import ENDING
from lipdub.train import checkpoints, expert_network, networks
from lipdub.train.expert_network import SyncNet
from lipdub.train.networks import LipMemory

QUICK = ("--batch", "2", "--workers", "0", "--accelerator", "cpu", "--validate-every", "2", "--steps", "2")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `lipdub` in this process, with toy networks behind its presets: (exit code, standard output, standard error)."""
    monkeypatch.setitem(networks.PRESETS, "compact", COMPACT)
    monkeypatch.setattr(expert_network, "shipped", lambda encoder: TOY)
    before = {number: signal.getsignal(number) for number in ENDING}

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lipdub", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out, said.err

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_clips(tmp_path_factory.mktemp("toys") / "prepared", clips=4, frames=110)
    for file in folder.glob("*.npz"):
        np.save(folder / f"{file.stem}.features.npy", np.random.default_rng(0).standard_normal((230, USE.channels)).astype(np.float16))
        about = {"starts": [0, 230], "speeds": [1.0], "sha256": USE.sha256}
        (folder / f"{file.stem}.features.json").write_text(json.dumps(about))
    return folder


def an_expert(folder: Path) -> Path:
    torch.manual_seed(0)
    content = {"settings": {"stage": "expert", "network": TOY.to_dict()}, "modules": {"averaged": SyncNet(TOY).state_dict()}}
    checkpoints.save(folder / "expert.pt", content)
    return folder / "expert.pt"


def a_memory(folder: Path) -> Path:
    content = {"settings": {"stage": "memory", "network": COMPACT.to_dict()}, "modules": {"memory": LipMemory(COMPACT).state_dict()}}
    checkpoints.save(folder / "memory.pt", content)
    return folder / "memory.pt"


def test_train_expert_writes_a_run(run: Run, prepared: Path, tmp_path: Path) -> None:
    code, out, err = run("train", "expert", prepared, "-o", tmp_path / "run", *QUICK, "--weight", "windows=3", "--weight", "across=0")
    assert code == 0, err
    assert "trained" in out
    assert all(name in err for name in ("one_2", "second_5", "offset_right"))
    assert {"latest.pt", "best.pt", "pictures.png"} <= {file.name for file in (tmp_path / "run").iterdir()}
    content = checkpoints.load(tmp_path / "run" / "latest.pt")
    assert content["settings"]["weights"]["windows"] == 3
    assert content["settings"]["weights"]["across"] == 0


@pytest.mark.parametrize("wrong", ["wndows=3", "across", "across=much", "windows=2.5", "across=-1", "across=nan"])
def test_a_wrong_weight_is_refused_and_the_names_are_listed(run: Run, prepared: Path, tmp_path: Path, wrong: str) -> None:
    code, _, err = run("train", "expert", prepared, "-o", tmp_path / "run", *QUICK, "--weight", wrong)
    assert code == 2
    assert "--weight" in err
    assert not (tmp_path / "run").exists()


def test_one_window_has_nothing_to_tell_apart(run: Run, prepared: Path, tmp_path: Path) -> None:
    code, _, err = run("train", "expert", prepared, "-o", tmp_path / "run", *QUICK, "--weight", "windows=1")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: a stretch of 1 lip windows")


def test_a_generator_trains_against_the_expert(run: Run, prepared: Path, tmp_path: Path) -> None:
    expert, memory = an_expert(tmp_path), a_memory(tmp_path)
    arguments = ("train", "generator", prepared, "--memory", memory, "-o", tmp_path / "run", *QUICK, "--expert", expert)
    code, _, err = run(*arguments, "--draw-frames", "1")
    assert code == 1
    assert err.splitlines()[-1] == "error: the expert judges windows of 5 drawn frames; use --draw-frames 5"
    code, _, err = run(*arguments, "--weight", "temporal=1", "--weight", "edges=0")
    assert code == 0, err
    settings = checkpoints.load(tmp_path / "run" / "latest.pt")["settings"]
    assert settings["expert"] is True
    assert (settings["weights"]["temporal"], settings["weights"]["edges"]) == (1.0, 0.0)
