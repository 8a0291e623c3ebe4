"""Do slots stand for phonemes? Address against phoneme classes, beside chance and beside plain clusters of the sound.

The paper (section 3, figure of forced slots) claims that slots hold lip shapes at the level of phonemes. Then the strongest slot
should tell the phoneme, better than clusters of the sound that know nothing of lips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.memory_view.usage import entropy_of, held_out_prediction
from lipdub.phonetics.alignment import Alignment
from lipdub.phonetics.classes import CLASSES, SILENCE

SHUFFLES = 50
FOLDS = 5
MEL_COMPONENTS = 160
CLUSTERED_COMPONENTS = 32
"""Principal components of the mel windows that the classifier and the clusters see."""
CLUSTERED_AT_MOST = 8000
FEWEST_WINDOWS = 200
"""With fewer windows of speech the figures say nothing and are NaN."""


@dataclass(frozen=True, slots=True)
class Partition:
    """How well one way to sort windows into groups agrees with the phoneme classes; fewer groups in use find less."""

    information_bits: float
    """Mutual information of group and class."""
    shuffled_bits: float
    """The same when the phonemes of the speech change places at random (mean): what so many groups reach by chance."""
    purity: float
    """Share of windows whose class is the commonest of their group."""
    shuffled_purity: float
    """The same with shuffled phonemes."""
    accuracy: float
    """Of naming the class by the group, on stretches of time that were held out."""
    groups: int
    """How many occur."""


NAN = float("nan")
NOTHING = Partition(NAN, NAN, NAN, NAN, NAN, 0)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Phonemes against slots over the windows in which something is spoken."""

    matrix: NDArray[np.float64]
    """float64 (classes, S): mean address of the windows of each class. Rows sum to 1, or are NaN where a class does not occur."""
    windows: NDArray[np.int64]
    """int64 (classes,): how many there are, silence included."""
    class_bits: float
    """Entropy of the classes: the most that could be told."""
    address_bits: float
    """Mutual information of class and slot when every window counts for all slots by its address."""
    address_shuffled_bits: float
    """The same with shuffled phonemes."""
    top_slot: Partition
    """Windows sorted by their strongest slot."""
    mel_clusters: Partition
    """By k-means of the mel windows, as many clusters as slots."""
    mel_clusters_few: Partition
    """As many clusters as there are strongest slots: the fair comparison for `top_slot`."""
    commonest: float
    """Share of the commonest class: the accuracy of a guess."""
    accuracy_address: float
    """Of a linear classifier that sees the whole address, on held-out stretches."""
    accuracy_mel: float
    """Of one that sees the mel window."""


def agreement(
    times_s: NDArray[np.float64], windows: NDArray[np.float32], address: NDArray[np.float32], alignment: Alignment, *, seed: int = 0
) -> Agreement:
    """Phoneme classes of `alignment` against slots. times_s (N,), windows (N, bands, columns), address (N, S) of the same moments."""
    kinds = alignment.classes_at(times_s)
    counts = np.bincount(kinds, minlength=len(CLASSES))
    matrix = np.full((len(CLASSES), address.shape[1]), np.nan)
    for kind in np.flatnonzero(counts):
        matrix[kind] = address[kinds == kind].mean(axis=0)
    spoken = np.flatnonzero(kinds != SILENCE)
    if len(spoken) < FEWEST_WINDOWS or len(np.unique(kinds[spoken])) < 2:
        return Agreement(matrix, counts, NAN, NAN, NAN, NOTHING, NOTHING, NOTHING, NAN, NAN, NAN)
    if len(spoken) > CLUSTERED_AT_MOST:
        spoken = spoken[np.linspace(0, len(spoken) - 1, CLUSTERED_AT_MOST).astype(int)]
    random = np.random.default_rng(seed)
    labels, weights = kinds[spoken], address[spoken].astype(np.float64)
    segments = alignment.index_at(times_s[spoken])
    shuffled = [_shuffled(labels, segments, random) for _ in range(SHUFFLES)]
    sound = components(windows[spoken].reshape(len(spoken), -1), MEL_COMPONENTS)
    top = weights.argmax(axis=1)
    slots, in_use = address.shape[1], len(np.unique(top))
    return Agreement(
        matrix=matrix,
        windows=counts,
        class_bits=_bits(np.bincount(labels)),
        address_bits=information_bits(_joint(labels, weights)),
        address_shuffled_bits=float(np.mean([information_bits(_joint(other, weights)) for other in shuffled])),
        top_slot=_partition(top, labels, shuffled),
        mel_clusters=_partition(clusters(sound[:, :CLUSTERED_COMPONENTS], slots, seed), labels, shuffled),
        mel_clusters_few=_partition(clusters(sound[:, :CLUSTERED_COMPONENTS], in_use, seed), labels, shuffled),
        commonest=float(np.bincount(labels).max() / len(labels)),
        accuracy_address=_linear_accuracy(address[spoken] / address[spoken].std(axis=0).clip(1e-6), labels),
        accuracy_mel=_linear_accuracy(sound, labels),
    )


