"""The encoders of pictures that there are: how x264's crf and preset are said to each of them, and which take more than 8 bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, get_args

import av
import numpy as np

from lipdub.errors import OutputRefused
from lipdub.media.containers import container_of
from lipdub.media.converting import bits_of
from lipdub.media.facts import complaint_of_encoder
from lipdub.media.hdr import svtav1_params, x265_params
from lipdub.options import Encoder, Preset
from lipdub.records import HdrMetadata

os.environ.setdefault("SVT_LOG", "1")  # else SVT-AV1 writes its settings to standard error
_SPEEDS: Final = get_args(Preset)
"""Fastest first."""
_VP9_FASTEST_GOOD: Final = 5
"""The fastest speed of libvpx at which it looks at a picture more than once."""
_CRF: Final = MappingProxyType(
    {
        "libvpx-vp9": ((0, 12, 34), (0, 16, 63)),
        "libx265": ((0, 12, 28, 51), (1, 14, 32, 51)),
        "libsvtav1": ((0, 12, 20, 28, 51), (1, 8, 33, 60, 63)),
    }
)
"""Crf of x264, and of another encoder that keeps pictures about as well: at 12 within 1 dB of x264's 49.6 on a 720p panel, at 20 within
half a dB of its 44.4, at 28 within half a dB of its 38.0."""


@dataclass(frozen=True, slots=True)
class PictureEncoder:
    """name: FFmpeg's. options: of the encoder, by x264's crf and preset. tag: by which .mp4 and .mov call what it makes, where players ask
    for a certain one. lossless: a crf of 0 loses nothing. deep: the pixels of 10 bits that it takes, by FFmpeg's name, "" where it takes
    none that players know. hdr: the option that takes HDR metadata, and how they are said in it. pix_fmt: the pixels that it is given."""

    name: str
    options: Callable[[int, str], dict[str, str]]
    tag: str = ""
    lossless: bool = True
    deep: str = ""
    hdr: tuple[str, Callable[[HdrMetadata], str]] | None = None
    pix_fmt: str = "yuv420p"

    @property
    def bits(self) -> int:
        """Of a level in what it makes."""
        return bits_of(av.VideoFormat(self.pix_fmt))

    def options_for(self, crf: int, preset: str, hdr: HdrMetadata) -> dict[str, str]:
        """The options that bring these metadata into the file, too, as far as the encoder can."""
        options = self.options(crf, preset)
        if self.hdr is not None:
            name, said_of = self.hdr
            if said := said_of(hdr):
                options[name] = f"{options[name]}:{said}" if name in options else said
        return options


def _crf(name: str, crf: int) -> str:
    return str(round(float(np.interp(crf, *_CRF[name]))))


def _x265(crf: int, preset: str) -> dict[str, str]:
    quality = {} if crf == 0 else {"crf": _crf("libx265", crf)}
    return {"preset": preset, "x265-params": f"log-level=error{':lossless=1' if crf == 0 else ''}", **quality}


def _vp9(crf: int, preset: str) -> dict[str, str]:
    speed = 8 - _SPEEDS.index(preset)
    quality = {"lossless": "1"} if crf == 0 else {"crf": _crf("libvpx-vp9", crf), "b": "0"}
    return quality | {"cpu-used": str(speed), "deadline": "realtime" if speed > _VP9_FASTEST_GOOD else "good", "row-mt": "1"}


def _nvenc(crf: int, preset: str) -> dict[str, str]:
    speed = {"preset": f"p{1 + 6 * _SPEEDS.index(preset) // (len(_SPEEDS) - 1)}"}
    return speed | ({"tune": "lossless"} if crf == 0 else {"rc": "vbr", "cq": str(crf), "b": "0"})


ENCODERS: Final[Mapping[Encoder, PictureEncoder]] = MappingProxyType(
    {
        "libx264": PictureEncoder("libx264", lambda crf, preset: {"crf": str(crf), "preset": preset}),
        "libx265": PictureEncoder("libx265", _x265, tag="hvc1", deep="yuv420p10le", hdr=("x265-params", x265_params)),
        "libsvtav1": PictureEncoder(
            "libsvtav1",
            lambda crf, preset: {"crf": _crf("libsvtav1", crf), "preset": str(9 - _SPEEDS.index(preset))},
            lossless=False,
            deep="yuv420p10le",
            hdr=("svtav1-params", svtav1_params),
        ),
        "libvpx-vp9": PictureEncoder("libvpx-vp9", _vp9, deep="yuv420p10le"),
        "h264_nvenc": PictureEncoder("h264_nvenc", _nvenc),
        "hevc_nvenc": PictureEncoder("hevc_nvenc", _nvenc, tag="hvc1", deep="p010le"),
        "h264_videotoolbox": PictureEncoder("h264_videotoolbox", lambda crf, _: {"q": str(max(1, 100 - 2 * crf))}, lossless=False),
    }
)
"""By name; ``auto`` is the container's own."""


def encoder_for(out: Path, wanted: Encoder, *, crf: int, bits: int = 8) -> PictureEncoder:
    """The encoder of the pictures of `out`. Where these have more than 8 bits, ``auto`` is the first of its kind of file that keeps 10
    here; an encoder that does not is given 8.

    Raises OutputRefused: its kind of file takes no such pictures, it does not work here, or it cannot lose nothing.
    """
    container = container_of(out)
    names = container.pictures if wanted == "auto" else (wanted,)
    name = names[0]
    if name not in container.pictures:
        raise OutputRefused(f"'{out}' takes no pictures of {name}; use {', '.join(container.pictures)}, or another ending")
    for one in (ENCODERS[each] for each in names if bits > 8):
        if one.deep and (crf or one.lossless) and not complaint_of_encoder(one.name, one.options(crf, "veryfast"), one.deep):
            return replace(one, pix_fmt=one.deep)
    found = ENCODERS[name]
    if crf == 0 and not found.lossless:
        raise OutputRefused(f"{name} cannot encode without loss (--crf 0); use libx264, or a --crf of 1 or more")
    if wanted != "auto" and (complaint := complaint_of_encoder(name, found.options(crf, "veryfast"))):
        why = complaint.partition(": 'avcodec")[0]
        raise OutputRefused(f"the encoder {name} does not work here ({why}); leave --encoder away")
    return found
