"""Gathers the picture figures of one dub while its frames go by beside the source's (and the truth's)."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.evaluate import pixels
from lipdub.evaluate.openings import FACE_PX
from lipdub.evaluate.watch import FramePair
from lipdub.faces import crop
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.paste.mask import mask_of
from lipdub.records import CropSpec

FEWEST_JUMPS = 25
NATIVE_PX = (48, 1024)
"""Bounds of the crop at the source's own resolution."""


@dataclass(slots=True)
class PictureMeters:
    """Figures of the dub's pictures against its source: ``add`` every frame in order, then ask for ``figures``.

    track: of the source. spec: of the model whose mask is looked at. Frames without a source frame, and those that a dub passes
    through, are not looked at (but all pixels of the latter count as outside the mask).
    """

    track: FaceTrack
    spec: CropSpec
    outside: pixels.OutsideError = field(default_factory=pixels.OutsideError)
    _frames: list[tuple[float, ...]] = field(default_factory=list)
    """A row a frame, first of the dub, then of the source: sharpness at the source's resolution (2), in the 128-px crop (2), edges (2),
    steps across and beside the seam (4)."""
    _flicker: list[tuple[float, float]] = field(default_factory=list)
    _mouths: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)
    _light: list[tuple[float, float]] = field(default_factory=list)
    """`light_below` of dub and source."""
    _tints: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = field(default_factory=lambda: ([], []))
    """`mouth_tints` of dub and source."""
    _jumps: list[tuple[float, float]] = field(default_factory=list)
    _before: tuple[int, NDArray[np.float32], NDArray[np.float32]] | None = None
    """Number of the frame before, and its dub and source in the 128-px crop."""
    _native_px: int = 0

    def __post_init__(self) -> None:
        dubbed = self.track.status == DUBBED
        if dubbed.any():
            self._native_px = int(np.clip(np.round(np.median(crop.unit_px(self.track.similarity[dubbed]))), *NATIVE_PX))

    def add(self, pair: FramePair) -> None:
        """One frame of the dub beside its source's."""
        if pair.source is None:
            self._mouths.clear()
            return
        height, width = pair.source.height, pair.source.width
        if pair.dub.height < height or pair.dub.width < width:
            return  # scaled: it has no pixels in common with its source
        # An odd side was padded by one when the dub was written.
        self.outside.add(
            pair.source.pixels, pair.dub.pixels[:height, :width], pixels.outside_mask(self.track, pair.row, self.spec, (height, width))
        )
        if self.track.status[pair.row] != DUBBED:
            self._mouths.clear()
            return
        aligned = self.track.similarity[pair.row]
        pictures = pair.dub, pair.source
        crops = [crop.take_one(picture, aligned, FACE_PX) for picture in pictures]
        for tints, shown, lips in zip(self._tints, crops, (pair.lips, self.track.lips[pair.row].astype(np.float32)), strict=True):
            if np.isfinite(lips).all():
                tints.append(pixels.mouth_tints(shown, lips))
        small = [pixels.luma_of(shown) for shown in crops]
        native = [pixels.luma_of(crop.take_one(picture, aligned, self._native_px)) for picture in pictures]
        mask = mask_of((self.track.outline[pair.row].astype(np.float32) * self.spec.size).astype(np.float32), self.spec)
        if self.spec.size != FACE_PX:
            mask = np.asarray(cv2.resize(mask, (FACE_PX, FACE_PX), interpolation=cv2.INTER_AREA), np.float32)
        sharp = *map(pixels.sharpness, native), *map(pixels.sharpness, small), *map(pixels.gradient_energy, native)
        self._frames.append((*sharp, *pixels.seam_steps(small[0], mask), *pixels.seam_steps(small[1], mask)))
        self._light.append((pixels.light_below(small[0], mask), pixels.light_below(small[1], mask)))
        self._add_jump(pair, small[0], small[1], mask)
        self._add_flicker(pair, *small)

    def _add_jump(self, pair: FramePair, dub: NDArray[np.float32], source: NDArray[np.float32], mask: NDArray[np.float32]) -> None:
        before, self._before = self._before, (pair.number, dub, source)
        same_shot = pair.row > 0 and self.track.shot[pair.row] == self.track.shot[pair.row - 1]
        if before is not None and before[0] == pair.number - 1 and same_shot:
            self._jumps.append((pixels.jump(before[1], dub, mask), pixels.jump(before[2], source, mask)))

    def _add_flicker(self, pair: FramePair, dub: NDArray[np.float32], source: NDArray[np.float32]) -> None:
        last = self._mouths[-1][0] if self._mouths else -2
        if last != pair.number - 1 or (self.track.shot[pair.row] != self.track.shot[pair.row - 1] and pair.row > 0):
            self._mouths.clear()
        self._mouths.append((pair.number, pixels.mouth_of(dub), pixels.mouth_of(source)))
        if len(self._mouths) == 3:
            (_, a, x), (_, b, y), (_, c, z) = self._mouths
            self._flicker.append((pixels.flicker(a, b, c), pixels.flicker(x, y, z)))
            del self._mouths[0]

    def figures(self) -> dict[str, float]:
        """sharpness, sharpness_128, edges, seam, flicker (all over the source's own), light (%), off_colour, jumps (shares), outside_psnr
        (dB); NaN where nothing was seen."""
        frames = np.array(self._frames or [(np.nan,) * 10], np.float64)
        medians, (across, beside, own_across, own_beside) = np.median(frames[:, :6], axis=0), frames[:, 6:].sum(axis=0)
        return {
            **{name: _ratio(*medians[2 * k : 2 * k + 2]) for k, name in enumerate(("sharpness", "sharpness_128", "edges"))},
            "seam": _ratio(_ratio(across, beside), _ratio(own_across, own_beside)),
            "flicker": _ratio(sum(dub for dub, _ in self._flicker), sum(own for _, own in self._flicker)),
            "light": self._light_off(),
            "off_colour": pixels.off_colour(*(np.concatenate([np.zeros((0, 2), np.float32), *tints]) for tints in self._tints)),
            "jumps": self._share_of_jumps(),
            "outside_psnr": self.outside.rgb_db(),
        }

    def _light_off(self) -> float:
        """Percent by which the drawn skin is too light or too dark in the worst twentieth of the frames."""
        off = np.abs(np.diff(np.array(self._light or [(np.nan, np.nan)]), axis=1))
        off = off[np.isfinite(off)]
        return 100 * float(np.expm1(np.quantile(off, 0.95))) if len(off) else float("nan")

    def _share_of_jumps(self) -> float:
        if len(self._jumps) < FEWEST_JUMPS:
            return float("nan")
        dub, own = np.array(self._jumps).T
        return float((dub > np.quantile(own, 0.99)).mean())


