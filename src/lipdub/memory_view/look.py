"""``look``: speech through the memory, its mouths on a face, pictures and figures into a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import __version__, media
from lipdub.atomic import files_into
from lipdub.errors import MediaError, OutputRefused, PhonemesError
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.memory_view import pictures
from lipdub.memory_view.agreement import Agreement, Partition, agreement
from lipdub.memory_view.mouths import PortraitCrop, draw, find_portrait, measure_openings
from lipdub.memory_view.usage import Usage, explained_by_address, slot_features, usage_of
from lipdub.model import Model, open_model
from lipdub.options import Device
from lipdub.phonetics.alignment import Alignment
from lipdub.phonetics.alignment_files import write_alignment
from lipdub.phonetics.classes import CLASSES
from lipdub.records import MelSpec
from lipdub.reports import plain
from lipdub.speech.lip_track import lips_at
from lipdub.speech.mel import cut_windows, log_mel
from lipdub.stages import OnProgress

STEP_S = 0.02
"""The memory is asked so often."""
MEL = MelSpec()
"""Of the picture of the sound, and of what addresses are compared with; whatever the memory itself hears."""
LONGEST_S = 1200.0
"""Of longer speech only the start is looked at."""
FILES = ("slots.png", "usage.png", "track.png", "phonemes.png", "memory.json", "speech.wav", "alignment.csv")
"""All that may be written; the last two only where the speech was made for this look."""


@dataclass(frozen=True, slots=True, repr=False)
class MemoryReport:
    """What was seen; the figures are explained at `Usage` and `Agreement`.

    speech_s: how much speech was looked at.
    explained: share of the lip features' variance that is linear in the address.
    opening: float64 (S,), of the mouth that each slot draws, NaN where the detector saw none.
    commonest: for each slot the classes whose windows recall it most above average.
    files: what was written.
    """

    model: str
    speech: str
    face: str
    speech_s: float
    usage: Usage
    explained: float
    opening: NDArray[np.float64]
    agreement: Agreement | None
    commonest: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]

    def to_json(self) -> str:
        """All of it as JSON; what is not known is null."""
        return json.dumps(plain({"version": __version__, "classes": CLASSES, **asdict(self)}), ensure_ascii=False, indent=1) + "\n"


def look(
    model: str,
    speech: Path,
    face: Path,
    out: Path,
    *,
    alignment: Alignment | None = None,
    start_s: float = 0.0,
    seconds: float = 10.0,
    device: Device = "auto",
    threads: int | None = None,
    force: bool = False,
    keep_speech: bool = False,
    detectors: DetectorFactory = MediapipeDetector,
    on_progress: OnProgress | None = None,
) -> MemoryReport:
    """Look into the memory of `model` while it hears `speech`, and draw on `face` (photo or video); pictures and JSON into `out`.

    alignment: the phonemes of the speech; without it there is no ``phonemes.png``.
    start_s, seconds: the stretch that ``track.png`` shows.
    keep_speech: put a copy of the speech (WAV) and its alignment beside the pictures.
    detectors: makes what finds faces.

    The folder `out` is made; the files appear when all of them are complete, or not at all.

    Raises:
        OutputRefused: `out` holds such files and `force` is not given, or cannot be written.
        MediaError: nothing to hear from `start_s` on.
        PhonemesError: the alignment is of another sound.
        UnreadableMedia, NoAudioStream, NoVideoStream, NoFaceFound, BundleNotFound, BundleInvalid, ProviderUnavailable.
    """
    if not (start_s >= 0 and 0 < seconds <= 120):
        raise ValueError(f"the stretch to show must begin at 0 or later and last up to 120 s, got {start_s = }, {seconds = }")
    check_folder(out, inputs=[speech, face], force=force)
    tell = on_progress or (lambda stage, done, total: None)
    opened = open_model(model, device=device, threads=threads)
    mel = log_mel(media.first_samples(speech, MEL.sample_rate_hz, round(LONGEST_S * MEL.sample_rate_hz)), MEL)
    speech_s = mel.shape[1] / MEL.columns_per_s
    if alignment is not None and len(alignment) and alignment.phonemes[-1].start_s > speech_s and speech_s < LONGEST_S:
        raise PhonemesError(
            f"the alignment ends at {alignment.end_s:.2f} s, '{speech}' at {speech_s:.2f} s; give the alignment of this speech"
        )
    if start_s >= speech_s:
        raise MediaError(f"nothing to show from {start_s:g} s on: '{speech}' ends at {speech_s:.2f} s; choose an earlier start")
    tell("finding a face", 0, None)
    portrait = find_portrait(face, opened.spec.crop.size, detectors=detectors)
    times_s = np.arange(0, speech_s, STEP_S)
    address, lip_feature = _recall(speech, opened, times_s, tell)
    usage = usage_of(address)
    rest = np.asarray(opened.spec.rest_feature, np.float32)
    features = np.concatenate([slot_features(address, lip_feature), rest[np.newaxis]])
    drawn = draw(opened, portrait, features, on_drawn=lambda done: tell("drawing", done, len(features)))
    slots, at_rest = drawn[:-1], drawn[-1]
    opening = measure_openings(slots, detectors=detectors, on_measured=lambda done: tell("measuring", done, len(slots)))
    order = np.argsort(opening, kind="stable")
    found = None if alignment is None else agreement(times_s, cut_windows(mel, times_s, MEL), address, alignment)
    explained = explained_by_address(address, lip_feature)
    name = f"{opened.spec.name}, {Path(speech).name}"
    sheets = {
        "slots.png": pictures.slot_grid(slots, usage, opening, at_rest, f"the mouth of each slot: {name}, on {Path(face).name}"),
        "usage.png": pictures.usage_bars(usage, f"{name}: {_usage_line(usage)}"),
        "track.png": _track(opened, portrait, mel, times_s, address, lip_feature, opening, order, alignment, (start_s, seconds), name),
    }
    if alignment is not None and found is not None:
        faces = _class_faces(opened, portrait, lip_feature, alignment.classes_at(times_s))
        notes = agreement_lines(found)
        sheets["phonemes.png"] = pictures.phoneme_matrix(found.matrix, found.windows, order, faces, f"phoneme class x slot: {name}", notes)
    kept = ("speech.wav", "alignment.csv") if keep_speech and alignment is not None else ()
    report = MemoryReport(
        model=opened.spec.name, speech=str(out / "speech.wav" if kept else speech), face=str(face), speech_s=speech_s, usage=usage,
        explained=explained, opening=opening, agreement=found, commonest=_commonest(found, len(usage.share)),
        files=(*sheets, "memory.json", *kept),
    )  # fmt: skip
    with files_into(out) as folder:
        for file, picture in sheets.items():
            (folder / file).write_bytes(media.encode_picture(picture, ".png"))
        (folder / "memory.json").write_text(report.to_json(), encoding="utf-8")
        if alignment is not None and kept:
            shutil.copyfile(speech, folder / "speech.wav")
            write_alignment(alignment, folder / "alignment.csv")
        if force and "phonemes.png" not in sheets:
            (out / "phonemes.png").unlink(missing_ok=True)  # of an earlier look that knew the phonemes
    return report


def check_folder(out: Path, *, inputs: Sequence[Path] = (), force: bool) -> None:
    """Raise OutputRefused, saying what to do next, unless the pictures can be written into the folder `out` and no input would be lost."""
    if out.is_dir():
        for name in FILES:
            media.check_file(out / name, inputs=inputs, force=force)
    elif out.exists():
        raise OutputRefused(f"cannot write into '{out}': it is a file; give a folder")
    else:
        media.check_folder(out)


def agreement_lines(found: Agreement) -> tuple[str, ...]:
    """The figures of an agreement in words, a line each."""
    if not np.isfinite(found.class_bits):
        return ("too little speech for figures",)

    def of(name: str, part: Partition) -> str:
        return (
            f"{name} ({part.groups}): {part.information_bits:.2f} bits (shuffled {part.shuffled_bits:.2f}), "
            f"purity {part.purity:.2f} (shuffled {part.shuffled_purity:.2f}), names the class right {100 * part.accuracy:.0f}%"
        )

    return (
        of("strongest slot", found.top_slot),
        of("as many mel clusters", found.mel_clusters_few),
        of("a mel cluster per slot", found.mel_clusters),
        f"soft address: {found.address_bits:.3f} bits (shuffled {found.address_shuffled_bits:.3f}) of {found.class_bits:.2f}; "
        f"linear classifier on the address {100 * found.accuracy_address:.0f}%, on the mel window {100 * found.accuracy_mel:.0f}%, "
        f"commonest class {100 * found.commonest:.0f}%",
    )


def _usage_line(usage: Usage) -> str:
    return (
        f"perplexity {usage.perplexity:.1f} of {len(usage.share)} slots, {usage.per_moment:.1f} at a time, "
        f"{usage.slots_for_90} hold 90%, {usage.top_slots} are ever the strongest"
    )


def _recall(speech: Path, model: Model, times_s: NDArray[np.float64], tell: OnProgress) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Address (N, S) and lip feature (N, C) at the times, as a dub recalls them, with progress."""
    found = []
    with closing(lips_at(speech, model.memory, times_s)) as pieces:
        for lips in pieces:
            found.append(lips)
            tell("recalling", sum(map(len, found)), len(times_s))
    return np.concatenate([lips.address for lips in found if lips.address is not None]), np.concatenate([lips.feature for lips in found])


