"""The sync expert on ONNX Runtime: how well lips and sound belong together. It judges; it takes no part in a dub.

    models/expert/
      expert.json           what the expert is: ExpertSpec below
      expert_lips.onnx      five lip pictures -> unit embedding
      expert_sound.onnx     window of the speech encoder's features -> unit embedding
      weights.safetensors   the same weights to train a generator against (optional, never read here)

The dot product of a lip and a sound embedding is their cosine: the higher, the better they belong together.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lipdub.atomic import write_whole
from lipdub.bundles import bundle
from lipdub.bundles.bundle import BATCH, GraphTensors
from lipdub.bundles.network import EncoderUse
from lipdub.errors import BundleInvalid
from lipdub.options import Device
from lipdub.records import CropSpec
from lipdub.runtime import Session, open_session

FORMAT_VERSION: Final = 2
"""2: it hears the features of a speech encoder; 1 heard mel."""
SPEC_FILE: Final = "expert.json"
LIPS_GRAPH: Final = "expert_lips.onnx"
SOUND_GRAPH: Final = "expert_sound.onnx"
FRAMES: Final = "frames"
FEATURES: Final = "features"
EMBEDDING: Final = "embedding"

BATCH_SIZE: Final = 64
"""Windows that go through a graph together; the last batch of a call may be smaller."""
OFFSETS: Final = (
    "a shift of k frames at 25 Hz compares lips at time t with the sound at t + k / 25 s; the best k is positive where the sound is late"
)


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """What an exported expert says of itself.

    crop: the aligned crop; of it the lower-half box ``crop.drawn`` is looked at. encoder: what it hears through. frames: pictures of a lip
    window, at 25 Hz. pool, lip_widths, sound_widths: of the networks, to train with. embedding: length E of both embeddings. scale, bias:
    ``scale * cosine + bias`` are the log odds that lips and sound belong together. offsets: what a shift means, in words. license,
    training_data: one line each. graphs: file name to sha256; empty until the export is finished. created_with: lipdub version.

    Raises ``ValueError`` when built with values that do not fit together.
    """

    name: str
    format_version: int
    crop: CropSpec
    encoder: EncoderUse
    frames: int
    pool: int
    lip_widths: tuple[int, ...]
    sound_widths: tuple[int, ...]
    embedding: int
    scale: float
    bias: float
    offsets: str
    license: str
    training_data: str
    graphs: dict[str, str] = field(hash=False)
    created_with: str

    def __post_init__(self) -> None:
        for holds, message in (
            (self.name, "name must not be empty"),
            (self.format_version == FORMAT_VERSION, f"format_version must be {FORMAT_VERSION}, got {self.format_version}"),
            (self.frames > 0 and self.frames % 2 == 1, f"frames must be odd, got {self.frames}"),
            (self.pool > 0, f"pool must be positive, got {self.pool}"),
            (len(self.lip_widths) == 4 and len(self.sound_widths) == 3, "lip_widths must hold 4 widths, sound_widths 3"),
            (min(*self.lip_widths, *self.sound_widths, self.embedding) > 0, "widths and embedding must be positive"),
            (math.isfinite(self.scale) and math.isfinite(self.bias), "scale and bias must be finite"),
            (self.license, "license must not be empty"),
            (not self.graphs or set(self.graphs) == {LIPS_GRAPH, SOUND_GRAPH}, f"graphs must name {LIPS_GRAPH} and {SOUND_GRAPH}"),
            (all(bundle.SHA256_DIGITS.fullmatch(digest) for digest in self.graphs.values()), "graphs must map to sha256 hex digests"),
        ):
            if not holds:
                raise ValueError(message)

    def to_json(self) -> str:
        """The text of ``expert.json``; `from_json` gives an equal spec back."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = SPEC_FILE) -> ExpertSpec:
        """The spec that `text` holds; `where` names it in messages. Raises BundleInvalid."""
        return bundle.read_record(text, cls, where=where, version=FORMAT_VERSION)


def tensors(spec: ExpertSpec) -> Mapping[str, GraphTensors]:
    """Tensors of both graphs. frames: RGB in [-1, 1] of the box. features: (N, K, D) of the encoder. embedding: unit rows. All float32."""
    y0, y1, x0, x1 = spec.crop.drawn
    rows = {EMBEDDING: (BATCH, spec.embedding)}
    return types.MappingProxyType(
        {
            LIPS_GRAPH: GraphTensors(inputs={FRAMES: (BATCH, 3, spec.frames, y1 - y0, x1 - x0)}, outputs=rows),
            SOUND_GRAPH: GraphTensors(inputs={FEATURES: (BATCH, len(spec.encoder.taps), spec.encoder.channels)}, outputs=rows),
        }
    )


