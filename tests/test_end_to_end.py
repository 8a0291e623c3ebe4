"""The default bundle on the example, as `make demo` dubs it: the drawn mouth moves with speech and closes in silence."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn import draw_video, write_wav
from faces_for_tests import SPEECH, portrait_frames
from numpy.typing import NDArray

from lipdub import bundle, media
from lipdub.cli.app import main
from lipdub.errors import LipdubError
from lipdub.faces import MediapipeDetector
from lipdub.tracks import opening_of

FRAMES, RATE = 50, 16000
OPEN = 0.06
"""Inner-lip distance over the distance of the outer eye corners above which a mouth is open."""


def base_is_there() -> bool:
    try:
        return (bundle.resolve("base") / bundle.SPEC_FILE).is_file()
    except LipdubError:
        return False


pytestmark = pytest.mark.skipif(not base_is_there(), reason="models/base is not trained yet")


def frames_of(path: Path) -> NDArray[np.uint8]:
    return np.concatenate([chunk.pixels for chunk in media.read_frames(path)])


def openings(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mouth opening in each frame, read off the pixels; every frame must show one face."""
    found = []
    with MediapipeDetector() as detector:
        for pixels in frames:
            (face,) = detector.detect(pixels)
            found.append(opening_of(face.landmarks))
    return np.array(found)


def lipdub(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["lipdub", *map(str, arguments)])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return int(left.value.code or 0)


def test_the_example_speaks_and_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = portrait_frames(FRAMES)
    draw_video(tmp_path / "clip.mp4", pictures=list(pictures), fps=25)
    speech = np.concatenate(list(media.read_audio(SPEECH, RATE)))[: 2 * RATE]
    write_wav(tmp_path / "speech.wav", speech)
    write_wav(tmp_path / "silence.wav", np.zeros(2 * RATE))
    measured = {}
    for name in ("speech", "silence"):
        out = tmp_path / f"{name}.mp4"
        assert lipdub(monkeypatch, "sync", tmp_path / "clip.mp4", tmp_path / f"{name}.wav", "-o", out, "--device", "cpu", "--quiet") == 0
        drawn = frames_of(out)
        assert drawn.shape == pictures.shape
        # Hair and shoulders stay as they were.
        assert 10 * np.log10(255**2 / ((drawn[:, :90].astype(float) - pictures[:, :90]) ** 2).mean()) > 38
        measured[name] = openings(drawn)
    source = openings(pictures)
    assert measured["speech"].std() > 0.01
    assert measured["speech"].std() > 2 * measured["silence"].std()
    assert measured["speech"].max() > measured["silence"].mean() + 0.02
    # The source smiles with open lips throughout.
    assert (measured["silence"] > OPEN).mean() <= 0.1
    assert measured["silence"].mean() < source.mean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "silence.mp4", "silence.wav", "speech.mp4", "speech.wav"]
