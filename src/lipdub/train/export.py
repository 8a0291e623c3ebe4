"""A checkpoint or another bundle to a bundle: two ONNX graphs checked against torch, weights, ``bundle.json``. All of it, or nothing."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lipdub import __version__, runtime
from lipdub.atomic import whole_folder
from lipdub.bundles import bundle
from lipdub.bundles.network import NetworkConfig
from lipdub.errors import ExportFailed, OutputRefused
from lipdub.train.data import Clip, load_clips
from lipdub.train.features import silent_windows
from lipdub.train.memory_stage import drawn_boxes, lip_windows
from lipdub.train.networks import FaceGenerator, LipMemory, noise_windows
from lipdub.train.weights import WEIGHTS_FILE, load_bundle_networks, load_networks, write_weights

OPSET = 17
TOLERANCE = 1e-4
"""Largest difference between graph and torch, both float32."""
HALF_TOLERANCE = 5e-2
"""The same with weights rounded to float16; what is measured is printed."""
FIRMLY, SPOKEN_EVERY = 0.25, 8
"""A generator that copies what it can leaves the lips of a smile ajar unless it is asked firmly to shut them: on the example's photo the
opening in silence falls from 0.077 to 0.060 eye distances, a further quarter wins nothing."""
UNITS = {bundle.FLOW: 1 / 128}
"""What counts as 1 of an output in these tolerances, where it is not the output's own 1: of the flow, a px of a crop of 128 px."""
MODEL_CARD = "MODEL_CARD.md"
ADAPTED_NOTE = "adapted.json"
"""What a bundle was adapted from and to; see ``adapt.py``."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    spec: bundle.BundleSpec
    differences: dict[str, float]
    """Graph file to largest absolute difference to torch."""
    tolerance: float
    """The largest that was allowed."""
    bytes: int
    gflop_per_frame: float


class _Drawing(nn.Module):
    """The generator with the contract of generator.onnx (a target whose lower half is already zeroed, and a flow in crop sides)."""

    def __init__(self, generator: FaceGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, target: Tensor, reference: Tensor, lip_feature: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        face = self.generator.decoder.drawn(lip_feature, self.generator.encoder(target, reference))
        if face.paint_mask is None or face.flow is None:
            return face.picture
        return face.picture, face.paint_mask, 0.5 * face.flow


def export(
    checkpoint: Path,
    out: Path,
    *,
    half: bool = False,
    name: str | None = None,
    rest_from: Path | None = None,
    tap_distance_s: float | None = None,
    voice_bands: int | None = None,
    drawn_kappa: float | None = None,
    license_text: str | None = None,
    training_data: str | None = None,
    force: bool = False,
) -> Exported:
    """Write the bundle folder `out` from a generator checkpoint, or anew from the weights in the folder of another bundle.

    rest_from: prepared clips whose closed mouths give the resting lip feature; else the recall of silence does, or it is the other
    bundle's. drawn_kappa: sharpness of the audio addresses in place of the checkpoint's or the other bundle's. tap_distance_s, voice_bands,
    license_text, training_data: None for what the other bundle says; of a checkpoint, for no smoothing, no other voices and "unstated".

    Raises CheckpointInvalid, BundleInvalid, OutputRefused, ExportFailed, WriteFailed; whatever fails, nothing is left behind and a bundle
    that was there stays.
    """
    check_folder(out, force=force)
    old: bundle.BundleSpec | None = None
    if checkpoint.is_dir():
        old = bundle.load_spec(checkpoint)
        config, memory, generator = load_bundle_networks(checkpoint, old)
    else:
        config, memory, generator = load_networks(checkpoint)
    if drawn_kappa is not None:
        config = replace(config, drawn_kappa=drawn_kappa)
        memory.memory.drawn_kappa = drawn_kappa
    if old is not None and rest_from is None:
        rest = old.rest_feature
    else:
        place = checkpoint if old is not None else out
        rest = rest_feature(config, memory, load_clips(rest_from)[:400] if rest_from is not None else [], beside=place)
    if tap_distance_s is None:
        tap_distance_s = old.tap_distance_s if old is not None else 0.0
    if voice_bands is None:
        voice_bands = old.voice_bands if old is not None else 0
    if license_text is None:
        license_text = old.license if old is not None else "unstated"
    if training_data is None:
        training_data = old.training_data if old is not None else "unstated"
    try:
        spec = bundle.BundleSpec(
            name=name or out.resolve().name, backend="memory", format_version=bundle.FORMAT_VERSION, crop=config.crop, mel=config.mel,
            encoder=config.encoder, slots=config.slots, lip_channels=config.channels, rest_feature=rest, license=license_text,
            training_data=training_data, graphs={}, created_with=__version__, tap_distance_s=tap_distance_s, has_flow=config.has_flow,
            voice_bands=voice_bands, network=config,
        )  # fmt: skip
    except ValueError as error:
        raise ExportFailed(
            f"cannot describe the bundle: {error}; --name, --license, --smoothing-s and --voice-bands set what it says"
        ) from error
    beside = _beside(checkpoint, (MODEL_CARD, ADAPTED_NOTE)) if old is not None else {}
    beside |= _beside(out, (MODEL_CARD,))
    return write_bundle(out, spec, config, memory, generator, half=half, beside=beside, force=force)


def _beside(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Those of the files `names` that lie in `folder`."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def write_bundle(
    out: Path,
    spec: bundle.BundleSpec,
    config: NetworkConfig,
    memory: LipMemory,
    generator: FaceGenerator,
    *,
    half: bool,
    beside: Mapping[str, bytes],
    force: bool,
    graphs: Sequence[Path] = (),
) -> Exported:
    """Write the bundle folder `out` from networks in inference mode: graphs that agree with torch, weights, the description `spec` (its
    hashes, `has_flow` and `network` are filled in), and the files `beside` them by name.

    graphs: those of these networks that there are already, under their names in bundles; they are copied as they are.

    Raises OutputRefused, ExportFailed, WriteFailed; all of it is written, or nothing.
    """
    check_folder(out, force=force)
    # The bundle that was adapted may be of an older format, which did not tell.
    spec = replace(spec, has_flow=config.has_flow, network=config, points=True)
    networks: dict[str, tuple[nn.Module, Callable[[int], tuple[Tensor, ...]]]] = {
        bundle.MEMORY_GRAPH: (memory, partial(_memory_example, config)),
        bundle.GENERATOR_GRAPH: (_Drawing(generator), partial(_generator_example, config)),
    }
    with whole_folder(out) as folder:
        for path in graphs:
            del networks[path.name]
            shutil.copyfile(path, folder / path.name)
        differences = {
            graph: export_graph(network, example, bundle.tensors(graph, spec), folder / graph, half=half)
            for graph, (network, example) in networks.items()
        }
        weights = {f"memory.{key}": value for key, value in memory.state_dict().items()}
        weights |= {f"generator.{key}": value for key, value in generator.state_dict().items()}
        write_weights(folder / WEIGHTS_FILE, weights, config)
        spec, size = _finish(folder, spec, beside)
    return Exported(spec, differences, HALF_TOLERANCE if half else TOLERANCE, size, gflop_per_frame(config, memory, generator))


def copy_bundle(
    source: Path, out: Path, spec: bundle.BundleSpec, *, beside: Mapping[str, bytes], force: bool
) -> tuple[bundle.BundleSpec, int]:
    """Write graphs and weights of the bundle in `source` to the folder `out` as they are, with another description `spec` and the files
    `beside`. Gives the spec with its hashes, and the bytes written.

    Raises OutputRefused, WriteFailed; all is written, or nothing.
    """
    check_folder(out, force=force)
    with whole_folder(out) as folder:
        for name in (*bundle.TENSORS, WEIGHTS_FILE):
            shutil.copyfile(source / name, folder / name)
        return _finish(folder, spec, beside)


def _finish(folder: Path, spec: bundle.BundleSpec, beside: Mapping[str, bytes]) -> tuple[bundle.BundleSpec, int]:
    """What lies in `folder` becomes a bundle: the spec with its hashes, and the bytes written."""
    for name, content in beside.items():
        (folder / name).write_bytes(content)
    whole = bundle.finish(folder, spec)
    return whole, sum(path.stat().st_size for path in folder.iterdir())


@torch.no_grad()
def gflop_per_frame(config: NetworkConfig, memory: LipMemory, generator: FaceGenerator) -> float:
    """Floating-point operations (a multiply and an add are two) of memory and generator for one frame, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        memory(*_memory_example(config, 1))
        generator(*_generator_example(config, 1))
    return float(counter.get_total_flops()) / 1e9


