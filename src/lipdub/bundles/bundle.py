"""Model bundles on disk: a folder with ``bundle.json`` and the ONNX graphs it vouches for.

    models/<name>/
      bundle.json           what the model is: BundleSpec below
      memory.onnx           windows of speech (features of the encoder, or mel) -> address, lip feature
      generator.onnx        target face, reference face, lip feature -> the drawn box
      weights.safetensors   the same weights to go on training from (optional, never read here)
      MODEL_CARD.md         for people (optional, never read here)

The names and axes of the graphs' tensors are constants here and nowhere else; the exporter, the checks when a graph is
opened and the test doubles all read them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Final, TypeVar, get_args, get_origin, get_type_hints

from lipdub.atomic import write_whole
from lipdub.bundles.network import EncoderUse, NetworkConfig
from lipdub.errors import BundleInvalid, BundleNotFound
from lipdub.records import CropSpec, MelSpec

FORMAT_VERSION: Final = 3
"""Version of ``bundle.json`` and of the tensors below; a bundle of another version is refused, but for those of `_EARLIER`."""
_EARLIER: Final[Mapping[int, Mapping[str, object]]] = types.MappingProxyType(
    {
        1: types.MappingProxyType({"has_flow": False, "voice_bands": 0, "network": None, "encoder": None, "points": False}),
        2: types.MappingProxyType({"network": None, "encoder": None, "points": False}),
    }
)
"""Versions that are read, too, as if they were of this one: the keys that they do not have, and what those bundles mean by it."""
_RENAMED: Final[Mapping[str, str]] = types.MappingProxyType({"smoothing_s": "tap_distance_s", "copies": "has_flow"})
"""Keys of those versions that are called otherwise now."""

SPEC_FILE: Final = "bundle.json"
MEMORY_GRAPH: Final = "memory.onnx"
GENERATOR_GRAPH: Final = "generator.onnx"

MEL: Final = "mel"
FEATURES: Final = "features"
ADDRESS: Final = "address"
LIP_FEATURE: Final = "lip_feature"
LIP_POINTS: Final = "lip_points"
TARGET: Final = "target"
REFERENCE: Final = "reference"
FACE: Final = "face"
PAINT_MASK: Final = "painted"
"""The tensor keeps the name that graphs of every format have."""
FLOW: Final = "flow"

POINTS: Final = 40
"""Lip points: outer ring, then inner ring (``lipdub.faces.landmarks.LIPS``)."""
BATCH: Final = "B"
"""Name of the one dynamic axis; every other axis has a fixed size in the graph."""

FLOW_STRIDE: Final = 4
"""Crop px per cell of the flow, either way."""

Shape = tuple[int | str, ...]
"""Sizes of a tensor's axes; a name stands for a size that is not known yet."""


@dataclass(frozen=True, slots=True)
class GraphTensors:
    """Inputs and outputs of one graph: name to shape, in the graph's order. Every tensor is float32."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


TENSORS: Final[Mapping[str, GraphTensors]] = types.MappingProxyType(
    {
        MEMORY_GRAPH: GraphTensors(
            inputs={MEL: (BATCH, 1, "bands", "window"), FEATURES: (BATCH, "taps", "channels")},
            outputs={ADDRESS: (BATCH, "slots"), LIP_FEATURE: (BATCH, "lip_channels"), LIP_POINTS: (BATCH, POINTS, 2)},
        ),
        GENERATOR_GRAPH: GraphTensors(
            inputs={TARGET: (BATCH, 3, "S", "S"), REFERENCE: (BATCH, 3, "S", "S"), LIP_FEATURE: (BATCH, "lip_channels")},
            outputs={FACE: (BATCH, 3, "h", "w"), PAINT_MASK: (BATCH, 1, "h", "w"), FLOW: (BATCH, 2, "fh", "fw")},
        ),
    }
)
"""Tensors of each graph file, sizes still by name; `tensors` fills them in.

mel: log-mel windows in [-4, 4]. features: of the speech encoder at the taps around a moment; a memory takes one of the two.
address: softmax over the slots. lip_points: the recalled lips, relative to the person's closed mouth, unit crop; only in a bundle that says
`points`. target, reference: RGB in [-1, 1]; rows of the target from `CropSpec.masked_from` on are 0. face: RGB in [-1, 1], the ``drawn``
box of the crop only, h x w px. All float32, also where the weights inside the graph are float16.

