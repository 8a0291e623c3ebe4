"""Make the example: `portrait.mp4`, `portrait.jpg` and `speech.wav` in this folder (origin and licence: README.md).

The files are in the repository; run this only to change them. It needs the dev install (`make setup`; scikit-image
brings the photograph inside its wheel) and the program espeak-ng:

    .venv/bin/python examples/make_example.py
"""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

HERE = Path(__file__).parent

SENTENCE = "This is a demo. A program made the voice, and a program moves my lips. Nobody spoke: please mark what you make."
"""Says what it is, and closes the lips often (m, b, p), which is where a bad dub shows."""

FRAME_RATE = 25
FRAMES = 210
"""8.4 s: a little longer than the speech, so that the demo ends with a resting mouth."""

SIZE = 512
ORIGIN, SIDE = (64.0, 0.0), 320.0
"""The square of the photograph that is shown (px of the photograph): the face becomes about 150 px wide."""

HEAD, RADII, NECK = (226.0, 95.0), (78.0, 92.0), (224.0, 190.0)
"""Middle and half axes of the ellipse that moves as one piece, and the point that it turns about (px of the photograph)."""

FADE = 1.0
"""Outside the ellipse the motion fades to none over this many half axes, so that background and suit keep still."""


def sway(t: float, *terms: tuple[float, float, float]) -> float:
    """Sum of sines at time `t` (s); a term is (amplitude, frequency in Hz, phase in turns)."""
    return float(sum(amplitude * np.sin(2 * np.pi * (hz * t + phase)) for amplitude, hz, phase in terms))


def similarity(turn_deg: float, zoom: float, shift: tuple[float, float], about: tuple[float, float]) -> NDArray[np.float64]:
    """The 2x3 matrix that turns and zooms about a point, then shifts."""
    matrix = cv2.getRotationMatrix2D(about, turn_deg, zoom)
    matrix[:, 2] += shift
    return np.asarray(matrix, dtype=np.float64)


def frame_at(photo: NDArray[np.uint8], t: float) -> NDArray[np.uint8]:
    """The picture at time `t` (s), uint8 (SIZE, SIZE, 3) RGB: a slow nod and turn of the head before a nearly still camera.

    The photograph is sampled once per frame, so that sub-pixel motion does not blur it twice; its edge is mirrored.
    """
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
    x = ORIGIN[0] + (columns + 0.5) * SIDE / SIZE - 0.5
    y = ORIGIN[1] + (rows + 0.5) * SIDE / SIZE - 0.5

    camera = similarity(
        sway(t, (0.15, 0.19, 0.3)),
        1 + sway(t, (0.004, 0.13, 0.0)),
        (sway(t, (0.8, 0.21, 0.1)), sway(t, (0.6, 0.27, 0.6))),
        HEAD,
    )
    head = similarity(
        sway(t, (1.5, 0.23, 0.0), (0.6, 0.61, 0.2)),
        1 + sway(t, (0.012, 0.31, 0.4)),
        (sway(t, (1.8, 0.29, 0.7), (0.5, 0.83, 0.1)), sway(t, (1.2, 0.37, 0.2), (0.6, 0.97, 0.5))),
        NECK,
    )
    x, y = camera[0, 0] * x + camera[0, 1] * y + camera[0, 2], camera[1, 0] * x + camera[1, 1] * y + camera[1, 2]
    distance = np.hypot((x - HEAD[0]) / RADII[0], (y - HEAD[1]) / RADII[1])
    weight = 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - 1) / FADE, 0, 1))
    moved_x = head[0, 0] * x + head[0, 1] * y + head[0, 2]
    moved_y = head[1, 0] * x + head[1, 1] * y + head[1, 2]
    x, y = x + weight * (moved_x - x), y + weight * (moved_y - y)
    shown = cv2.remap(photo, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(shown, dtype=np.uint8)


def write_video(photo: NDArray[np.uint8], path: Path) -> None:
    """Write the moving portrait as H.264, tagged BT.709."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "18", "preset": "slow"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAME_RATE)
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
        for index in range(FRAMES):
            picture = av.VideoFrame.from_ndarray(frame_at(photo, index / FRAME_RATE), format="rgb24")
            frame = picture.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
            frame.pts, frame.time_base = index, Fraction(1, FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> None:
    """Write the three files and say how large they are."""
    photo = skimage.data.astronaut()
    write_video(photo, HERE / "portrait.mp4")
    still = cv2.cvtColor(frame_at(photo, 0.0), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(HERE / "portrait.jpg"), still, [cv2.IMWRITE_JPEG_QUALITY, 93])
    subprocess.run(["espeak-ng", "-v", "en-us+f3", "-s", "155", "-w", str(HERE / "speech.wav"), SENTENCE], check=True)
    for name in ("portrait.mp4", "portrait.jpg", "speech.wav"):
        print(f"{name}: {(HERE / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
