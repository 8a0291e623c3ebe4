"""faces/more_footage.py: pages of other videos beside those of the one that is dubbed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import draw_video
from faces_for_tests import portrait_frames, scaled
from fakes import write_fake_bundle
from test_pipeline import dubbed, loud, write_wav

from lipdub import media
from lipdub.bundles import bundle
from lipdub.errors import BundleInvalid, NoFaceFound, UnreadableMedia
from lipdub.faces.follow import follow
from lipdub.faces.more_footage import videos_in, with_footage
from lipdub.faces.overlays import Overlay, Overlays, lies_on
from lipdub.faces.track import FaceTrack
from lipdub.faces.track_file import write_track
from lipdub.records import VideoInfo


def followed(place: Path, info: VideoInfo) -> tuple[FaceTrack, bool]:
    return follow(place, info, size=64)[0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    pictures = [scaled(pixels, (256, 256)) for pixels in portrait_frames(12)]
    draw_video(folder / "a.mp4", pictures=pictures[:8], fps=25)
    (folder / "more").mkdir()
    draw_video(folder / "more" / "b.mp4", pictures=pictures[4:], fps=25)
    draw_video(folder / "more" / "c.mov", pictures=pictures[::-1], fps=25)
    (folder / "more" / "notes.txt").write_text("no video")
    draw_video(folder / "empty.mp4", frames=5)
    write_wav(folder / "second.wav", loud(1.0))
    write_fake_bundle(folder / "fake")
    return folder


@pytest.fixture
def track(clips: Path) -> Iterator[FaceTrack]:
    found, _ = followed(clips / "a.mp4", media.probe(clips / "a.mp4"))
    with closing(found.references):
        yield found


def test_pages_of_other_videos_come_after_the_videos_own(clips: Path, track: FaceTrack) -> None:
    own = len(track.pages)
    whole = with_footage(track, [(file, followed(file, media.probe(file))[0]) for file in videos_in(clips / "more")])
    with closing(whole.references):
        others = [followed(file, media.probe(file))[0] for file in videos_in(clips / "more")]
        assert len(whole.pages) == whole.references.count == own + sum(len(other.pages) for other in others)
        assert (whole.pages.person == track.pages.person[0]).all()
        first, beyond = own, len(track) + 1
        for other in others:
            last = first + len(other.pages)
            np.testing.assert_array_equal(whole.pages.frame[first:last], other.pages.frame + beyond)
            for number in range(first, last):
                copy, page = whole.references.get(number), other.references.get(number - first)
                np.testing.assert_array_equal(copy.pixels, page.pixels)
                assert (copy.detail is None) == (page.detail is None)
            first, beyond = last, beyond + len(other) + 1
            other.references.close()
        # No page is the successor of one of another video, and a page of another video is never the frame that is redrawn.
        assert not (np.diff(whole.pages.frame)[np.flatnonzero(np.diff(whole.page_times_s > 1e9))] == 1).any()
        np.testing.assert_array_equal(whole.page_times_s[:own], track.times_s[track.pages.frame])
        assert np.isinf(whole.page_times_s[own:]).all()
        np.testing.assert_array_equal(whole.reference, track.reference)


def test_what_lies_on_pages_of_other_videos_comes_with_them(clips: Path, track: FaceTrack) -> None:
    def captioned(place: Path) -> FaceTrack:
        found, _ = followed(place, media.probe(place))
        return replace(found, overlays=Overlays.of([Overlay(0, len(found), 1, 0, 0, np.ones((256, 256), bool))]))

    own = len(track.pages)
    whole = with_footage(track, [(file, captioned(file)) for file in videos_in(clips / "more")])
    with closing(whole.references):
        under = [lies_on(whole.pages, number, whole.overlays) for number in range(len(whole.pages))]
        assert not any(under[:own])
        assert all(under[own:])


def test_a_dub_counts_the_pages_of_more_footage(clips: Path, tmp_path: Path) -> None:
    counts = [
        dubbed(clips, tmp_path / "out.mp4", video="a.mp4", references=references, force=True).pages
        for references in (None, str(clips / "more" / "b.mp4"), str(clips / "more"))
    ]
    assert counts[0] < counts[1] < counts[2]


def test_a_dub_counts_the_pages_of_its_bundle(clips: Path, tmp_path: Path) -> None:
    adapted = Path(shutil.copytree(clips / "fake", tmp_path / "anna"))
    spec, more = bundle.load_spec(adapted), clips / "more" / "b.mp4"
    ((track, _),) = follow(more, media.probe(more), size=spec.crop.size)
    with closing(track.references):
        write_track(track, adapted / bundle.BANK)
    spec = bundle.finish(adapted, spec)
    counts = [dubbed(clips, tmp_path / "out.mp4", video="a.mp4", model=str(model), force=True).pages for model in (clips / "fake", adapted)]
    assert counts[1] == counts[0] + len(track.pages)
    # It counts as part of the bundle: another one is told, and so is what no lipdub of this version wrote.
    (adapted / bundle.BANK).write_bytes(b"mouths of tomorrow")
    with pytest.raises(BundleInvalid, match=r"bank\.npz was altered"):
        dubbed(clips, tmp_path / "new.mp4", video="a.mp4", model=str(adapted))
    assert bundle.finish(adapted, spec).graphs != spec.graphs
    with pytest.raises(BundleInvalid, match="run lipdub adapt again") as caught:
        dubbed(clips, tmp_path / "new.mp4", video="a.mp4", model=str(adapted))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new.mp4").exists()


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("empty.mp4", NoFaceFound, "leave it out of --references"),
        ("missing.mp4", UnreadableMedia, "no such file"),
        ("fake", UnreadableMedia, "holds no video"),
    ],
)
def test_footage_that_cannot_be_used_is_one_line_and_leaves_nothing(
    clips: Path, tmp_path: Path, place: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        dubbed(clips, tmp_path / "out.mp4", video="a.mp4", references=str(clips / place))
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []
