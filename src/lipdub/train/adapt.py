"""Adapt a bundle to one person: generator and fusion learn from that person's own video for a few minutes; the memory stays as it is.

The last part of the video is held out (``held_out.py``). It says when to stop. Where no new weights are better on it than
those of the bundle at the beginning, the new bundle holds the old weights.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from lipdub import __version__, media
from lipdub.atomic import write_whole
from lipdub.bundles import bundle, encoder
from lipdub.bundles.network import NetworkConfig
from lipdub.errors import OutputRefused, TrainingDataError, TrainingError, WriteFailed
from lipdub.faces.detector import DetectorFactory, FaceDetector, MediapipeDetector
from lipdub.faces.follow import follow
from lipdub.faces.track_file import write_track
from lipdub.options import Device
from lipdub.stages import OnProgress, counted
from lipdub.train import export
from lipdub.train.data import Clip, load_clip, loader
from lipdub.train.features import write_features
from lipdub.train.generator_stage import GeneratorStage, GeneratorWeights
from lipdub.train.held_out import HeldOut, Judged, split
from lipdub.train.loop import LoopSettings, new_fabric
from lipdub.train.networks import FaceGenerator, LipMemory
from lipdub.train.prepare import GRID_HZ, PrepareSettings, prepare_clip
from lipdub.train.weights import load_bundle_memory, load_weights, require_same_network

FEWEST_S = 10.0
"""Of usable face. With less, two seconds are left to judge on and seven to learn from: too few of a person's mouths."""
LONGEST_S = 300.0
"""So much of a video is looked at: more shows the same mouths again, takes minutes to follow, and 115 MB of disk a minute."""
WARMUP_STEPS = 10
LEAST_GAIN = 0.01
"""Of the error, for weights to take the place of others: after that more steps only learn the few seconds by heart, and the mouth follows
the sound less (seen on a clip of 12 s)."""
LEAST_ARTICULATION = 0.6
"""Weights that move the mouth by less than this share of what it moved before, or should move, are refused: what pixels alone would choose
is a mouth that hardly moves."""
NOTE_FILE = export.ADAPTED_NOTE
"""In the bundle: what it was adapted from and to, in figures."""
SHEET_COLUMNS = 8
SHEET_PX = 192

OnJudged = Callable[[int, Judged], None]
"""Told the step and the figures of each validation; step 0 is the bundle that it begins with."""
Stopped = Literal["no more gain", "time is up", "all steps done", "a loss was no number"]


@dataclass(frozen=True, slots=True)
class AdaptSettings:
    """How long and how fast. Raises ``ValueError`` for values out of range."""

    minutes: float = 5.0
    """Of training; following the face comes on top."""
    steps: int | None = None
    """At most so many; None for no limit."""
    batch: int = 8
    rate: float = 2e-4
    ema: float = 0.98
    """Share of the moving average of the weights that a step keeps."""
    audio_share: float = 0.25
    """Share of the faces that are drawn from what the sound recalls; the others are drawn from what the lips recall."""
    audio_picture: float = 0.3
    """Factor on the picture losses of those: pixels of a mouth that the sound does not tell teach a mouth that hardly moves."""
    validate_every: int = 20
    patience: int = 4
    """Validations without gain after which it stops."""
    seed: int = 0

    def __post_init__(self) -> None:
        for holds, message in (
            (0 < self.minutes < math.inf, f"minutes must be above 0, got {self.minutes}"),
            (self.steps is None or self.steps > 0, f"steps must be above 0, got {self.steps}"),
            (min(self.batch, self.validate_every, self.patience) > 0, "batch, validate_every and patience must be above 0"),
            (0 < self.rate < 1, f"rate must lie between 0 and 1, got {self.rate}"),
        ):
            if not holds:
                raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Adapted:
    """What was written."""

    spec: bundle.BundleSpec
    adapted_from: str
    """Name of the bundle that it began with."""
    kept_base: bool
    """The bundle holds the weights it began with, since none were better."""
    before: Judged
    """Figures of the held-out part at the beginning."""
    after: Judged
    """Figures of what was written."""
    steps: int
    best_step: int
    """When the weights that were kept were taken; 0 for the ones it began with."""
    stopped: Stopped
    learned_s: float
    """Seconds of usable face that were learned from."""
    held_out_s: float
    """Seconds of usable face that were held out."""
    wall_s: float
    """Of the whole command."""
    differences: dict[str, float]
    """Graph to largest difference to torch; empty where graphs were copied."""
    bytes: int

    @property
    def gain(self) -> float:
        """Share of the error around the mouth that is gone."""
        return 1 - self.after.l1 / max(1e-9, self.before.l1)


