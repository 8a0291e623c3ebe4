"""What each loss pulls, what it leaves alone, and where it is zero."""

from __future__ import annotations

import math

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lipdub.train import losses

SIZES = st.integers(2, 8)
SEEDS = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def addresses(seed: int, batch: int, slots: int) -> Tensor:
    return torch.softmax(torch.randn(batch, slots, generator=generator(seed)), dim=1)


# ---- store and align: which side is pulled


@given(SEEDS, SIZES)
def test_store_pulls_the_recall_and_not_the_lip_feature(seed: int, batch: int) -> None:
    random = generator(seed)
    values = torch.randn(5, 6, generator=random, requires_grad=True)
    feature = torch.randn(batch, 6, generator=random, requires_grad=True)
    recalled = addresses(seed, batch, 5) @ F.normalize(values, dim=1)
    loss = losses.store_loss(recalled, feature)
    loss.backward()
    assert loss > 0
    assert feature.grad is None
    assert values.grad is not None
    assert values.grad.abs().sum() > 0
    with torch.no_grad():
        nearer = addresses(seed, batch, 5) @ F.normalize(values - 1e-3 * values.grad, dim=1)
        assert losses.store_loss(nearer, feature) < loss


@given(SEEDS, SIZES)
def test_store_is_zero_for_the_normalised_feature_whatever_its_length(seed: int, batch: int) -> None:
    feature = 7 * torch.randn(batch, 6, generator=generator(seed))
    assert losses.store_loss(F.normalize(feature, dim=1), feature) == pytest.approx(0, abs=1e-6)


@given(SEEDS, SIZES, SIZES)
def test_align_pulls_the_audio_address_and_not_the_lip_address(seed: int, batch: int, slots: int) -> None:
    by_lips = addresses(seed, batch, slots).requires_grad_()
    by_audio = addresses(seed + 1, batch, slots).requires_grad_()
    loss = losses.align_loss(by_lips, by_audio)
    loss.backward()
    assert loss >= -1e-6
    assert by_lips.grad is None
    assert by_audio.grad is not None
    assert by_audio.grad.abs().sum() > 0
    expected = (by_lips * (by_lips.log() - by_audio.log())).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-4)


@given(SEEDS, SIZES, SIZES)
def test_align_is_zero_for_equal_addresses(seed: int, batch: int, slots: int) -> None:
    by_lips = addresses(seed, batch, slots)
    assert losses.align_loss(by_lips, by_lips.clone()) == pytest.approx(0, abs=1e-5)


def test_align_of_no_sample_is_zero() -> None:
    """A batch may be silent as a whole: then there is nothing to align, not a division by zero."""
    loss = losses.align_loss(torch.empty(0, 5), torch.empty(0, 5, requires_grad=True))
    assert loss.item() == 0


# ---- usage


@given(st.integers(2, 96), SIZES)
def test_usage_is_best_when_uniform_and_worst_at_collapse(slots: int, batch: int) -> None:
    uniform = torch.full((batch, slots), 1 / slots)
    collapsed = F.one_hot(torch.zeros(batch, dtype=torch.long), slots).float()
    assert losses.usage_loss(uniform) == pytest.approx(0, abs=1e-4)
    assert losses.usage_loss(collapsed) == pytest.approx(math.log(slots), abs=1e-4)
    assert losses.usage_perplexity(uniform) == pytest.approx(slots, rel=1e-3)
    assert losses.usage_perplexity(collapsed) == pytest.approx(1, abs=1e-4)


@given(st.integers(2, 96))
def test_sharp_addresses_that_share_the_slots_count_as_full_use(slots: int) -> None:
    """Each query on one slot, all slots in turn: what is wanted. Usage is of the batch, not of a row."""
    assert losses.usage_loss(torch.eye(slots)) == pytest.approx(0, abs=1e-4)
    assert losses.usage_perplexity(torch.eye(slots)) == pytest.approx(slots, rel=1e-3)


def test_usage_pulls_a_collapsed_memory_apart() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [2.5, 0.0, 0.1]], requires_grad=True)
    losses.usage_loss(torch.softmax(logits, dim=1)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


# ---- lip points


@given(SEEDS, SIZES)
def test_landmark_loss_is_zero_at_the_truth_alone(seed: int, batch: int) -> None:
    true = 0.1 * torch.randn(batch, 40, 2, generator=generator(seed))
    assert losses.landmark_loss(true, true) == 0
    near, far = losses.landmark_loss(true + 0.01, true), losses.landmark_loss(true + 0.05, true)
    assert 0 < near < far


def test_landmarks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="lip points must be"):
        losses.landmark_loss(torch.zeros(2, 20, 2), torch.zeros(2, 20, 2))


@given(SEEDS)
def test_spread_loss_is_zero_at_equal_spreads(seed: int) -> None:
    true = 0.1 * torch.randn(8, 40, 2, generator=generator(seed))
    assert losses.spread_loss(true + 0.3, true) == pytest.approx(0, abs=1e-5)
    assert losses.spread_loss(true.flip(0), true) == pytest.approx(0, abs=1e-5)


