"""Which slots of the memory speech uses, and how sharply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

USED_TIMES_EVEN = 2.0
"""A slot counts as used where it holds at some moment at least this many times an even share (1 / slots)."""
MASS = 0.9
FOLDS = 4
"""Stretches of time, each explained by what the others taught."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How N windows of speech use S slots."""

    share: NDArray[np.float64]
    """float64 (S,), mean address; it sums to 1."""
    peak: NDArray[np.float64]
    """float64 (S,), highest address of each slot."""
    used: NDArray[np.bool_]
    """bool (S,)"""
    perplexity: float
    """exp of the entropy of `share`: 1 (one slot for everything) to S (all alike)."""
    per_moment: float
    """The same of each single address, on average: how many slots answer together."""
    slots_for_90: int
    """Fewest slots that hold 90 % of the share."""
    top_slots: int
    """How many different slots are the strongest of some window."""


def usage_of(address: NDArray[np.float32]) -> Usage:
    """The usage of `address`, float32 (N, S) with rows that sum to 1; N at least 1."""
    if address.ndim != 2 or len(address) == 0:
        raise ValueError(f"addresses must be (N, S) with N at least 1, got {address.shape}")
    rows = address.astype(np.float64)
    share = rows.mean(axis=0) / rows.mean(axis=0).sum()
    peak = rows.max(axis=0)
    falling = np.sort(share)[::-1]
    return Usage(
        share=share,
        peak=peak,
        used=peak >= USED_TIMES_EVEN / rows.shape[1],
        perplexity=float(np.exp(entropy_of(share))),
        per_moment=float(np.exp(entropy_of(rows)).mean()),
        slots_for_90=int(np.searchsorted(np.cumsum(falling), MASS - 1e-9) + 1),
        top_slots=len(np.unique(rows.argmax(axis=1))),
    )


def slot_features(address: NDArray[np.float32], lip_feature: NDArray[np.float32], *, top_share: float = 0.05) -> NDArray[np.float32]:
    """What each slot stands for in the generator's terms: float32 (S, C).

    The mean lip feature, weighted with the slot's address, of the windows in which the slot is strongest (its highest `top_share`
    of N windows, at least three of them). So a slot is shown in the company in which speech recalls it. Slots are not forced alone:
    where addresses are soft, one slot's own value lies far outside of all that the generator has ever drawn.
    """
    count = min(len(address), max(3, round(top_share * len(address))))
    features = np.empty((address.shape[1], lip_feature.shape[1]), np.float32)
    for slot in range(address.shape[1]):
        strongest = np.argpartition(address[:, slot], len(address) - count)[len(address) - count :]
        weight = address[strongest, slot].astype(np.float64) + 1e-12
        features[slot] = (weight @ lip_feature[strongest]) / weight.sum()
    return features


def explained_by_address(address: NDArray[np.float32], lip_feature: NDArray[np.float32]) -> float:
    """Share of the variance of the lip features that is linear in the address, cross-validated over four stretches of time.

    Near 1, the slots alone decide what is drawn; what is missing came past them, straight from the sound. NaN for fewer windows
    than four times the slots, and for lip features that do not change.
    """
    if len(address) < 4 * address.shape[1] or float(lip_feature.std()) < 1e-9:
        return float("nan")
    left = (lip_feature - held_out_prediction(address, lip_feature, 1e-4, FOLDS)) ** 2
    total = (lip_feature - lip_feature.mean(axis=0)) ** 2
    return 1 - float(left.sum()) / float(total.sum())


def held_out_prediction(given: NDArray[np.float32], wanted: NDArray[Any], strength: float, folds: int) -> NDArray[np.float64]:
    """Linear prediction of `wanted` (N, K) from `given` (N, D), float64 (N, K): each of `folds` stretches of rows by ridge regression (of
    this strength) on the others."""
    rows, targets = given.astype(np.float64), np.asarray(wanted, np.float64)
    predicted = np.empty_like(targets)
    for fold in np.array_split(np.arange(len(rows)), folds):
        rest = np.setdiff1d(np.arange(len(rows)), fold)
        middle, target_middle = rows[rest].mean(axis=0), targets[rest].mean(axis=0)
        centred = rows[rest] - middle
        weights = np.linalg.solve(centred.T @ centred + strength * np.eye(rows.shape[1]), centred.T @ (targets[rest] - target_middle))
        predicted[fold] = (rows[fold] - middle) @ weights + target_middle
    return predicted


def entropy_of(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in nats of each row of `shares` (..., S), which are scaled to sum to 1; float64 (...)."""
    scaled = shares / shares.sum(axis=-1, keepdims=True)
    return np.asarray(-(scaled * np.log(scaled, out=np.zeros_like(scaled), where=scaled > 0)).sum(axis=-1))
