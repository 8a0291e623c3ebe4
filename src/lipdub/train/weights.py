"""Weights on disk: those of checkpoints (float32), and those of bundles (float16), which say of what network they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor

from lipdub import runtime
from lipdub.bundles import bundle
from lipdub.bundles.network import NetworkConfig
from lipdub.errors import CheckpointInvalid
from lipdub.train import checkpoints
from lipdub.train.networks import LIP_SIDE, PRESETS, FaceGenerator, LipMemory, noise_windows

WEIGHTS_FILE = "weights.safetensors"
"""A bundle's weights, written by the exporter and read to train on."""
SAME_WEIGHTS = 0.99
"""Least correlation of the lip features that a bundle's graph and its weights give for the same sound: they differ by float16 alone."""
_COMPARED_WINDOWS = 64
_NETWORK = "network"
"""Key of the file's metadata: the ``NetworkConfig`` as JSON."""


# ---- the file in a bundle


def write_weights(path: Path, weights: Mapping[str, Tensor], config: NetworkConfig | None = None) -> None:
    """Write `weights` as float16, with the settings of their network. Raises OSError."""
    halves = {key: value.half().contiguous() for key, value in weights.items()}
    # Not save_file: it makes the file readable for its owner alone, and a full disk raises an error of its own kind.
    path.write_bytes(serialised(halves, None if config is None else {_NETWORK: json.dumps(config.to_dict())}))


def read_weights(folder: Path) -> tuple[dict[str, Tensor], NetworkConfig | None]:
    """The weights of the bundle in `folder` as float32, and the settings of their network; None where the file does not tell, as in
    bundles before format version 3. Raises CheckpointInvalid."""
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 -- it is no mapping
            told = (file.metadata() or {}).get(_NETWORK)
        settings = None if told is None else json.loads(told)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointInvalid(f"'{folder}' holds no readable {WEIGHTS_FILE}: {error}; give a bundle folder or a checkpoint") from error
    return weights, None if settings is None else checkpoints.settings_of(NetworkConfig, settings, str(folder / WEIGHTS_FILE))


def _network_of_older_bundle(folder: Path) -> NetworkConfig:
    """Settings of the networks of a bundle before format version 3: a preset, with the slots and the sharpness that the bundle tells.
    Raises CheckpointInvalid, ModelError."""
    spec = bundle.BundleSpec.from_json(bundle.read_spec(folder, bundle.SPEC_FILE), where=str(folder / bundle.SPEC_FILE))
    for preset in PRESETS.values():
        if preset.channels == spec.lip_channels:
            if (preset.crop, preset.mel) != (spec.crop, spec.mel):
                raise CheckpointInvalid(
                    f"'{folder}' draws another crop or hears another mel than its weights' preset {preset.preset}; "
                    "export it from its checkpoint"
                )
            return replace(preset, slots=spec.slots, drawn_kappa=_drawn_kappa(folder / bundle.MEMORY_GRAPH))
    raise CheckpointInvalid(f"the weights in '{folder}' are of none of the presets {', '.join(PRESETS)}; train from the checkpoint instead")


def _drawn_kappa(graph: Path) -> float:
    """The constant that a memory's graph multiplies cosines by before the softmax. Raises CheckpointInvalid where there is none."""
    makers = {output: node for node in onnx.load(str(graph)).graph.node for output in node.output}
    try:
        product = makers[makers[bundle.ADDRESS].input[0]]
        (constant,) = (makers[name] for name in product.input if makers[name].op_type == "Constant")
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointInvalid(f"'{graph}' is no memory that lipdub exported; export it from its checkpoint") from error
    return float(numpy_helper.to_array(constant.attribute[0].t))


# ---- networks of bundles and checkpoints


def load_bundle_memory(folder: Path) -> tuple[NetworkConfig, LipMemory]:
    """Settings and memory of the bundle in `folder`, to go on training from. Raises CheckpointInvalid, ModelError."""
    weights, config = read_weights(folder)
    config = config or _network_of_older_bundle(folder)
    memory = LipMemory(config)
    _fill(memory, "memory.", weights, folder)
    return config, memory


def load_bundle_networks(folder: Path, spec: bundle.BundleSpec) -> tuple[NetworkConfig, LipMemory, FaceGenerator]:
    """Settings and networks of the bundle in `folder` with the description `spec`, in inference mode. Raises CheckpointInvalid, ModelError;
    also where the graph of the memory is of other weights."""
    config, memory = load_bundle_memory(folder)
    generator = FaceGenerator(config)
    _fill(generator, "generator.", load_weights(folder, config), folder)
    require_same_network(folder, spec, config, memory)
    return config, memory.eval(), generator.eval()


