"""Pictures of more than 8 bits: 10 of them go from the decoder to the encoder, with what is said of their colours."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type as SideDataType
from drawn import draw_planes, write_wav
from faces_for_tests import portrait_frames, scaled
from fakes import write_fake_bundle
from numpy.typing import NDArray

from lipdub import media
from lipdub.media import encoders, pictures
from lipdub.media.converting import ToPlanes
from lipdub.media.hdr import hdr_of, svtav1_params, x265_params
from lipdub.media.pictures import SPAN_FRAMES
from lipdub.media.planes import TEN_BITS, Levels, YuvChunk
from lipdub.options import DubOptions, Encoder
from lipdub.outcome import what_is_lost
from lipdub.pipeline import dub
from lipdub.records import ColorTags, DubReport, HdrMetadata, MasteringDisplay

FRAMES, SIDE = 6, 256
LOSSLESS = {"x265-params": "lossless=1:log-level=error", "preset": "ultrafast"}
GRADED = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
PQ, HLG = (9, 1, 9, 16), (9, 1, 9, 18)


def deep(count: int = FRAMES, side: int = SIDE) -> NDArray[np.uint16]:
    """A speaking portrait in 10 bits (N, H * 3 / 2, W) whose lowest two bits are no repetition of the others."""
    drawn = []
    for k, pixels in enumerate(portrait_frames(count)):
        coarse = av.VideoFrame.from_ndarray(scaled(pixels, (side, side)), "rgb24").reformat(format="yuv420p").to_ndarray()
        drawn.append(4 * coarse.astype(np.uint16) + np.random.default_rng(k).integers(0, 4, coarse.shape, np.uint16))
    return np.stack(drawn)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fake bundle, sound, and the portrait in 10 bits of PQ, graded on a display."""
    folder = tmp_path_factory.mktemp("house")
    write_fake_bundle(folder / "fake")
    write_wav(folder / "speech.wav", np.random.default_rng(1).uniform(-0.9, 0.9, 16000 * FRAMES // 25).astype(np.float32))
    draw_planes(folder / "deep.mp4", deep(), codec="libx265", tags=PQ, options={"x265-params": f"{LOSSLESS['x265-params']}:{GRADED}"})
    return folder


def dubbed(house: Path, out: Path, video: str = "deep.mp4", **options: Any) -> DubReport:
    chosen: dict[str, Any] = {"device": "cpu", "preset": "ultrafast", "threads": 1, "model": str(house / "fake"), "fit": "video"}
    return dub(house / video, house / "speech.wav", out, DubOptions(**chosen | options))


def luma(path: Path, width: int = SIDE) -> Levels:
    """Luma of all frames, (N, H, W)."""
    return np.concatenate([chunk.data[:, : width * SIDE].reshape(-1, SIDE, width) for chunk in media.read_planes(path)])


def planes(path: Path) -> Levels:
    return np.concatenate([chunk.data for chunk in media.read_planes(path)])


def kinds(report: DubReport) -> list[str]:
    return [warning.kind for warning in report.warnings]


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "p010le"])
def test_ten_bits_are_read_as_they_are(house: Path, pix_fmt: str) -> None:
    """p010 is what decoders of graphics cards give."""
    drawn = deep(3, 128)
    frames = [av.VideoFrame.from_ndarray(picture, "yuv420p10le").reformat(format=pix_fmt) for picture in drawn]
    convert = ToPlanes(frames[0], house / "deep.mp4", photo=False)
    convert.begin(3)
    for slot, frame in enumerate(frames):
        convert.put(slot, frame)
    chunk = convert.chunk(0, 3, np.arange(3), Fraction(1, 25))
    assert chunk.color.depth == TEN_BITS
    np.testing.assert_array_equal(chunk.data, drawn.reshape(3, -1))


def test_what_changes_in_the_middle_becomes_as_the_first_picture_is(house: Path) -> None:
    """Eight bits become the same levels times four; another shape lies in the middle of black."""
    first, *others = (av.VideoFrame.from_ndarray(deep(1, side)[0], "yuv420p10le") for side in (128, 128, 64))
    wide = others[1].reformat(width=64, height=32)
    convert = ToPlanes(first, house / "deep.mp4", photo=False)
    convert.begin(3)
    for slot, frame in enumerate((first, others[0].reformat(format="yuv420p"), wide)):
        convert.put(slot, frame)
    chunk = convert.chunk(0, 3, np.arange(3), Fraction(1, 25))
    assert np.abs(chunk.data[1].astype(int) - chunk.data[0]).max() <= 4
    letterbox = chunk.picture(2)
    assert set(np.unique(letterbox.y[:30])) == {letterbox.color.black}
    assert np.abs(letterbox.y[32:96].astype(int).mean() - chunk.picture(0).y.mean()) < 20


