"""What does each loss bring, and how many slots? Short runs from the same start on the same samples, each with one thing changed.

Short runs say which way a thing pulls, not how good a model gets: what counts is the difference to the first row.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from lipdub.bundles.network import NetworkConfig
from lipdub.errors import MemoryCollapsed
from lipdub.train.data import GRID_HZ, Clip, load_clips, opening_from_lips, to_network
from lipdub.train.expert_network import load_expert
from lipdub.train.generator_stage import GeneratorStage, GeneratorWeights, choose_closed
from lipdub.train.labelled_speech import LabelledSpeech
from lipdub.train.loop import LoopSettings, StepReport, new_fabric, run
from lipdub.train.memory_stage import MemoryStage, MemoryWeights, central, correlation, judge_memory, judge_on_speech
from lipdub.train.networks import PRESETS
from lipdub.train.reader import LipReader, load_reader
from lipdub.train.weights import load_any_memory, load_lip_side, load_weights

Figures = dict[str, float]
LONGEST = 150
"""Frames of each held-out clip that are judged."""


@dataclass(frozen=True)
class Variant:
    """One row: its name, and the settings that differ from the first row's."""

    name: str
    changes: dict[str, Any]
    slots: int = 96


MEMORY = [
    Variant("all losses, 96 slots", {}),
    *(Variant(f"{slots} slots", {}, slots) for slots in (24, 48, 120)),
    *(Variant(f"without {name}", {name: 0.0}) for name in ("store", "align", "usage", "spread", "landmarks_by_lips", "landmarks_by_audio")),
    Variant("without phonemes and closures", {"phonemes": 0.0, "closures": 0.0}),
]
_GENERATOR_LOSSES = ("picture", "edges", "landmarks", "painted", "perceptual", "visual_sync", "adversarial")
GENERATOR = [
    Variant("all losses", {}),
    *(Variant(f"without {name}", {name: 0.0}) for name in _GENERATOR_LOSSES),
]
WITH_EXPERT = [Variant("with audio_visual", {"audio_visual": 0.2}), Variant("with temporal", {"temporal": 2.0})]


