"""What a run has to do: each row of the manifest held against the state that earlier runs have left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lipdub.batch.fingerprint import Facts, difference, facts_of, key_of, portable
from lipdub.batch.manifest import Manifest
from lipdub.batch.rows import Row
from lipdub.batch.state import FINISHED, RECOVERED, Entry, RowState, State
from lipdub.batch.storage import Identity

Action = Literal["dub", "redo", "report", "keep", "skip"]
"""dub: for the first time, or again after a failure. redo: what is there is outdated. report: the dub is done, its report is missing.
keep: done and unchanged. skip: an output that this batch did not write is there, and is to stay."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with one row, and why. row: with `force` where this batch may replace what is there."""

    row: Row
    key: str
    facts: Facts
    action: Action
    why: str
    before: tuple[Identity | None, Identity | None] = (None, None)

    @property
    def to_do(self) -> bool:
        """Whether a worker is needed."""
        return self.action in ("dub", "redo")


def make_plan(manifest: Manifest, state: State, *, restart: bool = False, skip_existing: bool = False) -> tuple[Step, ...]:
    """One step for each row, in the manifest's order.

    A row is kept where it is done, its fingerprint is the same, and its output is there as it was written. restart: no row is kept.
    skip_existing: outputs that this batch did not write are left as they are, but for rows with `force`.
    """
    return tuple(_step(row, manifest, state, restart, skip_existing) for row in manifest.rows)


def _step(row: Row, manifest: Manifest, state: State, restart: bool, skip_existing: bool) -> Step:
    found = manifest.found
    facts = facts_of(row, manifest.path.parent, found)
    key = key_of(facts)
    now = found[row.output]
    report_now = None if row.report is None else found[row.report]
    writer = state.wrote(row.output, now)
    action, why = _decide(state.entries.get(key), writer, facts, now, row, report_now, restart)
    if action in ("dub", "redo") and now is not None and writer is None and skip_existing and not row.options.force:
        action, why = "skip", "its output is there already"
    if now is not None and writer is not None:
        row = replace(row, options=replace(row.options, force=True))
    return Step(row, key, facts, action, why, (now, report_now))


def _decide(
    entry: Entry | None, writer: Entry | None, facts: Facts, now: Identity | None, row: Row, report_now: Identity | None, restart: bool
) -> tuple[Action, str]:
    if writer is None and now is not None:
        return "dub", "replaces what is there"
    if restart:
        return ("redo", "--restart") if writer is not None else ("dub", "")
    if entry is None:
        return ("redo", difference(writer.facts, facts)) if writer is not None else ("dub", "")
    if writer is not None and writer.key == entry.key and (entry.state in FINISHED or entry.done is not None):
        if row.report is None or report_now is not None:
            return "keep", "recovered" if entry.why == RECOVERED else ""
        if entry.done is not None:
            return "report", "its report is missing"
        return "redo", "it was stopped before its report was written"
    if entry.state in FINISHED:
        return ("redo", "another row wrote its output") if writer is not None else ("redo", "its output is gone")
    if entry.state == "failed":
        return "dub", f"failed before: {entry.why}"
    return "dub", entry.why if entry.state == "pending" else ""


def entry_of(step: Step, state: State, became: RowState, *, why: str = "") -> Entry:
    """The line of the journal that says what became of a step's row; more of it is filled in by whoever knows more."""
    row, folder = step.row, state.folder
    names = [portable(place, folder) for place in row.written]
    return Entry(
        key=step.key, state=became, line=row.line, output=names[0], report=names[1] if len(names) > 1 else None,
        facts=step.facts, at=time.time(), before=dict(zip(names, step.before, strict=False)), why=why,
    )  # fmt: skip


def first_entries(plan: Sequence[Step], state: State) -> list[Entry]:
    """The journal as a run begins: rows that are done stay so under their line of today, the others are pending or skipped."""
    entries = []
    for step in plan:
        old = state.entries.get(step.key)
        if step.action in ("keep", "report") and old is not None:
            kept: RowState = old.state if old.state in FINISHED else "done"
            entries.append(replace(old, line=step.row.line, state=kept if step.action == "keep" else "pending"))
        else:
            entries.append(entry_of(step, state, "skipped" if step.action == "skip" else "pending", why=step.why))
    return entries