@pytest.mark.parametrize(
    ("pix_fmt", "apart"),
    [("yuv422p10le", 0), ("yuv444p10le", 0), ("yuv420p12le", 1), ("yuv444p16le", 1), ("gbrp10le", 2), ("yuva444p10le", 2)],
)
def test_what_has_more_than_eight_bits_is_carried_in_ten(tmp_path: Path, pix_fmt: str, apart: int) -> None:
    """Luma is the same but for rounding: it has no steps of 8 bits, which are 4 levels."""
    y, x = np.mgrid[0:96, 0:128]
    ramp = np.full((2, 144, 128), 512, np.uint16)
    ramp[:, :96] = 400 + (x + y) // 4
    draw_planes(tmp_path / "in.mkv", ramp, codec="ffv1", pix_fmt=pix_fmt, tags=(1, 1, 1, 1))
    info = media.probe(tmp_path / "in.mkv")
    (chunk,) = media.read_planes(tmp_path / "in.mkv")
    assert chunk.color.depth == TEN_BITS
    assert info.bits >= 10
    away = np.abs(chunk.picture(0).y.astype(int) - ramp[0, :96])
    assert away.max() <= apart
    assert away.mean() < 1.1
    assert len(np.unique(chunk.picture(0).y)) > 40


def test_a_span_of_ten_bits_is_what_reading_on_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_planes(tmp_path / "in.mkv", np.concatenate([deep(3, 128)] * 7), codec="libx265", options=LOSSLESS)
    chunks = list(media.read_planes(tmp_path / "in.mkv"))
    pts, whole = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("pts", "data"))
    span = media.read_span(tmp_path / "in.mkv", pts, 2, 21)
    assert len(span) == SPAN_FRAMES
    np.testing.assert_array_equal(span.data, whole[span.index : 21])
    monkeypatch.setattr(pictures, "PLANES_BYTES", 4 * whole[0].nbytes)
    assert len(media.read_span(tmp_path / "in.mkv", pts, 2, 21)) == 4


def test_a_chunk_takes_no_more_memory_for_ten_bits(tmp_path: Path) -> None:
    draw_planes(tmp_path / "in.mkv", drawn := deep(5, 128), codec="ffv1")
    chunks = list(media.read_planes(tmp_path / "in.mkv", chunk_bytes=2 * drawn[0].nbytes + 1))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]


# ------------------------------------------------------------------------------------------------------- a whole dub


def test_a_dub_changes_no_bit_outside_of_the_face(house: Path, tmp_path: Path) -> None:
    report = dubbed(house, tmp_path / "out.mp4", crf=0)
    assert (report.dubbed, report.warnings) == (FRAMES, ())
    before, after = (luma(house / "deep.mp4"), luma(tmp_path / "out.mp4"))
    assert after.dtype == np.uint16
    changed = (before != after).any(axis=0)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert 0.02 < changed.mean() < 0.25
    assert (changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).mean() > 0.5  # the mouth, and nothing far from it
    # What is drawn there is of 10 bits, too: its two lowest are not all the same.
    drawn = after[before != after]
    assert min(np.bincount(drawn % 4, minlength=4)) > 0.1 * len(drawn)


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "hevc"), (".mov", "hevc"), (".mkv", "hevc"), (".webm", "av1")])
def test_every_container_keeps_depth_colours_and_what_the_video_says_of_its_range(
    house: Path, tmp_path: Path, suffix: str, codec: str
) -> None:
    report = dubbed(house, tmp_path / f"out{suffix}", crf=12)
    assert kinds(report) == []
    source, info = (media.probe(path) for path in (house / "deep.mp4", tmp_path / f"out{suffix}"))
    assert (info.bits, info.color) == (10, ColorTags(*PQ))
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        context = container.streams.video[0].codec_context
        assert context.codec.canonical_name == codec
        assert suffix not in (".mp4", ".mov") or context.codec_tag == "hvc1"  # which QuickTime asks for
    assert source.hdr.light == info.hdr.light == (1000, 400)
    assert source.hdr.display is not None
    assert info.hdr.display is not None
    for one, other in zip(source.hdr.display.primaries, info.hdr.display.primaries, strict=True):
        assert [float(share) for share in one] == pytest.approx([float(share) for share in other], abs=2e-5)
    assert np.abs(luma(tmp_path / f"out{suffix}")[:, :16].astype(int) - luma(house / "deep.mp4")[:, :16]).mean() < 4


