"""The scorecard as one HTML file that needs nothing else: pictures inside, no script, light and dark. The only user of jinja2."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from lipdub.atomic import write_whole
from lipdub.evaluate.drawings import CURVE_HEIGHT, CURVE_WIDTH, curve, ticks
from lipdub.evaluate.openings import LANDMARK_SET
from lipdub.evaluate.scorecard import FIGURES, ROW_MEANING, ROWS, Verdict, dub_verdicts, numbers, shown, verdicts
from lipdub.reports import plain

TEMPLATE = "page.html.j2"
FILES = ("scorecard.json", "scorecard.html")
BETTER = {"higher": "higher is better", "lower": "lower is better", "zero": "0 is right", "one": "1 is right"}
ARROWS = {"higher": "↑", "lower": "↓", "zero": "→ 0", "one": "→ 1"}
STATISTIC = {"mean": "mean", "mean_abs": "mean size", "median": "median", "worst": "worst"}
SHORT_ROWS = {
    "cross": "dub",
    "own": "own sound",
    "ground_truth": "truth",
    "wrong_audio": "wrong",
    "frozen": "frozen",
    "frozen_own": "frozen own",
}
SCOPES = {"all": "all clips", "measurable": "clips on which perfect lips reach r_cross 0.9"}


def write_scorecard(folder: Path, content: Mapping[str, Any], pictures: Mapping[str, Mapping[str, bytes]]) -> tuple[Path, Path]:
    """Write ``scorecard.json`` and ``scorecard.html`` into `folder`, each whole or not at all; their paths.

    content: as ``set_scorecard`` or ``evaluate_dub`` give it.
    pictures: clip name to pictures by file name ending.

    Raises WriteFailed.
    """
    table, page = (folder / name for name in FILES)
    write_whole(table, json_text(content))
    write_whole(page, render(content, pictures))
    return table, page


def json_text(content: Mapping[str, Any]) -> str:
    """The scorecard as JSON, with what the figures mean beside them."""
    meaning = {figure.name: {"unit": figure.unit, "better": BETTER[figure.better], "what": figure.what} for figure in FIGURES}
    told = {"figures": meaning, "rows": ROW_MEANING, "landmarks": LANDMARK_SET, "targets": _targets(content)}
    return json.dumps(plain({**told, **content}), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def all_verdicts(content: Mapping[str, Any]) -> dict[str, list[Verdict]]:
    """The targets of a scorecard, by what they are counted over."""
    if "summary" not in content:
        return {"this dub": dub_verdicts(numbers(content["clips"][0]["rows"]["dub"]))}
    return {SCOPES[scope]: verdicts(summary) for scope, summary in content["summary"].items() if summary}


def _targets(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    def told(verdict: Verdict) -> dict[str, Any]:
        target = {name: getattr(verdict.target, name) for name in ("row", "figure", "statistic", "bound")}
        return {**target, "value": verdict.value, "met": verdict.met}

    return {scope: [told(verdict) for verdict in found] for scope, found in all_verdicts(content).items()}


def render(content: Mapping[str, Any], pictures: Mapping[str, Mapping[str, bytes]]) -> str:
    """The HTML text."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        settings=content["settings"],
        verdicts=all_verdicts(content),
        summaries=_summaries(content),
        clips=[_clip(clip, pictures.get(clip["name"], {})) for clip in content["clips"]],
        left_out=content.get("left_out", {}),
        figures=FIGURES,
        arrows=ARROWS,
        statistics=STATISTIC,
        shown=shown,
        labels=ROWS,
        meaning=ROW_MEANING if "summary" in content else {},
        landmarks=LANDMARK_SET,
        width=CURVE_WIDTH,
        height=CURVE_HEIGHT,
    )


