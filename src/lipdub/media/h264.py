"""H.264 as it lies in .mp4 and .mkv: its parameter sets at the head of the stream, and the units that a coded picture is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SLICE_OF_IDR: Final = 5
"""Kind of a unit with a part of a picture from which on nothing before it is needed (ITU-T H.264, table 7-1)."""
PARAMETERS: Final = (7, 8)
"""Kinds of units: the parameter sets of a sequence (SPS) and of pictures (PPS)."""
_MOST_SETS: Final = 31
"""Of an SPS so many can stand at the head of a file, with numbers from 0 to this."""
_BEGINNING: Final = 16
"""Bytes of a unit that are enough to know it."""


@dataclass(frozen=True, slots=True)
class Head:
    """What stands at the head of a stream (AVCDecoderConfigurationRecord, ISO/IEC 14496-15). profile, compatibility, level: one byte each.
    rest: what the profiles from High on say of chroma and depth, empty where it is left out."""

    profile: int
    compatibility: int
    level: int
    sps: tuple[bytes, ...]
    pps: tuple[bytes, ...]
    rest: bytes = b""

    @classmethod
    def of(cls, data: bytes | None) -> Head:
        """The head that was read from a file. Raises ``ValueError``: it is of another kind, or units have no length of four bytes."""
        if not data or len(data) < 7 or data[0] != 1 or data[4] & 3 != 3:
            raise ValueError("the parameter sets do not stand at the head of the file")
        sps, at = _sets(data, 6, data[5] & 31)
        pps, end = _sets(data, at + 1, int.from_bytes(data[at : at + 1], "big"))
        return cls(data[1], data[2], data[3], sps, pps, data[end:])

    @property
    def written(self) -> bytes:
        """The head as files hold it."""
        sets = b"".join(
            bytes([marks | len(found)]) + b"".join(len(unit).to_bytes(2, "big") + unit for unit in found)
            for marks, found in ((0xE0, self.sps), (0, self.pps))
        )
        return bytes([1, self.profile, self.compatibility, self.level, 0xFF]) + sets + self.rest

    @property
    def free_id(self) -> int | None:
        """The least number that no SPS and no PPS has; None without room for one more SPS. Raises ``ValueError``: one is damaged."""
        taken = {_numbers(unit[4:], 1)[0] for unit in self.sps} | {_numbers(unit[1:], 1)[0] for unit in self.pps}
        if len(self.sps) == _MOST_SETS:
            return None
        return next((one for one in range(_MOST_SETS + 1) if one not in taken), None)

    def joined(self, other: Head) -> Head:
        """The head of a stream in which pictures of both are. Their parameter sets have different numbers."""
        return Head(
            max(self.profile, other.profile), self.compatibility & other.compatibility, max(self.level, other.level),
            self.sps + other.sps, self.pps + other.pps, self.rest or other.rest,
        )  # fmt: skip


def units(picture: memoryview) -> Iterator[bytes]:
    """The beginnings of the units of one coded picture, parameter sets whole. Raises ``ValueError``: it is damaged."""
    at = 0
    while at < len(picture):
        begin = at + 4
        at = begin + int.from_bytes(picture[at:begin], "big")
        if at > len(picture) or at <= begin:
            raise ValueError("a unit of the picture is cut off")
        yield bytes(picture[begin : at if picture[begin] & 31 in PARAMETERS else min(at, begin + _BEGINNING)])


def kind(unit: bytes) -> int:
    """What a unit is."""
    return unit[0] & 31


def parameters_of(unit: bytes) -> int:
    """The number of the PPS by which the slice `unit` is coded. Raises ``ValueError``: it is damaged."""
    return _numbers(unit[1:], 3)[2]


def _sets(data: bytes, at: int, count: int) -> tuple[tuple[bytes, ...], int]:
    """`count` parameter sets from the byte `at` of a head on, and where they end."""
    found = []
    for _ in range(count):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        found.append(data[at + 2 : end])
        at = end
    if not found or min(map(len, found)) < 4 or at > len(data):
        raise ValueError("the parameter sets do not stand at the head of the file")
    return tuple(found), at


def _numbers(data: bytes, count: int) -> list[int]:
    """The first numbers of `data` in Exp-Golomb code (ITU-T H.264, 9.1). Raises ``ValueError``: there are not so many."""
    bits = "".join(f"{byte:08b}" for byte in data[:_BEGINNING].replace(b"\0\0\3", b"\0\0"))
    found, at = [], 0
    for _ in range(count):
        middle = bits.find("1", at)
        if middle < 0:
            raise ValueError("a parameter set is damaged")
        at = 2 * middle - at + 1
        found.append(int(bits[middle:at], 2) - 1)
    return found
