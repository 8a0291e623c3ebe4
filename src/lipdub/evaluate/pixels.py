"""Figures of pictures: likeness, sharpness, seam, flicker, and pixels outside the mask, which are to stay as they were.

Float arithmetic throughout; colour levels run from 0 to 255. All but the last look at aligned crops (``crop.take``). A *mouth box* is
fixed in the aligned crop: it holds the lips of 99 % of the frames of the val clips with some skin around them, wide open ones included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.evaluate.openings import FACE_PX
from lipdub.faces import crop
from lipdub.faces.track import DUBBED, FaceTrack
from lipdub.paste.mask import mask_of
from lipdub.records import CropSpec
from lipdub.references.pages import still_part
from lipdub.references.shapes import INNER

MOUTH = (68 / FACE_PX, 106 / FACE_PX, 38 / FACE_PX, 90 / FACE_PX)
"""The mouth box (y0, y1, x0, x1) in unit crop coordinates: 38 x 52 px of the 128-px crop."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""BT.601, as in the works that these figures come from."""
PSNR_MAX = 99.0
"""What equal pictures count as, dB."""
LIGHT_FLOOR = 8.0
"""Levels that are added before brightness is compared: below them a picture is black."""
SSIM_SIGMA, SSIM_WINDOW = 1.5, 11
SEAM_REACH = 0.035
"""Half the length of a step of the seam score, unit crop: what lies between is the mask's soft edge."""
DARK, MOST_TINTS, FEWEST_TINTS = 0.3, 64, 500
"""Pixels darker than this share of the skin have no colour to speak of; of a frame so many are looked at, of a clip so many are needed."""
BEYOND = 0.001
"""Of the person's own tints, this share counts as noise on either side."""
GROW_PX = 8
"""A codec spreads a change within its blocks: this far around the mask no pixel is counted."""

Picture = NDArray[Any]


def mouth_of(picture: Picture) -> Picture:
    """The mouth box of an aligned crop (S, S) or (S, S, 3); a view."""
    size = picture.shape[0]
    y0, y1, x0, x1 = (round(edge * size) for edge in MOUTH)
    return picture[y0:y1, x0:x1]


def luma_of(picture: Picture) -> NDArray[np.float32]:
    """Brightness (H, W), float32, of a picture (H, W, 3) RGB."""
    return np.asarray(picture.astype(np.float32) @ LUMA, np.float32)


def psnr(one: Picture, other: Picture) -> float:
    """Peak signal-to-noise ratio in dB between two pictures, 10 log10(255^2 / mean squared difference) over pixels and channels.

    0 to ``PSNR_MAX``, higher is better. The difference is taken in floats: of uint8 arrays it would wrap around.
    """
    return psnr_of(float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)))


def psnr_of(mean_square: float) -> float:
    """dB of a mean squared difference; equal pictures count as ``PSNR_MAX``."""
    return min(PSNR_MAX, 10 * float(np.log10(255.0**2 / max(mean_square, 1e-12))))


