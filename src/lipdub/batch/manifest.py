"""Manifests: a table of dubs, read and checked as a whole before the first frame is touched.

CSV as spreadsheets write it (``tables.py``), whose first line names the columns, or JSON lines, one object a line with the same names:

    video,speech,output,fit,crf
    talk.mp4,fr.wav,talk_fr.mp4,speech,23

    {"video": "talk.mp4", "speech": "fr.wav", "output": "talk_fr.mp4", "fit": "speech", "crf": 23}
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from lipdub import media
from lipdub.batch.lock import lock_path
from lipdub.batch.rows import REQUIRED, Location, Row, one_line
from lipdub.batch.state import state_path
from lipdub.batch.storage import Identity, check_place, identities, is_url, suffix_of
from lipdub.bundles import bundle
from lipdub.errors import LipdubError, ManifestError, OutputRefused, UnreadableMedia
from lipdub.options import DubOptions, dub_options
from lipdub.reports import check_report
from lipdub.tables import TableError, read_table, text_of

JSON_SUFFIXES: Final = (".jsonl", ".ndjson", ".json")
_KNOWN: Final = (*REQUIRED, *(option.name for option in dub_options()), "report")
"""Columns that there are. A model, a report, and options that name files, are paths from the manifest's folder."""
_KINDS: Final = {option.name: option.kind for option in dub_options()}
"""What an option's column holds: text, whole numbers, or true and false."""
Owned = Callable[[Location, Identity], bool]
"""Whether the content that stands at a place was written by this very batch, so that it may be replaced."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that can be run. found: what stands at each place that its rows name, as the check has seen it."""

    path: Path
    rows: tuple[Row, ...]
    found: dict[Location, Identity | None]


def check_manifest(path: Path, defaults: DubOptions | None = None, *, owned: Owned | None = None, keep_existing: bool = False) -> Manifest:
    """The rows of the manifest at `path`, after checking all of them; no frame is decoded for that.

    The columns are video, speech, output, and any of ``DubOptions`` and report. An empty cell, or null, takes its value from `defaults`.
    Relative paths, also those of options, start from the manifest's folder; URLs are taken as they are. Empty lines are passed over.

    An output or report that exists is an error, but for rows with `force` and for files that are `owned`.
    keep_existing: outputs that exist are no error; the plan passes over their rows.

    Raises:
        ManifestError: the file cannot be read, or it has problems, which are all in ``.problems``.
    """
    problems = _Problems()
    drafts = _json_drafts(path, problems) if path.suffix.lower() in JSON_SUFFIXES else _csv_drafts(path, problems)
    for draft in drafts:
        _check_cells(draft, path.parent, defaults or DubOptions(), problems)
    _check_models(drafts, problems)
    found = _look(drafts, problems)
    for draft in drafts:
        _check_files(draft, found, owned or (lambda place, now: False), keep_existing, problems)
    _check_files_apart(path, drafts, problems)
    problems.settle(path)
    return Manifest(path, tuple(draft.row() for draft in drafts), found)


@dataclass(slots=True)
class _Problems:
    """What is wrong, with its line of the manifest."""

    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        self.found.append((line, text))

    @contextmanager
    def on(self, line: int) -> Generator[None, None, None]:
        """Note the error that the block ends with, and go on."""
        try:
            yield
        except (LipdubError, ValueError) as error:
            self.add(line, one_line(error))
        except OSError as error:  # a path that the system does not take: too long, a folder that may not be searched
            self.add(line, f"cannot use '{error.filename}': {error.strerror or error}; check the path")

    def settle(self, path: Path) -> None:
        """Raise ManifestError if anything was found, in the order of the lines."""
        lines = tuple(f"line {line}: {text}" for line, text in sorted(self.found, key=lambda problem: problem[0]))
        if lines:
            count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems, the first"
            raise ManifestError(f"manifest '{path}' has {count}: {lines[0]} (nothing was dubbed; correct it and run again)", lines)


