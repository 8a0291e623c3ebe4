"""Files at URLs: what stands there, fetching, putting whole or not at all, and errors in one line. ``memory://`` and ``file://``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fsspec
import pytest
from batch_jobs import Here, a_report, make_job, manifest, run

from lipdub import pipeline
from lipdub.batch import Row, State, check_manifest, dub_row, make_plan, storage
from lipdub.errors import LipdubError, ManifestError, StorageFailed, UnreadableMedia
from lipdub.options import DubOptions


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    system.makedirs("/bucket")
    yield system
    system.store.clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_job(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("text", "url"),
    [("s3://b/k.mp4", True), ("gs://b/k", True), ("file:///a/b", True), ("C:\\a\\b.mp4", False), ("a/b.mp4", False), ("a:b.mp4", False)],
)
def test_what_is_a_url(text, url):
    assert storage.is_url(text) is url
    assert not storage.is_url(Path("s3:/b"))


def test_what_stands_there_changes_with_its_content(memory, tmp_path):
    for place in ("memory://bucket/x", f"file://{tmp_path}/x", tmp_path / "x"):
        (tmp_path / "x").write_text("one")
        memory.pipe("/bucket/x", b"one")
        first = storage.identity(place)
        assert first is not None
        assert first.size == 3
        assert storage.identity(place) == first
        if isinstance(place, Path):
            place.write_text("another")
        else:
            fsspec.filesystem(place.split(":")[0]).pipe(place, b"another")
        assert first != storage.identity(place)
    assert storage.identity("memory://bucket/none") is None
    assert storage.identity(tmp_path / "none") is None
    assert storage.identity(tmp_path / "x" / "below") is None


def test_many_places_are_looked_at_at_once(memory, tmp_path):
    memory.pipe({f"/bucket/{number}": b"x" for number in range(40)})
    places = [f"memory://bucket/{number}" for number in range(41)] + [tmp_path, "none://x/y"]
    found = storage.identities([*places, *places])
    assert len(found) == 43
    assert found["memory://bucket/40"] is None
    assert isinstance(found["none://x/y"], StorageFailed)
    assert found["memory://bucket/7"].size == 1


def test_there_and_back(memory, tmp_path):
    memory.pipe("/bucket/a b.mp4", b"film")
    copy = storage.fetch("memory://bucket/a b.mp4", tmp_path)
    assert (copy.name, copy.read_bytes()) == ("a b.mp4", b"film")
    storage.put(copy, "memory://bucket/out.mp4")
    assert memory.cat("/bucket/out.mp4") == b"film"
    storage.put(copy, "memory://bucket/out.mp4")  # replaces
    assert sorted(memory.ls("/bucket", detail=False)) == ["/bucket/a b.mp4", "/bucket/out.mp4"]
    with pytest.raises(UnreadableMedia, match="no such file"):
        storage.fetch("memory://bucket/none.mp4", tmp_path)


def test_a_put_that_breaks_off_leaves_nothing(memory, tmp_path, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(b"film")

    def broken(*places: object, **options: object) -> None:
        (found,) = memory.ls("/bucket", detail=False)
        assert re.fullmatch(r"/bucket/\.x\.[0-9a-f]{12}\.lipdub-part\.mp4", found)
        raise OSError("the network is gone")

    monkeypatch.setattr(type(memory), "mv", broken)
    with pytest.raises(StorageFailed, match="the network is gone"):
        storage.put(tmp_path / "x.mp4", "memory://bucket/x.mp4")
    assert memory.ls("/bucket", detail=False) == []


def test_the_sweep_takes_stale_parts(memory, tmp_path):
    for name in (".x.0123456789ab.lipdub-part.mp4", ".y.0123456789ab.lipdub-part.mp4", "x.mp4"):
        memory.pipe(f"/bucket/{name}", b"x")
        (tmp_path / name).touch()
    assert storage.sweep(["memory://bucket/x.mp4", f"file://{tmp_path}/x.mp4", "none://x/y.mp4"]) == 2
    assert sorted(memory.ls("/bucket", detail=False)) == ["/bucket/.y.0123456789ab.lipdub-part.mp4", "/bucket/x.mp4"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [".y.0123456789ab.lipdub-part.mp4", "x.mp4"]


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("nosuch://bucket/x.mp4", "no such kind of storage"),
        ("memory://bucket/folder/", "names no file"),
        ("file:///no/such/folder/x.mp4", "no folder"),
    ],
)
def test_places_that_cannot_be_written(memory, url, word):
    with pytest.raises(LipdubError, match=word) as caught:
        storage.check_place(url)
    assert "\n" not in str(caught.value)


def test_errors_of_storages_become_ours(memory, monkeypatch):
    for error, word in (
        (RuntimeError("no\ncredentials"), "RuntimeError: no credentials"),
        (ImportError("Install s3fs"), "lipdub\\[cloud\\]"),
    ):

        def info(self, path, error=error, **options):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(type(memory), "info", info)
            with pytest.raises(StorageFailed, match=word) as caught:
                storage.identity("memory://bucket/x")
            assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- rows


@pytest.fixture
def dubs(monkeypatch):
    calls = []

    def dub(video: Path, speech: Path, out: Path, options: DubOptions, **others: object):
        calls.append((video.read_bytes(), speech.read_bytes()))
        out.write_bytes(b"dubbed " + video.read_bytes())
        return a_report(Row(2, video, speech, out))

    monkeypatch.setattr(pipeline, "dub", dub)
    return calls


def test_a_row_of_urls(memory, dubs, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    memory.pipe({"/bucket/talk.mp4": b"film", "/bucket/talk.wav": b"sound"})
    stages = []
    base = "memory://bucket"
    row = Row(2, f"{base}/talk.mp4", f"{base}/talk.wav", f"{base}/out.mp4", DubOptions(), f"{base}/out.json")
    result = dub_row(row, lambda stage, done, total: stages.append(stage))
    assert result.why == ""
    assert dubs == [(b"film", b"sound")]
    assert memory.cat("/bucket/out.mp4") == b"dubbed film"
    assert json.loads(memory.cat("/bucket/out.json"))["output"] == row.output
    assert result.report is not None
    assert (result.report.video, result.report.output) == (row.video, row.output)
    assert stages == ["fetching", "fetching", "putting"]
    assert list(tmp_path.iterdir()) == []
    again = dub_row(row)
    assert "exists already" in again.why
    assert not again.transient
    assert len(dubs) == 1


def test_a_network_that_fails_is_worth_another_try_and_a_missing_file_is_not(memory, dubs, monkeypatch, tmp_path):
    row = Row(2, "memory://bucket/none.mp4", "memory://bucket/none.wav", tmp_path / "o.mp4")
    assert not dub_row(row).transient
    monkeypatch.setattr(type(memory), "get_file", lambda *paths, **options: (_ for _ in ()).throw(TimeoutError("slow")))
    assert dub_row(row).transient


def test_a_manifest_of_urls_is_checked_and_resumed(memory, folder, dubs):
    memory.pipe("/bucket/talk.mp4", b"good")
    good = "memory://bucket/talk.mp4,speech.wav,memory://bucket/out.mp4"
    path = manifest(
        folder,
        good,
        "memory://bucket/none.mp4,speech.wav,memory://bucket/out.avi",
        "memory://bucket/talk.mp4,speech.wav,memory://bucket/talk.mp4",
    )
    with pytest.raises(ManifestError) as caught:
        check_manifest(path)
    words = ("no such file", "lipdub writes .mp4", "it is an input", "is an input of line 2")
    assert [problem[:7] for problem in caught.value.problems] == ["line 3:", "line 3:", "line 4:", "line 4:"]
    assert all(word in problem for word, problem in zip(words, caught.value.problems, strict=True))
    path = manifest(folder, good)
    for expected in ("dub", "keep"):
        state = State(path)
        plan = make_plan(check_manifest(path, owned=lambda place, now, state=state: state.wrote(place, now) is not None), state)
        assert [step.action for step in plan] == [expected]
        run(plan, Here(), state)
    memory.pipe("/bucket/out.mp4", b"somebody else's")
    with pytest.raises(ManifestError, match="exists already"):
        check_manifest(path, owned=lambda place, now: State(path).wrote(place, now) is not None)


def test_a_url_that_is_refused_before_anything_is_fetched(memory, dubs):
    memory.pipe("/bucket/out.mp4", b"there")
    result = dub_row(Row(2, "memory://bucket/none.mp4", "memory://bucket/none.wav", "memory://bucket/out.mp4"))
    assert "exists already" in result.why
