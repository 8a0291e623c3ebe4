"""``lipdub train``: expert, memory, offsets, generator."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lipdub.cli.clips import load, load_split
from lipdub.cli.console import errors, progress, results

if TYPE_CHECKING:
    from collections.abc import Callable

    from lipdub.train.expert_stage import ExpertWeights
    from lipdub.train.generator_stage import GeneratorWeights
    from lipdub.train.loop import LoopSettings, Stage, StepReport

    WeightsRecord = TypeVar("WeightsRecord", GeneratorWeights, ExpertWeights)

EXAMPLES = """
[bold]The whole way from clips to a bundle[/bold]

  lipdub prepare clips/train -o prepared/train --manifest clips/manifest.csv

  lipdub prepare clips/val -o prepared/val

  lipdub train expert prepared/train --val prepared/val -o runs/expert

  lipdub train offsets runs/expert/best.pt prepared/train

  lipdub train memory prepared/train --val prepared/val -o runs/memory

  lipdub train generator prepared/train --val prepared/val --memory runs/memory/latest.pt -o runs/generator

  lipdub export-onnx runs/generator/latest.pt -o models/mine

  lipdub train hearing prepared/train --model models/mine -o models/mine_hearing
"""

MOST_LISTED = 40
"""Clips of a kind that are named one by one."""

app = typer.Typer(
    help="Train the sync expert, the audio-lip memory, then the generator, on prepared clips.",
    no_args_is_help=True,
    epilog=EXAMPLES,
    rich_markup_mode="rich",
)


class PresetChoice(str, Enum):
    """Network sizes."""

    compact = "compact"
    paper = "paper"


class PrecisionChoice(str, Enum):
    """Fabric's precisions that make sense here."""

    full = "32-true"
    bf16 = "bf16-mixed"


class DecodeChoice(str, Enum):
    """How both recalls are decoded."""

    SPLIT = "split"
    BOTH = "both"


Prepared = Annotated[Path, typer.Argument(help="Folder that lipdub prepare wrote.")]
Held = Annotated[Path | None, typer.Option("--val", help="Prepared clips of other people to judge on; else a tenth of the speakers.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Run folder: checkpoints, TensorBoard, pictures.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimisation steps in all.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples per step and process.")]
Rate = Annotated[float, typer.Option(help="Learning rate at its highest.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Every = Annotated[int, typer.Option(min=1, help="Steps between validations (and checkpoints).")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load samples.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Devices = Annotated[str, typer.Option(help="Number of GPUs (or CPU processes), or auto.")]
Precision = Annotated[PrecisionChoice, typer.Option(help="bf16-mixed is faster on GPUs and on CPUs with AVX512-BF16.")]
Weight = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE, repeatable: another weight of a loss; 0 leaves it out. A wrong name lists all.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder, exactly where it stopped.")]


@app.command("encoder", epilog=EXAMPLES)
def encoder(
    weights: Annotated[
        Path, typer.Argument(help="Whisper's weights: OpenAI .pt, Hugging Face model.safetensors or CTranslate2 model.bin.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, such as models/encoder.")],
    source: Annotated[str, typer.Option(help="Where the weights are from, one line; kept in encoder.json.")] = "unstated",
    force: Annotated[bool, typer.Option("--force", help="Replace an encoder that exists.")] = False,
) -> None:
    """Write the speech encoder that memories stand on, out of Whisper's weights. Nothing in the file is executed."""
    from lipdub.train.encoder_export import export_encoder

    done = export_encoder(weights, output, source=source, force=force)
    results().print(
        f"wrote {output}: layers {', '.join(map(str, done.spec.layers))}, {done.bytes / 2**20:.1f} MiB, "
        f"differs from torch by at most {done.difference:.1e}",
        markup=False,
    )


@app.command("hearing", epilog=EXAMPLES)
def hearing(
    prepared: Annotated[list[Path], typer.Argument(help="Folders that lipdub prepare --encoder has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle to write.")],
    model: Annotated[str, typer.Option(help="Bundle whose lip side, slots and generator stay.")] = "base",
    encoder_name: Annotated[str, typer.Option("--encoder", help="Speech encoder, a name or a folder.")] = "encoder",
    speech: Annotated[Path | None, typer.Option(help="Of python -m lipdub.train.synthetic_speech: teaches closures.")] = None,
    kappa: Annotated[float, typer.Option(min=1.0, help="Sharpness of the addresses that are drawn.")] = 18.0,
    smoothing_s: Annotated[float, typer.Option(min=0.0, help="Seconds between the three moments whose lips are averaged.")] = 0.03,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 1,024 frames.")] = 700,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that exists.")] = False,
) -> None:
    """The audio side of a bundle anew, on top of the speech encoder; minutes. The generator draws the new recalls as they are."""
    from lipdub.train.hearing_bundle import HearingJob, train_bundle

    job = HearingJob(
        model=model, encoder=encoder_name, speech=speech, drawn_kappa=kappa, tap_distance_s=smoothing_s, steps=steps, seed=seed
    )
    with progress() as tell:
        done = train_bundle(prepared, output, job, force=force, tell=tell)
    results().print(f"wrote {output}: {done.bytes / 2**20:.1f} MiB", markup=False)


