"""Phonemes: classes, alignments in files, and speech whose phonemes lie where they are said to lie."""

# ruff: noqa: RUF001 -- letters of IPA look like others
from __future__ import annotations

import ctypes
import os
import wave
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lipdub.errors import PhonemesError
from lipdub.phonetics import classes, espeak
from lipdub.phonetics.alignment import Alignment, Phoneme
from lipdub.phonetics.alignment_files import read_alignment, write_alignment
from lipdub.phonetics.classes import BILABIAL, CLASSES, SILENCE, classes_of

needs_espeak = pytest.mark.skipif(not espeak.can_synthesise(), reason="espeak-ng is not installed")

LETTERS = [(letter, CLASSES.index(name)) for name, letters in classes._IPA.items() for letter in letters.split()]


# ---------------------------------------------------------------------------------------------------------- classes


def test_every_class_has_letters_and_every_letter_one_class():
    letters = [letter for letter, _ in LETTERS]
    assert len(set(letters)) == len(letters)
    assert {kind for _, kind in LETTERS} | {SILENCE} == set(range(len(CLASSES)))


@given(st.sampled_from(LETTERS), st.sampled_from(["", "ˈ", "ˌ"]), st.sampled_from(["", "ː", "ʰ", "̃", "̩", "1"]))
def test_marks_do_not_change_the_class(letter_and_kind, before, after):
    letter, kind = letter_and_kind
    assert classes_of(before + letter + after) == (kind, kind)


@pytest.mark.parametrize(
    ("symbol", "first", "last"),
    [
        ("aɪ", "open", "close"), ("ˈaʊ", "open", "rounded close"), ("ɪɹ", "close", "close"), ("tʃ", "postalveolar", "postalveolar"),
        ("t͡ʃ", "postalveolar", "postalveolar"), ("pf", "bilabial", "bilabial"), ("ts", "sibilant", "sibilant"), ("", "silence", "silence"),
        ("sil", "silence", "silence"), ("_:", "silence", "silence"), ("(en)", "silence", "silence"), ("A:", "open", "open"),
        ("@", "mid", "mid"), ("aɪə", "open", "mid"), ("mb", "bilabial", "bilabial"),
    ],
)  # fmt: skip
def test_classes_of(symbol, first, last):
    assert tuple(CLASSES[kind] for kind in classes_of(symbol)) == (first, last)


def test_an_unknown_letter_is_an_error():
    with pytest.raises(PhonemesError, match="unknown phoneme 'ж'"):
        classes_of("ж")


# ------------------------------------------------------------------------------------------------------- alignments


@st.composite
def alignments(draw) -> Alignment:
    edges = sorted(draw(st.sets(st.integers(0, 500), min_size=2, max_size=24)))
    found = []
    for start, end in pairwise(edges):
        if draw(st.booleans()):
            found.append(Phoneme(start / 100, end / 100, draw(st.sampled_from(["p", "b", "a", "aɪ", "s"]))))
    return Alignment(tuple(found))


@given(alignments(), st.lists(st.floats(-1, 7), max_size=20))
def test_who_sounds_when(alignment, times):
    times_s = np.array(times, np.float64)
    for time_s, number, kind in zip(times_s, alignment.index_at(times_s), alignment.classes_at(times_s), strict=True):
        inside = [k for k, one in enumerate(alignment) if one.start_s <= time_s < one.end_s]
        assert inside == ([number] if number >= 0 else [])
        if number < 0:
            assert kind == SILENCE
        else:
            assert kind in classes_of(alignment.phonemes[number].symbol)


@given(alignments())
def test_neighbouring_bilabials_are_one_closure(alignment):
    spans = alignment.spans_of(BILABIAL)
    total = sum(one.end_s - one.start_s for one in alignment if one.symbol in "pb")
    assert sum(end - start for start, end in spans) == pytest.approx(total)
    assert all(first[1] < second[0] for first, second in pairwise(spans))


