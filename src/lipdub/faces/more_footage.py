"""More footage of a person: pages that other videos show, beside those of the video that is dubbed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from lipdub import media
from lipdub.errors import NoFaceFound, UnreadableMedia
from lipdub.faces.track import FaceTrack
from lipdub.records import VideoInfo
from lipdub.references.pages import Pages
from lipdub.references.store import ReferenceStore

Followed = Callable[[Path, VideoInfo], tuple[FaceTrack, bool]]
"""What is seen in a video, and whether that was known, as ``follow`` gives it."""


def videos_in(place: Path) -> list[Path]:
    """`place` itself, or where it is a folder the videos in it, sorted. Raises UnreadableMedia: there is none."""
    if not place.is_dir():
        return [place]
    found = sorted(file for file in place.iterdir() if file.suffix.lower() in media.VIDEO_SUFFIXES and file.is_file())
    if not found:
        raise UnreadableMedia(f"the folder '{place}' holds no video; put more footage of the person into it")
    return found


def with_footage(track: FaceTrack, place: Path, followed: Followed) -> FaceTrack:
    """`track` with the pages of its main person that the video at `place` shows, or each video of a folder: who is on most frames is the
    same person in all of them. A store of its own holds all pages; frames are numbered on from those of `track`, with a gap before each
    video.

    Raises UnreadableMedia, NoVideoStream. NoFaceFound: a video shows nobody who can be drawn from.
    """
    store, parts, first = ReferenceStore(track.references.size), [track.pages], len(track) + 1
    try:
        store.copy(track.references, np.arange(len(track.pages)))
        for video in videos_in(place):
            other, _ = followed(video, media.probe(video))
            with closing(other.references):
                numbers = other.pages.of(other.main_person)
                if not len(numbers):
                    raise NoFaceFound(f"'{video}' shows no face that can be drawn from; leave it out of --references")
                pages = other.pages.take(numbers)
                parts.append(replace(pages, person=np.full(len(pages), track.main_person, np.int32), frame=pages.frame + first))
                store.copy(other.references, numbers)
                first += len(other) + 1
        return replace(track, pages=Pages.joined(parts), references=store)
    except BaseException:
        store.close()
        raise
