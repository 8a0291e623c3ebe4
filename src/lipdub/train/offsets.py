"""Constant offsets between sound and picture of prepared clips: estimated with a memory that was trained on all, stored beside the data."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lipdub.mel import cut_windows
from lipdub.train.data import OFFSETS_FILE, Clip, opening_from_lips
from lipdub.train.memory_stage import correlation
from lipdub.train.networks import LipMemory, NetworkConfig
from lipdub.train.prepare import GRID_HZ

FURTHEST_FRAMES = 6
SHORTEST_S = 4.0
"""Shorter clips say too little; they are taken as they are."""
CLEAR_R = 0.35
CLEARLY_BETTER_R = 0.05
"""An offset is believed when the correlation there is at least the first, and beats the one at zero by the second."""


@dataclass(frozen=True, slots=True)
class Offset:
    """One clip's estimate. frames: at 25 Hz; positive when the sound comes later than the lips show it. believed: used in training."""

    source: str
    clip_id: str
    frames: int
    r_there: float
    r_at_zero: float
    believed: bool


@torch.no_grad()
def estimate(memory: LipMemory, clips: list[Clip], config: NetworkConfig) -> list[Offset]:
    """Offset of each clip of at least ``SHORTEST_S``: where the opening heard by `memory` correlates best with the opening seen."""
    memory.eval()
    device = next(memory.parameters()).device
    found = []
    for clip in clips:
        if len(clip) < SHORTEST_S * GRID_HZ:
            continue
        rs = []
        for frames in range(-FURTHEST_FRAMES, FURTHEST_FRAMES + 1):
            times = clip.times_s + frames / GRID_HZ
            mel = torch.from_numpy(cut_windows(clip.mel.astype(np.float32), times, config.mel))[:, None].to(device)
            heard = memory.landmarks(memory.memory.by_audio(memory.audio_encoder(mel)).recalled)
            rs.append(correlation(opening_from_lips(heard).float().cpu().numpy(), clip.opening))
        best = int(np.argmax(rs))
        zero = rs[FURTHEST_FRAMES]
        believed = rs[best] >= CLEAR_R and rs[best] - zero >= CLEARLY_BETTER_R and 0 < best < 2 * FURTHEST_FRAMES
        found.append(Offset(clip.source, clip.clip_id, best - FURTHEST_FRAMES, rs[best], zero, believed))
    return found


def store(folder: Path, offsets: list[Offset]) -> None:
    """Write the believed offsets, in seconds, beside the prepared clips; ``load_clips`` applies them."""
    seconds = {offset.clip_id: offset.frames / GRID_HZ for offset in offsets if offset.believed}
    part = folder / f".{OFFSETS_FILE}.part"
    part.write_text(json.dumps(seconds, indent=1), encoding="utf-8")
    os.replace(part, folder / OFFSETS_FILE)
