"""The scorecard of one finished dub: everything that can be said of it, gathered in one pass over its frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.bundles import encoder
from lipdub.bundles.expert import Expert, open_expert
from lipdub.errors import LipdubError
from lipdub.evaluate import openings
from lipdub.evaluate.meters import FidelityMeters, PictureMeters
from lipdub.evaluate.openings import Openings, lmd, openings_of
from lipdub.evaluate.scorecard import FIGURES
from lipdub.evaluate.sync import GRID_HZ, GridCrops, PublicSync, embed_centred, embed_forward, sync_of
from lipdub.evaluate.watch import Frames, lip_points_at, same_file, side_by_side
from lipdub.faces import crop
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.faces.track import NO_FACE, FaceTrack
from lipdub.media.planes import Picture
from lipdub.model import Model
from lipdub.records import CropSpec, MelSpec
from lipdub.speech.encoder import FeatureTrack, SpeechEncoder
from lipdub.speech.lip_track import lips_at
from lipdub.speech.mel import SILENCE, MelTrack
from lipdub.speech.whisper_mel import RATE_HZ
from lipdub.speech.windows import SpeechTrack

STRIP_FRAMES = 12
STRIP_PX = 160
STRIP_FACE_PX = 320
"""Strips show the lower face: a square of STRIP_PX around the mouth, cut out of an aligned crop of this side."""
_STRIP_TOP, _STRIP_LEFT = 144, 80
_AT_ONCE = 256
"""Windows of speech that are cut out together."""
FEWEST_SYNC = 25
"""Sync figures need at least this many frames at 25 Hz with a face."""
PUBLIC_SIDE, PUBLIC_DOWN = 1.05, 0.11
"""The public SyncNet's crop: an upright square from the top of a detected face to 0.4 of its height below the chin. With a face of 0.75
units (unit crop) from just above the mesh's forehead to the chin its side is 1.05 units, and its middle lies 0.11 below the crop's."""


@dataclass(frozen=True, slots=True, repr=False)
class Known:
    """An analysed video."""

    path: Path
    track: FaceTrack


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges the sync.

    expert: None where it could not be opened; `no_expert` says why. encoder: what it hears through.
    public: None where no weights were given.
    """

    expert: Expert | None = None
    encoder: SpeechEncoder | None = None
    no_expert: str = "no expert"
    public: PublicSync | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Score:
    """Figures of one dub: every name of ``FIGURES``, NaN where it was left out, and then `left_out` says why.

    drawn: the dub's openings.
    source_strip, strip: uint8 (n, STRIP_PX, STRIP_PX, 3), lower faces of source and dub at `strip_s` seconds.
    """

    figures: dict[str, float]
    left_out: dict[str, str]
    drawn: Openings
    strip_s: NDArray[np.float64]
    source_strip: NDArray[np.uint8]
    strip: NDArray[np.uint8]


def open_judges(expert: str, *, threads: int | None = None, public: PublicSync | None = None) -> Judges:
    """The judges that there are: our expert by name or folder, opened on the CPU, and the public one as it was handed in."""
    try:
        opened = open_expert(expert, device="cpu", threads=threads)
        folder, described = encoder.find(opened.spec.encoder.name, opened.spec.encoder.sha256, beside=opened.folder)
        return Judges(opened, SpeechEncoder(folder, described, device="cpu", threads=threads), "", public)
    except LipdubError as error:
        return Judges(no_expert=f"no expert: {error}", public=public)


def lower_face(picture: Picture, similarity: NDArray[np.float64]) -> NDArray[np.uint8]:
    """From the nose to below the chin, uint8 (STRIP_PX, STRIP_PX, 3), of a frame's aligned face."""
    face = crop.take_one(picture, similarity, STRIP_FACE_PX)
    return face[_STRIP_TOP : _STRIP_TOP + STRIP_PX, _STRIP_LEFT : _STRIP_LEFT + STRIP_PX]


def strip_numbers(count: int) -> list[int]:
    """Numbers of ``STRIP_FRAMES`` evenly spaced frames of `count`, none of them at the very ends."""
    return np.unique(np.linspace(0, max(0, count - 1), STRIP_FRAMES + 2)[1:-1].round().astype(int)).tolist()


