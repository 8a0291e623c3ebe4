"""``lipdub prepare``: clips to training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipdub.cli.console import counted, new_table, paragraphs, print_line, progress, results

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub prepare clips/train -o prepared/train --manifest clips/manifest.csv
  lipdub prepare clips/train -o prepared/train --encoder encoder --voices 4
  lipdub prepare interview1.mp4 interview2.mov -o prepared/studio --workers 4
""")


def prepare(
    clips: Annotated[list[Path], typer.Argument(help="Clips of one person speaking each, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the prepared clips; run again to go on.")],
    manifest: Annotated[Path | None, typer.Option(help="CSV with the columns file and speaker: training draws speakers evenly.")] = None,
    size: Annotated[int, typer.Option(min=64, max=512, help="Crop side that the network will see, px.")] = 128,
    workers: Annotated[int | None, typer.Option(min=1, help="Clips prepared at the same time; all cores by default.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Also the features of this speech encoder, a name or a folder, for lipdub train hearing.")
    ] = None,
    voices: Annotated[int, typer.Option(min=0, max=20, help="Variants of each sound in other voices, rooms and noise.")] = 4,
) -> None:
    """Cut aligned face crops, mel and lip landmarks out of CLIPS for training. Resumes where it stopped; says what was dropped and why."""
    from collections import Counter

    from lipdub.stages import cores
    from lipdub.train import prepare as preparing

    found = preparing.find_clips(clips)
    speakers = preparing.read_speakers(manifest) if manifest is not None else None
    settings = preparing.PrepareSettings(size=size)
    with progress() as tell:
        on_clip = counted(tell, "preparing", len(found))
        done = preparing.prepare(found, output, settings, workers=workers or cores(), on_clip=on_clip, speakers=speakers)
    kept = [clip for clip in done if clip.why is None]
    table = new_table(f"prepared {output}")
    table.add_row("kept", f"{len(kept)} clips, {sum(clip.frames for clip in kept)} frames")
    for why, count in Counter(clip.why for clip in done if clip.why is not None).most_common(12):
        table.add_row("dropped", f"{count}: {why}")
    results().print(table)
    for clip in done:
        if clip.why is not None:
            print_line(f"dropped {clip.source}: {clip.why}")
    preparing.require_some(done)
    if encoder is not None:
        from lipdub.train.features import find_encoder, prepare_features

        sounds = [(clip.clip_id, Path(clip.source)) for clip in kept]
        with progress() as tell:
            on_clip = counted(tell, "hearing", len(kept))
            prepare_features(output, sounds, find_encoder(encoder), voices=voices, workers=workers or cores(), on_clip=on_clip)
