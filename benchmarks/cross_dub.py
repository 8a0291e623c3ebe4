"""Does the drawn mouth follow the new speech, and not the old one?

The second half of each clip is dubbed with the sound of its first half: same person, same room, and the true mouth for that
sound is known. ``r_cross``: correlation of the drawn opening with the first half's true one. ``r_leak``: with the second
half's own, which the new picture must not show. Openings are measured by the same detector everywhere.
"""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.common import Openings, pearson
from lipdub import crop, media
from lipdub.pipeline import DEFAULT_CRF, DEFAULT_PRESET, dub
from lipdub.records import Silence

FIGURES = ("r_cross", "r_cross_best", "r_leak", "articulation", "bias")
KINDS = {"dubbed": "dubbed", "ground_truth": "ground truth", "untouched": "untouched"}
MEASURABLE = 0.9
"""Where perfect lips score less than this (a mouth that hardly moves, a tiny face), a clip says little about a model."""
SHIFTS = range(-5, 6)
"""Frames by which the truth is moved for ``r_cross_best``: some clips have a constant offset of sound and picture."""
STRIP_FRAMES = 12
STRIP_PX = 160

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
    parser.add_argument("--out", type=Path, required=True, help="folder for halves, dubs, strips and the cache")
    parser.add_argument("--seconds-min", type=float, default=8.0)
    parser.add_argument("--only", default="", help="just the clips whose name holds this")
    parser.add_argument("--silence", choices=("close", "keep", "off"), default="close")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    clips = [clip for clip in common.clips_in(options.clips, seconds_min=options.seconds_min) if options.only in clip.name]
    if not clips:
        parser.error(f"no clip of at least {options.seconds_min:g} s to measure in '{options.clips}'")
    options.out.mkdir(parents=True, exist_ok=True)
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
    common.CONSOLE.print(f"strips (source, dubbed, the mouth that belongs to the sound): {options.out / 'strips'}")
    return 0 if rows else 1


def measure_clip(options: Options, clip: Path) -> dict[str, Any]:
    """Figures of one clip: dubbed, and beside it the perfect and the untouched mouth."""
    cv2.setNumThreads(options.threads)
    if not media.has_sound(clip):
        return {"clip": clip.name, "skipped": "no sound"}
    truth = common.measured(clip, options.out / "openings")
    middle = len(truth) // 2
    first, second = truth[:middle], truth[middle:].from_zero()
    picture, sound, copy = _halves(clip, truth, middle, options.out / "halves")
    dubbed = options.out / "dubbed" / f"{clip.stem}.mp4"
    dubbed.parent.mkdir(exist_ok=True)
    report = dub(
        picture, sound, dubbed, model=options.model, fit="video", silence=options.silence, crf=DEFAULT_CRF,
        threads=options.threads, force=True,
    )  # fmt: skip
    drawn = common.measure(dubbed)
    perfect = common.measured(copy, options.out / "openings")
    strip = options.out / "strips" / f"{clip.stem}.png"
    _write_strip(strip, (picture, second), (dubbed, second), (clip, first))
    # The first half itself, coded as a dub is: what the measure gives for perfect lips.
    ground_truth = figures(Openings(first.times_s[: len(perfect)], perfect.opening, perfect.similarity), first, second)
    return {
        "clip": clip.name,
        "measurable": ground_truth["r_cross"] >= MEASURABLE,
        "frames": len(drawn),
        "frames_expected": len(second),
        "frames_dubbed": report.dubbed,
        "faceless": int(np.isnan(drawn.opening).sum()),
        "dubbed": figures(drawn, first, second),
        "ground_truth": ground_truth,
        "untouched": figures(second, first, second),
    }


def figures(drawn: Openings, wanted: Openings, own: Openings) -> Figures:
    """How the drawn opening follows the `wanted` one and the video's `own`, all on the output's clock."""
    target = wanted.at(drawn.times_s)
    both = np.isfinite(drawn.opening) & np.isfinite(target)
    shifted = [pearson(drawn.opening, wanted.at(drawn.times_s + shift * drawn.step_s)) for shift in SHIFTS]
    best = int(np.nanargmax(shifted)) if np.isfinite(shifted).any() else SHIFTS.index(0)
    spread = float(target[both].std()) if both.any() else 0.0
    return {
        "r_cross": pearson(drawn.opening, target),
        "r_cross_best": shifted[best],
        "best_shift": float(SHIFTS[best]),
        "r_leak": pearson(drawn.opening, own.at(drawn.times_s)),
        "articulation": float(drawn.opening[both].std()) / spread if spread > 1e-9 else float("nan"),
        "bias": float((drawn.opening[both] - target[both]).mean()) if both.any() else float("nan"),
    }


