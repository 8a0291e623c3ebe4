"""``lipdub evaluate``: the scorecard of a dub, or of a model on a set of clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipdub.cli.commands import STANDARD_OUTPUT, JsonFile, write_json
from lipdub.cli.console import new_table, paragraphs, print_line, progress, results, say, stoppable
from lipdub.options import Device, Draw, Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from lipdub.evaluate.sync import PublicSync
    from lipdub.evaluate.whole_set import ClipResult, SetOptions

EXAMPLES = paragraphs("""
[bold]One finished dub[/bold]
  lipdub evaluate talk_de.mp4 --source talk.mp4 --speech german.wav -o talk_de_scorecard
  lipdub evaluate redub.mp4 --source talk.mp4 --speech talk.wav --truth talk.mp4 --json redub.json
[bold]A model on a set of clips: run again, it goes on where it stopped[/bold]
  lipdub evaluate --set clips/val --model base -o scorecards/base --jobs 2
""")


def evaluate(
    paths: Annotated[list[Path], typer.Argument(help="The finished dub; with --set, clips of one person talking, or folders of them.")],
    whole_set: Annotated[
        bool,
        typer.Option(
            "--set",
            help="Measure the model on clips: dub each second half with the first half's sound, beside ground truth, wrong audio "
            "and a frozen mouth. A manifest.csv beside a folder decides which clips (use=measure).",
        ),
    ] = False,
    source: Annotated[Path | None, typer.Option(help="The video that was dubbed.")] = None,
    speech: Annotated[Path | None, typer.Option(help="The sound that it was dubbed with.")] = None,
    truth: Annotated[Path | None, typer.Option(help="The video whose mouth really spoke that sound, where there is one.")] = None,
    model: Annotated[str, typer.Option(help="Model bundle, a name or a folder; of a finished dub: the one that drew it.")] = "base",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for scorecard.html and scorecard.json.")] = None,
    json_file: JsonFile = None,
    seconds_min: Annotated[float, typer.Option(min=0, help="--set: clips of folders that are shorter are left out.")] = 8.0,
    only: Annotated[str, typer.Option(help="--set: just the clips whose file name holds this.")] = "",
    silence: Annotated[Silence, typer.Option(help="--set: what the mouth does in pauses; see sync.")] = "close",
    draw: Annotated[Draw, typer.Option(help="--set: how mouths are drawn; see sync.")] = "auto",
    exclude_own_frame: Annotated[
        bool,
        typer.Option("--exclude-own-frame", help="--set: draw no frame from a mouth within 0.2 s of itself, so that no leak can help."),
    ] = False,
    expert: Annotated[str, typer.Option(help="Sync expert, a name or a folder.")] = "expert",
    syncnet: Annotated[Path | None, typer.Option(help="Weights of the public SyncNet (syncnet_v2.model), for LSE-D and LSE-C.")] = None,
    device: Annotated[Device, typer.Option(help="--set: where the model runs.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="--set: clips measured at the same time.")] = 1,
    pieces: Annotated[
        Path | None,
        typer.Option(help="--set: folder for what does not depend on the model; share it between runs. By default inside the output."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a scorecard that exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Score a finished dub, or a model on a whole set of clips: table, scorecard.json, and scorecard.html with pictures and curves."""
    with stoppable("stopped; clips that were finished are kept" if whole_set else "stopped; nothing was written"):
        if not whole_set:
            if len(paths) != 1 or source is None or speech is None:
                raise typer.BadParameter("give one finished dub with --source VIDEO and --speech SOUND, or clips with --set")
            _evaluate_dub(paths[0], source, speech, truth, model, expert, syncnet, output, json_file, force, quiet)
            return
        if source is not None or speech is not None or truth is not None:
            raise typer.BadParameter("--source, --speech and --truth go with one finished dub, not with --set")
        if output is None:
            raise typer.BadParameter("--set needs a folder for the results: -o FOLDER")
        from lipdub.evaluate.whole_set import OWN_FRAME_S, SetOptions, with_threads

        opened, key = _public(syncnet)
        options = SetOptions(
            model=model, out=output, pieces=pieces or output / "pieces", silence=silence, draw=draw,
            exclude_own_s=OWN_FRAME_S if exclude_own_frame else 0.0, expert=expert,
            device=device, open_public=opened, public_key=key,
        )  # fmt: skip
        _evaluate_set(paths, with_threads(options, jobs), seconds_min, only, jobs, json_file, force, quiet)


