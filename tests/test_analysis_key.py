"""The key of an analysis: equal for equal content everywhere, another one after any change that gives a video another track."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipdub.errors import UnreadableMedia
from lipdub.faces import analysis_key as module
from lipdub.faces.analysis_key import analysis_key, content_digest, track_constants


@pytest.fixture
def film(tmp_path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"frames" * 1000)
    return path


def other_than(value: object) -> object:
    """A value of the same kind that differs in the least place."""
    if isinstance(value, np.ndarray):
        other = value.copy()
        other.flat[-1] += 1
        return other
    if isinstance(value, slice):
        return slice(value.start, value.stop + 1)
    if isinstance(value, dict):
        return {key: other_than(item) if key == list(value)[-1] else item for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([*value[:-1], other_than(value[-1])] if value else [0])
    if isinstance(value, np.dtype):
        return np.dtype(np.int16)
    return f"{value}." if isinstance(value, str) else value + 1


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=st.binary(max_size=300), other=st.binary(max_size=300))
def test_the_key_is_of_the_content(tmp_path, one, other):
    (tmp_path / "a.mp4").write_bytes(one)
    (tmp_path / "b.mp4").write_bytes(other)
    keys = [analysis_key(tmp_path / name, size_px=96) for name in ("a.mp4", "b.mp4")]
    assert (keys[0] == keys[1]) == (one == other)


def test_the_key_changes_with_everything_that_changes_the_analysis(film, monkeypatch):
    keys = {analysis_key(film, size_px=96), analysis_key(film, size_px=128)}
    monkeypatch.setattr("lipdub.faces.smoothing.SMOOTH_S", 0.06)
    keys.add(analysis_key(film, size_px=96))
    monkeypatch.setattr(module, "_SOURCE_DIGEST", "0" * 40)
    keys.add(analysis_key(film, size_px=96))
    for package in ("mediapipe", "av"):
        version = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name, p=package, v=version: "0.0" if name == p else v(name))
        keys.add(analysis_key(film, size_px=96))
    other_ending = film.with_suffix(".jpg")
    other_ending.write_bytes(film.read_bytes())
    keys.add(analysis_key(other_ending, size_px=96))
    assert len(keys) == 7
    assert all(len(key) == 40 for key in keys)


@pytest.mark.parametrize("name", track_constants())
def test_every_constant_takes_part(film, monkeypatch, name):
    before = analysis_key(film, size_px=96)
    where, _, constant = name.rpartition(".")
    value = getattr(import_module(where), constant)
    monkeypatch.setattr(f"{where}.{constant}", other_than(value))
    assert analysis_key(film, size_px=96) != before
    monkeypatch.setattr(f"{where}.{constant}", value)
    assert analysis_key(film, size_px=96) == before


def test_the_constants_are_those_that_shape_a_track():
    names = {name.removeprefix("lipdub.") for name in track_constants()}
    assert {
        "faces.detector.SEARCH_EVERY", "faces.landmarks.LIPS", "faces.shots.CUT_DIFFERENCE", "faces.smoothing.SMOOTH_S",
        "faces.analysis.BRIDGE_S", "faces.crop._TEMPLATE", "faces.track_file._ROWS", "references.store._JPEG",
        "references.selection.REFERENCE_BIN_DEG",
    } < names  # fmt: skip
    assert not [name for name in names if name.startswith("faces.cache.")]


@pytest.mark.parametrize("value", [object(), lambda: None, {(1, 2): 3}, np.array([print]), [b"bytes"]])
def test_a_constant_that_cannot_be_hashed_is_an_error(film, monkeypatch, value):
    monkeypatch.setattr("lipdub.faces.follow.NEW_CONSTANT", value, raising=False)
    with pytest.raises(TypeError):
        analysis_key(film, size_px=96)


def test_a_set_counts_by_its_content(film, monkeypatch):
    monkeypatch.setattr("lipdub.faces.follow.NEW_CONSTANT", {"b", "a"}, raising=False)
    keys = [analysis_key(film, size_px=96)]
    for value in (frozenset(["a", "b"]), {"a"}):
        monkeypatch.setattr("lipdub.faces.follow.NEW_CONSTANT", value)
        keys.append(analysis_key(film, size_px=96))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    "name", ["faces.follow", "faces.detector", "references.selection", "references.store", "media.planes", "media.pictures", "records"]
)
def test_a_changed_source_is_another_key(monkeypatch, name):
    original = SourceFileLoader.get_source
    assert module._source_digest() == module._SOURCE_DIGEST

    def changed(self, asked):
        return original(self, asked) + "# changed\n" * (asked == f"lipdub.{name}")

    monkeypatch.setattr(SourceFileLoader, "get_source", changed)
    assert module._source_digest() != module._SOURCE_DIGEST


def test_the_key_is_equal_in_every_process(film):
    code = "from lipdub.faces.analysis_key import *; import sys; print(analysis_key(Path(sys.argv[1]), size_px=96))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code, film], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert keys == {analysis_key(film, size_px=96)}


def test_a_copy_under_another_name_has_the_same_key(film, tmp_path):
    copy = tmp_path / "Ünïcødé copy.MP4"
    copy.write_bytes(film.read_bytes())
    assert analysis_key(copy, size_px=96) == analysis_key(film, size_px=96)


def test_what_cannot_be_hashed_is_said_in_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "missing.mp4", Path("nul\0byte"), Path(os.devnull)):
        for hashed in (content_digest, lambda path: analysis_key(path, size_px=96)):
            with pytest.raises(UnreadableMedia) as caught:
                hashed(path)
            assert "\n" not in str(caught.value)
