"""The ``lipdub`` command: one module per subcommand. Nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from lipdub import __version__
from lipdub.cli import (
    adapt,
    batch,
    bench,
    cache,
    doctor,
    evaluate,
    export,
    faces,
    lips,
    memory,
    prepare,
    preview,
    references,
    sheet,
    sync,
    train,
)
from lipdub.cli.commands import Command, Group
from lipdub.cli.console import interrupted, say
from lipdub.cli.record_options import with_dub_options
from lipdub.errors import LipdubError
from lipdub.stages import ENDING

app = typer.Typer(
    name="lipdub",
    cls=Group,
    help="Give a video of a person speaking new speech: the mouth is redrawn, everything else stays as it was.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("sync", cls=sync.SyncCommand, epilog=sync.EXAMPLES)(with_dub_options(sync.sync))
app.command("batch", cls=Command, epilog=batch.EXAMPLES)(with_dub_options(batch.batch, panel=batch.PANEL, helps=batch.HELPS))
app.command("evaluate", cls=Command, epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("sheet", cls=Command, epilog=sheet.EXAMPLES)(sheet.sheet)
app.command("preview", cls=Command, epilog=preview.EXAMPLES)(with_dub_options(preview.preview))
app.command("faces", cls=Command, epilog=faces.EXAMPLES)(faces.faces)
app.command("references", cls=Command, epilog=references.EXAMPLES)(references.references)
app.command("lips", cls=Command, epilog=lips.EXAMPLES)(lips.lips)
app.command("memory", cls=Command, epilog=memory.EXAMPLES)(memory.memory)
app.add_typer(cache.app, name="cache")
app.command("doctor", cls=Command, epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("bench", cls=Command, epilog=bench.EXAMPLES)(bench.bench)
app.command("adapt", cls=Command, epilog=adapt.EXAMPLES)(adapt.adapt)
app.command("prepare", cls=Command, epilog=prepare.EXAMPLES)(prepare.prepare)
app.add_typer(train.app, name="train")
app.command("export-onnx", cls=Command, epilog=export.EXAMPLES)(export.export_onnx)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipdub {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", help="Show the version and leave.", callback=_show_version, is_eager=True),
) -> None:
    """Options that stand before the command."""


def main() -> NoReturn:
    """Run the command line: exit code 0, 1 for an error that the user can do something about, 2 for usage, 3 where nothing was dubbed,
    130 for Ctrl-C."""
    # A polite kill and a closed terminal clean up as Ctrl-C does: no partial output, no temporary file.
    interrupted.clear()
    for number in ENDING:
        # What starts us may not want us to hear it: nohup, or a shell without job control.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    # A file name that the terminal's encoding does not know is shown escaped, not as a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False) or 0
    except LipdubError as error:
        code = _stopped() if interrupted else 1
        if not interrupted:
            say(f"error: {error}")
    except KeyboardInterrupt:
        code = _stopped()
    except ImportError as error:
        code = _stopped() if interrupted else _missing(error)
    except BrokenPipeError:
        # Whoever read our output has gone (lipdub ... | head): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except typer.Exit as leave:
        code = leave.exit_code
    except Exception as error:
        code = _stopped() if interrupted else _usage_error(error)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    interrupted.append(number)
    raise KeyboardInterrupt


def _stopped() -> int:
    say("stopped")
    return 130


_EXTRAS = {
    "ray": "ray",
    **dict.fromkeys(("fsspec", "gcsfs", "s3fs"), "cloud"),
    **dict.fromkeys(("lightning_fabric", "librosa", "onnx", "safetensors", "scipy", "sklearn", "tensorboard", "torch"), "train"),
}
"""Modules that only some commands need, and the extra that brings them."""


def _missing(error: ImportError) -> int:
    """Where a package is missing that an extra brings: the command and what to install. Everything else is a bug, or a broken install."""
    name = error.name or ""
    package = "torch" if name.startswith("lipdub.train") else name.partition(".")[0]
    if package not in _EXTRAS:
        raise error
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    command = " ".join(words[: 2 if words[0] == "train" else 1])
    why = "" if isinstance(error, ModuleNotFoundError) else f" (what is there does not load: {error})"
    say(f'error: {command} needs {package}{why}; install it with: pip install "lipdub[{_EXTRAS[package]}]"')
    return 1


def _usage_error(error: Exception) -> int:
    """Typer's own errors (a wrong option, a missing argument) in its own words; everything else is a bug and shows its traceback."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if type(error).__name__ == "Abort":
        return _stopped()
    if show is None or code is None:
        raise error
    show()
    return int(code)