@given(SEEDS, st.floats(0.05, 0.8))
def test_spread_loss_pulls_an_under_articulated_mouth_apart(seed: int, share: float) -> None:
    true = 0.1 * torch.randn(8, 40, 2, generator=generator(seed))
    mean = true.mean(dim=0)
    predicted = (mean + share * (true - mean)).requires_grad_()
    loss = losses.spread_loss(predicted, true)
    assert loss.item() == pytest.approx((1 - share) ** 2, rel=1e-2)
    loss.backward()
    assert predicted.grad is not None
    # Downhill is away from the mean.
    assert ((-predicted.grad) * (predicted.detach() - mean)).sum() > 0


def test_the_spread_of_one_sample_is_no_reason_to_fail() -> None:
    assert losses.spread_loss(torch.zeros(1, 40, 2), torch.ones(1, 40, 2)).item() == 0


# ---- pictures


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 6, 8, generator=generator(seed)) * 2 - 1


@pytest.mark.parametrize("loss", [losses.picture_loss, losses.edge_loss])
@given(seed=SEEDS)
def test_picture_losses_are_zero_at_equality_and_positive_else(loss, seed: int) -> None:
    weight = torch.rand(2, 1, 6, 8, generator=generator(seed)) + 0.1
    assert loss(pictures(seed), pictures(seed), weight) == 0
    assert loss(pictures(seed), pictures(seed + 1), weight) > 0


@given(SEEDS, st.floats(0.01, 100))
def test_picture_loss_is_the_weighted_mean(seed: int, factor: float) -> None:
    weight = torch.rand(2, 1, 6, 8, generator=generator(seed)) + 0.1
    drawn, true = pictures(seed), pictures(seed + 1)
    expected = ((drawn - true).abs() * weight).mean() / weight.mean()
    assert losses.picture_loss(drawn, true, weight).item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses.picture_loss(drawn, true, factor * weight).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("loss", [losses.picture_loss, losses.edge_loss])
def test_what_weighs_nothing_costs_nothing(loss) -> None:
    drawn, true = pictures(0), pictures(0)
    drawn[:, :, :3] = 1
    weight = torch.ones(2, 1, 6, 8)
    assert loss(drawn, true, weight) > 0
    weight[:, :, :4] = 0
    assert loss(drawn, true, weight) == 0
    assert torch.isfinite(loss(drawn, true, torch.zeros_like(weight)))


def test_edge_loss_does_not_see_brightness() -> None:
    assert losses.edge_loss(pictures(0) + 0.3, pictures(0), torch.ones(2, 1, 6, 8)) == pytest.approx(0, abs=1e-6)


@given(SEEDS, st.floats(0.1, 10))
def test_visual_sync_compares_directions(seed: int, length: float) -> None:
    feature = torch.randn(3, 16, generator=generator(seed))
    assert losses.visual_sync_loss(feature, length * feature) == pytest.approx(0, abs=1e-5)
    assert losses.visual_sync_loss(feature, torch.randn(3, 16, generator=generator(seed + 1))) > 0.1


# ---- the discriminator


@given(st.integers(0, 50), st.floats(0.5, 20))
def test_feature_matching_asks_for_the_true_features_whatever_their_scale(seed: int, scale: float) -> None:
    true = [torch.randn(3, 4, side, side, generator=generator(seed)) for side in (8, 4)]
    drawn = [torch.randn(3, 4, side, side, generator=generator(seed + 1)).requires_grad_() for side in (8, 4)]
    assert losses.matching_loss(true, true) == 0
    loss = losses.matching_loss(drawn, true)
    assert losses.matching_loss([scale * one for one in drawn], [scale * one for one in true]).item() == pytest.approx(
        loss.item(), rel=1e-4
    )
    loss.backward()
    assert all(one.grad is not None and (one.grad != 0).any() for one in drawn)
    assert losses.matching_loss([one.detach() for one in drawn], [one.requires_grad_() for one in true]).requires_grad is False


# ---- hinge


def test_the_discriminator_hinge() -> None:
    assert losses.discriminator_loss(torch.full((4,), 1.5), torch.full((4,), -1.5)) == 0
    assert losses.discriminator_loss(torch.zeros(4), torch.zeros(4)) == 2
    assert losses.discriminator_loss(torch.full((4,), -1.0), torch.full((4,), 1.0)) == 4


@given(st.floats(-3, 3))
def test_the_generator_wants_high_scores(score: float) -> None:
    scores = torch.full((4,), score, requires_grad=True)
    loss = losses.adversarial_loss(scores)
    loss.backward()
    assert loss.item() == pytest.approx(-score, abs=1e-6)
    assert scores.grad is not None
    assert (scores.grad < 0).all()
