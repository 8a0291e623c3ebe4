"""``lipdub train``: expert, memory, offsets, generator."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from lipdub.cli.commands import Command, Group
from lipdub.cli.console import counted, errors, new_table, paragraphs, print_line, progress, results, say
from lipdub.cli.record_options import with_record

if TYPE_CHECKING:
    from lipdub.train.data import Clip
    from lipdub.train.expert_stage import ExpertWeights
    from lipdub.train.generator_stage import GeneratorWeights
    from lipdub.train.interior import InteriorWeights
    from lipdub.train.loop import Stage, StepReport

    WeightsRecord = TypeVar("WeightsRecord", GeneratorWeights, ExpertWeights, InteriorWeights)

EXAMPLES = paragraphs("""
[bold]The whole way from clips to a bundle[/bold]
  lipdub prepare clips/train -o prepared/train --manifest clips/manifest.csv --encoder encoder
  lipdub prepare clips/val -o prepared/val
  lipdub train offsets prepared/train
  lipdub train expert prepared/train --val prepared/val -o runs/expert
  lipdub train memory prepared/train --val prepared/val -o runs/memory
  lipdub train generator prepared/train --val prepared/val --memory runs/memory/latest.pt -o runs/generator
  lipdub export-onnx runs/generator/latest.pt -o models/mine
  lipdub train hearing prepared/train --model models/mine -o models/mine_hearing
""")

MOST_LISTED = 40
"""Clips of a kind that are named one by one."""
NAMED = 5
"""So many of the skipped clips are named; the others are counted."""

app = typer.Typer(
    cls=Group,
    help="Train the sync expert, the audio-lip memory, then the generator, on prepared clips.",
    no_args_is_help=True, epilog=EXAMPLES, rich_markup_mode="rich",
)  # fmt: skip


Prepared = Annotated[Path, typer.Argument(help="Folder that lipdub prepare wrote.")]
Preset = Literal["compact", "paper"]
Batch = Annotated[int, typer.Option(min=1, help="Samples per step and process.")]
EncoderName = Annotated[str, typer.Option("--encoder", help="Speech encoder that the clips were prepared with.")]
Weight = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE, repeatable: another weight of a loss; 0 leaves it out. A wrong name lists all.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What every stage is told on its command line."""

    prepared: Prepared
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder: checkpoints, TensorBoard, pictures.")]
    val: Annotated[Path | None, typer.Option("--val", help="Prepared clips of other people to judge on; else a tenth of the speakers.")] = (
        None
    )
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps in all.")] = 3000
    rate: Annotated[float, typer.Option(help="Learning rate at its highest.")] = 1e-3
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations (and checkpoints).")] = 500
    workers: Annotated[int, typer.Option(min=0, help="Processes that load samples.")] = 2
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto"
    devices: Annotated[str, typer.Option(help="Number of GPUs (or CPU processes), or auto.")] = "auto"
    precision: Annotated[
        Literal["32-true", "bf16-mixed"], typer.Option(help="bf16-mixed is faster on GPUs and on CPUs with AVX512-BF16.")
    ] = "32-true"
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder, exactly where it stopped.")] = False

    def train(self, open_stage: Callable[[], Stage], *, batch: int) -> None:
        """Train the stage that `open_stage` makes, once the devices are there."""
        from lipdub.train.loop import LoopSettings, new_fabric, run

        devices: int | str = int(self.devices) if self.devices.isdigit() else self.devices
        if devices == "auto" and self.accelerator == "cpu":
            devices = 1
        settings = LoopSettings(
            steps=self.steps, batch=batch, rate=self.rate, seed=self.seed, validate_every=self.validate_every,
            checkpoint_every=self.validate_every, workers=self.workers, accelerator=self.accelerator, devices=devices,
            precision=self.precision,
        )  # fmt: skip
        fabric = new_fabric(settings)
        stage = open_stage()
        with progress(quiet=not fabric.is_global_zero) as tell:

            def on_progress(step: StepReport) -> None:
                tell("training", step.step, step.steps)
                if step.validation is not None and fabric.is_global_zero:
                    figures = "  ".join(f"{key} {value:.3f}" for key, value in step.validation.figures.items())
                    errors().print(f"step {step.step} ({step.samples_per_s:.0f} samples/s)  {figures}", soft_wrap=True)

            run(stage, fabric, self.output, settings, resume=self.resume, on_progress=on_progress)
        if fabric.is_global_zero:
            print_line(f"trained {self.output / 'latest.pt'}")