def _halves(clip: Path, truth: Openings, middle: int, folder: Path) -> tuple[Path, Path, Path]:
    """Second half's pictures, first half's sound, and the first half's pictures coded as a dub is; made once."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, sound, copy = (folder / f"{clip.stem}.{ending}" for ending in ("second.mp4", "first.wav", "first.mp4"))

    def stale(made: Path) -> bool:
        return not made.exists() or made.stat().st_mtime_ns < clip.stat().st_mtime_ns

    if stale(picture):
        common.cut_pictures(clip, picture, middle, len(truth))
    if stale(sound):
        common.cut_sound(clip, sound, float(truth.times_s[middle]))
    if stale(copy):
        common.cut_pictures(clip, copy, 0, middle, crf=DEFAULT_CRF, preset=DEFAULT_PRESET)
    return picture, sound, copy


def _write_strip(out: Path, *rows: tuple[Path, Openings]) -> None:
    """Evenly spaced frames of each video, cropped to the face by its `Openings`: one row per video, the same times in each."""
    out.parent.mkdir(exist_ok=True)
    times = np.linspace(0, rows[0][1].times_s[-1], STRIP_FRAMES + 2)[1:-1]
    picture = np.concatenate([_faces(video, of, times) for video, of in rows])
    part = out.with_name(f".{os.getpid()}.{out.name}")
    cv2.imwrite(str(part), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    os.replace(part, out)


def _faces(video: Path, of: Openings, times: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The faces nearest to `times` side by side, uint8 (STRIP_PX, times x STRIP_PX, 3); black where there is none."""
    wanted = np.abs(of.times_s[:, None] - times[None]).argmin(axis=0)
    row = np.zeros((len(times), STRIP_PX, STRIP_PX, 3), np.uint8)
    none = np.zeros((1, len(crop.OUTLINE), 2), np.float32)
    with closing(media.read_frames(video)) as chunks:
        for chunk in chunks:
            for slot, number in enumerate(wanted):
                inside = chunk.index <= number < chunk.index + len(chunk)
                if inside and np.isfinite(of.similarity[number]).all():
                    here = np.array([number - chunk.index])
                    row[slot] = crop.take(chunk, here, of.similarity[number][None], none, STRIP_PX).pixels[0]
            if chunk.index + len(chunk) > wanted.max():
                break
    return np.concatenate(list(row), axis=1)


Summary = dict[str, dict[str, Figures]]


def _summary(rows: list[dict[str, Any]]) -> Summary:
    """Kind of video, figure, statistic over the clips: its value."""
    return {kind: {name: _statistics(name, [row[kind][name] for row in rows]) for name in FIGURES} for kind in KINDS}


def _statistics(name: str, values: list[float]) -> Figures:
    """Mean, median and worst over the clips; of a leak and a bias, the size is what counts."""
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) == 0:
        return dict.fromkeys(("mean", "mean_abs", "median", "worst"), float("nan"))
    worst = known[np.abs(known).argmax()] if name in ("r_leak", "bias") else known.min()
    return {
        "mean": float(known.mean()),
        "mean_abs": float(np.abs(known).mean()),
        "median": float(np.median(known)),
        "worst": float(worst),
    }


def _print_clips(model: str, rows: list[dict[str, Any]]) -> None:
    common.table(
        f"second half dubbed with the first half's sound, model {model}",
        ["clip", "frames", *FIGURES, "shift", "truth: r_cross", "r_leak", "faceless"],
        [
            [
                common.short(Path(row["clip"])) + ("" if row["measurable"] else " *"), row["frames"],
                *(row["dubbed"][name] for name in FIGURES), f"{row['dubbed']['best_shift']:+.0f}",
                row["ground_truth"]["r_cross"], row["ground_truth"]["r_leak"], row["faceless"],
            ]
            for row in rows
        ],
    )  # fmt: skip


def _print_summary(title: str, summary: Summary) -> None:
    common.table(
        title,
        ["", *FIGURES, "|r_leak|"],
        [
            [
                f"{label}, {statistic}", *(summary[kind][name][statistic] for name in FIGURES),
                summary[kind]["r_leak"]["mean_abs"] if statistic == "mean" else "",
            ]
            for kind, label in KINDS.items()
            for statistic in ("mean", "median", "worst")
        ],
    )  # fmt: skip
