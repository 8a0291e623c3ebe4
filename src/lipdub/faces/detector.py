"""Faces in pictures: the ``FaceDetector`` protocol and the mediapipe detector. Nothing else imports mediapipe.

The detector follows each face in its own window of the picture: the mesh model sees the face large, however small it is in
the frame, and its own tracking keeps it fast. The whole picture is searched again every half second or so, and whenever a
face is lost.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lipdub.media.planes import Picture
from lipdub.native_log import native_log_silenced
from lipdub.records import Face

os.environ.setdefault("GLOG_minloglevel", "3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MAX_FACES = 4
SEARCH_EVERY = 12
"""Frames between two searches of the whole picture for people who came in."""
SEARCH_SOON = 3
"""And while nobody is followed, or somebody was lost just now: a gap of a few frames can be bridged, half a second cannot."""
WINDOW_SCALE = 2.2
"""Side of a face's window over the longer side of its box: room for motion until the window moves along."""
MESH_PX = 256
"""Longest side of a window as the mesh model gets it; its own input is 192 px."""
SEARCH_PX = 640
"""Longest side of what is searched for people; the finder's own input is 192 px, and averaging shows it small faces better than skipping
pixels would."""
SMALLEST_PX = 16
"""A box smaller than this holds no face that landmarks can be put on."""


class FaceDetector(Protocol):
    """Finds faces in the frames of one video, in order."""

    def detect(self, picture: Picture) -> list[Face]:
        """Faces of the next frame; empty where there is none."""

    def reset(self) -> None:
        """Forget what was seen: the next frame belongs to another shot."""

    def close(self) -> None:
        """Free the models."""


class DetectorFactory(Protocol):
    """Makes a detector for a video that begins; several watch side by side where there are cores for it."""

    def __call__(self, *, max_faces: int = MAX_FACES) -> FaceDetector:
        """A new detector, which the caller closes. max_faces: faces of a frame that it gives at most."""


@dataclass(slots=True)
class _Followed:
    """One face that is being followed: its mesh model and the window (x0, y0, side in px) that it looks at."""

    mesh: Any
    x0: int
    y0: int
    side: int
    face: Face


