"""Command lines of `lipdub`, held against the commands that there are."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from lipdub.cli.app import app


def unknown_options(words: Sequence[str]) -> set[str]:
    """The options among the words after `lipdub` that its command does not have. Raises KeyError: there is no such command."""
    command = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        command = command.commands[rest.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
    return {word.partition("=")[0] for word in rest if word.startswith("-")} - known
