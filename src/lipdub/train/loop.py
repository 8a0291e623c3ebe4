"""The training loop that all stages share: steps, logging, validation, checkpoints that resume exactly."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from lipdub.atomic import remove_leftovers
from lipdub.errors import CheckpointInvalid, MemoryCollapsed, OutputRefused, TrainingError, WriteFailed
from lipdub.train import checkpoints
from lipdub.train.data import loader


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How a run is carried out; none of it changes what a step computes but `batch`, `steps`, `rate` and `seed`."""

    steps: int
    batch: int
    """Samples per step and process."""
    rate: float
    seed: int = 0
    warmup_steps: int = 200
    validate_every: int = 500
    checkpoint_every: int = 500
    workers: int = 2
    accelerator: str = "auto"
    devices: int | str = "auto"
    precision: str = "32-true"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures on held-out people, and a picture grid uint8 (H, W, 3) or None."""

    figures: dict[str, float]
    picture: NDArray[np.uint8] | None = None
    collapsed: str | None = None
    """Why the run cannot be saved by going on, or None."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step's report to whoever watches."""

    step: int
    steps: int
    losses: dict[str, float]
    samples_per_s: float
    validation: Validation | None = None


class Stage(Protocol):
    """One stage of training: what a step computes and how it is judged."""

    name: str

    @property
    def samples(self) -> Dataset[dict[str, Tensor]]:
        """Training samples, by number: `Samples`, or another data set whose sample depends on (seed, number) alone."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """Everything a checkpoint must hold, by name."""
        ...

    def optimizers(self) -> dict[str, Optimizer]:
        """By name; learning rates are set by the loop relative to each group's ``base_rate``."""
        ...

    def setup(self, fabric: Fabric) -> None:
        """Move to the device and wrap for parallel training."""
        ...

    def step(self, batch: dict[str, Tensor], number: int, fabric: Fabric) -> dict[str, Tensor]:
        """One optimisation step; the losses."""
        ...

    def validate(self) -> Validation:
        """Judge on held-out people."""
        ...

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share with the run it goes on."""
        ...


def new_fabric(settings: LoopSettings) -> Fabric:
    """Fabric on the asked devices; raises TrainingError where they are not there."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        fabric = Fabric(accelerator=settings.accelerator, devices=settings.devices, precision=settings.precision)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"cannot train on {settings.accelerator}: {error}; use --accelerator cpu") from error
    except Exception as error:
        # Fabric's own MisconfigurationException derives from Exception alone.
        raise TrainingError(f"cannot train on {settings.accelerator}: {error}; use --accelerator cpu") from error
    fabric.launch()
    fabric.seed_everything(settings.seed, verbose=False)
    return fabric


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine to 5 %."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def run(
    stage: Stage, fabric: Fabric, folder: Path, settings: LoopSettings, *, resume: bool, on_progress: Callable[[StepReport], None]
) -> dict[str, float]:
    """Train `stage` into `folder` (``latest.pt``, ``best.pt``, TensorBoard); the figures of the last validation.

    Raises MemoryCollapsed where validation says that the run is lost, TrainingError where a loss is no number.
    """
    latest = folder / "latest.pt"
    shared = {
        "stage": stage.name,
        **stage.settings(),
        "batch": settings.batch,
        "rate": settings.rate,
        "seed": settings.seed,
        "ranks": fabric.world_size,
    }
    stage.setup(fabric)
    first = 0
    best = -math.inf
    if resume:
        content = checkpoints.load(latest)
        checkpoints.require_same(latest, content.get("settings", {}), shared)
        try:
            first, best = _restore(stage, content)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointInvalid(
                f"'{latest}' holds other parts than this lipdub trains ({' '.join(str(error).split())[:200]}); start a new run folder"
            ) from error
    elif latest.exists():
        raise TrainingError(f"'{folder}' already holds a run; go on with --resume, or give another folder with -o")
    try:
        if fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        writer = SummaryWriter(str(folder)) if fabric.is_global_zero else None
    except OSError as error:
        raise OutputRefused(f"cannot write into '{folder}': {error.strerror}; choose another folder with -o") from error
    figures: dict[str, float] = {}
    batches = iter(
        loader(
            stage.samples, first_step=first, steps=settings.steps, batch=settings.batch,
            rank=fabric.global_rank, ranks=fabric.world_size, workers=settings.workers,
        )
    )  # fmt: skip
    clock, since = time.monotonic(), first
    printing, threading.excepthook = threading.excepthook, _leave_to_caller
    try:
        for number in range(first, settings.steps):
            batch = {key: fabric.to_device(value) for key, value in next(batches).items()}
            factor = learning_rate_factor(number, settings.steps, settings.warmup_steps)
            for optimizer in stage.optimizers().values():
                for group in optimizer.param_groups:
                    group["lr"] = group["base_rate"] * factor
            done = number + 1
            try:
                losses = stage.step(batch, number, fabric)
            except RuntimeError as error:
                if "non-finite" not in str(error):
                    raise
                # Fabric's gradient clipping: the loss or its gradient is no number.
                raise TrainingError(_no_number("a gradient", done)) from error
            last = done == settings.steps
            # Whatever is judged or kept is looked at first: a checkpoint without numbers would replace a good one.
            reported = done % 20 == 0 or done % settings.validate_every == 0 or done % settings.checkpoint_every == 0 or last
            validation = None
            if reported:
                values = {key: float(value.detach()) for key, value in losses.items()}
                bad = [key for key, value in values.items() if not math.isfinite(value)]
                if bad:
                    raise TrainingError(_no_number(f"the loss {bad[0]}", done))
                if writer is not None:
                    for key, value in values.items():
                        writer.add_scalar(f"loss/{key}", value, done)
            if done % settings.validate_every == 0 or last:
                validation = stage.validate()
                figures = validation.figures
                if writer is not None:
                    _log(writer, folder, validation, done)
                if validation.collapsed is not None:
                    raise MemoryCollapsed(f"step {done}: {validation.collapsed}")
            if fabric.is_global_zero and (done % settings.checkpoint_every == 0 or last or validation is not None):
                score = figures.get("score", -math.inf)
                improved = validation is not None and score > best
                best = max(best, score)
                content = _content(stage, shared, settings, done, best, figures)
                # The best one first: whoever is killed between the two resumes before it, and comes by here again.
                if improved:
                    checkpoints.save(folder / "best.pt", content)
                checkpoints.save(latest, content)
            if reported or validation is not None:
                speed = (done - since) * settings.batch * fabric.world_size / max(1e-9, time.monotonic() - clock)
                on_progress(StepReport(done, settings.steps, values if reported else {}, speed, validation))
                clock, since = time.monotonic(), done
    except OSError as error:
        # TensorBoard's thread hands a full disk's error to whatever call comes next; checkpoints have words of their own.
        raise WriteFailed(
            f"cannot write into '{folder}': {error.strerror or error}; free some disk space, then go on with --resume"
        ) from error
    finally:
        if writer is not None:
            with suppress(OSError):
                writer.close()
        threading.excepthook = printing
    return figures


