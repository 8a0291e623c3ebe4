"""A checkpoint of the network that paints between lips to a folder: a graph checked against torch, the weights, ``interior.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lipdub import __version__
from lipdub.atomic import whole_folder
from lipdub.bundles import interior
from lipdub.errors import CheckpointInvalid, ExportFailed
from lipdub.train import checkpoints
from lipdub.train.export import HALF_TOLERANCE, MODEL_CARD, TOLERANCE, check_folder, export_graph
from lipdub.train.interior import Interior
from lipdub.train.weights import WEIGHTS_FILE, read_weights, write_weights


@dataclass(frozen=True, slots=True)
class ExportedInterior:
    """What was written. difference: largest to torch; tolerance: the largest that was allowed."""

    spec: interior.InteriorSpec
    difference: float
    tolerance: float
    bytes: int


class _Finest(nn.Module):
    """The network with the contract of its graph: it paints as finely as it can."""

    def __init__(self, network: Interior) -> None:
        super().__init__()
        self.network = network

    def forward(self, seen: Tensor) -> Tensor:
        return self.network(seen, torch.ones_like(seen[:, 0, 0, 0]))


def load_interior(path: Path) -> Interior:
    """The network of a checkpoint (its averaged weights) or of an exported folder, in inference mode. Raises CheckpointInvalid."""
    network = Interior()
    try:
        weights = read_weights(path)[0] if path.is_dir() else checkpoints.load(path)["modules"]["interior"]
        network.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointInvalid(f"'{path}' holds no network of lipdub train interior: {' '.join(str(error).split())[:200]}") from error
    return network.eval()


def export_interior(
    checkpoint: Path, out: Path, *, half: bool = False, name: str | None = None, license_text: str = "unstated",
    training_data: str = "unstated", force: bool = False,
) -> ExportedInterior:  # fmt: skip
    """Write the folder `out` from a checkpoint of ``lipdub train interior``, or from another such folder.

    Raises CheckpointInvalid, OutputRefused, ExportFailed, WriteFailed; whatever fails, nothing is left behind and what was there stays.
    """
    check_folder(out, force=force, spec_file=interior.SPEC_FILE)
    network = load_interior(checkpoint)
    try:
        spec = interior.InteriorSpec(
            name or out.resolve().name, interior.FORMAT_VERSION, license=license_text, training_data=training_data, graphs={},
            created_with=__version__,
        )  # fmt: skip
    except ValueError as error:
        raise ExportFailed(f"cannot describe the network: {error}; --name and --license set what it says") from error

    def windows(batch: int) -> tuple[Tensor, ...]:
        return (torch.rand(batch, interior.CHANNELS, *interior.WINDOW) * 2 - 1,)

    with whole_folder(out) as folder:
        difference = export_graph(_Finest(network), windows, interior.TENSORS, folder / interior.GRAPH, half=half)
        write_weights(folder / WEIGHTS_FILE, network.state_dict())
        spec = interior.finish(folder, spec)
        if (out / MODEL_CARD).exists():
            (folder / MODEL_CARD).write_bytes((out / MODEL_CARD).read_bytes())
        size = sum(path.stat().st_size for path in folder.iterdir())
    return ExportedInterior(spec, difference, HALF_TOLERANCE if half else TOLERANCE, size)
