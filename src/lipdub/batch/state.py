"""The state of a batch: a journal beside the manifest that says of every row whether it is pending, running, done, failed or skipped.

``<manifest name>.state.jsonl``: one JSON object a line, the last one of a row counts. Lines are only appended, each is on the disk
before the work goes on, and a last line that was torn by a crash is passed over. When a batch starts, the journal is written anew
without what is outdated, to a temporary name that is renamed.

A row is known by its fingerprint, not by its line, so a manifest may be sorted, added to and cut. What a batch wrote, it knows again by
size and time: only such files may it replace without ``--force``.

Killed between the rename of a finished output and its line in the journal, a row is still ``running`` there: its output is compared
with what stood at its place when the row started, and where it is another file, the row is done. An output is renamed when it is
whole and not before, so another file there is a finished one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from lipdub.atomic import part_file, put_in_place
from lipdub.batch.fingerprint import Facts, place_of, portable
from lipdub.batch.rows import Location
from lipdub.batch.storage import Identity, identity
from lipdub.errors import LipdubError, ManifestError, WriteFailed

FORMAT: Final = 1
INTERRUPTED: Final = "interrupted"
RECOVERED: Final = "recovered"

RowState = Literal["pending", "running", "done", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Entry:
    """The state of one row.

    key: its fingerprint, made of `facts`. line: of the manifest when this was written. output, report: as called from the manifest's
    folder. at: seconds since 1970. before: what stood at output and report when the row started. files: what it wrote, by name.
    why: of a failure, or a note. done: content of the report of a dub that finished. trace: where a bug showed. attempt: from 1, of
    this run. wall_s: seconds that the row took.
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

    def to_json(self) -> str:
        """One line, without its end; what says nothing is left out."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, "", {}, 0, 0.0) or name == "line"}
        values["at"] = round(self.at, 3)
        for name in ("before", "files"):
            if values.get(name):
                values[name] = {place: _plain(found) for place, found in getattr(self, name).items()}
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
                values[name] = {place: _found(value) for place, value in values.get(name, {}).items()}
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

    # ---- asking

    def wrote(self, place: Location, now: Identity | None) -> Entry | None:
        """The row that wrote what stands at `place` now; None where no row of this manifest did, or the file was changed since."""
        key, was = self._wrote.get(portable(place, self.folder), ("", None))
        return self.entries.get(key) if was is not None and was == now else None

    # ---- writing

    def begin(self, entries: Iterable[Entry]) -> None:
        """Write the journal anew with `entries` as they are now and what else still has its files; from here on it can be added to.

        Raises WriteFailed.
        """
        keep = {self._take(entry).key for entry in entries} | {key for key, _ in self._wrote.values()}
        lines = [json.dumps({"lipdub_batch": FORMAT}), *(entry.to_json() for key, entry in self.entries.items() if key in keep)]
        try:
            with part_file(self.path) as part:
                part.write_text("\n".join(lines) + "\n", encoding="utf-8")
                put_in_place(part, self.path)
            self.close()
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

    # ---- inside

    def _take(self, entry: Entry) -> Entry:
        """Make `entry` the one that counts for its row; what the row wrote before stays known until it writes again."""
        old = self.entries.pop(entry.key, None)  # the order is that of the last change
        if old is not None and old.files:
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
        names = [entry.output] + ([entry.report] if entry.report is not None else [])
        found: dict[str, Identity | None] = {}
        for name in names:
            try:
                found[name] = identity(place_of(name, self.folder))
            except LipdubError:  # cannot be told: as if nothing had changed
                found[name] = entry.before.get(name)
        return found


def state_path(manifest: Path) -> Path:
    """Where the journal of a manifest lies."""
    return manifest.with_name(f"{manifest.name}.state.jsonl")


def _plain(found: Identity | None) -> list[object] | None:
    return None if found is None else [found.size, found.stamp]


def _found(value: Any) -> Any:
    return None if value is None else Identity(int(value[0]), str(value[1]))


def _unwritable(path: Path, error: OSError) -> WriteFailed:
    return WriteFailed(f"cannot write the state '{path}': {error.strerror or error}; check the free space and the folder's permissions")
