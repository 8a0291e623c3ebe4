"""``lipdub cache``: what is kept of analysed videos; show it, clear it, say where it lies."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from lipdub.cli.commands import Command, Group
from lipdub.cli.console import new_table, paragraphs, print_line, results, say

if TYPE_CHECKING:
    from lipdub.faces.cache import AnalysisCache

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub cache
  lipdub cache clear --older-than 30d
  lipdub cache path
[bold]Settings[/bold]
  LIPDUB_CACHE=/shared/folder   another folder, on a shared disk, too; empty or "off": keep nothing
  LIPDUB_CACHE_LIMIT=5GB        2 GiB unless you say otherwise; what was not used for longest goes first
""")

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WORDS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week"}

app = typer.Typer(cls=Group, invoke_without_command=True, epilog=EXAMPLES, rich_markup_mode="rich")


def seconds_of(text: str) -> float:
    """Seconds of a length of time: ``30d``, ``12 h``, ``1.5w``, ``90m``, ``10s``. Raises typer.BadParameter."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([smhdw])\s*", text.lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no length of time; write one such as 30d, 12h or 2w")
    return float(match[1]) * _UNITS_S[match[2]]


@app.callback()
def show(context: typer.Context) -> None:
    """Show what is kept of analysed videos, so that dubbing one again, into another language, costs only the drawing."""
    if context.invoked_subcommand is not None:
        return
    cache = _cache()
    if cache is None:
        return
    from rich.text import Text

    entries = cache.entries()
    total = sum(entry.bytes for entry in entries)
    if entries:
        table = new_table("analyses kept", ">frames", ">size", ">last used", "video")
        now = time.time()
        for entry in entries:
            source = Text(entry.source) if entry.source else Text("damaged; will be made again", "yellow")
            table.add_row(str(entry.frames or "-"), size_text(entry.bytes), age_text(now - entry.used_s), source)
        results().print(table)
    print_line(f"{_count(len(entries))}, {size_text(total)} of at most {size_text(cache.limit_bytes)}, in {cache.folder}")


@app.command("clear", cls=Command, epilog=EXAMPLES)
def clear(
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="TIME", help="Only what was not used for so long: 30d, 12h, 2w.")
    ] = None,
) -> None:
    """Remove what is kept, or what was not used lately. No video and no output is touched."""
    older_than_s = None if older_than is None else seconds_of(older_than)
    cache = _cache()
    if cache is None:
        return
    before = len(cache.entries())
    count, freed = cache.clear(older_than_s)
    print_line(f"removed {_count(count)}, {size_text(freed)}")
    if older_than_s is None and (left := before - count) > 0:
        say(f"{_count(left)} could not be removed from {cache.folder}; check the permissions of the folder")
        raise typer.Exit(1)


@app.command("path", cls=Command, epilog=EXAMPLES)
def path() -> None:
    """Print the folder of the cache, for scripts; exit code 1 where there is none."""
    cache = _cache()
    if cache is None:
        raise typer.Exit(1)
    typer.echo(str(cache.folder))


def size_text(count: int) -> str:
    """Bytes for people: ``931 B``, ``4.2 MB``, ``2.1 GB`` (thousands, as disks are sold)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age_text(seconds: float) -> str:
    """A length of time for people, in its largest whole unit: ``3 days ago``."""
    for unit in ("w", "d", "h", "m"):
        if seconds >= _UNITS_S[unit] * (2 if unit == "w" else 1):
            count = int(seconds // _UNITS_S[unit])
            return f"{count} {_WORDS[unit]}{'s' if count > 1 else ''} ago"
    return "just now"


def _cache() -> AnalysisCache | None:
    """This user's cache; where there is none, say so."""
    from lipdub.faces.cache import FOLDER_VARIABLE, LIMIT_VARIABLE, default_cache

    cache = default_cache()
    if cache is None:
        say(f"there is no cache: {FOLDER_VARIABLE} is empty or off, or {LIMIT_VARIABLE} is 0")
    return cache


def _count(count: int) -> str:
    return f"{count} {'analysis' if count == 1 else 'analyses'}"
