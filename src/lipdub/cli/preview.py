"""``lipdub preview``: a moment of a dub."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from lipdub.cli.console import paragraphs, print_line, progress, say, stoppable
from lipdub.options import DubOptions
from lipdub.times import Range, parsed_ranges, seconds_of

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub preview film.mkv german.wav 1:02:30 -o moment.png
  lipdub preview film.mkv german.wav 10-14 -o moment.mp4 --strength 0.8
""")


def preview(
    video: Annotated[Path, typer.Argument(help="Video of a person speaking, or a photo.")],
    speech: Annotated[Path, typer.Argument(help="The new speech.")],
    time: Annotated[str, typer.Argument(help="A time of the video, 12.5 or 1:02:30, or a range, 10-14.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Of a time a picture, .png or .jpg; of a range a video.")],
    options: DubOptions,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings are kept.")] = False,
) -> None:
    """Show a moment of a dub before a long run: only the seconds around it are looked at.

    A picture shows source and result, where the mask and the lips are, and the mouth that was drawn from. All options are those of sync.
    """
    moment = _moment(time)
    with stoppable():
        from lipdub.checkup import preview as showing

        with progress(quiet=quiet) as tell:
            done = showing.preview(video, speech, output, moment, options, on_progress=tell)
    if not quiet:
        print_line(f"wrote {output}: {done.dubbed} of {done.frames} frames dubbed, {done.wall_s:.1f} s")
    for warning in done.warnings:
        say(f"warning: {warning.line}")


def _moment(time: str) -> Range | float:
    try:
        if "-" not in time:
            return seconds_of(time)
        spans = parsed_ranges(time)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TIME") from error
    if len(spans) != 1 or spans[0].end_s == math.inf:
        raise typer.BadParameter("give one range with an end, as in 10-14", param_hint="TIME")
    return spans[0]
