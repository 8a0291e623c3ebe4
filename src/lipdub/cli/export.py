"""``lipdub export-onnx``: a checkpoint or another bundle to a bundle, another network's checkpoint to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipdub.cli.console import paragraphs, print_line

SMOOTHING_S = 0.04
"""Of a bundle that comes from a checkpoint, where nothing else is asked for."""
VOICE_BANDS = 2
"""Likewise: about a twelfth of a vocal tract's length either way."""

SMOOTHING_HELP = f"""Smoothing of the lip features over time: seconds between the three windows that are averaged. \
Default: {SMOOTHING_S:g}, or the bundle's."""
VOICE_BANDS_HELP = f"""The outer windows of the smoothing are heard in voices this many mel bands lower and higher: better on unknown \
speakers. Default: {VOICE_BANDS}, or the bundle's."""
KAPPA_HELP = "Sharpness of the audio addresses: more opens and closes the mouth further. Default: the checkpoint's or bundle's."

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub export-onnx runs/generator/latest.pt -o models/mine
  lipdub export-onnx runs/generator/latest.pt -o models/mine_half --half
  lipdub export-onnx models/of_an_older_lipdub -o models/mine --half
  lipdub export-onnx runs/expert/best.pt -o models/expert --half
  lipdub export-onnx runs/interior/latest.pt -o models/interior --half
  lipdub sync talk.mp4 speech.wav -o out.mp4 --model models/mine
""")


def export_onnx(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint of lipdub train generator, expert or interior; or the folder of a bundle, to export its weights anew."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store the weights of both graphs as float16: half the size.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the folder's by default.")] = None,
    rest_from: Annotated[
        Path | None,
        typer.Option(help="Prepared clips to read the resting mouth from. Default: what the memory recalls for silence, or the bundle's."),
    ] = None,
    smoothing_s: Annotated[float | None, typer.Option(min=0.0, max=0.2, help=SMOOTHING_HELP)] = None,
    voice_bands: Annotated[int | None, typer.Option(min=0, max=8, help=VOICE_BANDS_HELP)] = None,
    drawn_kappa: Annotated[float | None, typer.Option(min=1.0, help=KAPPA_HELP)] = None,
    license_text: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights. Default: unstated, or the bundle's.")
    ] = None,
    training_data: Annotated[str | None, typer.Option(help="What the weights were trained on. Default: unstated, or the bundle's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
) -> None:
    """Write two graphs, weights.safetensors and bundle.json (of an expert: expert.json, of what paints between lips: interior.json);
    check the graphs against torch and print the difference."""
    from lipdub.bundles import expert, interior
    from lipdub.train import checkpoints, expert_network
    from lipdub.train import interior as interior_stage
    from lipdub.train.expert_export import export_expert
    from lipdub.train.export import export
    from lipdub.train.interior_export import export_interior

    if checkpoint.is_dir():
        stages = {expert.SPEC_FILE: expert_network.STAGE, interior.SPEC_FILE: interior_stage.STAGE}
        stage = next((stage for file, stage in stages.items() if (checkpoint / file).is_file()), None)
    else:
        stage = checkpoints.stage_of(checkpoints.load(checkpoint))
    stated = "unstated" if license_text is None else license_text
    trained_on = "unstated" if training_data is None else training_data
    if stage == expert_network.STAGE:
        sync = export_expert(checkpoint, output, half=half, name=name, license_text=stated, training_data=trained_on, force=force)
        _print_differences(sync.differences, sync.tolerance)
        print_line(f"wrote {output} ({sync.bytes / 2**20:.1f} MiB)")
        return
    if stage == interior_stage.STAGE:
        found = export_interior(checkpoint, output, half=half, name=name, license_text=stated, training_data=trained_on, force=force)
        _print_differences({interior.GRAPH: found.difference}, found.tolerance)
        print_line(f"wrote {output} ({found.bytes / 2**20:.1f} MiB)")
        return
    if not checkpoint.is_dir():
        smoothing_s = SMOOTHING_S if smoothing_s is None else smoothing_s
        voice_bands = VOICE_BANDS if voice_bands is None else voice_bands
    done = export(
        checkpoint, output, half=half, name=name, rest_from=rest_from, tap_distance_s=smoothing_s, voice_bands=voice_bands,
        drawn_kappa=drawn_kappa, license_text=license_text, training_data=training_data, force=force,
    )  # fmt: skip
    _print_differences(done.differences, done.tolerance)
    print_line(f"wrote {output} ({done.bytes / 2**20:.1f} MiB, {done.gflop_per_frame:.2f} GFLOP a frame)")


def _print_differences(differences: dict[str, float], tolerance: float) -> None:
    for graph, difference in differences.items():
        print_line(f"{graph}: largest difference to torch {difference:.2e} (at most {tolerance:.0e} allowed)")
