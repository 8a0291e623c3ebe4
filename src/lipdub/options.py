"""Every choice of a dub, once: what ``dub`` takes, the commands offer, a manifest has a column for, and a report repeats."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from lipdub.times import Cues, parsed_ranges, seconds_of

Device = Literal["auto", "cpu", "cuda"]
Fit = Literal["longest", "video", "speech", "stretch"]
Silence = Literal["close", "keep", "off"]
Draw = Literal["auto", "warp", "paint"]
Group = Literal["Faces", "Time", "Sound", "Look", "Output"]
Encoder = Literal["auto", "libx264", "libx265", "libsvtav1", "libvpx-vp9", "h264_nvenc", "hevc_nvenc", "h264_videotoolbox"]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]

Put = Callable[[str], str]
Places = Callable[[str, Put], str]
"""A value of an option that names files, with each name put through a function."""

_MOST_DB = 60.0
_MOST_LETTERS = 80


def _option(
    default: Any, help_text: str, *, group: Group, low: float | None = None, high: float | None = None,
    places: Places | None = None, check: Callable[[str], object] | None = None,
) -> Any:  # fmt: skip
    """A field of `DubOptions`; see `DubOption`. help_text: for the command line."""
    told = {"help": help_text, "group": group, "low": low, "high": high, "places": places, "check": check}
    return field(default=default, metadata=told)


def is_picture(text: str) -> bool:
    """Whether `text` names a picture of a face rather than a number or a place."""
    return text.strip().lower().endswith((".png", ".jpg", ".jpeg", ".webp"))


@dataclass(frozen=True, slots=True)
class FaceChoice:
    """Which face of a video is meant: a number as ``lipdub faces`` gives them, from 1, a place in the picture at a time, or who is largest
    in a picture."""

    number: int | None = None
    place_px: tuple[int, int] = (0, 0)
    at_s: float = 0.0
    picture: str | None = None

    @classmethod
    def of(cls, text: str) -> FaceChoice:
        """``2``, ``640,360@12.5``, or ``anna.png``. Raises ``ValueError``: none of these."""
        if found := re.fullmatch(r"(\d{1,5}),(\d{1,5})@(.+)", text.strip()):
            return cls(None, (int(found[1]), int(found[2])), seconds_of(found[3]))
        if re.fullmatch(r"[1-9]\d{0,3}", text.strip()):
            return cls(int(text))
        if is_picture(text):
            return cls(picture=text.strip())
        raise ValueError(f"face is a number from lipdub faces, a place and a time such as 640,360@12.5, or a picture, got '{text}'")


@dataclass(frozen=True, slots=True)
class FaceLimits:
    """Which faces can be dubbed. min_height_px: None for a share of the picture, 40 px at least. max_yaw_deg: turned to a side."""

    min_height_px: int | None = None
    max_yaw_deg: float = 50.0


def _check_label(text: str) -> None:
    if not text.strip() or not text.isprintable() or len(text) > _MOST_LETTERS:
        raise ValueError(f"label is one line of at most {_MOST_LETTERS} letters, got {text!r}")


def _check_ranges(text: str) -> None:
    for part in text.split(";"):
        if Cues.of(part) is None:
            parsed_ranges(part)


def _pictured(text: str, put: Put) -> str:
    return put(text.strip()) if is_picture(text) else text


def _whole(text: str, put: Put) -> str:
    return put(text)


def _cue_files(text: str, put: Put) -> str:
    pairs = ((part, Cues.of(part)) for part in text.split(";"))
    return ";".join(part if cues is None else put(cues.path) + part.strip()[len(cues.path) :] for part, cues in pairs)


@dataclass(frozen=True, slots=True)
class Mix:
    """What is laid under the speech: a file with sound, and by how many dB its level is changed."""

    path: str
    gain_db: float = 0.0

    @classmethod
    def of(cls, text: str) -> Mix:
        """``FILE`` or ``FILE:-12``. Raises ``ValueError``: more than 60 dB either way."""
        found = re.fullmatch(r"(.+):([+-]?\d{1,3}(?:\.\d{1,3})?)", text)
        if found is None:
            return cls(text)
        if abs(gain_db := float(found[2])) > _MOST_DB:
            raise ValueError(f"mix changes the level by {_MOST_DB:g} dB at most, got {found[2]}")
        return cls(found[1], gain_db)


def _mixed(text: str, put: Put) -> str:
    path = Mix.of(text).path
    return put(path) + text[len(path) :]


@dataclass(frozen=True, slots=True)
class Voice:
    """Whose lips move by which speech. face: None for the most prominent one."""

    face: FaceChoice | None
    speech: str

    @classmethod
    def others(cls, text: str) -> tuple[Voice, ...]:
        """``2=anna.wav``, or several with ``;`` between them. Raises ``ValueError``: anything else."""
        found = [part.partition("=") for part in text.split(";")]
        if not all(equals and speech.strip() for _, equals, speech in found):
            raise ValueError(f"also is FACE=SPEECH, such as 2=anna.wav, with ; between several, got '{text}'")
        return tuple(cls(FaceChoice.of(face), speech.strip()) for face, _, speech in found)


def _also(text: str, put: Put) -> str:
    pairs = (part.partition("=") for part in text.split(";"))
    return ";".join(f"{_pictured(face, put)}={put(speech.strip())}" for face, _, speech in pairs)


@dataclass(frozen=True, slots=True)
class DubOptions:
    """How a video is dubbed. A new field here is an option of ``lipdub sync`` and ``lipdub batch``, a column of a manifest, and a line of
    the report; what is left to write is the code that reads it.

    Raises ``ValueError`` for a value that is not one of the choices, or out of range.
    """

    model: str = _option("base", "Model bundle: a name (base) or a folder.", group="Output", places=_whole)
    device: Device = _option("auto", "cuda fails, rather than falls back, where CUDA does not really load.", group="Output")
    fit: Fit = _option(
        "longest",
        "longest: nothing of picture and speech is lost (a longer speech plays the picture back and forth, a longer picture goes on "
        "with a resting mouth). video, speech: cut to the one named. stretch: longest, but the speech is first spoken up to 15 % faster or "
        "slower, at its own pitch, to last as long as the picture.",
        group="Time",
    )
    silence: Silence = _option(
        "close",
        "Pauses of the speech: close the mouth, keep the source's own picture, or off (draw what the model hears).",
        group="Look",
    )
    draw: Draw = _option(
        "auto",
        "warp: from the person's own mouths in the video, paint: what lies between the lips by the network, auto: painted where the video "
        "shows too few mouths.",
        group="Look",
    )
    keep_original_audio: bool = _option(False, "Keep the video's own sound tracks, too; players begin with the new one.", group="Sound")
    crf: int = _option(12, "Quality of the encoding: lower is better and larger; 0 loses nothing.", group="Output", low=0, high=51)
    # At crf 12 x264's veryfast keeps the picture as well as medium at 14 does, to a decibel, with a quarter more bytes in 0.4 of the time.
    preset: Preset = _option("veryfast", "Speed of the encoding against size.", group="Output")
    threads: int | None = _option(None, "Processor threads of the networks; all cores by default.", group="Output", low=1, high=1024)
    strict: bool = _option(False, "Fail if any frame cannot be dubbed, instead of passing it through.", group="Output")
    force: bool = _option(False, "Replace the output if it exists.", group="Output")
    full_size: bool = _option(
        False, "Keep the size of a photo above 4 megapixels, which is scaled to fit 1920 x 1920 px otherwise.", group="Output"
    )
    credentials: str | None = _option(
        None,
        "Sign the output with C2PA Content Credentials, which say that its lips were generated: a .pem file with your private key and its "
        "certificates. Needs lipdub\\[c2pa]; .mp4 and .mov.",
        group="Output",
        places=_whole,
    )
    encoder: Encoder = _option(
        "auto",
        "Encoder of the pictures. auto: H.264 by x264, in .webm VP9; of videos with more than 8 bits a colour, HEVC by x265 with 10, in "
        ".webm VP9 or AV1. libx265 and libsvtav1 make smaller files; nvenc and videotoolbox encode on an NVIDIA card and on a Mac.",
        group="Output",
    )
    side_by_side: bool = _option(False, "Show the source on the left and the dub on the right of one video.", group="Output")
    references: str | None = _option(
        None, "More footage of the same person, a video or a folder of them, whose mouths may be drawn, too.", group="Look", places=_whole
    )
    face: str | None = _option(
        None,
        "Who is dubbed: a number that lipdub faces shows, a place in px and a time, 640,360@12.5, or a picture cut out of the video, "
        "anna.png. By default the largest face of each shot.",
        group="Faces",
        places=_pictured,
        check=FaceChoice.of,
    )
    also: str | None = _option(
        None,
        "Others who are dubbed in the same pass, each by a speech of their own: FACE=SPEECH, such as 2=anna.wav; with ; between several.",
        group="Faces",
        places=_also,
        check=Voice.others,
    )
    min_face: int | None = _option(
        None, "Leave faces alone that are lower than this, px; by default 7.5 % of the picture's shorter side, 40 to 80 px.", group="Faces",
        low=20, high=10_000,
    )  # fmt: skip
    max_yaw: float = _option(50.0, "Leave faces alone that are turned to a side by more degrees.", group="Faces", low=0.0, high=90.0)
    style: str | None = _option(
        None, "Open the mouth as far as in this other video, of the person or somebody else; where mouths are drawn from the video's own.",
        group="Look", places=_whole,
    )  # fmt: skip
    strength: float = _option(
        1.0, "How far the lips move: 0 keeps them shut, 1 moves them as heard, 1.5 half as far again.", group="Look", low=0.0, high=1.5
    )
    label: str | None = _option(
        None, "Write this on every frame, such as 'Dubbed by AI': some countries ask for a visible label.", group="Look", check=_check_label
    )
    ranges: str | None = _option(
        None,
        "Redraw these times of the video alone, such as 0:05-0:12,1:00- or the cues of an .srt or .vtt file, those of one speaker by "
        "talk.vtt#Anna; the rest stays as it is. Where several people are dubbed: for all of them, or with ; between for each.",
        group="Time",
        places=_cue_files,
        check=_check_ranges,
    )
    only_when_speaking: bool = _option(
        False, "Redraw only while the lips of the source move or the speech sounds; all else stays as it is.", group="Time"
    )
    copy_outside: bool = _option(
        False,
        "Copy pictures as the video has them coded, not encode them again, where nothing is redrawn from one key frame to the next: "
        "faster, and bit for bit. H.264 to .mp4, .mov or .mkv.",
        group="Output",
    )
    offset_ms: int = _option(
        0, "Begin the speech so much later, lips and sound; below 0 earlier.", group="Sound", low=-600_000, high=600_000
    )
    driver: str | None = _option(
        None, "Move the lips by this sound, such as the clean voice; SPEECH is what is heard.", group="Sound", places=_whole
    )
    loudness: float | None = _option(
        None, "Bring the sound of the output to this loudness, LUFS by EBU R128: -16 for the web, -23 for television.", group="Sound",
        low=-40.0, high=-5.0,
    )  # fmt: skip
    mix: str | None = _option(
        None,
        "Music or effects to lay under the speech: a file, or FILE:-12 to change its level by so many dB.",
        group="Sound",
        places=_mixed,
        check=Mix.of,
    )
    lips: str | None = _option(
        None,
        "Move the lips as this .csv or .json says at the times that it has, else as heard: curves that lipdub lips wrote of SPEECH and you "
        "changed. Where mouths are drawn from the video's own.",
        group="Look",
        places=_whole,
    )

    def __post_init__(self) -> None:
        for option in dub_options():
            option.check(getattr(self, option.name))
        ranges, people = 1 + (self.ranges or "").count(";"), 1 if self.also is None else 1 + len(Voice.others(self.also))
        if ranges not in (1, people):
            raise ValueError(f"ranges are for everybody, or one for each who is dubbed, got {ranges} for {people}")

    @property
    def files(self) -> tuple[str, ...]:
        """The files and folders that are named, but for the model."""
        return tuple(path for option in dub_options() if option.name != "model" for path in option.paths(getattr(self, option.name)))

    @property
    def limits(self) -> FaceLimits:
        """Which faces are dubbed."""
        return FaceLimits(self.min_face, float(self.max_yaw))


@dataclass(frozen=True, slots=True)
class DubOption:
    """One field of `DubOptions`. kind: str, int, float or bool. group: heading in ``--help``. optional: None is a value, too. choices: all
    that there are, empty for any. low, high: the least and the largest number. places: finds the files that a text names. check_text:
    raises ``ValueError`` for a text that means nothing."""

    name: str
    kind: type
    default: Any
    help: str
    group: Group
    optional: bool = False
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    places: Places | None = None
    check_text: Callable[[str], object] | None = None

    def check(self, value: object) -> None:
        """Raise ``ValueError`` unless `value` may stand in the field."""
        if value is None and self.optional:
            return
        if type(value) is not self.kind and not (self.kind is float and type(value) is int):
            raise ValueError(f"{self.name} must be of type {self.kind.__name__}, got {value!r}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}, got '{value}'")
        if self.low is not None and self.high is not None and not self.low <= float(str(value)) <= self.high:
            raise ValueError(f"{self.name} must be {self._number} from {self.low:g} to {self.high:g}, got '{value}'")
        if self.check_text is not None:
            self.check_text(str(value))

    def paths(self, value: object) -> tuple[str, ...]:
        """The files and folders that this value of the option names."""
        found: list[str] = []

        def seen(path: str) -> str:
            found.append(path)
            return path

        if self.places is not None and isinstance(value, str):
            self.places(value, seen)
        return tuple(found)

    def with_paths(self, value: str, put: Put) -> str:
        """The value with each path in it put through a function."""
        return value if self.places is None else self.places(value, put)

    def parse(self, text: str) -> Any:
        """The value that a cell of a manifest stands for. Raises ``ValueError``: it stands for none."""
        value: Any = text
        if self.kind is bool:
            if (value := text.upper() in _TRUE) == (text.upper() in _FALSE):
                raise ValueError(f"{self.name} must be true or false (or yes, no, 1, 0), got '{text}'")
        elif self.kind is int:
            # A spreadsheet may show decimals, with a point or a comma.
            if not (whole := re.fullmatch(r"(-?[0-9]{1,6})(?:[.,]0+)?", text)):
                raise ValueError(f"{self.name} must be {self._number} from {self.low} to {self.high}, got '{text}'")
            value = int(whole[1])
        elif self.kind is float:
            if not re.fullmatch(r"-?[0-9]{1,6}(?:[.,][0-9]{1,6})?", text):
                raise ValueError(f"{self.name} must be {self._number} from {self.low} to {self.high}, got '{text}'")
            value = float(text.replace(",", "."))
        self.check(value)
        return value

    @property
    def _number(self) -> str:
        return "a whole number" if self.kind is int else "a number"


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
    told = of.metadata
    return DubOption(
        of.name, kind, of.default, told["help"], told["group"], optional, choices, told["low"], told["high"], told["places"], told["check"]
    )


_OPTIONS = tuple(_described(of, get_type_hints(DubOptions)[of.name]) for of in fields(DubOptions))