def _public(weights: Path | None) -> tuple[Callable[[], PublicSync] | None, str]:
    """What opens the public SyncNet in whatever process needs it, after it was opened once here; and a name for its weights."""
    if weights is None:
        return None, ""
    from functools import partial

    from lipdub.errors import CheckpointInvalid
    from lipdub.faces.analysis_key import content_digest

    try:
        from lipdub.train.public_syncnet import open_public_syncnet
    except ImportError as error:
        raise CheckpointInvalid('--syncnet needs torch; install it with: pip install "lipdub[train]"') from error
    open_public_syncnet(weights)
    return partial(open_public_syncnet, weights), content_digest(weights)[:12]


def _evaluate_dub(
    dubbed: Path, source: Path, speech: Path, truth: Path | None, model: str, expert: str, syncnet: Path | None,
    output: Path | None, json_file: Path | None, force: bool, quiet: bool,
) -> None:  # fmt: skip
    from lipdub.errors import OutputRefused
    from lipdub.evaluate import page
    from lipdub.evaluate.one_dub import evaluate_dub
    from lipdub.reports import check_report

    inputs = [path for path in (dubbed, source, speech, truth) if path is not None]
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputRefused(f"cannot write into '{output}': {error.strerror or error}; choose another folder") from error
        for name in page.FILES:
            check_report(output / name, inputs=inputs, output=None, force=force)
    if json_file is not None and json_file != STANDARD_OUTPUT:
        check_report(json_file, inputs=inputs, output=None, force=force)
    opened, _ = _public(syncnet)
    with progress(quiet=quiet) as tell:
        content, pictures = evaluate_dub(
            dubbed, source, speech, truth=truth, model=model, expert=expert, public=None if opened is None else opened(), on_progress=tell
        )
    _write(content, {dubbed.stem: pictures}, output, json_file, None if quiet else _show_dub)


def _write(
    content: Mapping[str, Any], pictures: Mapping[str, Mapping[str, bytes]], output: Path | None, json_file: Path | None,
    show: Callable[[Mapping[str, Any]], None] | None,
) -> None:  # fmt: skip
    """The files, then on the terminal what they hold and their names."""
    from lipdub.evaluate import page

    if output is not None:
        page.write_scorecard(output, content, pictures)
    if json_file is not None:
        write_json(page.json_text(content), json_file)
    if show is not None and json_file != STANDARD_OUTPUT:
        show(content)
        for path in [*(output / name for name in page.FILES if output), *([json_file] if json_file else [])]:
            print_line(f"wrote {path}")


def _evaluate_set(
    paths: list[Path], options: SetOptions, seconds_min: float, only: str, jobs: int, json_file: Path | None, force: bool, quiet: bool
) -> None:
    from lipdub.errors import UnreadableMedia
    from lipdub.evaluate import whole_set
    from lipdub.reports import check_report

    if json_file is not None and json_file != STANDARD_OUTPUT:
        # The output folder is run again and again, and so is the copy of its figures.
        check_report(json_file, inputs=paths, output=None, force=True)
    clips, left_out = whole_set.find_clips(paths, seconds_min=seconds_min)
    tasks = whole_set.tasks_of(clips, only)
    settings = whole_set.begin(options, force=force)
    done = 0
    with progress(quiet=quiet) as tell:

        def on_clip(result: ClipResult) -> None:
            nonlocal done
            done += 1
            tell("measuring clips", done, len(tasks))
            if not quiet:
                what = "measured before" if result.kept else "measured" if result.record is not None else f"left out: {result.why}"
                say(f"{done}/{len(tasks)} {result.name}: {what}")

        tell("measuring clips", 0, len(tasks))
        found = whole_set.run_set(tasks, options, settings, jobs=jobs, on_clip=on_clip)
    if all(result.record is None for result in found):
        raise UnreadableMedia(f"none of the {len(found)} clips could be measured; the first, {found[0].name}: {found[0].why}")
    content = whole_set.set_scorecard(found, settings, left_out)
    _write(content, whole_set.pictures_of(found, options), options.out, json_file, None if quiet else _show_set)


