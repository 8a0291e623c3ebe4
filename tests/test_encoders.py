"""Other encoders than x264: the same pictures at the same times, about as good at the same crf, and what does not work said at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from drawn import draw_video, sine, write_wav
from numpy.typing import NDArray

from lipdub import media
from lipdub.errors import OutputRefused
from lipdub.media.encoders import ENCODERS
from lipdub.options import Encoder

ODD_TICKS = [507, 1531, 2043, 4000, 9001, 9500, 15360, 30000, 30700, 33333, 40001]
HERE: list[tuple[Encoder, str, str]] = [
    ("libx265", ".mp4", "hevc"), ("libx265", ".mov", "hevc"), ("libx265", ".mkv", "hevc"), ("libsvtav1", ".mp4", "av1"),
    ("libsvtav1", ".webm", "av1"), ("libvpx-vp9", ".mkv", "vp9"), ("libx264", ".mkv", "h264"),
]  # fmt: skip


def planes(path: Path) -> NDArray[np.uint8]:
    return np.concatenate([chunk.data for chunk in media.read_planes(path)])


def written(source: Path, out: Path, encoder: Encoder, crf: int = 12) -> Path:
    how = media.encoder_for(out, encoder, crf=crf)
    with media.Writer(out, media.probe(source), crf=crf, preset="veryfast", encoder=how) as writer:
        for chunk in media.read_planes(source):
            writer.write(chunk)
    return out


def moving(count: int) -> list[NDArray[np.uint8]]:
    y, x = np.mgrid[0:96, 0:128]
    return [
        np.stack([120 + 80 * np.sin((x + 3 * k) / 9), 110 + 60 * np.cos((y - 2 * k) / 7), 90 + 0 * x], axis=2).astype(np.uint8)
        for k in range(count)
    ]


@pytest.mark.parametrize(("encoder", "suffix", "codec"), HERE)
def test_pictures_keep_their_times_and_look_as_those_of_x264(tmp_path: Path, encoder: Encoder, suffix: str, codec: str) -> None:
    source = tmp_path / "in.mp4"
    draw_video(source, pictures=moving(len(ODD_TICKS)), pts=ODD_TICKS, time_base=Fraction(1, 15360), last_duration=700)
    silent, out = written(source, tmp_path / f"silent{suffix}", encoder), tmp_path / f"out{suffix}"
    write_wav(tmp_path / "speech.wav", sine(2.0))
    media.mux(silent, tmp_path / "speech.wav", out, duration_s=Fraction(40701, 15360), force=False)
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == codec
        assert codec != "hevc" or suffix == ".mkv" or container.streams.video[0].codec_context.codec_tag == "hvc1"
    found = [float(tick * chunk.time_base) for chunk in media.read_planes(out) for tick in chunk.pts.tolist()]
    assert found == pytest.approx([tick / 15360 for tick in ODD_TICKS], abs=1e-9 if suffix in (".mp4", ".mov") else 6e-4)
    assert float(media.probe(out).duration_s or 0) == pytest.approx(40701 / 15360, abs=0.02)
    errors = [
        float(np.square(planes(path).astype(float) - planes(source)).mean())
        for path in (out, written(source, tmp_path / "x264.mp4", "libx264"))
    ]
    assert 10 * np.log10(errors[0] / errors[1]) < 4, "more than 4 dB worse than x264 at the same crf"


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize(("encoder", "suffix", "codec"), HERE)
def test_the_shortest_videos_are_written(tmp_path: Path, encoder: Encoder, suffix: str, codec: str, frames: int) -> None:
    """Of two frames x265 says times of decoding that it never set: eight tries, for what they are is chance."""
    draw_video(tmp_path / "in.mp4", pictures=moving(frames))
    for _ in range(8 if (codec, frames) == ("hevc", 2) else 1):
        out = written(tmp_path / "in.mp4", tmp_path / f"out{suffix}", encoder)
        ticks = [float(time_s) for chunk in media.read_planes(out) for time_s in chunk.times_s]
        assert ticks == pytest.approx([k / 25 for k in range(frames)], abs=1e-3)


@pytest.mark.parametrize(("encoder", "suffix"), [("libx264", ".mp4"), ("libx265", ".mp4"), ("libvpx-vp9", ".webm")])
def test_crf_0_loses_nothing(tmp_path: Path, encoder: Encoder, suffix: str) -> None:
    draw_video(tmp_path / "in.mp4", pictures=moving(6))
    np.testing.assert_array_equal(
        planes(written(tmp_path / "in.mp4", tmp_path / f"out{suffix}", encoder, crf=0)), planes(tmp_path / "in.mp4")
    )


@pytest.mark.parametrize(
    ("encoder", "name", "crf", "says"),
    [
        ("libx265", "out.webm", 12, "takes no pictures of libx265; use libvpx-vp9, libsvtav1"),
        ("libsvtav1", "out.mov", 12, "takes no pictures of libsvtav1"),
        ("libsvtav1", "out.mp4", 0, "--crf 0"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path: Path, encoder: Encoder, name: str, crf: int, says: str) -> None:
    with pytest.raises(OutputRefused, match=says) as caught:
        media.encoder_for(tmp_path / name, encoder, crf=crf)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lipdub.media import encoders

    monkeypatch.setattr(encoders, "complaint_of_encoder", lambda name, options: "no such card")
    with pytest.raises(OutputRefused, match="h264_nvenc does not work here \\(no such card\\); leave --encoder away"):
        media.encoder_for(tmp_path / "out.mp4", "h264_nvenc", crf=12)


@pytest.mark.parametrize("preset", ["ultrafast", "veryfast", "medium", "veryslow"])
@pytest.mark.parametrize("crf", [0, 1, 12, 28, 51])
def test_options_are_what_encoders_take(preset: str, crf: int) -> None:
    for encoder in ENCODERS.values():
        options = encoder.options(crf, preset)
        assert all(isinstance(value, str) for value in options.values())
        number = options.get("crf") or options.get("cq")
        assert number is None or 0 <= int(number) <= 63
