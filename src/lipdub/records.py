"""Frozen records that the stages hand to each other. They check themselves, so a wrong array fails where it is made.

Conventions: pictures outside networks are uint8 RGB ``(N, H, W, 3)``; boxes are half-open, in pixels; a frame's time is
``ticks x time_base`` seconds. Letters: N frames of a chunk, M crops, H, W, S crop side in px, L landmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.options import DubOptions

LANDMARKS = 478
"""Points of the mediapipe face mesh with refined irises."""


def _require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless `condition`: a record that is wrong is a bug in the code that made it."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class ColorTags:
    """Colour facts of a stream as FFmpeg's integers (``AVColorSpace`` and so on); 2 means unspecified. Copied to the output."""

    matrix: int = 2
    range: int = 0
    primaries: int = 2
    transfer: int = 2


@dataclass(frozen=True, slots=True)
class MasteringDisplay:
    """The display that a video was graded on (SMPTE ST 2086). primaries: x and y of red, green, blue and white (CIE 1931). luminance: the
    most and the least, cd/m2."""

    primaries: tuple[tuple[Fraction, Fraction], ...]
    luminance: tuple[Fraction, Fraction]

    def __post_init__(self) -> None:
        _require(len(self.primaries) == 4, f"a display has three primaries and a white, got {len(self.primaries)}")