def _memory_example(config: NetworkConfig, batch: int = 2) -> tuple[Tensor, ...]:
    return (torch.from_numpy(noise_windows(config, batch, np.random.default_rng())),)


def _generator_example(config: NetworkConfig, batch: int = 2) -> tuple[Tensor, ...]:
    target, reference = torch.rand(2, batch, 3, config.size, config.size) * 2 - 1
    target[:, :, config.masked_from :] = 0
    return target, reference, torch.randn(batch, config.channels)


def export_graph(
    module: nn.Module, example: Callable[[int], tuple[Tensor, ...]], names: bundle.GraphTensors, path: Path, *, half: bool
) -> float:
    """Write `module` as the graph `path` with the tensors `names`, and give the largest difference to torch of any output, in its `UNITS`,
    over batches of several sizes.

    example: random inputs for a batch of that size. half: store the weights as float16. Raises ExportFailed.
    """
    inputs, outputs = list(names.inputs), list(names.outputs)
    try:
        with warnings.catch_warnings():
            # The TorchScript exporter says that it is deprecated, and traces group norm's own check of its input's size.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            torch.onnx.export(
                module.eval(), example(2), str(path), input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=False,
                dynamic_axes={key: {0: bundle.BATCH} for key in (*inputs, *outputs)},
            )  # fmt: skip
        model = onnx.load(str(path))
        if half:
            _store_half(model)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
    except OSError:
        raise  # no space: no graph's fault
    except Exception as error:
        # torch and onnx raise whatever they like here; all of it means the same to the caller.
        raise ExportFailed(f"cannot write {path.name}: {' '.join(str(error).split())[:300]}") from error
    return _parity(module, example, names, path, half)


