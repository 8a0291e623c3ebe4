"""What all commands share beyond Typer's own: usage lines with ``VIDEO SPEECH``, help that narrow terminals can show, and ``--json``."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

NARROW = 84
"""Columns below which Typer's tables cut off the names of options."""
STANDARD_OUTPUT = Path("-")
JSON = "--json"

JsonFile = Annotated[
    Path | None,
    typer.Option(JSON, metavar="[FILE]", help="Write the result as JSON to FILE; without FILE, to standard output in place of the table."),
]
"""The option ``--json``, which means the same in every command that has it."""


def write_json(text: str, file: Path) -> None:
    """Write what `JsonFile` asks for, checked before. Raises WriteFailed."""
    from lipdub.atomic import write_whole

    if file == STANDARD_OUTPUT:
        typer.echo(text.rstrip("\n"))
    else:
        write_whole(file, text)


class Command(TyperCommand):
    """A command of lipdub's. Its arguments are called by their names in capitals."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        for argument in _arguments(self):
            argument.metavar = argument.metavar or argument.name.upper()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does, with ``-`` for the file of a ``--json`` that has none."""
        return super().parse_args(ctx, list(_with_json_file(args)))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """``[OPTIONS] VIDEO SPEECH``."""
        named = (f"{one.metavar}{'...' if one.nargs != 1 else ''}" for one in _arguments(self))
        return ["[OPTIONS]", *(name if one.required else f"[{name}]" for name, one in zip(named, _arguments(self), strict=True))]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As Typer does, where there is room for it."""
        if not _narrow_help(self, ctx, formatter):
            super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A command that holds others."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As Typer does, where there is room for it."""
        if not _narrow_help(self, ctx, formatter):
            super().format_help(ctx, formatter)


def _narrow_help(command: Any, ctx: Any, formatter: Any) -> bool:
    """Write help that a narrow terminal can show; False, and nothing written, where the terminal is wide."""
    narrow = columns() < NARROW
    if narrow:
        formatter.write("\n".join(_narrow(command, ctx)) + "\n")
    return narrow


def columns() -> int:
    """Columns that help may take."""
    asked = os.environ.get("TERMINAL_WIDTH", "")
    return int(asked) if asked.isdigit() else shutil.get_terminal_size().columns


def _arguments(command: TyperCommand) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "argument"]


def _with_json_file(words: Iterable[str]) -> Iterator[str]:
    waiting = False
    for word in words:
        if waiting and word.startswith("-") and word != str(STANDARD_OUTPUT):
            yield str(STANDARD_OUTPUT)
        waiting = word == JSON
        yield word
    if waiting:
        yield str(STANDARD_OUTPUT)


def _narrow(command: Any, ctx: Any) -> Iterator[str]:
    """The lines of the help, each name above what it means, none longer than the terminal is wide."""
    yield from _wrapped(f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}", 0, hang=2)
    for paragraph in (command.help or "").split("\n\n"):
        yield ""
        yield from _wrapped(_plain(paragraph), 0)
    for heading, parameters in _panels(command, ctx).items():
        yield from ("", *_wrapped(f"{heading}:", 0))
        for one in parameters:
            names, meaning = one.get_help_record(ctx)
            yield from _wrapped(names if len(names) < columns() - 2 else names.replace("|", "| "), 2)
            yield from _wrapped(_plain(one.help or "") + meaning.removeprefix(one.help or ""), 4)
    if isinstance(command, TyperGroup):
        yield from ("", "Commands:")
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            yield f"  {name}"
            yield from _wrapped(_plain(below.get_short_help_str(limit=400)) if below is not None else "", 4)
    yield ""
    for line in (command.epilog or "").split("\n\n"):
        yield from _wrapped(_plain(line), 2, hang=2)


def _panels(command: Any, ctx: Any) -> dict[str, list[Any]]:
    """The parameters that help shows, by the heading that they stand under."""
    found: dict[str, list[Any]] = {}
    for one in command.get_params(ctx):
        if one.get_help_record(ctx) is not None:
            heading = getattr(one, "rich_help_panel", None) or ("Arguments" if one.param_type_name == "argument" else "Options")
            found.setdefault(heading, []).append(one)
    return found


def _wrapped(text: str, indent: int, *, hang: int = 0) -> list[str]:
    """`text` as lines that begin `indent` columns in, all but the first `hang` more."""
    space = " " * indent
    return textwrap.wrap(
        text, max(20, columns()), initial_indent=space, subsequent_indent=space + " " * hang, break_on_hyphens=False, break_long_words=True
    )


def _plain(markup: str) -> str:
    """Text without rich's markup."""
    from rich.text import Text

    return " ".join(Text.from_markup(markup).plain.split())
