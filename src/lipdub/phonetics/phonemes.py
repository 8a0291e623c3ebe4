"""Phonemes in time: alignments from files, classes by what the lips do, and synthetic speech whose phonemes are known.

An `Alignment` says which phoneme sounds when, in IPA. It is read from CSV or a Praat TextGrid, or comes with speech that
espeak-ng makes: its C library tells of each phoneme as it is synthesised. Those events are not boundaries as a phonetician
would set them; `_boundaries` says how they differ and puts that right from the sound itself.
"""

# ruff: noqa: RUF001 -- letters of IPA look like others
from __future__ import annotations

import csv
import ctypes
import ctypes.util
import os
import re
import shutil
import sys
import threading
import unicodedata
import wave
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.atomic import whole_file
from lipdub.errors import PhonemesError

CLASSES: Final = (
    "silence",
    "bilabial",
    "labiodental",
    "dental",
    "alveolar",
    "sibilant",
    "postalveolar",
    "rhotic",
    "palatal",
    "velar",
    "glottal",
    "close",
    "mid",
    "open",
    "rounded close",
    "rounded mid",
)
"""Phoneme classes by what can be seen; the index in this tuple is the label in training data. Vowels are the last five."""

BILABIAL: Final = CLASSES.index("bilabial")
SILENCE: Final = CLASSES.index("silence")

