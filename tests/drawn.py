"""Videos, photos and sounds that the tests draw themselves: no downloads, no binary fixtures."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

MATRICES = {1: 1, 5: 5, 6: 5, 9: 9}
"""AVColorSpace to swscale's code."""


def picture(index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Picture `index` of the moving pattern, uint8 (H, W, 3): soft colours, a dark square that moves, four coloured corners
    (red, green / blue, yellow), so that turns, mirrorings and mixed-up frames show."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    phase = 0.21 * index
    waves = [np.sin(x / 17 + phase), np.sin(y / 13 - phase), np.cos((x + y) / 23)]
    pixels = np.stack([128 + 50 * wave for wave in waves], axis=-1).astype(np.uint8)
    side = max(4, min(size) // 4)
    left, top = (3 * index) % max(1, width - 2 * side), height // 2 - side // 2
    pixels[top : top + side, left : left + side] = 40
    corner = max(2, min(size) // 6)
    for rows, columns, color in (
        (slice(None, corner), slice(None, corner), (220, 30, 30)),
        (slice(None, corner), slice(-corner, None), (30, 200, 30)),
        (slice(-corner, None), slice(None, corner), (30, 30, 220)),
        (slice(-corner, None), slice(-corner, None), (220, 220, 30)),
    ):
        pixels[rows, columns] = color
    return pixels


def sine(seconds: float, rate: int = 16000, *, hz: float = 440.0, level: float = 0.5) -> NDArray[np.float32]:
    """A tone, float32 (n,)."""
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def burst(seconds: float, rate: int = 16000, *, at_s: float = 0.5, long_s: float = 0.2, seed: int = 0) -> NDArray[np.float32]:
    """Silence with one burst of smooth noise at `at_s`, float32 (n,): sound whose place can be measured."""
    noise = np.random.default_rng(seed).normal(size=round(long_s * rate))
    noise = np.convolve(noise, np.hanning(max(3, rate // 2000)), mode="same")
    samples = np.zeros(round(seconds * rate), np.float32)
    start = round(at_s * rate)
    samples[start : start + len(noise)] = 0.7 * noise / np.abs(noise).max()
    return samples


def draw_video(
    path: Path,
    *,
    size: tuple[int, int] = (96, 64),
    fps: Fraction | int = 25,
    frames: int = 25,
    audio_s: float | None = None,
    audio: NDArray[np.float32] | None = None,
    audio_rate: int = 16000,
    audio_codec: str = "aac",
    audio_start_s: float = 0.0,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    last_duration: int | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    tags: tuple[int, int, int, int] | None = None,
    pixel_aspect: Fraction | None = None,
    display: tuple[float, bool] | None = None,
    pictures: Sequence[NDArray[np.uint8]] | None = None,
    container_options: dict[str, str] | None = None,
) -> list[NDArray[np.uint8]]:
    """Draw a video with PyAV; returns its pictures as drawn, uint8 (H, W, 3) RGB each.

    pts: ticks of `time_base`, one per frame (default: frame k at k / fps). audio_s: length of a tone; audio: or these
    samples, (n,) or (channels, n). tags: colour matrix, range, primaries, transfer, converted accordingly; without them
    the pictures are untagged, in limited range, BT.709 from 720 lines on and BT.601 below. display: turn in degrees
    (as `VideoStream.set_display_rotation`) and mirroring. pictures: these instead of the moving pattern.
    """
    fps = Fraction(fps)
    time_base = time_base or 1 / fps
    count = frames if pictures is None else len(pictures)
    ticks = list(pts) if pts is not None else [int(k / fps / time_base) for k in range(count)]
    drawn = list(pictures) if pictures is not None else [picture(k, size) for k in range(len(ticks))]
    height, width = drawn[0].shape[:2]
    if container_options is None and path.suffix in (".mp4", ".mov"):
        ticks_per_s = time_base.denominator  # the edit list counts in the movie's ticks: fine ones, for the start of the sound, too
        container_options = {
            "video_track_timescale": str(ticks_per_s),
            "movie_timescale": str(math.lcm(ticks_per_s, audio_rate)),
        }
    if audio_s is not None:
        audio = sine(audio_s, audio_rate)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options={"preset": "ultrafast", "crf": "10"} | (options or {}))
        context = stream.codec_context
        context.width, context.height, context.pix_fmt, context.time_base = width, height, pix_fmt, time_base
        context.flags |= av.codec.context.Flags.frame_duration
        matrix, full = (1 if height >= 720 else 5), False
        if tags is not None:
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
            matrix, full = MATRICES.get(tags[0], matrix), tags[1] == 2
        if pixel_aspect is not None:
            context.sample_aspect_ratio = pixel_aspect
        if display is not None:
            stream.set_display_rotation(display[0], hflip=display[1])
        sound: Any = None
        if audio is not None:
            audio = np.atleast_2d(audio)
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(audio)]
            sound = container.add_stream(audio_codec, rate=audio_rate, layout=layout)
        for k, (pixels, tick) in enumerate(zip(drawn, ticks, strict=True)):
            frame: Any = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if not pix_fmt.startswith(("rgb", "gbr", "pal", "bgr")):
                exact = av.video.reformatter.Interpolation.BICUBIC | av.video.reformatter.Interpolation.ACCURATE_RND
                frame = frame.reformat(
                    format=pix_fmt,
                    src_color_range=2,
                    dst_colorspace=matrix,
                    dst_color_range=2 if full else 1,
                    interpolation=exact,
                )
                if tags is not None:
                    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = tags
                else:
                    frame.colorspace, frame.color_range = 2, 0
            frame.pts, frame.time_base = tick, time_base
            after = ticks[k + 1] - tick if k + 1 < len(ticks) else last_duration
            frame.duration = after or max(1, int(1 / fps / time_base))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None and audio is not None:
            _encode_sound(container, sound, audio, audio_rate, round(audio_start_s * audio_rate))
    return drawn


def draw_planes(
    path: Path,
    planes: NDArray[np.unsignedinteger[Any]],
    *,
    codec: str,
    pix_fmt: str = "yuv420p10le",
    options: dict[str, str] | None = None,
    tags: tuple[int, int, int, int] = (9, 1, 9, 18),
) -> None:
    """Write pictures (N, H * 3 / 2, W) in planes of 10 bits as they are, at 25 fps; lossless, if the codec and its options are. tags: as in
    `draw_video`."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        context = stream.codec_context
        context.width, context.height = planes.shape[2], planes.shape[1] * 2 // 3
        context.pix_fmt, context.time_base = pix_fmt, Fraction(1, 25)
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        for tick, picture in enumerate(planes):
            frame: Any = av.VideoFrame.from_ndarray(picture, "yuv420p10le").reformat(format=pix_fmt)
            frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = tags
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def draw_sound(path: Path, samples: NDArray[np.float32], rate: int = 16000, *, codec: str, bit_rate: int | None = None) -> None:
    """Write samples (n,) or (channels, n) with a codec of FFmpeg, e.g. "aac" into .m4a."""
    samples = np.atleast_2d(samples)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo", 6: "5.1"}[len(samples)])
        if bit_rate is not None:
            stream.codec_context.bit_rate = bit_rate
        _encode_sound(container, stream, samples, rate, 0)


def _encode_sound(container: Any, stream: Any, samples: NDArray[np.float32], rate: int, start: int) -> None:
    """Encode samples (channels, n), the first at sample `start` of the stream's time."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)])
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_wav(path: Path, samples: NDArray[Any], rate: int = 16000, *, floats: bool = False) -> None:
    """Write samples (n,) or (n, channels) as WAV: 16-bit, or 32-bit floats as they are (NaN, too)."""
    samples = np.asarray(samples)
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    if floats:
        data, code = samples.astype("<f4").tobytes(), 3
    else:
        data, code = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), 1
    width = 4 if floats else 2
    form = struct.pack("<HHIIHH", code, channels, rate, rate * channels * width, channels * width, 8 * width)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def draw_photo(path: Path, *, size: tuple[int, int] = (96, 64), orientation: int | None = None) -> NDArray[np.uint8]:
    """Write picture 0 as a photo (.png, .jpg, .webp); returns it as drawn, uint8 (H, W, 3). orientation: EXIF, .jpg only."""
    import cv2

    pixels = picture(0, size)
    done, data = cv2.imencode(path.suffix, pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98] if path.suffix == ".jpg" else [])
    assert done
    coded = data.tobytes()
    if orientation is not None:
        tiff = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
        exif = b"Exif\0\0" + tiff
        coded = coded[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + coded[2:]
    path.write_bytes(coded)
    return pixels