@torch.no_grad()
def _parity(module: nn.Module, example: Callable[[int], tuple[Tensor, ...]], names: bundle.GraphTensors, path: Path, half: bool) -> float:
    fed = example(2)
    # Open sizes: what is compared are the values; the runtime checks the declared sizes when the bundle is opened.
    session = runtime.open_session(
        path, device="cpu", inputs={k: _sized(v) for k, v in zip(names.inputs, fed, strict=True)},
        outputs={k: _sized(v) for k, v in zip(names.outputs, _as_tuple(module(*fed)), strict=True)},
    )  # fmt: skip
    worst = 0.0
    torch.manual_seed(0)
    for batch in (1, 3, 8):
        fed = example(batch)
        expected = _as_tuple(module(*fed))
        got = session.run({key: value.numpy() for key, value in zip(names.inputs, fed, strict=True)})
        for key, value in zip(names.outputs, expected, strict=True):
            difference = np.abs(got[key] - value.numpy()).max() / UNITS.get(key, 1.0)
            worst = float(np.maximum(worst, difference))  # keeps NaN; max() would drop it
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    if not worst <= tolerance:
        raise ExportFailed(
            f"{path.name} differs from torch by {worst:.2e}, at most {tolerance:.0e} is allowed; report this with the checkpoint's settings"
        )
    return worst


def _as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _sized(tensor: Tensor) -> tuple[int | str, ...]:
    return (bundle.BATCH, *tensor.shape[1:])


def _store_half(model: onnx.ModelProto) -> None:
    """Store float32 weights as float16 with a cast behind each: half the file, the same float32 arithmetic, any provider."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 64:
            continue
        stored = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}_half")
        casts.append(onnx.helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(stored)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@torch.no_grad()
def rest_feature(config: NetworkConfig, memory: LipMemory, clips: Sequence[Clip], *, beside: Path | None = None) -> tuple[float, ...]:
    """The lip feature of a resting mouth, C numbers: the memory's answer to silence, with the lip recall averaged over the most closed
    mouth of each of the `clips` where it is closed, and ``FIRMLY`` further from what their speech asks for in the mean. beside: as for
    ``silent_windows``."""
    audio_feature = memory.audio_encoder(torch.from_numpy(silent_windows(config, beside=beside)))
    recalled = memory.memory.by_audio_sharpened(audio_feature).recalled
    found = []
    for clip in clips:
        at = int(np.argmin(clip.opening))
        if clip.opening[at] > 0.02:
            continue
        low, high = max(0, at - 2), min(len(clip), at + 3)
        pictures = drawn_boxes(clip, low, high, config)
        found.append(memory.memory.by_lips(memory.lip_encoder(lip_windows(pictures, config.frames)[at - low][None])).recalled)
    if found:
        recalled = torch.cat(found).mean(dim=0, keepdim=True)
    rest = memory.fuse(audio_feature, recalled)[0]
    if found:
        spoken = [memory(torch.from_numpy(clip.heard(np.arange(0, len(clip), SPOKEN_EVERY), config)))[1] for clip in clips]
        rest = rest + FIRMLY * (rest - torch.cat(spoken).mean(dim=0))
    return tuple(float(value) for value in rest)


def check_folder(out: Path, *, force: bool, spec_file: str = bundle.SPEC_FILE) -> None:
    """Raise OutputRefused unless a bundle can be written at `out`; with `force` also where there is one, told by its `spec_file`."""
    if not out.parent.is_dir():
        raise OutputRefused(f"the folder '{out.parent}' does not exist; make it, or write elsewhere")
    if out.exists() and not out.is_dir():
        raise OutputRefused(f"'{out}' is a file; give a folder for the bundle")
    # A model card may be written before there is a bundle.
    if out.is_dir() and any(path.name != MODEL_CARD for path in out.iterdir()):
        if not (out / spec_file).exists():
            raise OutputRefused(f"'{out}' holds something else than a bundle; give another folder")
        if not force:
            raise OutputRefused(f"'{out}' already holds a bundle; add --force to replace it")
