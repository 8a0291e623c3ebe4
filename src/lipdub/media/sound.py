"""Sound: read as mono samples, measured, and written."""

from __future__ import annotations

import wave
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from lipdub.atomic import whole_file
from lipdub.errors import NoAudioStream
from lipdub.media.files import audio_stream, decoded, opened, origin_of_s

GAP_S = Fraction(1, 20)
"""Times of sound that are off by less follow from rounding in the container."""
_LONGEST_GAP_S = 3600
_BLOCK_SAMPLES = 65536


def sounds(container: InputContainer, stream: av.AudioStream) -> Iterator[tuple[Fraction, av.AudioFrame]]:
    """Decoded sound with the time of its first sample, seconds from time zero; silence is due where times leave a gap.

    In a file without pictures the first sample is at zero: what encoders put before it (MP3) is no offset.
    """
    origin_s = None if all(s.disposition & Disposition.attached_pic for s in container.streams.video) else origin_of_s(container)
    due_s: Fraction | None = None
    for frame in decoded(container, stream):
        if not frame.samples or not frame.sample_rate:
            continue
        stamp_s = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        if origin_s is None:
            origin_s = stamp_s or Fraction(0)
        time_s = due_s if stamp_s is None else stamp_s - origin_s
        if due_s is None:
            time_s = time_s or Fraction(0)
        elif time_s is None or not GAP_S < time_s - due_s < _LONGEST_GAP_S:
            time_s = due_s
        due_s = time_s + Fraction(frame.samples, frame.sample_rate)
        yield time_s, frame


def _resampler(sample_rate_hz: int) -> av.AudioResampler:
    """To mono float32; weights of the channels sum to one, so that a loud stereo file does not clip."""
    return av.AudioResampler(format="flt", layout="mono", rate=sample_rate_hz, options={"rematrix_maxval": "1.0"})


def _resampled(
    container: InputContainer, stream: av.AudioStream, sample_rate_hz: int
) -> Iterator[tuple[Fraction | None, NDArray[np.float32]]]:
    """Mono float32 pieces of any length. Where one does not follow the piece before, the time of its first sample is given."""
    due_s: Fraction | None = None
    shape: tuple[int, str, str] | None = None
    resampler = _resampler(sample_rate_hz)
    for time_s, frame in sounds(container, stream):
        now = frame.sample_rate, frame.format.name, frame.layout.name
        if now != shape or time_s != due_s:
            if shape is not None:
                yield from ((None, _samples(piece)) for piece in resampler.resample(None))
            resampler, shape = _resampler(sample_rate_hz), now
            yield time_s, np.empty(0, np.float32)
        due_s = time_s + Fraction(frame.samples, frame.sample_rate)
        frame.pts = None
        yield from ((None, _samples(piece)) for piece in resampler.resample(frame))
    if shape is not None:
        yield from ((None, _samples(piece)) for piece in resampler.resample(None))


def _samples(frame: av.AudioFrame) -> NDArray[np.float32]:
    """The samples of a mono float frame, float32 (n,)."""
    return np.asarray(frame.to_ndarray()[0], np.float32)


def _from_zero(pieces: Iterator[tuple[Fraction | None, NDArray[np.float32]]], sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """The pieces laid out from time zero: silence in the gaps, nothing from before zero."""
    at = 0
    for start_s, piece in pieces:
        if start_s is not None:
            start = round(start_s * sample_rate_hz)
            if at == 0 and start < 0:
                at = start
            while at < start:
                silence = np.zeros(min(_BLOCK_SAMPLES, start - at), np.float32)
                at += len(silence)
                yield silence
        yield piece[max(0, -at) :]
        at += len(piece)


def read_audio(path: Path, sample_rate_hz: int) -> Generator[NDArray[np.float32], None, None]:
    """The sound of `path` (a sound file or a video) as mono float32 blocks (n,) in [-1, 1], n up to 65536.

    Sample k is at ``k / sample_rate_hz`` seconds from time zero: where the sound of a video starts late, silence comes
    first. Resampled and mixed down by FFmpeg.

    Raises:
        UnreadableMedia: missing, empty, a folder, or no media.
        NoAudioStream: no sound, sound of zero length, or samples that are not finite numbers.
    """
    with opened(path) as container:
        stream = audio_stream(container, path)
        held: list[NDArray[np.float32]] = []
        length, total = 0, 0
        for piece in _from_zero(_resampled(container, stream, sample_rate_hz), sample_rate_hz):
            if not np.isfinite(piece).all():
                raise NoAudioStream(f"the sound of '{path}' holds samples that are not finite numbers; export it again")
            held.append(np.clip(piece, -1, 1))
            length, total = length + len(piece), total + len(piece)
            if length >= _BLOCK_SAMPLES:
                joined = np.concatenate(held)
                whole = length - length % _BLOCK_SAMPLES
                for start in range(0, whole, _BLOCK_SAMPLES):
                    yield joined[start : start + _BLOCK_SAMPLES]
                held, length = [joined[whole:]], length - whole
        if length:
            yield np.concatenate(held)
        if not total:
            raise NoAudioStream(f"the sound of '{path}' has no samples; give a file with speech in it")


def first_samples(path: Path, sample_rate_hz: int, count: int) -> NDArray[np.float32]:
    """The first `count` samples that `read_audio` gives, float32 (n,), fewer where the sound is shorter. Raises as `read_audio`."""
    held: list[NDArray[np.float32]] = []
    with closing(read_audio(path, sample_rate_hz)) as blocks:
        for block in blocks:
            held.append(block)
            if sum(map(len, held)) >= count:
                break
    return np.concatenate(held)[:count]


def write_wav(out: Path, samples: NDArray[np.float32 | np.float64], sample_rate_hz: int) -> None:
    """Write mono samples (n,) in [-1, 1] as 16-bit WAV, whole or not at all. Raises WriteFailed."""
    with whole_file(out) as part, wave.open(str(part), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def audio_duration_s(path: Path) -> Fraction:
    """When the sound of `path` ends, seconds from time zero, counted from its decoded samples.

    Raises:
        UnreadableMedia, NoAudioStream: as `read_audio`.
    """
    with opened(path) as container:
        stream = audio_stream(container, path)
        end_s: Fraction | None = None
        for time_s, frame in sounds(container, stream):
            end_s = time_s + Fraction(frame.samples, frame.sample_rate)
            if frame.format.name.startswith(("flt", "dbl")) and not np.isfinite(frame.to_ndarray()).all():
                raise NoAudioStream(f"the sound of '{path}' holds samples that are not finite numbers; export it again")
    if end_s is None or end_s <= 0:
        raise NoAudioStream(f"the sound of '{path}' has no samples; give a file with speech in it")
    return end_s


def has_sound(path: Path) -> bool:
    """Whether `path` holds sound, of whatever length. Raises UnreadableMedia."""
    with opened(path) as container:
        return bool(container.streams.audio)
