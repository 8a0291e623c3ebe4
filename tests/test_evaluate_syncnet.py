"""The public SyncNet with random weights: shapes, what is refused, and that the scores are the published ones."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import needs_torch  # noqa: F401  (skips this file where torch is absent)
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lipdub.errors import CheckpointInvalid
from lipdub.train.public_syncnet import CHANNELS, SIZE, WINDOW, PublicSyncNet, _Network, lse_of, mfcc, open_public_syncnet

FEW_LAYERS = {
    # Names and shapes of syncnet_v2.model, read off the published network.
    "netcnnaud.0.weight": (64, 1, 3, 3),
    "netcnnaud.4.weight": (192, 64, 3, 3),
    "netcnnaud.8.weight": (384, 192, 3, 3),
    "netcnnaud.18.weight": (512, 256, 5, 4),
    "netcnnaud.19.running_var": (512,),
    "netfcaud.0.weight": (512, 512),
    "netfcaud.3.weight": (1024, 512),
    "netfclip.1.running_mean": (512,),
    "netfclip.3.bias": (1024,),
    "netcnnlip.0.weight": (96, 3, 5, 7, 7),
    "netcnnlip.4.weight": (256, 96, 1, 5, 5),
    "netcnnlip.14.weight": (256, 256, 1, 3, 3),
    "netcnnlip.18.weight": (512, 256, 1, 6, 6),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "syncnet_v2.model"
    torch.manual_seed(0)
    torch.save(_Network().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def net(weights: Path) -> PublicSyncNet:
    return open_public_syncnet(weights)


def test_the_layers_are_where_the_weights_file_has_them():
    shapes = {name: tuple(value.shape) for name, value in _Network().state_dict().items()}
    assert {name: shapes.get(name) for name in FEW_LAYERS} == FEW_LAYERS


def test_a_row_looks_at_five_frames_in_bgr(net: PublicSyncNet):
    crops = np.random.default_rng(0).integers(0, 256, (WINDOW + 1, SIZE, SIZE, 3)).astype(np.uint8)
    rows = net.embed_lips(crops)
    assert rows.shape == (2, CHANNELS)
    assert rows.dtype == np.float32
    frames = torch.from_numpy(crops[1:, :, :, ::-1].copy()).float().permute(3, 0, 1, 2)[None]
    with torch.inference_mode():
        expected = net._network.lips(frames).numpy()[0]
    assert rows[1] == pytest.approx(expected, abs=1e-4)
    assert net.embed_lips(crops[: WINDOW - 1]).shape == (0, CHANNELS)
    with pytest.raises(ValueError, match="224"):
        net.embed_lips(crops[:, :100])


def test_a_row_hears_a_fifth_of_a_second(net: PublicSyncNet):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    rows = net.embed_sound(samples, 15)
    assert rows.shape == (15, CHANNELS)
    later = samples.copy()
    later[9600:] = 0
    again = net.embed_sound(later, 15)
    # The window of frame k ends 0.04 k + 0.215 s in: those up to frame 9 hear nothing of what changed at 0.6 s.
    same = [bool(np.allclose(one, other, atol=1e-5)) for one, other in zip(rows, again, strict=True)]
    assert same == [k <= 9 for k in range(15)]


def test_scores_of_nothing_are_no_numbers(net: PublicSyncNet):
    assert all(math.isnan(value) for value in net.scores(np.zeros((1, CHANNELS), np.float32), np.zeros(320, np.float32)))
    lips = np.random.default_rng(0).normal(size=(20, CHANNELS)).astype(np.float32)
    scores = net.scores(lips, np.random.default_rng(1).uniform(-1, 1, 16000).astype(np.float32))
    assert all(math.isfinite(value) for value in scores)


def published(lips: NDArray[np.float32], sound: NDArray[np.float32]) -> tuple[float, float, float]:
    """LSE-D, LSE-C and offset, window by window as Wav2Lip's evaluation takes them."""
    reach, one, other = 15, torch.from_numpy(lips), torch.from_numpy(sound)
    padded = torch.nn.functional.pad(other, (0, 0, reach, reach))
    rows = [torch.linalg.vector_norm(one[k] - padded[k : k + 2 * reach + 1], dim=1) for k in range(len(one))]
    mean = torch.stack(rows, 1).mean(1)
    lowest, where = mean.min(0)
    return float(lowest), float(mean.median() - lowest), float(reach - where)


@pytest.mark.parametrize("late", [-9, 0, 4])
def test_lse_is_the_published_one(late):
    random = np.random.default_rng(0)
    sound = random.normal(size=(60, 8)).astype(np.float32)
    lips = np.roll(sound, late, axis=0) + 0.2 * random.normal(size=sound.shape).astype(np.float32)
    found = lse_of(lips, sound)
    assert found == pytest.approx(published(lips, sound), abs=1e-5)
    assert found[2] == late


def test_mfcc_are_those_that_the_network_was_trained_on():
    """Values of python_speech_features 0.6, ``mfcc(samples, 16000)``, computed once."""
    t = np.arange(1600)
    samples = np.rint(8000 * np.sin(2 * np.pi * 440 * t / 16000) + 3000 * np.sin(2 * np.pi * (1000 + t) * t / 16000))
    found = mfcc(samples)
    assert found.shape == (9, 13)
    fourth = [20.609799, 12.409679, -26.391489, 39.012874, -0.159142, -65.15532, -23.46198, 8.150249, -15.763161, 5.936301, 31.724008]
    last = [21.111342, -3.231838, 5.992998, 27.593697, -61.403441, 5.306923, -31.368503, -34.1986, 30.040548, -10.008467, 22.32655]
    assert found[3, :11] == pytest.approx(fourth, abs=1e-5)
    assert found[8, :11] == pytest.approx(last, abs=1e-5)
    assert np.isfinite(mfcc(np.zeros(1000))).all()


class _Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code was run')",))


def test_what_is_no_weights_of_this_network_is_refused(tmp_path: Path, weights: Path):
    bad = tmp_path / "bad.model"
    with pytest.raises(CheckpointInvalid, match="No such file"):
        open_public_syncnet(tmp_path / "gone.model")
    for content in (b"", b"no weights", pickle.dumps(_Harm())):
        bad.write_bytes(content)
        with pytest.raises(CheckpointInvalid, match="joonson"):
            open_public_syncnet(bad)
    torch.save([1, 2], bad)
    with pytest.raises(CheckpointInvalid, match="list"):
        open_public_syncnet(bad)
    state = torch.load(weights, weights_only=True)
    for change in ({"netfcaud.0.weight": torch.zeros(3, 3)}, {"more": torch.zeros(1)}):
        torch.save({**state, **change}, bad)
        with pytest.raises(CheckpointInvalid, match=next(iter(change))):
            open_public_syncnet(bad)
    del state["netcnnlip.18.weight"]
    torch.save(state, bad)
    with pytest.raises(CheckpointInvalid, match=r"netcnnlip\.18\.weight"):
        open_public_syncnet(bad)


def test_weights_of_an_older_torch_lack_counters_and_are_taken(tmp_path: Path, weights: Path):
    state = {name: value for name, value in torch.load(weights, weights_only=True).items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.model")
    assert open_public_syncnet(tmp_path / "old.model").size == SIZE