@dataclass(frozen=True, slots=True, repr=False)
class _Weights:
    """Networks in inference mode on the CPU, their resting lip feature, and how they draw the held-out part (N, S, S, 3)."""

    memory: LipMemory
    generator: FaceGenerator
    rest: tuple[float, ...]
    judged: Judged
    drawn: NDArray[np.uint8]
    step: int


@dataclass(frozen=True, slots=True, repr=False)
class _Course:
    """How the training went."""

    before: Judged
    drawn_before: NDArray[np.uint8]
    best: _Weights | None
    """None where nothing was better than `before`."""
    steps: int
    stopped: Stopped


def adapt(
    video: Path,
    out: Path,
    *,
    model: str = "base",
    settings: AdaptSettings | None = None,
    device: Device = "auto",
    sheet: Path | None = None,
    command: str = "lipdub adapt",
    force: bool = False,
    detectors: DetectorFactory = MediapipeDetector,
    on_progress: OnProgress | None = None,
    on_judged: OnJudged | None = None,
) -> Adapted:
    """Fine-tune the bundle `model` on the person in `video` and write the bundle folder `out`. sheet: where to write a picture of the
    held-out part: true, drawn before, drawn after. command: for the model card. detectors: makes what finds faces.

    `out` also keeps the person's mouths, which its dubs of other videos and photos of the person are drawn from, too. Where no weights are
    better on the held-out part, `out` holds those of `model` as they are, and ``kept_base`` is set: whatever goes on with `out` works
    either way. All of `out` is written, or nothing; the frames of the video lie in a temporary folder meanwhile.

    Raises:
        OutputRefused, BundleNotFound, BundleInvalid, CheckpointInvalid (a bundle without weights to train on), UnreadableMedia,
        NoVideoStream, TrainingDataError (no usable face, no sound, too little of both), TrainingError, ExportFailed, EncodingFailed,
        WriteFailed.
    """
    settings = settings or AdaptSettings()
    tell = on_progress or (lambda stage, done, total: None)
    started = time.monotonic()
    source = bundle.resolve(model)
    spec = bundle.load_spec(source)
    _check_outputs(out, sheet, [video, source], force)
    config, memory = load_bundle_memory(source)
    require_same_network(source, spec, config, memory)
    weights = load_weights(source, config)
    fabric = _fabric(settings, device)
    with _frames_folder() as folder, closing(detectors(max_faces=1)) as detector:
        clip = _prepared(video, folder, config, source, detectors, tell)
        learned, first, end = split(clip)
        held = HeldOut.of(clip, first, end, spec, config, detector, beside=source)
        stage = GeneratorStage(
            config, memory, learned, [], settings.rate, settings.rate, settings.seed, decode="split", audio_share=settings.audio_share,
            draw_frames=1, ema=settings.ema, weights=GeneratorWeights(adversarial=0.0, audio_picture=settings.audio_picture),
        )  # fmt: skip
        stage.start_from(weights)
        course = _train(stage, fabric, settings, held, spec, detector, tell, on_judged)
        learned_s, held_out_s = _seconds(clip.times_s[:end]), _seconds(clip.times_s[first:])
    bank = _bank(video, config.size, detectors, tell)
    best = course.best
    adapted = Adapted(
        spec=spec, adapted_from=spec.name, kept_base=best is None, before=course.before,
        after=course.before if best is None else best.judged, steps=course.steps, best_step=0 if best is None else best.step,
        stopped=course.stopped, learned_s=learned_s, held_out_s=held_out_s, wall_s=time.monotonic() - started, differences={}, bytes=0,
    )  # fmt: skip
    tell("writing", 0, 1)
    adapted = _write(adapted, best, source, config, video, bank, out, command, force)
    if sheet is not None:
        _write_sheet(sheet, [held.crops, course.drawn_before] + ([] if best is None else [best.drawn]))
    tell("writing", 1, 1)
    return adapted


# ---- before any step


