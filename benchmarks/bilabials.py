"""Do the lips close at p, b and m? Synthetic speech with known phonemes, dubbed onto faces, the opening measured in the output.

Per utterance: a bilabial is closed where the least opening within its span (one frame more on either side) lies below half of the
utterance's mean opening over speech. Beside it stand as many spans of the same lengths anywhere else in the same utterance
(chance), the untouched source at the same times (a mouth that says something else), and a frozen mouth. ``by the slots`` is the
opening that the memory's address predicts, before anything is drawn: each slot's own mouth, measured, weighted with its share.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.closures import closures, random_closures
from lipdub import media
from lipdub.errors import PhonemesError
from lipdub.memory_view.mouths import draw, find_portrait, measure_openings
from lipdub.memory_view.usage import slot_features
from lipdub.model import open_model
from lipdub.options import DubOptions
from lipdub.phonetics import alignment_files, espeak
from lipdub.phonetics.alignment import Alignment, Phoneme
from lipdub.pipeline import dub
from lipdub.speech.lip_track import lips_at

TARGET = 0.8
PAUSE_S = 0.6
KINDS = {
    "dubbed": "dubbed",
    "random": "dubbed, spans anywhere (chance)",
    "untouched": "untouched source",
    "frozen": "frozen mouth",
    "by_slots": "by the slots",
}
STILL = 0.002
"""Noise of the detector on a frozen mouth, in units of opening."""

SENTENCES = (
    ("en-us+f2", "The baker brought a big brown box of pepper bread to my mother."),
    ("en-us+m3", "Maybe Bob can help me pump up the rubber boat before lunch."),
    ("en-us+m1", "Pam bumped her thumb on the lamp beside the piano."),
    ("en-us+f4", "A number of people complain about the public transport problem."),
    ("en-gb+f2", "My brother remembers the summer camp by the broad blue bay."),
    ("en-gb+m3", "Please put the apples and the plums into the paper bag, Emma."),
    ("en-gb-scotland+m5", "The captain kept a map of the harbour above his bed."),
    ("en-us+klatt2", "Peter Piper picked a peck of pickled peppers."),
    ("en-us+Andy", "Climb up to the top of the dome and admire the marble columns."),
    ("en-us+f3", "We might improve the tempo if the bass and the drums were simpler."),
    ("en-us+m7", "Some of the members blamed the company for the broken pipe."),
    ("de+f2", "Mama mag am liebsten Apfelkuchen mit Birnen und Pflaumen."),
    ("de+m3", "Bitte bring mir um sieben Uhr die Post und ein paar Briefe mit."),
    ("de+f5", "Der Bäcker baut im Sommer ein buntes Baumhaus am Bach."),
    ("es+m3", "Mi amiga compra pan blanco y un poco de miel para mamá."),
    ("es+f2", "El bombero subió también al campanario con un amplio mapa."),
    ("es+m1", "Pablo empieza a pintar un palomar muy pequeño."),
)
"""Voice and what it says; the variants f2, m3, klatt2 and Andy do not occur in the training speech of ``synthetic_speech.py``."""


@dataclass(frozen=True)
class Options:
    """What every face is dubbed with."""

    model: str
    out: Path
    threads: int


@dataclass(frozen=True)
class Utterance:
    """One sentence in the long speech: when it begins and ends, seconds, and its phonemes on the speech's clock."""

    voice: str
    text: str
    start_s: float
    end_s: float
    alignment: Alignment


def main(arguments: list[str]) -> int:
    """Measure, print the tables, write the JSON; exit code 1 where fewer than 80 % close."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks bilabials", description=__doc__)
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--face", type=Path, action="append", help="video or photo; may be given again (default: examples/portrait.mp4)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the speech, the dubs and the cache")
    parser.add_argument("--sentences", type=int, default=len(SENTENCES), help="just the first so many, for a quick look")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        utterances = make_speech(options.out / "speech.wav", SENTENCES[: max(1, options.sentences)])
    except PhonemesError as error:
        parser.error(str(error))
    faces = options.face or [Path("examples/portrait.mp4")]
    chosen = Options(options.model, options.out, common.threads_per_job(options.jobs))
    if len({face.stem for face in faces}) < len(faces):
        parser.error("two faces have the same file name; rename one")
    answers = common.spread(partial(measure_face, chosen, utterances), faces, jobs=options.jobs, label=common.short)
    rows = [row for answer in answers for row in answer["utterances"]]
    print_faces(options.model, answers)
    print_parts(rows)
    shares = summary(rows)
    common.write_json(options.json, {"model": options.model, "summary": shares, "faces": answers})
    return 0 if shares["dubbed"] >= TARGET else 1


def make_speech(out: Path, sentences: Sequence[tuple[str, str]] = SENTENCES) -> list[Utterance]:
    """The sentences one after the other with pauses between them, as 16 kHz WAV, and their phonemes as CSV; what is said when."""
    from scipy.signal import resample_poly

    pause = np.zeros(round(PAUSE_S * common.SOUND_HZ), np.float32)
    pieces, utterances, length = [pause], [], len(pause)
    for voice, text in sentences:
        speech = espeak.speak(text, voice, words_per_minute=150)
        samples = resample_poly(speech.samples, common.SOUND_HZ, speech.sample_rate_hz).astype(np.float32)
        samples *= 0.5 / max(float(np.abs(samples).max()), 1e-6)
        start_s = length / common.SOUND_HZ
        moved = tuple(Phoneme(one.start_s + start_s, one.end_s + start_s, one.symbol) for one in speech.alignment)
        utterances.append(Utterance(voice, text, start_s, start_s + speech.duration_s, Alignment(moved)))
        pieces += [samples, pause]
        length += len(samples) + len(pause)
    media.write_wav(out, np.concatenate(pieces), common.SOUND_HZ)
    together = Alignment(tuple(phoneme for one in utterances for phoneme in one.alignment))
    alignment_files.write_alignment(together, out.with_suffix(".csv"))
    return utterances


def measure_face(options: Options, utterances: Sequence[Utterance], face: Path) -> dict[str, Any]:
    """Figures of one face: each utterance's, for each kind of mouth."""
    cv2.setNumThreads(options.threads)
    speech, dubbed = options.out / "speech.wav", options.out / f"{face.stem}.mp4"
    dub(face, speech, dubbed, DubOptions(model=options.model, fit="speech", threads=options.threads, force=True))
    drawn = common.measure(dubbed)
    source = common.measure(face, options.out / "openings")
    still = len(source) == 1
    # The source plays back and forth where the speech is longer than it.
    turned = np.concatenate([source.opening, source.opening[-2:0:-1]]) if not still else source.opening
    untouched = turned[np.arange(len(drawn)) % len(turned)]
    noise = np.random.default_rng(0).normal(0, STILL, len(drawn))
    kinds = {"dubbed": drawn.opening, "untouched": untouched, "frozen": float(np.nanmean(drawn.opening)) + noise}
    slots = opening_by_slots(options, face, drawn.times_s)
    return {
        "face": face.name,
        "frames": len(drawn),
        "faceless": int(np.isnan(drawn.opening).sum()),
        "utterances": [measure_utterance(one, drawn.times_s, {**kinds, "by_slots": slots}) for one in utterances],
    }