Only in a bundle that says `has_flow`: painted, in [0, 1], the share of each pixel of the face that was painted; the rest of it was copied
from the reference. flow, (x, y) in crop sides: where it was copied from, minus its own place, at the middles of cells of `FLOW_STRIDE` px.
"""
_OF_FLOW: Final = (PAINT_MASK, FLOW)
BANK: Final = "bank.npz"
"""Mouths of the person that a bundle was adapted to, as ``faces.track_file`` writes them; only in such a bundle."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
SHA256_DIGITS: Final = re.compile(r"[0-9a-f]{64}")
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """What a bundle says of itself. Raises ``ValueError`` when built with values that do not fit together."""

    name: str
    """Lower-case letters, digits, dot, dash, underscore."""
    backend: str
    """Key of ``lipdub.generators.GENERATORS``."""
    format_version: int
    crop: CropSpec
    mel: MelSpec | None
    """What the memory hears; None where it stands on a speech encoder."""
    slots: int
    """Of the memory."""
    lip_channels: int
    """Length of a lip feature."""
    rest_feature: tuple[float, ...]
    """The lip feature of a resting, closed mouth: `lip_channels` finite numbers."""
    license: str
    """One line, shown to users."""
    training_data: str
    """One line, shown to users."""
    graphs: dict[str, str] = field(hash=False)
    """File name to sha256 (64 hex digits), that of the `BANK` too where there is one; empty until `finish`."""
    created_with: str
    """Version of lipdub."""
    tap_distance_s: float = 0.0
    """Seconds between the three windows of sound (``lipdub.speech.windows``) whose lip features are averaged, weighted
    1/4, 1/2, 1/4; 0 for one window alone."""
    has_flow: bool = False
    """generator.onnx also tells what of the face was copied from the reference, and from where."""
    voice_bands: int = 0
    """The outer two windows are heard with their mel bands moved down and up by this many."""
    network: NetworkConfig | None = None
    """What fixes the shapes of the networks in weights.safetensors. None in bundles of format versions 1 and 2, and of other backends."""
    encoder: EncoderUse | None = None
    """The speech encoder that the memory stands on."""
    points: bool = False
    """memory.onnx also tells lip points."""

    def __post_init__(self) -> None:
        for holds, message in (
            (_NAME.fullmatch(self.name), f"name must be lower-case letters, digits, '.', '-' or '_', got {self.name!r}"),
            (self.backend, "backend must not be empty"),
            (self.format_version == FORMAT_VERSION, f"format_version must be {FORMAT_VERSION}, got {self.format_version}"),
            (self.slots > 0, f"slots must be positive, got {self.slots}"),
            (self.lip_channels > 0, f"lip_channels must be positive, got {self.lip_channels}"),
            (
                len(self.rest_feature) == self.lip_channels,
                f"rest_feature must hold lip_channels = {self.lip_channels} numbers, got {len(self.rest_feature)}",
            ),
            (all(math.isfinite(value) for value in self.rest_feature), "rest_feature must be finite"),
            (self.license, "license must not be empty"),
            (
                not self.graphs or set(self.graphs) - {BANK} == set(TENSORS),
                f"graphs must name {_listed(TENSORS)}, got {_listed(self.graphs)}",
            ),
            (all(SHA256_DIGITS.fullmatch(digest) for digest in self.graphs.values()), "graphs must map to sha256 hex digests"),
            (0.0 <= self.tap_distance_s < math.inf, f"tap_distance_s must be 0 or more seconds, got {self.tap_distance_s}"),
            ((self.mel is None) != (self.encoder is None), "a memory hears either mel or the features of an encoder"),
            (
                0 <= self.voice_bands < (self.mel.bands if self.mel is not None else 1),
                f"voice_bands must be less than the mel's bands, got {self.voice_bands}",
            ),
            (
                not self.has_flow or not any(edge % FLOW_STRIDE for edge in self.crop.drawn),
                f"drawn must lie on cells of {FLOW_STRIDE} px where pixels are copied, got {self.crop.drawn}",
            ),
            (
                self.network is None or self._is_of(self.network),
                "network must have the bundle's crop, mel, encoder, slots, lip_channels and has_flow",
            ),
        ):
            if not holds:
                raise ValueError(message)

    def _is_of(self, network: NetworkConfig) -> bool:
        told = (network.crop, network.mel, network.encoder, network.slots, network.channels, network.has_flow)
        return told == (self.crop, self.mel, self.encoder, self.slots, self.lip_channels, self.has_flow)

    def to_json(self) -> str:
        """The text of ``bundle.json``; `from_json` gives an equal spec back."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = SPEC_FILE) -> BundleSpec:
        """The spec that `text` holds. Every key must be there and no other may be. One of format version 1 or 2 is read as it would
        be written today, without a `network`; one of version 1 also with `has_flow` False and no `voice_bands`.

        `where` names the text in messages. Raises BundleInvalid: no JSON, another format version, a missing, unknown or
        wrongly typed key (named), or values that do not fit together.
        """
        return read_record(text, cls, where=where, version=FORMAT_VERSION, earlier=_EARLIER, renamed=_RENAMED)


def tensors(graph: str, spec: BundleSpec) -> GraphTensors:
    """``TENSORS[graph]`` with the sizes of `spec` filled in, only the batch axis keeps its name; without what the
    bundle lacks."""
    y0, y1, x0, x1 = spec.crop.drawn
    sizes: dict[str, int] = {
        "slots": spec.slots,
        "lip_channels": spec.lip_channels,
        "S": spec.crop.size,
        "h": y1 - y0,
        "w": x1 - x0,
        "fh": (y1 - y0) // FLOW_STRIDE,
        "fw": (x1 - x0) // FLOW_STRIDE,
    }

    absent = set() if spec.has_flow else set(_OF_FLOW)
    if not spec.points:
        absent.add(LIP_POINTS)
    if spec.mel is not None:
        sizes |= {"bands": spec.mel.bands, "window": spec.mel.window}
        absent.add(FEATURES)
    elif spec.encoder is not None:
        sizes |= {"taps": len(spec.encoder.taps), "channels": spec.encoder.channels}
        absent.add(MEL)

    def filled(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        return {
            name: tuple(axis if axis == BATCH or isinstance(axis, int) else sizes[axis] for axis in shape)
            for name, shape in shapes.items()
            if name not in absent
        }

    return GraphTensors(inputs=filled(TENSORS[graph].inputs), outputs=filled(TENSORS[graph].outputs))


def available(spec_file: str = SPEC_FILE) -> list[str]:
    """Names of the bundles that `resolve` knows, sorted."""
    return sorted({entry.parent.name for shelf in _shelves() for entry in shelf.glob(f"*/{spec_file}")})


def resolve(name_or_path: str, *, spec_file: str = SPEC_FILE) -> Path:
    """The folder of a bundle, given its name or its path.

    A name of a bundle that came with lipdub wins over a folder of the same name in the working directory; write
    ``./name`` for the latter. The folder's contents are not looked at (`load_spec` does). `spec_file` is the file that makes
    a folder one of the wanted kind. Raises BundleNotFound, which lists the names there are.
    """
    if _NAME.fullmatch(name_or_path):
        for shelf in _shelves():
            if (shelf / name_or_path / spec_file).is_file():
                return shelf / name_or_path
    folder = Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():
        return folder
    names = available(spec_file)
    there_are = f"the names there are: {', '.join(names)}" if names else "no bundle came with this lipdub"
    if folder.is_file():
        raise BundleNotFound(f"{name_or_path} is a file; give the folder that holds {spec_file}, or a name ({there_are})")
    raise BundleNotFound(f"no model bundle at {name_or_path!r}; give the path of a folder with {spec_file}, or a name ({there_are})")


def load_spec(folder: Path) -> BundleSpec:
    """The spec of the bundle in `folder`, after checking that its graphs are the ones that were exported.

    Raises BundleNotFound: no such folder. BundleInvalid: no or unusable ``bundle.json``, another format version, a graph
    that is missing or whose hash differs.
    """
    spec = BundleSpec.from_json(read_spec(folder, SPEC_FILE), where=str(folder / SPEC_FILE))
    check_graphs(folder, spec.graphs, SPEC_FILE)
    return spec


def read_spec(folder: Path, spec_file: str) -> str:
    """The text of a bundle's description. Raises BundleNotFound: no such folder. BundleInvalid: no such file, or it cannot be read."""
    if not folder.is_dir():
        raise BundleNotFound(f"there is no folder {folder}; give the name or the folder of a model bundle")
    file = folder / spec_file
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BundleInvalid(f"{folder} holds no {spec_file}: give the folder of a model bundle") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BundleInvalid(f"{file} cannot be read ({error}): export or copy the bundle again") from error


