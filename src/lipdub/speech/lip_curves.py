"""Lip motion as curves that animators see and change: told of a speech, and read again from the file that they were written to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.errors import BundleInvalid, CurvesInvalid
from lipdub.speech.lip_track import lips_at, pauses_in
from lipdub.speech.memory import Memory
from lipdub.speech.mouth_shapes import SHAPES, shapes_of
from lipdub.tables import TableError, read_table, text_of

CURVES: Final = ("pause", *SHAPES)
"""From 0 (sounding) to 1, and ARKit's shapes."""
APART_S: Final = 0.5
"""Values that lie as far apart tell nothing of the time between them."""
_NAMES: Final = {name.lower(): name for name in ("time_s", *CURVES)}


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LipCurves:
    """Curves of N moments. times_s: float64 (N,), rising. curves: by name, any of ``CURVES``, float32 (N,) in [0, 1], NaN where nothing is
    said."""

    times_s: NDArray[np.float64]
    curves: dict[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        if any(len(curve) != len(self.times_s) for curve in self.curves.values()):
            raise ValueError("all curves have a value for each moment")
        if (np.diff(self.times_s) <= 0).any():
            raise ValueError("times must rise")

    def rows(self) -> Iterator[dict[str, float]]:
        """One moment after the other: time_s, and the curves that say something."""
        for row, time_s in enumerate(self.times_s.tolist()):
            said = {name: round(float(curve[row]), 4) for name, curve in self.curves.items() if not np.isnan(curve[row])}
            yield {"time_s": round(time_s, 6), **said}

    def at(self, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """The curves at other times (n,), float32 (n, 9) in the order of ``CURVES``: on the straight line between two values that are less
        than ``APART_S`` apart, else NaN."""
        found = np.full((len(times_s), len(CURVES)), np.nan, np.float32)
        asked = np.round(times_s, 6)  # as in a file
        for column, name in enumerate(CURVES):
            if (curve := self.curves.get(name)) is None or not (said := ~np.isnan(curve)).any():
                continue
            said_s = self.times_s[said]
            after, before = np.searchsorted(said_s, asked), np.searchsorted(said_s, asked, "right") - 1
            near = said_s[np.minimum(after, len(said_s) - 1)] - said_s[np.maximum(before, 0)] < APART_S
            found[near, column] = np.interp(asked[near], said_s, curve[said], np.nan, np.nan)
        return found


def lip_curves(speech: Path, memory: Memory, *, rate_hz: float, seconds: float) -> LipCurves:
    """What the lips of `speech` do, `rate_hz` times a second from 0 to `seconds`, at rest where it pauses.

    Raises UnreadableMedia, NoAudioStream; BundleInvalid: the memory does not tell where lips lie.
    """
    if not memory.spec.points:
        raise BundleInvalid(f"the bundle '{memory.spec.name}' does not tell where lips lie; use base, or export yours again")
    times_s = np.arange(max(1, round(seconds * rate_hz))) / rate_hz
    shapes, silence = [], []
    with closing(lips_at(speech, memory, times_s, pauses_in(speech))) as pieces:
        for lips in pieces:
            assert lips.points is not None  # the bundle tells them
            shapes.append(shapes_of(lips.points * (1 - lips.silence)[:, None, None]))
            silence.append(lips.silence)
    return LipCurves(
        times_s, {"pause": np.concatenate(silence), **{name: np.concatenate([piece[name] for piece in shapes]) for name in SHAPES}}
    )


def read_curves(file: Path) -> LipCurves:
    """The curves in JSON as ``lipdub lips`` writes it, or in a table with the column time_s and any of ``CURVES``; cells may be empty.

    Raises CurvesInvalid: no such file, another format, a name that there is not, numbers out of range, times that do not rise.
    """
    try:
        text = text_of(file.read_bytes())
    except OSError as error:
        raise CurvesInvalid(f"cannot read the lip motion '{file}': {error.strerror or error}; check the path") from error
    except TableError as error:
        raise CurvesInvalid(f"cannot read the lip motion '{file}': it {error}") from error
    try:
        rows = _json_rows(text) if file.suffix.lower() == ".json" else _table_rows(text)
        numbers = np.fromiter(_numbers(rows), np.float64).reshape(-1, len(_NAMES))
    except (ValueError, RecursionError) as error:
        raise CurvesInvalid(f"'{file}' holds no lip motion: {' '.join(str(error).split())}") from error
    curves = dict(zip(CURVES, numbers[:, 1:].T.astype(np.float32), strict=True))
    said = {name: curve for name, curve in curves.items() if not np.isnan(curve).all()}
    if not said:
        raise CurvesInvalid(f"'{file}' holds no lip motion: no row has a value; write it as lipdub lips does")
    return LipCurves(numbers[:, 0].copy(), said)


def _table_rows(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its cells by column."""
    table = read_table(text, _NAMES)
    if "time_s" not in table.columns:
        raise ValueError(f"line {table.line}: no column time_s; its first line names the columns, as lipdub lips writes them")
    if len(set(table.columns)) < len(table.columns):
        raise ValueError(f"line {table.line}: a column is there twice; keep one")
    for line, cells in table.rows:
        if any(cells[len(table.columns) :]):
            raise ValueError(f"line {line}: more cells than columns; put semicolons between cells whose decimals have a comma")
        yield f"line {line}", dict(zip(table.columns, cells, strict=False))


def _json_rows(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The same of JSON."""
    told = json.loads(text)
    moments = told.get("moments") if isinstance(told, dict) else None
    if not isinstance(moments, list):
        raise ValueError("it has no list of moments; write it as lipdub lips does")
    for number, moment in enumerate(moments, 1):
        if not isinstance(moment, dict):
            raise ValueError(f"moment {number}: not an object; write it as lipdub lips does")
        yield f"moment {number}", {name.lower(): "" if value is None else str(value) for name, value in moment.items()}


def _numbers(rows: Iterable[tuple[str, dict[str, str]]]) -> Iterator[float]:
    """Time and curves of each row, one number after the other; NaN where a cell is empty."""
    before_s = -math.inf
    for where, cells in rows:
        if unknown := [name for name in cells if name not in _NAMES]:
            raise ValueError(f"{where}: there is no curve '{unknown[0]}'; there are {', '.join(CURVES)}")
        time_s = _number(cells.get("time_s", ""))
        if not max(0, before_s) <= time_s < math.inf or time_s == before_s:
            raise ValueError(f"{where}: time_s must be seconds, more than in the row before, got '{cells.get('time_s', '')}'")
        before_s = time_s
        yield time_s
        for name in CURVES:
            number = _number(cell := cells.get(name.lower(), ""))
            if cell and not 0 <= number <= 1:
                raise ValueError(f"{where}: {name} must be a number from 0 to 1, or empty, got '{cell}'")
            yield number


def _number(cell: str) -> float:
    """A number with a point or a comma before its decimals, NaN for anything else."""
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        return math.nan
