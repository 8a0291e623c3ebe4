"""Offsets between sound and picture: found by what a ridge hears on other people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdub.bundles.network import EncoderUse
from lipdub.errors import TrainingDataError
from lipdub.train import offsets
from lipdub.train.data import Clip, smoothed
from lipdub.train.features import PreparedFeatures

USE = EncoderUse("plain", "0" * 64, 4, (0,))


def nothing() -> None:
    """Told of a clip."""


def spoken_clip(speaker: str, seed: int, *, offset_s: float = 0.0, frames: int = 150, deaf: bool = False) -> Clip:
    """A clip whose opening is heard, `offset_s` after it is seen, in the first of four channels; the others are noise."""
    random = np.random.default_rng(seed)
    count = 2 * frames + 100
    heard = np.convolve(random.standard_normal(count + 8), np.hanning(9), mode="valid").astype(np.float32)
    values = random.standard_normal((count, USE.channels)).astype(np.float32)
    values[:, 0] = heard
    times_s = 1.0 + np.arange(frames) / 25
    openness = np.interp((times_s + offset_s) * 50, np.arange(count), heard)
    lips = np.zeros((frames, 40, 2), np.float32)
    lips[:, 20:30, 1] = 0.02 * openness[:, None]
    return Clip(
        source=f"{speaker}{seed}.mp4", clip_id=f"{speaker}{seed}", speaker=speaker, crops=np.zeros((frames, 1, 1, 3), np.uint8),
        mel=np.zeros((80, 1), np.float16), times_s=times_s, lips=lips, rest=np.zeros((40, 2), np.float32),
        opening=(0.06 * openness).astype(np.float32), pose=np.zeros((frames, 2), np.float32), shot=np.zeros(frames, np.int32),
        features=PreparedFeatures((0 * values if deaf else values).astype(np.float16), (0, count), (1.0,), USE.sha256),
    )  # fmt: skip


def found_in(clips: list[Clip], anchor: str | None = None) -> list[offsets.Offset]:
    return offsets.estimate(clips, USE, 2, balance=0.45, anchor=anchor, on_clip=nothing)


IN_SYNC = [spoken_clip(f"known{number}", number) for number in range(8)]


@settings(max_examples=8)
@given(true_s=st.lists(st.floats(-0.26, 0.26), min_size=1, max_size=4))
def test_an_offset_is_found_between_the_steps(true_s: list[float]) -> None:
    shifted = [spoken_clip(f"new{number}", 50 + number, offset_s=offset_s) for number, offset_s in enumerate(true_s)]
    found = found_in([*IN_SYNC, *shifted], anchor="known0")[len(IN_SYNC) :]
    assert [one.offset_s + offsets.AHEAD_S for one in found] == pytest.approx(true_s, abs=offsets.STEP_S / 3)
    assert all(one.agrees and one.r > 0.8 for one in found)


def test_the_anchor_sets_what_all_share() -> None:
    """All clips alike late: nobody can tell but by footage that is known to be in sync."""
    late = [spoken_clip(f"late{number}", 80 + number, offset_s=0.1) for number in range(6)]
    anchor = spoken_clip("studio", 90)
    found = {one.clip_id: one.offset_s for one in found_in([*late, anchor], anchor="studio")}
    assert found.pop(anchor.clip_id) == -offsets.AHEAD_S
    assert list(found.values()) == pytest.approx([0.1 - offsets.AHEAD_S] * 6, abs=0.021)


def test_an_anchor_that_nobody_is_is_told() -> None:
    with pytest.raises(TrainingDataError, match="'studio'"):
        found_in(IN_SYNC[:3], anchor="studio")


def test_a_clip_whose_lips_follow_no_sound_is_left_out(tmp_path: Path) -> None:
    deaf, late = spoken_clip("deaf", 30, deaf=True), spoken_clip("late", 31, offset_s=0.08)
    found = found_in([*IN_SYNC, deaf, late], anchor="known1")
    assert [one.clip_id for one in found if not one.agrees] == [deaf.clip_id]
    offsets.store(tmp_path, found)
    stored = json.loads((tmp_path / offsets.OFFSETS_FILE).read_text())
    assert stored[deaf.clip_id] is None
    assert stored[late.clip_id] == pytest.approx(0.08 - offsets.AHEAD_S, abs=0.021)
    assert len(stored) == len(found)
    assert [file.name for file in tmp_path.iterdir()] == [offsets.OFFSETS_FILE]


def test_short_clips_of_a_speaker_share_an_offset() -> None:
    words = [spoken_clip("words", 40 + number, offset_s=0.12, frames=30) for number in range(6)]
    found = found_in([*IN_SYNC, *words], anchor="known2")[len(IN_SYNC) :]
    assert len({one.offset_s for one in found}) == 1
    assert found[0].offset_s == pytest.approx(0.12 - offsets.AHEAD_S, abs=0.021)


def test_a_speaker_with_most_clips_is_judged_by_what_is_heard_of_others() -> None:
    clips = [spoken_clip("most", number) for number in range(9)] + [spoken_clip("few", 20)]
    folds = offsets._folds(clips)
    assert set(folds[:9]) == set(range(offsets.FOLDS))
    whole = offsets._folds([spoken_clip(f"s{number // 2}", number) for number in range(20)])
    assert (whole[::2] == whole[1::2]).all()


def test_a_clip_without_features_is_told() -> None:
    with pytest.raises(TrainingDataError, match="no features"):
        found_in([*IN_SYNC, replace(IN_SYNC[0], features=None)])


@given(count=st.integers(1, 30), cut=st.integers(0, 30), seed=st.integers(0, 99))
def test_lips_are_smoothed_within_their_shot(count: int, cut: int, seed: int) -> None:
    lips = np.random.default_rng(seed).standard_normal((count, 40, 2)).astype(np.float32)
    shot = (np.arange(count) >= cut).astype(np.int32)
    found = smoothed(lips, shot)
    assert (found.shape, found.dtype) == (lips.shape, np.float32)
    for here in (shot == 0, shot == 1):
        np.testing.assert_allclose(found[here], smoothed(lips[here], shot[here]), atol=1e-6)
    np.testing.assert_allclose(smoothed(np.ones_like(lips), shot), 1, atol=1e-6)