def faces_at(video: Known, times_s: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lower faces of a video at rising times, uint8 (n, STRIP_PX, STRIP_PX, 3); black where there is none."""
    rows = openings.nearest(video.track.times_s, times_s, math.inf)
    found = np.zeros((len(times_s), STRIP_PX, STRIP_PX, 3), np.uint8)
    with Frames(video.path) as frames:
        for slot, row in enumerate(rows.tolist()):
            if row >= 0 and video.track.status[row] != NO_FACE:
                picture = frames.at(row)
                if picture is not None:
                    found[slot] = lower_face(picture, video.track.similarity[row])
    return found


def score(
    dubbed: Path,
    source: Known,
    speech: Path,
    *,
    mask: CropSpec,
    truth: Known | None = None,
    unwanted: Openings | None = None,
    judges: Judges | None = None,
    detectors: DetectorFactory = MediapipeDetector,
    on_frame: Callable[[int], None] | None = None,
) -> Score:
    """Score the dub of `source` with `speech` that lies at `dubbed`.

    mask: crop of the model that drew it.
    truth: the video whose mouth really spoke `speech`; where it is the source itself, its pixels are the true ones, and compared.
    unwanted: openings that the dub must not show (the source's own).
    judges: None for no sync figures.
    detectors: makes what finds faces.
    on_frame: told the number of frames done.

    Raises UnreadableMedia, NoVideoStream, NoAudioStream.
    """
    judges = judges or Judges()
    picture = PictureMeters(source.track, mask)
    pixels_compare = truth is not None and same_file(truth.path, source.path)
    fidelity = FidelityMeters(source.track)
    wanted, strip = set(strip_numbers(len(source.track))), []
    times, drawn, lips, had_face = [], [], [], []
    with ExitStack() as stack:
        expert_crops = None if judges.expert is None else stack.enter_context(GridCrops(judges.expert.spec.crop.size))
        public_crops = None if judges.public is None else stack.enter_context(GridCrops(judges.public.size))
        for pair in side_by_side(dubbed, source.path, source.track, detectors=detectors):
            times.append(pair.time_s)
            drawn.append(pair.opening)
            lips.append(pair.lips)
            had_face.append(pair.row >= 0 and source.track.status[pair.row] != NO_FACE)
            picture.add(pair)
            if pixels_compare:
                fidelity.add(pair)
            aligned = source.track.similarity[pair.row] if had_face[-1] else None
            if pair.number in wanted and pair.source is not None and aligned is not None:
                strip.append((pair.time_s, lower_face(pair.source, aligned), lower_face(pair.dub, aligned)))
            if expert_crops is not None:
                expert_crops.add(pair.time_s, None if aligned is None else crop.take_one(pair.dub, aligned, expert_crops.size))
            if public_crops is not None:
                upright = None if aligned is None else crop.take_one(pair.dub, public_crop(aligned), public_crops.size)
                public_crops.add(pair.time_s, upright)
            if on_frame is not None:
                on_frame(len(times))
        seen = Openings(np.array(times), np.array(drawn))
        values = (
            _following(seen, np.array(lips, np.float32).reshape(-1, 40, 2), truth, unwanted)
            | _silent_leak(seen, speech)
            | _expert_figures(judges, expert_crops, speech)
            | _public_figures(judges, public_crops, speech)
        )
    values |= fidelity.figures() | picture.figures() | _lengths(dubbed, source, seen)
    lost = np.array(had_face, bool)
    values["faceless"] = float(np.isnan(seen.opening[lost]).mean()) if lost.any() else math.nan
    figures = {figure.name: values.get(figure.name, math.nan) for figure in FIGURES}
    unknown = [name for name, value in figures.items() if not math.isfinite(value)]
    return Score(
        figures=figures,
        left_out={name: _why_left_out(name, judges, truth, unwanted, pixels_compare) for name in unknown},
        drawn=seen,
        strip_s=np.array([time_s for time_s, _, _ in strip]),
        source_strip=np.array([face for _, face, _ in strip], np.uint8).reshape(-1, STRIP_PX, STRIP_PX, 3),
        strip=np.array([face for _, _, face in strip], np.uint8).reshape(-1, STRIP_PX, STRIP_PX, 3),
    )


def address_of(model: Model, sound: Path, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """The model's address over its slots for the sound at `times_s` (N,): float32 (N, slots)."""
    with closing(lips_at(sound, model.memory, times_s)) as pieces:
        return np.concatenate([np.empty((0, model.spec.slots), np.float32), *(lips.address for lips in pieces)])


def clip_record(
    scores: Mapping[str, Score], others: Mapping[str, Openings], address: NDArray[np.float32], *, clip: str, name: str
) -> dict[str, object]:
    """What the JSON says of one dubbed clip.

    scores: by row; the curves are of the first one.
    others: openings to draw beside it, by name.
    """
    drawn = next(iter(scores.values())).drawn
    return {
        "clip": clip,
        "name": name,
        "frames": len(drawn),
        "seconds": float(drawn.times_s[-1] + drawn.step_s) if len(drawn) else 0.0,
        "rows": {row: score.figures for row, score in scores.items()},
        "left_out": {row: score.left_out for row, score in scores.items()},
        "curves": {
            "times_s": drawn.times_s.tolist(),
            "drawn": drawn.opening.tolist(),
            **{other: shown.at(drawn.times_s).tolist() for other, shown in others.items()},
        },
        "address_max": float(address.max(initial=0)),
    }


def public_crop(aligned: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frame-to-unit similarity (4,) of the public SyncNet's upright crop around the face of an aligned crop."""
    scale = float(np.hypot(aligned[0], aligned[1]))
    a, b = aligned[0] / scale, aligned[1] / scale
    side = PUBLIC_SIDE * float(crop.unit_px(aligned[None])[0])
    # The middle of the aligned crop, in frame px, and from there straight down.
    middle = np.array([[a, b], [-b, a]]) @ (np.array([0.5, 0.5]) - aligned[2:]) / scale
    middle[1] += PUBLIC_DOWN / scale
    return np.array([1 / side, 0.0, 0.5 - middle[0] / side, 0.5 - middle[1] / side])


def _following(seen: Openings, lips: NDArray[np.float32], truth: Known | None, unwanted: Openings | None) -> dict[str, float]:
    values = {} if unwanted is None else {"r_leak": openings.r_leak(seen, unwanted)}
    if truth is None:
        return values
    true = openings_of(truth.track)
    best, shift = openings.r_cross_best(seen, true)
    true_lips = lip_points_at(truth.track, seen.times_s)
    return values | {
        "r_cross": openings.r_cross(seen, true),
        "r_cross_best": best,
        "best_shift": shift,
        "articulation": openings.articulation(seen, true),
        "bias": openings.bias(seen, true),
        "lmd": lmd(lips, true_lips),
        "lmd_relative": lmd(lips, true_lips, relative=True),
    }


def _silent_leak(seen: Openings, speech: Path) -> dict[str, float]:
    """Of the frames whose whole mel window is digital silence; none, where the speech never is."""
    with closing(media.read_audio(speech, MelSpec().sample_rate_hz)) as blocks:
        windows = _windows(MelTrack(blocks, MelSpec()), seen.times_s)
    if not len(windows):
        return {}
    return {"silent_leak": openings.open_share(seen, windows.max(axis=(1, 2)) <= SILENCE + 1e-6)}


def _windows(track: SpeechTrack, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
    pieces = [track.windows(times_s[first : first + _AT_ONCE]) for first in range(0, max(1, len(times_s)), _AT_ONCE)]
    return np.concatenate(pieces)


def _expert_figures(judges: Judges, crops: GridCrops | None, speech: Path) -> dict[str, float]:
    if judges.expert is None or judges.encoder is None or crops is None:
        return {}
    crops.finish()
    reach = judges.expert.spec.frames // 2
    valid = crops.near_valid(reach, reach) if len(crops) else np.zeros(0, bool)
    if valid.sum() < FEWEST_SYNC:
        return {}
    with closing(media.read_audio(speech, RATE_HZ)) as blocks:
        track = FeatureTrack(blocks, judges.encoder, judges.expert.spec.encoder.taps)
        sound = judges.expert.embed_sound(_windows(track, crops.times_s))
    found = sync_of(embed_centred(crops, judges.expert.embed_lips, context=reach), sound, valid)
    return {"sync_offset": found.offset, "sync_confidence": found.confidence, "sync_cosine": found.cosine}


def _public_figures(judges: Judges, crops: GridCrops | None, speech: Path) -> dict[str, float]:
    if judges.public is None or crops is None:
        return {}
    crops.finish()
    if sum(crops.valid) < FEWEST_SYNC:
        return {}
    rows = embed_forward(crops, judges.public.embed_lips, frames=judges.public.frames)
    # As much sound as there are pictures: an hour of it would not fit.
    samples = media.first_samples(speech, 16000, len(crops) * 16000 // GRID_HZ)
    distance, confidence, offset = judges.public.scores(rows, samples)
    return {"lse_d": distance, "lse_c": confidence, "lse_offset": offset}


def _lengths(dubbed: Path, source: Known, seen: Openings) -> dict[str, float]:
    """frames_more, times_off, duration_more; left out for a photo, which has no length."""
    info, own = media.probe(dubbed), media.probe(source.path)
    if own.is_still:
        return {}
    both = min(len(seen), len(source.track))
    off = np.abs(seen.times_s[:both] - source.track.times_s[:both])
    known = info.duration_s is not None and own.duration_s is not None
    return {
        "frames_more": float(len(seen) - len(source.track)),
        "times_off": float(off.max()) if both else math.nan,
        "duration_more": float(info.duration_s - own.duration_s) if known else math.nan,  # type: ignore[operator]
    }


_NEEDS_TRUTH = {"r_cross", "r_cross_best", "best_shift", "articulation", "bias", "lmd", "lmd_relative"}
_NEEDS_PIXELS = {"psnr_face", "ssim_face", "psnr_mouth", "ssim_mouth"}


def _why_left_out(name: str, judges: Judges, truth: Known | None, unwanted: Openings | None, pixels_compare: bool) -> str:
    if name in _NEEDS_TRUTH | _NEEDS_PIXELS and truth is None:
        return "no truth: the video whose mouth really spoke the sound was not given"
    if name in _NEEDS_PIXELS and not pixels_compare:
        return "the truth is another picture than the source: pixels do not compare"
    if name == "r_leak" and unwanted is None:
        return "the source's own mouth is the truth: showing it is no leak"
    if name == "silent_leak":
        return "the sound is never digitally silent for 0.2 s"
    if name.startswith("sync_") and judges.expert is None:
        return judges.no_expert
    if name.startswith("lse_") and judges.public is None:
        return "no public SyncNet weights were given (--syncnet)"
    return "too few frames with a face, or nothing that moves"