@dataclass(frozen=True, slots=True)
class HdrMetadata:
    """What a video says of its high dynamic range beside its colour tags. display: it was graded on, None where that is not said. light:
    of the brightest pixel, and the mean of the brightest frame, cd/m2 (MaxCLL and MaxFALL, CTA-861.3). others: names of what no encoder
    here can write."""

    display: MasteringDisplay | None = None
    light: tuple[int, int] | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video (or photo) says of itself before any frame is decoded.

    width, height: px as shown, after `rotation`. time_base: seconds per tick. frame_rate: average frames per second, a
    hint only, never used for timing. duration_s: None where the container does not say. rotation: degrees
    counter-clockwise that were applied to the stored pictures (0, 90, 180, 270). sample_aspect_ratio: pixel width over
    height. is_still: a photo, shown for as long as the speech lasts. has_audio: the file also holds sound. is_transparent: parts of
    the first picture are, and are laid on white. bits: of a colour in a pixel, as stored. is_interlaced: the first picture is woven of two
    fields. hdr: what the first picture says of its high dynamic range.
    """

    path: Path
    width: int
    height: int
    time_base: Fraction
    frame_rate: Fraction
    duration_s: Fraction | None
    rotation: int = 0
    sample_aspect_ratio: Fraction = Fraction(1)
    color: ColorTags = field(default_factory=ColorTags)
    is_still: bool = False
    has_audio: bool = False
    is_transparent: bool = False
    bits: int = 8
    is_interlaced: bool = False
    hdr: HdrMetadata = field(default_factory=HdrMetadata)

    def __post_init__(self) -> None:
        _require(self.width > 0 and self.height > 0, f"a picture needs a size, got {self.width}x{self.height}")
        _require(self.time_base > 0, f"time_base must be positive, got {self.time_base}")
        _require(self.frame_rate > 0, f"frame_rate must be positive, got {self.frame_rate}")
        _require(self.rotation in (0, 90, 180, 270), f"rotation must be a quarter turn, got {self.rotation}")

    @property
    def doubled(self) -> VideoInfo:
        """The same with two pictures side by side, each with its sides rounded up to even."""
        return replace(self, width=2 * (self.width + self.width % 2), height=self.height + self.height % 2)

    @property
    def frames_guessed(self) -> int | None:
        """About how many frames there are, by what the container says; None where it does not."""
        return None if self.duration_s is None else max(1, round(self.duration_s * self.frame_rate))


@dataclass(frozen=True, slots=True, repr=False)
class FrameChunk:
    """Consecutive frames of one video.

    index: stream index of the first frame. pixels: uint8 (N, H, W, 3) RGB, upright. pts: int64 (N,) ticks, strictly
    increasing. time_base: seconds per tick.
    """

    index: int
    pixels: NDArray[np.uint8]
    pts: NDArray[np.int64]
    time_base: Fraction

    def __post_init__(self) -> None:
        _require(self.pixels.ndim == 4 and self.pixels.shape[3] == 3, f"pixels must be (N, H, W, 3), got {self.pixels.shape = }")
        _require(self.pixels.dtype == np.uint8, f"pixels must be uint8, got {self.pixels.dtype = }")
        _require(self.pts.shape == (len(self.pixels),), f"one pts per frame, got {self.pts.shape = } for {len(self.pixels)} frames")
        _require(bool(np.all(np.diff(self.pts) > 0)), "pts must increase")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"FrameChunk(index={self.index}, pixels={self.pixels.shape}, pts={self.pts[:1]}..{self.pts[-1:]})"

    @property
    def times_s(self) -> NDArray[np.float64]:
        """Presentation times in seconds, float64 (N,)."""
        return self.pts * float(self.time_base)


@dataclass(frozen=True, slots=True, repr=False)
class Face:
    """One face in one frame. landmarks: float32 (478, 3), x and y in frame px, z in the same scale (smaller is nearer).
    score: detector confidence in [0, 1]."""

    landmarks: NDArray[np.float32]
    score: float = 1.0

    def __post_init__(self) -> None:
        _require(self.landmarks.shape == (LANDMARKS, 3), f"landmarks must be ({LANDMARKS}, 3), got {self.landmarks.shape = }")
        _require(bool(np.isfinite(self.landmarks).all()), "landmarks must be finite")

    def __repr__(self) -> str:
        return f"Face(box={np.round(self.box).tolist()}, score={self.score:.2f})"

    @property
    def box(self) -> NDArray[np.float32]:
        """Bounding box of the landmarks, float32 (4,): x0, y0, x1, y1 in frame px, half-open."""
        low, high = self.landmarks[:, :2].min(axis=0), self.landmarks[:, :2].max(axis=0)
        return np.concatenate([low, high]).astype(np.float32)


@dataclass(frozen=True, slots=True, repr=False)
class Crops:
    """Aligned face crops of one chunk, tied to where they came from.

    pixels: uint8 (M, S, S, 3) RGB. to_frame: float64 (M, 2, 3), maps crop px to frame px. rows: int64 (M,), which frame of
    the chunk each crop is of. outline: float32 (M, P, 2), the jaw outline in crop px that the paste mask follows.
    """

    pixels: NDArray[np.uint8]
    to_frame: NDArray[np.float64]
    rows: NDArray[np.int64]
    outline: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.pixels)
        _require(
            self.pixels.ndim == 4 and self.pixels.shape[1] == self.pixels.shape[2] and self.pixels.shape[3] == 3,
            f"crops must be (M, S, S, 3), got {self.pixels.shape = }",
        )
        _require(self.pixels.dtype == np.uint8, f"crops must be uint8, got {self.pixels.dtype = }")
        _require(self.to_frame.shape == (count, 2, 3), f"to_frame must be ({count}, 2, 3), got {self.to_frame.shape = }")
        _require(self.rows.shape == (count,), f"rows must be ({count},), got {self.rows.shape = }")
        _require(
            self.outline.ndim == 3 and len(self.outline) == count and self.outline.shape[2] == 2,
            f"outline must be ({count}, P, 2), got {self.outline.shape = }",
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"Crops(pixels={self.pixels.shape}, rows={self.rows.tolist()})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Reference:
    """A face that shows what a person looks like: the crop that the generator sees, and the same crop as finely as the video shows it.

    number: of the track's reference. pixels: uint8 (S, S, 3) RGB. detail: uint8 (D, D, 3) RGB, D > S, the same square of the face; None
    where the video is no finer than the crop.
    """

    number: int
    pixels: NDArray[np.uint8]
    detail: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        for name, value in (("pixels", self.pixels), ("detail", self.detail)):
            if value is not None:
                _require(
                    value.dtype == np.uint8 and value.ndim == 3 and value.shape[0] == value.shape[1] and value.shape[2] == 3,
                    f"{name} must be uint8 (S, S, 3), got {value.dtype} {value.shape}",
                )
        _require(self.detail is None or len(self.detail) > len(self.pixels), "detail must be finer than the crop")

    def __repr__(self) -> str:
        return f"Reference({self.number}, {len(self.pixels)} px, detail={None if self.detail is None else len(self.detail)})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Own:
    """What of M drawn boxes (h, w) was taken from the targets themselves. share: float32 (M, h, w) in [0, 1]. flow: as that of `Copied`."""

    share: NDArray[np.float32]
    flow: NDArray[np.float32]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Copied:
    """Which pixels of M drawn boxes (h, w) were copied from the reference, and from where.

    paint_mask: uint8 (M, h, w), the share of each pixel that was painted and not copied, 255 all of it. flow: float32 (M, 2, h', w'),
    (x, y): where a pixel was copied from, relative to its own place, in crop sides; at the middles of cells coarser than pixels. own: what
    comes from the target itself, moved likewise.
    """

    paint_mask: NDArray[np.uint8]
    flow: NDArray[np.float32]
    own: Own | None = None

    def __post_init__(self) -> None:
        _require(
            self.paint_mask.dtype == np.uint8 and self.paint_mask.ndim == 3,
            f"paint_mask must be uint8 (M, h, w), got {self.paint_mask.shape}",
        )
        _require(
            self.flow.dtype == np.float32 and self.flow.ndim == 4 and self.flow.shape[:2] == (len(self.paint_mask), 2),
            f"flow must be float32 ({len(self.paint_mask)}, 2, h', w'), got {self.flow.dtype} {self.flow.shape}",
        )
        if self.own is not None:
            _require(
                self.own.share.dtype == np.float32 and self.own.share.shape == self.paint_mask.shape,
                f"own share must be float32 {self.paint_mask.shape}, got {self.own.share.dtype} {self.own.share.shape}",
            )
            _require(
                self.own.flow.dtype == np.float32 and self.own.flow.shape == self.flow.shape,
                f"own flow must be float32 {self.flow.shape}, got {self.own.flow.dtype} {self.own.flow.shape}",
            )

    def part(self, first: int, end: int) -> Copied:
        """The boxes [first, end), views."""
        own = None if self.own is None else Own(self.own.share[first:end], self.own.flow[first:end])
        return Copied(self.paint_mask[first:end], self.flow[first:end], own)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Drawn:
    """M crops as a generator drew them.

    pixels: uint8 (M, S, S, 3) RGB, the drawn box new and every other pixel the target's. copied: where the pixels of the box come from;
    None from a model that copies nothing. finer: float32 (M, k h, k w, 3), RGB levels to be added to the box (h, w) in pixels k times as
    fine: what `pixels` cannot hold.
    """

    pixels: NDArray[np.uint8]
    copied: Copied | None = None
    finer: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        _require(
            self.pixels.dtype == np.uint8 and self.pixels.ndim == 4 and self.pixels.shape[3] == 3,
            f"pixels must be uint8 (M, S, S, 3), got {self.pixels.dtype} {self.pixels.shape}",
        )
        _require(self.copied is None or len(self.copied.paint_mask) == len(self.pixels), "one crop for each drawn box")
        _require(
            self.finer is None or (self.finer.dtype == np.float32 and self.finer.shape[:1] + self.finer.shape[3:] == (len(self.pixels), 3)),
            "finer must be float32 (M, k h, k w, 3)",
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"Drawn(pixels={self.pixels.shape}, copied={self.copied is not None})"

    def part(self, first: int, end: int) -> Drawn:
        """The crops [first, end), views."""
        here = slice(first, end)
        copied = None if self.copied is None else self.copied.part(first, end)
        return Drawn(self.pixels[here], copied, None if self.finer is None else self.finer[here])


@dataclass(frozen=True, slots=True)
class MelSpec:
    """The log-mel convention (docs/architecture.md). Values in Hz and samples; `floor_db` maps to -4 and 0 dB re `reference_db` to 4."""

    sample_rate_hz: int = 16000
    n_fft: int = 800
    win: int = 800
    hop: int = 200
    bands: int = 80
    fmin_hz: float = 55.0
    fmax_hz: float = 7600.0
    preemphasis: float = 0.97
    floor_db: float = -100.0
    reference_db: float = 20.0
    window: int = 16
    """Columns that drive one frame, centred on its time."""

    def __post_init__(self) -> None:
        _require(self.sample_rate_hz % self.hop == 0, f"hop must divide the sample rate, got {self.hop = }")
        _require(self.win <= self.n_fft, f"win must not exceed n_fft, got {self.win = }, {self.n_fft = }")
        _require(self.window % 2 == 0 and self.window > 0, f"window must be even, got {self.window = }")

    @property
    def columns_per_s(self) -> int:
        """Mel columns in one second of sound."""
        return self.sample_rate_hz // self.hop


@dataclass(frozen=True, slots=True)
class CropSpec:
    """The aligned crop: side `size` px; `drawn`: the half-open box (y0, y1, x0, x1) in crop px that the generator draws;
    `masked_from`: first row that the generator does not see of the target (the lower half)."""

    size: int
    drawn: tuple[int, int, int, int]
    masked_from: int

    def __post_init__(self) -> None:
        y0, y1, x0, x1 = self.drawn
        _require(0 <= y0 < y1 <= self.size and 0 <= x0 < x1 <= self.size, f"drawn must lie in the crop, got {self.drawn = }")
        _require(0 < self.masked_from < self.size, f"masked_from must lie in the crop, got {self.masked_from = }")


@dataclass(frozen=True, slots=True)
class Span:
    """Frames passed through untouched: half-open stream indices [first, end), their times in seconds, and why."""

    first: int
    end: int
    start_s: float
    end_s: float
    why: str


NOTHING_DUBBED: Final = "nothing-dubbed"
"""The kind of warning that says that the output does not speak: the state of such a row of a batch, and exit code 3."""


@dataclass(frozen=True, slots=True)
class DubWarning:
    """What whoever asked for a dub has to know of it, though it went on.

    kind: a word or two for programs, joined by hyphens. text: one line for people. times: stretches of the output that it is about,
    half-open, in seconds; none where it is about all of it.
    """

    kind: str
    text: str
    times: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        _require(self.kind.replace("-", "").isalpha() and self.kind.islower(), f"a kind is words joined by hyphens, got '{self.kind}'")
        _require(self.text == " ".join(self.text.split()) != "", f"a warning is one line, got '{self.text}'")
        _require(all(start <= end for start, end in self.times), f"a stretch ends after it starts, got {self.times}")

    @property
    def line(self) -> str:
        """The text, and the first four of the stretches."""
        if not self.times:
            return self.text
        shown = ", ".join(f"{start:.2f}-{end:.2f} s" for start, end in self.times[:4])
        return f"{self.text} ({shown}{f' and {len(self.times) - 4} more' if len(self.times) > 4 else ''})"


Warn = Callable[[DubWarning], None]
"""Told what there is to warn of, as it is found."""


@dataclass(frozen=True, slots=True)
class DubReport:
    """What a dub did. Times in seconds.

    model: name of the bundle. options: as they were asked for. stage_s: busy seconds of each stage; stages overlap, so together they may
    exceed `wall_s`. analysis_cached: the first pass was saved, its result was known. warnings: in the order in which they were found.
    pages: mouths of the person that the video shows. painted: frames whose mouth the network painted, since no page shows what is wanted.
    copied: frames that are coded as they are in the source.
    """

    video: str
    speech: str
    output: str
    model: str
    provider: str
    options: DubOptions
    frames: int
    dubbed: int
    passed_through: int
    spans: tuple[Span, ...]
    silent_frames: int
    video_s: float
    speech_s: float
    output_s: float
    wall_s: float
    stage_s: dict[str, float]
    version: str
    analysis_cached: bool = False
    warnings: tuple[DubWarning, ...] = ()
    pages: int = 0
    painted: int = 0
    copied: int = 0

    @property
    def nothing_dubbed(self) -> bool:
        """Whether the output does not speak: no frame was redrawn, or none while the speech sounds."""
        return any(warning.kind == NOTHING_DUBBED for warning in self.warnings)

    @property
    def frames_per_s(self) -> float:
        """Frames of output per second of wall time."""
        return self.frames / self.wall_s if self.wall_s > 0 else 0.0
