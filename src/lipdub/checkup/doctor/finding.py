"""One line of the doctor's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Colour = Literal["green", "yellow", "red"]


@dataclass(frozen=True, slots=True)
class Finding:
    """name: what was looked at. colour: green, good; yellow, works, but could be better; red, lipdub does not work like this. what: what
    was found. fix: what to do about it, one line; every red one has it."""

    name: str
    colour: Colour
    what: str
    fix: str = ""

    def __post_init__(self) -> None:
        for holds, message in (
            (self.name and self.what, "name and what must not be empty"),
            (self.colour in ("green", "yellow", "red"), f"no such colour: {self.colour!r}"),
            (self.colour != "red" or self.fix, f"a red finding says what to do: {self.name}"),
            ("\n" not in self.name + self.what + self.fix, "a finding is one line"),
        ):
            if not holds:
                raise ValueError(message)


def one_line(error: object) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split()) or "without a word"
    return text if len(text) <= 300 else f"{text[:297]}..."


def guarded(name: str, look: Callable[[], Iterable[Finding]], fix: str) -> list[Finding]:
    """What `look` finds. Where it breaks, that is a red finding called `name`, and `fix` is what to do: one thing that is missing must
    not hide the others."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except (Exception, SystemExit) as error:
        found.append(Finding(name, "red", f"{type(error).__name__}: {one_line(error)}", fix))
    return found
