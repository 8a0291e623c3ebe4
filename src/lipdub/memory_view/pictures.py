"""The pictures of a look into the memory: mouths of the slots, usage, address over time, slots against phonemes. uint8 (H, W, 3) RGB."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lipdub.memory_view.usage import Usage
from lipdub.phonetics.alignment import Alignment
from lipdub.phonetics.classes import BILABIAL, CLASSES

Picture = NDArray[np.uint8]

PAPER: Final = "#18181c"
INK: Final = "#e6e6e6"
FAINT: Final = "#808088"
ACCENT: Final = "#ffb03c"
CURVE: Final = "#6ebeff"
STYLE: Final[dict[Any, Any]] = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "xtick.color": INK, "ytick.color": INK, "font.size": 9, "font.family": "DejaVu Sans", "text.parse_math": False,
}  # fmt: skip
DPI: Final = 100
MOUTH_PX: Final = (112, 90)
"""Width and height of a mouth."""
MOUTH_BOX: Final = (0.27, 0.73, 0.49, 0.86)
"""What of the unit crop a mouth shows: x0, x1, y0, y1."""
LABEL_PX: Final = 18
PX_PER_S: Final = 220
MOUTH_EVERY_PX: Final = 74


def mouth(crop: Picture, width: int = MOUTH_PX[0]) -> Picture:
    """The mouth of an aligned crop (S, S, 3), `width` px wide."""
    x0, x1, y0, y1 = (round(edge * len(crop)) for edge in MOUTH_BOX)
    height = round(width * MOUTH_PX[1] / MOUTH_PX[0])
    return np.asarray(cv2.resize(crop[y0:y1, x0:x1], (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@matplotlib.rc_context(STYLE)
def slot_grid(crops: NDArray[np.uint8], usage: Usage, opening: NDArray[np.float64], rest: Picture, title: str) -> Picture:
    """The mouths of all slots, from closed to open, each with its number and share; unused ones grey. First the mouth at rest.

    crops: uint8 (S, size, size, 3). opening: float64 (S,), NaN where it could not be measured (those come last).
    """
    columns = min(12, len(crops) + 1)
    rows = -(-(len(crops) + 1) // columns)
    figure = _figure(columns * (MOUTH_PX[0] + 6) + 8, rows * (MOUTH_PX[1] + LABEL_PX + 4) + 2 * LABEL_PX, title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, slot in zip(axes, [-1, *np.argsort(opening, kind="stable").tolist()], strict=False):
        used = slot < 0 or bool(usage.used[slot])
        shown = mouth(rest if slot < 0 else crops[slot])
        axis.imshow(shown if used else 0.45 * shown.mean(axis=2) + 30, cmap="gray", vmin=0, vmax=255)
        label = "at rest" if slot < 0 else f"{slot}  {usage.share[slot]:.1%}"
        axis.text(0, 1.15 * len(shown), label, color=ACCENT if slot < 0 else INK if used else FAINT)
    return _drawn(figure)


@matplotlib.rc_context(STYLE)
def usage_bars(usage: Usage, title: str) -> Picture:
    """Share of each slot, largest first, as bars; a line where an even share would lie, a curve of the sum."""
    slots = len(usage.share)
    order = np.argsort(-usage.share, kind="stable")
    figure = _figure(max(700, 120 + 15 * slots), 320, title)
    axis = figure.subplots()
    axis.bar(np.arange(slots), 100 * usage.share[order], color=np.where(usage.used[order], ACCENT, FAINT))
    axis.axhline(100 / slots, color=INK, linewidth=1)
    axis.set_xticks(np.arange(slots), order.tolist(), fontsize=6)
    axis.set_xlim(-1, slots)
    axis.set_ylabel("mean address, %")
    axis.set_xlabel(f"slots; grey: never twice an even share; line: even share ({1 / slots:.1%}); curve: their sum, %", color=FAINT)
    summed = axis.twinx()
    summed.plot(100 * np.cumsum(usage.share[order]), color=CURVE)
    summed.set_ylim(0, 102)
    return _drawn(figure)


@matplotlib.rc_context(STYLE)
def address_track(
    *,
    times_s: NDArray[np.float64],
    sound: NDArray[np.float32],
    address: NDArray[np.float32],
    order: NDArray[np.int64],
    mouths_s: NDArray[np.float64],
    mouths: NDArray[np.uint8],
    opening: NDArray[np.float64],
    alignment: Alignment | None,
    title: str,
) -> Picture:
    """A stretch of speech: mel on top, phonemes where they are known, address below (slots in `order`, the first at the bottom), the
    opening that the slots' mouths and their shares amount to, and the mouths that are drawn.

    times_s (N,), evenly spaced; sound (N, bands), mel columns at these times; address (N, S); opening (N,), NaN where unknown;
    mouths_s (M,); mouths (M, size, size, 3).
    """
    step_s = times_s[1] - times_s[0] if len(times_s) > 1 else 0.02
    start_s, end_s = float(times_s[0]), float(times_s[-1] + step_s)
    mouth_s = (MOUTH_EVERY_PX - 2) / PX_PER_S
    slot_px = max(3, min(16, 320 // address.shape[1]))
    heights = [110, 20, slot_px * address.shape[1], 70, round(mouth_s * PX_PER_S * MOUTH_PX[1] / MOUTH_PX[0])]
    figure = _figure(round((end_s - start_s) * PX_PER_S) + 110, sum(heights) + 110, title)
    axes = figure.subplots(5, 1, sharex=True, height_ratios=heights)
    mel, phonemes, slots, openings, faces = axes
    mel.imshow(sound.T, aspect="auto", origin="lower", cmap="magma", vmin=-4, vmax=4, extent=(start_s, end_s, 0, 1))
    # The root shows small shares, too: a soft address has nothing else.
    slots.imshow(
        np.sqrt(address[:, order].T), aspect="auto", origin="lower", cmap="inferno", extent=(start_s, end_s, 0, 1), interpolation="nearest"
    )
    openings.plot(times_s, opening, color=CURVE)
    openings.margins(y=0.1)
    openings.set_ylim(bottom=0)
    for time_s, crop in zip(mouths_s, mouths, strict=True):
        faces.imshow(mouth(crop), aspect="auto", extent=(time_s - mouth_s / 2, time_s + mouth_s / 2, 0, 1))
    for axis, name in zip(axes, ("sound", "phonemes", "slots\n(open mouth\non top)", "opening\nby the slots", "mouths"), strict=True):
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_yticks([])
    for phoneme in alignment or ():
        if phoneme.end_s > start_s and phoneme.start_s < end_s:
            middle = (max(phoneme.start_s, start_s) + min(phoneme.end_s, end_s)) / 2
            colour = ACCENT if phoneme.kind == BILABIAL else INK
            phonemes.text(middle, 0.5, phoneme.symbol, color=colour, ha="center", va="center", clip_on=True)
            for axis in (phonemes, slots):
                axis.axvline(phoneme.start_s, color=FAINT, linewidth=0.7, linestyle=":")
                axis.axvline(phoneme.end_s, color=FAINT, linewidth=0.7, linestyle=":")
    phonemes.set_visible(alignment is not None)
    faces.set_xlim(start_s, end_s)
    faces.set_ylim(0, 1)
    faces.set_xlabel("s")
    return _drawn(figure)


@matplotlib.rc_context(STYLE)
def phoneme_matrix(
    matrix: NDArray[np.float64],
    windows: NDArray[np.int64],
    order: NDArray[np.int64],
    faces: dict[int, Picture],
    title: str,
    notes: Sequence[str],
) -> Picture:
    """Mean address of each phoneme class over the speech's own mean, and the mouth drawn for it.

    matrix: (classes, S); windows: (classes,), how many each; order: of the slots; faces: class to crop (size, size, 3).
    """
    present = np.flatnonzero(windows > 0)
    mean = np.nansum(matrix[present] * windows[present][:, None], axis=0) / windows[present].sum()
    height = MOUTH_PX[1] + 3
    figure = _figure(1400, height * len(present) + LABEL_PX * (len(notes) + 4), "\n".join((title, *notes)))
    drawn, ratios = figure.subplots(1, 2, sharey=True, width_ratios=(MOUTH_PX[0], 1400 - 2 * MOUTH_PX[0]))
    # Twice and half the usual share look equally far from it.
    ratio = np.log2((matrix[present][:, order] + 1e-6) / (mean[order] + 1e-6))
    ratios.imshow(ratio, aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3, interpolation="nearest")
    ratios.hlines(np.arange(len(present)) + 0.5, -0.5, len(order) - 0.5, color=PAPER, linewidth=2)
    ratios.set_xticks([])
    ratios.set_xlabel("slots, from closed to open; white: their usual share, red: up to 8 times more, blue: less", color=FAINT)
    for row, kind in enumerate(present.tolist()):
        if kind in faces:
            drawn.imshow(mouth(faces[kind]), aspect="auto", extent=(0, 1, row + 0.48, row - 0.48))
    drawn.set_xlim(0, 1)
    drawn.set_xticks([])
    drawn.set_ylim(len(present) - 0.5, -0.5)
    drawn.set_yticks(np.arange(len(present)), [f"{CLASSES[kind]}\n{windows[kind]} windows" for kind in present])
    return _drawn(figure)


def _figure(width: int, height: int, title: str) -> Figure:
    """An empty figure of that size in px."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.005, ha="left", fontsize=10, wrap=True)
    return figure


def _drawn(figure: Figure) -> Picture:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # file names may be written in any script
        canvas: Any = FigureCanvasAgg(figure)  # without types
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