def _show_dub(content: Mapping[str, Any]) -> None:
    """Figures of one dub with their targets, and why some are left out."""
    from lipdub.evaluate import page
    from lipdub.evaluate.scorecard import BY_NAME, FIGURES, shown

    clip = content["clips"][0]
    (found,) = page.all_verdicts(content).values()
    verdicts = {verdict.target.figure: verdict for verdict in found}
    table = new_table(f"scorecard of {clip['clip']}", "figure", "unit", "better", ">value", "target", "")
    for figure in FIGURES:
        value = clip["rows"]["dub"][figure.name]
        verdict = verdicts.get(figure.name)
        bound = "" if verdict is None else verdict.target.bound
        table.add_row(figure.name, figure.unit, page.ARROWS[figure.better], shown(value, BY_NAME[figure.name]), bound, _met(verdict))
    _print_wide(table)
    for reason, names in page.reasons_of(clip["left_out"].values()).items():
        print_line(f"left out, {reason}: {names}")


def _dense_table(title: str, *columns: str) -> Table:
    """A table of many columns, without lines between them."""
    from rich.box import SIMPLE_HEAD

    table = new_table(title, *columns)
    table.box, table.padding = SIMPLE_HEAD, (0, 1, 0, 0)
    for column in table.columns:
        column.no_wrap = True
    return table


def _print_wide(table: Any) -> None:
    """A table that a file or a pipe gets whole: only a terminal has a width to keep to."""
    from rich.console import Console

    (results() if results().is_terminal else Console(highlight=False, width=160)).print(table)


def _met(verdict: Any) -> Any:
    """``met`` or ``missed`` in its colour."""
    from rich.text import Text

    if verdict is None or verdict.met is None:
        return Text("")
    return Text("met", "green") if verdict.met else Text("missed", "red")


def _show_set(content: Mapping[str, Any]) -> None:
    """Rows beside each other, mean over the clips, the dub's median and worst; then targets, met or missed; then who was left out."""
    from lipdub.evaluate import page
    from lipdub.evaluate.scorecard import FIGURES, ROWS, shown

    summaries = content["summary"]
    same = len(content["clips"]) == sum(clip["measurable"] for clip in content["clips"])
    for scope, summary in summaries.items():
        if not summary or (scope == "measurable" and same):
            continue
        columns = [row for row in ROWS if row in summary]
        # In a narrow terminal the units give way, and the median; both are in the files.
        narrow = results().is_terminal and results().width < 100
        told = ("mean", "worst") if narrow else ("mean", "median", "worst")
        title = f"model {content['settings']['model']}, mean over {page.SCOPES[scope]} ({page.clips_in(summary)})"
        table = _dense_table(title, *(("figure", "") if narrow else ("figure", "unit", "")))
        for row in columns:
            table.add_column(page.SHORT_ROWS[row], justify="right")
            for name in told[1:] if row == "cross" else ():
                table.add_column(name, justify="right", style="dim")
        for figure in FIGURES:
            if all(summary[row][figure.name]["clips"] == 0 for row in columns):
                continue
            cells = []
            for row in columns:
                values = summary[row][figure.name]
                cells += [shown(values[name], figure) for name in (told if row == "cross" else ("mean",))]
            table.add_row(figure.name, *([] if narrow else [figure.unit]), page.ARROWS[figure.better], *cells)
        _print_wide(table)
    for scope, verdicts in page.all_verdicts(content).items():
        if scope == page.SCOPES["measurable"] and same:
            continue
        table = _dense_table(f"targets, {scope}", "figure", "row", "statistic", "target", "value", "")
        for verdict in verdicts:
            target = verdict.target
            whose = (target.figure, ROWS[target.row], page.STATISTIC[target.statistic])
            table.add_row(*whose, target.bound, shown(verdict.value), _met(verdict))
        _print_wide(table)
    for reason, names in page.reasons_of(found for clip in content["clips"] for found in clip["left_out"].values()).items():
        print_line(f"left out in some row, {reason}: {names}")
    if content["left_out"]:
        print_line(f"clips left out: {len(content['left_out'])}")
        for name, why in content["left_out"].items():
            print_line(f"  {name}: {why}")
