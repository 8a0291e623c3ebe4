"""Prepared clips for a command: the ones that cannot be used are named and counted, too few of them end it before any step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lipdub.cli.console import say

if TYPE_CHECKING:
    from lipdub.train.data import Clip

NAMED = 5
"""So many of the skipped clips are named; the others are counted."""


def load(folder: Path, *, size: int | None = None, with_offsets: bool = True) -> list[Clip]:
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


def load_split(prepared: Path, val: Path | None, *, size: int) -> tuple[list[Clip], list[Clip]]:
    """(to train on, held out). Raises TrainingDataError also where nothing that is held out is long enough to judge on."""
    from lipdub.errors import TrainingDataError
    from lipdub.train.data import split_speakers
    from lipdub.train.memory_stage import JUDGED_FRAMES

    clips = load(prepared, size=size)
    clips, held_out = split_speakers(clips) if val is None else (clips, load(val, size=size))
    if all(len(clip) < JUDGED_FRAMES for clip in held_out):
        raise TrainingDataError(f"no held-out clip has {JUDGED_FRAMES} frames, so nothing can be judged; give longer clips with --val")
    return clips, held_out
