"""The audio-lip memory of a bundle: what it recalls for windows of speech. SyncTalkFace (Park et al., AAAI 2022), section 3.2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lipdub.bundles import bundle, encoder
from lipdub.bundles.bundle import BundleSpec
from lipdub.errors import BundleInvalid
from lipdub.options import Device
from lipdub.runtime import open_session
from lipdub.speech.encoder import FeatureTrack, SpeechEncoder
from lipdub.speech.mel import MelTrack
from lipdub.speech.windows import SpeechTrack


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Recall:
    """What a memory answers to N windows of speech.

    address: float32 (N, slots), the share of each slot in the answer; rows sum to 1. lip_feature: float32 (N, C), the recalled lip
    motion, in the unit of the bundle's `rest_feature`. lip_points: float32 (N, 40, 2), the recalled lips relative to the person's closed
    mouth, unit crop; None from a bundle that does not tell.
    """

    address: NDArray[np.float32]
    lip_feature: NDArray[np.float32]
    lip_points: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name, value in (("address", self.address), ("lip_feature", self.lip_feature)):
            if value.ndim != 2 or value.dtype != np.float32:
                raise ValueError(f"{name} must be float32 with 2 axes, got {value.dtype} {value.shape}")
        if len(self.address) != len(self.lip_feature):
            raise ValueError(f"one address per lip feature, got {self.address.shape = }, {self.lip_feature.shape = }")
        if self.lip_points is not None and self.lip_points.shape != (len(self.address), bundle.POINTS, 2):
            raise ValueError(f"lip points must be ({len(self.address)}, {bundle.POINTS}, 2), got {self.lip_points.shape}")

    def __len__(self) -> int:
        return len(self.address)

    def __repr__(self) -> str:
        return f"Recall(address={self.address.shape}, lip_feature={self.lip_feature.shape})"


class Recalls(Protocol):
    """Whatever answers windows of speech."""

    def recall(self, windows: NDArray[np.float32]) -> Recall:
        """What is recalled for windows of speech, float32 (N, ...); N may be 0.

        Raises ``ValueError`` for windows of another shape or type, BundleInvalid where the network answers no numbers.
        """
        ...


class Memory(Recalls, Protocol):
    """A memory that is ready to be asked. Several threads may ask at once; the same windows get the same answer."""

    @property
    def spec(self) -> BundleSpec:
        """Of the bundle that it belongs to."""
        ...

    def track(self, blocks: Iterable[NDArray[np.float32]]) -> SpeechTrack:
        """A sound that windows can be cut out of. blocks: mono float32 samples at 16 kHz, as ``media.read_audio`` yields them."""
        ...


class OnnxMemory:
    """A `Memory` over a bundle's ``memory.onnx``, on top of the speech encoder that the bundle names."""

    def __init__(self, folder: Path, spec: BundleSpec, *, device: Device = "auto", threads: int | None = None) -> None:
        self._spec = spec
        self._encoder: SpeechEncoder | None = None
        if spec.encoder is not None:
            where, described = encoder.find(spec.encoder.name, spec.encoder.sha256, beside=folder)
            self._encoder = SpeechEncoder(where, described, device=device, threads=threads)
        expected = bundle.tensors(bundle.MEMORY_GRAPH, spec)
        (self._input,) = expected.inputs
        self._window_shape = expected.inputs[self._input][-2:]
        # The graph is small: a second thread within one call spends more on meeting the first than it saves.
        self._session = open_session(
            folder / bundle.MEMORY_GRAPH, device=device, threads=1, inputs=expected.inputs, outputs=expected.outputs
        )

    def __repr__(self) -> str:
        return f"OnnxMemory({self._spec.name}, {self._session.provider})"

    @property
    def spec(self) -> BundleSpec:
        """Of the bundle that it belongs to."""
        return self._spec

    def track(self, blocks: Iterable[NDArray[np.float32]]) -> SpeechTrack:
        """A sound that windows can be cut out of; see `Memory`."""
        if self._encoder is not None and self._spec.encoder is not None:
            return FeatureTrack(blocks, self._encoder, self._spec.encoder.taps)
        assert self._spec.mel is not None
        return MelTrack(blocks, self._spec.mel)

    def recall(self, windows: NDArray[np.float32]) -> Recall:
        """Address and lip feature of each window of a `track`, float32 (N, ...); see `Memory`."""
        shape = (len(windows), *self._window_shape)
        if windows.dtype != np.float32 or windows.shape != shape:
            raise ValueError(f"windows must be float32 {shape}, got {windows.dtype} {windows.shape}")
        count, at_once = len(windows), self._session.batch
        # Equal batches: a last one of one row would cost a quarter more than a row among others.
        pieces = np.array_split(windows if self._encoder is not None else windows[:, None], max(1, -(-count // at_once)))
        answers = [self._session.run({self._input: np.ascontiguousarray(piece)}) for piece in pieces if len(piece)]

        def whole(name: str, *tail: int) -> NDArray[np.float32]:
            found = np.concatenate([np.empty((0, *tail), np.float32), *(answer[name] for answer in answers)])
            if not np.isfinite(found).all():
                raise BundleInvalid(f"{self._session.path} recalled no {name} but NaN or infinity: export the bundle again")
            return found

        points = whole(bundle.LIP_POINTS, bundle.POINTS, 2) if self._spec.points else None
        return Recall(whole(bundle.ADDRESS, self._spec.slots), whole(bundle.LIP_FEATURE, self._spec.lip_channels), points)