def _leave_to_caller(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread prints the traceback of a full disk, and then hands the error on, too."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


def _no_number(what: str, step: int) -> str:
    return f"{what} is no number at step {step}; start a new run folder with a lower --rate (checkpoints up to here are kept)"


def _content(
    stage: Stage, shared: dict[str, Any], settings: LoopSettings, step: int, best: float, figures: dict[str, float]
) -> dict[str, Any]:
    return {
        "settings": shared,
        "loop": {key: value for key, value in asdict(settings).items()},
        "step": step,
        "best": best,
        "figures": figures,
        "modules": {name: _bare(module).state_dict() for name, module in stage.modules().items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in stage.optimizers().items()},
        "random": _random_state(),
    }


def _bare(module: nn.Module) -> nn.Module:
    """The module itself, without the wrapper that Fabric put around it."""
    inner = getattr(module, "module", None)
    return inner if isinstance(inner, nn.Module) and type(module).__name__ == "_FabricModule" else module


def _restore(stage: Stage, content: dict[str, Any]) -> tuple[int, float]:
    for name, module in stage.modules().items():
        _bare(module).load_state_dict(content["modules"][name])
    for name, optimizer in stage.optimizers().items():
        optimizer.load_state_dict(content["optimizers"][name])
    state = content["random"]
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    return int(content["step"]), float(content["best"])


def _random_state() -> dict[str, Any]:
    # The samples need no state: they depend on (seed, number) alone, and nothing else in a step draws random numbers.
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _log(writer: SummaryWriter, folder: Path, validation: Validation, step: int) -> None:
    for key, value in validation.figures.items():
        writer.add_scalar(f"val/{key}", value, step)
    if validation.picture is not None:
        import cv2

        writer.add_image("val/pictures", validation.picture, step, dataformats="HWC")
        cv2.imwrite(str(folder / "pictures.png"), validation.picture[..., ::-1])
    writer.flush()
