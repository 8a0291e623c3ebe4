"""``lipdub adapt``: a bundle made for one person, from one's own video."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipdub.cli.console import new_table, paragraphs, print_line, progress, results, say, stoppable
from lipdub.options import Device

if TYPE_CHECKING:
    from lipdub.train.adapt import Adapted
    from lipdub.train.held_out import Judged

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub adapt anna_speaks.mp4 -o models/anna --sheet anna.png
  lipdub sync anna_lecture.mp4 german.wav -o anna_german.mp4 --model models/anna
""")


def adapt(
    video: Annotated[
        Path, typer.Argument(help="Video of the person: at least 10 seconds of speech to the camera; up to 5 minutes are used.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write; sync takes it as --model.")],
    model: Annotated[str, typer.Option(help="Bundle to begin with: a name (base) or a folder.")] = "base",
    minutes: Annotated[float, typer.Option(min=0.1, help="Time to train at most; following the face comes on top.")] = 5.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to train at most; no limit by default.")] = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = "auto",
    sheet: Annotated[Path | None, typer.Option(help="Write a picture (.png, .jpg) of held-out frames: true, before, after.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle and a sheet that are there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Fine-tune a bundle on the person in VIDEO, in minutes. The last fifth of the video is held out: it decides when to stop.

    Never worse than the bundle it begins with on that part: where it cannot be made better, the new bundle holds the old weights, says so,
    and the exit code is 0 all the same.
    """
    from lipdub.train.adapt import AdaptSettings
    from lipdub.train.adapt import adapt as adapt_to

    def on_judged(step: int, judged: Judged) -> None:
        if not quiet:
            r = "" if judged.r is None else f", opening r {judged.r:.2f}, articulation {judged.articulation:.2f}"
            say(f"step {step}: error around the mouth {judged.l1:.2f} grey levels{r}")

    with stoppable(), progress(quiet=quiet) as tell:
        done = adapt_to(
            video, output, model=model, settings=AdaptSettings(minutes=minutes, steps=steps), device=device, sheet=sheet,
            command=shlex.join(["lipdub", *sys.argv[1:]]), force=force, on_progress=tell, on_judged=on_judged,
        )  # fmt: skip
    if done.kept_base:
        say(f"nothing better than {done.adapted_from} was found in {done.steps} steps: '{output}' holds its weights as they are")
    if not quiet:
        show(done, output)


def show(done: Adapted, output: Path) -> None:
    """One table: the held-out part before and after."""
    title = f"wrote {output} ({done.bytes / 2**20:.1f} MiB), from {done.adapted_from}"
    table = new_table(title, "held-out part", "before", "after")
    gain = "" if done.kept_base else f" ({-done.gain:+.0%})"
    table.add_row("error around the mouth, grey levels", f"{done.before.l1:.2f}", f"{done.after.l1:.2f}{gain}")
    for label, figure in (("opening: r", "r"), ("opening: articulation", "articulation")):
        both = (getattr(done.before, figure), getattr(done.after, figure))
        table.add_row(label, *("too few frames" if value is None else f"{value:.2f}" for value in both))
    results().print(table)
    parity = "".join(f"; {graph} differs from torch by {value:.1e}" for graph, value in done.differences.items())
    print_line(
        f"learned from {done.learned_s:.0f} s, judged on {done.held_out_s:.0f} s; {done.steps} steps in {done.wall_s:.0f} s in all, "
        f"weights of step {done.best_step}, stopped: {done.stopped}{parity}"
    )
