"""Every choice of a dub, once: what ``dub`` takes, the commands offer, a manifest has a column for, and a report repeats."""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

Device = Literal["auto", "cpu", "cuda"]
Fit = Literal["longest", "video", "speech"]
Silence = Literal["close", "keep", "off"]
Draw = Literal["auto", "warp", "paint"]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]


def _option(default: Any, help_text: str, *, low: int | None = None, high: int | None = None) -> Any:
    """A field of `DubOptions`. help_text: for the command line. low, high: the least and the largest number that is allowed."""
    return field(default=default, metadata={"help": help_text, "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class DubOptions:
    """How a video is dubbed. A new field here is an option of ``lipdub sync`` and ``lipdub batch``, a column of a manifest, and a line of
    the report; what is left to write is the code that reads it.

    Raises ``ValueError`` for a value that is not one of the choices, or out of range.
    """

    model: str = _option("base", "Model bundle: a name (base) or a folder.")
    device: Device = _option("auto", "cuda fails, rather than falls back, where CUDA does not really load.")
    fit: Fit = _option(
        "longest",
        "longest: nothing of picture and speech is lost (a longer speech plays the picture back and forth, a longer picture goes on "
        "with a resting mouth). video, speech: cut to the one named.",
    )
    silence: Silence = _option(
        "close", "Pauses of the speech: close the mouth, keep the source's own picture, or off (draw what the model hears)."
    )
    draw: Draw = _option(
        "auto",
        "warp: from the person's own mouths in the video, paint: by the network, auto: painted where the video shows too few mouths.",
    )
    keep_original_audio: bool = _option(False, "Keep the video's own sound tracks, too; players begin with the new one.")
    crf: int = _option(12, "Quality of the encoding: lower is better and larger; 0 loses nothing.", low=0, high=51)
    # At crf 12 x264's veryfast keeps the picture as well as medium at 14 does, to a decibel, with a quarter more bytes in 0.4 of the time.
    preset: Preset = _option("veryfast", "Speed of the encoding against size.")
    threads: int | None = _option(None, "Processor threads of the networks; all cores by default.", low=1, high=1024)
    strict: bool = _option(False, "Fail if any frame cannot be dubbed, instead of passing it through.")
    force: bool = _option(False, "Replace the output if it exists.")
    full_size: bool = _option(False, "Keep the size of a photo above 4 megapixels, which is scaled to fit 1920 x 1920 px otherwise.")

    def __post_init__(self) -> None:
        for option in dub_options():
            option.check(getattr(self, option.name))


@dataclass(frozen=True, slots=True)
class DubOption:
    """One field of `DubOptions`. kind: str, int or bool. optional: None is a value, too. choices: all that there are, empty for any."""

    name: str
    kind: type
    default: Any
    help: str
    optional: bool = False
    choices: tuple[str, ...] = ()
    low: int | None = None
    high: int | None = None

    def check(self, value: object) -> None:
        """Raise ``ValueError`` unless `value` may stand in the field."""
        if value is None and self.optional:
            return
        if type(value) is not self.kind:
            raise ValueError(f"{self.name} must be of type {self.kind.__name__}, got {value!r}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}, got '{value}'")
        if self.low is not None and self.high is not None and not self.low <= int(str(value)) <= self.high:
            raise ValueError(f"{self.name} must be a whole number from {self.low} to {self.high}, got '{value}'")

    def parse(self, text: str) -> Any:
        """The value that a cell of a manifest stands for. Raises ``ValueError``: it stands for none."""
        value: Any = text
        if self.kind is bool:
            if (value := text.upper() in _TRUE) == (text.upper() in _FALSE):
                raise ValueError(f"{self.name} must be true or false (or yes, no, 1, 0), got '{text}'")
        elif self.kind is int:
            # A spreadsheet may show decimals, with a point or a comma.
            if not (whole := re.fullmatch(r"([0-9]{1,6})(?:[.,]0+)?", text)):
                raise ValueError(f"{self.name} must be a whole number from {self.low} to {self.high}, got '{text}'")
            value = int(whole[1])
        self.check(value)
        return value


_TRUE = frozenset(
    ("1", "YES", "TRUE", "WAHR", "VRAI", "VERDADERO", "VERO", "VERDADEIRO", "WAAR", "SANT", "SAND", "SANN", "TOSI", "PRAWDA", "PRAVDA",
     "IGAZ", "ИСТИНА", "ІСТИНА", "DOĞRU", "CERT", "ADEVĂRAT")
)  # fmt: skip
_FALSE = frozenset(
    ("0", "NO", "FALSE", "FALSCH", "FAUX", "FALSO", "ONWAAR", "FALSKT", "FALSK", "USANN", "EPÄTOSI", "FAŁSZ", "NEPRAVDA", "HAMIS", "ЛОЖЬ",
     "ХИБНІСТЬ", "YANLIŞ", "FALS")
)  # fmt: skip
"""What Excel and LibreOffice write for true and false, by the language that they run in."""


def dub_options() -> tuple[DubOption, ...]:
    """The fields of `DubOptions` in their order."""
    return _OPTIONS


def _described(of: Field[Any], hint: Any) -> DubOption:
    choices = get_args(hint) if get_args(hint) and all(isinstance(choice, str) for choice in get_args(hint)) else ()
    optional = type(None) in get_args(hint)
    kind = str if choices else next((part for part in get_args(hint) if part is not type(None)), hint)
    return DubOption(of.name, kind, of.default, of.metadata["help"], optional, choices, of.metadata["low"], of.metadata["high"])


_OPTIONS = tuple(_described(of, get_type_hints(DubOptions)[of.name]) for of in fields(DubOptions))
