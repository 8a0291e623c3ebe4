"""Command lines of `lipdub`: run in this process, and held against the commands that there are."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from lipdub.cli.app import app, main
from lipdub.stages import ENDING


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@contextmanager
def in_this_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """A function that runs `lipdub` with arguments; the handlers of signals that it sets go when the block is left."""
    before = {number: signal.getsignal(number) for number in ENDING}

    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["lipdub", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr()
        return Ran(int(left.value.code or 0), said.out, said.err)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def unknown_options(words: Sequence[str]) -> set[str]:
    """The options among the words after `lipdub` that its command does not have. Raises KeyError: there is no such command."""
    command = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        command = command.commands[rest.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
    return {word.partition("=")[0] for word in rest if word.startswith("-")} - known
