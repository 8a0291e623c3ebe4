"""What a video says of its high dynamic range beside colour tags: out of a picture, and as encoders take it."""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType
from typing import Final

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

from lipdub.records import HdrMetadata, MasteringDisplay

_OTHERS: Final = MappingProxyType(
    {
        SideDataType.DOVI_METADATA: "Dolby Vision",
        SideDataType.DYNAMIC_HDR_PLUS: "HDR10+",
        SideDataType.DYNAMIC_HDR_VIVID: "HDR Vivid",
        SideDataType.AMBIENT_VIEWING_ENVIRONMENT: "ambient viewing environment",
    }
)
"""Kinds of metadata that no encoder takes from PyAV."""
_MOST: Final = 10_000
"""Of PQ, cd/m2: what says more is damaged."""


def hdr_of(frame: av.VideoFrame) -> HdrMetadata:
    """What a decoded picture carries; what is damaged counts as not said."""
    display = np.frombuffer(_side_data(frame, SideDataType.MASTERING_DISPLAY_METADATA), np.int32)
    light = np.frombuffer(_side_data(frame, SideDataType.CONTENT_LIGHT_LEVEL), np.uint32)
    others = tuple(name for kind, name in _OTHERS.items() if _side_data(frame, kind))
    said = len(light) == 2 and 0 < light[0] <= _MOST and light[1] <= _MOST
    return HdrMetadata(_display(display.tolist()), (int(light[0]), int(light[1])) if said else None, others)


def x265_params(hdr: HdrMetadata) -> str:
    """The metadata as libx265 takes them: chromaticities in 0.00002, luminances in 0.0001 cd/m2."""
    found = []
    if hdr.display is not None:
        red, green, blue, white = (f"({round(50_000 * x)},{round(50_000 * y)})" for x, y in hdr.display.primaries)
        most, least = (round(10_000 * luminance) for luminance in hdr.display.luminance)
        found.append(f"master-display=G{green}B{blue}R{red}WP{white}L({most},{least})")
    if hdr.light is not None:
        found.append("max-cll={},{}".format(*hdr.light))
    return ":".join(found)


def svtav1_params(hdr: HdrMetadata) -> str:
    """The metadata as SVT-AV1 takes them."""
    found = []
    if hdr.display is not None:
        red, green, blue, white = (f"({float(x):.5f},{float(y):.5f})" for x, y in hdr.display.primaries)
        most, least = (f"{float(luminance):.4f}" for luminance in hdr.display.luminance)
        found.append(f"mastering-display=G{green}B{blue}R{red}WP{white}L({most},{least})")
    if hdr.light is not None:
        found.append("content-light={},{}".format(*hdr.light))
    return ":".join(found)


def _side_data(frame: av.VideoFrame, kind: SideDataType) -> bytes:
    """Empty where the frame has none of that kind."""
    try:
        found = frame.side_data.get(kind)  # type: ignore[call-overload]
    except ValueError:  # PyAV cannot list side data that it does not know, such as the EXIF of a photo
        return b""
    return b"" if found is None else bytes(found)


def _display(numbers: list[int]) -> MasteringDisplay | None:
    """Of FFmpeg's ``AVMasteringDisplayMetadata``: x and y of red, green, blue and white, least and most luminance, all of them
    fractions, then whether the first eight are there, and the last two."""
    if len(numbers) != 22 or not all(numbers[20:]) or not all(numbers[1:20:2]):
        return None
    values = [Fraction(*numbers[at : at + 2]) for at in range(0, 20, 2)]
    if not all(0 <= share <= 1 for share in values[:8]) or not 0 <= values[8] < values[9] <= _MOST:
        return None
    return MasteringDisplay(tuple(zip(values[:8:2], values[1:8:2], strict=True)), (values[9], values[8]))
