"""The models and what they run on: hashes compared, and each device proved by a session that ran."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lipdub.checkup.doctor.finding import Finding, guarded, one_line
from lipdub.checkup.doctor.libraries import REINSTALL
from lipdub.checkup.doctor.machine import gpus

_REFETCH = "install lipdub again (pip install --force-reinstall lipdub), or copy the bundle again"


def look(task: object) -> list[dict[str, str]]:
    """All findings about models and devices, as JSON."""
    found = guarded("models", bundles, REINSTALL) + guarded("expert", experts, _REFETCH)
    found += guarded("ONNX Runtime", processor, REINSTALL) + guarded("CUDA", cuda, "see the README's section on GPUs")
    return [asdict(finding) for finding in found]


def bundles() -> Iterator[Finding]:
    """Model bundles that came with lipdub: their graphs are the ones that were exported."""
    from lipdub.bundles import bundle
    from lipdub.errors import LipdubError

    names = bundle.available()
    if not names:
        yield Finding("models", "red", "no model came with this lipdub", REINSTALL)
    for name in names:
        try:
            folder = bundle.resolve(name)
            spec = bundle.load_spec(folder)
        except LipdubError as error:
            yield Finding(f"model {name}", "red", one_line(error), _REFETCH)
        else:
            yield Finding(f"model {name}", "green", f"hashes right, {_size(folder, spec.graphs)}, licence {spec.license}")


def experts() -> Iterator[Finding]:
    """The sync expert that judges dubs; ``lipdub evaluate`` wants it, a dub does not."""
    from lipdub.bundles import bundle, expert
    from lipdub.errors import LipdubError

    for name in bundle.available(expert.SPEC_FILE):
        try:
            folder = bundle.resolve(name, spec_file=expert.SPEC_FILE)
            spec = expert.load_spec(folder)
        except LipdubError as error:
            yield Finding(f"model {name}", "red", one_line(error), _REFETCH)
        else:
            yield Finding(f"model {name}", "green", f"hashes right, {_size(folder, spec.graphs)}, licence {spec.license} (judges dubs)")


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
        if cards:
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
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def _size(folder: Path, graphs: dict[str, str]) -> str:
    return f"{sum((folder / graph).stat().st_size for graph in graphs) / 1e6:.1f} MB"