def test_an_encoder_of_eight_bits_is_given_eight_and_that_is_said(house: Path, tmp_path: Path) -> None:
    report = dubbed(house, tmp_path / "out.mp4", encoder="libx264", crf=1)
    assert kinds(report) == ["fewer-bits", "hdr-metadata"]
    info = media.probe(tmp_path / "out.mp4")
    assert (info.bits, info.color) == (8, ColorTags(*PQ))
    away = luma(tmp_path / "out.mp4")[:, :16].astype(float) - luma(house / "deep.mp4")[:, :16] / 4
    assert abs(away.mean()) < 0.3
    assert np.abs(away).mean() < 1


def test_label_and_source_beside_the_dub_in_ten_bits(house: Path, tmp_path: Path) -> None:
    dubbed(house, tmp_path / "alone.mp4", crf=0)
    dubbed(house, tmp_path / "both.mp4", crf=0, side_by_side=True, label="Dubbed by AI")
    both, alone, source = luma(tmp_path / "both.mp4", 2 * SIDE), luma(tmp_path / "alone.mp4"), luma(house / "deep.mp4")
    np.testing.assert_array_equal(both[..., :SIDE], source)
    labelled = both[..., SIDE:] != alone
    assert labelled.any()
    assert not labelled[:, : 3 * SIDE // 4].any()
    assert both[..., SIDE:][labelled].max() == 940  # white in 10 bits


def test_an_odd_picture_on_its_side(house: Path, tmp_path: Path) -> None:
    with av.open(str(house / "turned.mp4"), "w") as container:
        stream: Any = container.add_stream("libx265", rate=25, options=LOSSLESS)
        stream.width, stream.height, stream.pix_fmt = SIDE - 1, SIDE - 1, "yuv444p10le"
        stream.set_display_rotation(90)
        for tick, planar in enumerate(deep()):
            frame = av.VideoFrame.from_ndarray(planar, "yuv420p10le").reformat(format="rgb48le").to_ndarray()
            frame = np.ascontiguousarray(np.rot90(frame, -1)[1:, 1:])
            turned = av.VideoFrame.from_ndarray(frame, "rgb48le").reformat(format="yuv444p10le")
            turned.pts, turned.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(turned))
        container.mux(stream.encode(None))
    report = dubbed(house, tmp_path / "out.mp4", "turned.mp4", crf=0)
    assert (report.dubbed, kinds(report)) == (FRAMES, [])
    assert media.probe(tmp_path / "out.mp4").bits == 10
    before, after = planes(house / "turned.mp4"), planes(tmp_path / "out.mp4")
    assert 0.01 < (before != after).mean() < 0.25


# ---------------------------------------------------------------------------------------------------------- encoders


@pytest.mark.parametrize(
    ("name", "wanted", "crf", "bits", "encoder", "gets"),
    [
        ("a.mp4", "auto", 12, 8, "libx264", 8),
        ("a.mp4", "auto", 12, 10, "libx265", 10),
        ("a.mov", "auto", 0, 12, "libx265", 10),
        ("a.mp4", "libx264", 12, 10, "libx264", 8),
        ("a.mp4", "libx265", 12, 8, "libx265", 8),
        ("a.mkv", "libsvtav1", 12, 10, "libsvtav1", 10),
    ],
)
def test_which_encoder_takes_which_depth(tmp_path: Path, name: str, wanted: Encoder, crf: int, bits: int, encoder: str, gets: int) -> None:
    found = media.encoder_for(tmp_path / name, wanted, crf=crf, bits=bits)
    assert (found.name, found.bits) == (encoder, gets)


def test_where_no_encoder_keeps_ten_bits_there_are_eight_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_planes(tmp_path / "in.mkv", deep(1, 64), codec="ffv1", tags=HLG)
    monkeypatch.setattr(encoders, "complaint_of_encoder", lambda name, options, pix_fmt="yuv420p": "not in this build")
    found = media.encoder_for(tmp_path / "a.mp4", "auto", crf=12, bits=10)
    assert (found.name, found.bits) == ("libx264", 8)
    (warning,) = what_is_lost(media.probe(tmp_path / "in.mkv"), found)
    assert "have 10 bits a colour, high dynamic range: the output has 8 by libx264" in warning.text


