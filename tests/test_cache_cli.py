"""``lipdub cache``: shows, clears, and says where."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from test_cache import made_track
from typer.testing import CliRunner

from lipdub.cli import cache as command
from lipdub.cli.app import app
from lipdub.faces.cache import AnalysisCache

RUN = CliRunner()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The user's cache, with two analyses: one used 40 days ago."""
    monkeypatch.setenv("LIPDUB_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("LIPDUB_CACHE_LIMIT", "500MB")
    cache = AnalysisCache(tmp_path / "kept")
    with closing((track := made_track(12)).references):
        for number, name in enumerate(("old [talk].mp4", "new.mkv")):
            assert cache.keep(f"{number:040x}", track, video=Path("films") / name)
    path = tmp_path / "kept" / f"{0:040x}.npz"
    long_ago = path.stat().st_mtime - 40 * 86400
    os.utime(path, (long_ago, long_ago))
    return tmp_path / "kept"


def test_it_shows_what_is_kept(folder):
    shown = RUN.invoke(app, ["cache"])
    assert shown.exit_code == 0
    for what in ("old [talk].mp4", "new.mkv", "12", "5 weeks ago", "just now", "2 analyses", "at most 500 MB", str(folder)):
        assert what in shown.stdout, what
    assert shown.stdout.index("new.mkv") < shown.stdout.index("old [talk].mp4")


def test_a_damaged_entry_is_shown_as_such(folder):
    (folder / f"{1:040x}.npz").write_bytes(b"torn")
    assert "damaged" in RUN.invoke(app, ["cache"]).stdout


def test_it_clears_what_is_old_then_all(folder):
    done = RUN.invoke(app, ["cache", "clear", "--older-than", "30d"])
    assert done.exit_code == 0
    assert "removed 1 analysis" in done.stdout
    assert [path.name for path in folder.glob("*.npz")] == [f"{1:040x}.npz"]
    assert "removed 1 analysis" in RUN.invoke(app, ["cache", "clear"]).stdout
    assert "removed 0 analyses, 0 B" in RUN.invoke(app, ["cache", "clear"]).stdout
    assert list(folder.glob("*.npz")) == []


def test_what_cannot_be_removed_is_said(folder, monkeypatch):
    monkeypatch.setattr("lipdub.faces.cache._remove", lambda path: False)
    done = RUN.invoke(app, ["cache", "clear"])
    assert done.exit_code == 1
    assert "2 analyses could not be removed" in done.output


def test_the_folder_for_scripts(folder):
    shown = RUN.invoke(app, ["cache", "path"])
    assert (shown.exit_code, shown.stdout) == (0, f"{folder}\n")


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["clear"], 0), (["path"], 1)])
def test_without_a_cache(monkeypatch, arguments, code):
    monkeypatch.setenv("LIPDUB_CACHE", "off")
    shown = RUN.invoke(app, ["cache", *arguments])
    assert shown.exit_code == code
    assert shown.stdout == ""
    assert "there is no cache" in shown.stderr


@given(number=st.integers(0, 10**6), unit=st.sampled_from("smhdwSMHDW"), gap=st.booleans())
def test_lengths_of_time(number, unit, gap):
    assert command.seconds_of(f"{number}{' ' * gap}{unit}") == number * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit.lower()]


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1d2h", "1e3d", "inf d"])
def test_what_is_no_length_of_time_is_a_usage_error(folder, text):
    with pytest.raises(typer.BadParameter, match="no length of time"):
        command.seconds_of(text)
    assert RUN.invoke(app, ["cache", "clear", "--older-than", text]).exit_code == 2
    assert len(list(folder.glob("*.npz"))) == 2


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_960, "100 kB"),
        (1_500_000, "1.5 MB"),
        (2 * 2**30, "2.1 GB"),
        (5 * 10**12, "5.0 TB"),
    ],
)
def test_sizes_for_people(count, text):
    assert command.size_text(count) == text


@given(st.floats(-10, 1e9))
def test_ages_for_people(seconds):
    text = command.age_text(seconds)
    assert text == "just now" or text.endswith(" ago")
    assert not text.startswith("0")
    assert not text.startswith("1 ") or "s ago" not in text
