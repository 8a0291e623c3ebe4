"""What the figures mean, which targets they have, and their statistics over clips. Plain numbers: nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Better = Literal["higher", "lower", "zero", "one"]
Statistic = Literal["mean", "mean_abs", "median", "worst"]
STATISTICS: Final[tuple[Statistic, ...]] = ("mean", "mean_abs", "median", "worst")

Values = Mapping[str, float]
"""Figure name to value; NaN where it was left out."""


@dataclass(frozen=True, slots=True)
class Figure:
    """name: in the JSON. unit: empty for plain numbers. better: which way. what: one line for readers; the functions say all."""

    name: str
    unit: str
    better: Better
    what: str


FIGURES: Final = (
    Figure("r_cross", "", "higher", "correlation of the drawn mouth opening with the true one of the sound"),
    Figure("r_cross_best", "", "higher", "the same at the best shift of up to 5 frames"),
    Figure("best_shift", "frames", "zero", "that shift; the clip's own offset of sound and picture is in it"),
    Figure("r_leak", "", "zero", "correlation of the drawn opening with the source's own, which must not show"),
    Figure("silent_leak", "share", "lower", "frames in digital silence whose mouth is open (opening above 0.06)"),
    Figure("articulation", "", "one", "spread of the drawn opening over that of the true one"),
    Figure("bias", "eye dist.", "zero", "mean drawn opening less the true one"),
    Figure("lmd", "px of 128", "lower", "mean distance of 40 lip points (mediapipe) in the aligned 128-px crop"),
    Figure("lmd_relative", "px of 128", "lower", "the same with the mean of the points taken off (Chen et al. 2018)"),
    Figure("sync_offset", "frames", "zero", "frames at 25 Hz by which the lips come after the sound, by our expert"),
    Figure("sync_confidence", "cosine", "higher", "highest mean cosine of lips and sound less the median over offsets of -15..15"),
    Figure("sync_cosine", "cosine", "higher", "mean cosine of lips and sound at offset 0, by our expert"),
    Figure("lse_d", "", "lower", "public SyncNet: lowest mean distance over offsets (Wav2Lip's LSE-D)"),
    Figure("lse_c", "", "higher", "public SyncNet: median less lowest distance (Wav2Lip's LSE-C)"),
    Figure("lse_offset", "frames", "zero", "public SyncNet: offset"),
    Figure("psnr_face", "dB", "higher", "PSNR to the true picture, aligned 128-px crop, RGB"),
    Figure("ssim_face", "", "higher", "SSIM to the true picture, aligned 128-px crop, luma (Wang et al. 2004)"),
    Figure("psnr_mouth", "dB", "higher", "PSNR in the mouth box of that crop"),
    Figure("ssim_mouth", "", "higher", "SSIM in the mouth box of that crop"),
    Figure("sharpness", "of source", "higher", "variance of the Laplacian in the mouth box over the source's, at the source's resolution"),
    Figure("sharpness_128", "of source", "higher", "the same in the 128-px crop"),
    Figure("edges", "of source", "higher", "mean squared gradient in the mouth box over the source's, at the source's resolution"),
    Figure("seam", "of source", "one", "step across the mask's border over the steps beside it, over the same of the source"),
    Figure("flicker", "of source", "one", "second difference in time in the mouth box over the source's"),
    Figure("light", "%", "lower", "drawn skin too light or too dark beside the frame's own still skin, worst twentieth of the frames"),
    Figure("off_colour", "share", "lower", "pixels inside the mouth that are greener or greyer than 99.9 % of the source's"),
    Figure("jumps", "share", "lower", "frames that change more under the mask than 99 % of the source's do"),
    Figure("outside_psnr", "dB", "higher", "PSNR to the source outside the mask, RGB, encoding included"),
    Figure("faceless", "share", "lower", "frames in which the source has a face and the dub none"),
    Figure("frames_more", "frames", "zero", "frames of the dub less those of the source"),
    Figure("times_off", "s", "lower", "largest difference between a frame's time and the source frame's of the same number"),
    Figure("duration_more", "s", "zero", "duration of the dub's picture less the source's"),
)
BY_NAME: Final = {figure.name: figure for figure in FIGURES}

ROWS: Final = {
    "cross": "dub, first half's sound",
    "own": "dub, own sound",
    "ground_truth": "ground truth",
    "wrong_audio": "wrong audio",
    "frozen": "frozen mouth",
    "frozen_own": "frozen mouth, own sound",
}
"""The rows of a set's scorecard, in order: the model, then what perfect lips score, and what a mouth that hears something else or
nothing."""
ROW_MEANING: Final = {
    "cross": "second half's picture dubbed with the first half's sound: same person, same room, and the true mouth for that sound is known",
    "own": "second half dubbed with its own sound: the truth is the picture itself, so pixels compare",
    "ground_truth": "the first half itself, coded as a dub is, measured as a dub is",
    "wrong_audio": "second half dubbed with another clip's sound, measured against the first half's",
    "frozen": "second half with the mouth of one reference frame pasted throughout, measured as cross is",
    "frozen_own": "the same video, measured as own is",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one statistic of one figure in one row. of: the value is given over the mean of that row."""

    row: str
    figure: str
    statistic: Statistic
    low: float = -math.inf
    high: float = math.inf
    of: str = ""

    @property
    def bound(self) -> str:
        """In words: ``>= 0.5``, ``0.85 to 1.15``."""
        if math.isinf(self.low):
            text = f"<= {self.high:g}"
        elif math.isinf(self.high):
            text = f">= {self.low:g}"
        else:
            text = f"{self.low:g} to {self.high:g}"
        return f"{text} x {ROWS[self.of]}" if self.of else text


