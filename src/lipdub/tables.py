"""Tables as spreadsheets write them: Excel and LibreOffice, in any language, on any system.

Cells are apart by commas, semicolons (where the comma is for decimals), tabs ("Unicode text") or bars; the text is UTF-8 or UTF-16, with
or without a mark at its beginning, or of an older code page; empty columns trail behind, and rows end early where their last cells are
empty.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

_DELIMITERS: Final = (",", ";", "\t", "|")
_SEP_LINE: Final = re.compile(r'"?sep=(.)"?[ ,;\t|]*(?:\r\n|\r|\n)', re.IGNORECASE)
"""What Excel takes as a word on the delimiter, and no other program; before the names of the columns."""
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CODE_PAGES: Final = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874", "cp932", "gbk", "cp949", "cp950",
    "mac_roman", "mac_cyrillic",
)  # fmt: skip
"""What programs write "CSV" in, by the language of the system: Western, Central European, Cyrillic, Greek, Turkish, Hebrew, Arabic, Baltic,
Vietnamese, Thai, Japanese, Chinese, Korean; and two of old Macs."""
_ARCHIVES: Final = (b"PK\3\4", b"\xd0\xcf\x11\xe0")
"""How .xlsx and .ods, and .xls begin."""


class TableError(ValueError):
    """Text that is no table; what is wrong, and what to do, without the file's name."""


@dataclass(frozen=True, slots=True)
class Table:
    """columns: their names in small letters, "" where one has none. line: where they stand, from 1, as an editor counts. rows: each with
    its line, and as many cells as the row had; empty rows are left out. Names and cells have no spaces around them."""

    columns: tuple[str, ...]
    line: int
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def records(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Each row with its line as cells by column, "" where it ends early; cells beyond the last column are left out."""
        for line, cells in self.rows:
            padded = (*cells, *[""] * len(self.columns))
            yield line, dict(zip(reversed(self.columns), reversed(padded[: len(self.columns)]), strict=True))


def text_of(data: bytes, fits: Callable[[str], bool] | None = None) -> str:
    """The text of a file. fits: whether a text makes sense; without it, only Unicode is read, for a code page cannot be told.

    Raises TableError: a spreadsheet's own format, or no text that fits.
    """
    if data.startswith(_ARCHIVES):
        raise TableError("is a spreadsheet; save it as CSV (UTF-8)")
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if marked is None and len(data) > 3 and 0 in data[:2] and data[2:4].count(0) == 1:
        marked = "utf-16-le" if data[1] == 0 else "utf-16-be"
    try:
        text = data.decode(marked or "utf-8").removeprefix("\ufeff")
        if data and not text and marked != "utf-8-sig":
            raise UnicodeDecodeError(marked or "utf-8", data, 0, len(data), "a mark, and no text")
        return text
    except UnicodeDecodeError as error:
        if fits is not None and marked is None:
            for page in CODE_PAGES:
                try:
                    text = data.decode(page)
                    if fits(text):
                        return text
                except ValueError:
                    continue
        raise TableError("is not UTF-8 text; save it in UTF-8 (Excel: 'CSV UTF-8')") from error


def read_table(text: str, known: Collection[str]) -> Table:
    """The table in `text`, whose first line that is not empty names the columns. known: names that there may be, in small letters; the
    delimiter that gives most of them is taken.

    Columns without name and content are left out; a text without any gives a table without columns. Raises TableError: quotes that do
    not close.
    """
    first_line, wanted = 1, None
    if told := _SEP_LINE.match(text):
        text, first_line, wanted = text[told.end() :], 2, told[1]
    found = {mark: _head(text, mark) for mark in _DELIMITERS}
    delimiter = wanted or max(_DELIMITERS, key=lambda mark: sum(name in known for name in found[mark]))
    lines = list(_lines(text, delimiter, first_line))
    if not lines:
        return Table((), first_line, ())
    (head_line, head), *body = lines
    columns = [name.lower() for name in head]
    widest = max(len(cells) for _, cells in lines)
    for number in range(widest, 0, -1):
        if not (columns[number - 1] if number <= len(columns) else "") and not any(_cell(cells, number) for _, cells in body):
            for cells in (columns, *(cells for _, cells in body)):
                del cells[number - 1 : number]
    return Table(tuple(columns), head_line, tuple((line, tuple(cells)) for line, cells in body))


def _cell(cells: list[str], number: int) -> str:
    return cells[number - 1] if number <= len(cells) else ""


def _head(text: str, delimiter: str) -> list[str]:
    try:
        return [name.lower() for name in next(_lines(text, delimiter, 1), (1, []))[1]]
    except TableError:
        return []


def _lines(text: str, delimiter: str, line: int) -> Iterator[tuple[int, list[str]]]:
    """The lines that hold anything, each with its number; the first of the text has the number `line`."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    before = line
    try:
        for cells in reader:
            stripped = [cell.strip("\ufeff").strip() for cell in cells]
            if any(stripped):
                yield line, stripped
            line = before + reader.line_num
    except csv.Error as error:
        raise TableError(f"line {line}: no CSV ({error}); check the quotes") from error