def test_a_diphthong_changes_in_its_middle():
    alignment = Alignment((Phoneme(0.1, 0.3, "aʊ"),))
    kinds = alignment.classes_at(np.array([0.05, 0.1, 0.19, 0.21, 0.3]))
    assert [CLASSES[kind] for kind in kinds] == ["silence", "open", "open", "rounded close", "silence"]


@pytest.mark.parametrize(("start", "end"), [(-0.1, 1), (1, 1), (2, 1), (float("nan"), 1), (0, float("inf"))])
def test_phonemes_that_cannot_be(start, end):
    with pytest.raises(ValueError, match="start and a later end"):
        Phoneme(start, end, "a")


def test_phonemes_must_not_overlap():
    with pytest.raises(ValueError, match="overlap"):
        Alignment((Phoneme(0, 1, "a"), Phoneme(0.5, 2, "b")))


# ------------------------------------------------------------------------------------------------------------ files


@given(alignments().filter(len))
def test_what_is_written_is_read(tmp_path_factory, alignment):
    file = tmp_path_factory.mktemp("a") / "a.csv"
    write_alignment(alignment, file)
    assert read_alignment(file) == alignment
    assert os.listdir(file.parent) == ["a.csv"]


LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "pa ""2"" 3.5 [4]"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.5
            mark = "x"
    item [3]:
        class = "IntervalTier"
        name = "speaker - phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = "p"
        intervals [2]:
            xmin = 0.25
            xmax = 1e0
            text = "ɑ"
        intervals [3]:
            xmin = 1.0
            xmax = 1.5
            text = ""
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
1
"IntervalTier"
"anything"
0
1.5
3
0
0.25
"P"
0.25
1
"AA1"
1
1.5
"sil"
"""
PA = Alignment((Phoneme(0, 0.25, "p"), Phoneme(0.25, 1, "ɑ")))


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("long.TextGrid", LONG, "utf-8"),
        ("wide.TextGrid", LONG, "utf-16"),
        ("short.textgrid", SHORT, "utf-8-sig"),
        ("no_suffix", SHORT, "utf-8"),
        ("a.csv", "phoneme,end_s,start_s\nɑ,1,0.25\np,0.25,0\n,1.5,1\n", "utf-8-sig"),
        ("arpabet.csv", "start_s,end_s,phoneme\n0,.25,P\n.25,1,AA1\n1,1.5,SIL\n", "utf-8"),
    ],
)
def test_formats(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_alignment(tmp_path / name) == PA


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("none.csv", None, "No such file"),
        ("a.csv", b"", "column end_s, phoneme, start_s is missing"),
        ("a.csv", b"start_s,end_s\n0,1\n", "column phoneme is missing"),
        ("a.csv", b"start_s,end_s,phoneme\n0,x,a\n", "line 2"),
        ("a.csv", b"start_s,end_s,phoneme\n0\n", "line 2"),
        ("a.csv", b"start_s,end_s,phoneme\n1,0,a\n", "later end"),
        ("a.csv", b"start_s,end_s,phoneme\n0,1,a\n0.5,2,b\n", "overlap"),
        ("a.csv", b"start_s,end_s,phoneme\n0,1,\n", "no phoneme"),
        ("a.csv", "start_s,end_s,phoneme\n0,1,ж\n".encode(), "unknown phoneme"),
        ("a.csv", "start_s,end_s,phoneme\n0,1,ä\n".encode("latin-1"), "UTF-8"),
        ("a.TextGrid", LONG[:-120].encode(), "cut off"),
        ("a.TextGrid", b"nothing", "no tiers"),
        ("a.TextGrid", LONG.replace("speaker - phones", "other").encode(), "no tier is named phones; found: words, other"),
        ("a.TextGrid", LONG.encode("utf-16")[:-1], "UTF-8"),
    ],
)
def test_files_that_hold_no_alignment(tmp_path, name, content, word):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PhonemesError, match=word) as error:
        read_alignment(tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


# ------------------------------------------------------------------------------------------------------- boundaries

RATE = 22050


def sound(*pieces: tuple[float, float]) -> np.ndarray:
    """Noise of given lengths (s) and levels (0 to 1), int16."""
    random = np.random.default_rng(0)
    return np.concatenate([random.uniform(-1, 1, round(long * RATE)) * level * 32000 for long, level in pieces]).astype(np.int16)


def spans(alignment: Alignment) -> list[tuple[str, float, float]]:
    return [(one.symbol, round(one.start_s, 2), round(one.end_s, 2)) for one in alignment]


def events(*at: tuple[float, str]) -> list[tuple[int, str]]:
    return [(round(time_s * RATE), symbol) for time_s, symbol in at]


def test_a_closure_belongs_to_its_stop():
    """espeak announces the stop at its burst; a vowel in the same place keeps the pause out of both."""
    samples = sound((0.3, 0.8), (0.07, 0), (0.03, 0.3), (0.3, 0.8))
    assert spans(espeak._boundaries(samples, events((0, "a"), (0.37, "p"), (0.4, "ɑː")), RATE)) == [
        ("a", 0, 0.3), ("p", 0.3, 0.4), ("ɑː", 0.4, 0.7),
    ]  # fmt: skip
    assert spans(espeak._boundaries(samples, events((0, "a"), (0.37, "i")), RATE)) == [("a", 0, 0.3), ("i", 0.37, 0.7)]


def test_a_long_pause_is_no_closure():
    samples = sound((0.3, 0.8), (0.5, 0), (0.03, 0.3), (0.3, 0.8), (0.4, 0))
    found = espeak._boundaries(samples, events((0, "a"), (0.3, "_:"), (0.8, "p"), (0.83, "a"), (1.53, "_")), RATE)
    assert spans(found) == [("a", 0, 0.3), ("p", 0.72, 0.83), ("a", 0.83, 1.13)]


def test_a_vowel_after_a_nasal_begins_where_the_level_rises():
    samples = sound((0.2, 0.2), (0.3, 0.9))
    found = espeak._boundaries(samples, events((0, "m"), (0.24, "a")), RATE)
    assert [one[0] for one in spans(found)] == ["m", "a"]
    assert found.phonemes[1].start_s == pytest.approx(0.2, abs=0.012)
    assert found.phonemes[0].end_s == found.phonemes[1].start_s


def test_an_echo_does_not_hide_a_closure():
    samples = sound((0.3, 0.8), (0.07, 0.01), (0.03, 0.3), (0.3, 0.8))
    found = espeak._boundaries(samples, events((0, "a"), (0.37, "p"), (0.4, "a")), RATE)
    assert spans(found)[1] == ("p", 0.3, 0.4)


@pytest.mark.parametrize("count", [0, 50])
def test_no_events_no_phonemes(count):
    assert len(espeak._boundaries(np.zeros(count, np.int16), [], RATE)) == 0


@example(steps=[(350, "a"), (50, "_"), (20, "k"), (50, "a")], loud=[3000] * 15 + [200] * 5 + [3000] * 5)
@given(
    steps=st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["a", "k", "p", "m", "n", "l", "s", "", "_", "_:", "iː"])), max_size=12),
    loud=st.lists(st.sampled_from([0, 1, 20, 200, 3000]), min_size=1, max_size=60),
)
def test_phonemes_never_overlap_whatever_is_announced(steps: list[tuple[int, str]], loud: list[int]) -> None:
    """Vowel, pause, voiceless stop: the stop's closure once began before the pause did, and a whole run of synthetic speech ended there."""
    samples = np.repeat(np.array(loud, np.int16), RATE // 50)
    samples[::2] *= -1
    places = np.minimum(np.cumsum([0, *(RATE * step // 1000 for step, _ in steps)])[: len(steps)], len(samples))
    found = espeak._boundaries(samples, [(int(at), symbol) for at, (_, symbol) in zip(places, steps, strict=True)], RATE)
    assert all(before.end_s <= after.start_s + 1e-9 for before, after in pairwise(found))


# -------------------------------------------------------------------------------------------------------- synthesis

TEXTS = {
    "en-us": "Papa took a cup, but Bob kept a pack of tickets. A big map, my top film.",
    "en-gb+klatt4": "Peter picked a packet of pepper to take to Kate.",
    "de+f2": "Der Bäcker packt Pakete, und Peter kauft Käse am Montag.",
    "es+m3": "Pepe compra una copa, tapa y pato con su abuela.",
}


def level_db(speech: espeak.Speech, start_s: float, end_s: float) -> float:
    """Lowest level of 10 ms within a span."""
    samples = speech.samples[round(start_s * speech.sample_rate_hz) : round(end_s * speech.sample_rate_hz)].astype(np.float64)
    step = speech.sample_rate_hz // 100
    blocks = [float((samples[at : at + step] ** 2).mean()) for at in range(0, max(1, len(samples) - step + 1), step // 2)]
    return 10 * np.log10(min(blocks) + 1e-12)


@needs_espeak
@pytest.mark.parametrize(("voice", "text"), TEXTS.items())
def test_the_phonemes_lie_where_they_sound(voice, text):
    speech = espeak.speak(text, voice)
    assert speech.alignment.end_s <= speech.duration_s + 1e-6
    assert float(np.abs(speech.samples).max()) <= 1
    middles = {}
    for one in speech.alignment:
        third = (one.end_s - one.start_s) / 3
        middles.setdefault(one.symbol.strip("ː")[:1], []).append(level_db(speech, one.start_s + third, one.end_s - third))
    vowels = [level for symbol, levels in middles.items() if classes.is_vowel(classes_of(symbol)[0]) for level in levels]
    loud = float(np.median(vowels))
    closed = [
        level_db(speech, one.start_s, one.start_s + 0.6 * (one.end_s - one.start_s)) < loud - 15
        for one in speech.alignment
        if one.symbol in "ptk"
    ]
    assert len(closed) >= 7
    assert np.mean(closed) > 0.9
    nasals = middles.get("m", []) + middles.get("n", [])
    assert not nasals or float(np.median(nasals)) < loud - 3
    gaps = [0.0, *(one.end_s for one in speech.alignment)]
    pauses = [(end, one.start_s) for end, one in zip(gaps, speech.alignment, strict=False) if one.start_s - end > 0.1]
    assert all(level_db(speech, start_s + 0.02, end_s - 0.02) < loud - 25 for start_s, end_s in pauses)
    assert text.count(",") + text.count(". ") <= len(pauses)


@needs_espeak
def test_speed_changes_the_length_and_nothing_else():
    first, second = (espeak.speak("A map of Bombay", "en-us+f3", pitch=70, words_per_minute=200) for _ in range(2))
    assert [one.symbol for one in first.alignment] == [one.symbol for one in second.alignment]
    assert [one.start_s for one in first.alignment] == pytest.approx([one.start_s for one in second.alignment], abs=0.02)
    slow = espeak.speak("A map of Bombay", "en-us+f3", words_per_minute=120)
    assert slow.duration_s > 1.3 * first.duration_s
    assert [one.symbol for one in slow.alignment] == [one.symbol for one in first.alignment]


@needs_espeak
def test_a_wav_with_its_alignment(tmp_path):
    out = tmp_path / "speech.wav"
    out.write_bytes(b"old")
    alignment = espeak.synthesise("Bob may map it", "en-us", out)
    with wave.open(str(out)) as file:
        seconds = file.getnframes() / file.getframerate()
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
    assert alignment.end_s == pytest.approx(seconds, abs=0.3)
    assert sum(one.kind == BILABIAL for one in alignment) == 5
    assert os.listdir(tmp_path) == ["speech.wav"]


@needs_espeak
@pytest.mark.parametrize(
    ("text", "voice", "word"), [("", "en", "no text"), ("a", "xx", "no voice 'xx'"), ("a", "en+nobody", "en[+]nobody")]
)
def test_what_cannot_be_spoken(tmp_path, text, voice, word):
    with pytest.raises(PhonemesError, match=word):
        espeak.synthesise(text, voice, tmp_path / "s.wav")
    assert os.listdir(tmp_path) == []


def test_without_the_program_the_fix_is_named(monkeypatch):
    def missing(name):
        raise OSError("cannot open shared object file")

    # Past the cache, which keeps the real one: the library must not be initialised twice.
    monkeypatch.setattr(espeak, "_espeak", espeak._espeak.__wrapped__)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(PhonemesError, match="install espeak-ng") as error:
        espeak.speak("a map")
    assert "\n" not in str(error.value)
    assert not espeak.can_synthesise()


# -------------------------------------------------------------------------------------------------- speech to train on


def test_recipes_keep_what_is_held_out_apart():
    from lipdub.train import synthetic_speech as made

    random = np.random.default_rng(1)
    recipes = [made.draw_recipe(random) for _ in range(600)]
    groups = {held: [one for one in recipes if one.held_out == held] for held in (made.TRAIN, made.UNSEEN_WORDS, made.UNSEEN_VOICE)}
    assert all(len(group) > 15 for group in groups.values())

    def words(held: int) -> set[str]:
        return {word.strip(",.?!") for one in groups[held] for word in one.text.split()}

    assert not words(made.TRAIN) & (words(made.UNSEEN_WORDS) | words(made.UNSEEN_VOICE))
    assert {one.variant for one in groups[made.UNSEEN_VOICE]} == set(made.HELD_OUT_VARIANTS)
    assert not {one.variant for one in groups[made.TRAIN] + groups[made.UNSEEN_WORDS]} & set(made.HELD_OUT_VARIANTS)
    assert recipes[:20] == [made.draw_recipe(again) for again in [np.random.default_rng(1)] for _ in range(20)]


@needs_espeak
def test_speech_to_train_on(tmp_path):
    from lipdub.speech.mel import SILENCE as QUIET
    from lipdub.train import synthetic_speech as made

    out = tmp_path / "speech.npz"
    count = made.generate(out, minutes=0.4, seed=3)
    assert os.listdir(tmp_path) == ["speech.npz"]
    with np.load(out, allow_pickle=False) as data:
        first, kind, mel = data["first"], data["kind"], data["mel"].astype(np.float32)
        assert mel.shape == (first[-1], 80)
        assert mel.dtype == np.float32
        assert data["mel"].dtype == np.float16
        assert len(kind) == len(data["symbol"]) == len(mel)
        assert len(first) == count + 1 == len(data["text"]) + 1 == len(data["held_out"]) + 1
        assert (np.diff(first) > 0).all()
        assert tuple(data["classes"]) == CLASSES
        assert {classes_of(str(symbol))[0] for symbol in data["symbols"]} >= {SILENCE, BILABIAL}
        starts = [kind[at] for at in first[:-1]] + [kind[at - 1] for at in first[1:]]
        assert set(starts) == {SILENCE}
        assert (mel[first[:-1]] == QUIET).all()
        level = mel.mean(axis=1)
        means = {name: float(level[kind == number].mean()) for number, name in enumerate(CLASSES) if (kind == number).any()}
        assert means["silence"] + 0.7 < means["bilabial"] < means["open"] - 0.5
    with pytest.raises(PhonemesError.__mro__[1], match="--force"):
        made.generate(out, minutes=0.1)
    assert made.main([str(tmp_path / "speech.txt")]) == 1