@app.command("memory", epilog=EXAMPLES)
def memory(
    prepared: Prepared,
    output: Output,
    val: Held = None,
    preset: Annotated[
        PresetChoice, typer.Option(help="compact: about 1 GFLOP a frame, made for CPUs. paper: the published sizes.")
    ] = PresetChoice.compact,
    slots: Annotated[int, typer.Option(min=2, help="Slots of the memory.")] = 96,
    start: Annotated[
        Path | None,
        typer.Option(help="Begin with the memory of this bundle or checkpoint, of its preset and slots."),
    ] = None,
    lip_side: Annotated[
        Path | None,
        typer.Option(help="Keep the lip side of this bundle or checkpoint as it is (its generator goes on fitting); train the audio side."),
    ] = None,
    speech: Annotated[
        Path | None,
        typer.Option(help="Labelled synthetic speech (python -m lipdub.train.synthetic_speech): teaches phonemes and closures."),
    ] = None,
    balance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Speakers are drawn by (their frames) to this power: 1 by frames, 0 all alike.")
    ] = 0.6,
    steps: Steps = 3000,
    batch: Batch = 128,
    rate: Rate = 8e-4,
    seed: Seed = 0,
    validate_every: Every = 500,
    workers: Workers = 2,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    precision: Precision = PrecisionChoice.full,
    resume: Resume = False,
) -> None:
    """First stage: the audio-lip memory. Fails loudly if it collapses to a few slots."""
    from dataclasses import replace

    from lipdub.records import MelSpec
    from lipdub.train.labelled_speech import LabelledSpeech
    from lipdub.train.memory_stage import MemoryStage
    from lipdub.train.networks import PRESETS
    from lipdub.train.weights import load_any_memory, load_lip_side

    settings = _settings(steps, batch, rate, seed, validate_every, workers, accelerator, devices, precision)
    begun = load_any_memory(start) if start is not None else None
    config = begun[0] if begun is not None else replace(PRESETS[preset.value], slots=slots)
    clips, held_out = load_split(prepared, val, size=config.size)

    def stage() -> MemoryStage:
        made = MemoryStage(
            config, clips, held_out, rate, seed, speech=LabelledSpeech(speech, MelSpec()) if speech is not None else None,
            lip_side=load_lip_side(lip_side, config) if lip_side is not None else None, balance=balance,
        )  # fmt: skip
        if begun is not None:
            made.start_from(begun[1])
        return made

    _train(stage, output, settings, resume)


@app.command("expert", epilog=EXAMPLES)
def expert(
    prepared: Prepared,
    output: Output,
    val: Held = None,
    steps: Steps = 4000,
    batch: Annotated[int, typer.Option(min=2, help="Stretches of a clip per step and process, each of several lip windows.")] = 64,
    rate: Rate = 1e-3,
    seed: Seed = 0,
    weight: Weight = None,
    validate_every: Every = 500,
    workers: Workers = 1,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    precision: Precision = PrecisionChoice.full,
    resume: Resume = False,
) -> None:
    """The audio-visual sync expert: which sound belongs to which lips. Finds offsets, judges dubs, and the generator learns from it."""
    from lipdub.train.expert_network import SHIPPED
    from lipdub.train.expert_stage import ExpertStage, ExpertWeights

    settings = _settings(steps, batch, rate, seed, validate_every, workers, accelerator, devices, precision)
    clips, held_out = load_split(prepared, val, size=SHIPPED.size)

    weights = _weighed(ExpertWeights(), weight)

    def stage() -> ExpertStage:
        return ExpertStage(SHIPPED, clips, held_out, rate, seed, weights)

    _train(stage, output, settings, resume)