TARGETS: Final = (
    Target("cross", "r_cross", "mean", low=0.5),
    Target("cross", "r_cross", "worst", low=0.3),
    Target("cross", "r_leak", "mean_abs", high=0.15),
    Target("cross", "silent_leak", "mean", high=0.01),
    Target("cross", "articulation", "mean", low=0.85, high=1.15),
    Target("cross", "sync_offset", "mean_abs", high=1.0),
    Target("cross", "lmd", "mean", high=0.75, of="frozen"),
    Target("cross", "lmd_relative", "mean", high=0.75, of="frozen"),
    Target("own", "lmd", "mean", high=0.75, of="frozen_own"),
    Target("own", "lmd_relative", "mean", high=0.75, of="frozen_own"),
    Target("cross", "sharpness", "mean", low=0.7),
    Target("own", "sharpness", "mean", low=0.7),
)
"""What a model is to reach (docs/evaluation.md)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target beside what was reached. value, met: None where the figure was left out."""

    target: Target
    value: float | None
    met: bool | None


Statistics = dict[str, float]
Summary = dict[str, dict[str, Statistics]]
"""Row, figure, statistic: value."""


def worst(better: Better, values: Sequence[float]) -> float:
    """The value that is furthest the wrong way; at least one is needed."""
    known = np.array(values, np.float64)
    if better == "higher":
        return float(known.min())
    if better == "lower":
        return float(known.max())
    return float(known[np.abs(known - (1.0 if better == "one" else 0.0)).argmax()])


def statistics(better: Better, values: Sequence[float]) -> Statistics:
    """Mean, mean size, median and worst of the known values; NaN each where none is known. ``clips``: how many are."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return {**dict.fromkeys(STATISTICS, float("nan")), "clips": 0.0}
    return {
        "mean": float(np.mean(known)),
        "mean_abs": float(np.abs(known).mean()),
        "median": float(np.median(known)),
        "worst": worst(better, known),
        "clips": float(len(known)),
    }


def summarise(clips: Sequence[Mapping[str, Values]]) -> Summary:
    """Statistics over clips, each given as row to values."""
    return {
        row: {figure.name: statistics(figure.better, [clip[row][figure.name] for clip in clips if row in clip]) for figure in FIGURES}
        for row in ROWS
        if any(row in clip for clip in clips)
    }


def verdicts(summary: Summary) -> list[Verdict]:
    """Each target beside what the summary says of it."""
    return [_verdict(target, summary) for target in TARGETS]


def dub_verdicts(values: Values) -> list[Verdict]:
    """The targets that one dub alone can be held to, beside its figures: those of the cross row that need no other row."""
    alone: dict[str, Statistics] = {
        name: {statistic: abs(value) if statistic == "mean_abs" else value for statistic in STATISTICS} for name, value in values.items()
    }
    found = [_verdict(target, {"cross": alone}) for target in TARGETS if target.row == "cross" and not target.of]
    return [verdict for verdict in found if verdict.target.statistic != "worst"]


def _verdict(target: Target, summary: Summary) -> Verdict:
    value = summary.get(target.row, {}).get(target.figure, {}).get(target.statistic, math.nan)
    if target.of:
        base = summary.get(target.of, {}).get(target.figure, {}).get("mean", math.nan)
        value = value / base if base and math.isfinite(base) else math.nan
    if not math.isfinite(value):
        return Verdict(target, None, None)
    return Verdict(target, value, target.low <= value <= target.high)


def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Figures out of a JSON file: null is NaN."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def shown(value: float | None, figure: Figure | None = None) -> str:
    """A value for people: three digits after the point at most, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    digits = 1 if figure is not None and figure.unit == "dB" else 2 if abs(value) >= 10 else 3
    text = f"{value:.{digits}f}"
    return "0" if value == 0 else text.removeprefix("-") if float(text) == 0 else text
