"""Records as options of a command: one option for each field of ``DubOptions``, or of another record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Annotated, Any, Literal, Optional, get_args

import typer

from lipdub.options import DubOption, DubOptions, Group, dub_options


def with_record(command: Callable[..., None], record: type, parameters: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """`command` with `parameters` in the place of its parameter of type `record`, which gets the record made of their values."""
    own = inspect.signature(command, eval_str=True).parameters
    (name,) = (one.name for one in own.values() if one.annotation is record)
    fields = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]

    @wraps(command)
    def run(**values: Any) -> None:
        try:
            made = record(**{one.name: values.pop(one.name) for one in fields})
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        command(**{name: made}, **values)

    merged = [new for one in own.values() for new in (fields if one.name == name else [one.replace(kind=inspect.Parameter.KEYWORD_ONLY)])]
    run.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in merged}
    return run


def with_dub_options(command: Callable[..., None], *, panel: str | None = None, helps: dict[str, str] | None = None) -> Callable[..., None]:
    """`command` with an option for each field of `DubOptions` in the place of its parameter of that type.

    panel: heading under which ``--help`` lists them. helps: for options that mean something else here than their own help says.
    """

    def parameter(option: DubOption) -> inspect.Parameter:
        kind: Any = Literal[option.choices] if option.choices else option.kind
        given = typer.Option(
            *([f"--{option.name.replace('_', '-')}"] if option.kind is bool else []),  # a flag has no --no-... twin
            help=(helps or {}).get(option.name, option.help), min=_limit(option, option.low), max=_limit(option, option.high),
            rich_help_panel=panel or option.group,
        )  # fmt: skip
        hint: Any = Annotated[Optional[kind] if option.optional else kind, given]  # noqa: UP045 -- made at run time
        return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hint)

    in_groups = sorted(dub_options(), key=lambda option: get_args(Group).index(option.group))
    return with_record(command, DubOptions, map(parameter, in_groups))


def _limit(option: DubOption, limit: float | None) -> float | None:
    """As Typer takes it: whole for whole numbers."""
    return int(limit) if limit is not None and option.kind is int else limit
