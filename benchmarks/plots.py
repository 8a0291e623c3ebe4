"""The plots of the measures: small PNG files, drawn without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MOST_BYTES = 100_000
COLORS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#999933",
    "#cc6677", "#44aa99", "#dddddd", "#663333",
)  # fmt: skip
"""Paul Tol's qualitative colours, which colour-blind readers tell apart; used again from the first on where there are more."""


GREY = "#999999"


def stacked_bars(path: Path, bars: Mapping[str, Mapping[str, float]], *, title: str, unit: str) -> Path:
    """One bar across for each name in `bars`, made of its parts; the same part has the same colour in all, a part ``wall`` is grey.
    unit: of the axis."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    figure, axes = _figure(height=1.2 + 0.5 * len(bars) + 0.25 * (1 + len(parts) // 5))
    left = [0.0] * len(bars)
    for number, part in enumerate(parts):
        lengths = [bar.get(part, 0.0) for bar in bars.values()]
        color = GREY if part == "wall" else COLORS[number % len(COLORS)]
        axes.barh(list(bars), lengths, left=left, label=part, color=color, height=0.6)
        left = [start + length for start, length in zip(left, lengths, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.1f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max([*left, 1e-9]))
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return _save(figure, path)


def lines(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    marks: Mapping[str, float] | None = None,
    logarithmic: str = "",
    ticks: Mapping[float, str] | None = None,
) -> Path:
    """One curve for each name in `curves` (x and y values). marks: dotted lines across, name to height. logarithmic: ``x``, ``y`` or
    ``xy``. ticks: place on the x axis to its name."""
    figure, axes = _figure(height=3.4)
    for number, (name, (xs, ys)) in enumerate(curves.items()):
        axes.plot(xs, ys, marker="o", markersize=4, label=name, color=COLORS[number % len(COLORS)])
    for name, height in (marks or {}).items():
        axes.axhline(height, color="#555555", linestyle=":", linewidth=1)
        axes.annotate(name, (1.0, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    if "x" in logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    if "y" in logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
    else:
        axes.set_ylim(bottom=0)
    if ticks:
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xticks([], minor=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return _save(figure, path)


def _figure(*, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> Path:
    """Write the PNG, without the version of what drew it, so that the same figures give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {MOST_BYTES}: draw fewer curves")
    return path
