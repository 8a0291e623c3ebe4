"""Makefile: what its recipes call exists. `make bundle` takes hours, so a wrong option in its last third would be found late."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from commands import unknown_options

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def recipe(*words: str) -> list[list[str]]:
    """The commands that make would run, each as its words."""
    said = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = re.sub(r"\\\n\s*", " ", said)
    plain = re.sub(r"\$\([^()]*\)", " ", lines)  # what the shell would put in
    return [shlex.split(part) for line in plain.splitlines() for part in line.split("||")]


def test_every_lipdub_command_of_make_bundle_takes_its_options() -> None:
    lines = recipe("bundle", "TRAIN=train", "VAL=val", "OUT=out", "MANIFEST=all.csv", "SCALE=0.01")
    commands = [words[1:] for words in lines if words and words[0].endswith("/lipdub")]
    assert len(commands) >= 9
    for words in commands:
        assert unknown_options(words) == set(), words


def test_weights_that_make_bundle_sets_exist() -> None:
    pytest.importorskip("torch")
    from lipdub.train.generator_stage import GeneratorWeights

    (generator,) = (words for words in recipe("bundle", "TRAIN=train", "VAL=val", "OUT=out") if "generator" in words)
    named = [words.partition("=")[0] for before, words in pairwise(generator) if before == "--weight"]
    assert named
    assert set(named) <= set(GeneratorWeights.__dataclass_fields__)