@dataclass(slots=True)
class _Draft:
    """A row while it is being checked. given: its cells by column, empty where nothing is given. The rest is what they stand for."""

    line: int
    given: dict[str, str]
    places: dict[str, Location] = field(default_factory=dict)
    options: DubOptions = field(default_factory=DubOptions)

    def row(self) -> Row:
        video, speech, output = (self.places[column] for column in REQUIRED)
        return Row(self.line, video, speech, output, self.options, self.places.get("report"))


def _data(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot read manifest '{path}': {error.strerror or error}; check the path") from error


def _csv_drafts(path: Path, problems: _Problems) -> list[_Draft]:
    """The rows of a CSV file; what is wrong with its columns goes to `problems`. Raises ManifestError."""
    try:
        table = read_table(text_of(_data(path), fits=partial(_names_inputs, path.parent)), _KNOWN)
    except TableError as error:
        raise ManifestError(f"manifest '{path}'{'' if str(error).startswith('is ') else ','} {error}") from error
    if not table.columns:
        raise ManifestError(f"manifest '{path}' is empty; its first line must name the columns, at least {','.join(REQUIRED)}")
    columns = [name.replace("-", "_") for name in table.columns]
    _check_header(table.line, columns, problems)
    if not table.rows:
        problems.add(table.line, "no row follows the column names; add one row for each dub")
    found = []
    for line, cells in table.rows:
        # Spreadsheets leave empty cells at the end of a row out.
        missing, beyond = columns[len(cells) :], cells[len(columns) :]
        if any(beyond) or not set(missing).isdisjoint(REQUIRED):
            what = "leave none out" if missing else "quote cells that hold a comma"
            problems.add(line, f"{len(cells)} cells for {len(columns)} columns; {what}")
            continue
        # The first of two columns of one name counts; `_check_header` has named them.
        cells = (*cells, *[""] * len(missing))[: len(columns)]
        given = {column: cell for column, cell in zip(reversed(columns), reversed(cells), strict=True) if column in _KNOWN}
        found.append(_Draft(line, given))
    return found


def _names_inputs(folder: Path, text: str) -> bool:
    """Whether the manifest's `text`, whose code page is guessed, names inputs that are there, one of them in more than ASCII."""
    cells = [row[column] for _, row in read_table(text, _KNOWN).records() for column in ("video", "speech") if row.get(column)]
    telling = [cell for cell in cells if not cell.isascii() and not is_url(cell)]
    return bool(telling) and all((folder / os.path.expanduser(cell)).exists() for cell in telling)


def _check_header(line: int, columns: Sequence[str], problems: _Problems) -> None:
    for number, name in enumerate(columns, 1):
        if not name:
            problems.add(line, f"column {number} has no name; name it or remove it")
    for name, count in Counter(name for name in columns if name).items():
        if name not in _KNOWN:
            problems.add(line, f"unknown column '{name}'; there are {', '.join(_KNOWN)}")
        if count > 1:
            problems.add(line, f"column '{name}' is there {count} times; keep one")
    for name in REQUIRED:
        if name not in columns:
            problems.add(line, f"column '{name}' is missing; add it")


def _json_drafts(path: Path, problems: _Problems) -> list[_Draft]:
    """The rows of a file of JSON lines; what is wrong with a line goes to `problems`. Raises ManifestError."""
    try:
        lines = re.split(r"\r\n?|\n", text_of(_data(path)))
    except TableError as error:
        raise ManifestError(f"manifest '{path}' {error}") from error
    if not any(line.strip() for line in lines):
        raise ManifestError(f"manifest '{path}' is empty; write one JSON object a line, with at least {', '.join(REQUIRED)}")
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            with problems.on(number):
                found.append(_Draft(number, _json_cells(line)))
    return found


def _json_cells(line: str) -> dict[str, str]:
    """One JSON object as cells: true, false and whole numbers as a table would hold them. Raises ManifestError."""
    try:
        pairs = json.loads(line, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"no JSON ({one_line(error)}); write one object a line") from error
    if not isinstance(pairs, _Pairs):
        raise ManifestError('no JSON object; write one object a line: {"video": ..., "speech": ..., "output": ...}')
    given: dict[str, str] = {}
    for name, value in pairs:
        column = name.strip().lower().replace("-", "_")
        if column not in _KNOWN:
            raise ManifestError(f"unknown key '{name}'; there are {', '.join(_KNOWN)}")
        if column in given:
            raise ManifestError(f"key '{name}' is there twice; keep one")
        if value is None or isinstance(value, str):
            given[column] = (value or "").strip()
        elif type(value) is _KINDS.get(column):
            given[column] = str(value).lower()
        elif isinstance(value, float) and _KINDS.get(column) is int:
            given[column] = str(int(value) if value.is_integer() else value)
        else:
            raise ManifestError(f"{column} cannot be {json.dumps(value, default=lambda _: '...')[:40]}; see lipdub sync --help")
    return {column: "" for column in REQUIRED} | given


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands, with names that are there twice."""


def _check_cells(draft: _Draft, folder: Path, defaults: DubOptions, problems: _Problems) -> None:
    """Fill in what one row's cells stand for; files are looked at later."""
    given, line = draft.given, draft.line
    if any("\0" in cell for cell in given.values()):
        problems.add(line, "a cell holds a NUL character; remove it")
        return
    for column in REQUIRED:
        if given.get(column) == "":
            problems.add(line, f"no {column}; fill in the cell")
    for column in (*REQUIRED, "report"):
        if given.get(column):
            cell = given[column]
            draft.places[column] = cell if is_url(cell) else folder / os.path.expanduser(cell)
    chosen: dict[str, Any] = {}
    for option in dub_options():
        if cell := given.get(option.name, ""):
            with problems.on(line):
                chosen[option.name] = option.parse(cell)
                if option.paths(cell) and not (option.name == "model" and cell in bundle.available()):
                    chosen[option.name] = option.with_paths(cell, lambda path: str(folder / os.path.expanduser(path)))
    draft.options = replace(defaults, **chosen)


def _check_models(drafts: Sequence[_Draft], problems: _Problems) -> None:
    """Each bundle that is named is whole; it is looked at once."""
    lines: dict[str, list[int]] = {}
    for draft in drafts:
        lines.setdefault(draft.options.model, []).append(draft.line)
    for model, named_in in lines.items():
        try:
            bundle.load_spec(bundle.resolve(model))
        except LipdubError as error:
            for line in named_in:
                problems.add(line, one_line(error))


def _look(drafts: Sequence[_Draft], problems: _Problems) -> dict[Location, Identity | None]:
    """What stands at all places that the rows name."""
    looked = identities(place for draft in drafts for place in draft.places.values())
    for draft in drafts:
        for place in dict.fromkeys(draft.places.values()):
            error = looked[place]
            if isinstance(error, LipdubError):
                problems.add(draft.line, one_line(error))
    return {place: found for place, found in looked.items() if not isinstance(found, LipdubError)}


def _check_files(draft: _Draft, found: dict[Location, Identity | None], owned: Owned, keep_existing: bool, problems: _Problems) -> None:
    """Inputs are there, and the outputs can be written."""

    def may_replace(place: Location, kept: bool) -> bool:
        now = found[place]
        return draft.options.force or kept or (now is not None and owned(place, now))

    inputs = [draft.places[column] for column in ("video", "speech") if column in draft.places]
    for place in dict.fromkeys(inputs):
        with problems.on(draft.line):
            if place in found:
                _check_input(place, found[place])
    output, report = draft.places.get("output"), draft.places.get("report")
    if output is not None and output in found:
        with problems.on(draft.line):
            _check_output(output, inputs, found[output], may_replace(output, keep_existing))
    if report is not None and report in found:
        kept = keep_existing and output is not None and found.get(output) is not None
        with problems.on(draft.line):
            _check_report(report, inputs, output, found[report], may_replace(report, kept))


def _check_input(place: Location, found: Identity | None) -> None:
    """Raise UnreadableMedia unless at `place` there is a file that holds something. What it holds shows when the row is dubbed."""
    if found is None:
        raise UnreadableMedia(f"cannot read '{place}': there is no such file; check the {'path' if isinstance(place, Path) else 'URL'}")
    if isinstance(place, Path) and place.is_dir():
        raise UnreadableMedia(f"cannot read '{place}': it is a folder; give a video, photo or sound file")
    if isinstance(place, Path) and not place.is_file():
        raise UnreadableMedia(f"cannot read '{place}': it is a pipe or a device, and rows may be read again; give a file")
    if found.size == 0:
        raise UnreadableMedia(f"cannot read '{place}': the file is empty; give a video, photo or sound file")
    if isinstance(place, Path) and not os.access(place, os.R_OK):
        raise UnreadableMedia(f"cannot read '{place}': no permission; change its permissions, or choose another file")


def _check_output(output: Location, inputs: Sequence[Location], found: Identity | None, force: bool) -> None:
    """Raise OutputRefused unless `output` can be written and none of `inputs` would be lost."""
    if isinstance(output, Path):
        media.check_output(output, inputs=[place for place in inputs if isinstance(place, Path)], force=force)
    else:
        media.check_suffix(output, suffix_of(output))
        _check_url(output, "", dict.fromkeys(inputs, "an input"), found, force)


def _check_report(report: Location, inputs: Sequence[Location], output: Location | None, found: Identity | None, force: bool) -> None:
    """Raise OutputRefused unless the report can be written and nothing would be lost."""
    if isinstance(report, Path):
        paths = [place for place in inputs if isinstance(place, Path)]
        check_report(report, inputs=paths, output=output if isinstance(output, Path) else None, force=force)
    else:
        _check_url(report, "report ", dict.fromkeys(inputs, "an input") | {output or "": "the output"}, found, force)


def _check_url(url: str, what: str, taken: Mapping[Location, str], found: Identity | None, force: bool) -> None:
    """Raise OutputRefused where `url` is one of `taken`, which says what it is then, or where something stands that must stay."""
    if url in taken:
        raise OutputRefused(f"cannot write {what}'{url}': it is {taken[url]}; choose another name")
    if found is not None and not force:
        raise OutputRefused(f"{what}'{url}' exists already; add --force to replace it, or choose another name")
    check_place(url)


def _check_files_apart(manifest: Path, drafts: Sequence[_Draft], problems: _Problems) -> None:
    """No file is written twice, and none is written that is read in another row."""
    readers: dict[object, int] = {}
    for draft in drafts:
        for column in ("video", "speech"):
            if column in draft.places:
                with problems.on(draft.line):
                    readers.setdefault(_same(draft.places[column]), draft.line)
    own = {_same(state_path(manifest)): "the state", _same(lock_path(manifest)): "the lock", _same(manifest): "the manifest"}
    writers: dict[object, int] = {}
    for draft in drafts:
        for column in ("output", "report"):
            if column not in draft.places:
                continue
            place = draft.places[column]
            file = _same(place)
            if file in own:
                problems.add(draft.line, f"{column} '{place}' is {own[file]}; choose another name")
            # What a row would do to its own files, check_output and check_report have said.
            if file in writers and writers[file] != draft.line:
                problems.add(draft.line, f"{column} '{place}' is written by line {writers[file]}, too; choose another name")
            writers.setdefault(file, draft.line)
            if file in readers and readers[file] != draft.line:
                problems.add(draft.line, f"{column} '{place}' is an input of line {readers[file]}; choose another name")


def _same(place: Location) -> object:
    """Equal for places that lead to the same file, however they are written."""
    if isinstance(place, str):
        return place
    try:
        found = place.stat()
    except (OSError, ValueError):
        return os.path.realpath(place)
    return found.st_dev, found.st_ino