def check_graphs(folder: Path, graphs: Mapping[str, str], spec_file: str) -> None:
    """Raise BundleInvalid unless the files in `folder` have the sha256 that `graphs` says, and there are any."""
    if not graphs:
        raise BundleInvalid(f"{folder / spec_file} names no graphs: the export did not finish, export the bundle again")
    for graph, digest in graphs.items():
        if sha256(folder / graph) != digest:
            raise BundleInvalid(f"{folder / graph} was altered since it was exported: hash differs; export or copy the bundle again")


def finish(folder: Path, spec: BundleSpec) -> BundleSpec:
    """Hash the graphs that lie in `folder`, write its ``bundle.json``, and give back `spec` with the hashes filled in.

    The last step of an export: ``bundle.json`` is written to a temporary name and renamed, so a folder that has one is
    whole. Raises BundleInvalid where a graph is missing, WriteFailed.
    """
    hashed = [*TENSORS, *([BANK] if (folder / BANK).exists() else [])]
    whole = replace(spec, graphs={file: sha256(folder / file) for file in hashed})
    write_whole(folder / SPEC_FILE, whole.to_json())
    return whole


def read_record(
    text: str,
    record: type[_Record],
    *,
    where: str,
    version: int,
    earlier: Mapping[int, Mapping[str, object]] = types.MappingProxyType({}),
    renamed: Mapping[str, str] = types.MappingProxyType({}),
) -> _Record:
    """The record that the JSON `text` holds. Every key must be there and no other may be; ``format_version`` must be `version`, or one of
    `earlier`: each with the keys that it does not have yet, and their values. Such a text is read as one of `version`, its keys `renamed`.

    `where` names the text in messages. Raises BundleInvalid: no JSON, another format version, a missing, unknown or
    wrongly typed key (named), or values that do not fit together.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BundleInvalid(f"{where} is no JSON ({error}): export or copy the bundle again") from error
    found = data.get("format_version", version) if isinstance(data, dict) else version
    added = earlier.get(found) if type(found) is int else None
    if found != version and added is None:
        raise BundleInvalid(
            f"{where} is of format version {found!r}, this lipdub reads {' and '.join(str(known) for known in (*earlier, version))}: "
            "export the bundle again, or install the lipdub that made it"
        )
    try:
        if added is not None:
            for name in (*(old for old, new in renamed.items() if new in added), *added, *renamed.values()):
                if name in data:
                    raise ValueError(f"key {name!r} is unknown")
            data = {renamed.get(name, name): value for name, value in data.items()} | {**added, "format_version": version}
        return _typed_record(data, record, "")
    except ValueError as error:
        raise BundleInvalid(f"{where}: {error}; export or copy the bundle again") from error


def _shelves() -> tuple[Path, ...]:
    """Folders whose subfolders are bundles: inside the installed package, or ``models/`` of a source checkout."""
    package = Path(__file__).resolve().parent.parent
    checkout = (package.parents[1] / "models",) if package.parent.name == "src" else ()
    return (package / "models", *checkout)


def sha256(file: Path) -> str:
    """Hex sha256 of a file. Raises BundleInvalid where it is missing or unreadable."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise BundleInvalid(f"{file} is missing from the bundle: export or copy the bundle again") from error
    except OSError as error:
        raise BundleInvalid(f"{file} cannot be read ({error}): export or copy the bundle again") from error


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"