def measure_utterance(utterance: Utterance, times_s: NDArray[np.float64], openings: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Closed or not, bilabial by bilabial, for each kind of mouth; and the chance level of the drawn one."""
    here = (times_s >= utterance.start_s - 0.1) & (times_s <= utterance.end_s + 0.1)
    times_s = times_s[here]
    row: dict[str, Any] = {"voice": utterance.voice, "text": utterance.text}
    for kind, opening in openings.items():
        found = closures(times_s, opening[here], utterance.alignment)
        row[kind] = {
            "closed": found.closed.tolist(),
            "ratio": (found.lowest / found.mean_opening).tolist(),
            "symbols": [symbol_at(utterance.alignment, float(start_s)) for start_s in found.spans_s[:, 0]],
            "mean_opening": found.mean_opening,
        }
    row["random"] = random_closures(times_s, openings["dubbed"][here], utterance.alignment)
    return row


def symbol_at(alignment: Alignment, time_s: float) -> str:
    """The letter of the bilabial that begins at a time."""
    return next((one.symbol[0] for one in alignment if abs(one.start_s - time_s) < 1e-6), "?")


def opening_by_slots(options: Options, face: Path, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Opening at each time as the address tells it: the slots' own mouths on this face, weighted with their shares."""
    model = open_model(options.model, threads=options.threads)
    pieces = list(lips_at(options.out / "speech.wav", model.memory, times_s))
    address = np.concatenate([one.address for one in pieces if one.address is not None])
    lip_feature = np.concatenate([one.feature for one in pieces])
    portrait = find_portrait(face, model.spec.crop.size)
    own = measure_openings(draw(model, portrait, slot_features(address, lip_feature)))
    known = np.isfinite(own)
    if not known.any():
        return np.full(len(times_s), np.nan)
    weight = address[:, known].astype(np.float64)
    return np.asarray((weight @ own[known]) / np.maximum(weight.sum(axis=1), 1e-9), np.float64)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of all bilabials that close, for each kind; chance weighted with the number of bilabials."""
    counts = [len(row["dubbed"]["closed"]) for row in rows]
    return {
        kind: float(np.average([row["random"] for row in rows], weights=counts))
        if kind == "random"
        else float(np.mean([closed for row in rows for closed in row[kind]["closed"]]))
        for kind in KINDS
    }


def print_faces(model: str, answers: Sequence[dict[str, Any]]) -> None:
    """One row per face and kind of mouth."""
    rows = []
    for answer in answers:
        shares = summary(answer["utterances"])
        count = sum(len(row["dubbed"]["closed"]) for row in answer["utterances"])
        rows.append([common.short(Path(answer["face"])), count, *(shares[kind] for kind in KINDS), answer["faceless"]])
    if len(answers) > 1:
        everything = [row for answer in answers for row in answer["utterances"]]
        shares = summary(everything)
        rows.append(["all", sum(row[1] for row in rows), *(shares[kind] for kind in KINDS), sum(row[-1] for row in rows)])
    common.table(
        f"share of bilabials that close, model {model} (at least {TARGET} is wanted)", ["face", "p b m", *KINDS.values(), "faceless"], rows
    )


def print_parts(rows: Sequence[dict[str, Any]]) -> None:
    """The drawn mouth by phoneme and by voice."""
    pairs = [
        (symbol, row["voice"], closed, ratio)
        for row in rows
        for symbol, closed, ratio in zip(row["dubbed"]["symbols"], row["dubbed"]["closed"], row["dubbed"]["ratio"], strict=True)
    ]
    parts = [(f"/{letter}/", [pair for pair in pairs if pair[0] == letter]) for letter in "pbm"]
    parts += [(voice, [pair for pair in pairs if pair[1] == voice]) for voice, _ in SENTENCES]
    common.table(
        "the drawn mouth, in parts",
        ["", "bilabials", "closed", "least opening / mean, median"],
        [
            [name, len(found), float(np.mean([pair[2] for pair in found])), float(np.median([pair[3] for pair in found]))]
            for name, found in dict(parts).items()
            if found
        ],
    )
