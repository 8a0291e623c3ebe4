"""Where a report may lie: never over a file of its own dub, by whatever path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lipdub.errors import OutputRefused
from lipdub.records import DubWarning
from lipdub.reports import check_report


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("talk.mp4", "speech.wav"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    os.link("speech.wav", "hard.wav")
    return tmp_path


def check(path: str, *, force: bool, output: Path | None = Path("out.mp4")) -> None:
    check_report(Path(path), inputs=[Path("talk.mp4"), Path("speech.wav")], output=output, force=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("talk.mp4", "an input"),
        ("./link/./talk.mp4", "an input"),
        ("link/speech.wav", "an input"),
        ("hard.wav", "an input"),
        ("out.mp4", "the output"),
        ("link/out.mp4", "the output"),
    ],
)
def test_a_report_never_lies_over_a_file_of_its_dub(work: Path, path: str, what: str, force: bool) -> None:
    """Also where nothing is there yet, and whatever --force says."""
    with pytest.raises(OutputRefused, match=rf"cannot write the report '.*': it is {what}; choose another name") as caught:
        check(path, force=force)
    assert "\n" not in str(caught.value)


def test_other_reports_are_written_unless_they_exist(work: Path) -> None:
    check("report.json", force=False)
    check("report.json", force=False, output=None)
    (work / "report.json").write_text("{}")
    with pytest.raises(OutputRefused, match="exists already; add --force"):
        check("report.json", force=False)
    check("report.json", force=True)
    with pytest.raises(OutputRefused, match="there is no folder 'gone'"):
        check("gone/report.json", force=True)


def test_a_missing_or_unusable_input_is_not_this_checks_business(work: Path) -> None:
    check_report(Path("report.json"), inputs=[Path("gone.mp4"), Path("x" * 300)], output=None, force=False)


def test_a_warning_is_one_line_with_the_stretches_that_it_is_about() -> None:
    assert DubWarning("sound-cut-off", "it ends early").line == "it ends early"
    times = tuple((float(k), k + 0.5) for k in range(6))
    assert DubWarning("gap", "closed", times[:2]).line == "closed (0.00-0.50 s, 1.00-1.50 s)"
    assert DubWarning("gap", "closed", times).line == "closed (0.00-0.50 s, 1.00-1.50 s, 2.00-2.50 s, 3.00-3.50 s and 2 more)"


@pytest.mark.parametrize(
    ("kind", "text", "times"), [("Two words", "x", ()), ("", "x", ()), ("a", "", ()), ("a", "x\ny", ()), ("a", "x", ((2.0, 1.0),))]
)
def test_a_warning_checks_itself(kind: str, text: str, times: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="got"):
        DubWarning(kind, text, times)
