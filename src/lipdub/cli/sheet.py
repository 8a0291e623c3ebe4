"""``lipdub sheet``: a contact sheet of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipdub.cli.console import paragraphs, print_line, progress

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub sheet talk_de.mp4 -o talk_de.png
  lipdub sheet film.mkv -o film.jpg --whole --rows 5 --columns 8
""")


def sheet(
    video: Annotated[Path, typer.Argument(help="Video, or a photo.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write: .png or .jpg.")],
    rows: Annotated[int, typer.Option(min=1, max=20, help="Rows of frames.")] = 2,
    columns: Annotated[int, typer.Option(min=1, max=20, help="Frames in a row.")] = 6,
    faces: Annotated[bool, typer.Option("--faces/--whole", help="Show the face enlarged below each frame, or the frames only.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the picture if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
) -> None:
    """Show evenly spaced frames of VIDEO in one picture, each with its time and the face below it enlarged."""
    from lipdub.checkup.sheet import contact_sheet

    with progress(quiet=quiet) as tell:
        done = contact_sheet(video, output, rows=rows, columns=columns, faces=faces, force=force, on_progress=tell)
    if not quiet:
        found = f", a face in {done.faces} of them" if faces else ""
        print_line(f"wrote {output}: {done.frames} frames{found}")
