"""One finished dub from files to scorecard."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from lipdub import __version__, media
from lipdub.errors import NoFaceFound
from lipdub.evaluate.drawings import pictures_of
from lipdub.evaluate.openings import openings_of
from lipdub.evaluate.scoring import Known, address_of, clip_record, faces_at, open_judges, score
from lipdub.evaluate.sync import PublicSync
from lipdub.evaluate.watch import same_file, tracked
from lipdub.evaluate.whole_set import FIGURES_VERSION
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.track import NO_FACE
from lipdub.model import open_model
from lipdub.reports import plain
from lipdub.stages import OnProgress

LONGEST_HEAT_S = 60.0
"""The heat map shows this much of the speech: an hour of it would be a grey band."""


def evaluate_dub(
    dubbed: Path,
    source: Path,
    speech: Path,
    *,
    truth: Path | None = None,
    model: str = "base",
    expert: str = "expert",
    public: PublicSync | None = None,
    detectors: DetectorFactory = MediapipeDetector,
    on_progress: OnProgress | None = None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The scorecard of `dubbed`, ready for JSON, and its pictures by file name ending.

    source: the video that was dubbed.
    speech: with what it was dubbed.
    truth: the video whose mouth really spoke it; without it the figures that need it are left out, and say so.
    model: whose crop and mask drew it, and whose address is shown.
    detectors: makes what finds faces.

    Raises UnreadableMedia, NoVideoStream, NoAudioStream, BundleNotFound, BundleInvalid. NoFaceFound: none in the source.
    """
    tell = on_progress or (lambda stage, done, total: None)
    for video in (dubbed, source, *([] if truth is None else [truth])):
        media.probe(video)  # a wrong path is told before minutes of work
    media.audio_duration_s(speech)
    opened = open_model(model, device="cpu")
    judges = open_judges(expert, public=public)
    with ExitStack() as stack:
        tell("finding faces", 0, None)
        known = Known(source, tracked(source, size=opened.spec.crop.size, detectors=detectors))
        stack.enter_context(closing(known.track.references))
        if (known.track.status == NO_FACE).all():
            raise NoFaceFound(f"no face in '{source}'; there is nothing to compare, is it the video that was dubbed?")
        true = None
        if truth is not None:
            true = known
            if not same_file(truth, source):
                true = Known(truth, tracked(truth, size=opened.spec.crop.size, detectors=detectors))
                stack.enter_context(closing(true.track.references))
        own = openings_of(known.track)
        found = score(
            dubbed, known, speech, mask=opened.spec.crop, truth=true, unwanted=None if true is known else own, judges=judges,
            detectors=detectors, on_frame=lambda done: tell("comparing", done, len(known.track)),
        )  # fmt: skip
        strips = [found.source_strip, found.strip]
        if true is not None and true is not known:
            strips.append(faces_at(true, found.strip_s))
    times_s = found.drawn.times_s
    address = address_of(opened, speech, times_s[times_s <= LONGEST_HEAT_S])
    others = ({} if true is known else {"source": own}) | ({} if true is None else {"truth": openings_of(true.track)})
    record = {
        **clip_record({"dub": found}, others, address, clip=dubbed.name, name=dubbed.stem),
        "source": str(source),
        "speech": str(speech),
        "truth": None if truth is None else str(truth),
        "strip_rows": "source and dub" if len(strips) == 2 else "source, dub, and the mouth that belongs to the sound",
    }
    settings = {"model": opened.spec.name, "figures": str(FIGURES_VERSION), "lipdub": __version__}
    return {"settings": settings, "clips": [plain(record)]}, pictures_of(strips, address)
