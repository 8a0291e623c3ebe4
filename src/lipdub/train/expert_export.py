"""A checkpoint of the sync expert to a folder: two graphs checked against torch, the weights, ``expert.json``. All of it, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lipdub import __version__
from lipdub.atomic import whole_folder
from lipdub.bundles import expert
from lipdub.errors import ExportFailed
from lipdub.records import CropSpec
from lipdub.train.expert_network import SyncNet, load_expert
from lipdub.train.export import HALF_TOLERANCE, MODEL_CARD, TOLERANCE, check_folder, export_graph
from lipdub.train.weights import WEIGHTS_FILE, write_weights


@dataclass(frozen=True, slots=True)
class ExportedExpert:
    """What was written."""

    spec: expert.ExpertSpec
    differences: dict[str, float]
    """Graph file to largest absolute difference to torch."""
    tolerance: float
    """The largest that was allowed."""
    bytes: int


class _Side(nn.Module):
    """One side of the expert with the contract of its graph. embed: the method of `model` that this side is."""

    def __init__(self, model: SyncNet, embed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.embed = model, embed

    def forward(self, windows: Tensor) -> Tensor:
        return self.embed(windows)


def export_expert(
    checkpoint: Path,
    out: Path,
    *,
    half: bool = False,
    name: str | None = None,
    license_text: str = "unstated",
    training_data: str = "unstated",
    force: bool = False,
) -> ExportedExpert:
    """Write the expert folder `out` from a checkpoint of ``lipdub train expert``.

    Raises CheckpointInvalid, OutputRefused, ExportFailed, WriteFailed; whatever fails, nothing is left behind and an expert that was
    there stays.
    """
    check_folder(out, force=force, spec_file=expert.SPEC_FILE)
    model = load_expert(checkpoint)
    config = model.config
    try:
        spec = expert.ExpertSpec(
            name=name or out.resolve().name, format_version=expert.FORMAT_VERSION, crop=CropSpec(config.size, config.box, config.size // 2),
            encoder=config.encoder, frames=config.frames, pool=config.pool, lip_widths=config.lip_widths, sound_widths=config.sound_widths,
            embedding=config.embedding, scale=float(model.scale), bias=float(model.bias), offsets=expert.OFFSETS, license=license_text,
            training_data=training_data, graphs={}, created_with=__version__,
        )  # fmt: skip
    except ValueError as error:
        raise ExportFailed(f"cannot describe the expert: {error}; --name and --license set what it says") from error
    names = expert.tensors(spec)

    def pictures(batch: int) -> tuple[Tensor, ...]:
        return (torch.rand(batch, 3, config.frames, *config.box_px) * 2 - 1,)

    def features(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, len(config.encoder.taps), config.encoder.channels),)

    with whole_folder(out) as folder:
        differences = {
            graph: export_graph(side, example, names[graph], folder / graph, half=half)
            for graph, side, example in (
                (expert.LIPS_GRAPH, _Side(model, model.embed_lips), pictures),
                (expert.SOUND_GRAPH, _Side(model, model.embed_sound), features),
            )
        }
        write_weights(folder / WEIGHTS_FILE, model.state_dict())
        spec = expert.finish(folder, spec)
        if (out / MODEL_CARD).exists():
            (folder / MODEL_CARD).write_bytes((out / MODEL_CARD).read_bytes())
        size = sum(path.stat().st_size for path in folder.iterdir())
    return ExportedExpert(spec, differences, HALF_TOLERANCE if half else TOLERANCE, size)
