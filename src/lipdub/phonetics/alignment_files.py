"""Alignments on disk: read from CSV or a Praat TextGrid, written as CSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Final

from lipdub.atomic import whole_file
from lipdub.errors import PhonemesError
from lipdub.phonetics.alignment import Alignment, Phoneme
from lipdub.phonetics.classes import ARPABET, classes_of, is_silence
from lipdub.tables import TableError, read_table, text_of


def read_alignment(file: Path) -> Alignment:
    """The alignment in a Praat TextGrid (its tier ``phones`` or ``phonemes``, else the only one of intervals), or in a CSV with
    the columns ``start_s, end_s, phoneme``. Symbols in IPA or ARPABET.

    Raises PhonemesError: no such file, another format, spans that overlap or run backwards, unknown symbols.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise PhonemesError(f"cannot read the alignment '{file}': {error.strerror}; check the path") from error
    try:
        text = text_of(raw)
    except TableError as error:
        raise PhonemesError(f"cannot read the alignment '{file}': it {error}") from error
    try:
        rows = _textgrid_rows(text) if "ooTextFile" in text[:200] or file.suffix.lower() == ".textgrid" else _csv_rows(text)
        arpabet = all(re.sub(r"\d$", "", symbol) in ARPABET for _, _, symbol in rows if not is_silence(symbol))
        phonemes = []
        for start_s, end_s, symbol in rows:
            if not is_silence(symbol):
                classes_of(symbol if not arpabet else "a")
                phonemes.append(Phoneme(start_s, end_s, ARPABET[re.sub(r"\d$", "", symbol)] if arpabet else symbol))
        alignment = Alignment(tuple(sorted(phonemes, key=lambda one: one.start_s)))
    except (ValueError, PhonemesError) as error:
        raise PhonemesError(f"'{file}' holds no alignment: {error}") from error
    if not phonemes:
        raise PhonemesError(f"'{file}' holds no phoneme; give a TextGrid, or a CSV with the columns start_s, end_s, phoneme")
    return alignment


def _csv_rows(text: str) -> list[tuple[float, float, str]]:
    names = {"start_s", "end_s", "phoneme"}
    table = read_table(text, names)
    if missing := names - set(table.columns):
        raise ValueError(
            f"column {', '.join(sorted(missing))} is missing; give a TextGrid, or a CSV with the columns start_s, end_s, phoneme"
        )
    rows = []
    for line, row in table.records():
        try:
            rows.append((_seconds(row["start_s"]), _seconds(row["end_s"]), row["phoneme"]))
        except ValueError as error:
            raise ValueError(f"line {line}: start_s and end_s must be numbers of seconds") from error
    return rows


def _seconds(cell: str) -> float:
    """A number, with a point or a comma before its decimals."""
    return float(cell.replace(",", "."))


_TOKEN: Final = re.compile(r'"(?:[^"]|"")*"|<exists>|(?<![\w\[])[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w\]])')


def _textgrid_rows(text: str) -> list[tuple[float, float, str]]:
    """Intervals of the phoneme tier of a TextGrid, long or short form: both are the same strings and numbers in the same order."""
    tokens = _TOKEN.findall(text)
    at = tokens.index("<exists>") + 2 if "<exists>" in tokens else -1  # then the number of tiers
    if at < 0:
        raise ValueError("the TextGrid has no tiers")
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    try:
        while at < len(tokens):
            kind, name, count = tokens[at].strip('"'), tokens[at + 1].strip('"'), int(tokens[at + 4])
            at += 5
            width = 3 if kind == "IntervalTier" else 2
            if kind == "IntervalTier":
                entries = [tokens[at + width * number : at + width * (number + 1)] for number in range(count)]
                tiers[name] = [(float(start), float(end), label[1:-1].replace('""', '"').strip()) for start, end, label in entries]
            at += width * count
    except (IndexError, ValueError) as error:
        raise ValueError("the TextGrid is cut off or damaged") from error
    named = [name for name in tiers if name.lower().split(" ")[-1] in ("phones", "phonemes", "phone", "phoneme", "segments")]
    if not named and len(tiers) != 1:
        raise ValueError(f"no tier is named phones; found: {', '.join(tiers) or 'none of intervals'}")
    return tiers[named[0] if named else next(iter(tiers))]


def write_alignment(alignment: Alignment, file: Path) -> None:
    """Write the CSV that `read_alignment` reads. Raises WriteFailed."""
    with whole_file(file) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("start_s", "end_s", "phoneme"))
        writer.writerows((f"{one.start_s:.4f}", f"{one.end_s:.4f}", one.symbol) for one in alignment)