@app.command("reader", epilog=EXAMPLES)
def reader(
    prepared: Prepared,
    output: Output,
    val: Held = None,
    preset: Annotated[PresetChoice, typer.Option(help="Preset of the generator that is to be read.")] = PresetChoice.compact,
    steps: Steps = 2000,
    batch: Batch = 64,
    rate: Rate = 1e-3,
    seed: Seed = 0,
    validate_every: Every = 500,
    workers: Workers = 2,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    precision: Precision = PrecisionChoice.full,
    resume: Resume = False,
) -> None:
    """The lip reader: lip points of one picture. The generator's landmark loss looks through it (train generator --reader)."""
    from lipdub.train.networks import PRESETS
    from lipdub.train.reader import ReaderStage

    settings = _settings(steps, batch, rate, seed, validate_every, workers, accelerator, devices, precision)
    config = PRESETS[preset.value]
    clips, held_out = load_split(prepared, val, size=config.size)
    _train(lambda: ReaderStage(config, clips, held_out, rate, seed), output, settings, resume)


@app.command("offsets", epilog=EXAMPLES)
def offsets(
    checkpoint: Annotated[Path, typer.Argument(help="A sync expert, or a memory, trained on these clips as they are.")],
    prepared: Prepared,
) -> None:
    """Find clips whose sound is shifted against the picture, and store the shift beside them for the next training.

    With a sync expert, clips whose lips agree with no shift of their sound are found, too, and left out of the next training.
    """
    from rich.table import Table

    from lipdub.train import expert_network, weights
    from lipdub.train import offsets as shifts

    clips = load(prepared, with_offsets=False)
    if expert_network.holds_expert(checkpoint):
        found = shifts.estimate_by_expert(expert_network.load_expert(checkpoint), clips)
        figure = "cosine"
    else:
        config, model = weights.load_any_memory(checkpoint)
        found = shifts.estimate(model, clips, config)
        figure = "r"
    shifts.store(prepared, found)
    table = Table(
        "clip", "frames at 25 Hz", f"{figure} there", f"{figure} at zero", title="offsets that will be corrected", title_justify="left"
    )
    believed = [item for item in found if item.believed and item.agrees]
    for item in believed[:MOST_LISTED]:
        table.add_row(Path(item.source).name, f"{item.frames:+d}", f"{item.there:.2f}", f"{item.at_zero:.2f}")
    results().print(table)
    left_out = [item for item in found if not item.agrees]
    for item in left_out[:MOST_LISTED]:
        results().print(f"left out, agrees with no offset: {Path(item.source).name}", soft_wrap=True)
    results().print(
        f"{len(found)} of {len(clips)} clips could be judged: {len(believed)} corrected, {len(left_out)} left out", soft_wrap=True
    )


