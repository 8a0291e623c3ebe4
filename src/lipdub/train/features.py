"""Features of the speech encoder for prepared clips: of the sound as it is, and of variants of it in other voices, rooms and noise.

Beside a clip's other files lie ``<clip>.features.npy``, float16 (P, D), the positions (50 a second) of all variants one after another, and
``<clip>.features.json``: where each begins, and how fast it plays.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.atomic import whole_file, write_whole
from lipdub.bundles import bundle, encoder
from lipdub.bundles.encoder import POSITIONS_PER_S
from lipdub.bundles.network import NetworkConfig
from lipdub.errors import LipdubError, TrainingDataError
from lipdub.speech.encoder import SpeechEncoder, feature_track, interpolated
from lipdub.speech.mel import SILENCE
from lipdub.speech.whisper_mel import RATE_HZ
from lipdub.train.sound_variants import speed_of, varied

_ALL_S = 24 * 3600.0
"""More sound than any clip for training has."""
APART_S = 0.5
"""Silence between sounds that are heard together."""
_FEATURES, _ABOUT = ".features.npy", ".features.json"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PreparedFeatures:
    """Features of V variants of one clip's sound; the first one is the sound as it is."""

    values: NDArray[np.float16]
    """(P, D), memory-mapped."""
    starts: tuple[int, ...]
    """V + 1 positions: where each variant begins, and the end."""
    speeds: tuple[float, ...]
    """Of each variant: seconds of the sound as it is that one of its own plays."""
    sha256: str
    """Of the encoder's graph."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.starts) != len(self.speeds) + 1 or self.starts[-1] != len(self.values):
            raise ValueError(f"variants must make up the positions, got {self.values.shape} for {self.starts}")

    @property
    def voices(self) -> int:
        """V."""
        return len(self.speeds)

    def variant(self, voice: int) -> NDArray[np.float16]:
        """The positions (n, D) of one variant."""
        return self.values[self.starts[voice] : self.starts[voice + 1]]

    def windows(self, sound_s: NDArray[np.float64], taps: tuple[int, ...], voice: int = 0) -> NDArray[np.float32]:
        """Windows around the moments `sound_s` (n,) of the sound as it is, as one of its variants says them: float32 (n, taps, D)."""
        return interpolated(self.variant(voice), sound_s[:, None] / self.speeds[voice] * POSITIONS_PER_S + np.array(taps))


def load_features(folder: Path, clip_id: str) -> PreparedFeatures | None:
    """What `prepare_features` has written for a clip; None where it has not. Raises TrainingDataError where that is damaged."""
    about = folder / f"{clip_id}{_ABOUT}"
    if not about.exists():
        return None
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
        values = np.load(folder / f"{clip_id}{_FEATURES}", mmap_mode="r", allow_pickle=False)
        return PreparedFeatures(values, tuple(facts["starts"]), tuple(facts["speeds"]), facts["sha256"])
    except Exception as error:  # a damaged file makes json and numpy raise nearly anything
        raise TrainingDataError(f"its features cannot be read ({' '.join(str(error).split())[:120]}); prepare them again") from error


def prepare_features(
    folder: Path, clips: Sequence[tuple[str, Path]], encoder_folder: Path, *, voices: int, workers: int, on_clip: Callable[[], None]
) -> None:
    """Write the features of the prepared `clips`, (clip id, source), beside them in `folder`; what is there already is left.

    voices: variants besides the sound as it is. Raises BundleNotFound, BundleInvalid, TrainingDataError, WriteFailed.
    """
    spec = encoder.load_spec(encoder_folder)
    todo = []
    for clip_id, source in clips:
        if _is_there(folder, clip_id, spec.graphs[encoder.GRAPH], voices):
            on_clip()
        else:
            todo.append((clip_id, source))
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(write_features, folder, clip_id, source, encoder_folder, voices) for clip_id, source in todo]
        try:
            for future in futures:
                future.result()
                on_clip()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def find_encoder(name_or_path: str) -> Path:
    """The folder of an encoder, given its name or its path. Raises BundleNotFound."""
    return bundle.resolve(name_or_path, spec_file=encoder.SPEC_FILE)


def _is_there(folder: Path, clip_id: str, sha256: str, voices: int) -> bool:
    try:
        found = load_features(folder, clip_id)
    except TrainingDataError:
        return False
    return found is not None and found.sha256 == sha256 and found.voices > voices


def write_features(folder: Path, clip_id: str, source: Path, encoder_folder: Path, voices: int, *, until_s: float = _ALL_S) -> None:
    """Write the features of one prepared clip into `folder`, those of the first `until_s` of its sound.

    Raises TrainingDataError, WriteFailed.
    """
    try:
        samples = media.first_samples(source, RATE_HZ, round(until_s * RATE_HZ))
    except LipdubError as error:
        raise TrainingDataError(f"the sound of '{source}' cannot be read any more: {error}") from error
    speech_encoder = _opened(encoder_folder)
    sounds, speeds = [], [1.0]
    for voice in range(1, voices + 1):
        random = np.random.default_rng(zlib.crc32(f"{clip_id} {voice}".encode()))
        speeds.append(speed_of(random))
        sounds.append(varied(samples, speeds[-1], random))
    parts = [feature_track(samples, speech_encoder), *tracks_together(sounds, speech_encoder)]
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    with whole_file(folder / f"{clip_id}{_FEATURES}") as part:
        np.save(part, np.concatenate(parts).astype(np.float16))
    about = {"starts": starts, "speeds": speeds, "sha256": speech_encoder.spec.graphs[encoder.GRAPH]}
    write_whole(folder / f"{clip_id}{_ABOUT}", json.dumps(about))


def tracks_together(sounds: Sequence[NDArray[np.float32]], speech_encoder: SpeechEncoder) -> list[NDArray[np.float32]]:
    """The features of each of some sounds, as `feature_track` gives them, but heard one after another with ``APART_S`` between them: a
    window of the encoder takes as long for a word as for ten seconds."""
    if not sounds:
        return []
    per_position = RATE_HZ // POSITIONS_PER_S
    counts = [-(-len(sound) // per_position) + 1 for sound in sounds]
    places = [(count + round(APART_S * POSITIONS_PER_S)) * per_position for count in counts]
    joined = np.concatenate([np.pad(sound, (0, place - len(sound))) for sound, place in zip(sounds, places, strict=True)])
    track, first = feature_track(joined, speech_encoder), np.cumsum([0, *places]) // per_position
    return [track[begin : begin + count] for begin, count in zip(first.tolist(), counts, strict=False)]


@lru_cache(maxsize=1)
def _opened(folder: Path) -> SpeechEncoder:
    return SpeechEncoder(folder, encoder.load_spec(folder), device="cpu", threads=1)


@lru_cache(maxsize=1)  # `lipdub adapt` asks at every validation
def silent_windows(config: NetworkConfig, *, beside: Path | None = None) -> NDArray[np.float32]:
    """One window of digital silence as the networks of `config` take it: float32 (1, ...). beside: the bundle that the encoder lies beside,
    None for an encoder that came with lipdub. Raises BundleNotFound, BundleInvalid."""
    if config.encoder is None:
        assert config.mel is not None  # the config holds one of the two
        return np.full((1, 1, config.mel.bands, config.mel.window), SILENCE, np.float32)
    folder, spec = encoder.find(config.encoder.name, config.encoder.sha256, beside=beside or find_encoder(config.encoder.name))
    track = feature_track(np.zeros(round(2 * spec.core_s * RATE_HZ), np.float32), _opened(folder))
    return interpolated(track, np.array([[spec.core_s * POSITIONS_PER_S]]) + np.array(config.encoder.taps))
