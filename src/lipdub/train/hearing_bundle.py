"""From a bundle, an encoder and prepared footage to a bundle that hears through the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lipdub import __version__
from lipdub.bundles import bundle, encoder
from lipdub.errors import OutputRefused
from lipdub.speech.encoder import SpeechEncoder, feature_track
from lipdub.speech.whisper_mel import RATE_HZ
from lipdub.stages import OnProgress
from lipdub.train.data import Clip, load_clips
from lipdub.train.export import MODEL_CARD, Exported, check_folder, write_bundle
from lipdub.train.features import find_encoder
from lipdub.train.hearing import POINTS_HIDDEN, HearingSettings, hearing_config, train_hearing
from lipdub.train.labelled_speech import SpokenFeatures
from lipdub.train.lip_side import LipSettings, recall_by_lips, train_lip_side
from lipdub.train.networks import LipMemory
from lipdub.train.weights import load_bundle_networks

FAINT_DB = (-90, -80, -70, -65, -60, -55, -50)
"""Levels of noise that counts as silence, dB of full scale."""
_SILENCE_S = 10.0
MEASURED_S = 4.0
"""Clips that are shorter say little of a correlation."""


@dataclass(frozen=True, slots=True)
class HearingJob:
    """What is trained. model: whose generator stays. encoder: name or folder. speech: labelled speech, None for none."""

    model: str
    encoder: str
    speech: Path | None
    slots: int
    drawn_kappa: float
    tap_distance_s: float
    steps: int
    seed: int


def train_bundle(prepared: Sequence[Path], out: Path, job: HearingJob, *, force: bool, tell: OnProgress) -> Exported:
    """Write the bundle `out`: that of `job.model` with a memory that stands on lip points and the encoder.

    prepared: folders of ``lipdub prepare --encoder``. tell: told (stage, done, in all).

    Raises BundleNotFound, BundleInvalid, TrainingDataError, CheckpointInvalid, OutputRefused, ExportFailed, WriteFailed.
    """
    check_folder(out, force=force)
    source = bundle.resolve(job.model)
    spec = bundle.load_spec(source)
    base_config, base, generator = load_bundle_networks(source, spec)
    folder = find_encoder(job.encoder)
    described = encoder.load_spec(folder)
    # Where the new bundle will look for it: better told now than after the training.
    encoder.find(described.name, described.graphs[encoder.GRAPH], beside=out)
    spec = renamed(spec, out)
    speech_encoder = SpeechEncoder(folder, described, device="cpu")
    config = hearing_config(base_config, described, slots=job.slots, drawn_kappa=job.drawn_kappa)
    assert config.encoder is not None
    clips: list[Clip] = [clip for place in prepared for clip in load_clips(place, size=config.size)]
    tell("preparing speech", 0, None)
    spoken = None if job.speech is None else SpokenFeatures(job.speech, speech_encoder, config.encoder.taps)
    settings = HearingSettings(steps=job.steps, seed=job.seed)
    silence = resting_windows(speech_encoder, config.encoder.taps)
    memory = train_hearing(base, base_config, config, len(described.layers), clips, spoken, silence, settings, tell)
    # The resting mouth is the old one: the generator that draws it is.
    new = replace(
        spec, mel=None, encoder=config.encoder, slots=config.slots, network=config, tap_distance_s=job.tap_distance_s, voice_bands=0,
        graphs={}, created_with=__version__,
    )  # fmt: skip
    return write_bundle(
        out, new, config, memory, generator, half=True, beside=_card_of(source), force=force, graphs=[source / bundle.GENERATOR_GRAPH]
    )


def train_points(
    prepared: Sequence[Path], out: Path, *, model: str, held_out: Sequence[Path], steps: int, seed: int, force: bool, tell: OnProgress
) -> list[float]:
    """Write the bundle `out`: that of `model`, whose slots are addressed by lip points from now on; slots, hearing and drawing stay as they
    are, graphs and all. Gives `recall_by_lips` of the clips in `held_out` that are ``MEASURED_S`` long or longer.

    prepared: folders of ``lipdub prepare``.

    Raises BundleNotFound, BundleInvalid, TrainingDataError, CheckpointInvalid, OutputRefused, ExportFailed, WriteFailed.
    """
    check_folder(out, force=force)
    source = bundle.resolve(model)
    spec = bundle.load_spec(source)
    config, base, generator = load_bundle_networks(source, spec)
    config = replace(config, points_hidden=POINTS_HIDDEN)
    clips, measured = ([clip for place in places for clip in load_clips(place, size=config.size)] for places in (prepared, held_out))
    torch.manual_seed(seed)
    memory = LipMemory(config)
    memory.load_state_dict({**memory.state_dict(), **base.state_dict()})
    settings = LipSettings(steps=steps)
    train_lip_side(memory, config, clips, settings, balance=HearingSettings().balance, seed=seed, tell=tell, slots_stay=True)
    write_bundle(
        out, renamed(spec, out), config, memory.eval(), generator, half=True, beside=_card_of(source), force=force,
        graphs=[source / graph for graph in bundle.TENSORS],
    )  # fmt: skip
    return recall_by_lips(memory, config, [clip for clip in measured if clip.times_s[-1] - clip.times_s[0] >= MEASURED_S])


def renamed(spec: bundle.BundleSpec, out: Path) -> bundle.BundleSpec:
    """The description of a bundle that is to lie at `out`. Raises OutputRefused: no bundle can be called so."""
    try:
        return replace(spec, name=out.resolve().name)
    except ValueError as error:
        raise OutputRefused(f"'{out}' cannot be the folder of a bundle: {error}; give another one") from error


def _card_of(source: Path) -> dict[str, bytes]:
    """The model card of a bundle, for one that is made of it."""
    card = source / MODEL_CARD
    return {MODEL_CARD: card.read_bytes()} if card.is_file() else {}


def resting_windows(speech_encoder: SpeechEncoder, taps: tuple[int, ...]) -> NDArray[np.float32]:
    """Feature windows of digital silence and of faint noise: float32 (n, taps, D)."""
    random = np.random.default_rng(0)
    count = round(_SILENCE_S * RATE_HZ)
    sounds = [np.zeros(count, np.float32)]
    sounds += [(random.standard_normal(count) * 10 ** (level / 20)).astype(np.float32) for level in FAINT_DB]
    found = []
    for sound in sounds:
        track = feature_track(sound, speech_encoder)
        middle = np.arange(len(track))[max(-taps[0], 0) : len(track) - max(taps[-1], 0)]
        found.append(track[middle[:, None] + np.array(taps)])
    return np.concatenate(found)