@torch.no_grad()
def require_same_network(folder: Path, spec: bundle.BundleSpec, config: NetworkConfig, memory: LipMemory) -> None:
    """Raise CheckpointInvalid unless description, graph and weights (`memory`) of the bundle in `folder` are of one network."""
    graph = bundle.tensors(bundle.MEMORY_GRAPH, spec)
    session = runtime.open_session(folder / bundle.MEMORY_GRAPH, device="cpu", inputs=graph.inputs, outputs=graph.outputs)
    noise = noise_windows(config, _COMPARED_WINDOWS, np.random.default_rng(0))
    (windows,) = graph.inputs
    of_graph = session.run({windows: noise})[bundle.LIP_FEATURE]
    was_training = memory.training
    of_weights = memory.eval()(torch.from_numpy(noise))[1].numpy()
    memory.train(was_training)
    # What the sound changes: the mean over all sounds could be alike in two networks.
    both = (of_graph - of_graph.mean(axis=0)).ravel(), (of_weights - of_weights.mean(axis=0)).ravel()
    if spec.network not in (None, config) or not np.corrcoef(*both)[0, 1] > SAME_WEIGHTS:
        raise CheckpointInvalid(f"{bundle.MEMORY_GRAPH} and {WEIGHTS_FILE} in '{folder}' are not of one network; copy the bundle again")


def load_memory(content: dict[str, Any], path: Path) -> tuple[NetworkConfig, LipMemory]:
    """Settings and memory of a checkpoint of either stage, as ``checkpoints.load`` gave it. Raises CheckpointInvalid."""
    try:
        config = checkpoints.settings_of(NetworkConfig, content["settings"]["network"], str(path))
        memory = LipMemory(config)
        memory.load_state_dict(content["modules"]["memory"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointInvalid(f"'{path}' holds no memory of this lipdub: {' '.join(str(error).split())[:200]}") from error
    return config, memory


def load_any_memory(path: Path) -> tuple[NetworkConfig, LipMemory]:
    """Settings and memory of a bundle folder or of a checkpoint of either stage. Raises CheckpointInvalid, ModelError."""
    return load_bundle_memory(path) if path.is_dir() else load_memory(checkpoints.load(path), path)


def load_networks(checkpoint: Path) -> tuple[NetworkConfig, LipMemory, FaceGenerator]:
    """Settings and averaged networks of a generator checkpoint, in inference mode. Raises CheckpointInvalid."""
    content = checkpoints.load(checkpoint)
    try:
        stage = content["settings"]["stage"]
        if stage != "generator":
            raise CheckpointInvalid(f"'{checkpoint}' is of the {stage} stage; give one of lipdub train generator")
        config = checkpoints.settings_of(NetworkConfig, content["settings"]["network"], str(checkpoint))
        memory, generator = LipMemory(config), FaceGenerator(config)
        averaged = content["modules"]["averaged"]
        for prefix, module in (("memory.", memory), ("generator.", generator)):
            module.load_state_dict(part_of(averaged, prefix))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointInvalid(
            f"'{checkpoint}' holds no generator of this lipdub: {' '.join(str(error).split())[:200]}; give one of lipdub train generator"
        ) from error
    return config, memory.eval(), generator.eval()


# ---- parts to begin with


def load_lip_side(path: Path, config: NetworkConfig) -> dict[str, Tensor]:
    """Weights of the lip side of a memory (``LipMemory.lip_side``) from a bundle folder or a checkpoint of either stage, to train another
    audio side against. Raises CheckpointInvalid where they do not fit `config`."""
    found = read_weights(path)[0] if path.is_dir() else _memory_of(checkpoints.load(path))
    wanted = {f"memory.{k}": v.shape for k, v in LipMemory(config).state_dict().items() if k.startswith(LIP_SIDE)}
    if {key: found[key].shape for key in wanted if key in found} != wanted:
        raise CheckpointInvalid(f"the lip side of '{path}' does not fit; give a bundle or checkpoint of the same preset and slots")
    return {key.removeprefix("memory."): found[key].float() for key in wanted}


def _memory_of(content: dict[str, Any]) -> dict[str, Tensor]:
    return {f"memory.{key}": value for key, value in content.get("modules", {}).get("memory", {}).items()}


def load_weights(path: Path, config: NetworkConfig) -> dict[str, Tensor]:
    """Weights ``generator.*`` and ``memory.fusion.*`` to begin with, float32, from a bundle folder or a generator checkpoint.
    The rest of its memory may be another one.

    Raises CheckpointInvalid where they do not fit `config`.
    """
    if path.is_dir():
        found = read_weights(path)[0]
    else:
        averaged = checkpoints.load(path).get("modules", {}).get("averaged", {})
        found = {key: value.float() for key, value in averaged.items()}
    wanted = {f"memory.{k}": v.shape for k, v in LipMemory(config).state_dict().items() if k.startswith("fusion.")}
    wanted |= {f"generator.{k}": v.shape for k, v in FaceGenerator(config).state_dict().items()}
    found = {key: value for key, value in found.items() if key.startswith(("generator.", "memory.fusion."))}
    if {key: value.shape for key, value in found.items()} != wanted:
        raise CheckpointInvalid(f"the weights in '{path}' are of another network than the memory's; train the memory with the same preset")
    return found


def part_of(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of `weights` whose names begin with `prefix`, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _fill(module: torch.nn.Module, prefix: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(part_of(weights, prefix))
    except RuntimeError as error:
        raise CheckpointInvalid(
            f"the weights in '{folder}' are of another network than it says; copy the bundle again, or export it from its checkpoint"
        ) from error
