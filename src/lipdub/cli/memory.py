"""``lipdub memory``: a look into the audio-lip memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipdub.cli.console import new_table, paragraphs, print_line, progress, results, stoppable
from lipdub.options import Device

if TYPE_CHECKING:
    from lipdub.memory_view import MemoryReport

EXAMPLES = paragraphs("""
[bold]Examples[/bold]
  lipdub memory base --speech talk.wav --face anna.jpg -o look
  lipdub memory base --speech talk.wav --alignment talk.TextGrid --face anna.mp4 -o look
  lipdub memory base --espeak "Papa maps a big problem" --voice en-us+f4 --face anna.jpg -o look
""")


def memory(
    model: Annotated[str, typer.Argument(help="Model bundle: a name (base) or a folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write pictures and memory.json into; made where it is missing.")
    ],
    speech: Annotated[Path | None, typer.Option(help="Speech that addresses the memory: any file with sound. Default: an example.")] = None,
    face: Annotated[Path | None, typer.Option(help="Photo or video of the face to draw on. Default: an example.")] = None,
    alignment: Annotated[
        Path | None,
        typer.Option(help="Phonemes of the speech: a Praat TextGrid (tier phones), or a CSV with the columns start_s, end_s, phoneme."),
    ] = None,
    espeak: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Let espeak-ng speak this text in place of --speech: its phonemes are known.")
    ] = None,
    voice: Annotated[str, typer.Option(help="Voice for --espeak: a language, with a variant after a plus sign.")] = "en-us",
    start: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Where the picture of the address over time begins.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.1, max=120.0, help="How much of the speech that picture shows.")] = 10.0,
    device: Annotated[Device, typer.Option(help="Where the networks run; cuda fails where CUDA does not load.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads of the networks; all cores by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the pictures if they exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Look into the audio-lip memory of MODEL: which slots speech uses, the mouth that each one draws, the address over time, and
    (where phonemes are known) whether slots stand for phonemes."""
    from tempfile import TemporaryDirectory

    if espeak is not None and (speech is not None or alignment is not None):
        raise typer.BadParameter("--espeak makes speech and alignment itself; leave --speech and --alignment away")
    if alignment is not None and speech is None:
        raise typer.BadParameter("--alignment needs the --speech that it belongs to")
    with stoppable():
        from lipdub.checkup.sample_media import PORTRAIT, SPEECH
        from lipdub.memory_view import look
        from lipdub.memory_view.look import check_folder
        from lipdub.phonetics.alignment_files import read_alignment
        from lipdub.phonetics.espeak import synthesise

        check_folder(output, force=force)
        face = face or PORTRAIT
        phonemes = None if alignment is None else read_alignment(alignment)
        with TemporaryDirectory(prefix="lipdub-") as folder, progress(quiet=quiet) as tell:
            if espeak is not None:
                speech = Path(folder) / "speech.wav"
                phonemes = synthesise(espeak, voice, speech)
            speech = speech or SPEECH
            done = look(
                model, speech, face, output, alignment=phonemes, start_s=start, seconds=seconds, device=device, threads=threads,
                force=force, keep_speech=espeak is not None, on_progress=tell,
            )  # fmt: skip
    if not quiet:
        show(done, output)


def show(report: MemoryReport, output: Path, *, rows: int = 12) -> None:
    """The slots that are used most, and what can be said of all."""
    from lipdub.memory_view.look import agreement_lines

    usage = report.usage
    columns = [">slot", ">mean share", ">sum", ">peak", ">opening", *(["most above average at"] if report.agreement else [])]
    table = new_table(f"memory of {report.model}, {report.speech_s:.1f} s of speech", *columns)
    total = 0.0
    for slot in (-usage.share).argsort(kind="stable")[:rows].tolist():
        total += float(usage.share[slot])
        cells = [str(slot), f"{100 * usage.share[slot]:.1f} %", f"{100 * total:.1f} %", f"{100 * usage.peak[slot]:.1f} %"]
        cells.append(f"{report.opening[slot]:.3f}" if report.opening[slot] == report.opening[slot] else "-")
        if report.agreement:
            cells.append(", ".join(report.commonest[slot]))
        table.add_row(*cells)
    results().print(table)
    slots = len(usage.share)
    lines = [
        f"usage perplexity {usage.perplexity:.1f} of {slots}; {usage.slots_for_90} slots hold 90 %; "
        f"{int(usage.used.sum())} ever hold twice an even share",
        f"{usage.per_moment:.1f} slots answer together at a time; {usage.top_slots} are ever the strongest",
    ]
    if report.explained == report.explained:
        lines.append(f"the address explains {100 * report.explained:.0f} % of the lip feature; the rest comes straight from the sound")
    if report.agreement is not None:
        lines += ["slots against phoneme classes:", *(f"  {line}" for line in agreement_lines(report.agreement))]
    for line in [*lines, f"wrote {', '.join(report.files)} into {output}"]:
        print_line(line)
