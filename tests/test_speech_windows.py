"""The speech windows of a moment: three in time, the outer two in other voices; one where nothing is smoothed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import MelSound, fake_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipdub.records import MelSpec
from lipdub.speech.mel import SILENCE, cut_windows
from lipdub.speech.silence import silence_weight
from lipdub.speech.windows import Tap, in_another_voice, taps_of, windows_of

SPEC = MelSpec()


def some_mel(columns: int = 400) -> NDArray[np.float32]:
    return np.random.default_rng(columns).uniform(-4, 4, (SPEC.bands, columns)).astype(np.float32)


@given(bands=st.integers(-90, 90))
def test_another_voice_is_the_same_sound_moved_along_the_bands(bands: int) -> None:
    windows = some_mel(32).reshape(SPEC.bands, 2, 16).swapaxes(0, 1).copy()
    before = windows.copy()
    moved = in_another_voice(windows, bands)
    assert (windows == before).all()
    assert moved.shape == windows.shape
    for band in range(SPEC.bands):
        source = band - bands
        wanted = windows[:, source] if 0 <= source < SPEC.bands else np.float32(SILENCE)
        assert (moved[:, band] == wanted).all()


@given(smoothing_s=st.floats(0, 0.2), voice_bands=st.integers(0, 8))
def test_the_taps_lie_evenly_about_the_moment_and_share_it(smoothing_s: float, voice_bands: int) -> None:
    taps = taps_of(replace(fake_spec(), tap_distance_s=smoothing_s, voice_bands=voice_bands))
    assert sum(tap.weight for tap in taps) == 1
    assert sum(tap.weight * tap.later_s for tap in taps) == 0
    assert sum(tap.weight * tap.bands for tap in taps) == 0
    # The moment itself is heard as it is.
    assert any((tap.later_s, tap.bands) == (0, 0) for tap in taps)
    assert max(tap.later_s for tap in taps) == smoothing_s
    assert max(tap.bands for tap in taps) == (voice_bands if smoothing_s > 0 else 0)


def test_without_smoothing_there_is_one_tap() -> None:
    assert taps_of(replace(fake_spec(), voice_bands=3)) == (Tap(0.0, 0, 1.0),)


@given(count=st.integers(0, 9), voice_bands=st.integers(0, 4), smoothing_s=st.sampled_from([0.0, 0.03]))
@settings(deadline=None)
def test_what_is_recalled_is_the_mean_over_the_taps_in_their_voices(count: int, voice_bands: int, smoothing_s: float) -> None:
    spec = replace(fake_spec(), tap_distance_s=smoothing_s, voice_bands=voice_bands)
    mel, times_s = some_mel(), np.linspace(0.5, 4, count)
    speech = windows_of(times_s, spec, sound := MelSound(mel, SPEC), sound)

    def recalled(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Any function of one window: which band is the loudest, and how loud all is."""
        return np.stack([windows.mean(axis=2).argmax(axis=1), windows.mean(axis=(1, 2))], axis=1).astype(np.float32).reshape(-1, 2)

    wanted = np.zeros((count, 2))
    silence = np.zeros(count)
    for tap in taps_of(spec):
        own = cut_windows(mel, times_s + tap.later_s, SPEC)
        wanted += tap.weight * recalled(in_another_voice(own, tap.bands))
        silence += tap.weight * silence_weight(own)
    np.testing.assert_allclose(speech.mean(recalled(speech.windows)), wanted, atol=1e-4)
    np.testing.assert_allclose(speech.silence, silence, atol=1e-6)


@pytest.mark.parametrize("voice_bands", [0, 2, 8])
def test_a_pause_is_one_in_every_voice(voice_bands: int) -> None:
    """Whether it is silent is read from the sound as it is, not from what moving its bands left."""
    spec = replace(fake_spec(), tap_distance_s=0.03, voice_bands=voice_bands)
    level = np.full((SPEC.bands, 400), -3.1, np.float32)
    speech = windows_of(np.array([2.0]), spec, sound := MelSound(level, SPEC), sound)
    plain = windows_of(np.array([2.0]), replace(spec, voice_bands=0), sound, sound)
    assert speech.silence == plain.silence
    assert 0 < speech.silence[0] < 1