@app.command("generator", epilog=EXAMPLES)
def generator(
    prepared: Prepared,
    output: Output,
    memory: Annotated[Path, typer.Option(help="Checkpoint of the first stage, or a bundle folder whose memory to take.")],
    val: Held = None,
    steps: Steps = 20000,
    batch: Annotated[int, typer.Option(min=1, help="Windows of five frames per step and process.")] = 8,
    rate: Rate = 5e-4,
    discriminator_rate: Annotated[float, typer.Option(help="Learning rate of the discriminator.")] = 2e-4,
    seed: Seed = 0,
    decode: Annotated[
        DecodeChoice, typer.Option(help="both: every window from both recalls. split: each window from one of them.")
    ] = DecodeChoice.SPLIT,
    audio_share: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of windows drawn from the audio recall with split.")] = 0.25,
    draw_frames: Annotated[int, typer.Option(min=1, max=5, help="Frames drawn per sample; 1 shows the most people a step.")] = 5,
    joint: Annotated[bool, typer.Option("--joint", help="Train the memory on, beside the generator.")] = False,
    start: Annotated[Path | None, typer.Option(help="Begin with the weights of this generator checkpoint or bundle folder.")] = None,
    reader: Annotated[Path | None, typer.Option(help="Checkpoint of lipdub train reader: the landmark loss looks through it.")] = None,
    expert: Annotated[
        Path | None,
        typer.Option(help="Sync expert (checkpoint of lipdub train expert, or exported folder): drawn windows are to fit their sound."),
    ] = None,
    weight: Weight = None,
    adversarial: Annotated[float, typer.Option(min=0.0, help="Weight of the discriminator's loss.")] = 0.05,
    adversarial_from: Annotated[int, typer.Option(min=0, help="Step at which the discriminator joins.")] = 4000,
    validate_every: Every = 1000,
    workers: Workers = 2,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    precision: Precision = PrecisionChoice.full,
    resume: Resume = False,
) -> None:
    """Second stage: the generator, on what the memory recalls; with --joint, both together."""
    from functools import partial

    from lipdub.faces.detector import MediapipeDetector
    from lipdub.train.expert_network import load_expert
    from lipdub.train.generator_stage import GeneratorStage, GeneratorWeights
    from lipdub.train.reader import load_reader
    from lipdub.train.weights import load_any_memory, load_weights

    settings = _settings(steps, batch, rate, seed, validate_every, workers, accelerator, devices, precision)
    config, model = load_any_memory(memory)
    clips, held_out = load_split(prepared, val, size=config.size)
    weights = load_weights(start, config) if start is not None else None
    lip_reader = load_reader(reader, config) if reader is not None else None
    judge = load_expert(expert) if expert is not None else None
    weighing = _weighed(GeneratorWeights(adversarial=adversarial, adversarial_from=adversarial_from), weight)

    def stage() -> GeneratorStage:
        made = GeneratorStage(
            config, model, clips, held_out, rate, discriminator_rate, seed, decode=decode.value, audio_share=audio_share,
            draw_frames=draw_frames, joint=joint, lip_reader=lip_reader, expert=judge,
            open_detector=partial(MediapipeDetector, max_faces=1), weights=weighing,
        )  # fmt: skip
        if weights is not None:
            made.start_from(weights)
        return made

    _train(stage, output, settings, resume)


def _weighed(weights: WeightsRecord, changes: list[str] | None) -> WeightsRecord:
    """`weights` with the ``NAME=VALUE`` changes of the command line. Raises BadParameter, which lists the names."""
    from dataclasses import fields, replace

    kinds = {known.name: type(getattr(weights, known.name)) for known in fields(weights)}
    found: dict[str, Any] = {}
    for change in changes or []:
        name, _, value = change.partition("=")
        try:
            found[name] = kinds[name](value)
        except (KeyError, ValueError) as error:
            raise typer.BadParameter(f"{change!r} is not NAME=VALUE with a name among {', '.join(kinds)}", param_hint="--weight") from error
        if not (math.isfinite(found[name]) and found[name] >= 0):
            raise typer.BadParameter(f"{change!r}: a weight is 0 or more", param_hint="--weight")
    return replace(weights, **found)


def _settings(
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    every: int,
    workers: int,
    accelerator: str,
    devices: str,
    precision: PrecisionChoice,
) -> LoopSettings:
    from lipdub.train.loop import LoopSettings

    count: int | str = int(devices) if devices.isdigit() else devices
    return LoopSettings(
        steps=steps, batch=batch, rate=rate, seed=seed, validate_every=every, checkpoint_every=every, workers=workers,
        accelerator=accelerator, devices=1 if count == "auto" and accelerator == "cpu" else count, precision=precision.value,
    )  # fmt: skip


def _train(stage: Callable[[], Stage], output: Path, settings: LoopSettings, resume: bool) -> None:
    from lipdub.train.loop import new_fabric, run

    fabric = new_fabric(settings)
    made = stage()
    with progress(quiet=not fabric.is_global_zero) as tell:

        def on_progress(step: StepReport) -> None:
            tell("training", step.step, step.steps)
            if step.validation is not None and fabric.is_global_zero:
                figures = "  ".join(f"{key} {value:.3f}" for key, value in step.validation.figures.items())
                errors().print(f"step {step.step} ({step.samples_per_s:.0f} samples/s)  {figures}", soft_wrap=True)

        run(made, fabric, output, settings, resume=resume, on_progress=on_progress)
    if fabric.is_global_zero:
        results().print(f"trained {output / 'latest.pt'}", soft_wrap=True)
