"""The public SyncNet, for LSE-D and LSE-C as the field reports them: used only when the user brings its weights.

Network and evaluation as published: Chung & Zisserman 2016, "Out of time: automated lip sync in the wild"; weights
``syncnet_v2.model`` of github.com/joonson/syncnet_python (MIT). A window is five frames of 224 px at 25 Hz (BGR, 0 to 255) against 0.2 s
of sound as 13 MFCCs at 100 Hz. LSE-D and LSE-C are those of Wav2Lip's evaluation (Prajwal et al. 2020, ``evaluation/scores_LSE``).

Scores depend on how the face is cropped: theirs is cropped by S3FD boxes, ours by landmarks to about the same square. Compare rows of one
scorecard; a paper's number needs the paper's pipeline.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lipdub.errors import CheckpointInvalid

SIZE: Final = 224
WINDOW: Final = 5
CHANNELS: Final = 1024
REACH: Final = 15
"""Offsets are looked for from -15 to 15 frames (``--vshift 15``)."""
SOUND_HZ: Final = 16000
MFCC: Final = 13
MFCC_COLUMNS: Final = 20
"""Of a window; four of them pass per frame."""

_FILTERS, _FFT, _FRAME, _HOP, _LIFTER, _PREEMPHASIS = 26, 512, 400, 160, 22, 0.97


def _block(conv: nn.Module, norm: nn.Module, pool: nn.Module | None = None) -> list[nn.Module]:
    return [conv, norm, nn.ReLU(inplace=True), *([] if pool is None else [pool])]


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, CHANNELS))


class _Network(nn.Module):
    """Both streams. Attributes and layer numbers are the names in the weights file."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_block(nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.MaxPool2d(1, 1)),
            *_block(nn.Conv2d(64, 192, 3, padding=1), nn.BatchNorm2d(192), nn.MaxPool2d(3, (1, 2))),
            *_block(nn.Conv2d(192, 384, 3, padding=1), nn.BatchNorm2d(384)),
            *_block(nn.Conv2d(384, 256, 3, padding=1), nn.BatchNorm2d(256)),
            *_block(nn.Conv2d(256, 256, 3, padding=1), nn.BatchNorm2d(256), nn.MaxPool2d(3, 2)),
            *_block(nn.Conv2d(256, 512, (5, 4)), nn.BatchNorm2d(512)),
        )
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            *_block(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2)), nn.BatchNorm3d(96), nn.MaxPool3d((1, 3, 3), (1, 2, 2))),
            *_block(
                nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)),
                nn.BatchNorm3d(256),
                nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            ),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(256)),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(256)),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(256), nn.MaxPool3d((1, 3, 3), (1, 2, 2))),
            *_block(nn.Conv3d(256, 512, (1, 6, 6)), nn.BatchNorm3d(512)),
        )

    def sound(self, mfcc: torch.Tensor) -> torch.Tensor:
        """(B, 1, 13, 20) to (B, 1024)."""
        return self.netfcaud(self.netcnnaud(mfcc).flatten(1))

    def lips(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, 3, 5, 224, 224) to (B, 1024)."""
        return self.netfclip(self.netcnnlip(frames).flatten(1))


class PublicSyncNet:
    """The network ready to judge, on the CPU or a GPU; what ``lipdub.evaluate.sync.PublicSync`` asks for."""

    def __init__(self, network: nn.Module, *, device: str = "cpu") -> None:
        self._network: Any = network.to(device).eval()
        self._device = device

    @property
    def size(self) -> int:
        """Side of the crops, px."""
        return SIZE

    @property
    def frames(self) -> int:
        """Crops that one window looks at."""
        return WINDOW

    @torch.inference_mode()
    def embed_lips(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Row k looks at the crops k to k + 4: uint8 (N, 224, 224, 3) RGB at 25 Hz to float32 (N - 4, 1024)."""
        if crops.ndim != 4 or crops.shape[1:] != (SIZE, SIZE, 3) or crops.dtype != np.uint8:
            raise ValueError(f"crops must be uint8 (N, {SIZE}, {SIZE}, 3), got {crops.dtype} {crops.shape}")
        rows = []
        for first in range(0, len(crops) - WINDOW + 1, 16):
            piece = torch.from_numpy(np.ascontiguousarray(crops[first : first + 16 + WINDOW - 1, :, :, ::-1])).to(self._device)
            windows = piece.float().permute(3, 0, 1, 2).unfold(1, WINDOW, 1).permute(1, 0, 4, 2, 3)
            rows.append(self._network.lips(windows.contiguous()).cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, CHANNELS), np.float32)

    @torch.inference_mode()
    def embed_sound(self, samples: NDArray[np.float32], windows: int) -> NDArray[np.float32]:
        """Row k hears the 20 MFCC columns from 4 k on: mono float32 at 16 kHz in [-1, 1] to float32 (windows, 1024)."""
        features = mfcc(np.rint(np.clip(samples, -1, 1) * 32767)).T.astype(np.float32)
        rows = []
        for first in range(0, windows, 64):
            cut = [features[:, 4 * k : 4 * k + MFCC_COLUMNS] for k in range(first, min(windows, first + 64))]
            rows.append(self._network.sound(torch.from_numpy(np.stack(cut)[:, None]).to(self._device)).cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, CHANNELS), np.float32)

    def scores(self, lips: NDArray[np.float32], samples: NDArray[np.float32]) -> tuple[float, float, float]:
        """LSE-D, LSE-C and offset (`lse_of`) of the rows that ``embed_lips`` gave and the sound that goes with them.

        As published, the last whole window is not looked at. NaN for less than a window of pictures or of sound.
        """
        count = min(len(lips) + WINDOW - 1, len(samples) // (SOUND_HZ // 25)) - WINDOW
        if count < 1:
            return math.nan, math.nan, math.nan
        return lse_of(lips[:count], self.embed_sound(samples, count))


def open_public_syncnet(file: Path, *, device: str = "cpu") -> PublicSyncNet:
    """The network with the weights in `file`. They are read as plain tensors: a file that would run code is refused.

    Raises CheckpointInvalid: no such file, no weights, or weights of another network.
    """
    hint = "give syncnet_v2.model as github.com/joonson/syncnet_python offers it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what foreign files hold: they are refused in words of our own
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointInvalid(f"cannot read the SyncNet weights '{file}': {error.strerror or error}; {hint}") from error
    except Exception as error:
        # The unpickler raises whatever a stray byte leads it to.
        raise CheckpointInvalid(f"'{file}' holds no SyncNet weights, or more than weights; {hint}") from error
    network = _Network()
    wanted = {name: value.shape for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    if not isinstance(state, dict):
        raise CheckpointInvalid(f"'{file}' holds no SyncNet weights but a {type(state).__name__}; {hint}")
    found = {name: getattr(value, "shape", None) for name, value in state.items() if not str(name).endswith("num_batches_tracked")}
    for name in sorted(wanted.keys() | found.keys(), key=str):
        if wanted.get(name) != found.get(name):
            raise CheckpointInvalid(f"'{file}' holds other weights than SyncNet's ('{name}' differs); {hint}")
    network.load_state_dict(state, strict=False)
    return PublicSyncNet(network, device=device)


def lse_of(lips: NDArray[np.float32], sound: NDArray[np.float32], *, reach: int = REACH) -> tuple[float, float, float]:
    """LSE-D, LSE-C and offset in frames of rows (N, E) that belong together.

    For every offset the Euclidean distances of all windows are averaged (beyond the ends of the sound stand rows of zeros, as
    published). LSE-D is the lowest of these 31 means, lower is better; LSE-C their median less the lowest, higher is better; the offset is
    where it lies, positive where the lips come after the sound. Wav2Lip, ``SyncNetInstance_calc_scores.evaluate``.
    """
    padded = np.pad(sound.astype(np.float64), [(reach, reach), (0, 0)])
    one = lips.astype(np.float64)
    means = np.array([np.linalg.norm(one - padded[shift : shift + len(one)], axis=1).mean() for shift in range(2 * reach + 1)])
    lowest = int(means.argmin())
    return float(means[lowest]), float(np.median(means) - means[lowest]), float(reach - lowest)


def mfcc(samples: NDArray[Any]) -> NDArray[np.float64]:
    """MFCCs of sound at 16 kHz in 16-bit levels: float64 (frames, 13), 100 a second.

    As python_speech_features 0.6 computes them by default, which SyncNet was trained on: pre-emphasis 0.97, rectangular windows of 25 ms
    every 10 ms (the last one filled up with zeros), 26 triangular filters from 0 to 8 kHz, orthonormal DCT-II, lifter 22, and the
    logarithm of the energy in the place of the first coefficient.
    """
    signal = np.asarray(samples, np.float64)
    signal = np.append(signal[:1], signal[1:] - _PREEMPHASIS * signal[:-1])
    count = 1 if len(signal) <= _FRAME else 1 + math.ceil((len(signal) - _FRAME) / _HOP)
    padded = np.pad(signal, (0, max(0, (count - 1) * _HOP + _FRAME - len(signal))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP][:count]
    power = np.abs(np.fft.rfft(frames, _FFT)) ** 2 / _FFT
    tiny = float(np.finfo(np.float64).eps)
    energy = power.sum(axis=1)
    bands = power @ _mel_filters().T
    logs = np.log(np.where(bands == 0, tiny, bands))
    cepstrum = logs @ _dct().T * (1 + _LIFTER / 2 * np.sin(np.pi * np.arange(MFCC) / _LIFTER))
    cepstrum[:, 0] = np.log(np.where(energy == 0, tiny, energy))
    return cepstrum


@lru_cache(maxsize=1)
def _mel_filters() -> NDArray[np.float64]:
    """Triangles between whole FFT bins, (26, 257)."""
    mels = np.linspace(0, 2595 * np.log10(1 + SOUND_HZ / 2 / 700), _FILTERS + 2)
    bins = np.floor((_FFT + 1) * 700 * (10 ** (mels / 2595) - 1) / SOUND_HZ)
    filters = np.zeros((_FILTERS, _FFT // 2 + 1))
    for row in range(_FILTERS):
        left, middle, right = bins[row : row + 3].astype(int)
        filters[row, left:middle] = (np.arange(left, middle) - left) / max(1, middle - left)
        filters[row, middle:right] = (right - np.arange(middle, right)) / max(1, right - middle)
    return filters


@lru_cache(maxsize=1)
def _dct() -> NDArray[np.float64]:
    """Rows of the orthonormal DCT-II, (13, 26)."""
    k, n = np.arange(MFCC)[:, None], np.arange(_FILTERS)[None]
    rows = np.sqrt(2 / _FILTERS) * np.cos(np.pi * k * (2 * n + 1) / (2 * _FILTERS))
    rows[0] /= np.sqrt(2)
    return rows
