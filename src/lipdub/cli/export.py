"""``lipdub export-onnx``: a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipdub.cli.console import results

EXAMPLES = """
[bold]Examples[/bold]

  lipdub export-onnx runs/generator/latest.pt -o models/mine

  lipdub export-onnx runs/generator/latest.pt -o models/mine_half --half

  lipdub sync talk.mp4 speech.wav -o out.mp4 --model models/mine
"""


def export_onnx(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of lipdub train generator.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store the weights of both graphs as float16: half the size.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the folder's by default.")] = None,
    rest_from: Annotated[
        Path | None,
        typer.Option(help="Prepared clips to read the resting mouth from; by default it is what the memory recalls for silence."),
    ] = None,
    smoothing_s: Annotated[float, typer.Option(min=0.0, max=0.2, help="Smoothing of the lip-feature track, seconds.")] = 0.04,
    license_text: Annotated[str, typer.Option("--license", help="Licence of the weights.")] = "unstated",
    training_data: Annotated[str, typer.Option(help="What the weights were trained on.")] = "unstated",
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Write memory.onnx, generator.onnx, weights.safetensors and bundle.json; check both graphs against torch and print the difference."""
    from lipdub.train.export import export

    done = export(
        checkpoint, output, half=half, name=name, rest_from=rest_from, smoothing_s=smoothing_s, license_text=license_text,
        training_data=training_data, force=force,
    )  # fmt: skip
    for graph, difference in done.differences.items():
        results().print(f"{graph}: largest difference to torch {difference:.2e} (at most {done.tolerance:.0e} allowed)", soft_wrap=True)
    results().print(f"wrote {output} ({done.bytes / 2**20:.1f} MiB, {done.gflop_per_frame:.2f} GFLOP a frame)", soft_wrap=True)