class Expert:
    """An opened expert. Made by `open_expert`."""

    def __init__(self, folder: Path, spec: ExpertSpec, *, device: Device = "cpu", threads: int | None = None) -> None:
        self._spec, self.folder = spec, folder
        self._lips, self._sound = (
            open_session(folder / graph, device=device, threads=threads, inputs=names.inputs, outputs=names.outputs)
            for graph, names in tensors(spec).items()
        )

    def __repr__(self) -> str:
        return f"Expert({self._spec.name}, {self.provider})"

    @property
    def spec(self) -> ExpertSpec:
        """What the expert says of itself."""
        return self._spec

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the device that it runs on."""
        return self._lips.provider

    def embed_lips(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit rows (N, E) of the windows around each of N successive aligned crops at 25 Hz, uint8 (N, S, S, 3) RGB; ends are repeated."""
        spec, size = self._spec, self._spec.crop.size
        if crops.dtype != np.uint8 or crops.shape != (len(crops), size, size, 3):
            raise ValueError(f"crops must be uint8 {(len(crops), size, size, 3)}, got {crops.dtype} {crops.shape}")
        y0, y1, x0, x1 = spec.crop.drawn
        reach, last = spec.frames // 2, len(crops) - 1
        found = [np.zeros((0, spec.embedding), np.float32)]
        for batch in _batches(len(crops)):
            around = np.clip(batch[:, None] + np.arange(-reach, reach + 1), 0, last)
            low = int(around.min())
            box = crops[low : int(around.max()) + 1, y0:y1, x0:x1].astype(np.float32) / np.float32(127.5) - np.float32(1.0)
            windows = np.ascontiguousarray(box[around - low].transpose(0, 4, 1, 2, 3))
            found.append(_rows(self._lips, {FRAMES: windows}))
        return np.concatenate(found)

    def embed_sound(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit rows (N, E) of windows of the encoder's features, float32 (N, K, D)."""
        shape = (len(windows), len(self._spec.encoder.taps), self._spec.encoder.channels)
        if windows.dtype != np.float32 or windows.shape != shape:
            raise ValueError(f"windows must be float32 {shape}, got {windows.dtype} {windows.shape}")
        found = [np.zeros((0, self._spec.embedding), np.float32)]
        found += [_rows(self._sound, {FEATURES: np.ascontiguousarray(windows[batch])}) for batch in _batches(len(windows))]
        return np.concatenate(found)


def open_expert(name_or_folder: str | Path = "expert", *, device: Device = "cpu", threads: int | None = None) -> Expert:
    """The expert of that name (one that came with lipdub) or in that folder, ready to run, its graphs checked against their hashes.

    Raises BundleNotFound, BundleInvalid, ProviderUnavailable.
    """
    folder = bundle.resolve(str(name_or_folder), spec_file=SPEC_FILE)
    return Expert(folder, load_spec(folder), device=device, threads=threads)


def load_spec(folder: Path) -> ExpertSpec:
    """The spec of the expert in `folder`, its graphs checked. Raises BundleNotFound, BundleInvalid."""
    spec = ExpertSpec.from_json(bundle.read_spec(folder, SPEC_FILE), where=str(folder / SPEC_FILE))
    bundle.check_graphs(folder, spec.graphs, SPEC_FILE)
    return spec


def finish(folder: Path, spec: ExpertSpec) -> ExpertSpec:
    """Hash the graphs that lie in `folder`, write its ``expert.json``, and give back `spec` with the hashes filled in: the last step of
    an export. Raises BundleInvalid where a graph is missing."""
    whole = replace(spec, graphs={graph: bundle.sha256(folder / graph) for graph in tensors(spec)})
    write_whole(folder / SPEC_FILE, whole.to_json())
    return whole


def _batches(count: int) -> list[NDArray[np.int64]]:
    """Row numbers in order, a batch at a time."""
    return [np.arange(start, min(start + BATCH_SIZE, count)) for start in range(0, count, BATCH_SIZE)]


def _rows(session: Session, feeds: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    rows = session.run(feeds)[EMBEDDING]
    if not np.isfinite(rows).all():
        raise BundleInvalid(f"{session.path} gave no embedding but NaN or infinity: export the expert again")
    return rows
