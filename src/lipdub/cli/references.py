"""``lipdub references``: the mouths that a dub of a video can draw from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipdub.cli.console import paragraphs, print_line, progress

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub references talk.mp4 -o bank.png
""")


def references(
    video: Annotated[Path, typer.Argument(help="Video of the person.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write: .png or .jpg.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the picture if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
) -> None:
    """Show the person's own mouths that a dub of VIDEO draws from, by how wide and how far open they are."""
    from lipdub.checkup.bank_sheet import bank_sheet
    from lipdub.faces.cache import default_cache

    with progress(quiet=quiet) as tell:
        done = bank_sheet(video, output, force=force, cache=default_cache(), on_progress=tell)
    if not quiet:
        print_line(
            f"wrote {output}: {done.usable} of {done.pages} mouths can be drawn from, {done.dubbed} of {done.frames} frames are redrawn"
        )
