"""``lipdub doctor``: what this machine has, and what to do about what is missing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lipdub.cli.commands import STANDARD_OUTPUT, JsonFile, write_json
from lipdub.cli.console import errors, paragraphs, print_line, results, stoppable
from lipdub.errors import OutputRefused

if TYPE_CHECKING:
    from lipdub.checkup.doctor import Finding

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub doctor
  lipdub doctor --no-dub
  lipdub doctor --json > doctor.json
""")

_WORDS = {"green": "ok", "yellow": "note", "red": "bad"}
_NAME_WIDTH = 24


def doctor(
    dub: Annotated[bool, typer.Option("--dub/--no-dub", help="End with a dub of ten seconds made for the purpose.")] = True,
    json_file: JsonFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Look at what lipdub needs on this machine, prove it by using it, and say what to do about each bad line.

    Exit code 1 if any line is bad.
    """
    from lipdub.checkup.doctor import examine

    if json_file is not None and json_file != STANDARD_OUTPUT and not force and os.path.lexists(json_file):
        raise OutputRefused(f"'{json_file}' exists already; add --force to replace it, or choose another name")

    found: list[Finding] = []
    with stoppable("stopped"), errors().status("looking", refresh_per_second=4) as status:
        for finding in examine(dub=dub, on_look=lambda name: status.update(f"looking at: {name}")):
            found.append(finding)
            if json_file != STANDARD_OUTPUT:
                _show(finding)
    bad = [finding.name for finding in found if finding.colour == "red"]
    if json_file is not None:
        from lipdub import __version__

        content = {"lipdub": __version__, "works": not bad, "findings": [asdict(finding) for finding in found]}
        write_json(json.dumps(content, ensure_ascii=False, indent=2) + "\n", json_file)
    if json_file == STANDARD_OUTPUT:
        pass
    elif bad:
        results().print(f"{len(bad)} of {len(found)} lines are bad: {', '.join(dict.fromkeys(bad))}", style="red", markup=False)
    else:
        results().print("nothing is bad: lipdub works here")
    if bad:
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    from rich.table import Table
    from rich.text import Text

    if not results().is_terminal:  # one line each, whatever their length, for whoever reads a log
        then = f" -> {finding.fix}" if finding.fix else ""
        print_line(f"{_WORDS[finding.colour]:<5}{finding.name:<{_NAME_WIDTH}} {finding.what}{then}")
        return
    line = Table.grid(padding=(0, 1))
    line.add_column(width=4)
    line.add_column(width=_NAME_WIDTH)
    line.add_column(overflow="fold")
    line.add_row(Text(_WORDS[finding.colour], f"bold {finding.colour}"), Text(finding.name), Text(finding.what))
    if finding.fix:
        line.add_row("", "", Text(f"-> {finding.fix}", finding.colour))
    results().print(line)
