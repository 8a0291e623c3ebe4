"""benchmarks wav2lip-shaped: the baseline has the size it should have and does all the work that it is timed for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from drawn import draw_video, sine, write_wav
from faces_for_tests import portrait_frames, scaled
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import wav2lip_baseline as baseline
from benchmarks import wav2lip_shaped
from benchmarks.wav2lip_network import PARAMETERS, SIDE, Generator, parameters_in, with_random_weights
from lipdub import media


@pytest.fixture(scope="module")
def generator() -> torch.nn.Module:
    return with_random_weights(Generator())


def test_the_generator_has_the_published_number_of_parameters(generator: torch.nn.Module):
    assert parameters_in(generator) == pytest.approx(PARAMETERS, rel=0.01)


def test_the_generator_costs_what_is_told_of_the_original():
    """7.9 GFLOP a face (4.0 G multiplications with additions) is what others measured."""
    with torch.device("meta"), FlopCounterMode(display=False) as counted, torch.no_grad():
        Generator().eval()(torch.empty(1, 1, 80, 16), torch.empty(1, 6, SIDE, SIDE))
    assert counted.get_total_flops() == pytest.approx(7.9e9, rel=0.02)


@torch.no_grad()
def test_the_generator_draws_faces_and_uses_all_it_is_given(generator: torch.nn.Module):
    noise = torch.Generator().manual_seed(0)
    mel, faces = torch.rand(2, 1, 80, 16, generator=noise), torch.rand(2, 6, SIDE, SIDE, generator=noise)
    drawn = generator(mel, faces)
    assert drawn.shape == (2, 3, SIDE, SIDE)
    assert 0 <= float(drawn.min()) < float(drawn.max()) <= 1
    assert not torch.equal(drawn, generator(mel + 1, faces))
    assert not torch.equal(drawn, generator(mel, faces.flip(1)))


@given(arrays(np.int64, st.tuples(st.integers(1, 12), st.just(4)), elements=st.integers(0, 500)))
def test_smoothed_boxes_stay_among_the_five_around_them(boxes: np.ndarray):
    smooth = baseline.smoothed(boxes)
    assert smooth.shape == boxes.shape
    for first, box in enumerate(smooth):
        first = min(first, max(0, len(boxes) - 5))
        near = boxes[first : first + 5]
        assert (near.min(axis=0) <= box).all()
        assert (box <= near.max(axis=0)).all()


@given(st.floats(0.3, 3.0), st.sampled_from([23.976, 25.0, 30.0, 59.94]))
def test_there_is_one_mel_window_per_frame_but_for_the_last_fifth_of_a_second(seconds: float, rate: float):
    windows = baseline.mel_windows(sine(seconds), rate)
    assert windows.shape[1:] == (80, 16)
    assert -4 <= windows.min() <= windows.max() <= 4
    assert len(windows) == pytest.approx((seconds - 0.2) * rate, abs=2 + 0.05 * rate)


def test_crops_hide_the_lower_half_and_pasting_changes_the_box_alone():
    frame = np.random.default_rng(0).integers(1, 256, (120, 160, 3), np.uint8)
    box = np.array([20, 10, 120, 110])
    crop = baseline.crops([frame], box[np.newaxis])
    assert crop.shape == (1, 6, SIDE, SIDE)
    assert (crop[0, :3, SIDE // 2 :] == 0).all()
    assert (crop[0, :3, : SIDE // 2] == crop[0, 3:, : SIDE // 2]).all()
    assert (crop[0, 3:] > 0).all()
    pasted = baseline.paste(frame, np.zeros((SIDE, SIDE, 3), np.uint8), box)
    changed = np.zeros((120, 160), bool)
    changed[10:110, 20:120] = True
    assert ((pasted != frame).any(axis=2) == changed).all()
    assert frame.min() > 0  # the frame that is held is not drawn on


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    draw_video(tmp_path / "in put.mp4", size=(256, 256), pictures=[scaled(pixels, (256, 256)) for pixels in portrait_frames(8)])
    write_wav(tmp_path / "speech.wav", sine(1.0, 22050), 22050)
    return {
        "video": str(tmp_path / "in put.mp4"), "speech": str(tmp_path / "speech.wav"), "out": str(tmp_path / "out put.mp4"),
        "device": "cpu", "threads": 1,
    }  # fmt: skip


def test_the_baseline_dubs_a_video(task: dict[str, Any]):
    found = baseline.baseline_once(task)
    assert found["frames"] == 8
    assert found["stage_s"].keys() == {"read", "mel", "open", "detect", "crop", "draw", "paste", "write", "encode and mux"}
    assert sum(found["stage_s"].values()) <= found["wall_s"] + 1e-6
    assert sum(len(chunk) for chunk in media.read_frames(Path(task["out"]))) == 8
    assert media.probe(Path(task["out"])).has_audio


def test_the_ratio_is_of_medians():
    def run(wall_s: float) -> dict[str, Any]:
        return {
            "frames": 100, "wall_s": wall_s, "output_s": 4.0, "process_s": wall_s, "stage_s": {"draw": wall_s},
            "cpu_s": {"all": wall_s}, "peak_mib": 1.0, "cores": 1,
        }  # fmt: skip

    def ours(wall_s: float) -> dict[str, Any]:
        report = {"frames": 100, "dubbed": 100, "wall_s": wall_s, "output_s": 4.0, "provider": "CPUExecutionProvider", "stage_s": {}}
        return {"report": report, "cpu_s": {"all": wall_s}, "process_s": wall_s, "peak_mib": 1.0, "cores": 1}

    baseline, lipdub = wav2lip_shaped.ARMS
    rows = wav2lip_shaped.comparison({baseline: [run(9.0), run(10.0), run(90.0)], lipdub: [ours(2.0), ours(2.5), ours(99.0)]})
    assert [row["lipdub_is_faster"] for row in rows] == [4.0, 1.0]
    assert rows[0]["frames_per_s"] == 10.0
