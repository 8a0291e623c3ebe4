"""Where a speech pauses and how loud it is, judged once over the whole of it, relative to its own level and to what else sounds.

Three judges, each sure of other sounds:

- *Level*: below a fixed loudness, in sound that was brought to the usual level, nobody speaks.
- *Floor*: steady noise has a loudness that it never falls below and often comes back to. What lies at it is noise alone.
- *Voice*: in music neither holds. There a voice detector judges, where it finds a voice that is louder than what it takes for none: of
  singing or whispering it takes much for none that is just as loud, and then it is not asked.

Nothing here sees more than a number for each 20 ms, so about 8 bytes are kept for each frame of a video, and 50
are used while it is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.bundles.encoder import BANDS
from lipdub.bundles.voice import FRAME
from lipdub.runtime import Session
from lipdub.speech.silence import pause_weight
from lipdub.speech.voice import voice_in
from lipdub.speech.whisper_mel import FLOOR, RATE_HZ, SILENT_BELOW, SOUNDING_ABOVE, WhisperMelStream

Blocks = Iterable[NDArray[np.float32]]
"""Mono float32 samples at 16 kHz, as ``media.read_audio`` yields them."""

POSITIONS_PER_S: Final = 50
REACH: Final = 5
"""Positions around a moment, 0.1 s, whose sound keeps it from being a pause."""
QUIET_DB: Final = -28.0
"""Speech below this level (see `level_db`) is brought to it before it is heard; all other speech is heard as it is."""
JUDGED_DB: Final = -17.0
"""The level at which pauses are judged, about that of the footage to which the loudness of a pause was fitted."""
_MOST_GAIN_DB: Final = 80.0
_VOICE_BANDS: Final = slice(5, 63)
"""Bands of the log-mel from 200 to 4000 Hz: neither an offset nor hum nor hiss make a speech louder."""
_FAINTEST: Final = -13.0
"""log10 of the power that counts as none when the level is measured: below the rounding of 16-bit sound."""
_AROUND: Final = round(2.5 * POSITIONS_PER_S)
"""Positions before and after a moment in which its background is looked for."""
_FAINTER_DB: Final = 7.0
"""Power by which a pause in noise or music is below the speech."""
_LASTING: Final = round(0.25 * POSITIONS_PER_S)
"""Half of the positions that a pause in noise or music lasts at least."""
_NEAR_FLOOR: Final = 0.04
_OFTEN: Final = 0.08
"""A floor is where so large a share of the moments is within 1.6 dB of the faintest."""
_LOUDER_BY_DB: Final = 3.0
"""Power by which a voice stands out."""
_LEAST_VOICE: Final = 0.1
_ABOVE_FLOOR: Final = 0.1
"""Loudness, 4 dB, by which there is something above a floor."""
_VOICE_REACH: Final = 3
_AT_ONCE: Final = 4096
_BINS_PER_DB: Final = 4
_BINS: Final = 130 * _BINS_PER_DB
"""Levels from -130 dB of full scale on."""
_FAINT_DB: Final = -110
"""Below it there is silence, or the rounding of 16-bit sound."""
_TO_FULL_SCALE_DB: Final = -25.9
"""What brings the power in the bands of a sine of full scale to 0 dB."""
_GROUPS_APART_DB: Final = 6.0
_HIGH_PASS_HZ: Final = 80.0


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Pauses:
    """weight: float32 (P,), how far each position is a pause, from 0 (sounding) to 1 (silent), 50 a second, the first one at 0.
    gain: what the sound is multiplied by before it is heard; 1 for speech of usual level. sounds: there is more than digital silence and
    the rounding of 16-bit sound."""

    weight: NDArray[np.float32]
    gain: float = 1.0
    sounds: bool = True

    def at(self, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """How far moments (n,) are pauses, float32 (n,); after the sound all are."""
        position = np.maximum(np.round(np.asarray(times_s, np.float64) * POSITIONS_PER_S).astype(np.int64), 0)
        return np.append(self.weight, np.float32(1))[np.minimum(position, len(self.weight))]


def pauses_of(blocks: Callable[[], Blocks], voice: Session | None) -> Pauses:
    """The pauses of a speech. blocks: gives its sound from the start, each time it is called. voice: None for no voice detector."""
    counts = levels(blocks())
    level = level_db(counts)
    gain = 1.0 if level is None else _gain(JUDGED_DB - level)

    def judged_sound() -> Blocks:
        return brought(blocks(), gain)

    loud, power_db = (_around(track, REACH).max(axis=1) for track in loudness(judged_sound()))
    weight = pause_weight(loud, SILENT_BELOW, SOUNDING_ABOVE)
    # What lies behind the end is no background of the end.
    lasting = max(1, len(loud) - 2 * REACH)
    background = np.pad(_around(loud[:lasting], _AROUND).min(axis=1), (0, len(loud) - lasting), mode="edge")
    noisy = background > SOUNDING_ABOVE  # elsewhere the level tells
    if noisy.any():
        sounding = loud > SOUNDING_ABOVE
        voiced = None if voice is None else _voiced(voice_in(judged_sound(), voice), power_db, sounding)
        if voiced is None:
            is_floor = (background < np.quantile(loud[sounding], 0.9) - _ABOVE_FLOOR) & (_share_near_floor(loud, background) >= _OFTEN)
            judged = pause_weight(loud - background, 0.75 * _NEAR_FLOOR, _NEAR_FLOOR) * is_floor
        else:
            judged = pause_weight(voiced, 0.2, 0.4)
        # What is about as loud as the speech may be speech that no judge knows.
        judged = judged * (power_db < np.quantile(power_db[sounding], 0.75) - _FAINTER_DB)
        # Between two words mouths stay as they are; whoever pauses for longer shuts it. Where it is quiet the level tells that by itself.
        judged = _around(_around(judged, _LASTING).min(axis=1), _LASTING).max(axis=1)
        weight = np.where(noisy, np.maximum(weight, judged), weight).astype(np.float32)
    return Pauses(weight, 1.0 if level is None else max(1.0, _gain(QUIET_DB - level)), bool(counts.any()))


def _gain(raise_db: float) -> float:
    return float(10.0 ** (min(raise_db, _MOST_GAIN_DB) / 20))


def brought(blocks: Blocks, gain: float) -> Blocks:
    """The sound times `gain`, within [-1, 1]; as it is where the gain is 1. What is raised loses its offset and its hum."""
    if gain <= 1:
        return blocks if gain == 1 else (np.float32(gain) * block for block in blocks)
    high_pass = _high_pass()
    before = np.zeros(len(high_pass) - 1)

    def raised(block: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal before
        if not len(block):
            return block
        heard = np.concatenate([before, block])
        before = heard[len(block) :]
        return np.clip(gain * np.convolve(heard, high_pass, mode="valid"), -1, 1).astype(np.float32)

    return map(raised, blocks)


@cache
def _high_pass() -> NDArray[np.float64]:
    """What a Butterworth filter of second order that lets pass what is above 80 Hz answers to an impulse, float64 (1024,): what comes after
    is below 1e-9."""
    turn = 2 * np.pi * _HIGH_PASS_HZ / RATE_HZ
    alpha, cosine = np.sin(turn) / np.sqrt(2), np.cos(turn)
    forward = np.array([1 + cosine, -2 * (1 + cosine), 1 + cosine]) / 2 / (1 + alpha)
    back = np.array([-2 * cosine, 1 - alpha]) / (1 + alpha)
    answer = np.zeros(1024)
    for k in range(len(answer)):
        answer[k] = (forward[k] if k < 3 else 0.0) - back[0] * answer[max(0, k - 1)] * (k > 0) - back[1] * answer[max(0, k - 2)] * (k > 1)
    return answer


def levels(blocks: Blocks) -> NDArray[np.int64]:
    """How many moments of 10 ms have which power in the bands of a voice, int64 (bins,); none that is fainter than the rounding of 16
    bits."""
    stream, counts = WhisperMelStream(floor=_FAINTEST), np.zeros(_BINS, np.int64)
    for columns in chain(map(stream.push, blocks), map(WhisperMelStream.flush, [stream])):
        bins = np.round(_power_db(columns) * _BINS_PER_DB).astype(np.int64) + _BINS
        counts += np.bincount(bins.clip(0, _BINS - 1), minlength=_BINS)
    counts[: _BINS + round(_FAINT_DB) * _BINS_PER_DB] = 0
    return counts


def level_db(counts: NDArray[np.int64]) -> float | None:
    """How loud the speech in a sound is, dB of full scale: the middle of the louder one of the two groups that its `levels` fall into
    (Otsu 1979), so that neither pauses nor single bangs count. None for silence, and for a steady sound, which has no groups."""
    bins = np.arange(_BINS)
    below, sums = np.cumsum(counts), np.cumsum(counts * bins)
    above = below[-1] - below
    inside = (below > 0) & (above > 0)
    if not inside.any():
        return None
    apart = (sums[-1] - sums) / np.maximum(above, 1) - sums / np.maximum(below, 1)
    cut = int(np.argmax(np.where(inside, below * above * apart**2, -1.0)))
    if apart[cut] < _GROUPS_APART_DB * _BINS_PER_DB:
        return None
    louder = np.cumsum(np.where(bins > cut, counts, 0))
    return (float(np.searchsorted(louder, louder[-1] / 2)) - _BINS) / _BINS_PER_DB


def loudness(blocks: Blocks) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each position, 50 a second, the louder of two columns, float32 (positions,): the mean over the bands of the log-mel, to which
    faint consonants add much, and the power in the bands of a voice, dB. The last ones lie in silence."""
    stream = WhisperMelStream()
    means, powers = [], []
    for columns in chain(map(stream.push, blocks), map(WhisperMelStream.flush, [stream])):
        means.append(columns.mean(axis=0))
        powers.append(_power_db(columns))
    behind = 2 * REACH + 1

    def positions(columns: list[NDArray[np.float32]], silence: np.float32) -> NDArray[np.float32]:
        found = np.concatenate([*columns, np.full(behind, silence, np.float32)])
        return np.asarray(found[: len(found) // 2 * 2].reshape(-1, 2).max(axis=1), np.float32)

    silent = np.full((BANDS, 1), (FLOOR + 4.0) / 4.0, np.float32)
    return positions(means, silent.mean()), positions(powers, _power_db(silent)[0])


def _power_db(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Power in the bands of a voice, dB of full scale, float32 (columns,)."""
    power = (10.0 ** (4.0 * columns[_VOICE_BANDS].astype(np.float64) - 4.0)).sum(axis=0)
    return (10 * np.log10(power) + _TO_FULL_SCALE_DB).astype(np.float32)


def _around(track: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """What lies up to `reach` positions before and after each one, float32 (P, 2 reach + 1), a view; the ends go on for ever."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(track, reach, mode="edge"), 2 * reach + 1)


def _share_near_floor(loud: NDArray[np.float32], background: NDArray[np.float32]) -> NDArray[np.float32]:
    """The share of the moments around each one that are hardly louder than its background, (P,)."""
    around = _around(loud, _AROUND)
    found = np.empty(len(loud), np.float32)
    for first in range(0, len(loud), _AT_ONCE):
        here = slice(first, first + _AT_ONCE)
        found[here] = (around[here] <= background[here, None] + _NEAR_FLOOR).mean(axis=1)
    return found


def _voiced(probability: NDArray[np.float32], power_db: NDArray[np.float32], sounding: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """How likely each position holds a voice, (P,); None where the detector does not tell it from what is as loud."""
    frame = np.arange(len(power_db)) * (RATE_HZ // POSITIONS_PER_S) // FRAME
    found = np.where(frame < len(probability), probability[np.minimum(frame, len(probability) - 1)], np.float32(0))
    found = _around(found, _VOICE_REACH).max(axis=1)
    voiced, other = sounding & (found > 0.5), sounding & (found <= 0.5)
    if voiced.sum() < _LEAST_VOICE * sounding.sum():
        return None
    if other.any() and np.median(power_db[voiced]) < np.median(power_db[other]) + _LOUDER_BY_DB:
        return None
    return found
