"""A dub in the shape of Wav2Lip's inference, written for the purpose from published descriptions of it; random weights, for its time only.

Every frame is held in memory; mediapipe's face detector looks at every frame; boxes are averaged over five frames; faces of 96 px go
through the generator 128 at once in PyTorch; what comes out is resized and pasted as a rectangle; frames are written by OpenCV to an
AVI (MPEG-4), which ffmpeg then codes again beside the sound with its defaults. Wav2Lip's own detector (S3FD at full size on every frame)
costs far more than mediapipe's, so the real tool is slower than this.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import soundfile
import torch
from librosa import resample, stft
from librosa.filters import mel as mel_filters
from numpy.typing import NDArray

from benchmarks.dub_once import cpu_between, cpu_seconds
from benchmarks.footage import ffmpeg
from benchmarks.wav2lip_network import SIDE, Generator, with_random_weights

GENERATOR_BATCH: Final = 128
SMOOTHED_FRAMES: Final = 5
MEL_PER_S: Final = 80.0
MEL_WINDOW: Final = 16
SOUND_HZ: Final = 16000

Frames = list[NDArray[np.uint8]]
Boxes = NDArray[np.int64]


def baseline_once(task: dict[str, Any]) -> dict[str, Any]:
    """Dub ``task['video']`` with ``task['speech']`` into ``task['out']``: seconds per stage, frames, CPU seconds.

    device: ``cpu`` or ``cuda``. threads: of PyTorch and OpenCV, None for their choice.
    """
    device = torch.device(task["device"])
    if task["threads"] is not None:
        torch.set_num_threads(task["threads"])
        cv2.setNumThreads(task["threads"])
    import_module("mediapipe")  # imports are on nobody's clock
    clock = Stages()
    before, started = cpu_seconds(), time.perf_counter()
    with clock("read"):
        frames, rate = read_all(task["video"])
    with clock("mel"):
        windows = mel_windows(load_sound(task["speech"]), rate)
    frames = frames[: len(windows)]
    windows = windows[: len(frames)]
    with clock("detect"):
        boxes = smoothed(mediapipe_boxes(frames))
    with clock("open"):
        network = with_random_weights(Generator()).to(device)
    silent = Path(task["out"]).with_suffix(".avi")
    height, width = frames[0].shape[:2]
    with closing_writer(silent, rate, (width, height)) as writer:
        for first in range(0, len(frames), GENERATOR_BATCH):
            here = slice(first, min(first + GENERATOR_BATCH, len(frames)))
            with clock("crop"):
                faces = crops(frames[here], boxes[here])
            with clock("draw"):
                drawn = draw(network, faces, windows[here], device)
            for number, face in enumerate(drawn, start=first):
                with clock("paste"):
                    pasted = paste(frames[number], face, boxes[number])
                with clock("write"):
                    writer.write(pasted)
    with clock("encode and mux"):
        mux(silent, Path(task["speech"]), Path(task["out"]))
    wall_s = time.perf_counter() - started
    used = cpu_between(before, cpu_seconds())
    return {"frames": len(frames), "wall_s": wall_s, "stage_s": clock.seconds, "cpu_s": used, "output_s": len(frames) / rate}


class Stages:
    """Seconds by the name of a stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """What runs inside is booked on `stage`."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def read_all(video: str) -> tuple[Frames, float]:
    """Every frame, uint8 (H, W, 3) in OpenCV's order of colours, and the frames per second."""
    capture = cv2.VideoCapture(video)
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    frames: Frames = []
    while True:
        there, frame = capture.read()
        if not there:
            break
        frames.append(frame.astype(np.uint8, copy=False))
    capture.release()
    if not frames:
        raise SystemExit(f"OpenCV read no frame of '{video}'")
    return frames, rate