def main(arguments: list[str]) -> int:
    """Train and judge the variants, print the tables, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ablations", description=__doc__)
    parser.add_argument("what", choices=("memory", "generator"))
    parser.add_argument("--train", type=Path, required=True, help="prepared clips to train on")
    parser.add_argument("--val", type=Path, required=True, help="prepared clips of other people")
    parser.add_argument("--speech", type=Path, help="labelled synthetic speech (memory)")
    parser.add_argument("--memory", type=Path, help="bundle or checkpoint whose memory the generators draw (generator)")
    parser.add_argument("--start", type=Path, help="bundle or checkpoint whose generator they begin with (generator)")
    parser.add_argument("--reader", type=Path, help="checkpoint of lipdub train reader (generator)")
    parser.add_argument(
        "--expert", type=Path, help="checkpoint of lipdub train expert: adds the rows with windows of five frames (generator)"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--only", default="", help="just the rows whose name holds this, and the first")
    parser.add_argument(
        "--lip-side", type=Path, help="keep the lip side of this bundle or checkpoint: far fewer steps say something (memory)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    clips, held_out = load_clips(options.train), [clip for clip in load_clips(options.val) if len(clip) >= 4 * GRID_HZ]
    rows = _memory(options, clips, held_out) if options.what == "memory" else _generator(options, clips, held_out)
    columns = list(next(iter(rows.values())))
    common.table(
        f"{options.what}: {options.steps} steps each, held-out people", ["", *columns],
        [[name, *(figures[column] for column in columns)] for name, figures in rows.items()],
    )  # fmt: skip
    common.write_json(options.json, {"what": options.what, "steps": options.steps, "rows": rows})
    return 0


def _memory(options: argparse.Namespace, clips: list[Clip], held_out: list[Clip]) -> dict[str, Figures]:
    if options.speech is None:
        raise SystemExit("ablations memory: --speech is needed, since phonemes and closures are among the losses")
    rows = {}
    for variant in (row for row in MEMORY if row is MEMORY[0] or options.only in row.name):
        config = replace(PRESETS["compact"], slots=variant.slots)
        speech = LabelledSpeech(options.speech, config.mel)
        torch.manual_seed(0)
        kept = load_lip_side(options.lip_side, config) if options.lip_side is not None else None
        stage = MemoryStage(
            config,
            clips,
            held_out,
            8e-4,
            0,
            replace(MemoryWeights(), **variant.changes),
            speech=speech,
            lip_side=kept,
            balance=0.45,
            ema=0.98,
        )
        _run(stage, _settings(options, options.batch or 64, 8e-4))
        rows[variant.name] = judge_memory(stage.averaged, held_out, config, longest=LONGEST) | judge_on_speech(stage.averaged, speech)
        common.CONSOLE.print(variant.name, {key: round(value, 3) for key, value in rows[variant.name].items()})
    return rows


def _generator(options: argparse.Namespace, clips: list[Clip], held_out: list[Clip]) -> dict[str, Figures]:
    if options.memory is None or options.start is None or options.reader is None:
        raise SystemExit("ablations generator: --memory, --start and --reader are needed")
    config, _ = load_any_memory(options.memory)
    weights, reader = load_weights(options.start, config), load_reader(options.reader, config)
    rows = {}
    for variant in GENERATOR + (WITH_EXPERT if options.expert is not None else []):
        _, memory = load_any_memory(options.memory)
        five = variant in WITH_EXPERT
        expert = load_expert(options.expert) if "audio_visual" in variant.changes else None
        torch.manual_seed(0)
        stage = GeneratorStage(
            config, memory, clips, held_out, 4e-4, 2e-4, 0, draw_frames=5 if five else 1, lip_reader=reader, expert=expert, ema=0.97,
            weights=replace(GeneratorWeights(adversarial=0.1, adversarial_from=10), **variant.changes),
        )  # fmt: skip
        stage.start_from(weights)
        _run(stage, _settings(options, (options.batch or 40) // (5 if five else 1), 4e-4))
        rows[variant.name] = judge_drawn(stage, reader, held_out, config)
        common.CONSOLE.print(variant.name, {key: round(value, 3) for key, value in rows[variant.name].items()})
    return rows


@torch.no_grad()
def judge_drawn(stage: GeneratorStage, reader: LipReader, clips: list[Clip], config: NetworkConfig) -> Figures:
    """Of whole clips drawn from their sound: l1 (grey levels), r and articulation of the opening that the reader finds, sharpness (energy
    of the Laplacian over the true one, median), flicker (mean second difference in time over the true one, median), painted (share of what
    was not copied from the reference, mean)."""
    generator, memory = stage.averaged.generator.eval(), stage.averaged.memory.eval()
    y0, y1, x0, x1 = config.drawn
    found: dict[str, list[float]] = {name: [] for name in ("l1", "r", "articulation", "sharpness", "flicker", "painted")}
    for clip in clips:
        end = min(LONGEST, len(clip))
        target = to_network(torch.from_numpy(central(clip, 0, end, config)))
        reference = target[choose_closed(clip, end)][None].expand(end, -1, -1, -1)
        audio = memory.audio_encoder(torch.from_numpy(clip.windows(np.arange(end), config.mel))[:, None])
        features = generator.encoder(target, reference)
        face = generator.decoder.drawn(memory.fuse(audio, memory.memory.by_audio_sharpened(audio).recalled), features)
        drawn = face.picture
        true = target[..., y0:y1, x0:x1]
        opening, wanted = (opening_from_lips(reader(pictures)).numpy() for pictures in (drawn, true))
        found["l1"].append(float((drawn - true).abs().mean()) * 127.5)
        found["r"].append(correlation(opening, wanted))
        found["articulation"].append(float(opening.std() / max(1e-6, wanted.std())))
        found["sharpness"].append(_edges(drawn) / _edges(true))
        found["painted"].append(1.0 if face.painted is None else float(face.painted.mean()))
        found["flicker"].append(float(drawn.diff(n=2, dim=0).abs().mean() / true.diff(n=2, dim=0).abs().mean()))
    return {name: float(np.mean(values) if name in ("l1", "r", "painted") else np.median(values)) for name, values in found.items()}


def _edges(pictures: Tensor) -> float:
    middle = pictures[:, :, 1:-1, 1:-1]
    laplacian = pictures[:, :, :-2, 1:-1] + pictures[:, :, 2:, 1:-1] + pictures[:, :, 1:-1, :-2] + pictures[:, :, 1:-1, 2:] - 4 * middle
    return float(laplacian.square().mean())


def _settings(options: argparse.Namespace, batch: int, rate: float) -> LoopSettings:
    return LoopSettings(
        steps=options.steps, batch=batch, rate=rate, warmup_steps=options.steps // 10, validate_every=10**9, checkpoint_every=10**9,
        workers=1, accelerator="cpu", devices=1, precision="bf16-mixed",
    )  # fmt: skip


def _run(stage: MemoryStage | GeneratorStage, settings: LoopSettings) -> None:
    # A row that collapses is a finding: it is judged like the others.
    with tempfile.TemporaryDirectory(prefix="lipdub-ablation-") as folder, suppress(MemoryCollapsed):
        run(stage, new_fabric(settings), Path(folder), settings, resume=False, on_progress=_quiet)


def _quiet(_: StepReport) -> None:
    pass
