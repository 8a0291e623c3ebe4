"""``lipdub faces``: who is in a video."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lipdub.cli.commands import STANDARD_OUTPUT, JsonFile, write_json
from lipdub.cli.console import new_table, paragraphs, print_line, progress, results

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub faces interview.mp4 -o faces.png
  lipdub sync interview.mp4 guest.wav -o dubbed.mp4 --face 2

[bold]Two people, a voice for each[/bold]
  lipdub sync interview.mp4 -o dubbed.mp4 --face 1 --speech host.wav --face 2 --speech guest.wav
""")


def faces(
    video: Annotated[Path, typer.Argument(help="Video, or a photo.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also a picture of them: .png or .jpg.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the picture if it exists.")] = False,
    json_file: JsonFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """List who is in VIDEO, the largest and longest on screen first: the numbers are those that sync --face takes."""
    from lipdub import media
    from lipdub.checkup.people_sheet import people_sheet
    from lipdub.errors import NoFaceFound
    from lipdub.faces.follow import people_of
    from lipdub.reports import check_report
    from lipdub.stages import counted

    if output is not None:
        media.check_picture(output, inputs=[video], force=force)
    if json_file is not None and json_file != STANDARD_OUTPUT:
        check_report(json_file, inputs=[video], output=output, force=force)
    info = media.probe(video)
    with progress(quiet=quiet or json_file == STANDARD_OUTPUT) as tell:
        people = people_of(video, on_frames=counted(tell, "finding faces", info.frames_guessed))
    if not people:
        raise NoFaceFound(f"no face in '{video}'; lipdub needs a face that is at least about 40 pixels high and looks at the camera")
    if output is not None:
        people_sheet(video, people, output)
    if json_file is not None:
        write_json(json.dumps([asdict(person) for person in people], indent=1), json_file)
    if quiet or json_file == STANDARD_OUTPUT:
        return
    table = new_table(f"faces of {video}", ">face", ">seconds", ">first seen", ">height", ">lips move")
    for one in people:
        table.add_row(str(one.number), f"{one.seconds:.1f}", f"{one.first_s:.1f} s", f"{one.height_px:.0f} px", f"{one.moving:.0%}")
    results().print(table)
    if output is not None:
        print_line(f"wrote {output}")
