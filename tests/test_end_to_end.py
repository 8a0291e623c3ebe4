"""The default bundle on the example, as `make demo` dubs it: the drawn mouth moves with speech and closes in silence."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import draw_video, write_wav
from faces_for_tests import SPEECH, portrait_frames
from numpy.typing import NDArray

from lipdub import dub, media
from lipdub.bundles import bundle
from lipdub.cli.app import main
from lipdub.errors import LipdubError
from lipdub.evaluate.pixels import LUMA, light_below
from lipdub.faces import crop
from lipdub.faces.detector import MediapipeDetector
from lipdub.faces.landmarks import opening_of
from lipdub.generators import Generator
from lipdub.media.planes import RgbPicture
from lipdub.model import open_model
from lipdub.options import DubOptions
from lipdub.paste.mask import mask_of
from lipdub.records import Drawn
from lipdub.stages import ENDING

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
            (face,) = detector.detect(RgbPicture(pixels))
            found.append(opening_of(face.landmarks))
    return np.array(found)


def lipdub(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["lipdub", *map(str, arguments)])
    handlers = {number: signal.getsignal(number) for number in ENDING}
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return int(left.value.code or 0)


class WithoutCopies:
    """The default model's generator as if it did not tell what it copied: its drawing, enlarged."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> object:
        return getattr(self._generator, name)

    def draw(self, targets: NDArray[np.uint8], references: NDArray[np.uint8], lip_features: NDArray[np.float32]) -> Drawn:
        return Drawn(self._generator.draw(targets, references, lip_features).pixels)


def test_what_is_copied_is_pasted_as_sharp_as_the_video(tmp_path: Path) -> None:
    """The portrait, large, its mouth open throughout: chin and cheeks move with the jaw, and come from the reference, or from the frame
    where the bundle tells where the lips lie."""
    pictures = portrait_frames(13)
    large = [np.asarray(cv2.resize(picture, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC), np.uint8) for picture in pictures]
    grain = np.random.default_rng(0).normal(0, 6, large[0].shape[:2])[..., None]
    draw_video(tmp_path / "clip.mp4", pictures=[np.clip(picture + grain, 0, 255).astype(np.uint8) for picture in large], fps=25)
    write_wav(tmp_path / "speech.wav", np.concatenate(list(media.read_audio(SPEECH, RATE)))[RATE : 3 * RATE // 2])
    model = open_model("base", device="cpu")
    network = replace(model, spec=replace(model.spec, points=False))
    plain = replace(network, generator=WithoutCopies(model.generator))  # type: ignore[arg-type]
    shown = {}
    for name, drawing in (("plain", plain), ("copied", network), ("warped", model)):
        dub(tmp_path / "clip.mp4", tmp_path / "speech.wav", tmp_path / f"{name}.mp4", model=drawing)
        shown[name] = frames_of(tmp_path / f"{name}.mp4")
    source = frames_of(tmp_path / "clip.mp4")
    with MediapipeDetector() as detector:
        (face,) = detector.detect(RgbPicture(source[0]))
    low, high = (face.landmarks[list(crop.JAW), :2].min(axis=0).astype(int), face.landmarks[list(crop.JAW), :2].max(axis=0).astype(int))
    region = np.s_[:, low[1] : high[1], low[0] : high[0], 1]
    changed = np.abs(shown["plain"][region].astype(int) - source[region]).max(axis=0) > 12
    fine = {name: float(laplacian_of(pictures[region])[:, changed].var()) for name, pictures in (shown | {"source": source}).items()}
    assert min(fine["copied"], fine["warped"]) > 1.5 * fine["plain"]
    # As sharp as the source, not sharper.
    assert fine["copied"] < 1.2 * fine["source"]


def laplacian_of(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.stack([cv2.Laplacian(picture.astype(np.float32), cv2.CV_32F) for picture in pictures])


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


FADED, PLAIN, DARK, BLURRED = slice(0, 12), slice(12, 25), slice(25, 45), slice(58, 75)


def spoilt(index: int, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frame `index` of the portrait when the video fades in, is exposed for less light for a while, and loses its focus at the end."""
    levels = picture.astype(np.float32)
    if index < FADED.stop:
        levels *= (index + 1) / (FADED.stop + 1)
    elif DARK.start <= index < DARK.stop:
        levels *= 0.55
    elif index >= BLURRED.start:
        levels = np.asarray(cv2.GaussianBlur(levels, (0, 0), 4), np.float32)
    return np.clip(levels, 0, 255).astype(np.uint8)


def test_the_mouth_fades_darkens_and_blurs_with_its_frame(tmp_path: Path) -> None:
    """A page is of another frame: its light and its focus must be those of the frame that it is drawn into."""
    pictures = portrait_frames(BLURRED.stop)
    draw_video(tmp_path / "clip.mp4", pictures=[spoilt(index, picture) for index, picture in enumerate(pictures)], fps=25)
    write_wav(tmp_path / "speech.wav", np.concatenate(list(media.read_audio(SPEECH, RATE)))[RATE : 4 * RATE])
    report = dub(tmp_path / "clip.mp4", tmp_path / "speech.wav", tmp_path / "out.mp4", DubOptions(device="cpu"))
    assert report.dubbed == len(pictures)
    source, shown = frames_of(tmp_path / "clip.mp4"), frames_of(tmp_path / "out.mp4")
    spec = open_model("base", device="cpu").spec.crop
    off, slopes, change = [], [], []
    with MediapipeDetector() as detector:
        for index, picture in enumerate(pictures):
            (face,) = detector.detect(RgbPicture(picture))
            similarity = crop.fit_similarity(face.landmarks)
            to_frame = crop.crop_to_frame(similarity[None], spec.size)[0]
            mask = mask_of(spec.size * crop.to_unit(face.landmarks[crop.OUTLINE, :2], similarity), spec)
            pair = [frames[index].astype(np.float32) @ LUMA for frames in (shown, source)]
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            lit = [light_below(np.asarray(cv2.warpAffine(luma, to_frame, mask.shape, flags=flags), np.float32), mask) for luma in pair]
            off.append(abs(lit[0] - lit[1]))
            inside = cv2.warpAffine(mask, to_frame, pair[0].shape[::-1]) > 0.9
            slopes.append([float(sum((slope[inside] ** 2).mean() for slope in np.gradient(luma))) for luma in pair])
            change.append(np.abs(pair[0] - pair[1])[inside].mean())
    drawn, own = np.array(slopes).T
    for stretch, sharpest in ((FADED, 1.25), (PLAIN, 1.25), (DARK, 1.25), (BLURRED, 1.6)):
        assert max(off[stretch]) < 0.06
        assert 0.8 < drawn[stretch].mean() / own[stretch].mean() < sharpest
        assert np.mean(change[stretch]) > 0.5
