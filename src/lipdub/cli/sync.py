"""``lipdub sync``: dub one video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipdub.cli.commands import Command
from lipdub.cli.console import NOTHING_DUBBED_CODE, new_table, paragraphs, progress, results, say, stoppable
from lipdub.options import DubOptions

if TYPE_CHECKING:
    from lipdub.records import DubReport

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub sync talk.mp4 german.wav -o talk_de.mp4
  lipdub sync portrait.jpg speech.mp3 -o speaking.mp4
  lipdub sync film.mkv other_language.mkv -o dubbed.mkv --silence keep --report report.json
  lipdub sync talk.mp4 -o talk_de.mp4 --face 1 --speech anna.wav --face 2 --speech ben.wav
""")


class SyncCommand(Command):
    """``sync``, which takes pairs of ``--face`` and ``--speech`` for SPEECH, --face and --also."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As a command does, once the pairs are gone."""
        return super().parse_args(ctx, _without_pairs(args))


def _without_pairs(words: Sequence[str]) -> list[str]:
    """``--face 1 --speech a.wav --face 2 --speech b.wav`` as ``a.wav --face 1 --also 2=b.wav``. Raises BadParameter."""
    found: dict[str, list[str]] = {"--face": [], "--speech": []}
    rest, left = [], iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name not in found:
            rest.append(word)
        elif (given := value if equals else next(left, None)) is not None:
            found[name].append(given)
    faces, speeches = found["--face"], found["--speech"]
    if not speeches:
        return list(words)
    if len(faces) != len(speeches) and (faces or len(speeches) > 1):
        raise typer.BadParameter("give a --face for each --speech, as in --face 1 --speech a.wav --face 2 --speech b.wav")
    also = ";".join(f"{face}={speech}" for face, speech in zip(faces[1:], speeches[1:], strict=True))
    return [*rest, speeches[0], *(["--face", faces[0]] if faces else []), *(["--also", also] if also else [])]


def sync(
    video: Annotated[Path, typer.Argument(help="Video of a person speaking, or a photo.")],
    speech: Annotated[Path, typer.Argument(help="The new speech: any file with sound, a video, too.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Dubbed video to write: .mp4, .mov, .mkv or .webm.")],
    options: DubOptions,
    speech_of: Annotated[
        list[str] | None,
        typer.Option("--speech", metavar="FILE", rich_help_panel="Faces", help="In place of SPEECH: the speech of the --face before it."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Look for the face anew, and keep nothing of it for the next language; see lipdub cache.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write what was done as JSON to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table; warnings are kept.")] = False,
) -> None:
    """Redraw the mouth in VIDEO so that it speaks SPEECH. All other pixels, the timing and the sound stay as they are.

    Exit codes: 0; 1 for an error; 2 for wrong usage; 3 where the output was written, but nothing was dubbed in it (no frame can be redrawn,
    or none while the speech sounds); 130 for Ctrl-C. Warnings are printed with --quiet, too.
    """
    del speech_of  # SyncCommand has made SPEECH and --also of it
    with stoppable():
        from lipdub.faces.cache import default_cache
        from lipdub.pipeline import dub
        from lipdub.reports import check_report, write_report

        if report is not None:
            check_report(report, inputs=[video, speech], output=output, force=options.force)
        with progress(quiet=quiet) as tell:
            done = dub(video, speech, output, options, cache=None if no_cache else default_cache(), on_progress=tell)
    if report is not None:
        write_report(done, report)
    if not quiet:
        show(done)
    for warning in done.warnings:
        say(f"warning: {warning.line}")
    if done.nothing_dubbed:
        raise typer.Exit(NOTHING_DUBBED_CODE)


def show(report: DubReport) -> None:
    """One table: what was done, what was passed through and why, where the time went."""
    table = new_table(f"dubbed {report.output}")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("frames", f"{report.frames} ({report.output_s:.2f} s)")
    table.add_row("dubbed", f"{report.dubbed}, of them {report.silent_frames} in pauses (--silence {report.options.silence})")
    table.add_row("mouths", _mouths(report))
    table.add_row("passed through", _passed(report))
    if report.copied:
        table.add_row("copied", f"{report.copied} frames, as the video has them coded")
    table.add_row("speed", f"{report.frames_per_s:.1f} frames/s, {report.wall_s:.1f} s in all")
    if report.analysis_cached:
        table.add_row("first pass", "saved: this video was analysed before (lipdub cache)")
    table.add_row("seconds per stage", ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.stage_s.items()))
    table.add_row("model", f"{report.model} on {report.provider}")
    results().print(table)


def _mouths(report: DubReport) -> str:
    if not report.painted:
        return f"drawn from {report.pages} of the person's own (lipdub references shows them)"
    why = "" if report.options.draw == "paint" else ": too few mouths are known that are open as wanted (--references adds footage)"
    return f"painted in {report.painted} of {report.frames} frames{why}"


def _passed(report: DubReport) -> str:
    if not report.spans:
        return "none"
    shown = [f"{s.start_s:.2f}-{s.end_s:.2f} s {s.why}" for s in report.spans[:4]]
    more = f" and {len(report.spans) - 4} more stretches" if len(report.spans) > 4 else ""
    return f"{report.passed_through}: {', '.join(shown)}{more}"