class MediapipeDetector:
    """mediapipe 0.10.21: full-range face detection to find people, face mesh with irises (478 points) to follow them."""

    def __init__(self, *, max_faces: int = MAX_FACES) -> None:
        self._solutions = _solutions()
        self._max_faces = max_faces
        self._followed: list[_Followed] = []
        self._spare: list[Any] = []
        self._warm: set[int] = set()
        self._stale: set[int] = set()
        self._finder: Any = None
        self._since_search = SEARCH_EVERY
        self._hurry = 0

    def __enter__(self) -> MediapipeDetector:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def detect(self, picture: Picture) -> list[Face]:
        """Faces of the next frame: at most ``max_faces``, each once."""
        still_there: list[_Followed] = []
        for one in self._followed:
            face = self._mesh_in_window(picture, one.mesh, one.x0, one.y0, one.side)
            if face is None or any(_overlap(face.box, other.face.box) > 0.5 for other in still_there):
                self._spare.append(one.mesh)
                self._since_search = self._hurry = SEARCH_EVERY
                continue
            one.face = face
            self._recentre(one)
            still_there.append(one)
        self._followed = still_there
        self._since_search += 1
        between = SEARCH_SOON if self._hurry or not self._followed else SEARCH_EVERY
        self._hurry = max(0, self._hurry - 1)
        if self._since_search > between and len(self._followed) < self._max_faces:
            self._search(picture)
        return [one.face for one in self._followed]

    def reset(self) -> None:
        """Forget everybody: the next frame is searched as a whole."""
        self._spare.extend(one.mesh for one in self._followed)
        for mesh in self._spare:
            self._start_afresh(mesh)
        self._followed = []
        self._since_search = SEARCH_EVERY

    def close(self) -> None:
        """Free the models; the detector cannot be used afterwards."""
        for mesh in [*(one.mesh for one in self._followed), *self._spare]:
            mesh.close()
        if self._finder is not None:
            self._finder.close()
        self._followed, self._spare, self._finder = [], [], None

    def _search(self, picture: Picture) -> None:
        self._since_search = 0
        for box, score in self._find(picture):
            if len(self._followed) >= self._max_faces:
                return
            if any(_overlap(box, one.face.box) > 0.2 for one in self._followed):
                continue
            x0, y0, side = _window(box)
            mesh = self._spare.pop() if self._spare else self._new_mesh()
            self._start_afresh(mesh)
            face = self._mesh_in_window(picture, mesh, x0, y0, side)
            if face is None or any(_overlap(face.box, one.face.box) > 0.2 for one in self._followed):
                self._spare.append(mesh)
                continue
            followed = _Followed(mesh, x0, y0, side, Face(face.landmarks, score))
            self._recentre(followed)
            self._followed.append(followed)

    def _find(self, picture: Picture) -> list[tuple[NDArray[np.float32], float]]:
        """Face boxes in the whole picture, largest first; overlapping tiles of a wide picture are searched when it shows none."""
        if self._finder is None:
            with native_log_silenced():
                self._finder = self._solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5)
                self._finder.process(np.zeros((MESH_PX, MESH_PX, 3), np.uint8))
        height, width = picture.height, picture.width
        found = self._find_in(picture, 0, 0, width, height)
        if not found:
            tile = max(1, int(min(height, width) * 0.6))
            for y0 in _starts(height, tile):
                for x0 in _starts(width, tile):
                    found.extend(self._find_in(picture, x0, y0, min(width, x0 + tile), min(height, y0 + tile)))
        return sorted(found, key=lambda item: -float(item[0][2] - item[0][0]))

    def _find_in(self, picture: Picture, x0: int, y0: int, x1: int, y1: int) -> list[tuple[NDArray[np.float32], float]]:
        x0, y0 = x0 - x0 % 2, y0 - y0 % 2
        width, height = x1 - x0, y1 - y0
        scale = max(1.0, max(width, height) / SEARCH_PX)
        size = None if scale == 1 else (max(1, round(width / scale)), max(1, round(height / scale)))
        detections = self._finder.process(np.ascontiguousarray(picture.rgb(x0, y0, x1, y1, size=size))).detections or []
        found = []
        for detection in detections:
            relative = detection.location_data.relative_bounding_box
            left, top = relative.xmin * width + x0, relative.ymin * height + y0
            box = np.array([left, top, left + relative.width * width, top + relative.height * height], np.float32)
            if min(box[2] - box[0], box[3] - box[1]) >= SMALLEST_PX:
                found.append((box, float(detection.score[0])))
        return found

    def _new_mesh(self) -> Any:
        with native_log_silenced():
            mesh = self._solutions.face_mesh.FaceMesh(
                static_image_mode=False,
                max_num_faces=1,
                refine_landmarks=True,
                min_detection_confidence=0.4,
                min_tracking_confidence=0.5,
            )
            # The graph opens on threads of its own; a first picture waits for them.
            mesh.process(np.zeros((MESH_PX, MESH_PX, 3), np.uint8))
            return mesh

    def _start_afresh(self, mesh: Any) -> None:
        """Let a mesh model forget the face that it followed, before it looks at its next window."""
        self._warm.discard(id(mesh))
        self._stale.add(id(mesh))

    def _mesh_in_window(self, picture: Picture, mesh: Any, x0: int, y0: int, side: int) -> Face | None:
        window = _cut(picture, x0, y0, side)
        if id(mesh) in self._warm:
            result = mesh.process(window).multi_face_landmarks
        else:
            # Until it has seen a face, its parts are still being built (anew after a reset), and log from other threads.
            with native_log_silenced():
                if id(mesh) in self._stale:
                    mesh.reset()
                    self._stale.discard(id(mesh))
                result = mesh.process(window).multi_face_landmarks
            if result:
                self._warm.add(id(mesh))
        if not result:
            return None
        points = np.array([(p.x, p.y, p.z) for p in result[0].landmark], np.float32) * np.float32(side)
        points[:, 0] += x0
        points[:, 1] += y0
        if not np.isfinite(points).all():
            return None
        face = Face(points)
        box = face.box
        centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        inside = 0 <= centre_x < picture.width and 0 <= centre_y < picture.height
        return face if inside and min(box[2] - box[0], box[3] - box[1]) >= SMALLEST_PX else None

    def _recentre(self, one: _Followed) -> None:
        """Move the window along when the face leaves its middle or changes size; the mesh then starts afresh in it."""
        box = one.face.box
        longer = float(max(box[2] - box[0], box[3] - box[1]))
        margin = 0.25 * longer
        fits = (
            box[0] - margin >= one.x0
            and box[1] - margin >= one.y0
            and box[2] + margin <= one.x0 + one.side
            and box[3] + margin <= one.y0 + one.side
        )
        if fits and 1.6 <= one.side / longer <= 3.0:
            return
        one.x0, one.y0, one.side = _window(box)
        self._start_afresh(one.mesh)


