"""``lipdub batch``: dub all rows of a manifest."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipdub.cli.batch_view import BatchView, clock_s, name_of
from lipdub.cli.console import NOTHING_DUBBED_CODE, new_table, paragraphs, print_line, results, say
from lipdub.errors import LipdubError, ManifestError
from lipdub.options import DubOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lipdub.batch import Manifest, Pool, State, Step

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub batch manifest.csv --dry-run
  lipdub batch manifest.csv --jobs 4 --retry 1
  lipdub batch manifest.jsonl --ray auto
[bold]A manifest[/bold]
  video,speech,output,fit,report
  talk.mp4,german.wav,talk_de.mp4,,
  talk.mp4,french.wav,talk_fr.mp4,speech,talk_fr.json
Further columns: every option of lipdub sync by its name. Paths start from the manifest's folder; URLs such as s3://bucket/talk.mp4 \
are taken, too. As JSON lines (.jsonl), one object a line with the same names.
[bold]Stopped, killed, switched off?[/bold]
Run the same command again: what is finished and unchanged is not done again. The state is in MANIFEST.state.jsonl.
""")

PANEL = "Options of lipdub sync, for rows that leave them empty"
HELPS = {
    "threads": "Left away, --jobs share the cores out.",
    "strict": "Rows with a frame that cannot be dubbed fail, unless they say strict=false.",
    "force": "Replace outputs that are not of this batch, unless their row says force=false.",
}


def batch(
    manifest: Annotated[
        Path, typer.Argument(help="CSV (UTF-8) or JSON lines with the columns video, speech, output and, if wanted, options of sync.")
    ],
    defaults: DubOptions,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=1024, help="Rows at once on this machine.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run the rows on a Ray cluster: auto, local, or ray://HOST:10001. Needs lipdub\\[ray]."),
    ] = None,
    retry: Annotated[int, typer.Option(min=0, max=100, help="Try a failed row again, so many times, where that may help.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Do all rows again, finished ones, too.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Pass over rows whose output is there but not of this batch, instead of refusing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and about how long it would take; write nothing.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Look for the faces anew in every row, and keep nothing of it; see lipdub cache.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no table; failing rows and warnings are named all the same.")
    ] = False,
) -> None:
    """Dub all rows of MANIFEST. All are checked before the first one starts; what is finished and unchanged is not done again.

    A row that fails is named and passed over; the exit code is 1 then. Else it is 3 if there are rows in whose output nothing was dubbed
    (no frame can be redrawn, or none while the speech sounds); the state calls them nothing-dubbed.
    """
    if ray is not None and jobs > 1:
        raise typer.BadParameter("--jobs is for this machine; with --ray the cluster says how many rows run at once")
    from lipdub.batch import State, batch_lock, lock_path, make_plan, run
    from lipdub.faces.cache import default_cache
    from lipdub.records import NOTHING_DUBBED

    cache = not no_cache and default_cache() is not None
    # Without a lock, a dry run may look at a batch that is running; without a file, there is nothing to lock.
    with nullcontext() if dry_run or not manifest.is_file() else batch_lock(manifest):
        state = State(manifest)
        if state.damaged and not quiet:
            say(f"note: {state.damaged} lines of {state.path.name} cannot be read; their rows are judged by the other lines")
        checked = _checked(manifest, defaults, state, skip_existing)
        plan = make_plan(checked, state, restart=restart, skip_existing=skip_existing)
        if dry_run:
            _show_plan(plan, checked, jobs=jobs if ray is None else None, cache=cache)
            return
        view = BatchView(plan, quiet=quiet)
        try:
            pool = _pool(ray, jobs, plan)
            with view.shown():
                run(plan, pool, state, view, retry=retry, cache=cache, lock=lock_path(manifest).absolute())
        except KeyboardInterrupt:
            view.summarise()
            left = view.left_rows()
            say(f"stopped; {left} rows are left and what was written is kept. Run the same command again to go on")
            raise typer.Exit(130) from None
        view.summarise()
    if not all(result.ok for _, result in view.results):
        raise typer.Exit(1)
    if any(state.entries[step.key].state == NOTHING_DUBBED for step in plan):
        raise typer.Exit(NOTHING_DUBBED_CODE)


def _checked(manifest: Path, defaults: DubOptions, state: State, skip_existing: bool) -> Manifest:
    """The manifest, with every problem said on its own line before the error."""
    from lipdub.batch import check_manifest

    try:
        return check_manifest(manifest, defaults, owned=lambda place, now: state.wrote(place, now) is not None, keep_existing=skip_existing)
    except ManifestError as error:
        if len(error.problems) > 1:  # a single one is in the error's own line
            for problem in error.problems:
                say(problem)
        raise


def _pool(ray: str | None, jobs: int, plan: Sequence[Step]) -> Pool:
    from lipdub.batch import Workers

    if ray is None:
        return Workers(jobs)
    from lipdub.batch.cluster import RayPool

    return RayPool(ray, devices={step.row.options.device for step in plan if step.to_do})


WORDS = {
    "dub": "to dub",
    "redo": "to dub again",
    "report": "report to write",
    "keep": "done and unchanged",
    "skip": "skipped",
}


def _show_plan(plan: Sequence[Step], manifest: Manifest, *, jobs: int | None, cache: bool) -> None:
    """What a run would do, row by row but for those that are done, and an estimate of the time."""
    from rich.text import Text

    table = new_table(f"plan for {manifest.path}; nothing was written", ">line", "output", "plan", "why")
    shown = [step for step in plan if step.action != "keep"]
    for step in shown:
        table.add_row(str(step.row.line), Text(name_of(step)), WORDS[step.action], Text(step.why))
    if shown:
        results().print(table)
    counts = {action: sum(step.action == action for step in plan) for action in WORDS}
    print_line(", ".join(f"{count} {WORDS[action]}" for action, count in counts.items() if count))
    to_do = [step for step in plan if step.to_do]
    if not to_do:
        return
    from lipdub.batch.estimate import estimate

    try:
        found = estimate(to_do, cache=cache)
    except LipdubError as error:
        print_line(f"no estimate of the time: {error}")
        return
    shared = "shared by the cluster" if jobs is None else f"about {clock_s(found.work_s / jobs)} with {jobs} at once"
    guessed = f"; {found.unknown} rows taken as the average of the others" if found.unknown else ""
    print_line(
        f"estimate: {clock_s(found.work_s)} of work for {clock_s(found.output_s)} of output, {shared}. Measured on the first "
        f"{found.tried_s:.1f} s of line {found.line}, scaled by pixels and length{guessed}"
    )
