"""What makes a row the same row: its inputs, options, output, model and version of lipdub, in one hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from lipdub import __version__
from lipdub.batch.rows import Location, Row
from lipdub.batch.storage import Identity, is_url
from lipdub.bundles import bundle
from lipdub.options import dub_options

Facts = dict[str, Any]
"""What a fingerprint was made of; JSON."""
_NOT_IN_THE_OUTPUT: Final = ("force", "threads", "model")
"""Options that change nothing in the output; the model counts by its content, not by its name."""


def facts_of(row: Row, folder: Path, inputs: Mapping[Location, Identity | None]) -> Facts:
    """What `row` is made of. folder: the manifest's. inputs: what stands at its video and its speech; their content is not read."""
    options = {name: value for name, value in asdict(row.options).items() if name not in _NOT_IN_THE_OUTPUT}
    for option in dub_options():
        if option.name in options and (paths := option.paths(options[option.name])):
            value = option.with_paths(options[option.name], lambda path: portable(Path(path), folder))
            options[option.name] = [value, *(fact for path in paths for fact in _stamp(Path(path)))]
    facts: Facts = {"output": portable(row.output, folder), "options": options, "model": _model(row.options.model)}
    for name, place in (("video", row.video), ("speech", row.speech)):
        found = inputs[place]
        facts[name] = [portable(place, folder), *((found.size, found.stamp) if found is not None else ())]
    facts["lipdub"] = ".".join(__version__.split(".")[:2])
    return facts


def _stamp(file: Path) -> tuple[int, ...]:
    """Size and time of writing of a file that an option names; nothing where it is missing, which is said when the row is dubbed."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def key_of(facts: Facts) -> str:
    """The fingerprint: 32 hex digits."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def portable(place: Location, folder: Path) -> str:
    """`place` as it is called from the manifest's `folder`, so that the whole job may be moved; absolute where it lies outside."""
    if isinstance(place, str):
        return place
    # A file that is a link counts by its own name: an output that replaces it would change what the link says.
    real, base = os.path.join(os.path.realpath(place.parent), place.name), os.path.realpath(folder)
    inside = real == base or real.startswith(os.path.join(base, ""))
    return Path(os.path.relpath(real, base) if inside else real).as_posix()


def place_of(name: str, folder: Path) -> Location:
    """The other way: the place that `portable` has given this name."""
    return name if is_url(name) else folder / name


def difference(old: Facts, new: Facts) -> str:
    """What has changed from `old` to `new`, in a few words."""
    words = [f"its {name} changed" for name in ("video", "speech", "model") if old.get(name) != new.get(name)]
    before, after = old.get("options") or {}, new.get("options") or {}
    for name in after:
        if (was := before.get(name)) != (now := after[name]):
            same_file = isinstance(was, list) and isinstance(now, list) and was[0] == now[0]
            words.append(f"its {name} changed" if same_file else f"{name} {_called(was)} -> {_called(now)}")
    if old.get("lipdub") != new.get("lipdub"):
        words.append(f"lipdub {old.get('lipdub')} -> {new.get('lipdub')}")
    return ", ".join(words) or "nothing changed"


def _called(value: object) -> object:
    """An option as it is shown: of a file its name alone."""
    return value[0] if isinstance(value, list) else value


def _model(model: str) -> str:
    """The hash of a bundle's description, which holds the hashes of its graphs."""
    return bundle.sha256(bundle.resolve(model) / bundle.SPEC_FILE)