def _window(box: NDArray[np.float32]) -> tuple[int, int, int]:
    """Even corner and side: a window is averaged down together with its chroma."""
    side = max(SMALLEST_PX, round(WINDOW_SCALE * float(max(box[2] - box[0], box[3] - box[1]))))
    side += side % 2
    left, top = round(float(box[0] + box[2]) / 2 - side / 2), round(float(box[1] + box[3]) / 2 - side / 2)
    return left - left % 2, top - top % 2, side


def _cut(picture: Picture, x0: int, y0: int, side: int) -> NDArray[np.uint8]:
    """The window of the picture as the mesh model gets it, uint8 (s, s, 3) with s = `side` or ``MESH_PX``, whichever is smaller; black
    where it reaches outside."""
    left, top, right, bottom = max(0, x0), max(0, y0), min(picture.width, x0 + side), min(picture.height, y0 + side)
    shown = min(side, MESH_PX)
    scale = shown / side
    if (left, top, right, bottom) == (x0, y0, x0 + side, y0 + side):
        size = (shown, shown) if shown < side else None
        return np.ascontiguousarray(picture.rgb(left, top, right, bottom, size=size))
    window = np.zeros((shown, shown, 3), np.uint8)
    if right > left and bottom > top:
        first_x, first_y = round((left - x0) * scale), round((top - y0) * scale)
        end_x, end_y = max(first_x + 1, round((right - x0) * scale)), max(first_y + 1, round((bottom - y0) * scale))
        size = (end_x - first_x, end_y - first_y) if shown < side else None
        window[first_y:end_y, first_x:end_x] = picture.rgb(left, top, right, bottom, size=size)
    return window


def _starts(length: int, tile: int) -> list[int]:
    count = max(1, -(-(length - tile) // max(1, tile // 2)) + 1)
    return sorted({round(i * (length - tile) / max(1, count - 1)) for i in range(count)})


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = float(width * height)
    areas = float((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]))
    return shared / max(areas - shared, 1e-6)


def _solutions() -> Any:
    with native_log_silenced(), _matplotlib_left_out():
        from mediapipe.python import solutions  # slow to load, and noisy: only when a face is looked for

    return solutions


@contextmanager
def _matplotlib_left_out() -> Iterator[None]:
    """Let mediapipe's drawing module, which is not used, import an empty matplotlib: the real one writes a list of fonts to the home
    folder when it is imported, and takes a second for it."""
    names = [name for name in ("matplotlib", "matplotlib.pyplot") if name not in sys.modules]
    sys.modules.update((name, ModuleType(name)) for name in names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
