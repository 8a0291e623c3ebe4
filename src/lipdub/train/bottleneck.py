"""The bottleneck of hearing: from features of the speech encoder to what lips do and which phoneme sounds, in closed form.

There are five minutes of varied speakers. A network that learns from 4,600 features by steps overfits within a hundred of them (r of the
opening on unseen people 0.60); ridge regression on a few principal components of each layer does not (0.67).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.decomposition import PCA

from lipdub.bundles.network import EncoderUse
from lipdub.phonetics.classes import CLASSES
from lipdub.train.data import Clip
from lipdub.train.labelled_speech import SpokenFeatures
from lipdub.train.networks import LIP_COMPONENTS

COMPONENTS = 128
"""Principal components of each encoder layer that are looked at."""
RIDGE = 0.02
"""Of the mean variance of a component."""
USUAL_SPREAD, LEAST_SPREAD = 0.06, 0.012
"""Standard deviation of the opening, over eye distance, of somebody who speaks; and below which it is mostly the detector's noise."""
EVENED = 0.75
"""How far the lips of those who move them much and those who move them little are brought to one size (1: wholly)."""
_PCA_EVERY, _SCALED_EVERY, _AT_ONCE = 16, 7, 8000


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Bottleneck:
    """z = features x weight + bias, of the features of a window one tap after another. Over footage z has mean 0 and variance 1."""

    weight: NDArray[np.float32]
    """(taps D, Z)"""
    bias: NDArray[np.float32]
    """(Z,)"""

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """windows float32 (n, taps, D) to z float32 (n, Z)."""
        return np.asarray(windows.reshape(len(windows), -1) @ self.weight + self.bias, np.float32)


def fit_bottleneck(
    clips: list[Clip], spoken: SpokenFeatures | None, use: EncoderUse, layers: int, *, balance: float, on_clip: Callable[[], None]
) -> Bottleneck:
    """The bottleneck of `clips`, whose features were prepared, and of labelled speech: its first outputs tell lips, the others phonemes.

    layers: hidden states that a position is made of. balance: a speaker counts in proportion to (frames of that speaker) to this power.
    Raises TrainingDataError: a clip without features.
    """
    basis = Basis.of(clips, use, layers)
    wanted = lip_components(clips, balance)
    sums = Sums()
    for clip, of_lips, weights in zip(clips, wanted, by_clip(speaker_weights(clips, balance), clips), strict=True):
        features = clip.features_of(use)
        for voice in range(features.voices):
            sums.add(basis(features.windows(clip.times_s + clip.offset_s, use.taps, voice)), of_lips, weights)
        on_clip()
    solved = [sums.solved()]
    solved.append(_phonemes(spoken, basis) if spoken is not None else np.zeros((len(solved[0]), len(CLASSES))))
    raw = basis.before(np.concatenate(solved, axis=1))
    z = np.concatenate([raw(clip.features_of(use).windows(clip.times_s[::_SCALED_EVERY] + clip.offset_s, use.taps)) for clip in clips])
    scale = 1 / (z.std(axis=0) + 1e-4)
    return Bottleneck(raw.weight * scale, (raw.bias - z.mean(axis=0)) * scale)


def lip_scale(clip: Clip) -> float:
    """The factor that brings a clip's lip motion to the usual size."""
    return float((USUAL_SPREAD / max(float(clip.opening.std()), LEAST_SPREAD)) ** EVENED)


def speaker_weights(clips: list[Clip], balance: float) -> NDArray[np.float32]:
    """Weight of each frame of `clips`, one after another: speakers in proportion to (their frames) ** balance. float32 (N,)."""
    frames: Counter[str] = Counter()
    for clip in clips:
        frames[clip.speaker] += len(clip)
    return np.concatenate([np.full(len(clip), frames[clip.speaker] ** (balance - 1), np.float32) for clip in clips])


def by_clip(rows: NDArray[np.float32], clips: list[Clip]) -> list[NDArray[np.float32]]:
    """Rows of the frames of `clips`, one after another, to those of each clip."""
    return np.split(rows, np.cumsum([len(clip) for clip in clips])[:-1])


