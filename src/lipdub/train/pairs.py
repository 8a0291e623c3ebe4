"""Lips and sounds that belong together, and ones that do not: what the sync expert learns from.

A sample is a stretch of one clip: `windows` lip windows at different frames, the strip of the encoder's features around them, and where in
the strip the sound of each lip window is. Every sound is the true one of its own lips and a hard negative for all the others of the
sample; further sounds of the strip are only negatives. Sample i depends on (seed, i) alone.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdub.bundles.encoder import POSITIONS_PER_S
from lipdub.records import MelSpec
from lipdub.speech.silence import silence_weight
from lipdub.train.data import Clip, ClipSamples, flip_lips
from lipdub.train.expert_network import ExpertConfig
from lipdub.train.prepare import GRID_HZ, MARGIN

REACH_FRAMES = 15
"""Lip windows and further sounds lie at most so far from the middle of a sample."""
STRIP_POSITIONS = 90
"""Positions of a sample: the reach on both sides (more of it in a variant that plays slowly), a window, and some room."""
SILENT = 0.5
"""A moment whose ``silence.silence_weight`` is above this is not a true pair: a closed mouth belongs to any pause."""


class Pairs(ClipSamples):
    """Random samples of `windows` lip windows and `windows` + `further` sounds of one clip.

    A sample: ``pictures`` uint8 (windows, T, h, w, 3), the expert's box; ``features`` float16 (STRIP_POSITIONS, D), of a
    random one of the prepared variants; ``positions`` float32 (windows + further,), where in the strip the middle of each sound is;
    ``sounding`` bool (windows,); ``lips`` float32 (windows, 40, 2), lip points of the middle frames relative to rest.
    """

    def __init__(self, clips: list[Clip], config: ExpertConfig, *, seed: int, windows: int, further: int) -> None:
        super().__init__(clips, seed=seed)
        self._config, self._windows, self._further = config, windows, further

    def sample_of(self, clip: Clip, random: np.random.Generator) -> dict[str, Tensor]:
        """Around a random frame of the clip."""
        middle = int(random.integers(len(clip)))
        frames = self._frames(clip, middle, random)
        use = self._config.encoder
        prepared = clip.features_of(use)
        voice = int(random.integers(prepared.voices))
        track, per_s = prepared.variant(voice), POSITIONS_PER_S / prepared.speeds[voice]
        begin = round((float(clip.times_s[middle]) + clip.offset_s) * per_s) - STRIP_POSITIONS // 2
        # Further sounds come from where there is sound: what was padded would be too easy to tell.
        first, last = -use.taps[0], STRIP_POSITIONS - 1 - use.taps[-1]
        low, high = max(first, -begin), min(last, len(track) - 1 - begin)
        further = random.uniform(low, max(low, high), self._further)
        positions = np.concatenate([(clip.times_s[frames] + clip.offset_s) * per_s - begin, further]).clip(first, last)
        strip = track[np.clip(begin + np.arange(STRIP_POSITIONS), 0, len(track) - 1)]
        reach = self._config.frames // 2
        around = clip.around(frames, np.arange(-reach, reach + 1))
        mirrored = bool(random.random() < 0.5)
        lips = clip.lips[frames]
        return {
            "pictures": torch.from_numpy(self._pictures(clip.crops, around, mirrored, random)),
            "lips": torch.from_numpy(flip_lips(lips) if mirrored else lips),
            "features": torch.from_numpy(strip),
            "positions": torch.from_numpy(positions.astype(np.float32)),
            "sounding": torch.from_numpy(silence_weight(clip.windows(frames, MelSpec())) <= SILENT),
        }

    def _frames(self, clip: Clip, middle: int, random: np.random.Generator) -> NDArray[np.int64]:
        """`windows` frames within reach of the middle one in time; different ones where the clip has as many."""
        near = np.flatnonzero(np.abs(clip.times_s - clip.times_s[middle]) <= (REACH_FRAMES + 0.5) / GRID_HZ)
        return np.sort(random.choice(near, size=self._windows, replace=len(near) < self._windows))

    def _pictures(
        self, crops: NDArray[np.uint8], around: NDArray[np.int64], mirrored: bool, random: np.random.Generator
    ) -> NDArray[np.uint8]:
        """The box of the frames `around` (windows, T), all with one random alignment, tone and sharpness."""
        frames, slot = np.unique(around, return_inverse=True)
        matrix = _alignment(self._config, crops.shape[1], mirrored, random)
        table = _tone(random)
        grey = random.random() < 0.2
        sigma = float(random.uniform(0.4, 1.2)) if random.random() < 0.3 else 0.0
        height, width = self._config.box_px
        taken = np.empty((len(frames), height, width, 3), np.uint8)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        for row, frame in enumerate(frames):
            picture = cv2.warpAffine(crops[frame], matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
            if grey:
                picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            if sigma:
                picture = cv2.GaussianBlur(picture, (0, 0), sigma)
            taken[row] = cv2.LUT(picture, table[None])
        return taken[slot.reshape(around.shape)]


def _alignment(config: ExpertConfig, stored: int, mirrored: bool, random: np.random.Generator) -> NDArray[np.float64]:
    """Box px to stored px, (2, 3): a random scale, turn and shift of the crop, as if the face were aligned a little otherwise."""
    y0, _, x0, _ = config.box
    scale = stored / (config.size * MARGIN) * (1 + 0.05 * float(np.clip(random.standard_normal(), -2, 2)))
    turn = np.deg2rad(3.0 * float(np.clip(random.standard_normal(), -2, 2)))
    shift = 0.015 * np.clip(random.standard_normal(2), -2, 2) * stored / MARGIN
    mirror = -1.0 if mirrored else 1.0
    cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.array([[mirror * cosine, -sine], [mirror * sine, cosine]])
    # The crop's middle, in px of the box (pixel centres), stays the middle of what is stored.
    middle = np.array([(config.size - 1) / 2 - x0, (config.size - 1) / 2 - y0])
    return np.concatenate([linear, ((stored - 1) / 2 + shift - linear @ middle)[:, None]], axis=1)


def _tone(random: np.random.Generator) -> NDArray[np.uint8]:
    """A random brightness, contrast, gamma and colour as a table, one per channel: uint8 (256, 3)."""
    ramp = np.linspace(0.0, 1.0, 256)[:, None]
    gamma = np.exp(0.25 * random.standard_normal())
    contrast = 1.0 + 0.15 * random.standard_normal()
    balance = (1.0 + 0.1 * random.standard_normal()) * (1.0 + 0.05 * random.standard_normal(3))
    toned = ((ramp**gamma - 0.5) * contrast + 0.5) * balance
    return np.asarray((np.clip(toned, 0, 1) * 255).round(), np.uint8)
