"""The people of a dub: who is followed through its pictures, and through other footage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lipdub import media
from lipdub.faces.cache import AnalysisCache, Choices
from lipdub.faces.detector import DetectorFactory
from lipdub.faces.follow import follow
from lipdub.faces.more_footage import bank_of, videos_in, with_footage
from lipdub.faces.track import FaceTrack
from lipdub.opened import Opened
from lipdub.outcome import require_faces
from lipdub.parts import require_different
from lipdub.records import VideoInfo
from lipdub.stages import Clock, OnProgress, counted


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Cast:
    """tracks: of each part's person. style: who opens the mouth as far as all of them shall, None for as far as they do. cached: no face
    had to be looked for in the pictures."""

    tracks: tuple[FaceTrack, ...]
    style: FaceTrack | None
    cached: bool


@contextmanager
def followed(
    opened: Opened, track: FaceTrack | None, *, detectors: DetectorFactory, cache: AnalysisCache | None, clock: Clock, tell: OnProgress
) -> Iterator[Cast]:
    """The cast of a dub, whose references are closed at the end. All but `opened` as for ``dub``.

    Raises UnreadableMedia, NoVideoStream; NoFaceFound: nobody in a video, or nobody who is meant. OutputRefused: two parts are of one face.
    BundleInvalid: mouths in the bundle that are not of this version.
    """
    options = opened.options

    def seen(place: Path, of: VideoInfo, choices: Choices = (None,)) -> list[tuple[FaceTrack, bool]]:
        return follow(
            place, of, choices, size=opened.model.spec.crop.size, detectors=detectors, cache=cache, clock=clock,
            on_frames=counted(tell, "finding faces", of.frames_guessed), limits=options.limits,
        )  # fmt: skip

    def footage() -> Iterator[tuple[Path, FaceTrack]]:
        for video in () if options.references is None else videos_in(Path(options.references)):
            yield video, seen(video, media.probe(video))[0][0]
        if (bank := opened.model.bank) is not None:
            yield bank, bank_of(bank)

    with ExitStack() as stack:
        found = [(track, True)] if track is not None else seen(opened.pictures, opened.info, [part.face for part in opened.parts])
        tracks = [one for one, _ in found]
        for one in tracks:
            stack.callback(one.references.close)
        for one in tracks:
            tell("finding faces", len(one), len(one))  # what the file says of its length is a guess
            require_faces(one, opened.video)
        require_different(opened.parts, tracks)
        if options.references is not None or opened.model.bank is not None:
            tracks[0] = with_footage(tracks[0], footage())
            stack.callback(tracks[0].references.close)
        style = None
        if options.style is not None:
            ((style, _),) = seen(Path(options.style), media.probe(Path(options.style)))
            stack.callback(style.references.close)
            require_faces(style, Path(options.style))
        yield Cast(tuple(tracks), style, all(known for _, known in found))