def _shuffled(labels: NDArray[np.int64], segments: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """The labels (N,) with the phonemes in another order: neighbouring windows still share theirs, as in speech."""
    starts = np.flatnonzero(np.diff(np.stack([segments, labels]), prepend=-1).any(axis=0))
    lengths = np.diff([*starts, len(labels)])
    order = random.permutation(len(starts))
    return np.repeat(labels[starts][order], lengths[order])


def information_bits(joint: NDArray[np.float64]) -> float:
    """Mutual information in bits of a joint distribution (rows x columns, sums to 1)."""
    return _bits(joint.sum(axis=1)) + _bits(joint.sum(axis=0)) - _bits(joint.ravel())


def _bits(counts: NDArray[Any]) -> float:
    """Entropy in bits of a distribution, scaled to sum to 1."""
    return float(entropy_of(np.asarray(counts, np.float64)) / np.log(2))


def _joint(labels: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Joint distribution (classes, groups) of labels (N,) and shares of groups (N, groups)."""
    joint = np.eye(len(CLASSES))[:, labels] @ weights
    return joint / joint.sum()


def _partition(groups: NDArray[np.int64], labels: NDArray[np.int64], shuffled: list[NDArray[np.int64]]) -> Partition:
    member = np.eye(int(groups.max()) + 1)[groups]
    joint, others = _joint(labels, member), [_joint(other, member) for other in shuffled]
    right = 0
    for fold in np.array_split(np.arange(len(labels)), FOLDS):
        rest = np.setdiff1d(np.arange(len(labels)), fold)
        table = _joint(labels[rest], member[rest])
        # A group that was never seen is named by the commonest class.
        table = table + 1e-9 * table.sum(axis=1, keepdims=True)
        right += int((table.argmax(axis=0)[groups[fold]] == labels[fold]).sum())
    return Partition(
        information_bits=information_bits(joint),
        shuffled_bits=float(np.mean([information_bits(other) for other in others])),
        purity=float(joint.max(axis=0).sum()),
        shuffled_purity=float(np.mean([other.max(axis=0).sum() for other in others])),
        accuracy=right / len(labels),
        groups=len(np.unique(groups)),
    )


def _linear_accuracy(given: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Accuracy on held-out stretches of ridge regression onto one-hot classes."""
    strength = 0.01 * len(given) * (1 - 1 / FOLDS) * float(given.var(axis=0).mean())
    named = held_out_prediction(given, np.eye(len(CLASSES))[labels], strength, FOLDS).argmax(axis=1)
    return float((named == labels).mean())


def components(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The first principal components of `rows` (N, D): float32 (N, at most `count`)."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ directions[:, ::-1][:, : min(count, *rows.shape)], np.float32)


def clusters(rows: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """k-means: the number of the cluster of each row of `rows` (N, D), at most `count` clusters. The same seed, the same clusters."""
    count = min(count, len(np.unique(rows, axis=0)))
    cv2.setRNGSeed(seed)
    enough = cv2.TERM_CRITERIA_MAX_ITER + cv2.TERM_CRITERIA_EPS, 40, 1e-4
    _, labels, _ = cv2.kmeans(np.ascontiguousarray(rows, np.float32), count, np.empty(0, np.int32), enough, 3, cv2.KMEANS_PP_CENTERS)
    return labels.ravel().astype(np.int64)
