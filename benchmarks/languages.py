"""Does a face speak other languages as well as English? Sentences of espeak-ng in twelve languages, and real speech, dubbed onto it.

Articulation: spread of the drawn opening while something is spoken, over the spread of the untouched source's. Closed, chance: p, b and m
as ``benchmarks bilabials`` counts them. Jitter: mean second difference of the opening from frame to frame at 25 frames/s, over the spread
of the opening: trembling lips show here; the untouched source stands in the first row.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.bilabials import Utterance, make_speech
from benchmarks.closures import closures, random_closures
from lipdub.errors import PhonemesError
from lipdub.evaluate.openings import Openings
from lipdub.options import DubOptions
from lipdub.phonetics.classes import SILENCE
from lipdub.pipeline import dub

RATE_HZ = 25.0
SENTENCES = (
    ("en-us+f2", "My brother brought a map of the big public park to the meeting."),
    ("en-us+m3", "Before the summer, we must improve the bathroom and the basement."),
    ("de+f2", "Am Morgen backt meine Mutter im Dorf Brot und Apfelkuchen."),
    ("de+m3", "Bitte bring uns am Abend ein paar Blumen und Bücher mit."),
    ("es+f2", "Mi hermano compró un mapa y un poco de pan para el camino."),
    ("es+m3", "También me gusta pasear por el campo cuando sube la temperatura."),
    ("fr+f2", "Ma mère a préparé un bon repas pour le premier samedi du mois."),
    ("fr+m3", "Nous avons bu beaucoup de café dans un petit bar près du port."),
    ("it+f2", "Il bambino ha comprato il pane e un libro per la mamma."),
    ("it+m3", "Domani possiamo partire presto con il primo treno per Bologna."),
    ("pt-br+f2", "Minha amiga comprou pão, banana e um pouco de mel para a mãe."),
    ("pt-br+m3", "O problema do bairro é sempre a água que sobe no campo."),
    ("pl+f2", "Mama kupiła biały chleb, masło i piękny obraz na rynku."),
    ("pl+m3", "Potem pojechaliśmy pociągiem do babci i piliśmy herbatę."),
    ("tr+f2", "Annem sabah pazardan peynir, elma ve biraz ekmek getirdi."),
    ("tr+m3", "Babam bu akşam bize yeni bir kitap ve bir lamba getirdi."),
    ("ru+f2", "Мама купила белый хлеб и большую книгу для моего брата."),
    ("ru+m3", "Потом мы поехали на поезде к бабушке и пили чай из малины."),
    ("id+f2", "Ibu membeli buah mangga dan beberapa buku di pasar pagi ini."),
    ("id+m3", "Besok pagi kami akan pergi ke pulau bersama paman dan bibi."),
    ("sw+f2", "Mama alinunua mkate, maembe na kitabu kipya sokoni asubuhi."),
    ("sw+m3", "Baba na kaka walipanda basi kubwa kwenda pwani jana usiku."),
    ("fi+f2", "Äiti leipoi pullaa ja omenapiirakkaa mummon kanssa pienessä keittiössä."),
    ("fi+m3", "Poika puhui puhelimessa ja piti kovasti uudesta pallosta."),
)
"""Voice and what it says; none of it is in the training speech."""


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks languages", description=__doc__)
    parser.add_argument("--model", default="base", help="bundle, by name or folder")
    parser.add_argument("--face", type=Path, default=Path("examples/portrait.mp4"), help="video of somebody who speaks")
    parser.add_argument("--speech", type=Path, action="append", default=[], help="real speech to dub with, too; may be given again")
    parser.add_argument("--out", type=Path, required=True, help="folder for the speech, the dubs and the cache")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        utterances = make_speech(options.out / "languages.wav", SENTENCES)
    except PhonemesError as error:
        parser.error(str(error))
    source = common.measure(options.face, options.out / "openings")
    spread = float(np.nanstd(source.opening))
    rows = [{"speech": "untouched source", "articulation": 1.0, "jitter": jitter(source.times_s, source.opening)}]
    spoken = _dubbed(options, options.out / "languages.wav")
    for language in dict.fromkeys(one.voice.split("+")[0] for one in utterances):
        rows.append(of_language(language, [one for one in utterances if one.voice.split("+")[0] == language], spoken, spread))
    for speech in options.speech:
        found = _dubbed(options, speech)
        articulation = float(np.nanstd(found.opening)) / max(spread, 1e-9)
        rows.append({"speech": speech.stem, "articulation": articulation, "jitter": jitter(found.times_s, found.opening)})
    columns = ["speech", "articulation", "p b m", "closed", "chance", "jitter"]
    title = f"languages, model {options.model}, face {common.short(options.face)}"
    common.table(title, columns, [[row.get(column, "") for column in columns] for row in rows])
    common.write_json(options.json, {"model": options.model, "face": options.face.name, "rows": rows})
    return 0


def of_language(language: str, utterances: list[Utterance], drawn: Openings, source_spread: float) -> dict[str, Any]:
    """The row of one language; `drawn` are the openings of the whole dub."""
    openings, trembling, closed, chance = [], [], [], []
    for one in utterances:
        here = (drawn.times_s >= one.start_s - 0.1) & (drawn.times_s <= one.end_s + 0.1)
        times_s, opening = drawn.times_s[here], drawn.opening[here]
        openings.append(opening[one.alignment.classes_at(times_s) != SILENCE])
        trembling.append(jitter(times_s, opening))
        closed += closures(times_s, opening, one.alignment).closed.tolist()
        chance.append(random_closures(times_s, opening, one.alignment))
    return {
        "speech": language, "articulation": float(np.nanstd(np.concatenate(openings))) / max(source_spread, 1e-9), "p b m": len(closed),
        "closed": float(np.mean(closed)) if closed else float("nan"), "chance": float(np.nanmean(chance)),
        "jitter": float(np.nanmean(trembling)),
    }  # fmt: skip


def jitter(times_s: NDArray[np.float64], opening: NDArray[np.float64]) -> float:
    """Mean absolute second difference of the opening at ``RATE_HZ``, over its standard deviation; NaN where too little is known."""
    known = np.isfinite(opening)
    if known.sum() < 5:
        return float("nan")
    even = np.interp(np.arange(times_s[known][0], times_s[known][-1], 1 / RATE_HZ), times_s[known], opening[known])
    return float(np.abs(np.diff(even, 2)).mean() / max(float(even.std()), 1e-9)) if len(even) > 2 else float("nan")


def _dubbed(options: argparse.Namespace, speech: Path) -> Openings:
    """Openings of the face dubbed with `speech`."""
    out = options.out / f"{speech.stem}.mp4"
    dub(options.face, speech, out, DubOptions(model=options.model, fit="speech", force=True))
    return common.measure(out)
