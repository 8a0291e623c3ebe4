"""One row: fetch what lies elsewhere, dub, put the output where it belongs, write the report. The unit of work of every pool."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipdub.batch import storage
from lipdub.batch.rows import Location, Row, RowResult, one_line
from lipdub.batch.storage import Identity
from lipdub.errors import EncodingFailed, LipdubError, OutputRefused, StorageFailed, WriteFailed
from lipdub.records import DubReport
from lipdub.reports import content_of, write_content

if TYPE_CHECKING:
    from lipdub.stages import OnProgress

FETCHING, PUTTING = "fetching", "putting"
TRANSIENT = (EncodingFailed, StorageFailed, WriteFailed)
"""Errors that another attempt may not meet: full disks and networks. Everything else says the same again."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker gets: a row, and what it must know of the batch.

    number: of the row in this run, from 0. row: its `options.force` says whether this batch may replace what stands there.
    before: what stood at output and report when the row was handed out first. cache: use the analysis cache.
    lock: the batch's lock file, whose byte for this row the worker holds; None for none.
    """

    number: int
    row: Row
    before: tuple[Identity | None, Identity | None] = (None, None)
    cache: bool = True
    lock: Path | None = None


Work = Callable[[Task, "OnProgress"], RowResult]
"""What a pool does with a task; pickled by its name."""


def dub_task(task: Task, on_progress: OnProgress) -> RowResult:
    """What is done with a task, but in tests."""
    return dub_row(task.row, on_progress, cache=task.cache)


def work_on(task: Task, work: Work, on_progress: OnProgress) -> RowResult:
    """The result of `work` on a task, or of an earlier attempt that had written everything when it was killed.

    Temporary files of a killed attempt are removed first: a cluster replaces a lost worker by itself, so the batch may never know of it.
    """
    storage.sweep(task.row.written)
    earlier = found_finished(task)
    if earlier is not None and earlier.ok:
        return earlier
    if earlier is not None:  # what stands there is that attempt's
        task = replace(task, row=replace(task.row, options=replace(task.row.options, force=True)))
    return work(task, on_progress)


def found_finished(task: Task) -> RowResult | None:
    """What an attempt that was killed has finished of `task`.

    None where its output is as it was before. A result that is ok where output and report were written; one that is not where only the
    output was.
    """
    row, (before, report_before) = task.row, task.before
    try:
        now = storage.identity(row.output)
        if now is None or now == before:
            return None
        if row.report is not None and storage.identity(row.report) in (None, report_before):
            why = f"'{row.output}' was written, but not its report: the worker ended in between"
            return RowResult(row, None, why, 0.0, transient=True)
    except LipdubError:
        return None
    return RowResult(row, None, "", 0.0, recovered=True)


def dub_row(row: Row, on_progress: OnProgress | None = None, *, cache: bool = False) -> RowResult:
    """Dub one row and write its report, if it asks for one. A LipdubError becomes the result's `why`.

    Files at URLs are copied to a folder of the worker and back; `row.output` appears whole or not at all either way. cache: look for
    the analysis of the video where earlier dubs have left it, and leave it there.
    """
    started = time.perf_counter()
    report: DubReport | None = None
    why, transient = "", False
    try:
        report = _dubbed(row, on_progress or (lambda stage, done, total: None), cache)
        if row.report is not None:
            write_row_report(content_of(report), row.report)
    except LipdubError as error:
        why, transient = one_line(error), isinstance(error, TRANSIENT)
    return RowResult(row, report, why, time.perf_counter() - started, transient)


def write_row_report(content: dict[str, Any], place: Location) -> None:
    """Write the content of a report where the row wants it, whole or not at all. Raises WriteFailed, StorageFailed."""
    if isinstance(place, Path):
        write_content(content, place)
        return
    with tempfile.TemporaryDirectory(prefix="lipdub-") as folder:
        file = Path(folder) / "report.json"
        write_content(content, file)
        storage.put(file, place)


def _dubbed(row: Row, tell: OnProgress, cache: bool) -> DubReport:
    """Dub with all files at hand: those at URLs as copies."""
    from lipdub.faces.cache import default_cache
    from lipdub.pipeline import dub  # slow to load; checking a manifest does without

    known = default_cache() if cache else None
    if isinstance(row.video, Path) and isinstance(row.speech, Path) and isinstance(row.output, Path):
        return dub(row.video, row.speech, row.output, row.options, cache=known, on_progress=tell)
    with tempfile.TemporaryDirectory(prefix="lipdub-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if isinstance(row.output, str):
            _check_free(row.output, row.options.force)
        video, speech = _at_hand(row.video, folder / "video", tell), _at_hand(row.speech, folder / "speech", tell)
        out = row.output if isinstance(row.output, Path) else folder / f"dubbed{storage.suffix_of(row.output)}"
        report = dub(video, speech, out, row.options, cache=known, on_progress=tell)
        if isinstance(row.output, str):
            tell(PUTTING, 0, None)
            _check_free(row.output, row.options.force)
            storage.put(out, row.output)
    return replace(report, video=str(row.video), speech=str(row.speech), output=str(row.output))


def _at_hand(place: Location, folder: Path, tell: OnProgress) -> Path:
    """`place` as a file of this machine: itself, or a copy in `folder`."""
    if isinstance(place, Path):
        return place
    tell(FETCHING, 0, None)
    folder.mkdir()
    return storage.fetch(place, folder)


def _check_free(url: str, force: bool) -> None:
    """Raise OutputRefused if something stands at `url` that may not be replaced."""
    if not force and storage.identity(url) is not None:
        raise OutputRefused(f"'{url}' exists already; add --force to replace it, or choose another name")