def _check_outputs(out: Path, sheet: Path | None, inputs: Sequence[Path], force: bool) -> None:
    """Raise OutputRefused unless bundle and sheet can be written, and none of `inputs` would be lost."""
    export.check_folder(out, force=force)
    for path in inputs:
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise OutputRefused(f"cannot write '{out}': '{path}' is needed to make it; choose another folder with -o")
    if sheet is not None:
        media.check_picture(sheet, inputs=inputs, force=force)


def _fabric(settings: AdaptSettings, device: Device) -> Fabric:
    """One process on the asked device, in bfloat16 where that is fast. Raises TrainingError where the device is not there."""
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of the precision otherwise
    try:
        return new_fabric(
            LoopSettings(
                steps=1, batch=settings.batch, rate=settings.rate, seed=settings.seed, accelerator="cuda" if cuda else "cpu", devices=1,
                precision="bf16-mixed" if _has_fast_bfloat16(cuda) else "32-true",
            )
        )  # fmt: skip
    except TrainingError as error:
        raise TrainingError(f"cannot adapt on {device}: {error.__cause__ or error}; use --device cpu") from error


def _has_fast_bfloat16(cuda: bool) -> bool:
    """Whether the processor multiplies bfloat16 itself: half the time of a step then, more than the whole of it where it is emulated."""
    if cuda:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(ask()) for ask in asked if ask is not None)