def _track(
    model: Model,
    portrait: PortraitCrop,
    mel: NDArray[np.float32],
    times_s: NDArray[np.float64],
    address: NDArray[np.float32],
    lip_feature: NDArray[np.float32],
    opening: NDArray[np.float64],
    order: NDArray[np.int64],
    alignment: Alignment | None,
    stretch: tuple[float, float],
    name: str,
) -> NDArray[np.uint8]:
    """The picture of the address over a stretch (start and length in seconds) of the speech."""
    shown = np.flatnonzero((times_s >= stretch[0] - 1e-9) & (times_s < stretch[0] + stretch[1]))
    every = max(1, round(pictures.MOUTH_EVERY_PX / pictures.PX_PER_S / STEP_S))
    at = shown[every // 2 :: every] if len(shown) > every // 2 else shown[:1]
    columns = np.clip(np.rint(times_s[shown] * MEL.columns_per_s).astype(int), 0, mel.shape[1] - 1)
    known = np.isfinite(opening)
    weight = address[shown][:, known].sum(axis=1)
    amounts = np.where(weight > 0.5, address[shown][:, known] @ opening[known] / np.maximum(weight, 1e-9), np.nan)
    return pictures.address_track(
        times_s=times_s[shown], sound=mel[:, columns].T, address=address[shown], order=order, mouths_s=times_s[at],
        mouths=draw(model, portrait, lip_feature[at]), opening=np.asarray(amounts, np.float64), alignment=alignment,
        title=f"address over time: {name}, from {stretch[0]:g} s",
    )  # fmt: skip


def _class_faces(
    model: Model, portrait: PortraitCrop, lip_feature: NDArray[np.float32], kinds: NDArray[np.int64]
) -> dict[int, NDArray[np.uint8]]:
    """Class to the crop that the mean lip feature of its windows draws."""
    present = [int(kind) for kind in np.unique(kinds)]
    features = np.stack([lip_feature[kinds == kind].mean(axis=0) for kind in present])
    return dict(zip(present, draw(model, portrait, features), strict=True))


def _commonest(found: Agreement | None, slots: int) -> tuple[tuple[str, ...], ...]:
    """For each slot up to three classes whose windows recall it at least 1.3 times as much as all windows do, strongest first."""
    if found is None:
        return ((),) * slots
    present = np.flatnonzero((found.windows > 0) & np.isfinite(found.matrix[:, 0]))
    mean = np.average(found.matrix[present], axis=0, weights=found.windows[present])
    ratio = found.matrix[present] / np.maximum(mean, 1e-9)
    return tuple(
        tuple(CLASSES[present[row]] for row in np.argsort(-ratio[:, slot])[:3] if ratio[row, slot] >= 1.3) for slot in range(slots)
    )
