"""``lipdub batch``: dub all rows of a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipdub.cli.console import progress, results, say
from lipdub.cli.sync import DeviceChoice, FitChoice, PresetChoice, SilenceChoice
from lipdub.errors import ManifestError

if TYPE_CHECKING:
    from lipdub.batch import Row, RowResult
    from lipdub.pipeline import OnProgress

EXAMPLES = """
[bold]Examples[/bold]

  lipdub batch manifest.csv

  lipdub batch manifest.csv --crf 20 --force

[bold]A manifest[/bold]

  video,speech,output,fit,report

  talk.mp4,german.wav,talk_de.mp4,,

  talk.mp4,french.wav,talk_fr.mp4,speech,talk_fr.json

Further columns: model, device, silence, crf, preset, threads, strict, force. Paths start from the manifest's folder.
"""


def batch(
    manifest: Annotated[
        Path, typer.Argument(help="CSV file in UTF-8 with the columns video, speech, output and, if wanted, options of sync.")
    ],
    model: Annotated[str, typer.Option(help="For rows that leave it empty. Model bundle: a name (base) or a folder.")] = "base",
    device: Annotated[DeviceChoice, typer.Option(help="For rows that leave it empty; see sync.")] = DeviceChoice.auto,
    fit: Annotated[FitChoice, typer.Option(help="For rows that leave it empty; see sync.")] = FitChoice.longest,
    silence: Annotated[SilenceChoice, typer.Option(help="For rows that leave it empty; see sync.")] = SilenceChoice.close,
    crf: Annotated[int, typer.Option(min=0, max=51, help="For rows that leave it empty; see sync.")] = 14,
    preset: Annotated[PresetChoice, typer.Option(help="For rows that leave it empty; see sync.")] = PresetChoice.medium,
    threads: Annotated[int | None, typer.Option(min=1, help="For rows that leave it empty; see sync.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Rows with a frame that cannot be dubbed fail, unless they say strict=false.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace outputs that exist, unless their row says force=false.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table; failing rows are named all the same.")] = False,
) -> None:
    """Dub all rows of MANIFEST, one after the other. All rows are checked before the first one starts.

    A row that fails is named and passed over; the exit code is 1 then.
    """
    from lipdub.batch import Options, read_manifest, run

    defaults = Options(
        model=model, device=device.value, fit=fit.value, silence=silence.value, crf=crf, preset=preset.value,
        threads=threads, strict=strict, force=force,
    )  # fmt: skip
    try:
        rows = read_manifest(manifest, defaults)
    except ManifestError as error:
        if len(error.problems) > 1:  # a single one is in the error's own line
            for problem in error.problems:
                say(problem)
        raise
    done: list[RowResult] = []

    @contextmanager
    def on_row(row: Row) -> Iterator[OnProgress]:
        if not quiet:
            say(f"row {len(done) + 1} of {len(rows)}: {row.output}")
        with progress(quiet=quiet) as tell:
            yield tell

    def on_result(result: RowResult) -> None:
        done.append(result)
        if not result.ok:
            say(f"line {result.row.line} failed: {result.why}")

    try:
        run(rows, on_row=on_row, on_result=on_result)
    except KeyboardInterrupt:
        _finish(done, len(rows), quiet)
        say(f"stopped in line {rows[len(done)].line if len(done) < len(rows) else rows[-1].line}; what was written before is kept")
        raise typer.Exit(130) from None
    _finish(done, len(rows), quiet)
    if not all(result.ok for result in done):
        raise typer.Exit(1)


def _finish(done: Sequence[RowResult], count: int, quiet: bool) -> None:
    """One table: what became of each row."""
    from rich.table import Table
    from rich.text import Text

    if quiet:
        return
    table = Table(title=f"{sum(result.ok for result in done)} of {count} rows dubbed", title_justify="left")
    table.add_column("line", justify="right")
    table.add_column("output", overflow="fold")
    table.add_column("frames", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("result", overflow="fold")
    for result in done:
        frames = "-" if result.report is None else str(result.report.frames)
        what = Text(_what(result), "" if result.ok else "red")
        table.add_row(str(result.row.line), Text(str(result.row.output)), frames, f"{result.wall_s:.1f}", what)
    results().print(table)


def _what(result: RowResult) -> str:
    """What became of a row, in a few words."""
    if result.report is None or not result.ok:
        return f"failed: {result.why}"
    if result.report.dubbed == 0:
        return "no frame could be dubbed; the output shows the source untouched"
    passed = result.report.passed_through
    return f"dubbed, {passed} frames passed through" if passed else "dubbed"
