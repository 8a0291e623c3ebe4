"""``lipdub lips``: what lips do in a speech, as curves for a face rig."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipdub.cli.console import paragraphs, print_line

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub lips speech.wav -o lips.csv
  lipdub lips speech.wav -o lips.json --rate 30
  lipdub sync talk.mp4 speech.wav -o dubbed.mp4 --lips lips.csv
""")


def lips(
    speech: Annotated[Path, typer.Argument(help="Any file with sound, a video, too.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .csv or .json.")],
    rate: Annotated[float, typer.Option(min=1, max=1000, help="Moments a second.")] = 60.0,
    model: Annotated[str, typer.Option(help="Model bundle whose memory listens: a name or a folder.")] = "base",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary.")] = False,
) -> None:
    """Write what the lips do in SPEECH as curves for animators, under ARKit's names: jawOpen, mouthPucker, mouthStretchLeft, ...

    0 is the resting mouth, 1 as far as people move it; `pause` tells where the speech pauses.

    lipdub sync --lips takes the file again, changed as you like: columns, cells and rows may be left out, and there the lips move as heard.
    Between two values of a column that are less than half a second apart they move in a straight line.
    """
    import csv
    import io
    import json

    from lipdub import media
    from lipdub.atomic import write_whole
    from lipdub.errors import OutputRefused
    from lipdub.model import open_model
    from lipdub.speech.lip_curves import lip_curves

    if output.suffix.lower() not in (".csv", ".json"):
        raise OutputRefused(f"cannot write '{output}': curves are written as .csv or .json; give the output one of these endings")
    media.check_file(output, inputs=[speech], force=force)
    sound = media.probe_sound(speech)
    opened = open_model(model, device="cpu")
    found = lip_curves(speech, opened.memory, rate_hz=rate, seconds=float(sound.end_s))
    rows = list(found.rows())
    if output.suffix.lower() == ".json":
        text = json.dumps({"speech": speech.name, "model": opened.spec.name, "rate_hz": rate, "moments": rows})
    else:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = table.getvalue()
    write_whole(output, text)
    if not quiet:
        print_line(f"wrote {output}: {len(rows)} moments, {rate:g} a second, {len(found.curves) - 1} shapes")