_IPA: Final = {
    "bilabial": "p b m ɓ ʙ",
    "labiodental": "f v ʋ ɱ β ɸ",  # and the bilabial fricatives: lips that near each other, but do not close
    "dental": "θ ð",
    "alveolar": "t d n l ɾ ɫ ɬ ɮ ʈ ɖ ɳ ɭ ɗ ɺ ɽ",
    "sibilant": "s z",
    "postalveolar": "ʃ ʒ ɕ ʑ ʂ ʐ",
    "rhotic": "r ɹ ɻ ʁ ʀ",
    "palatal": "j ʲ ɲ ç ʎ c ɟ ʝ",
    "velar": "k g ɡ ŋ x ɣ q χ ɰ ɠ ɢ ɴ",
    "glottal": "h ɦ ʔ ħ ʕ",
    "close": "i ɪ ɨ ᵻ",
    "mid": "e ɛ ə ɜ ɝ ɚ ɘ ɤ ɯ",
    "open": "a æ ɑ ɐ ʌ",
    "rounded close": "u ʊ y ʏ ʉ w ʍ ɥ",
    "rounded mid": "o ɔ ø œ ɵ ɒ ɞ ɶ",
}
_CLASS_OF: Final = {letter: CLASSES.index(name) for name, letters in _IPA.items() for letter in letters.split()}
_AFFRICATES: Final = ("tʃ", "dʒ", "ts", "dz", "tɕ", "dʑ", "tʂ", "dʐ", "pf")
"""Two letters, one consonant: what is seen is the second, except that the lips close for the first of "pf"."""
_SILENT: Final = {"", "sil", "sp", "spn", "pau", "nsn", "<eps>", "<p>", "#", "-"}
_ARPABET: Final = {
    "AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "aʊ", "AX": "ə", "AY": "aɪ", "EH": "ɛ", "ER": "ɝ", "EY": "eɪ", "IH": "ɪ",
    "IY": "i", "OW": "oʊ", "OY": "ɔɪ", "UH": "ʊ", "UW": "u", "B": "b", "CH": "tʃ", "D": "d", "DH": "ð", "F": "f", "G": "ɡ",
    "HH": "h", "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t",
    "TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
_ESPEAK: Final = {"@": "ə", "A": "ɑ", "E": "ɛ", "I": "ɪ", "O": "ɔ", "U": "ʊ", "V": "ʌ", "3": "ɜ", "0": "ɒ", "T": "θ", "D": "ð",
                  "S": "ʃ", "Z": "ʒ", "N": "ŋ", "R": "ʁ", "W": "œ", "Y": "ø", "?": "ʔ", "*": "ɾ"}  # fmt: skip
"""espeak's own mnemonics, letter by letter, where they are no IPA."""


def classes_of(symbol: str) -> tuple[int, int]:
    """Class (index into ``CLASSES``) in which a phoneme begins and in which it ends: they differ for diphthongs only.

    symbol: IPA, with or without stress, length and other marks; espeak's mnemonics are understood, too. What is unknown counts as
    silence only where it holds no letter at all. Raises PhonemesError for a symbol with letters none of which is known.
    """
    # espeak says "(en)" where it switches to the rules of another language.
    if symbol.strip().lower() in _SILENT or symbol.startswith("(") or not any(letter.isalnum() or letter in _ESPEAK for letter in symbol):
        return SILENCE, SILENCE
    letters = [_ESPEAK.get(letter, letter) for letter in symbol]
    known = "".join(letter for letter in letters if letter in _CLASS_OF)
    if not known:
        raise PhonemesError(f"unknown phoneme {symbol!r}; phonemes are given in IPA or ARPABET")
    first = _CLASS_OF[known[0]]
    for pair in _AFFRICATES:
        if known.startswith(pair):
            first = _CLASS_OF["p"] if pair == "pf" else _CLASS_OF[pair[1]]
            return first, first
    vowels = [_CLASS_OF[letter] for letter in known if _is_vowel(_CLASS_OF[letter])]
    return (first, vowels[-1]) if _is_vowel(first) else (first, first)


_XSAMPA: Final = {
    "ɓ": "b_<", "ʋ": "P", "ɱ": "F", "β": "B", "ɸ": "p\\", "θ": "T", "ð": "D", "ɾ": "4", "ɫ": "5", "ɬ": "K", "ʃ": "S", "ʒ": "Z",
    "ɕ": "s\\", "ʑ": "z\\", "ʂ": "s`", "ʐ": "z`", "ɹ": "r", "ɻ": "r`", "ʁ": "R", "ʀ": "R\\", "ɲ": "J", "ç": "C", "ʎ": "L", "ɟ": "J\\",
    "ʝ": "j\\", "ŋ": "N", "ɡ": "g", "ɣ": "G", "χ": "X", "ɦ": "h\\", "ʔ": "?", "ɪ": "I", "ɨ": "1", "ᵻ": "1", "ɛ": "E", "ə": "@",
    "ɜ": "3", "ɝ": "3`", "ɚ": "@`", "ɘ": "@\\", "ɤ": "7", "ɯ": "M", "æ": "{", "ɑ": "A", "ɐ": "6", "ʌ": "V", "ʊ": "U", "ʏ": "Y",
    "ʉ": "}", "ʍ": "W", "ɥ": "H", "ɔ": "O", "ø": "2", "œ": "9", "ɵ": "8", "ɒ": "Q", "ɶ": "&", "ː": ":", "ʲ": "'",
    "ʙ": "B\\", "ɮ": "K\\", "ʈ": "t`", "ɖ": "d`", "ɳ": "n`", "ɭ": "l`", "ɗ": "d_<", "ɺ": "l\\", "ɽ": "r`", "ɰ": "M\\", "ɠ": "g_<",
    "ɢ": "G\\", "ɴ": "N\\", "ħ": "X\\", "ʕ": "?\\", "ɞ": "3\\",
}  # fmt: skip


def to_ascii(symbol: str) -> str:
    """An IPA symbol in X-SAMPA (with a plain r), for pictures whose font holds nothing but ASCII; unknown marks are left out."""
    letters = (_XSAMPA.get(letter, letter) for letter in unicodedata.normalize("NFD", symbol.replace("ç", "C")))
    return "".join(letter for letter in letters if letter.isascii())


def _is_vowel(number: int) -> bool:
    return number >= CLASSES.index("close")


@dataclass(frozen=True, slots=True)
class Phoneme:
    """One phoneme: seconds from the start of the sound, half-open; symbol in IPA, empty for silence."""

    start_s: float
    end_s: float
    symbol: str

    def __post_init__(self) -> None:
        if not (0 <= self.start_s < self.end_s < float("inf")):
            raise ValueError(f"a phoneme must have a start and a later end, got {self.start_s} to {self.end_s} s for {self.symbol!r}")

    @property
    def kind(self) -> int:
        """Its class, an index into ``CLASSES``; for a diphthong that of its first part."""
        return classes_of(self.symbol)[0]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Phonemes of one sound in order, not overlapping; what lies between and around them is silence."""

    phonemes: tuple[Phoneme, ...]

    def __post_init__(self) -> None:
        for before, after in pairwise(self.phonemes):
            if after.start_s < before.end_s - 1e-6:
                raise ValueError(f"phonemes must not overlap: {before} and {after}")

    def __len__(self) -> int:
        return len(self.phonemes)

    def __iter__(self) -> Iterator[Phoneme]:
        return iter(self.phonemes)

    @property
    def end_s(self) -> float:
        """When the last phoneme ends, seconds; 0 without any."""
        return self.phonemes[-1].end_s if self.phonemes else 0.0

    def index_at(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number of the phoneme that sounds at each time, -1 where none does. int64, the shape of `times_s`."""
        starts = [phoneme.start_s for phoneme in self.phonemes]
        found = np.array([bisect_right(starts, float(time)) - 1 for time in times_s], np.int64)
        ends = np.array([phoneme.end_s for phoneme in self.phonemes] or [0.0])
        return np.where((found >= 0) & (np.asarray(times_s) < ends[np.maximum(found, 0)]), found, -1)

    def classes_at(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Class at each time, int64 indices into ``CLASSES``. A diphthong has its first class for one half and its last for the other."""
        classes = np.full(len(times_s), SILENCE, np.int64)
        for at, number in enumerate(self.index_at(times_s)):
            if number >= 0:
                phoneme = self.phonemes[number]
                first, last = classes_of(phoneme.symbol)
                classes[at] = first if times_s[at] < (phoneme.start_s + phoneme.end_s) / 2 else last
        return classes

    def spans_of(self, kind: int) -> list[tuple[float, float]]:
        """(start_s, end_s) of every phoneme of a class; neighbours of that class (as in "top part") are one span."""
        spans: list[tuple[float, float]] = []
        for phoneme in self.phonemes:
            if phoneme.kind == kind:
                if spans and phoneme.start_s - spans[-1][1] < 1e-6:
                    spans[-1] = (spans[-1][0], phoneme.end_s)
                else:
                    spans.append((phoneme.start_s, phoneme.end_s))
        return spans


# ------------------------------------------------------------------------------------------------------------ files


def read_alignment(file: Path) -> Alignment:
    """The alignment in a Praat TextGrid (its tier ``phones`` or ``phonemes``, else the only one of intervals), or in a CSV with
    the columns ``start_s, end_s, phoneme``. Symbols in IPA or ARPABET.

    Raises PhonemesError: no such file, another format, spans that overlap or run backwards, unknown symbols.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise PhonemesError(f"cannot read the alignment '{file}': {error.strerror}; check the path") from error
    text = _decoded(raw, file)
    try:
        rows = _textgrid_rows(text) if "ooTextFile" in text[:200] or file.suffix.lower() == ".textgrid" else _csv_rows(text)
        arpabet = all(re.sub(r"\d$", "", symbol) in _ARPABET for _, _, symbol in rows if not _is_silence(symbol))
        phonemes = []
        for start_s, end_s, symbol in rows:
            if not _is_silence(symbol):
                classes_of(symbol if not arpabet else "a")
                phonemes.append(Phoneme(start_s, end_s, _ARPABET[re.sub(r"\d$", "", symbol)] if arpabet else symbol))
        alignment = Alignment(tuple(sorted(phonemes, key=lambda one: one.start_s)))
    except (ValueError, PhonemesError) as error:
        raise PhonemesError(f"'{file}' holds no alignment: {error}") from error
    if not phonemes:
        raise PhonemesError(f"'{file}' holds no phoneme; give a TextGrid, or a CSV with the columns start_s, end_s, phoneme")
    return alignment


def _decoded(raw: bytes, file: Path) -> str:
    for encoding in ("utf-16",) if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            raise PhonemesError(f"cannot read the alignment '{file}': not UTF-8; save it as UTF-8") from error
    raise AssertionError


def _is_silence(symbol: str) -> bool:
    return symbol.strip().lower() in _SILENT


def _csv_rows(text: str) -> list[tuple[float, float, str]]:
    reader = csv.DictReader(text.splitlines())
    missing = {"start_s", "end_s", "phoneme"} - set(reader.fieldnames or ())
    if missing:
        names = ", ".join(sorted(missing))
        raise ValueError(f"column {names} is missing; give a TextGrid, or a CSV with the columns start_s, end_s, phoneme")
    rows = []
    for number, row in enumerate(reader, start=2):
        try:
            rows.append((float(row["start_s"]), float(row["end_s"]), (row["phoneme"] or "").strip()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"line {number}: start_s and end_s must be numbers of seconds") from error
    return rows


_TOKEN: Final = re.compile(r'"(?:[^"]|"")*"|<exists>|(?<![\w\[])[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w\]])')


def _textgrid_rows(text: str) -> list[tuple[float, float, str]]:
    """Intervals of the phoneme tier of a TextGrid, long or short form: both are the same strings and numbers in the same order."""
    tokens = _TOKEN.findall(text)
    at = tokens.index("<exists>") + 2 if "<exists>" in tokens else -1  # then the number of tiers
    if at < 0:
        raise ValueError("the TextGrid has no tiers")
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    try:
        while at < len(tokens):
            kind, name, count = tokens[at].strip('"'), tokens[at + 1].strip('"'), int(tokens[at + 4])
            at += 5
            width = 3 if kind == "IntervalTier" else 2
            if kind == "IntervalTier":
                entries = [tokens[at + width * number : at + width * (number + 1)] for number in range(count)]
                tiers[name] = [(float(start), float(end), label[1:-1].replace('""', '"').strip()) for start, end, label in entries]
            at += width * count
    except (IndexError, ValueError) as error:
        raise ValueError("the TextGrid is cut off or damaged") from error
    named = [name for name in tiers if name.lower().split(" ")[-1] in ("phones", "phonemes", "phone", "phoneme", "segments")]
    if not named and len(tiers) != 1:
        raise ValueError(f"no tier is named phones; found: {', '.join(tiers) or 'none of intervals'}")
    return tiers[named[0] if named else next(iter(tiers))]


def write_alignment(alignment: Alignment, file: Path) -> None:
    """Write the CSV that `read_alignment` reads. Raises WriteFailed."""
    with whole_file(file) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("start_s", "end_s", "phoneme"))
        writer.writerows((f"{one.start_s:.4f}", f"{one.end_s:.4f}", one.symbol) for one in alignment)


# -------------------------------------------------------------------------------------------------------- espeak-ng

FIX: Final = "install espeak-ng (apt install espeak-ng, brew install espeak-ng, or its installer for Windows)"
_RETRIEVAL: Final = 1
_PHONEME_EVENTS, _IPA_SYMBOLS, _DO_NOT_EXIT = 0x0001, 0x0002, 0x8000
_UTF8, _PHONEME_INPUT = 1, 0x100
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LAST_EVENT, _PHONEME_EVENT = 0, 7
_CLOSURE_LONGEST_S: Final = 0.08
"""A closure longer than this (at the start of an utterance, after a pause) is taken for this long; the rest is silence."""
_GAP_LONGEST_S: Final = 0.05
_ONSET_REACH_S: Final = 0.06
_NASALS: Final = frozenset("mnŋɲ")
_LATE: Final = _NASALS | frozenset("lɫʎrɹɾɻʁjw")
"""Nasals and liquids: a vowel after them is announced late."""
_STOPS: Final = frozenset("pbtdkgɡʔʈɖcɟq")
_VOICELESS: Final = frozenset("ptkcqʈ")
_QUIET_DB: Final = -31.0
_HUSHED_DB: Final = -14.0
"""A vowel's echo in the closure of a voiceless stop that follows it lies below this."""


class _Identity(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """``espeak_EVENT`` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identity),
    )


class _Voice(ctypes.Structure):
    """The beginning of ``espeak_VOICE``. languages: one byte of priority, then the first language's name."""

    _fields_ = (("name", ctypes.c_char_p), ("languages", ctypes.c_char_p), ("identifier", ctypes.c_char_p))


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, slots=True, repr=False)
class Speech:
    """Synthetic speech. samples: float32 (n,), mono, [-1, 1]. alignment: its phonemes, in IPA."""

    samples: NDArray[np.float32]
    sample_rate_hz: int
    alignment: Alignment

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate_hz


class _Espeak:
    """The C library: one synthesiser per process, so callers take turns. It hangs when it is initialised twice."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._turn = threading.Lock()
        self._blocks: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, str]] = []
        self.sample_rate_hz = int(library.espeak_Initialize(_RETRIEVAL, 0, None, _PHONEME_EVENTS | _IPA_SYMBOLS | _DO_NOT_EXIT))
        if self.sample_rate_hz <= 0:
            raise PhonemesError(f"espeak-ng does not start (its data are missing); {FIX} again")
        self._callback = _Callback(self._receive)  # kept: the library holds no reference to it
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        library.espeak_Info.restype = ctypes.c_char_p
        data = ctypes.c_char_p()
        library.espeak_Info(ctypes.byref(data))
        self._variants = Path(os.fsdecode(data.value or b"")) / "voices" / "!v"
        self._files: dict[str, str] = {}
        listed = library.espeak_ListVoices(None)
        at = 0
        while listed[at]:
            voice = listed[at].contents
            self._files.setdefault(voice.languages[1:].decode(errors="replace"), voice.identifier.decode(errors="replace"))
            at += 1

    def _choose(self, voice: str) -> None:
        """Make `voice` (``en-gb+f2``) the one that speaks. The library takes an unknown variant for none, without a word."""
        language, plus, variant = voice.partition("+")
        named = "/" not in variant and variant not in ("", ".", "..") and (self._variants / variant).is_file()
        names = [f"{file}{plus}{variant}".encode() for file in (language, self._files.get(language, language))]
        if (plus and not named) or all(self._library.espeak_SetVoiceByName(name) != 0 for name in names):
            raise PhonemesError(f"espeak-ng has no voice {voice!r}; list them with: espeak-ng --voices, and --voices=variant")

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0 and samples:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        at = 0
        while events[at].type != _LAST_EVENT:
            if events[at].type == _PHONEME_EVENT:
                raw = ctypes.string_at(ctypes.addressof(events[at].id), 8).split(b"\0")[0]
                self._events.append((int(events[at].sample), raw.decode("utf-8", errors="ignore")))
            at += 1
        return 0

    def speak(
        self, text: str, voice: str, words_per_minute: int, pitch: int, pitch_range: int
    ) -> tuple[NDArray[np.int16], list[tuple[int, str]]]:
        """Samples, and (sample at which it was announced, IPA) of each phoneme."""
        with self._turn:
            self._choose(voice)
            for parameter, value in ((_RATE, words_per_minute), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, pitch_range)):
                self._library.espeak_SetParameter(parameter, value, 0)
            self._blocks.clear()
            self._events.clear()
            raw = text.encode()
            code = self._library.espeak_Synth(raw, len(raw) + 1, 0, 0, 0, _UTF8 | _PHONEME_INPUT, None, None)
            if code == 0:
                self._library.espeak_Synchronize()
            if code != 0 or not self._blocks:
                raise PhonemesError(f"espeak-ng did not speak {text[:40]!r} with the voice {voice!r}; give it words of that language")
            return np.concatenate(self._blocks), list(self._events)


@cache
def _espeak() -> _Espeak:
    """The synthesiser. Raises PhonemesError where it is not installed."""
    program = shutil.which("espeak-ng")
    beside = [] if program is None else [Path(program).resolve().parent, Path(program).resolve().parent.parent / "lib"]
    name = {"win32": "libespeak-ng.dll", "darwin": "libespeak-ng.1.dylib"}.get(sys.platform, "libespeak-ng.so.1")
    candidates = [os.environ.get("PHONEMIZER_ESPEAK_LIBRARY"), *(str(folder / name) for folder in beside), name]
    for candidate in (*candidates, ctypes.util.find_library("espeak-ng")):
        if candidate:
            try:
                return _Espeak(ctypes.CDLL(candidate))
            except OSError:
                continue
    raise PhonemesError(f"the speech synthesiser espeak-ng is not there; {FIX}")


def can_synthesise() -> bool:
    """Whether espeak-ng is installed and starts."""
    try:
        _espeak()
    except PhonemesError:
        return False
    return True


def speak(text: str, voice: str = "en-us", *, words_per_minute: int = 160, pitch: int = 50, pitch_range: int = 50) -> Speech:
    """`text` spoken by espeak-ng, with its phonemes in time.

    voice: a language, with a variant after a plus sign: ``en-us+f2``. words_per_minute: 80 to 450. pitch, pitch_range: 0 to 100.
    The same arguments give the same words in the same time, but not the same samples: espeak's voices flutter. Raises
    PhonemesError: espeak-ng or the voice is missing, or nothing was said.
    """
    if not (80 <= words_per_minute <= 450 and 0 <= pitch <= 100 and 0 <= pitch_range <= 100):
        raise ValueError(f"speed must be 80 to 450 and pitches 0 to 100, got {words_per_minute = }, {pitch = }, {pitch_range = }")
    if "\0" in text or not text.strip():
        raise PhonemesError("there is no text to speak")
    synthesiser = _espeak()
    samples, events = synthesiser.speak(text, voice, words_per_minute, pitch, pitch_range)
    alignment = _boundaries(samples, events, synthesiser.sample_rate_hz)
    return Speech((samples / np.float32(32768)).astype(np.float32), synthesiser.sample_rate_hz, alignment)


def synthesise(text: str, voice: str, out: Path, *, words_per_minute: int = 160, pitch: int = 50) -> Alignment:
    """Speak `text` into the WAV file `out` (16 bit, mono, espeak's own rate) and give back its phonemes; see `speak`.

    The file appears when it is complete; an existing one is replaced. Raises PhonemesError, WriteFailed.
    """
    speech = speak(text, voice, words_per_minute=words_per_minute, pitch=pitch)
    with whole_file(out) as part, wave.open(str(part), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(speech.sample_rate_hz)
        file.writeframes(np.rint(speech.samples * 32768).clip(-32768, 32767).astype("<i2").tobytes())
    return speech.alignment


def _boundaries(samples: NDArray[np.int16], events: Sequence[tuple[int, str]], rate_hz: int) -> Alignment:
    """Phonemes from the library's events, whose times are put right where synthesis and announcement differ.

    espeak announces a consonant after the pause that precedes it (``synthesize.c``: DoPause, then the marker), which is the closure
    of a stop; and a vowel after a nasal or liquid only once the transition into it is over. So quiet that ends where a stop or a
    nasal begins is its closure, and such a vowel begins where the level rises most within ``_ONSET_REACH_S`` before its event. A gap
    of up to ``_GAP_LONGEST_S`` before any other phoneme belongs to the one before it; a longer one is a pause.
    """
    places = [at for at, _ in events]
    quiet_from = _quiet_from(samples, places, rate_hz)
    hushed_from = _quiet_from(samples, places, rate_hz, _HUSHED_DB)
    closure, gap = round(_CLOSURE_LONGEST_S * rate_hz), round(_GAP_LONGEST_S * rate_hz)
    found: list[tuple[int, int, str]] = []
    last = SILENCE
    ends = [*(at for at, _ in events[1:]), len(samples)]
    for (start, symbol), quiet, hushed, end in zip(events, quiet_from, hushed_from, ends, strict=False):
        kind = classes_of(symbol)[0]
        if kind != SILENCE and end > start:
            begins = start
            if _first_letter(symbol) in _STOPS or (_first_letter(symbol) in _NASALS and start - quiet <= gap):
                after_vowel = found and _is_vowel(classes_of(found[-1][2])[1]) and _first_letter(symbol) in _VOICELESS
                begins = max(start - closure, hushed if quiet == start and after_vowel else quiet)
            if found:
                before = found[-1]
                if _is_vowel(kind) and last != SILENCE and _first_letter(before[2]) in _LATE and quiet == start:
                    begins = _rise(samples, max(before[0] + rate_hz // 50, start - round(_ONSET_REACH_S * rate_hz)), start, rate_hz)
                begins = max(begins, before[0] + 1)
                sounds_until = quiet if begins - quiet > gap or last == SILENCE else begins
                found[-1] = (before[0], max(before[0] + 1, min(before[1], sounds_until) if last == SILENCE else sounds_until), before[2])
            found.append((begins, end, symbol))
        last = kind
    if found:
        start, end, symbol = found[-1]
        tail = _quiet_from(samples, [end], rate_hz)[0]
        found[-1] = (start, tail if end - tail > gap and tail > start else end, symbol)
    return Alignment(tuple(Phoneme(start / rate_hz, end / rate_hz, symbol) for start, end, symbol in found))


def _first_letter(symbol: str) -> str:
    return symbol.lstrip("ˈˌ")[:1]


def _quiet_from(samples: NDArray[np.int16], places: Sequence[int], rate_hz: int, below_db: float = _QUIET_DB) -> list[int]:
    """For each place (sample) where the quiet that lasts until there began; the place itself where it is not quiet.

    Quiet: the level of 5 ms lies `below_db` from the loud parts of the whole. Variants with an echo have no digital silence.
    """
    step = rate_hz // 200
    power = samples[: len(samples) // step * step].astype(np.float64).reshape(-1, step) ** 2
    level = power.mean(axis=1)
    if len(level) == 0:
        return list(places)
    loud = level > np.quantile(level, 0.95) * 10 ** (below_db / 10)
    blocks = np.flatnonzero(loud)
    found = []
    for place in places:
        # The block in which the phoneme itself begins is not looked at.
        before = blocks[: np.searchsorted(blocks, place // step)]
        began = (int(before[-1]) + 1) * step if len(before) else 0
        found.append(min(began, place) if place - began >= step else place)
    return found


def _rise(samples: NDArray[np.int16], low: int, high: int, rate_hz: int) -> int:
    """Sample in [low, high] where the level of the 20 ms after exceeds that of the 20 ms before most; `high` for an empty range."""
    if low >= high:
        return high
    step, reach = rate_hz // 500, rate_hz // 50
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    places = np.arange(low, high + 1, step)
    after = energy[np.minimum(places + reach, len(samples))] - energy[places]
    before = energy[places] - energy[np.maximum(places - reach, 0)]
    return int(places[np.argmax((after + 1) / (before + 1))])