def _summaries(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table per scope: a line per figure that any row has, a column per row."""
    tables = []
    for scope, summary in content.get("summary", {}).items():
        if summary:
            rows = [summary[row] for row in ROWS if row in summary]
            lines = [(figure, [row[figure.name] for row in rows]) for figure in FIGURES if any(row[figure.name]["clips"] for row in rows)]
            title = f"{SCOPES[scope]} ({clips_in(summary)})"
            tables.append({"title": title, "columns": [ROWS[row] for row in ROWS if row in summary], "lines": lines})
    return tables


def clips_in(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> int:
    """How many clips a summary counts."""
    return int(max(cell["clips"] for row in summary.values() for cell in row.values()))


def reasons_of(left_out: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Why figures were left out: reason to the names of those figures, each once, in order."""
    reasons: dict[str, list[str]] = {}
    for row in left_out:
        for name, reason in row.items():
            if name not in reasons.setdefault(reason, []):
                reasons[reason].append(name)
    return {reason: ", ".join(names) for reason, names in reasons.items()}


def _clip(clip: Mapping[str, Any], pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """What the page shows of one clip."""
    rows = [row for row in (*ROWS, "dub") if row in clip["rows"]]
    figures = [numbers(clip["rows"][row]) for row in rows]
    lines = [(figure, [values[figure.name] for values in figures]) for figure in FIGURES]
    facts = [f"{clip['frames']} frames, {clip['seconds']:.1f} s"]
    if clip.get("measurable") is False:
        facts.append("perfect lips stay below r_cross 0.9 here: it says little about a model")
    if pages := clip.get("pages"):
        rate = pages["switches"] / max(1e-6, clip["seconds"])
        drawn_from = f"drawn from {pages['used']} of {pages['known']} mouths, {pages['switches']} changes ({rate:.1f} a second)"
        facts.append(f"{drawn_from}, {pages['short']:.0%} of the frames further open than their page")
    if clip.get("wrong_audio_of"):
        facts.append(f"wrong audio: {clip['wrong_audio_of']}")
    return {
        "name": clip["name"],
        "facts": facts,
        "columns": [ROWS.get(row, "this dub") for row in rows],
        "lines": [(figure, values) for figure, values in lines if any(map(math.isfinite, values))],
        "reasons": reasons_of(clip["left_out"][row] for row in rows),
        "curves": _curves(clip["curves"]),
        "pages": _pages(clip),
        "strip": _uri(pictures, ".strip.jpg", "image/jpeg"),
        "strip_rows": clip.get("strip_rows", "source, dubbed, and the mouth that belongs to the sound"),
        "address_max": clip.get("address_max") or 0,
        "address": _uri(pictures, ".address.png", "image/png"),
    }


def _curves(curves: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """Openings over time as SVG points, with ticks."""
    times = curves["times_s"]
    known = [value for name in ("drawn", "truth", "source") for value in curves.get(name, []) if value is not None and math.isfinite(value)]
    seconds = max((float(time_s) for time_s in times if time_s is not None), default=0.0)
    top = max(0.1, 1.05 * max(known, default=0.0))
    return {
        "x": ticks(seconds, CURVE_WIDTH),
        "y": ticks(top, CURVE_HEIGHT, most=4),
        "pieces": {name: curve(times, curves[name], seconds=seconds, top=top) for name in ("source", "truth", "drawn") if curves.get(name)},
    }


def _pages(clip: Mapping[str, Any]) -> dict[str, Any]:
    """When the source shows the page of each frame, as SVG points with ticks; nothing where all mouths are painted."""
    pages, times = clip.get("pages"), clip["curves"]["times_s"]
    known = [float(value) for value in (pages or {}).get("page_s", []) if value is not None]
    if pages is None or not known:
        return {}
    seconds, top = max((float(time_s) for time_s in times if time_s is not None), default=0.0), max(0.1, 1.05 * max(known))
    values = [*pages["page_s"], *[None] * len(times)][: len(times)]
    axes = {"x": ticks(seconds, CURVE_WIDTH), "y": ticks(top, CURVE_HEIGHT, most=4)}
    return axes | {"pieces": {"drawn": curve(times, values, seconds=seconds, top=top)}}


def _uri(pictures: Mapping[str, bytes], ending: str, kind: str) -> str:
    """A picture as a data URI, empty where there is none."""
    return f"data:{kind};base64,{base64.b64encode(pictures[ending]).decode()}" if ending in pictures else ""
