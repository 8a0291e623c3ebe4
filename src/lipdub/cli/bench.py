"""``lipdub bench``: how fast a dub is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipdub.cli.commands import STANDARD_OUTPUT, JsonFile, write_json
from lipdub.cli.console import new_table, paragraphs, print_line, progress, results, stoppable
from lipdub.options import Device

if TYPE_CHECKING:
    from lipdub.checkup.bench import BenchReport, DubSpeed

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub bench
  lipdub bench talk.mp4 --seconds 60 --json bench.json
  lipdub bench --device cuda
""")

_ONCE = ("open", "cache")
"""Stages that take their time once, however many frames there are."""


def bench(
    video: Annotated[
        Path | None, typer.Argument(help="Video to dub; a portrait of 1280 x 720 pixels that moves a little by default.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model bundle: a name (base) or a folder.")] = "base",
    device: Annotated[Device, typer.Option(help="cuda fails, rather than falls back, where CUDA does not really load.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads of the networks; see sync.")] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How much of the video, from its start.")] = 20.0,
    json: JsonFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Dub a video twice, the second time from the cached analysis, and show frames per second of each stage and in all, and memory.

    Each dub runs in a fresh process, after a short one that is not counted. Close other programs first. Nothing is kept.
    """
    from lipdub import media
    from lipdub.checkup.bench import measure

    if json is not None and json != STANDARD_OUTPUT:
        media.check_file(json, force=force)
    with stoppable(), progress(quiet=quiet) as tell:
        report = measure(video, model=model, device=device, threads=threads, seconds=seconds, on_progress=tell)
    if json is not None:
        write_json(report.to_json(), json)
    if not quiet and json != STANDARD_OUTPUT:
        show(report)


def show(report: BenchReport) -> None:
    """The figures as a table, then what they were measured on."""
    title = f"{report.video or 'a portrait'}: {report.width} x {report.height} px, {report.first.frames} frames, {report.video_s:g} s"
    table = new_table(title, "stage", ">first dub", ">frames/s", ">dub again", ">frames/s")
    first, again = report.first, report.again
    for stage in dict.fromkeys([*first.stage_s, *again.stage_s]):
        table.add_row(stage, *_stage_cells(first, stage), *_stage_cells(again, stage))
    table.add_section()
    both = [cell for dub in (first, again) for cell in (f"{dub.wall_s:.2f} s", f"{dub.frames_per_s:.1f}")]
    table.add_row("in all", *both, style="bold")
    table.add_row("times real time", f"{report.times_real_time(first):.2f}", "", f"{report.times_real_time(again):.2f}")
    table.add_row("with start-up", f"{first.process_s:.2f} s", "", f"{again.process_s:.2f} s")
    table.add_row("peak memory", _mib(first.peak_bytes), "", _mib(again.peak_bytes))
    results().print(table)
    for line in notes(report):
        print_line(line)


def notes(report: BenchReport) -> list[str]:
    """What stands below the table."""
    lines = ["seconds per stage are busy ones; stages overlap, so they add up to more than the whole"]
    if report.first.wall_s > 0 and report.again.wall_s > 0 and report.again.analysis_cached:
        lines.append(f"another language costs {report.again.wall_s / report.first.wall_s:.0%} of the first: its analysis is kept")
    if not report.again.analysis_cached:
        lines.append("the second dub did not find the analysis of the first: 'lipdub doctor' looks at the cache")
    if report.first.dubbed < report.first.frames:
        lines.append(f"{report.first.frames - report.first.dubbed} of {report.first.frames} frames could not be dubbed")
    facts = report.machine
    lines.append(
        f"{report.model} on {report.first.provider}; {facts['processor']}, {facts['usable_cores']} of {facts['cores']} cores usable"
    )
    lines.append(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    return lines


def _stage_cells(dub: DubSpeed, stage: str) -> tuple[str, str]:
    if stage not in dub.stage_s:
        return "-", "-"
    speed = 0.0 if stage in _ONCE else dub.stage_frames_per_s(stage)
    return f"{dub.stage_s[stage]:.2f} s", f"{speed:,.0f}" if speed else "-"


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.0f} MiB"
