"""Sound: read as mono samples, measured, and written."""

from __future__ import annotations

import wave
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from lipdub.atomic import whole_file
from lipdub.errors import NoAudioStream
from lipdub.media.clock import CUT_OFF_S, LONGEST_GAP_S, clock_jump, tagged_duration_s
from lipdub.media.copies import readable
from lipdub.media.files import audio_stream, coded_from_s, decoded, mapped, opened, origin_of_s, url_of
from lipdub.records import DubWarning, Warn

GAP_S = Fraction(1, 20)
"""Times of sound that are off by less follow from rounding in the container."""
_WITHOUT_TIMES = {"aac", "ac3", "aiff", "amr", "au", "caf", "dts", "eac3", "flac", "loas", "mp3", "w64", "wav"}
"""Formats that store no times: FFmpeg counts them from the packets, at the rate that the file began with."""
_BLOCK_SAMPLES = 65536
_MIX_HZ = 8000
"""Rate at which channels are held against their mix."""
_CANCELLED = 0.1
"""A mix with less than this share of the energy of its loudest channel has cancelled it; speech on one of two channels keeps 0.25."""
_OFTEN_CANCELLED = 0.05


def sounds(container: InputContainer, stream: av.AudioStream, warn: Warn = lambda _: None) -> Iterator[tuple[Fraction, av.AudioFrame]]:
    """Decoded sound with the time of its first sample, seconds from time zero; silence is due where times leave a gap. A gap of more than
    `LONGEST_GAP_S` in which there are no pictures, either, is closed, and `warn` is told.

    In a file without pictures the first sample is at zero: what encoders put before it (MP3) is no offset.
    """
    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    seen_s: list[Fraction] = []
    origin_s = origin_of_s(container) if pictures else None
    due_s: Fraction | None = None
    for frame in decoded(container, stream, beside=pictures[:1], seen_s=seen_s):
        if not frame.samples or not frame.sample_rate:
            continue
        stamp_s = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        if due_s is not None and container.format.name in _WITHOUT_TIMES:
            stamp_s = None
        if origin_s is None:
            origin_s = stamp_s or Fraction(0)
        time_s = due_s if stamp_s is None else stamp_s - origin_s
        if due_s is None:
            time_s = time_s or Fraction(0)
        elif time_s is None or time_s - due_s <= GAP_S:
            time_s = due_s
        elif time_s - due_s > LONGEST_GAP_S and not any(due_s + 1 < at_s - origin_s < time_s - 1 for at_s in seen_s):
            warn(clock_jump(time_s - due_s, due_s))
            origin_s += time_s - due_s
            time_s = due_s
        seen_s.clear()
        due_s = time_s + Fraction(frame.samples, frame.sample_rate)
        yield time_s, frame


def _resampler(sample_rate_hz: int, layout: str | av.AudioLayout = "mono") -> av.AudioResampler:
    """To float32 of that layout, channels interleaved (PyAV crashes on more than seven planes); where channels are mixed, their weights
    sum to one, so that a loud stereo file does not clip."""
    return av.AudioResampler(format="flt", layout=layout, rate=sample_rate_hz, options={"rematrix_maxval": "1.0"})


def _channel_for_mono(path: Path) -> int | None:
    """Which channel stands for all of them where mixing would cancel the voice; None where the mix will do. Raises as `read_audio`."""
    stat = path.stat()
    return _channel_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _channel_of(path: Path, size: int, changed: int) -> int | None:
    """See `_channel_for_mono`; asked several times for each dub. size, changed: of the file, so that another one is looked at anew."""
    with opened(path) as container:
        stream = audio_stream(container, path)
        sums, cancelled = np.zeros(0), np.zeros(0)
        mixes: dict[tuple[str, int], tuple[av.AudioResampler, av.AudioResampler]] = {}
        for _, frame in sounds(container, stream):
            frame.pts = None
            key = frame.layout.name, frame.sample_rate
            if key not in mixes:
                mixes[key] = _resampler(_MIX_HZ, frame.layout), _resampler(_MIX_HZ)
            by_channel, by_mix = mixes[key]
            apart = _voice_energy(by_channel.resample(frame), frame.layout.nb_channels)
            mixed = _voice_energy(by_mix.resample(frame), 1)
            if len(apart) > len(sums):
                sums, cancelled = (np.pad(total, (0, len(apart) - len(total))) for total in (sums, cancelled))
            if not np.isfinite(apart).all():
                continue  # `read_audio` says so
            sums[: len(apart)] += apart
            if mixed[0] < _CANCELLED * apart.max():
                cancelled[: len(apart)] += apart
    if not len(sums) or cancelled.max() <= _OFTEN_CANCELLED * sums.max():
        return None
    return int(np.argmax(sums))


def _holds_no_numbers(frame: av.AudioFrame) -> bool:
    """Whether samples of a frame are NaN or infinite. Of more than seven planes PyAV gives no array: `read_audio` looks again."""
    if not frame.format.name.startswith(("flt", "dbl")) or (frame.format.is_planar and frame.layout.nb_channels > 7):
        return False
    return not bool(np.isfinite(frame.to_ndarray()).all())