def load_sound(speech: str) -> NDArray[np.float32]:
    """Mono samples of a WAV at 16 kHz, float32 (n,)."""
    samples, rate = soundfile.read(speech, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return np.asarray(mono if rate == SOUND_HZ else resample(mono, orig_sr=rate, target_sr=SOUND_HZ), np.float32)


def mel_windows(samples: NDArray[np.float32], rate: float) -> NDArray[np.float32]:
    """The log-mel spectrogram of the whole sound cut into one window per frame at `rate`, float32 (N, 80, 16) in [-4, 4]."""
    emphasised = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    power = np.abs(stft(emphasised, n_fft=800, hop_length=200, win_length=800))
    mel = mel_filters(sr=SOUND_HZ, n_fft=800, n_mels=80, fmin=55, fmax=7600) @ power
    decibel = 20 * np.log10(np.maximum(1e-5, mel)) - 20
    columns = np.clip(8 * (decibel + 100) / 100 - 4, -4, 4).astype(np.float32)
    count = max(1, math.ceil((columns.shape[1] - MEL_WINDOW) * rate / MEL_PER_S) + 1)
    starts = np.minimum((np.arange(count) * MEL_PER_S / rate).astype(int), max(0, columns.shape[1] - MEL_WINDOW))
    return np.stack([columns[:, start : start + MEL_WINDOW] for start in starts])


def mediapipe_boxes(frames: Frames) -> Boxes:
    """The box of the first face of each frame, int64 (N, 4): x0, y0, x1, y1 px; where there is none the one before, at the start the
    first there is. Raises SystemExit where no frame shows a face."""
    from mediapipe.python.solutions.face_detection import FaceDetection

    boxes: list[list[int] | None] = []
    with closing(FaceDetection(model_selection=1, min_detection_confidence=0.5)) as detector:
        for frame in frames:
            found = detector.process(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).detections
            if found:
                boxes.append(_box_px(found[0].location_data.relative_bounding_box, frame.shape))
            else:
                boxes.append(boxes[-1] if boxes else None)
    first = next((box for box in boxes if box is not None), None)
    if first is None:
        raise SystemExit("no face to measure with; choose another video")
    return np.array([box or first for box in boxes], np.int64)


def _box_px(box: Any, shape: tuple[int, ...]) -> list[int]:
    height, width = shape[:2]
    x0, y0 = max(0, int(box.xmin * width)), max(0, int(box.ymin * height))
    x1, y1 = min(width, int((box.xmin + box.width) * width)), min(height, int((box.ymin + box.height) * height))
    return [x0, y0, max(x0 + 2, x1), max(y0 + 2, y1)]


def smoothed(boxes: Boxes) -> Boxes:
    """Each box the mean of itself and the four that follow; at the end, of the last five."""
    count = len(boxes)
    firsts = np.minimum(np.arange(count), max(0, count - SMOOTHED_FRAMES))
    return np.stack([boxes[first : first + SMOOTHED_FRAMES].mean(axis=0) for first in firsts]).astype(np.int64)


def crops(frames: Frames, boxes: Boxes) -> NDArray[np.float32]:
    """What the generator sees, float32 (B, 6, 96, 96) in [0, 1]: the face with its lower half black, and the face."""
    faces = np.stack([cv2.resize(frame[y0:y1, x0:x1], (SIDE, SIDE)) for frame, (x0, y0, x1, y1) in zip(frames, boxes, strict=True)])
    masked = faces.copy()
    masked[:, SIDE // 2 :] = 0
    both = np.concatenate([masked, faces], axis=3).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(both.transpose(0, 3, 1, 2))


@torch.no_grad()
def draw(network: torch.nn.Module, faces: NDArray[np.float32], windows: NDArray[np.float32], device: torch.device) -> NDArray[np.uint8]:
    """The drawn faces, uint8 (B, 96, 96, 3)."""
    drawn = network(torch.from_numpy(windows[:, np.newaxis]).to(device), torch.from_numpy(faces).to(device))
    levels: NDArray[np.uint8] = (drawn.cpu().numpy().transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    return levels


def paste(frame: NDArray[np.uint8], face: NDArray[np.uint8], box: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A copy of the frame with the face resized to the box and put there."""
    x0, y0, x1, y1 = box
    pasted = frame.copy()
    pasted[y0:y1, x0:x1] = cv2.resize(face, (int(x1 - x0), int(y1 - y0)))
    return pasted


@contextmanager
def closing_writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Any]:
    """OpenCV's writer of an MPEG-4 AVI, or of Motion JPEG where this build of it cannot do that."""
    for code in ("DIVX", "MJPG"):
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, size)
        if writer.isOpened():
            break
    else:
        raise SystemExit("this OpenCV can write neither MPEG-4 nor Motion JPEG")
    try:
        yield writer
    finally:
        writer.release()


def mux(pictures: Path, speech: Path, out: Path) -> None:
    """Pictures and sound in one file, coded with ffmpeg's defaults."""
    command = [ffmpeg(), "-nostdin", "-v", "error", "-y", "-i", str(speech), "-i", str(pictures), str(out)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
