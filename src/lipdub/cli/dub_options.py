"""The options of a dub on the command line, one for each field of ``DubOptions``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Concatenate, Literal, Optional, ParamSpec

import typer

from lipdub.options import DubOption, DubOptions, dub_options

Rest = ParamSpec("Rest")


def with_dub_options(
    command: Callable[Concatenate[DubOptions, Rest], None], *, panel: str | None = None, helps: dict[str, str] | None = None
) -> Callable[..., None]:
    """`command` with an option for each field of `DubOptions` in the place of its first parameter, which gets the record made of them.

    panel: heading under which ``--help`` lists them. helps: for options that mean something else here than their own help says.
    """
    _options, *rest = inspect.signature(command, eval_str=True).parameters.values()
    options = dub_options()

    @wraps(command)
    def run(*given: Any, **values: Any) -> None:
        command(DubOptions(**{option.name: values.pop(option.name) for option in options}), *given, **values)

    added = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=_annotation(option, panel, helps))
        for option in options
    ]
    arguments = [one for one in rest if one.default is inspect.Parameter.empty]
    others = [one for one in rest if one.default is not inspect.Parameter.empty]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*arguments, *added, *others)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _annotation(option: DubOption, panel: str | None, helps: dict[str, str] | None) -> Any:
    kind: Any = Literal[option.choices] if option.choices else option.kind
    text = (helps or {}).get(option.name, option.help)
    # A flag has no --no-... twin.
    names = [f"--{option.name}"] if option.kind is bool else []
    given = typer.Option(*names, help=text, min=option.low, max=option.high, rich_help_panel=panel)
    return Annotated[Optional[kind] if option.optional else kind, given]  # noqa: UP045 -- made at run time