def test_a_writer_takes_pictures_of_either_depth(tmp_path: Path) -> None:
    draw_planes(tmp_path / "in.mkv", drawn := deep(3, 128), codec="ffv1")
    info = media.probe(tmp_path / "in.mkv")
    for bits in (8, 10):
        how = media.encoder_for(tmp_path / "out.mkv", "libx265", crf=0, bits=bits)
        with media.Writer(tmp_path / "out.mkv", info, crf=0, preset="ultrafast", encoder=how) as writer:
            for chunk in media.read_planes(tmp_path / "in.mkv"):
                writer.write(chunk)
        found = planes(tmp_path / "out.mkv").astype(float)
        assert np.abs(found * (1 if bits == 10 else 4) - drawn.reshape(3, -1)).max() <= (0 if bits == 10 else 7)


# --------------------------------------------------------------------------------------------------- what is said of HDR


def test_a_display_is_told_to_encoders_in_their_own_words() -> None:
    shares = [(34000, 16000), (13250, 34500), (7500, 3000), (15635, 16450)]
    primaries = tuple((Fraction(x, 50_000), Fraction(y, 50_000)) for x, y in shares)
    hdr = HdrMetadata(MasteringDisplay(primaries, (Fraction(1000), Fraction(50, 10_000))), (1000, 400))
    assert x265_params(hdr) == GRADED
    assert svtav1_params(hdr) == (
        "mastering-display=G(0.26500,0.69000)B(0.15000,0.06000)R(0.68000,0.32000)WP(0.31270,0.32900)L(1000.0000,0.0050)"
        ":content-light=1000,400"
    )
    for said in (x265_params, svtav1_params):
        assert said(HdrMetadata()) == ""
        assert said(HdrMetadata(light=hdr.light)).count(":") == 0


WHOLE = [1, 3] * 8 + [1, 100, 1000, 1, 1, 1]
"""A display as FFmpeg describes one."""


@pytest.mark.parametrize(("at", "number"), [(0, -1), (2, 4), (5, 0), (16, 100_001), (18, 10_001), (20, 0), (21, 0)])
def test_what_is_damaged_is_not_said(at: int, number: int) -> None:
    """Shares beyond 1, no denominator, a luminance that nothing has, and what FFmpeg says is not there."""

    def seen(numbers: list[int], light: tuple[int, int]) -> HdrMetadata:
        kinds = SideDataType.MASTERING_DISPLAY_METADATA, SideDataType.CONTENT_LIGHT_LEVEL
        data = {kind: np.array(said, np.int32).tobytes() for kind, said in zip(kinds, (numbers, light), strict=True)}
        return hdr_of(cast(av.VideoFrame, SimpleNamespace(side_data=data)))

    whole = seen(WHOLE, (1000, 0))
    assert whole.display is not None
    assert whole.light == (1000, 0)
    assert seen([*WHOLE[:at], number, *WHOLE[at + 1 :]], (70_000, -1)) == seen(WHOLE[1:], (0, 0)) == HdrMetadata()


def test_what_no_encoder_here_can_write_is_said(tmp_path: Path) -> None:
    data = {SideDataType.DOVI_METADATA: b"x" * 5, SideDataType.DYNAMIC_HDR_PLUS: b"y"}
    hdr = hdr_of(cast(av.VideoFrame, SimpleNamespace(side_data=data)))
    draw_planes(tmp_path / "in.mkv", deep(1, 64), codec="ffv1")
    info = replace(media.probe(tmp_path / "in.mkv"), hdr=hdr)
    (warning,) = what_is_lost(info, media.encoder_for(tmp_path / "a.mp4", "auto", crf=12, bits=10))
    assert (warning.kind, "left out: Dolby Vision, HDR10+;" in warning.text) == ("hdr-metadata", True)


def test_a_chunk_says_its_depth(tmp_path: Path) -> None:
    draw_planes(tmp_path / "in.mkv", deep(1, 64), codec="ffv1")
    (chunk,) = media.read_planes(tmp_path / "in.mkv")
    with pytest.raises(ValueError, match="data must be uint16"):
        YuvChunk(0, chunk.data.astype(np.uint8), 64, 64, chunk.color, chunk.pts, chunk.time_base)
