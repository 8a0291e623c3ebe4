"""Labelled speech as training windows, and the memory stage that learns from it. The file is made here: no espeak-ng is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from toys import COMPACT, toy_settings, write_clips

from lipdub.errors import CheckpointInvalid, TrainingDataError
from lipdub.phonetics.classes import CLASSES
from lipdub.speech.mel import SILENCE
from lipdub.train import checkpoints
from lipdub.train.data import Clip, load_clips
from lipdub.train.labelled_speech import LabelledSpeech
from lipdub.train.loop import StepReport, new_fabric, run
from lipdub.train.memory_stage import MemoryStage, MemoryWeights
from lipdub.train.networks import LipMemory
from lipdub.train.weights import load_any_memory, load_lip_side

SYMBOLS = ("", "p", "m", "a", "t")
KINDS = {"": "silence", "p": "bilabial", "m": "bilabial", "a": "open", "t": "alveolar"}
SPOKEN = (("", 24), ("p", 10), ("a", 20), ("m", 10), ("a", 16), ("t", 8), ("m", 2), ("a", 20), ("", 24))
"""One utterance: symbol and columns. Its second m is too short to be surely closed."""


def write_speech(file: Path, *, utterances: int = 6, **changes: Any) -> Path:
    symbol = np.concatenate([np.full(columns, SYMBOLS.index(letter)) for letter, columns in SPOKEN]).astype(np.uint16)
    kind = np.array([CLASSES.index(KINDS[SYMBOLS[letter]]) for letter in symbol], np.uint8)
    mel = np.full((len(symbol), 80), SILENCE, np.float16)
    # Every phoneme sounds in bands of its own.
    for number, letter in enumerate(symbol):
        if letter:
            mel[number, 15 * letter : 15 * letter + 15] = 2
    content: dict[str, Any] = {
        "mel": np.tile(mel, (utterances, 1)), "kind": np.tile(kind, utterances), "symbol": np.tile(symbol, utterances),
        "symbols": np.array(SYMBOLS), "classes": np.array(CLASSES), "first": np.arange(utterances + 1) * len(symbol),
        "held_out": np.array([0] * (utterances - 2) + [1, 2], np.uint8),
    }  # fmt: skip
    np.savez(file, **(content | changes))
    return file


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> LabelledSpeech:
    return LabelledSpeech(write_speech(tmp_path_factory.mktemp("speech") / "speech.npz"), COMPACT.mel)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return load_clips(write_clips(tmp_path_factory.mktemp("prepared"), clips=4))


def test_windows_are_labelled_by_their_middle(speech: LabelledSpeech) -> None:
    windows = speech.draw((0, 1), 300)
    assert tuple(windows.mel.shape) == (300, 1, 80, 16)
    middle = windows.mel[:, 0, :, 8]
    bands = {CLASSES.index("open"): 45, CLASSES.index("alveolar"): 60}
    for kind, band in bands.items():
        rows = windows.kind == kind
        assert rows.any()
        assert (middle[rows, band] == 2).all()
    assert (middle[windows.kind == CLASSES.index("silence")] == SILENCE).all()


def test_lips_are_shut_in_the_first_part_of_p_and_throughout_m(speech: LabelledSpeech) -> None:
    windows = speech.draw((0, 2), 2000)
    closed = windows.mel[windows.closed, 0]
    assert len(closed)
    p, m = (closed[:, 15 * SYMBOLS.index(letter), :] == 2 for letter in ("p", "m"))
    assert (p[:, 8] | m[:, 8]).all()
    # A p of ten columns is closed in its first six: at least three of it follow the middle. The m of two columns never counts.
    assert (p.sum(dim=1)[p[:, 8]] >= 8).all()
    assert (m.sum(dim=1)[m[:, 8]] > 2).all()
    assert not windows.closed[windows.kind != CLASSES.index("bilabial")].any()


def test_the_same_key_draws_the_same_and_another_one_does_not(speech: LabelledSpeech) -> None:
    one, again, other = speech.draw((3, 4), 50), speech.draw((3, 4), 50), speech.draw((3, 5), 50)
    assert torch.equal(one.mel, again.mel)
    assert not torch.equal(one.mel, other.mel)


def test_held_out_speech_is_never_drawn(tmp_path: Path) -> None:
    columns = sum(count for _, count in SPOKEN)
    mel = np.zeros((6 * columns, 80), np.float16)
    mel[4 * columns :] = 3.0
    speech = LabelledSpeech(write_speech(tmp_path / "speech.npz", mel=mel), COMPACT.mel)
    assert (speech.draw((0,), 500).mel == 0).all()
    assert (speech.held_out(500).mel == 3).all()


@pytest.mark.parametrize(
    "changes",
    [{"classes": np.array(["a", "b"])}, {"held_out": np.zeros(3, np.uint8)}, {"kind": np.zeros(5, np.uint8)}],
    ids=["other classes", "other utterances", "other length"],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingDataError, match="synthetic_speech"):
        LabelledSpeech(write_speech(tmp_path / "speech.npz", **changes), COMPACT.mel)


def test_no_file_and_no_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="no labelled speech"):
        LabelledSpeech(tmp_path / "absent.npz", COMPACT.mel)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(TrainingDataError, match="no labelled speech"):
        LabelledSpeech(tmp_path / "text.npz", COMPACT.mel)


def test_the_memory_learns_phonemes_and_closures_beside_its_clips(clips: list[Clip], speech: LabelledSpeech, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = toy_settings(steps=80, batch=16, rate=5e-3, warmup_steps=5, validate_every=80, checkpoint_every=80)
    weights = MemoryWeights(phonemes=1.0, closures=1.0)
    stage = MemoryStage(COMPACT, clips[:3], clips[3:], plan.rate, 0, weights, speech=speech, ema=0.9)
    told: list[StepReport] = []
    figures = run(stage, new_fabric(plan), tmp_path, plan, resume=False, on_progress=told.append)
    commonest = max(count for letter, count in SPOKEN if letter) * 3 / sum(count for _, count in SPOKEN)
    assert figures["phonemes_right"] > commonest + 0.2
    assert np.isfinite(figures["closure"])
    assert all("closures" in progress.losses for progress in told if progress.losses)


def test_an_audio_side_of_its_own_leaves_the_lip_side_as_it_was(clips: list[Clip], tmp_path: Path) -> None:
    plan = toy_settings(steps=3)
    first = MemoryStage(COMPACT, clips[:3], clips[3:], plan.rate, 0)
    run(first, new_fabric(plan), tmp_path / "first", plan, resume=False, on_progress=lambda _: None)
    kept = load_lip_side(tmp_path / "first" / "latest.pt", COMPACT)
    second = MemoryStage(COMPACT, clips[:3], clips[3:], plan.rate, 1, lip_side=kept)
    before = {key: value.clone() for key, value in second.memory.state_dict().items()}
    run(second, new_fabric(plan), tmp_path / "second", plan, resume=False, on_progress=lambda _: None)
    _, after = load_any_memory(tmp_path / "second" / "latest.pt")
    state = after.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.items())
    assert {key.split(".")[0] for key in state if not torch.equal(state[key], before[key])} == {"audio_encoder", "memory"}
    assert not torch.equal(state["memory.keys"], before["memory.keys"])


def test_a_lip_side_of_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.pt"
    checkpoints.save(file, {"settings": {}, "modules": {"memory": {}}})
    with pytest.raises(CheckpointInvalid, match="lip side"):
        load_lip_side(file, COMPACT)


def test_what_is_judged_and_kept_is_the_moving_average(clips: list[Clip], tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = toy_settings(steps=6, rate=1e-2)
    stage = MemoryStage(COMPACT, clips[:3], clips[3:], plan.rate, 0, ema=0.9)
    run(stage, new_fabric(plan), tmp_path, plan, resume=False, on_progress=lambda _: None)
    modules = checkpoints.load(tmp_path / "latest.pt")["modules"]
    _, loaded = load_any_memory(tmp_path / "latest.pt")
    assert all(torch.equal(value, modules["memory"][key]) for key, value in loaded.state_dict().items())
    live = LipMemory(COMPACT)
    live.load_state_dict(modules["live"])
    assert any(not torch.equal(value, modules["live"][key]) for key, value in loaded.state_dict().items())


def test_sharper_addresses_are_drawn_than_learned() -> None:
    torch.manual_seed(0)
    memory = LipMemory(COMPACT).eval()
    assert COMPACT.drawn_kappa > COMPACT.kappa
    mel = torch.randn(6, 1, 80, 16)
    feature = memory.audio_encoder(mel)
    learned, drawn = memory.memory.by_audio(feature), memory.memory.by_audio_sharpened(feature)
    assert (drawn.address.max(dim=1).values > learned.address.max(dim=1).values).all()
    assert torch.equal(drawn.address.argmax(dim=1), learned.address.argmax(dim=1))
    # Inference, and so the exported graph, draws the sharper ones.
    address, lip_feature, _ = memory(mel)
    assert torch.equal(address, drawn.address)
    assert torch.equal(lip_feature, memory.fuse(feature, drawn.recalled))
