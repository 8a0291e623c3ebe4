"""Synthetic speech whose phonemes are known: espeak-ng's C library tells of each as it speaks it.

Those events are not boundaries as a phonetician would set them; `_boundaries` says how they differ and puts that right from the sound.
"""

# ruff: noqa: RUF001 -- letters of IPA look like others
from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import sys
import threading
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.atomic import whole_file
from lipdub.errors import PhonemesError
from lipdub.phonetics.alignment import Alignment, Phoneme
from lipdub.phonetics.classes import SILENCE, classes_of, is_vowel

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
                after_vowel = found and is_vowel(classes_of(found[-1][2])[1]) and _first_letter(symbol) in _VOICELESS
                begins = max(start - closure, hushed if quiet == start and after_vowel else quiet)
            if found:
                before = found[-1]
                if is_vowel(kind) and last != SILENCE and _first_letter(before[2]) in _LATE and quiet == start:
                    begins = _rise(samples, max(before[0] + rate_hz // 50, start - round(_ONSET_REACH_S * rate_hz)), start, rate_hz)
                begins = max(begins, before[0] + 1)
                sounds_until = min(quiet, begins) if begins - quiet > gap or last == SILENCE else begins
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