@contextmanager
def _frames_folder() -> Iterator[Path]:
    """A temporary folder for a video's frames; gone when the block ends, however it ends."""
    try:
        with tempfile.TemporaryDirectory(prefix="lipdub-adapt-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except (WriteFailed, OSError) as error:
        cause = error.__cause__ if isinstance(error, WriteFailed) else error
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        raise WriteFailed(
            f"cannot keep the video's frames in '{tempfile.gettempdir()}': {why}; free some disk space, or set TMPDIR"
        ) from error


def _prepared(video: Path, folder: Path, config: NetworkConfig, source: Path, detectors: DetectorFactory, tell: OnProgress) -> Clip:
    """The video's frames with a usable face and its sound, as training sees and hears them with the networks of the bundle `source`.

    Raises TrainingDataError where there are too few frames, BundleNotFound, BundleInvalid for the bundle's speech encoder.
    """
    info = media.probe(video)
    total = None if info.duration_s is None else max(1, round(min(float(info.duration_s), LONGEST_S) * float(info.frame_rate)))
    count = counted(tell, "finding faces", total)
    settings = PrepareSettings(size=config.size)
    # How much of the video has a face does not matter, if it is enough.
    prepared = prepare_clip(video, folder, settings, face_share=0.0, until_s=LONGEST_S, detectors=detectors, on_frames=count)
    needed = f"give one with at least {FEWEST_S:g} s of one person who speaks to the camera"
    if prepared.why is not None:
        raise TrainingDataError(f"cannot adapt to '{video}': {prepared.why}; {needed}")
    if config.encoder is not None:
        encoder_folder, _ = encoder.find(config.encoder.name, config.encoder.sha256, beside=source)
        write_features(folder, prepared.clip_id, video, encoder_folder, voices=0, until_s=LONGEST_S)
    clip = load_clip(folder, str(video), prepared.clip_id, "", 0.0, config.size)
    if _seconds(clip.times_s) < FEWEST_S:
        raise TrainingDataError(f"cannot adapt to '{video}': it shows a usable face for {_seconds(clip.times_s):.1f} s only; {needed}")
    return clip


def _seconds(times_s: NDArray[np.float64]) -> float:
    """How long frames are shown that stand at these times: gaps between them do not count."""
    if len(times_s) < 2:
        return len(times_s) / GRID_HZ
    return float(len(times_s) * np.median(np.diff(times_s)))


# ---- the steps


def _train(
    stage: GeneratorStage,
    fabric: Fabric,
    settings: AdaptSettings,
    held: HeldOut,
    spec: bundle.BundleSpec,
    detector: FaceDetector,
    tell: OnProgress,
    on_judged: OnJudged | None,
) -> _Course:
    """Steps until the held-out part gains no more, time is up or all steps are done."""
    stage.setup(fabric)
    averaged = stage.averaged
    drawn_before = held.draw(averaged.generator, averaged.memory, np.array(spec.rest_feature, np.float32))
    before = held.judge(drawn_before, detector)
    if on_judged is not None:
        on_judged(0, before)
    budget_s, begun = 60 * settings.minutes, time.monotonic()
    most = settings.steps or 2**31
    best: _Weights | None = None
    stale, done = 0, 0
    stopped: Stopped = "all steps done"
    # In this process: what is learned from are parts of clips, which loaders' processes would not know apart.
    batches = loader(stage.samples, first_step=0, steps=most, batch=settings.batch, rank=0, ranks=1, workers=0)
    for number, batch in enumerate(batches):
        if not _step(stage, fabric, {key: fabric.to_device(value) for key, value in batch.items()}, number):
            stopped = "a loss was no number"
            break
        done, spent_s = number + 1, time.monotonic() - begun
        if settings.steps is None:
            tell("adapting (s)", min(int(spent_s), math.ceil(budget_s)), math.ceil(budget_s))
        else:
            tell("adapting", done, settings.steps)
        time_is_up = spent_s >= budget_s
        if done % settings.validate_every and done < most and not time_is_up:
            continue
        found = _weights(stage, held, detector, done)
        if on_judged is not None:
            on_judged(done, found.judged)
        stale += 1
        if is_better(found.judged, best.judged if best is not None else before, before):
            best, stale = found, 0
        if stale >= settings.patience or time_is_up:
            stopped = "time is up" if time_is_up else "no more gain"
            break
    return _Course(before, drawn_before, best, done, stopped)


def _step(stage: GeneratorStage, fabric: Fabric, batch: dict[str, torch.Tensor], number: int) -> bool:
    """One step of the stage; False where its loss is no number, and then its weights are not to be used."""
    for optimizer in stage.optimizers().values():
        for group in optimizer.param_groups:
            group["lr"] = group["base_rate"] * min(1.0, (number + 1) / WARMUP_STEPS)
    try:
        losses = stage.step(batch, number, fabric)
    except RuntimeError as error:
        # Fabric's gradient clipping says so.
        if "non-finite" not in str(error):
            raise
        return False
    return bool(torch.isfinite(losses["total"].detach()))


def _weights(stage: GeneratorStage, held: HeldOut, detector: FaceDetector, step: int) -> _Weights:
    """The averaged weights as they are now, judged."""
    averaged = copy.deepcopy(stage.averaged).cpu().eval()
    # The resting mouth is this person's own.
    rest = export.rest_feature(stage.config, averaged.memory, stage.clips, beside=held.beside)
    drawn = held.draw(stage.averaged.generator, stage.averaged.memory, np.array(rest, np.float32))
    return _Weights(averaged.memory, averaged.generator, rest, held.judge(drawn, detector), drawn, step)


def is_better(found: Judged, best: Judged, before: Judged) -> bool:
    """Whether weights with the figures `found` are to take the place of the `best` so far: nearer to the picture around the mouth, and
    the opening no worse than it was `before` the first step, as far as so few frames can tell."""
    if not found.l1 < (1 - LEAST_GAIN) * best.l1:
        return False
    if found.r is None or found.articulation is None or before.r is None or before.articulation is None:
        return True
    follows = found.r >= before.r - min(found.chance_r, before.chance_r)
    return follows and found.articulation >= LEAST_ARTICULATION * min(1.0, before.articulation)


# ---- what is written


def _bank(video: Path, size: int, detectors: DetectorFactory, tell: OnProgress) -> bytes:
    """Mouths of the person in `video`, for crops of side `size` px, as a bundle keeps them."""
    info, file = media.probe(video), io.BytesIO()
    ((track, _),) = follow(video, info, size=size, detectors=detectors, on_frames=counted(tell, "keeping mouths", info.frames_guessed))
    with closing(track.references):
        write_track(track, file)
    return file.getvalue()


def _write(
    adapted: Adapted, best: _Weights | None, source: Path, config: NetworkConfig, video: Path, bank: bytes, out: Path, command: str,
    force: bool,
) -> Adapted:  # fmt: skip
    """The bundle folder `out`: new weights, or those of the bundle `source` as they are, and the person's mouths."""
    old = adapted.spec
    spec = replace(old, name=_bundle_name(out), created_with=__version__, graphs={})
    beside = {NOTE_FILE: _note(adapted, video, command), export.MODEL_CARD: _card(adapted, spec, source, video, command)}
    content = {bundle.BANK: bank, **{name: text.encode() for name, text in beside.items()}}
    if best is None:
        spec, size = export.copy_bundle(source, out, spec, beside=content, force=force)
        return replace(adapted, spec=spec, bytes=size)
    data = f"{old.training_data}; adapted from {old.name} to '{_one_line(video.name)}'"
    spec = replace(spec, rest_feature=best.rest, training_data=data)
    done = export.write_bundle(out, spec, config, best.memory, best.generator, half=True, beside=content, force=force)
    return replace(adapted, spec=done.spec, differences=done.differences, bytes=done.bytes)


def _bundle_name(out: Path) -> str:
    """The folder's name as a bundle may be called."""
    name = re.sub(r"[^a-z0-9._-]+", "-", out.resolve().name.lower()).lstrip("._-")
    return name or "adapted"


def _note(adapted: Adapted, video: Path, command: str) -> str:
    content = {
        "adapted_from": adapted.adapted_from,
        "from_graphs": adapted.spec.graphs,
        "video": video.name,
        "kept_base": adapted.kept_base,
        "gain": round(adapted.gain, 4),
        "before": asdict(adapted.before),
        "after": asdict(adapted.after),
        "steps": adapted.steps,
        "best_step": adapted.best_step,
        "stopped": adapted.stopped,
        "learned_s": round(adapted.learned_s, 2),
        "held_out_s": round(adapted.held_out_s, 2),
        "wall_s": round(adapted.wall_s, 1),
        "command": command,
        "version": __version__,
    }
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _card(adapted: Adapted, spec: bundle.BundleSpec, source: Path, video: Path, command: str) -> str:
    """The model card: how it was made, figures, and the card of the bundle that it comes from."""
    name = _one_line(video.name)
    if adapted.kept_base:
        made = (
            f"The weights of `{adapted.adapted_from}` as they are: {adapted.steps} steps on `{name}` gave none that were better on its "
            "held-out part."
        )
    else:
        made = (
            f"`{adapted.adapted_from}`, its generator and fusion fine-tuned for {adapted.best_step} steps on {adapted.learned_s:.0f} s of "
            f"`{name}`; the audio-lip memory is the same. Made for this one person: on others it is likely worse than "
            f"`{adapted.adapted_from}`."
        )
    rows = [f"| {label} | {_figures(judged)} |" for label, judged in (("before", adapted.before), ("after", adapted.after))]
    try:
        card = (source / export.MODEL_CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        card = "It came without a card.\n"
    return "\n".join(
        [
            f"# Model card: `{spec.name}`", "", made, "", "```", _one_line(command), "```", "",
            f"On the last {adapted.held_out_s:.0f} s of the video, held out, drawn from their own sound as `lipdub sync` draws them "
            f"(stopped after {adapted.steps} steps: {adapted.stopped}):", "",
            "| | error around the mouth, grey levels | opening: r | opening: articulation |", "|---|---|---|---|", *rows, "",
            f"The error around the mouth fell by {adapted.gain:.0%}. Licence: {_one_line(spec.license)} (of `{adapted.adapted_from}`); "
            "and the person in the video has to agree to what is made with it.", "",
            f"---- The card of `{adapted.adapted_from}` ----", "", card,
        ]
    )  # fmt: skip


def _figures(judged: Judged) -> str:
    return " | ".join(f"{value:.2f}" if value is not None else "too few frames" for value in (judged.l1, judged.r, judged.articulation))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write_sheet(out: Path, rows: Sequence[NDArray[np.uint8]]) -> None:
    """A picture of evenly spaced frames: true, drawn before, drawn after; each (N, S, S, 3). Raises EncodingFailed, WriteFailed."""
    chosen = np.unique(np.linspace(0, len(rows[0]) - 1, SHEET_COLUMNS).round().astype(np.int64))
    lines = []
    for label, crops in zip(("true", "before", "after"), rows, strict=False):
        line = np.concatenate([cv2.resize(crops[k], (SHEET_PX, SHEET_PX), interpolation=cv2.INTER_CUBIC) for k in chosen], axis=1)
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(line, label, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
        lines.append(line)
    write_whole(out, media.encode_picture(np.concatenate(lines), out.suffix.lower()), failed="the bundle was written, but not")