def ssim_map(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Structural similarity around each pixel of two luma pictures (H, W): float64 (H, W), at most 1, which is alike; higher is better.

    Wang, Bovik, Sheikh, Simoncelli 2004, equation 13: Gaussian window of 11 px, sigma 1.5, K1 0.01, K2 0.03, range 255, weighted
    moments without Bessel's correction. In the outer five px the window reaches over the border: leave them out of a mean.
    """
    x, y = one.astype(np.float64), other.astype(np.float64)

    def blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(values, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA), np.float64)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def ssim_face(similarity: NDArray[np.float64]) -> float:
    """Mean of an ``ssim_map`` over the crop less the border that the window reaches over; higher is better, 1 is alike."""
    border = SSIM_WINDOW // 2
    return float(similarity[border:-border, border:-border].mean())


def ssim_mouth(similarity: NDArray[np.float64]) -> float:
    """Mean of an aligned crop's ``ssim_map`` over the mouth box; higher is better, 1 is alike."""
    return float(mouth_of(similarity).mean())


def sharpness(luma: NDArray[np.float32]) -> float:
    """Variance of the Laplacian over the mouth box of an aligned crop (S, S): the focus measure of Pech-Pacheco et al. 2000 ("VL").

    0 and more, in squared colour levels, higher is sharper. It grows with noise and depends on the scale, so a dub's is only ever given
    over its source's own, read through the same transform; the scorecard gives the ratio of the medians over the frames, once at
    the source's own resolution (1 crop px = 1 frame px, nothing is enlarged or shrunk), once in the 128-px crop.
    """
    return float(mouth_of(np.asarray(cv2.Laplacian(luma, cv2.CV_32F, ksize=1))).var(dtype=np.float64))


def gradient_energy(luma: NDArray[np.float32]) -> float:
    """Mean squared gradient (central differences) over the mouth box of an aligned crop (S, S), as in the Tenengrad focus measure.

    0 and more, in squared colour levels per px, higher is sharper. It weighs edges (lips, teeth) more and grain less than
    ``sharpness`` does, and is given in the same way: over the source's own, ratio of the medians over the frames.
    """
    across, down = np.gradient(mouth_of(luma).astype(np.float64))
    return float((across**2 + down**2).mean())


def seam_steps(luma: NDArray[np.float32], mask: NDArray[np.float32]) -> tuple[float, float]:
    """Mean step of brightness across the mask's border, and of the steps just inside and just outside it, in colour levels.

    luma: float32 (S, S), an aligned crop. mask: float32 (S, S) in [0, 1]; its border is where it passes 0.5. Along the border's normals a
    step runs from ``-SEAM_REACH`` to ``+SEAM_REACH`` (the soft edge lies between); its neighbours are as long and lie beside it. The
    *seam score* is across / beside of the dub over the same of the source, both pooled over frames: 1 is no seam, lower than 1 a
    border smoother than the source's, above 1 a step that the source has not. (0, 0) where there is no border.
    """
    size = len(mask)
    contours, _ = cv2.findContours((mask >= 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return 0.0, 0.0
    points = np.concatenate([contour[:, 0] for contour in contours]).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.01 * size)
    slope = np.stack([cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)], axis=-1)
    normals = slope[points[:, 1].astype(int), points[:, 0].astype(int)]
    lengths = np.linalg.norm(normals, axis=1)
    points, normals = points[lengths > 1e-4], normals[lengths > 1e-4] / lengths[lengths > 1e-4, None]
    step = SEAM_REACH * size
    places = points[:, None] + normals[:, None] * (np.array([-3, -1, 1, 3], np.float32) * step)[None, :, None]
    inside = ((places >= 0) & (places <= size - 1)).all(axis=(1, 2))
    if not inside.any():
        return 0.0, 0.0
    smooth = cv2.GaussianBlur(luma, (0, 0), 0.008 * size)
    x, y = np.ascontiguousarray(places[inside].transpose(2, 0, 1), np.float32)
    values = np.asarray(cv2.remap(smooth, x, y, cv2.INTER_LINEAR), np.float64)
    steps = np.abs(np.diff(values, axis=1))
    return float(steps[:, 1].mean()), float(steps[:, [0, 2]].mean())


def flicker(before: NDArray[np.float32], now: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Mean size of the second difference in time, |before - 2 now + after|, of three successive luma pictures, in colour levels.

    Steady pictures and steady changes give 0. The scorecard gives the mean over the mouth box of a dub over the source's own, read
    through the same transforms: 1 is as lively as the source, above it flickers, below it is smoothed. (In the sense of the temporal
    difference measures of video denoising; no standard figure for it exists in lip sync.)
    """
    return float(np.abs(before - 2 * now + after).mean(dtype=np.float64))


def light_below(luma: NDArray[np.float32], mask: NDArray[np.float32]) -> float:
    """How much brighter the skin under the mask is than skin that no mask reaches, as a logarithm; NaN where the mask shows no skin.

    luma: float32 (S, S), an aligned crop. mask: float32 (S, S) in [0, 1]. Chin and cheeks count, the mouth box does not. The scorecard
    compares it with the source's of the same frame: a mouth from another light shows here, whatever the frame's own light is.
    """
    skin = mask > 0.9
    mouth_of(skin)[:] = False
    if skin.sum() < 16:
        return float("nan")
    above = still_part(luma)
    return float(np.log((luma[skin].mean() + LIGHT_FLOOR) / (above.mean() + LIGHT_FLOOR)))


def mouth_tints(crop_rgb: NDArray[np.uint8], lips: NDArray[np.float32]) -> NDArray[np.float32]:
    """How green and how red pixels inside the mouth are: float32 (n, 2), n from 0 to ``MOST_TINTS``; dark ones are left out.

    crop_rgb: uint8 (S, S, 3), an aligned crop. lips: float32 (40, 2), unit crop. Colours are shares of those of the still skin above, so
    the light does not count: green less the mean of red and blue, and red less green, over the brightness of the pixel.
    """
    size = len(crop_rgb)
    inside = np.zeros((size, size), np.uint8)
    cv2.fillPoly(inside, [np.round(16 * (lips[INNER] * size - 0.5)).astype(np.int32)], (1,), cv2.LINE_8, 4)
    skin = still_part(crop_rgb).reshape(-1, 3).mean(axis=0) + LIGHT_FLOOR
    shown = crop_rgb[cv2.erode(inside, np.ones((3, 3), np.uint8)) > 0].astype(np.float32) / skin
    bright = shown.mean(axis=1)
    red, green, blue = (shown[bright > DARK] / bright[bright > DARK, None]).T
    tints = np.column_stack([green - (red + blue) / 2, red - green]).astype(np.float32)
    return tints[:: max(1, -(-len(tints) // MOST_TINTS))]


def off_colour(drawn: NDArray[np.float32], own: NDArray[np.float32]) -> float:
    """Share of the `drawn` tints (n, 2) that are greener or greyer than nearly all of the person's `own` (m, 2); NaN where there are too
    few to tell."""
    if len(own) < FEWEST_TINTS or not len(drawn):
        return float("nan")
    greenest, greyest = np.quantile(own[:, 0], 1 - BEYOND), np.quantile(own[:, 1], BEYOND)
    return float(((drawn[:, 0] > greenest) | (drawn[:, 1] < greyest)).mean())


def jump(before: NDArray[np.float32], now: NDArray[np.float32], mask: NDArray[np.float32]) -> float:
    """Mean size of the change from one aligned luma picture to the next under the mask, in colour levels."""
    return float((np.abs(now - before) * mask).sum(dtype=np.float64) / max(1e-6, float(mask.sum())))


@dataclass(slots=True)
class OutsideError:
    """Squared differences between frames and their dubs, summed over RGB values."""

    squares: float = 0.0
    values: int = 0

    def add(self, one: NDArray[np.uint8], other: NDArray[np.uint8], where: NDArray[np.bool_]) -> None:
        """Count the pixels `where` (H, W) of one frame (H, W, 3)."""
        difference = one[where].astype(np.float32) - other[where].astype(np.float32)
        self.squares += float(np.square(difference, dtype=np.float64).sum())
        self.values += difference.size

    def rgb_db(self) -> float:
        """PSNR in dB over RGB and all counted pixels of all frames, higher is better; what encoding alone costs is in it. NaN: none."""
        return psnr_of(self.squares / self.values) if self.values else float("nan")


def outside_mask(track: FaceTrack, number: int, spec: CropSpec, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels (H, W) of a frame the paste does not reach, `GROW_PX` away from the mask."""
    if track.status[number] != DUBBED:
        return np.ones(shape, bool)
    mask = mask_of((track.outline[number].astype(np.float32) * spec.size).astype(np.float32), spec)
    to_frame = crop.crop_to_frame(track.similarity[number][None], spec.size)[0]
    height, width = shape
    reached = (cv2.warpAffine(mask, to_frame, (width, height), flags=cv2.INTER_LINEAR) > 0).astype(np.uint8)
    side = 2 * GROW_PX + 1
    grown = cv2.dilate(reached, cv2.getStructuringElement(cv2.MORPH_RECT, (side, side)))
    return np.asarray(grown == 0)