def stage_command(**defaults: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the command of its name, with the options of `TrainOptions`. defaults: of its fields, where this stage has others."""
    shared = inspect.signature(TrainOptions, eval_str=True).parameters.values()
    parameters = [one.replace(default=defaults.get(one.name, one.default)) for one in shared]
    return lambda command: app.command(command.__name__, cls=Command, epilog=EXAMPLES)(with_record(command, TrainOptions, parameters))


@app.command("encoder", cls=Command, epilog=EXAMPLES)
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
    print_line(
        f"wrote {output}: layers {', '.join(map(str, done.spec.layers))}, {done.bytes / 2**20:.1f} MiB, "
        f"differs from torch by at most {done.difference:.1e}"
    )


@app.command("hearing", cls=Command, epilog=EXAMPLES)
def hearing(
    prepared: Annotated[list[Path], typer.Argument(help="Folders that lipdub prepare --encoder has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle to write.")],
    model: Annotated[str, typer.Option(help="Bundle whose generator stays.")] = "base",
    encoder_name: Annotated[str, typer.Option("--encoder", help="Speech encoder, a name or a folder.")] = "encoder",
    speech: Annotated[Path | None, typer.Option(help="Of python -m lipdub.train.synthetic_speech: teaches closures.")] = None,
    slots: Annotated[int, typer.Option(min=2, help="Slots of the memory.")] = 256,
    kappa: Annotated[float, typer.Option(min=1.0, help="Sharpness of the addresses that are drawn.")] = 18.0,
    smoothing_s: Annotated[float, typer.Option(min=0.0, help="Seconds between the three moments whose lips are averaged.")] = 0.03,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 1,024 frames.")] = 700,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that exists.")] = False,
) -> None:
    """The memory of a bundle anew, on lip points and the speech encoder; minutes. The generator draws the new recalls as they are."""
    from lipdub.train.hearing_bundle import HearingJob, train_bundle

    job = HearingJob(
        model=model, encoder=encoder_name, speech=speech, slots=slots, drawn_kappa=kappa, tap_distance_s=smoothing_s, steps=steps, seed=seed
    )
    with progress() as tell:
        done = train_bundle(prepared, output, job, force=force, tell=tell)
    print_line(f"wrote {output}: {done.bytes / 2**20:.1f} MiB")


@app.command("lips", cls=Command, epilog=EXAMPLES)
def lips(
    prepared: Annotated[list[Path], typer.Argument(help="Folders that lipdub prepare has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle to write.")],
    model: Annotated[str, typer.Option(help="Bundle whose slots are addressed.")] = "base",
    val: Annotated[list[Path] | None, typer.Option(help="Prepared clips of other people, to measure on.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 512 frames.")] = 500,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that exists.")] = False,
) -> None:
    """The lip side of a bundle anew: its slots are addressed by lip points. What it hears and draws stays as it is; a minute."""
    from lipdub.train.hearing_bundle import train_points

    with progress() as tell:
        found = train_points(prepared, output, model=model, held_out=val or [], steps=steps, seed=seed, force=force, tell=tell)
    measured = f": by true lips r {sum(found) / len(found):.3f} mean, {min(found):.3f} worst of {len(found)} clips" if found else ""
    print_line(f"wrote {output}{measured}")


@stage_command(steps=3000, rate=8e-4)
def memory(
    preset: Annotated[Preset, typer.Option(help="compact: about 1 GFLOP a frame, made for CPUs. paper: the published sizes.")] = "compact",
    slots: Annotated[int, typer.Option(min=2, help="Slots of the memory.")] = 96,
    start: Annotated[Path | None, typer.Option(help="Begin with the memory of this bundle or checkpoint, of its preset and slots.")] = None,
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
    batch: Batch = 128,
    *,
    options: TrainOptions,
) -> None:
    """First stage: the audio-lip memory. Fails loudly if it collapses to a few slots."""
    from lipdub.records import MelSpec
    from lipdub.train.labelled_speech import LabelledSpeech
    from lipdub.train.memory_stage import MemoryStage
    from lipdub.train.networks import PRESETS
    from lipdub.train.weights import load_any_memory, load_lip_side

    begun = load_any_memory(start) if start is not None else None
    config = begun[0] if begun is not None else replace(PRESETS[preset], slots=slots)
    clips, held_out = _load_split(options, size=config.size)

    def stage() -> MemoryStage:
        made = MemoryStage(
            config, clips, held_out, options.rate, options.seed, speech=LabelledSpeech(speech, MelSpec()) if speech is not None else None,
            lip_side=load_lip_side(lip_side, config) if lip_side is not None else None, balance=balance,
        )  # fmt: skip
        if begun is not None:
            made.start_from(begun[1])
        return made

    options.train(stage, batch=batch)


@stage_command(steps=4000, workers=1)
def expert(
    batch: Annotated[int, typer.Option(min=2, help="Stretches of a clip per step and process, each of several lip windows.")] = 64,
    weight: Weight = None,
    encoder_name: EncoderName = "encoder",
    *,
    options: TrainOptions,
) -> None:
    """The audio-visual sync expert: which sound belongs to which lips. It judges dubs, and the generator learns from it."""
    from lipdub.bundles import encoder as encoders
    from lipdub.train.expert_network import shipped
    from lipdub.train.expert_stage import ExpertStage, ExpertWeights
    from lipdub.train.features import find_encoder

    config = shipped(encoders.load_spec(find_encoder(encoder_name)))
    clips, held_out = _load_split(options, size=config.size)
    weights = _weighed(ExpertWeights(), weight)
    options.train(lambda: ExpertStage(config, clips, held_out, options.rate, options.seed, weights), batch=batch)


@stage_command(steps=2000)
def reader(
    preset: Annotated[Preset, typer.Option(help="Preset of the generator that is to be read.")] = "compact",
    batch: Batch = 64,
    *,
    options: TrainOptions,
) -> None:
    """The lip reader: lip points of one picture. The generator's landmark loss looks through it (train generator --reader)."""
    from lipdub.train.networks import PRESETS
    from lipdub.train.reader import ReaderStage

    config = PRESETS[preset]
    clips, held_out = _load_split(options, size=config.size)
    options.train(lambda: ReaderStage(config, clips, held_out, options.rate, options.seed), batch=batch)


@stage_command(steps=6000)
def interior(
    batch: Batch = 24,
    start: Annotated[Path | None, typer.Option(help="Go on from the weights of this checkpoint or folder.")] = None,
    weight: Weight = None,
    *,
    options: TrainOptions,
) -> None:
    """The network that paints what lies between the lips, on clips of lipdub prepare --size 256."""
    from lipdub.train.interior import PREPARED_SIZE, InteriorStage, InteriorWeights
    from lipdub.train.interior_export import load_interior

    clips, held_out = _load_split(options, size=PREPARED_SIZE)
    weights = _weighed(InteriorWeights(), weight)
    before = None if start is None else load_interior(start)
    options.train(lambda: InteriorStage(clips, held_out, options.rate, options.seed, weights, start=before), batch=batch)


@app.command("offsets", cls=Command, epilog=EXAMPLES)
def offsets(
    prepared: Prepared,
    encoder_name: EncoderName = "encoder",
    anchor: Annotated[
        str | None, typer.Option(help="A speaker whose clips are known to be in sync: sets the constant that all offsets share.")
    ] = None,
) -> None:
    """Find how far the sound of each clip is shifted against the picture, to 0.02 s, and store it beside the clips for later training.

    Clips whose lips agree with no shift of their sound are found, too, and left out of the next training.
    """
    from lipdub.bundles import encoder as encoders
    from lipdub.train import offsets as shifts
    from lipdub.train.features import find_encoder
    from lipdub.train.hearing import HearingSettings, encoder_use

    described = encoders.load_spec(find_encoder(encoder_name))
    clips = _load(prepared, with_offsets=False)
    with progress() as tell:
        on_clip = counted(tell, "comparing", shifts.ROUNDS * len(clips))
        found = shifts.estimate(
            clips, encoder_use(described), len(described.layers), balance=HearingSettings().balance, anchor=anchor,
            on_clip=on_clip,
        )  # fmt: skip
    shifts.store(prepared, found)
    table = new_table("the largest offsets", "clip", "s", "r there", "r at zero")
    for item in sorted((one for one in found if one.agrees), key=lambda one: -abs(one.offset_s))[:MOST_LISTED]:
        table.add_row(Path(item.source).name, f"{item.offset_s:+.2f}", f"{item.r:.2f}", f"{item.r_at_zero:.2f}")
    results().print(table)
    left_out = [item for item in found if not item.agrees]
    for item in left_out[:MOST_LISTED]:
        print_line(f"left out, agrees with no offset: {Path(item.source).name}")
    corrected = sum(item.agrees and item.offset_s != 0 for item in found)
    print_line(f"{len(found)} clips: {corrected} corrected, {len(left_out)} left out")


@stage_command(steps=20000, rate=5e-4, validate_every=1000)
def generator(
    memory: Annotated[Path, typer.Option(help="Checkpoint of the first stage, or a bundle folder whose memory to take.")],
    discriminator_rate: Annotated[float, typer.Option(help="Learning rate of the discriminator.")] = 2e-4,
    decode: Annotated[
        Literal["split", "both"], typer.Option(help="both: every window from both recalls. split: each window from one of them.")
    ] = "split",
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
    batch: Annotated[int, typer.Option(min=1, help="Windows of five frames per step and process.")] = 8,
    *,
    options: TrainOptions,
) -> None:
    """Second stage: the generator, on what the memory recalls; with --joint, both together."""
    from lipdub.faces.detector import MediapipeDetector
    from lipdub.train.expert_network import load_expert
    from lipdub.train.generator_stage import GeneratorStage, GeneratorWeights
    from lipdub.train.reader import load_reader
    from lipdub.train.weights import load_any_memory, load_weights

    config, model = load_any_memory(memory)
    clips, held_out = _load_split(options, size=config.size)
    weights = load_weights(start, config) if start is not None else None
    lip_reader = load_reader(reader, config) if reader is not None else None
    judge = load_expert(expert) if expert is not None else None
    weighing = _weighed(GeneratorWeights(adversarial=adversarial, adversarial_from=adversarial_from), weight)

    def stage() -> GeneratorStage:
        made = GeneratorStage(
            config, model, clips, held_out, options.rate, discriminator_rate, options.seed, decode=decode, audio_share=audio_share,
            draw_frames=draw_frames, joint=joint, lip_reader=lip_reader, expert=judge,
            open_detector=partial(MediapipeDetector, max_faces=1), weights=weighing,
        )  # fmt: skip
        if weights is not None:
            made.start_from(weights)
        return made

    options.train(stage, batch=batch)


def _weighed(weights: WeightsRecord, changes: list[str] | None) -> WeightsRecord:
    """`weights` with the ``NAME=VALUE`` changes of the command line. Raises BadParameter, which lists the names."""
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


def _load(folder: Path, *, size: int | None = None, with_offsets: bool = True) -> list[Clip]:
    """``data.load_clips``, which see; says what it skipped in one line."""
    from lipdub.train.data import load_clips

    skipped: list[str] = []
    clips = load_clips(
        folder, size=size, with_offsets=with_offsets, on_skip=lambda source, why: skipped.append(f"{Path(source).name} ({why})")
    )
    if skipped:
        more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        say(
            f"{len(skipped)} of {len(clips) + len(skipped)} clips in '{folder}' skipped: {', '.join(skipped[:NAMED])}{more}; "
            "run lipdub prepare again to make them anew"
        )
    return clips


def _load_split(options: TrainOptions, *, size: int) -> tuple[list[Clip], list[Clip]]:
    """(to train on, held out). Raises TrainingDataError also where nothing that is held out is long enough to judge on."""
    from lipdub.errors import TrainingDataError
    from lipdub.train.data import split_speakers
    from lipdub.train.memory_stage import JUDGED_FRAMES

    clips = _load(options.prepared, size=size)
    clips, held_out = split_speakers(clips) if options.val is None else (clips, _load(options.val, size=size))
    if all(len(clip) < JUDGED_FRAMES for clip in held_out):
        raise TrainingDataError(f"no held-out clip has {JUDGED_FRAMES} frames, so nothing can be judged; give longer clips with --val")
    return clips, held_out
