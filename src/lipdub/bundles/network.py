"""What fixes the shapes of a bundle's networks: kept in ``bundle.json`` and beside the weights, read to train or to export again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lipdub.records import CropSpec, MelSpec


@dataclass(frozen=True, slots=True)
class EncoderUse:
    """How a memory stands on a speech encoder. Raises ``ValueError`` when built with values that cannot be."""

    name: str
    """Of the encoder's folder, beside the bundle's or among those that came with lipdub."""
    sha256: str
    """Of its graph: another encoder would say other things."""
    channels: int
    """D: features of one position."""
    taps: tuple[int, ...]
    """Positions of 20 ms around a moment that make up its window, 0 for the moment itself."""

    def __post_init__(self) -> None:
        if not self.name or len(self.sha256) != 64:
            raise ValueError(f"an encoder has a name and a sha256, got {self.name!r} and {self.sha256!r}")
        if self.channels < 1 or not self.taps or list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"a window has channels and rising taps, got {self.channels} and {self.taps}")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Everything that fixes the shapes of the networks. Raises ``ValueError`` when built with values that do not fit together."""

    preset: str
    """Name of the preset that it began with."""
    size: int
    """S: side of the aligned crop in px."""
    drawn: tuple[int, int, int, int]
    """Half-open box (y0, y1, x0, x1) of the crop that the decoder draws; multiples of ``crop_stride``."""
    crop_stride: int
    """Decoder level (crop px per cell) from which on only the drawn box is computed."""
    slots: int
    channels: int
    """C: channels of audio feature, lip feature and slots."""
    audio_widths: tuple[int, int, int, int]
    audio_strides: tuple[tuple[int, int], ...]
    """Of the audio encoder's four levels, (bands, columns)."""
    lip_widths: tuple[int, int, int, int]
    lip_pool: int
    """Lip pictures are averaged down by this before the lip encoder."""
    face_widths: tuple[int, ...]
    """Face encoder, from full resolution down to 1 x 1."""
    decoder_widths: tuple[int, ...]
    """Decoder, from 4 x 4 up to full resolution."""
    residual: bool
    """One residual block at each coarse level of face encoder and decoder (the paper's has them at all)."""
    modulated: bool
    """The coarse levels of the decoder are scaled and shifted by the lip feature."""
    fusion_dropout: float
    has_flow: bool = False
    """The decoder may take pixels of the reference, moved by a smooth flow that it draws, instead of drawing them."""
    kappa: float = 16.0
    """Sharpness of the addresses."""
    drawn_kappa: float = 16.0
    """Sharpness of the audio addresses that are drawn. Sharper ones than the memory is trained with undo its regression to the mean: on
    unseen people 24 brings the spread of the opening from 0.81 to 1.05 of the true one, and costs 0.005 of its correlation."""
    frames: int = 5
    """T: frames of a lip window, at 25 frames/s."""
    mel: MelSpec | None = field(default_factory=MelSpec)
    """What the audio encoder hears; None where it stands on a pretrained speech encoder."""
    encoder: EncoderUse | None = None
    points_hidden: int = 0
    """Units of the network that looks at lip points in the place of pictures; 0 where lips are seen in pictures."""

    def __post_init__(self) -> None:
        _ = self.crop  # checks itself
        for holds, message in (
            (self.slots > 0 and self.channels > 0, f"slots and channels must be positive, got {self.slots} and {self.channels}"),
            ((self.mel is None) != (self.encoder is None), "a network hears either mel or the features of an encoder"),
            (self.points_hidden >= 0, f"points_hidden must not be negative, got {self.points_hidden}"),
            (0 < self.kappa < math.inf, f"kappa must be positive, got {self.kappa}"),
            (0 < self.drawn_kappa < math.inf, f"drawn_kappa must be positive, got {self.drawn_kappa}"),
        ):
            if not holds:
                raise ValueError(message)

    @property
    def masked_from(self) -> int:
        """First row of the lower half: hidden from the face encoder, all that the lip encoder sees."""
        return self.size // 2

    @property
    def lower_box(self) -> tuple[int, int, int, int]:
        """The part of the drawn box that lies in the lower half, in crop px."""
        y0, y1, x0, x1 = self.drawn
        return max(y0, self.masked_from), y1, x0, x1

    @property
    def crop(self) -> CropSpec:
        """The crop as the runtime knows it."""
        return CropSpec(self.size, self.drawn, self.masked_from)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and weights; ``checkpoints.settings_of`` reads them."""
        return asdict(self)
