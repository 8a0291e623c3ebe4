"""Toy networks and toy training data: every class of the real ones, a few thousand weights, clips that a formula draws.

In a toy clip the mouth is a bright bar over dark skin whose height is the opening, and the sound is as loud as the mouth is
open: there is something to learn, for eyes and ears. Clips lie in the prepared format, so no face has to be found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from drawn import write_wav
from numpy.typing import NDArray

from lipdub.bundles.network import NetworkConfig
from lipdub.speech.mel import SILENCE
from lipdub.train.loop import LoopSettings
from lipdub.train.networks import PRESETS
from lipdub.train.prepare import FORMAT, GRID_HZ, MARGIN

SIZE = 64
STORED = round(SIZE * MARGIN)

COMPACT = replace(
    PRESETS["compact"], size=SIZE, drawn=(32, 64, 8, 56), slots=12, channels=16, audio_widths=(4, 8, 8, 8), lip_widths=(4, 8, 8, 8),
    face_widths=(4, 8, 8, 8, 8, 8), decoder_widths=(8, 8, 8, 8, 4),
)  # fmt: skip
"""As `compact`: the drawn box excludes the upper half, every level is modulated."""
PAPER = replace(
    PRESETS["paper"], size=SIZE, drawn=(0, 64, 0, 64), crop_stride=16, slots=12, channels=16, audio_widths=(4, 8, 8, 8),
    lip_widths=(4, 8, 8, 8), face_widths=(4, 8, 8, 8, 8, 8), decoder_widths=(8, 8, 8, 8, 4),
)  # fmt: skip
"""As `paper`: the whole crop is drawn, no level is modulated."""
TOYS = {"compact": COMPACT, "paper": PAPER}


def rest_lips() -> NDArray[np.float32]:
    """40 lip points in the unit crop, (40, 2), in the order of ``landmarks.LIPS``: outer ring, then inner ring; each from corner to
    corner along the lower lip, then along the upper lip without the corners."""
    lower, upper = np.linspace(np.pi, 0, 11), np.linspace(np.pi, 0, 11)[1:-1]
    rings = [
        np.concatenate([[0.5 + rx * np.cos(angle), 0.69 + way * ry * np.sin(angle)] for angle, way in ((lower, 1), (upper, -1))], axis=1).T
        for rx, ry in ((0.16, 0.05), (0.12, 0.004))
    ]
    return np.concatenate(rings).astype(np.float32)


def write_clip(
    folder: Path, name: str, *, frames: int = 48, seed: int = 0, speaker: str = "", cuts: Sequence[int] = (), size: int = SIZE
) -> dict[str, object]:
    """One toy clip in the prepared format; its entry for the index. cuts: frames that begin a new shot."""
    random = np.random.default_rng(seed)
    times = np.arange(frames) / GRID_HZ
    openness = 0.5 + 0.5 * np.sin(2 * np.pi * (1.5 + 0.3 * seed) * times + seed) + 0.05 * random.standard_normal(frames)
    openness = np.clip(openness, 0, 1)
    lips = np.repeat(rest_lips()[None], frames, axis=0)
    lower = lips[:, :, 1] > 0.69 + 1e-5
    lips[:, :, 1] += np.where(lower, 0.06, 0.0) * openness[:, None]
    skin = random.integers(60, 110, size=3)
    stored, times_larger = round(size * MARGIN), size // SIZE
    crops = np.empty((frames, stored, stored, 3), np.uint8)
    crops[:] = skin
    texture = random.integers(0, 25, size=(stored, stored, 3))
    crops += texture.astype(np.uint8)
    for row, amount in enumerate(openness):
        top, half = round(stored * (0.5 + (0.69 - 0.5) / MARGIN)), 8 * times_larger
        crops[row, top : top + 1 + round(12 * times_larger * amount), stored // 2 - half : stored // 2 + half] = 230
    columns = 1 + round(times[-1] * 80) + 8
    loudness = np.interp(np.arange(columns) / 80, times, openness)
    mel = np.clip(SILENCE + 6 * loudness[None] + 0.3 * random.standard_normal((80, columns)), -4, 4)
    shot = np.zeros(frames, np.int32)
    for cut in cuts:
        shot[cut:] += 1
    np.save(folder / f"{name}.crops.npy", crops)
    np.savez(
        folder / f"{name}.npz", mel=mel.astype(np.float16), times_s=times, lips=lips, opening=(0.15 * openness).astype(np.float32),
        pose=random.normal(0, 3, (frames, 2)).astype(np.float32), shot=shot,
    )  # fmt: skip
    return {"source": f"{name}.mp4", "clip_id": name, "frames": frames, "why": None, "speaker": speaker or name}


def write_clips(folder: Path, *, clips: int = 3, frames: int = 48, size: int = SIZE) -> Path:
    """A folder as ``lipdub prepare`` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [write_clip(folder, f"clip{number}", frames=frames, seed=number, size=size) for number in range(clips)]
    (folder / "index.json").write_text(json.dumps({"format": FORMAT, "size": size, "clips": entries}))
    return folder


def write_sounds(folder: Path) -> list[tuple[str, Path]]:
    """A sound for each prepared toy clip in `folder`, noise as loud as the mouth is open; what ``prepare_features`` takes."""
    found = []
    for entry in json.loads((folder / "index.json").read_text())["clips"]:
        name = str(entry["clip_id"])
        with np.load(folder / f"{name}.npz") as data:
            times_s, openness = data["times_s"], data["opening"] / 0.15
        at_s = np.arange(round((times_s[-1] + 0.2) * 16000)) / 16000
        # Linear in decibels, so that log-mel tells the opening linearly.
        level = 0.2 * 10 ** (1.2 * (np.interp(at_s, times_s, openness) - 1))
        write_wav(folder / f"{name}.wav", level * np.random.default_rng(len(found)).standard_normal(len(at_s)))
        found.append((name, folder / f"{name}.wav"))
    return found


def toy_settings(**changes: object) -> LoopSettings:
    """A few steps on one CPU process, in this process."""
    settings = LoopSettings(
        steps=4, batch=4, rate=1e-3, warmup_steps=2, validate_every=2, checkpoint_every=2, workers=0, accelerator="cpu", devices=1
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def boxes_of(pictures: torch.Tensor, config: NetworkConfig) -> torch.Tensor:
    """The drawn box of whole crops (..., S, S)."""
    y0, y1, x0, x1 = config.drawn
    return pictures[..., y0:y1, x0:x1]
