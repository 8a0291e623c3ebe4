"""More footage of a person: pages that other videos show, beside those of the video that is dubbed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from lipdub import media
from lipdub.errors import BundleInvalid, NoFaceFound, UnreadableMedia
from lipdub.faces.overlays import Overlays
from lipdub.faces.track import FaceTrack
from lipdub.faces.track_file import TrackDamaged, read_track
from lipdub.references.pages import Pages
from lipdub.references.store import ReferenceStore


def videos_in(place: Path) -> list[Path]:
    """`place` itself, or where it is a folder the videos in it, sorted. Raises UnreadableMedia: there is none."""
    if not place.is_dir():
        return [place]
    found = sorted(file for file in place.iterdir() if file.suffix.lower() in media.VIDEO_SUFFIXES and file.is_file())
    if not found:
        raise UnreadableMedia(f"the folder '{place}' holds no video; put more footage of the person into it")
    return found


def bank_of(file: Path) -> FaceTrack:
    """The mouths of a person that ``lipdub adapt`` put into a bundle. Raises BundleInvalid: another version of lipdub wrote them."""
    try:
        return read_track(file)
    except (TrackDamaged, OSError) as error:
        raise BundleInvalid(f"'{file}' cannot be read by this lipdub ({error}); run lipdub adapt again") from error


def with_footage(track: FaceTrack, footage: Iterable[tuple[Path, FaceTrack]]) -> FaceTrack:
    """`track` with the pages of its main person that other videos show, by name and as they were followed: who is on most frames is the
    same person in all of them. A store of its own holds all pages; frames are numbered on from those of `track`, with a gap before each
    video. The other tracks are closed.

    Raises NoFaceFound: a video shows nobody who can be drawn from; and what `footage` raises.
    """
    store, parts, first = ReferenceStore(track.references.size), [track.pages], len(track) + 1
    overlays = [track.overlays]
    try:
        store.copy(track.references, np.arange(len(track.pages)))
        for video, other in footage:
            with closing(other.references):
                numbers = other.pages.of(other.main_person)
                if not len(numbers):
                    raise NoFaceFound(f"'{video}' shows no face that can be drawn from; leave it out of --references")
                pages = other.pages.take(numbers)
                parts.append(replace(pages, person=np.full(len(pages), track.main_person, np.int32), frame=pages.frame + first))
                overlays.append(other.overlays.later(first))
                store.copy(other.references, numbers)
                first += len(other) + 1
        return replace(track, pages=Pages.joined(parts), references=store, overlays=Overlays.joined(overlays))
    except BaseException:
        store.close()
        raise
