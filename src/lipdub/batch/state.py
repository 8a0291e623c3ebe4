"""The state of a batch: a journal beside the manifest that says of every row whether it is pending, running, done,
nothing-dubbed (the output was written, but it does not speak), failed or skipped.

``<manifest name>.state.jsonl`` has one JSON object a line; the last one of a row counts.
Lines are only appended, and each is on the disk before the work goes on. A last line that a crash has torn is passed over.
When a batch starts, it writes the journal anew without what is outdated.

A row is known by its fingerprint, not by its line, so a manifest may be sorted, added to and cut.
A batch knows the files that it wrote by their size and time, and replaces no others without ``--force``.

A row that was killed between the rename of its output and its line in the journal is still ``running`` there.
If another file stands at its output than when it started, it is done: outputs get their name only when they are whole.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from lipdub.atomic import write_whole
from lipdub.batch.fingerprint import Facts, place_of, portable
from lipdub.batch.rows import Location
from lipdub.batch.storage import Identity, identity
from lipdub.errors import LipdubError, ManifestError, WriteFailed
from lipdub.records import NOTHING_DUBBED

FORMAT: Final = 1
INTERRUPTED: Final = "interrupted"
RECOVERED: Final = "recovered"
ADVICE: Final = "check the free space and the folder's permissions"

RowState = Literal["pending", "running", "done", "nothing-dubbed", "failed", "skipped"]
FINISHED: Final = ("done", NOTHING_DUBBED)
"""States of rows whose files were written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The state of one row.

    key: its fingerprint, made of `facts`. line: of the manifest when this was written. output, report: as called from the manifest's
    folder. at: seconds since 1970. attempt: from 1, of this run. before: what stood at output and report when the row started.
    files: what it wrote, by name. why: of a failure, or a note. wall_s: seconds that the row took. done: content of the report of a dub
    that finished. trace: of a bug.
    """

    key: str
    state: RowState
    line: int
    output: str
    report: str | None = None
    facts: Facts = field(default_factory=dict)
    at: float = 0.0
    attempt: int = 0
    before: dict[str, Identity | None] = field(default_factory=dict)
    files: dict[str, Identity] = field(default_factory=dict)
    why: str = ""
    wall_s: float = 0.0
    done: dict[str, Any] | None = None
    trace: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The output, then the report if there is one."""
        return (self.output,) if self.report is None else (self.output, self.report)

    def to_json(self) -> str:
        """One line, without its end; what says nothing is left out."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, "", {}, 0, 0.0) or name == "line"}
        values["at"] = round(self.at, 3)
        for name in ("before", "files"):
            if values.get(name):
                values[name] = {place: found and [found.size, found.stamp] for place, found in getattr(self, name).items()}
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """Raises ValueError: no entry."""
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("state") not in get_args(RowState):
            raise ValueError("no entry")
        known = {name.name for name in fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        try:
            for name in ("before", "files"):
                found = values.get(name, {}).items()
                values[name] = {place: value and Identity(int(value[0]), str(value[1])) for place, value in found}
            return cls(**values)
        except (TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"no entry: {error}") from error


class State:
    """The journal of one manifest, in memory and on the disk. Nothing is written before `begin`."""

    def __init__(self, manifest: Path) -> None:
        """What the journal says, if there is one; rows that were running when the batch ended are judged by their outputs.

        Raises ManifestError: there is a journal, but it cannot be read, or a newer lipdub wrote it.
        """
        self.path = state_path(manifest)
        self.folder = manifest.parent
        self.damaged = 0
        self.entries: dict[str, Entry] = {}
        self._wrote: dict[str, tuple[str, Identity]] = {}  # name of a file -> key of the row that wrote it last, and what it wrote
        self._file = -1
        for entry in self._read():
            self._take(entry)
        self.was_running = tuple(entry for entry in self.entries.values() if entry.state == "running")
        for entry in self.was_running:
            self._take(self._judged(entry))

    def wrote(self, place: Location, now: Identity | None) -> Entry | None:
        """The row that wrote what stands at `place` now; None where no row of this manifest did, or the file was changed since."""
        key, was = self._wrote.get(portable(place, self.folder), ("", None))
        return self.entries.get(key) if was is not None and was == now else None

    def begin(self, entries: Iterable[Entry]) -> None:
        """Write the journal anew with `entries` as they are now and what else still has its files; from here on it can be added to.

        Raises WriteFailed.
        """
        keep = {self._take(entry).key for entry in entries} | {key for key, _ in self._wrote.values()}
        lines = [json.dumps({"lipdub_batch": FORMAT}), *(entry.to_json() for key, entry in self.entries.items() if key in keep)]
        write_whole(self.path, "\n".join(lines) + "\n", failed="cannot write the state", advice=ADVICE)
        self.close()
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def record(self, *entries: Entry) -> None:
        """Add to the journal; on the disk when this returns. Raises WriteFailed."""
        data = "".join(self._take(entry).to_json() + "\n" for entry in entries).encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """Let go of the file; what was recorded stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _take(self, entry: Entry) -> Entry:
        """Make `entry` the one that counts for its row; what the row wrote before stays known until it writes again."""
        if (old := self.entries.pop(entry.key, None)) is not None:  # the order is that of the last change
            entry = replace(entry, files={**old.files, **entry.files})
        self.entries[entry.key] = entry
        for name, found in entry.files.items():
            self._wrote[name] = (entry.key, found)
        return entry

    def _read(self) -> list[Entry]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ManifestError(f"cannot read the state '{self.path}': {error.strerror or error}; check its permissions") from error
        whole, _, _ = text.rpartition(b"\n")  # what follows the last line end was torn
        found = []
        for number, line in enumerate(whole.split(b"\n")):
            try:
                text_line = line.decode()
                if number == 0 and '"lipdub_batch"' in text_line:
                    self._check_format(json.loads(text_line))
                elif line:
                    found.append(Entry.from_json(text_line))
            except (ValueError, RecursionError):
                self.damaged += 1
        return found

    def _check_format(self, head: Mapping[str, object]) -> None:
        if head.get("lipdub_batch") != FORMAT:
            raise ManifestError(
                f"the state '{self.path}' was written by another version of lipdub; use that version, or remove the file to begin anew"
            )

    def _judged(self, entry: Entry) -> Entry:
        """What became of a row that was running when its batch was killed."""
        now = self.found_now(entry)
        changed = {name: found for name, found in now.items() if found is not None and found != entry.before.get(name)}
        if entry.output in changed:
            return replace(entry, state="done", why=RECOVERED, files=changed, at=time.time())
        return replace(entry, state="pending", why=INTERRUPTED, at=time.time())

    def found_now(self, entry: Entry) -> dict[str, Identity | None]:
        """What stands at the output and the report of a row."""
        found: dict[str, Identity | None] = {}
        for name in entry.names:
            try:
                found[name] = identity(place_of(name, self.folder))
            except LipdubError:  # cannot be told: as if nothing had changed
                found[name] = entry.before.get(name)
        return found


def state_path(manifest: Path) -> Path:
    """Where the journal of a manifest lies."""
    return manifest.with_name(f"{manifest.name}.state.jsonl")


def _unwritable(path: Path, error: OSError) -> WriteFailed:
    return WriteFailed(f"cannot write the state '{path}': {error.strerror or error}; {ADVICE}")
