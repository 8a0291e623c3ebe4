"""Phonemes by what the lips do: sixteen classes, and the symbols (IPA, ARPABET, espeak's mnemonics) that belong to them."""

# ruff: noqa: RUF001 -- letters of IPA look like others
from __future__ import annotations

from typing import Final

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
ARPABET: Final = {
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
    if is_silence(symbol) or symbol.startswith("(") or not any(letter.isalnum() or letter in _ESPEAK for letter in symbol):
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
    vowels = [_CLASS_OF[letter] for letter in known if is_vowel(_CLASS_OF[letter])]
    return (first, vowels[-1]) if is_vowel(first) else (first, first)


def is_silence(symbol: str) -> bool:
    """Whether a phoneme's symbol is one of those that stand for silence."""
    return symbol.strip().lower() in _SILENT


def is_vowel(number: int) -> bool:
    """Whether the class `number` is one of vowels."""
    return number >= CLASSES.index("close")
