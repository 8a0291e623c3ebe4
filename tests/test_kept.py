"""media.kept: whatever else a video holds is found again in the output, at its time and by its name, or its loss is said."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from drawn import burst, draw_photo, draw_video, sine, write_wav
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdub import media
from lipdub.errors import EncodingFailed
from lipdub.media import muxing
from lipdub.media.program import programs_to_try, run
from lipdub.records import DubWarning

END_S = Fraction(2)
WORDS = (("0.500", "1.000", "Grüße"), ("1.500", "9.000", "until the end"), ("5.000", "6.000", "never seen"))
TAGS = {"title": "A film; with = signs", "artist": "Someone", "comment": "shot in May", "odd_key": "odd"}


def ffmpeg(*arguments: object, out: Path) -> None:
    run([programs_to_try()[0], "-v", "error", "-y", *map(str, arguments), str(out)], out)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of film that holds all there is, as .mkv, and what of it fits as .mp4, .mov and .ts."""
    folder = tmp_path_factory.mktemp("films")
    draw_video(folder / "pictures.mp4", frames=100, fps=25, size=(64, 64), audio=sine(4))
    write_wav(folder / "other.wav", sine(4, hz=220))
    draw_photo(folder / "cover.png")
    (folder / "font.ttf").write_bytes(bytes(range(256)) * 4)
    blocks = (f"{number}\n00:00:0{start.replace('.', ',')} --> 00:00:0{end.replace('.', ',')}\n{text}\n" for number, (start, end, text) in
              enumerate(WORDS, 1))  # fmt: skip
    (folder / "words.srt").write_text("\n".join(blocks), encoding="utf-8")
    meta = [";FFMETADATA1", *(f"{key}={value.replace(';', chr(92) + ';').replace('=', chr(92) + '=')}" for key, value in TAGS.items())]
    for name, start, end in (("One", 0, 1000), ("Two", 1000, 99000), ("Beyond", 3000, 4000)):
        meta += ["[CHAPTER]", "TIMEBASE=1/1000", f"START={start}", f"END={end}", f"title={name}"]
    (folder / "meta.txt").write_text("\n".join(meta) + "\n", encoding="utf-8")
    inputs = [part for name in ("pictures.mp4", "other.wav", "words.srt", "meta.txt", "cover.png") for part in ("-i", folder / name)]
    common = (
        *inputs, "-map", "0:v", "-map", "0:a", "-map", "1:a", "-map", "2", "-map_metadata", "3", "-map_chapters", "3", "-c:v:0", "copy",
        "-c:a", "aac", "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=ger", "-metadata:s:a:1", "title=Deutsch",
        "-metadata:s:s:0", "language=spa",
    )  # fmt: skip
    attached = [f"-{option}" if k % 2 == 0 else option for k, option in enumerate((
        "attach", str(folder / "font.ttf"), "metadata:s:t:0", "mimetype=font/ttf",
        "attach", str(folder / "cover.png"), "metadata:s:t:1", "mimetype=image/png",
    ))]  # fmt: skip
    ffmpeg(*common, "-c:s", "srt", *attached, out=folder / "film.mkv")
    cover = ("-map", "4:v", "-c:v:1", "png", "-disposition:v:1", "attached_pic")
    ffmpeg(*common, "-c:s", "mov_text", *cover, out=folder / "film.mp4")
    ffmpeg(*common, "-c:s", "mov_text", out=folder / "film.mov")
    ffmpeg("-i", folder / "pictures.mp4", "-i", folder / "other.wav", "-map", "0", "-map", "1", "-c:v", "copy", "-c:a", "aac",
           "-metadata:s:a:1", "language=ger", "-output_ts_offset", "40", out=folder / "film.ts")  # fmt: skip
    write_wav(folder / "speech.wav", burst(2))
    return folder


def dubbed(films: Path, film: Path, out: Path, *, keep_audio: bool, duration_s: Fraction = END_S) -> list[DubWarning]:
    """As a dub writes it, without drawing: silent pictures, then all the rest."""
    said: list[DubWarning] = []
    info = media.probe(film)
    kept = media.plan_kept(film, out, duration_s=duration_s, keep_audio=keep_audio, warn=said.append)
    silent = out.with_name(f"silent{out.suffix}")
    with media.Writer(silent, info, crf=30, preset="ultrafast", kept=kept) as writer:
        writer.end_s = duration_s
        for chunk in media.read_planes(film):
            rows = [k for k, tick in enumerate(chunk.pts.tolist()) if tick * chunk.time_base < duration_s]
            if rows:
                writer.write(chunk.part(0, len(rows)))
    media.mux(silent, films / "speech.wav", out, duration_s=duration_s, force=True, kept=kept, warn=said.append)
    silent.unlink()
    return said


def streams_of(path: Path, kind: str) -> list[dict[str, str]]:
    with av.open(str(path)) as container:
        return [dict(stream.metadata) for stream in container.streams if stream.type == kind]


def cover_of(path: Path) -> bytes | None:
    with av.open(str(path)) as container:
        for stream in container.streams.video:
            if stream.disposition & av.stream.Disposition.attached_pic:
                return next(bytes(packet) for packet in container.demux(stream) if packet.size)
    return None


def words_of(path: Path) -> Iterator[tuple[float, float, str]]:
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        for packet in container.demux(stream):
            text = bytes(packet)[2 if stream.codec_context.name == "mov_text" else 0 :].decode()
            if text and packet.pts is not None:
                yield float(packet.pts * packet.time_base), float((packet.pts + (packet.duration or 0)) * packet.time_base), text


