"""Many dubs from one manifest: the CSV file is read and checked as a whole, then its rows are dubbed one after the other.

    video,speech,output,fit,crf
    talk.mp4,de.wav,talk_de.mp4,,
    talk.mp4,fr.wav,talk_fr.mp4,speech,23

``dub_row`` is the unit of work: it needs its row and nothing else, and answers with a record instead of an error.
"""

from __future__ import annotations

import csv
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from lipdub import bundle, media
from lipdub.errors import LipdubError, ManifestError, UnreadableMedia
from lipdub.records import Device, DubReport, Fit, Silence
from lipdub.reports import check_report, write_report

if TYPE_CHECKING:
    from lipdub.pipeline import OnProgress

PRESETS: Final = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
"""x264's presets, fastest first."""
REQUIRED: Final = ("video", "speech", "output")
"""Columns that a manifest must have, and cells that no row may leave empty."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a row is dubbed: the options of ``lipdub.pipeline.dub`` with its defaults, one column of the manifest each."""

    model: str = "base"
    device: Device = "auto"
    fit: Fit = "longest"
    silence: Silence = "close"
    crf: int = 14
    preset: str = "medium"
    threads: int | None = None
    strict: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One dub: `line` of the manifest (the first one is 1), what to read, what to write. `report`: JSON file, None for none."""

    line: int
    video: Path
    speech: Path
    output: Path
    options: Options = Options()
    report: Path | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of a row. report: of the dub, None where there was none. why: one line, empty where all went well.
    wall_s: seconds that the row took."""

    row: Row
    report: DubReport | None
    why: str
    wall_s: float

    @property
    def ok(self) -> bool:
        """Whether all that the row asks for was written."""
        return not self.why


OnRow = Callable[[Row], "AbstractContextManager[OnProgress]"]
"""Entered when a row starts and left when it ends, also by an interruption; what it gives is told of the row's progress."""
OnResult = Callable[[RowResult], None]


# ---------------------------------------------------------------------------------------------------------- running


def run(rows: Iterable[Row], *, on_row: OnRow | None = None, on_result: OnResult | None = None) -> tuple[RowResult, ...]:
    """Dub `rows` one after the other; a row that fails is passed over, its reason kept in its result.

    on_result: told of each row as it is done, so that nothing is lost when the batch is interrupted. What was written stays.
    """
    results: list[RowResult] = []
    for row in rows:
        with on_row(row) if on_row is not None else nullcontext(_ignore) as tell:
            result = dub_row(row, tell)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return tuple(results)


def dub_row(row: Row, on_progress: OnProgress | None = None) -> RowResult:
    """Dub one row and write its report, if it asks for one. A LipdubError becomes the result's `why`."""
    from lipdub.pipeline import dub  # slow to load; checking a manifest does without

    started = time.perf_counter()
    report: DubReport | None = None
    why = ""
    try:
        report = dub(row.video, row.speech, row.output, on_progress=on_progress, **asdict(row.options))
        if row.report is not None:
            write_report(report, row.report)
    except LipdubError as error:
        why = _one_line(error)
    return RowResult(row, report, why, time.perf_counter() - started)


