"""Checkpoints: written whole or not at all, loaded without running code, refused when they belong to another configuration."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lipdub.atomic import whole_file
from lipdub.bundles.network import EncoderUse
from lipdub.errors import CheckpointInvalid, TrainingError, WriteFailed
from lipdub.records import MelSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1
_RECORDS = {"mel": MelSpec, "encoder": EncoderUse}
"""Settings that are records themselves."""
_Settings = TypeVar("_Settings", bound="DataclassInstance")


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) to `path`. Raises WriteFailed; the previous checkpoint is untouched then."""
    advice = "free some disk space, the previous checkpoint is untouched"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteFailed(f"cannot write '{path}': {error.strerror or error}; {advice}") from error
    with whole_file(path, advice=advice) as part:
        try:
            torch.save({"lipdub_checkpoint": FORMAT, **content}, part)
        except RuntimeError as error:  # what torch's writer raises on a full disk, about positions in its archive
            raise OSError("it could not be written whole") from error


def load(path: Path) -> dict[str, Any]:
    """What ``save`` wrote. Never executes code from the file. Raises CheckpointInvalid."""
    if not path.is_file():
        raise CheckpointInvalid(f"'{path}' is no file; give a checkpoint that lipdub train wrote (runs/NAME/latest.pt)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what foreign files hold: they are refused below in words of our own
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise CheckpointInvalid(
                f"'{path}' holds more than weights and would run code when loaded; refused, use a checkpoint of lipdub train"
            ) from error
        raise CheckpointInvalid(f"'{path}' is no checkpoint; give one that lipdub train wrote (runs/NAME/latest.pt)") from error
    except Exception as error:
        # The unpickler raises whatever a stray byte leads it to: IndexError, AttributeError, struct.error, ...
        raise CheckpointInvalid(
            f"'{path}' is no checkpoint, or is truncated; give one that lipdub train wrote (runs/NAME/latest.pt)"
        ) from error
    if not isinstance(content, dict) or content.get("lipdub_checkpoint") != FORMAT:
        raise CheckpointInvalid(f"'{path}' is no checkpoint of this lipdub; give one that lipdub train wrote (runs/NAME/latest.pt)")
    return content


def stage_of(content: dict[str, Any]) -> str | None:
    """Which stage of training wrote what ``load`` gave; None where it does not say."""
    settings = content.get("settings")
    return settings.get("stage") if isinstance(settings, dict) else None


def require_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise CheckpointInvalid that names each difference between a checkpoint's settings and the wanted ones."""
    if saved.get("stage") != wanted.get("stage"):
        # All else differs, too, and says nothing more.
        saved, wanted = ({"stage": values.get("stage")} for values in (saved, wanted))
    there, now = _flat(saved), _flat(wanted)
    differences = [f"{key}: {there.get(key)!r} there, {value!r} now" for key, value in now.items() if there.get(key) != value]
    if differences:
        raise CheckpointInvalid(
            f"'{path}' was trained with other settings ({'; '.join(differences)}); repeat those, or start a new run folder"
        )


def settings_of(record: type[_Settings], values: dict[str, Any], where: str) -> _Settings:
    """The frozen record of settings whose plain values (``dataclasses.asdict``, also by way of JSON) are `values`. Settings that were
    not there yet when they were written have their defaults.

    where: the file, for messages. Raises TrainingError on unknown, missing or unusable values.
    """
    unknown = set(values) - {known.name for known in fields(record)}
    if unknown:
        raise TrainingError(f"the network of '{where}' has unknown settings {sorted(unknown)}; use the lipdub that wrote it")
    plain = {key: _tupled(value) for key, value in values.items()}
    try:
        for name, kind in _RECORDS.items():
            if isinstance(plain.get(name), dict):
                plain[name] = kind(**{key: _tupled(value) for key, value in plain[name].items()})
        return record(**plain)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"the network of '{where}' has unusable settings ({error}); use the lipdub that wrote it") from error


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``network.slots``, so that a difference names the one value that differs."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