@pytest.mark.parametrize("keep_audio", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("film", ["film.mkv", "film.mp4", "film.mov"])
def test_all_is_found_again_or_its_loss_is_said(films: Path, tmp_path: Path, film: str, suffix: str, keep_audio: bool) -> None:
    out = tmp_path / f"out{suffix}"
    lost = " ".join(warning.text for warning in dubbed(films, films / film, out, keep_audio=keep_audio))
    sounds = streams_of(out, "audio")
    assert len(sounds) == (3 if keep_audio else 1)
    assert [sound.get("language", "und") for sound in sounds[1:]] == ["eng", "ger"][: len(sounds) - 1]
    assert ("ger" in lost) == (not keep_audio)
    if keep_audio:
        assert "Deutsch" in (sounds[2].get("title"), sounds[2].get("name"))
    with av.open(str(out)) as container:
        assert [bool(sound.disposition & av.stream.Disposition.default) for sound in container.streams.audio] == [
            keep_audio or suffix not in (".mkv", ".webm"), *[False] * (len(sounds) - 1)
        ]  # fmt: skip
        assert container.duration is not None
        assert abs(container.duration / 1e6 - float(END_S)) < 0.05
        tags = {key.lower(): value for key, value in container.metadata.items()}
        chapters = [(c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"].get("title")) for c in container.chapters()]
    words = list(words_of(out))
    assert [text.strip() for _, _, text in words] == [text for _, _, text in WORDS[:2]]
    assert [time for start, end, _ in words for time in (start, end)] == pytest.approx([0.5, 1, 1.5, 2], abs=0.07)
    (subtitles,) = streams_of(out, "subtitle")
    assert subtitles.get("language") == "spa" or "language of subtitles" in lost
    assert [title for _, _, title in chapters] == ["One", "Two"]
    assert [float(time) for start, end, _ in chapters for time in (start, end)] == pytest.approx([0, 1, 1, 2], abs=0.07)
    assert tags["comment"].startswith(media.COMMENT)
    assert tags["comment"].endswith(TAGS["comment"])
    with av.open(str(films / film)) as source:
        for key, value in source.metadata.items():
            technical = key.lower() in ("comment", "encoder", "major_brand", "minor_version", "compatible_brands")
            assert technical or tags.get(key.lower()) == value or f"tag {key}" in lost
    assert (cover_of(out) is not None) == (cover_of(films / film) is not None) or "cover" in lost
    assert cover_of(out) in (None, cover_of(films / film))
    fonts = streams_of(out, "attachment")
    assert [font["filename"] for font in fonts] == (["font.ttf"] if (film, suffix) == ("film.mkv", ".mkv") else [])
    assert ("attachment" in lost) == (film == "film.mkv" and suffix != ".mkv")
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_a_broadcasts_clock_begins_at_zero(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    dubbed(films, films / "film.ts", out, keep_audio=True)
    with av.open(str(out)) as container:
        starts = [stream.start_time * stream.time_base for stream in container.streams]
        ends_s = [0.0] * len(container.streams)
        for packet in container.demux():
            if packet.pts is not None:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends_s[packet.stream_index] = max(ends_s[packet.stream_index], end_s)
    assert max(abs(float(start)) for start in starts) < 0.1
    assert max(ends_s) < float(END_S) + 0.1
    assert min(ends_s) > float(END_S) - 0.1


def test_a_plain_video_gives_what_it_gave(films: Path, tmp_path: Path) -> None:
    """Nothing is said, and there are no streams but pictures and sound."""
    out = tmp_path / "out.mp4"
    assert dubbed(films, films / "pictures.mp4", out, keep_audio=False) == []
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.metadata["comment"] == media.COMMENT
        assert container.chapters() == []


def test_a_dub_of_a_dub_says_once_that_it_is_one(films: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.mp4", tmp_path / "second.mkv"
    dubbed(films, films / "film.mkv", first, keep_audio=False)
    dubbed(films, first, second, keep_audio=False)
    with av.open(str(second)) as container:
        assert container.metadata["COMMENT"].count(media.COMMENT) == 1


@given(damage=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_damaged_streams_cost_no_dub(films: Path, tmp_path_factory: pytest.TempPathFactory, damage: int) -> None:
    """What cannot be kept after all is left out, and said; the output is there."""
    folder = tmp_path_factory.mktemp("damaged")
    data = np.frombuffer((films / "film.mkv").read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(damage)
    # Behind the headers, so that the pictures can be found.
    at = rng.integers(len(data) // 2, len(data), 40)
    data[at] = rng.integers(0, 256, 40)
    (folder / "film.mkv").write_bytes(data.tobytes())
    dubbed(films, folder / "film.mkv", folder / "out.mp4", keep_audio=True, duration_s=Fraction(1))
    assert streams_of(folder / "out.mp4", "audio")
    assert sorted(path.name for path in folder.iterdir()) == ["film.mkv", "out.mp4"]


def test_where_kept_streams_fail_at_the_end_the_output_is_without(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial was of a second only."""
    write = muxing.write_sound

    def failing(*given: Any, others: Any = (), **more: Any) -> None:
        if others:
            raise EncodingFailed("cannot write: a broken subtitle; check")
        write(*given, others=others, **more)

    monkeypatch.setattr(muxing, "write_sound", failing)
    out = tmp_path / "out.mp4"
    said = dubbed(films, films / "film.mp4", out, keep_audio=False)
    assert any("broken subtitle" in warning.text and "subtitles" in warning.text for warning in said)
    assert streams_of(out, "subtitle") == []
    assert len(streams_of(out, "audio")) == 1