def _planes(frame: av.AudioFrame) -> NDArray[np.float32]:
    """The samples of a frame of interleaved floats, float32 (C, n)."""
    return np.asarray(frame.to_ndarray(), np.float32).reshape(frame.samples, -1).T


def _voice_energy(pieces: list[av.AudioFrame], channels: int) -> NDArray[np.float64]:
    """Energy of each channel in the band of a voice, above 200 Hz at `_MIX_HZ`: float64 (channels,)."""
    energy = np.zeros(channels)
    for piece in pieces:
        spectrum = np.abs(np.fft.rfft(_planes(piece), axis=1)) ** 2
        energy += spectrum[:, -(-200 * piece.samples // _MIX_HZ) :].sum(axis=1) / piece.samples
    return energy


Piece = tuple[Fraction | None, NDArray[np.float32]]
"""Samples (C, n), and the time of the first one where it does not follow the piece before."""


def _resampled(
    container: InputContainer, stream: av.AudioStream, sample_rate_hz: int, *, layout: str = "mono", channel: int | None = None
) -> Iterator[Piece]:
    """The sound in pieces of any length, in `layout`; with `channel`, that channel alone where there is such a one."""
    due_s: Fraction | None = None
    shape: tuple[int, str, str] | None = None
    resampler, kept = _resampler(sample_rate_hz), slice(None)
    channels = av.AudioLayout(layout).nb_channels

    def taken(pieces: list[av.AudioFrame]) -> Iterator[Piece]:
        for piece in pieces:
            planes = _planes(piece)[kept]
            # FFmpeg would make each side of a mono sound 3 dB quieter.
            yield None, np.repeat(planes, channels, axis=0) if len(planes) == 1 else planes

    for time_s, frame in sounds(container, stream):
        now = frame.sample_rate, frame.format.name, frame.layout.name
        if now != shape or time_s != due_s:
            if shape is not None:
                yield from taken(resampler.resample(None))
            alone, shape = channel is not None and channel < frame.layout.nb_channels, now
            resampler = _resampler(sample_rate_hz, frame.layout if alone or frame.layout.nb_channels == 1 else layout)
            kept = slice(channel, channel + 1) if alone and channel is not None else slice(None)
            yield time_s, np.empty((channels, 0), np.float32)
        due_s = time_s + Fraction(frame.samples, frame.sample_rate)
        frame.pts = None
        yield from taken(resampler.resample(frame))
    if shape is not None:
        yield from taken(resampler.resample(None))


def _from_zero(pieces: Iterator[Piece], sample_rate_hz: int, channels: int = 1) -> Iterator[NDArray[np.float32]]:
    """The pieces laid out from time zero, (C, n): silence in the gaps, nothing from before zero."""
    at = 0
    for start_s, piece in pieces:
        if start_s is not None:
            start = round(start_s * sample_rate_hz)
            if at == 0 and start < 0:
                at = start
            while at < start:
                silence = np.zeros((channels, min(_BLOCK_SAMPLES, start - at)), np.float32)
                at += silence.shape[1]
                yield silence
        if piece.shape[1]:
            yield piece[:, max(0, -at) :]
        at += piece.shape[1]


def decode_sound(path: Path, out: Path, *, sample_rate_hz: int, layout: str, until_s: Fraction | None = None) -> None:
    """Write the sound of `path` to `out` (Matroska) as float samples of one rate and layout, from time zero on, whatever it changes to on
    the way: the samples that `read_audio` mixes. until_s: no more than about so much.

    Raises UnreadableMedia, NoAudioStream, EncodingFailed, WriteFailed.
    """
    written = 0
    with opened(path) as container, mapped(out, writing=True), av.open(url_of(out), "w", format="matroska") as target:
        sound = target.add_stream("pcm_f32le", rate=sample_rate_hz, layout=layout)
        pieces = _resampled(container, audio_stream(container, path), sample_rate_hz, layout=layout)
        for planes in _from_zero(pieces, sample_rate_hz, sound.layout.nb_channels):
            if not planes.shape[1]:
                continue
            packed = np.ascontiguousarray(planes.T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, "flt", layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate_hz, written, Fraction(1, sample_rate_hz)
            written += planes.shape[1]
            target.mux(sound.encode(frame))
            if until_s is not None and written >= until_s * sample_rate_hz:
                break
        target.mux(sound.encode(None))


def read_audio(path: Path, sample_rate_hz: int) -> Generator[NDArray[np.float32], None, None]:
    """The sound of `path` (a sound file or a video) as mono float32 blocks (n,) in [-1, 1], n up to 65536.

    Sample k is at ``k / sample_rate_hz`` seconds from time zero: where the sound of a video starts late, silence comes
    first. Resampled and mixed down by FFmpeg; where channels would cancel each other, as those of opposite sign do, the one with most
    energy stands for all.

    Raises:
        UnreadableMedia: missing, empty, a folder, or no media.
        NoAudioStream: no sound, sound of zero length, or samples that are not finite numbers.
    """
    with opened(path) as container:
        stream = audio_stream(container, path)
        channel = _channel_for_mono(path) if stream.codec_context.channels > 1 else None
        held: list[NDArray[np.float32]] = []
        length, total = 0, 0
        for (piece,) in _from_zero(_resampled(container, stream, sample_rate_hz, channel=channel), sample_rate_hz):
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


@dataclass(frozen=True, slots=True)
class SoundInfo:
    """What the sound of a file is, decoded to its end; times in seconds from time zero.

    index: of the stream in its file. codec: by FFmpeg's name. language: as its file says, else "und". sample_rate_hz, layout:
    the highest rate, and the layout of most channels. origin_s: time zero on the file's own clock. packet_s: where the coded sound starts,
    an encoder's lead-in that nobody hears included. start_s, end_s: of the sound that is heard. changes_s: where its rate, layout or kind
    of samples changes.
    """

    index: int
    codec: str
    language: str
    sample_rate_hz: int
    channels: int
    layout: str
    origin_s: Fraction
    packet_s: Fraction
    start_s: Fraction
    end_s: Fraction
    changes_s: tuple[Fraction, ...]


def probe_sound(path: Path, warn: Warn = lambda _: None) -> SoundInfo:
    """What the sound of `path` is; it is decoded to its end. warn: told what had to be mended, and what is missing of it.

    Raises UnreadableMedia, NoAudioStream: as `read_audio`.
    """
    with opened(path) as container:
        stream = audio_stream(container, path)
        packet_s = coded_from_s(path, stream.index) or Fraction(0)
        start_s: Fraction | None = None
        origin_s = end_s = Fraction(0)
        rate, layout, channels = 0, "", 0
        changes_s: list[Fraction] = []
        closed: list[DubWarning] = []
        shape: tuple[int, str, str] | None = None
        for time_s, frame in sounds(container, stream, closed.append):
            if start_s is None:
                start_s = time_s
                if frame.pts is not None and frame.time_base is not None:
                    origin_s = frame.pts * frame.time_base - time_s
            now = frame.sample_rate, frame.format.name, frame.layout.name
            if shape is not None and now != shape and time_s - start_s > GAP_S:  # a first scrap may bear the format of another piece
                changes_s.append(time_s)
            shape, rate = now, max(rate, frame.sample_rate)
            if frame.layout.nb_channels > channels:
                layout, channels = frame.layout.name, frame.layout.nb_channels
            end_s = time_s + Fraction(frame.samples, frame.sample_rate)
            if _holds_no_numbers(frame):
                raise NoAudioStream(f"the sound of '{path}' holds samples that are not finite numbers; export it again")
        if start_s is None or end_s <= 0:
            raise NoAudioStream(f"the sound of '{path}' has no samples; give a file with speech in it")
        promised_s = None if closed else _promised_s(path, container, stream)
        for warning in closed:
            warn(warning)
        held_s = end_s - start_s
        if promised_s is not None and promised_s - held_s > CUT_OFF_S:
            text = f"the speech says that it lasts {float(promised_s):.2f} s, but holds {float(held_s):.2f} s: it is cut off or damaged"
            warn(DubWarning("speech-cut-off", text, ((float(end_s), float(start_s + promised_s)),)))
        codec = stream.codec_context.codec.canonical_name
        language = stream.metadata.get("language", "und")
        return SoundInfo(
            stream.index, codec, language, rate, channels, layout, origin_s, packet_s - origin_s, start_s, end_s, tuple(changes_s)
        )


def _promised_s(path: Path, container: InputContainer, stream: av.AudioStream) -> Fraction | None:
    """How long the sound lasts by what its container says; None where it only guesses."""
    if container.format.name == "wav":
        return _wav_promises_s(path)
    if not set(container.format.name.split(",")) & {"mov", "matroska", "w64", "aiff", "flac", "au", "caf"}:
        return None
    if not stream.duration or stream.time_base is None:
        return tagged_duration_s(stream)
    return stream.duration * stream.time_base


def _wav_promises_s(path: Path) -> Fraction | None:
    """How long a WAV lasts by its header, which FFmpeg corrects by the size of the file; None without a size: who writes into a pipe puts
    none, or about the largest one."""
    with readable(path).open("rb") as file:
        file.seek(12)
        bytes_per_s = 0
        while len(head := file.read(8)) == 8:
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if name == b"data":
                return Fraction(size, bytes_per_s) if bytes_per_s and 0 < size < 2**31 - 2**17 else None
            content = file.read(16) if name == b"fmt " else b""
            bytes_per_s = int.from_bytes(content[8:12], "little") or bytes_per_s
            file.seek(size + size % 2 - len(content), 1)
    return None


def audio_duration_s(path: Path) -> Fraction:
    """When the sound of `path` ends, seconds from time zero, counted from its decoded samples. Raises as `probe_sound`."""
    return probe_sound(path).end_s


def has_sound(path: Path) -> bool:
    """Whether `path` holds sound, of whatever length. Raises UnreadableMedia."""
    with opened(path) as container:
        return bool(container.streams.audio)