class Sums:
    """Normal equations of a linear regression with a constant, summed up piece by piece."""

    def __init__(self) -> None:
        self.left: NDArray[np.float64] | float = 0.0
        self.right: NDArray[np.float64] | float = 0.0

    def add(self, inputs: NDArray[np.float32], outputs: NDArray[np.float32], weights: NDArray[np.float32] | None = None) -> None:
        """inputs (n, K), outputs (n, Z), weights (n,) or all alike."""
        for first in range(0, len(inputs), _AT_ONCE):
            here = slice(first, first + _AT_ONCE)
            rows = np.concatenate([inputs[here], np.ones((len(inputs[here]), 1), np.float32)], axis=1)
            weighted = rows if weights is None else rows * weights[here, None]
            self.left = self.left + weighted.T @ rows
            self.right = self.right + weighted.T @ outputs[here]

    @classmethod
    def joined(cls, parts: Iterable[Sums]) -> Sums:
        """All of these together."""
        whole = cls()
        for part in parts:
            whole.left = whole.left + part.left
            whole.right = whole.right + part.right
        return whole

    def solved(self) -> NDArray[np.float64]:
        """Coefficients (K + 1, Z), the constant last, under a small ridge."""
        left, right = np.array(self.left, np.float64), np.array(self.right, np.float64)
        size = np.trace(left) / len(left)
        left, right = left / size, right / size
        left[np.diag_indices(len(left) - 1)] += RIDGE
        return np.asarray(cho_solve(cho_factor(left), right))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Basis:
    """Principal components of each layer of a position: components (layers, channels, K), means (layers, channels); of every tap alike."""

    components: NDArray[np.float32]
    means: NDArray[np.float32]
    taps: int

    @classmethod
    def of(cls, clips: list[Clip], use: EncoderUse, layers: int) -> Basis:
        """That of the sounds of `clips` as they are. Raises TrainingDataError: a clip without features."""
        found = [clip.features_of(use) for clip in clips]
        sample = np.concatenate([one.values[: one.starts[1] : _PCA_EVERY].astype(np.float32) for one in found])
        sample = sample.reshape(-1, layers, use.channels // layers)
        count = min(COMPONENTS, sample.shape[2], len(sample))
        fitted = [PCA(count, svd_solver="covariance_eigh").fit(sample[:, layer]) for layer in range(layers)]
        return cls(
            np.stack([one.components_.T for one in fitted]).astype(np.float32), np.stack([one.mean_ for one in fitted]), len(use.taps)
        )

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """windows (n, taps, D) to (n, taps layers K)."""
        layers, channels, _ = self.components.shape
        # Layer by layer: one product over all of them is many times slower than these.
        split = windows.reshape(-1, layers, channels) - self.means
        found = np.stack([split[:, layer] @ self.components[layer] for layer in range(layers)], axis=1)
        return found.reshape(len(windows), -1)

    def before(self, coefficients: NDArray[np.float64]) -> Bottleneck:
        """What `coefficients` (taps layers K + 1, Z) make of the components, straight from the features."""
        layers, channels, count = self.components.shape
        inner = coefficients[:-1].reshape(self.taps, layers, count, -1)
        weight = np.einsum("lck,tlkz->tlcz", self.components, inner)
        bias = coefficients[-1] - np.einsum("lc,tlcz->z", self.means, weight)
        return Bottleneck(weight.reshape(self.taps * layers * channels, -1).astype(np.float32), bias.astype(np.float32))


def lip_components(clips: list[Clip], balance: float) -> Iterator[NDArray[np.float32]]:
    """The first principal components of each clip's lips at the usual size, (N, ``LIP_COMPONENTS``), the first with variance 1."""
    lips = np.concatenate([lip_scale(clip) * clip.lips.reshape(len(clip), -1) for clip in clips])
    weights = speaker_weights(clips, balance)
    mean = np.average(lips, axis=0, weights=weights)
    variances, axes = np.linalg.eigh(np.cov((lips - mean).T, aweights=weights))
    found = (lips @ axes[:, ::-1][:, :LIP_COMPONENTS] / np.sqrt(variances[-1])).astype(np.float32)
    yield from by_clip(found, clips)


def _phonemes(spoken: SpokenFeatures, basis: Basis) -> NDArray[np.float64]:
    """Coefficients that tell the phoneme classes of labelled speech; rare classes count for more."""
    counts = np.maximum(np.bincount(spoken.kind[spoken.train], minlength=len(CLASSES)), 1)
    weights = (1 / np.sqrt(counts))[spoken.kind].astype(np.float32)
    sums = Sums()
    for voice in range(spoken.voices):
        for first in range(0, len(spoken.train), _AT_ONCE):
            rows = spoken.train[first : first + _AT_ONCE]
            sums.add(basis(spoken.windows(rows, voice)), np.eye(len(CLASSES), dtype=np.float32)[spoken.kind[rows]], weights[rows])
    return sums.solved()