@dataclass(slots=True)
class FidelityMeters:
    """Likeness to the source where that is the truth: aligned crops of both through the truth's transform. Means over the frames."""

    track: FaceTrack
    _found: list[tuple[float, float, float, float]] = field(default_factory=list)

    def add(self, pair: FramePair) -> None:
        """One frame of the dub beside its source's, which is the truth."""
        if pair.source is None or self.track.status[pair.row] != DUBBED:
            return
        aligned = self.track.similarity[pair.row]
        one, other = (crop.take_one(picture, aligned, FACE_PX).astype(np.float32) for picture in (pair.dub, pair.source))
        similarity = pixels.ssim_map(pixels.luma_of(one), pixels.luma_of(other))
        face, mouth = pixels.psnr(one, other), pixels.psnr(pixels.mouth_of(one), pixels.mouth_of(other))
        self._found.append((face, pixels.ssim_face(similarity), mouth, pixels.ssim_mouth(similarity)))

    def figures(self) -> dict[str, float]:
        """psnr_face, ssim_face, psnr_mouth, ssim_mouth (dB and none); NaN where nothing was seen."""
        names = ("psnr_face", "ssim_face", "psnr_mouth", "ssim_mouth")
        if not self._found:
            return dict.fromkeys(names, float("nan"))
        return dict(zip(names, np.mean(self._found, axis=0).tolist(), strict=True))


def _ratio(one: float, other: float) -> float:
    return float(one / other) if other > 1e-9 else float("nan")