def _ignore(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


# --------------------------------------------------------------------------------------------------------- checking


def read_manifest(path: Path, defaults: Options | None = None) -> tuple[Row, ...]:
    """The rows of the manifest at `path`, after checking all of them; no frame is decoded for that.

    CSV in UTF-8, the first line names the columns in any order: video, speech, output, and any of ``Options`` and report. An
    empty cell takes its value from `defaults`. Relative paths, a model's too, start from the manifest's folder. Empty lines are
    passed over.

    Raises:
        ManifestError: the file cannot be read, or it has problems, which are all in ``.problems``.
    """
    defaults = defaults or Options()
    records = _records(path)
    if not records:
        raise ManifestError(f"manifest '{path}' is empty; its first line must name the columns, at least {','.join(REQUIRED)}")
    (head_line, head), *body = records
    columns = [name.strip().lower() for name in head]
    problems = _Problems()
    _check_header(head_line, columns, problems)
    models = _Models(path.parent)
    drafts = [_draft(line, columns, cells, path.parent, defaults, models, problems) for line, cells in body]
    if not drafts:
        problems.add(head_line, "no row follows the column names; add one row for each dub")
    _check_files_apart(path, drafts, problems)
    problems.settle(path)
    return tuple(draft.row() for draft in drafts)


@dataclass(slots=True)
class _Problems:
    """What is wrong, with its line of the manifest."""

    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        self.found.append((line, text))

    @contextmanager
    def on(self, line: int) -> Iterator[None]:
        """Note the error that the block ends with, and go on."""
        try:
            yield
        except LipdubError as error:
            self.add(line, _one_line(error))
        except OSError as error:  # a path that the system does not take: too long, a folder that may not be searched
            self.add(line, f"cannot use '{error.filename}': {error.strerror or error}; check the path")

    def settle(self, path: Path) -> None:
        """Raise ManifestError if anything was found, in the order of the lines."""
        lines = tuple(f"line {line}: {text}" for line, text in sorted(self.found, key=lambda problem: problem[0]))
        if lines:
            count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems, the first"
            raise ManifestError(f"manifest '{path}' has {count}: {lines[0]} (nothing was dubbed; correct it and run again)", lines)


@dataclass(slots=True)
class _Models:
    """Bundles that the manifest names, each looked at once."""

    folder: Path
    _why: dict[str, str] = field(default_factory=dict)

    def find(self, cell: str) -> str:
        """The model of a cell: the name of a bundle that came with lipdub, or a path from the manifest's folder."""
        return cell if cell in bundle.available() else str(self.folder / os.path.expanduser(cell))

    def check(self, model: str) -> None:
        """Raise ManifestError unless `model` is a whole bundle."""
        if model not in self._why:
            self._why[model] = ""
            try:
                bundle.load_spec(bundle.resolve(model))
            except LipdubError as error:
                self._why[model] = _one_line(error)
        if self._why[model]:
            raise ManifestError(self._why[model])


@dataclass(slots=True)
class _Draft:
    """A row while it is being checked: what its cells hold, as far as they can be used."""

    line: int
    paths: dict[str, Path] = field(default_factory=dict)
    options: Options = Options()

    def row(self) -> Row:
        video, speech, output = (self.paths[column] for column in REQUIRED)
        return Row(self.line, video, speech, output, self.options, self.paths.get("report"))


def _records(path: Path) -> list[tuple[int, list[str]]]:
    """Lines of the file that hold anything, each as its number and its cells. Raises ManifestError."""
    found: list[tuple[int, list[str]]] = []
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    found.append((line, cells))
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ManifestError(f"manifest '{path}' is not UTF-8 text; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise ManifestError(f"manifest '{path}', line {line}: no CSV ({error}); check the quotes") from error
    except OSError as error:
        raise ManifestError(f"cannot read manifest '{path}': {error.strerror or error}; check the path") from error
    return found


def _check_header(line: int, columns: Sequence[str], problems: _Problems) -> None:
    known = ", ".join((*REQUIRED, *_PARSERS, "model", "report"))
    if len(columns) == 1 and re.search(r"[;\t|]", columns[0]):
        problems.add(line, "the columns are not separated by commas; save the manifest with commas")
        return
    for number, name in enumerate(columns, 1):
        if not name:
            problems.add(line, f"column {number} has no name; name it or remove it")
    for name, count in Counter(name for name in columns if name).items():
        if name not in _KNOWN:
            problems.add(line, f"unknown column '{name}'; there are {known}")
        if count > 1:
            problems.add(line, f"column '{name}' is there {count} times; keep one")
    for name in REQUIRED:
        if name not in columns:
            problems.add(line, f"column '{name}' is missing; add it")


def _draft(
    line: int, columns: Sequence[str], cells: Sequence[str], folder: Path, defaults: Options, models: _Models, problems: _Problems
) -> _Draft:
    """Check one row by itself."""
    draft = _Draft(line)
    if len(cells) != len(columns):
        what = "leave none out" if len(cells) < len(columns) else "quote cells that hold a comma"
        problems.add(line, f"{len(cells)} cells for {len(columns)} columns; {what}")
        return draft
    given: dict[str, str] = {}
    for column, cell in zip(columns, cells, strict=True):
        if column in _KNOWN:
            given.setdefault(column, cell.strip())
    if any("\0" in cell for cell in given.values()):
        problems.add(line, "a cell holds a NUL character; remove it")
        return draft
    for column in REQUIRED:
        if given.get(column) == "":
            problems.add(line, f"no {column}; fill in the cell")
    draft.paths = {column: folder / os.path.expanduser(given[column]) for column in (*REQUIRED, "report") if given.get(column)}
    chosen: dict[str, Any] = {}
    for column, parse in _PARSERS.items():
        if given.get(column):
            with problems.on(line):
                chosen[column] = parse(column, given[column])
    if given.get("model"):
        chosen["model"] = models.find(given["model"])
    draft.options = replace(defaults, **chosen)
    with problems.on(line):
        models.check(draft.options.model)
    _check_files(draft, problems)
    return draft


def _check_files(draft: _Draft, problems: _Problems) -> None:
    """Inputs are there, and the outputs can be written."""
    inputs = [draft.paths[column] for column in ("video", "speech") if column in draft.paths]
    for path in dict.fromkeys(inputs):
        with problems.on(draft.line):
            _check_input(path)
    if "output" in draft.paths:
        with problems.on(draft.line):
            media.check_output(draft.paths["output"], inputs=inputs, force=draft.options.force)
    if "report" in draft.paths:
        with problems.on(draft.line):
            check_report(draft.paths["report"], inputs=inputs, output=draft.paths.get("output"), force=draft.options.force)


def _check_input(path: Path) -> None:
    """Raise UnreadableMedia unless `path` is a file that holds something. What it holds shows when the row is dubbed."""
    if not path.exists():
        raise UnreadableMedia(f"cannot read '{path}': there is no such file; check the path")
    if path.is_dir():
        raise UnreadableMedia(f"cannot read '{path}': it is a folder; give a video, photo or sound file")
    if path.stat().st_size == 0 and path.is_file():
        raise UnreadableMedia(f"cannot read '{path}': the file is empty; give a video, photo or sound file")
    if not os.access(path, os.R_OK):
        raise UnreadableMedia(f"cannot read '{path}': no permission; change its permissions, or choose another file")


def _check_files_apart(manifest: Path, drafts: Sequence[_Draft], problems: _Problems) -> None:
    """No file is written twice, and none is written that is read in another row."""
    readers: dict[object, int] = {}
    for draft in drafts:
        for column in ("video", "speech"):
            if column in draft.paths:
                with problems.on(draft.line):
                    readers.setdefault(_identity(draft.paths[column]), draft.line)
    writers: dict[object, int] = {}
    for draft in drafts:
        for column in ("output", "report"):
            if column not in draft.paths:
                continue
            path = draft.paths[column]
            file = _identity(path)
            if file == _identity(manifest):
                problems.add(draft.line, f"{column} '{path}' is the manifest; choose another name")
            # What a row would do to its own files, check_output and check_report have said.
            if file in writers and writers[file] != draft.line:
                problems.add(draft.line, f"{column} '{path}' is written by line {writers[file]}, too; choose another name")
            writers.setdefault(file, draft.line)
            if file in readers and readers[file] != draft.line:
                problems.add(draft.line, f"{column} '{path}' is an input of line {readers[file]}; choose another name")


def _identity(path: Path) -> object:
    """Equal for paths that lead to the same file, however they are written."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# ------------------------------------------------------------------------------------------------------------ cells


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def parse(column: str, cell: str) -> str:
        if cell not in choices:
            raise ManifestError(f"{column} must be one of {', '.join(choices)}, got '{cell}'")
        return cell

    return parse


def _whole(low: int, high: int) -> Callable[[str, str], int]:
    def parse(column: str, cell: str) -> int:
        if not re.fullmatch("[0-9]{1,6}", cell) or not low <= int(cell) <= high:
            raise ManifestError(f"{column} must be a whole number from {low} to {high}, got '{cell}'")
        return int(cell)

    return parse


def _truth(column: str, cell: str) -> bool:
    if cell.lower() in ("true", "yes", "1"):
        return True
    if cell.lower() in ("false", "no", "0"):
        return False
    raise ManifestError(f"{column} must be true or false (or yes, no, 1, 0), got '{cell}'")


_PARSERS: Final[dict[str, Callable[[str, str], object]]] = {
    "device": _one_of(*get_args(Device)),
    "fit": _one_of(*get_args(Fit)),
    "silence": _one_of(*get_args(Silence)),
    "crf": _whole(0, 51),
    "preset": _one_of(*PRESETS),
    "threads": _whole(1, 1024),
    "strict": _truth,
    "force": _truth,
}
"""Columns whose cells can be judged by themselves. A model and a report are paths from the manifest's folder."""
_KNOWN: Final = {*REQUIRED, *_PARSERS, "model", "report"}
