"""What is known of a page: a frame of the video whose mouth others can be drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdub.references.shapes import EYE_DISTANCE, LOWER_INNER_LIP, UPPER_INNER_LIP

LIT = 0.6
"""A page whose skin is darker, or flatter, than this share of what is usual, is not drawn from."""
LEAST_LEVELS, LEAST_SHARPNESS = 8.0, 0.002
"""Differences of light and sharpness below these say nothing."""
SHARP, LIKE_SIZE = 0.4, 1.5
"""And so is one that is less sharp than this share of the sharper ones, of those that are larger or smaller by at most this factor."""
STILL = (0.39, 0.56, 0.26, 0.74)
"""Skin that neither speech nor a blink moves (y0, y1, x0, x1), unit crop: nose, and cheeks beside it."""

PAGE_ROWS: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "person": (np.dtype(np.int32), ()),
    "frame": (np.dtype(np.int64), ()),
    "lips": (np.dtype(np.float32), (40, 2)),
    "outline": (np.dtype(np.float32), (24, 2)),
    "pose": (np.dtype(np.float32), (2,)),
    "skin": (np.dtype(np.float32), (2,)),
    "sharpness": (np.dtype(np.float32), ()),
    "similarity": (np.dtype(np.float64), (4,)),
}
"""What ``Pages`` has a row per page of: type, and shape of a row."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Pages:
    """What is known of P pages; the picture of page p is reference p of the track's store.

    person: int32 (P,). frame: int64 (P,), number of the source frame.
    lips: float32 (P, 40, 2), outline: float32 (P, 24, 2), unit crop of the page's own picture.
    pose: float32 (P, 2), yaw and pitch in degrees. skin: float32 (P, 2), mean and spread of the brightness of still skin, levels.
    sharpness: float32 (P,), see ``still_sharpness``. similarity: float64 (P, 4), frame-to-unit, of the page's
    own picture.
    """

    person: NDArray[np.int32]
    frame: NDArray[np.int64]
    lips: NDArray[np.float32]
    outline: NDArray[np.float32]
    pose: NDArray[np.float32]
    skin: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    similarity: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.person)
        for name, (_, tail) in PAGE_ROWS.items():
            value = getattr(self, name)
            if value.shape != (count, *tail):
                raise ValueError(f"{name} must be ({count}, {', '.join(map(str, tail))}), got {value.shape}")

    def __len__(self) -> int:
        return len(self.person)

    def __repr__(self) -> str:
        return f"Pages({len(self)}, people={len(np.unique(self.person))})"

    @property
    def openings(self) -> NDArray[np.float32]:
        """Mouth opening of each page, float32 (P,), as ``landmarks.opening_of`` has it."""
        apart = self.lips[:, UPPER_INNER_LIP] - self.lips[:, LOWER_INNER_LIP]
        return np.asarray(np.linalg.norm(apart, axis=1) / EYE_DISTANCE, np.float32)

    @property
    def side_px(self) -> NDArray[np.float32]:
        """Side of the unit crop in the frame of each page, float32 (P,)."""
        return np.asarray(1 / np.hypot(self.similarity[:, 0], self.similarity[:, 1]), np.float32)

    def usable(self) -> NDArray[np.bool_]:
        """Which pages show their person sharply and in about the usual light, bool (P,): what a fade, a flash or a lost focus has spoilt is
        out. Of each person at least one page is usable."""
        usable, blur = np.ones(len(self), bool), self.blur()
        for person in np.unique(self.person):
            mine = self.of(person)
            skin = self.skin[mine] + LEAST_LEVELS
            usual = np.median(skin, axis=0)
            lit = ((skin >= LIT * usual) & (skin <= usual / LIT)).all(axis=1)
            good = lit & (blur[mine] <= -np.log(SHARP))
            good[np.argmax((self.sharpness[mine] + LEAST_SHARPNESS) * lit)] = True
            usable[mine] = good
        return usable

    def blur(self) -> NDArray[np.float32]:
        """How much less sharp each page is than the sharper ones of its person and of about its size: float32 (P,), the factor's logarithm,
        at least 0."""
        blur = np.zeros(len(self), np.float32)
        for person in np.unique(self.person):
            mine = self.of(person)
            sharpness, side = self.sharpness[mine] + LEAST_SHARPNESS, np.log(self.side_px[mine])
            # Sharpness is of pixels: a wide shot's small faces are sharper than a close-up.
            like = np.abs(side[:, None] - side[None]) < np.log(LIKE_SIZE)
            sharp = np.nanquantile(np.where(like, sharpness, np.nan), 0.75, axis=1)
            blur[mine] = np.maximum(0, np.log(sharp / sharpness))
        return blur

    def of(self, person: int) -> NDArray[np.int64]:
        """The numbers of a person's pages, int64."""
        return np.flatnonzero(self.person == person)

    def take(self, numbers: NDArray[np.int64]) -> Pages:
        """The pages of these numbers, in their order."""
        return Pages(*(getattr(self, name)[numbers] for name in PAGE_ROWS))

    @classmethod
    def joined(cls, parts: Sequence[Pages]) -> Pages:
        """All pages of all parts, one after another."""
        return cls(
            *(
                np.concatenate([np.zeros((0, *tail), dtype), *(getattr(part, name) for part in parts)]).astype(dtype)
                for name, (dtype, tail) in PAGE_ROWS.items()
            )
        )


def still_part(picture: NDArray[Any]) -> NDArray[Any]:
    """The part of an aligned crop (S, S, ...) that speech does not move; a view."""
    y0, y1, x0, x1 = still_box(len(picture))
    return picture[y0:y1, x0:x1]


def still_box(size: int) -> tuple[int, int, int, int]:
    """The half-open box (y0, y1, x0, x1) of ``still_part`` in an aligned crop of `size` px."""
    y0, y1, x0, x1 = (round(edge * size) for edge in STILL)
    return y0, y1, x0, x1


def still_sharpness(still: NDArray[np.float32], *, step: int = 1) -> float:
    """How sharp still skin is whose luma is (h, w), levels of which `step` make up one of 8 bits: mean squared gradient over the variance,
    so that light does not count."""
    across, down = np.diff(still, axis=1), np.diff(still, axis=0)
    return float(((across**2).mean() + (down**2).mean()) / (still.var() + 4.0 * step**2))