def _typed(value: object, hint: object, key: str) -> object:
    """`value` out of JSON as the type `hint`, which is one that the fields of the specs use.

    `key` is where in the file the value stands. Raises ``ValueError`` that names it.
    """
    if get_origin(hint) is types.UnionType:  # of a record and None
        return None if value is None else _typed(value, get_args(hint)[0], key)
    if is_dataclass(hint) and isinstance(hint, type):
        return _typed_record(value, hint, key)
    if get_origin(hint) is tuple and isinstance(value, list):
        kinds = get_args(hint)
        kinds = (kinds[0],) * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) != len(value):
            raise ValueError(f"key {key!r} must hold {len(kinds)} values, got {len(value)}")
        return tuple(_typed(item, kind, f"{key}[{at}]") for at, (item, kind) in enumerate(zip(value, kinds, strict=True)))
    if get_origin(hint) is dict and isinstance(value, dict):
        return {name: _typed(item, get_args(hint)[1], f"{key}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    kind = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
    raise ValueError(f"key {key!r} must be of type {kind}, got {value!r}")


def _typed_record(value: object, record: type[_Record], key: str) -> _Record:
    """`value` out of JSON as a dataclass whose fields are all there, and nothing else is. Raises ``ValueError``."""
    if not isinstance(value, dict):
        raise ValueError(f"{f'key {key!r}' if key else 'the file'} must be a JSON object")
    dot = f"{key}." if key else ""
    hints = get_type_hints(record)
    known = list(hints)
    for name in known:
        if name not in value:
            raise ValueError(f"key {dot + name!r} is missing")
    for name in value:
        if name not in known:
            raise ValueError(f"key {dot + name!r} is unknown")
    checked = {name: _typed(value[name], hints[name], dot + name) for name in known}
    try:
        return record(**checked)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{dot}{error}") from error
