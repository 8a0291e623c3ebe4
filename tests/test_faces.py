"""faces.detector: the real detector on the example portrait, in every size and company; nothing where there is nobody."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import pytest
from faces_for_tests import CHIN, FOREHEAD, portrait, portrait_face, portrait_frames, scaled
from numpy.typing import NDArray

from lipdub.faces.detector import MAX_FACES, SEARCH_EVERY, MediapipeDetector
from lipdub.media.planes import RgbPicture
from lipdub.native_log import native_log_silenced
from lipdub.records import Face
from lipdub.stages import ENDING

WIDE = (720, 1280, 3)


@pytest.fixture(scope="module")
def shared() -> Iterator[MediapipeDetector]:
    with MediapipeDetector() as found:
        yield found


@pytest.fixture
def detector(shared: MediapipeDetector) -> MediapipeDetector:
    shared.reset()
    return shared


def background(seed: int = 0) -> NDArray[np.uint8]:
    y, x = np.mgrid[0 : WIDE[0], 0 : WIDE[1]]
    waves = [120 + 40 * np.sin(x / 90 + seed), 110 + 40 * np.cos(y / 70), 100 + 30 * np.sin((x + y) / 110)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def placed(*people: tuple[int, int, int], canvas: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """A wide picture with the portrait's head, `height` px high, its corner at (left, top), once per person."""
    pixels = background() if canvas is None else canvas.copy()
    x0, y0, x1, y1 = (int(v) for v in portrait_face().box)
    margin = (y1 - y0) // 3
    head = portrait()[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin]
    for left, top, height in people:
        scale = height / (y1 - y0)
        small = scaled(head, (round(head.shape[1] * scale), round(head.shape[0] * scale)))
        pixels[top : top + small.shape[0], left : left + small.shape[1]] = small
    return pixels


def detect(detector: MediapipeDetector, pixels: NDArray[np.uint8]) -> list[Face]:
    return detector.detect(RgbPicture(pixels))


def height_of(face: Face) -> float:
    return float(face.box[3] - face.box[1])


def test_one_face_in_each_frame_of_the_example_within_the_picture(detector: MediapipeDetector) -> None:
    openings = []
    for pixels in portrait_frames(20):
        faces = detect(detector, pixels)
        assert len(faces) == 1
        landmarks = faces[0].landmarks
        assert landmarks.shape == (478, 3)
        assert (landmarks[:, :2] >= 0).all()
        assert (landmarks[:, :2] < 512).all()
        assert landmarks[FOREHEAD, 1] < landmarks[33, 1] < landmarks[CHIN, 1]
        assert landmarks[33, 0] < landmarks[263, 0]
        assert 0 < faces[0].score <= 1
        openings.append(faces[0].box)
    # The head moves a little; the landmarks do not jump.
    assert np.abs(np.diff(np.array(openings), axis=0)).max() < 6


def test_landmarks_lie_on_the_face_wherever_it_is(detector: MediapipeDetector) -> None:
    pixels = placed((700, 200, 172))
    (face,) = detect(detector, pixels)
    reference = portrait_face()
    wanted = reference.landmarks[:, :2] - reference.landmarks[168, :2]
    found = face.landmarks[:, :2] - face.landmarks[168, :2]
    assert np.abs(found - wanted).mean() < 4
    assert 700 < face.box[0] < face.box[2] < 700 + 172 * 2


def test_a_small_face_in_a_wide_picture_is_found_and_followed(detector: MediapipeDetector) -> None:
    for step in range(6):
        faces = detect(detector, placed((900 + 3 * step, 300, 60)))
        assert len(faces) == 1
        assert 45 < height_of(faces[0]) < 75
        assert faces[0].box[0] == pytest.approx(900 + 3 * step + 20, abs=15)


def test_two_people_are_two_faces(detector: MediapipeDetector) -> None:
    for _ in range(3):
        faces = sorted(detect(detector, placed((150, 150, 220), (800, 250, 150))), key=height_of)
        assert len(faces) == 2
        assert faces[0].box[0] > 700
        assert faces[1].box[2] < 600
        assert height_of(faces[1]) > 1.2 * height_of(faces[0])


@pytest.mark.parametrize("what", ["black", "white", "noise", "waves", "tiny"])
def test_nobody_is_found_where_nobody_is(detector: MediapipeDetector, what: str) -> None:
    pixels = {
        "black": np.zeros(WIDE, np.uint8),
        "white": np.full(WIDE, 255, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8),
        "waves": background(),
        "tiny": np.full((2, 2, 3), 90, np.uint8),
    }[what]
    assert detect(detector, pixels) == []


def test_somebody_who_leaves_is_gone_and_is_found_again(detector: MediapipeDetector) -> None:
    here, away = placed((500, 200, 172)), background()
    assert len(detect(detector, here)) == 1
    for gone in (1, 2, 5, 20):
        for _ in range(gone):
            assert detect(detector, away) == []
        missed = 0
        while not detect(detector, here):
            missed += 1
        # With the frame before, well below the 0.4 s that are bridged.
        assert missed <= 3


def test_one_of_two_who_was_hidden_for_a_moment_is_found_again_at_once(detector: MediapipeDetector) -> None:
    both, one = placed((150, 150, 220), (800, 250, 180)), placed((150, 150, 220))
    assert len(detect(detector, both)) == 2
    for _ in range(3):
        detect(detector, one)
    counts = [len(detect(detector, both)) for _ in range(4)]
    assert counts[-1] == 2


def test_somebody_who_comes_in_is_found_soon(detector: MediapipeDetector) -> None:
    alone, together = placed((150, 150, 220)), placed((150, 150, 220), (800, 250, 180))
    assert len(detect(detector, alone)) == 1
    counts = [len(detect(detector, together)) for _ in range(SEARCH_EVERY + 2)]
    assert counts[-1] == 2


def test_a_reset_forgets_where_people_were(detector: MediapipeDetector) -> None:
    (before,) = detect(detector, placed((100, 100, 172)))
    detector.reset()
    (after,) = detect(detector, placed((850, 300, 172)))
    assert before.box[2] < 500
    assert after.box[0] > 800


def test_the_number_of_faces_is_bounded() -> None:
    with MediapipeDetector(max_faces=1) as one:
        (face,) = detect(one, placed((150, 150, 120), (800, 250, 220)))
        assert face.box[0] > 700  # the larger one
    assert MAX_FACES >= 2


def test_the_same_video_gives_the_same_faces_twice() -> None:
    runs = []
    for _ in range(2):
        with MediapipeDetector() as fresh:
            runs.append([face.landmarks for pixels in portrait_frames(4) for face in detect(fresh, pixels)])
    assert len(runs[0]) == len(runs[1]) == 4
    for one, other in zip(*runs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_finding_faces_says_nothing_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with MediapipeDetector() as fresh:
        for pixels in (portrait(), np.zeros_like(portrait()), scaled(portrait(), (256, 256)), background()):
            detect(fresh, pixels)
        fresh.reset()
        detect(fresh, portrait())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", ENDING)
def test_an_interruption_waits_until_a_model_is_built(number: signal.Signals) -> None:
    class Stopped(BaseException):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stopped

    built = []

    def build() -> None:
        with native_log_silenced():
            signal.raise_signal(number)
            built.append(True)

    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            build()
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert built
