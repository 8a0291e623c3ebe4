"""What a dub is made of, checked and opened before a frame is looked at: what cannot be done is said now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lipdub import media
from lipdub.errors import OutputRefused
from lipdub.media.label import drawable
from lipdub.model import Model, open_model
from lipdub.options import DubOptions
from lipdub.outcome import what_is_lost
from lipdub.parts import Part, parts_of
from lipdub.records import VideoInfo, Warn


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Opened:
    """inputs: all files that are read but for the model. pictures: the video, or a photo at the size that is dubbed; `info` is of them."""

    video: Path
    options: DubOptions
    inputs: tuple[Path, ...]
    pictures: Path
    info: VideoInfo
    parts: tuple[Part, ...]
    encoder: media.PictureEncoder
    credentials: media.Credentials | None
    model: Model

    @contextmanager
    def finished(self, out: Path) -> Iterator[Path]:
        """Where the output is to be written as it will be: at `out`, or beside it, from where it is signed when the block ends."""
        if self.credentials is None:
            yield out
            return
        with media.unfinished(out) as whole:
            yield whole
            media.check_output(out, inputs=self.inputs, force=self.options.force)
            self.credentials.sign(whole, out)


def open_dub(video: Path, speech: Path, out: Path, options: DubOptions, *, model: Model | None, full_size: bool, warn: Warn) -> Opened:
    """A dub of `video` by `speech`, ready to begin.

    model: opened before, None to open the one of `options`. full_size: of a photo. Raises as ``dub``, but for what is found in frames.
    """
    inputs = (video, speech, *map(Path, options.files))
    media.check_output(out, inputs=inputs, force=options.force)
    if options.label is not None and not drawable(options.label):
        raise OutputRefused(f"the label '{options.label}' has letters without a shape here; write it in Latin ones")
    credentials = None if options.credentials is None else media.Credentials(Path(options.credentials), out)
    info = media.probe(video)
    encoder = media.encoder_for(out, options.encoder, crf=options.crf, bits=8 if info.is_still else info.bits)
    for loss in what_is_lost(info, encoder):
        warn(loss)
    pictures, info = (video, info) if full_size else media.fitted_photo(video, info, warn)
    parts = parts_of(speech, options, warn)
    model = model or open_model(options.model, device=options.device, threads=options.threads)
    return Opened(video, options, inputs, pictures, info, parts, encoder, credentials, model)
