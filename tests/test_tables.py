"""Tables as Excel and LibreOffice write them, in any language, and what reads them."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from batch_jobs import make_job, read_manifest
from hypothesis import given
from hypothesis import strategies as st

from lipdub.batch import Row
from lipdub.errors import ManifestError, PhonemesError
from lipdub.evaluate.clips import list_clips
from lipdub.options import dub_options
from lipdub.phonetics.alignment_files import read_alignment
from lipdub.tables import CODE_PAGES, TableError, read_table, text_of

KNOWN = ("video", "speech", "output", "crf", "force")
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0\ufeff", exclude_categories=["Cs"])
ENCODINGS = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16, little": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-16, little, no mark": lambda text: text.encode("utf-16-le"),
    "UTF-16, big, no mark": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_job(tmp_path, monkeypatch)


def rows_of(folder: Path, data: bytes) -> tuple[Row, ...]:
    (folder / "manifest.csv").write_bytes(data)
    return read_manifest(folder / "manifest.csv")


# ---------------------------------------------------------------------------------------------------------- any table


@given(
    cells=st.lists(
        st.lists(st.text(CHARACTERS, max_size=8), min_size=3, max_size=3), max_size=4
    ),
    delimiter=st.sampled_from(",;\t|"),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    quoted=st.booleans(),
    told=st.booleans(),
    trailing=st.integers(0, 3),
)  # fmt: skip
def test_whatever_a_spreadsheet_does_to_a_table_the_cells_come_back(
    cells: list[list[str]], delimiter: str, newline: str, encoding: str, quoted: bool, told: bool, trailing: int
) -> None:
    def line(values: list[str]) -> str:
        special = (delimiter, '"', "\n", "\r")
        shown = [f'"{v.replace(chr(34), chr(34) * 2)}"' if quoted or any(s in v for s in special) else v for v in values]
        return delimiter.join(shown) + delimiter * trailing + newline

    text = (f"sep={delimiter}{newline}" if told else "") + line(["Video", "SPEECH", "output"]) + "".join(map(line, cells))
    table = read_table(text_of(ENCODINGS[encoding](text)), KNOWN)
    assert table.columns == ("video", "speech", "output")
    kept = [tuple(cell.strip() for cell in row) for row in cells if any(cell.strip() for cell in row)]
    assert [row for _, row in table.rows] == kept


def test_lines_are_counted_from_the_first_of_the_file() -> None:
    table = read_table('sep=;\n\nvideo;speech;output\n"two\nlines";b;c\n;;\nd;e;f\n', KNOWN)
    assert (table.line, [line for line, _ in table.rows]) == (3, [4, 7])


def test_columns_without_name_and_content_are_left_out_wherever_they_stand() -> None:
    table = read_table(";video;;speech;output;;\n;a;;b;c;;\n;d;;e;f\n;g;;h\n", KNOWN)
    assert table.columns == ("video", "speech", "output")
    assert [row for _, row in table.rows] == [("a", "b", "c"), ("d", "e", "f"), ("g", "h")]
    assert [row["output"] for _, row in table.records()] == ["c", "f", ""]
    assert read_table("video;;output\na;note;c\n", KNOWN).columns == ("video", "", "output")


@pytest.mark.parametrize("data", [b"PK\3\4...", b"\xd0\xcf\x11\xe0...."])
def test_a_spreadsheet_of_its_own_format_is_named(data: bytes) -> None:
    with pytest.raises(TableError, match="is a spreadsheet; save it as CSV"):
        text_of(data)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"caf\xe9", b"\xef\xbb\xbf\xff"])
def test_what_is_no_text_is_said(data: bytes) -> None:
    with pytest.raises(TableError, match="save it in UTF-8"):
        text_of(data)


# --------------------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_manifests_of_any_spreadsheet(folder: Path, encoding: str, delimiter: str) -> None:
    lines = ["video,speech,output,crf,full-size,,", "talk.mp4,speech.wav,o.mp4,18,,,", "other.mp4,speech.wav,ö.mp4,,,", "", ",,,,,,"]
    text = "\r\n".join(lines).replace(",", delimiter)
    one, other = rows_of(folder, ENCODINGS[encoding](text))
    assert (one.output, one.options.crf, other.output, other.line) == (folder / "o.mp4", 18, folder / "ö.mp4", 3)


def test_rows_may_end_before_cells_that_are_empty(folder: Path) -> None:
    one, other = rows_of(folder, b"video;speech;output;crf;report\ntalk.mp4;speech.wav;a.mp4\ntalk.mp4;speech.wav;b.mp4;9\n")
    assert (one.options.crf, one.report, other.options.crf) == (12, None, 9)


CODED = [
    ("cp1252", "Grüße.mp4"),
    ("cp1250", "Łukasz žluťoučký.mp4"),
    ("cp1251", "Видео.mp4"),
    ("cp1253", "βίντεο.mp4"),
    ("cp1254", "İstanbul ığş.mp4"),
    ("cp1255", "וידאו.mp4"),
    ("cp1256", "فيديو.mp4"),
    ("cp874", "วิดีโอ.mp4"),
    ("cp932", "映像テスト.mp4"),
    ("gbk", "视频演示.mp4"),
    ("cp949", "비디오.mp4"),
    ("cp950", "視頻示範.mp4"),
    ("mac_roman", "Mélodie.mp4"),
]


@pytest.mark.parametrize(("page", "name"), CODED)
def test_old_code_pages_are_told_by_the_files_that_are_named(folder: Path, page: str, name: str) -> None:
    assert page in CODE_PAGES
    (folder / name).write_bytes((folder / "talk.mp4").read_bytes())
    (row,) = rows_of(folder, f"video;speech;output\r\n{name};speech.wav;neu {name}\r\n".encode(page))
    assert (row.video, row.output) == (folder / name, folder / f"neu {name}")


@pytest.mark.parametrize("line", ["talk.mp4;speech.wav;Grüße.mp4", "Grüße.mp4;speech.wav;o.mp4"])
def test_a_code_page_that_no_file_tells_is_not_guessed(folder: Path, line: str) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.csv' is not UTF-8 text; save it in UTF-8 \(Excel"):
        rows_of(folder, f"video;speech;output\n{line}\n".encode("cp1252"))


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("TRUE", "FALSE"),
        ("WAHR", "FALSCH"),
        ("VRAI", "FAUX"),
        ("VERDADERO", "FALSO"),
        ("WAAR", "ONWAAR"),
        ("ИСТИНА", "ЛОЖЬ"),
        ("DOĞRU", "YANLIŞ"),
        ("yes", "no"),
        ("wahr", "0"),
    ],
)
def test_true_and_false_of_any_language(yes: str, no: str) -> None:
    force = next(option for option in dub_options() if option.name == "force")
    assert (force.parse(yes), force.parse(no)) == (True, False)


@pytest.mark.parametrize(("cell", "crf"), [("18", 18), ("18.0", 18), ("18,00", 18), ("0", 0)])
def test_whole_numbers_may_show_decimals(folder: Path, cell: str, crf: int) -> None:
    (row,) = rows_of(folder, f"video;speech;output;crf\ntalk.mp4;speech.wav;o.mp4;{cell}\n".encode())
    assert row.options.crf == crf


def test_json_lines_of_powershell(folder: Path) -> None:
    path = folder / "manifest.jsonl"
    text = '{"video": "talk.mp4", "speech": "speech.wav", "output": "ö.mp4", "full-size": true}\r\n'
    for encode in ENCODINGS.values():
        path.write_bytes(encode(text))
        (row,) = read_manifest(path)
        assert (row.output.name, row.options.full_size) == ("ö.mp4", True)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------ other tables


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_alignments_with_decimal_commas(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "talk.csv"
    path.write_bytes(ENCODINGS[encoding]("start_s;end_s;phoneme;\r\n0,25;0,5;a;\r\n0,5;0,75;ʃ;\r\n"))
    assert [(one.start_s, one.end_s, one.symbol) for one in read_alignment(path).phonemes] == [(0.25, 0.5, "a"), (0.5, 0.75, "ʃ")]
    path.write_bytes(b"start_s;end_s;phoneme\n0,2;1.000,5;a\n")
    with pytest.raises(PhonemesError, match="line 2: start_s and end_s must be numbers"):
        read_alignment(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_manifests_beside_clips(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "val").mkdir()
    text = "file;speaker;use;seconds;\r\nval/a.mp4;Zoë;measure;12;\r\nval/b.mp4;Zoë;train;12;\r\n"
    (tmp_path / "manifest.csv").write_bytes(ENCODINGS[encoding](text))
    ((clip,), unreadable) = list_clips(tmp_path / "val", seconds_min=8)
    assert (clip.path.name, clip.speaker, unreadable) == ("a.mp4", "Zoë", {})
