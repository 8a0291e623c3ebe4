"""Does the drawn mouth follow the new speech, and not the old one?

The second half of each clip is dubbed with the sound of its first half: same person, same room, and the true mouth for that
sound is known. ``r_cross``: correlation of the drawn opening with the first half's true one. ``r_leak``: with the second
half's own, which the new picture must not show. Openings are measured by the same detector everywhere. Clips are cut, and figures
defined, by ``lipdub.evaluate``; ``lipdub evaluate --set`` tells much more and takes three times as long.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import common
from lipdub.bundles.bundle import load_spec, resolve
from lipdub.errors import NoAudioStream
from lipdub.evaluate import openings
from lipdub.evaluate.clips import clips_in
from lipdub.evaluate.openings import MEASURABLE, Openings, openings_of
from lipdub.evaluate.scorecard import statistics
from lipdub.evaluate.watch import openings_beside, tracked
from lipdub.evaluate.whole_set import ClipTask, cut_clip
from lipdub.pipeline import dub
from lipdub.records import Silence

BETTER = {"r_cross": "higher", "r_cross_best": "higher", "r_leak": "zero", "articulation": "higher", "bias": "zero"}
"""Of an articulation the lowest is the worst: mumbling is what models do."""
KINDS = {"dubbed": "dubbed", "ground_truth": "ground truth", "untouched": "untouched"}

Figures = dict[str, float]


@dataclass(frozen=True)
class Options:
    """What every clip is dubbed with."""

    model: str
    out: Path
    threads: int
    silence: Silence


def main(arguments: list[str]) -> int:
    """Measure, print the tables, write the JSON; exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cross-dub", description=__doc__)
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--clips", type=Path, default=Path("../shared/clips/val"), help="folder of clips")
    parser.add_argument("--out", type=Path, required=True, help="folder for halves, dubs and the cache")
    parser.add_argument("--seconds-min", type=float, default=8.0)
    parser.add_argument("--only", default="", help="just the clips whose name holds this")
    parser.add_argument("--silence", choices=("close", "keep", "off"), default="close")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    clips = [clip for clip in clips_in(options.clips, seconds_min=options.seconds_min) if options.only in clip.name]
    if not clips:
        parser.error(f"no clip of at least {options.seconds_min:g} s to measure in '{options.clips}'")
    (options.out / "dubbed").mkdir(parents=True, exist_ok=True)
    chosen = Options(options.model, options.out, common.threads_per_job(options.jobs), options.silence)
    answers = common.spread(partial(measure_clip, chosen), clips, jobs=options.jobs, label=common.short)
    rows = [answer for answer in answers if "dubbed" in answer]
    measurable = [row for row in rows if row["measurable"]]
    summaries = {"all": _summary(rows), "measurable": _summary(measurable)}
    _print_clips(chosen.model, rows)
    _print_summary(f"over all {len(rows)} clips", summaries["all"])
    if len(measurable) < len(rows):
        title = f"over the {len(measurable)} clips on which perfect lips reach r_cross {MEASURABLE} (the others: *)"
        _print_summary(title, summaries["measurable"])
    for answer in answers:
        if "skipped" in answer:
            common.CONSOLE.print(f"left out: {answer['clip']}: {answer['skipped']}")
    found = {"model": options.model, "silence": options.silence, "summary": summaries, "clips": answers}
    common.write_json(options.json, found)
    return 0 if rows else 1


def measure_clip(options: Options, clip: Path) -> dict[str, Any]:
    """Figures of one clip: dubbed, and beside it the perfect and the untouched mouth."""
    cv2.setNumThreads(options.threads)
    try:
        pieces = cut_clip(ClipTask(clip, clip.stem, None), options.out / "pieces")
    except NoAudioStream as error:
        return {"clip": clip.name, "skipped": str(error)}
    size, cache = load_spec(resolve(options.model)).crop.size, options.out / "pieces" / "tracks"
    with ExitStack() as stack:
        second, first = (tracked(piece, size=size, cache=cache) for piece in (pieces.picture, pieces.truth))
        for track in (second, first):
            stack.enter_context(closing(track.references))
        dubbed = options.out / "dubbed" / f"{clip.stem}.mp4"
        report = dub(
            pieces.picture, pieces.first_sound, dubbed, model=options.model, fit="video", silence=options.silence,
            threads=options.threads, force=True, track=tracked(pieces.picture, size=size, cache=cache),
        )  # fmt: skip
        drawn = openings_beside(dubbed, pieces.picture, second)
        # The first half itself, coded as a dub is: what the measure gives for perfect lips.
        perfect = openings_beside(pieces.copy, pieces.truth, first)
    wanted, own = openings_of(first), openings_of(second)
    ground_truth = figures(perfect, wanted, own)
    return {
        "clip": clip.name,
        "measurable": ground_truth["r_cross"] >= MEASURABLE,
        "frames": len(drawn),
        "frames_expected": len(second),
        "frames_dubbed": report.dubbed,
        "faceless": int(np.isnan(drawn.opening).sum()),
        "dubbed": figures(drawn, wanted, own),
        "ground_truth": ground_truth,
        "untouched": figures(own, wanted, own),
    }


def figures(drawn: Openings, wanted: Openings, own: Openings) -> Figures:
    """How the drawn opening follows the `wanted` one and the video's `own`, all on the output's clock."""
    best, shift = openings.r_cross_best(drawn, wanted)
    return {
        "r_cross": openings.r_cross(drawn, wanted),
        "r_cross_best": best,
        "best_shift": shift,
        "r_leak": openings.r_leak(drawn, own),
        "articulation": openings.articulation(drawn, wanted),
        "bias": openings.bias(drawn, wanted),
    }


Summary = dict[str, dict[str, Figures]]


def _summary(rows: list[dict[str, Any]]) -> Summary:
    """Kind of video, figure, statistic over the clips: its value."""
    return {kind: {name: statistics(better, [row[kind][name] for row in rows]) for name, better in BETTER.items()} for kind in KINDS}


def _print_clips(model: str, rows: list[dict[str, Any]]) -> None:
    common.table(
        f"second half dubbed with the first half's sound, model {model}",
        ["clip", "frames", *BETTER, "shift", "truth: r_cross", "r_leak", "faceless"],
        [
            [
                common.short(Path(row["clip"])) + ("" if row["measurable"] else " *"), row["frames"],
                *(row["dubbed"][name] for name in BETTER), f"{row['dubbed']['best_shift']:+.0f}",
                row["ground_truth"]["r_cross"], row["ground_truth"]["r_leak"], row["faceless"],
            ]
            for row in rows
        ],
    )  # fmt: skip


def _print_summary(title: str, summary: Summary) -> None:
    common.table(
        title,
        ["", *BETTER, "|r_leak|"],
        [
            [
                f"{label}, {statistic}", *(summary[kind][name][statistic] for name in BETTER),
                summary[kind]["r_leak"]["mean_abs"] if statistic == "mean" else "",
            ]
            for kind, label in KINDS.items()
            for statistic in ("mean", "median", "worst")
        ],
    )  # fmt: skip
