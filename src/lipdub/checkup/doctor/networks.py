"""The models and what they run on: hashes compared, and each device proved by a session that ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lipdub.checkup.doctor.finding import Finding, guarded, one_line
from lipdub.checkup.doctor.libraries import CPU_INSTALL, REINSTALL, version_of
from lipdub.checkup.doctor.machine import gpus

if TYPE_CHECKING:
    from lipdub.bundles.bundle import BundleSpec
    from lipdub.bundles.encoder import EncoderSpec
    from lipdub.bundles.expert import ExpertSpec

_REFETCH = "install lipdub again (pip install --force-reinstall --no-deps lipdub), or copy the bundle again"


def look(task: object) -> list[dict[str, str]]:
    """All findings about models and devices, as JSON."""
    found = guarded("models", bundles, REINSTALL) + guarded("encoder", encoders, _REFETCH) + guarded("expert", experts, _REFETCH)
    found += guarded("ONNX Runtime", processor, REINSTALL) + guarded("CUDA", cuda, "see the README's section on GPUs")
    return [asdict(finding) for finding in found]


def bundles() -> Iterator[Finding]:
    """The model bundles that came with lipdub."""
    from lipdub.bundles import bundle

    if not bundle.available():
        yield Finding("models", "red", "no model came with this lipdub", REINSTALL)
    yield from _hashes(bundle.SPEC_FILE, bundle.load_spec)


def encoders() -> Iterator[Finding]:
    """The speech encoder that bundles hear through."""
    from lipdub.bundles import encoder

    yield from _hashes(encoder.SPEC_FILE, encoder.load_spec, " (hears)")


def experts() -> Iterator[Finding]:
    """The sync expert that judges dubs; ``lipdub evaluate`` wants it, a dub does not."""
    from lipdub.bundles import expert

    yield from _hashes(expert.SPEC_FILE, expert.load_spec, " (judges dubs)")


def _hashes(spec_file: str, load_spec: Callable[[Path], BundleSpec | EncoderSpec | ExpertSpec], role: str = "") -> Iterator[Finding]:
    """Whether the graphs of every model of that kind are the ones that were exported."""
    from lipdub.bundles import bundle
    from lipdub.errors import LipdubError

    for name in bundle.available(spec_file):
        try:
            folder = bundle.resolve(name, spec_file=spec_file)
            spec = load_spec(folder)
        except LipdubError as error:
            yield Finding(f"model {name}", "red", one_line(error), _REFETCH)
        else:
            size = sum((folder / graph).stat().st_size for graph in spec.graphs) / 1e6
            yield Finding(f"model {name}", "green", f"hashes right, {size:.1f} MB, licence {spec.license}{role}")


def processor() -> Iterator[Finding]:
    """A session on the processor, run once."""
    seconds, provider = _ran("cpu")
    yield Finding("ONNX Runtime", "green", f"{_version()}: the model ran on {provider}, {seconds * 1000:.1f} ms a frame")


def cuda() -> Iterator[Finding]:
    """A session on the GPU, run once; what was compiled in tells nothing."""
    from lipdub.errors import ProviderUnavailable

    cards, _ = gpus()
    try:
        seconds, provider = _ran("cuda")
    except ProviderUnavailable as error:
        if cards and version_of(CPU_INSTALL) and not version_of("onnxruntime-gpu"):
            what = f"{'; '.join(cards)}: not used, for this is the CPU install"
            yield Finding("CUDA", "yellow", what, f'to use it: pip uninstall -y {CPU_INSTALL} && pip install "onnxruntime-gpu[cuda,cudnn]"')
        elif cards:
            yield Finding("CUDA", "red", one_line(error), 'pip install "onnxruntime-gpu[cuda,cudnn]", and a driver that is as new')
        else:
            why = one_line(error).removeprefix("CUDA did not load: ").partition(";")[0]
            yield Finding("CUDA", "green", f"not used, as no GPU was found ({why})")
    else:
        yield Finding("CUDA", "green", f"the model ran on {provider}, {seconds * 1000:.1f} ms a frame")


def _ran(device: str) -> tuple[float, str]:
    """Draw one frame a few times with the default model; seconds of the fastest one, and where it ran."""
    import numpy as np

    from lipdub.model import open_model

    model = open_model("base", device="cuda" if device == "cuda" else "cpu")
    size, channels, generator = model.spec.crop.size, model.spec.lip_channels, model.generator
    pixels, lips = np.zeros((1, size, size, 3), np.uint8), np.zeros((1, channels), np.float32)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        generator.draw(pixels, pixels, lips)
        seconds.append(time.perf_counter() - started)
    return min(seconds), generator.provider


def _version() -> str:
    installed = (f"{package} {version}" for package in ("onnxruntime-gpu", "onnxruntime") if (version := version_of(package)))
    return next(installed, "of unknown version")
