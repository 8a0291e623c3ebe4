"""Graphics burned into the video before a face: captions, logos. What scrolls is not found.

They stand still in the frame while the face behind them moves. While the video is watched, every edge of the lower face is followed at
its place in the frame: how long it has been there, and how far the face has moved meanwhile. An edge of the face goes with it; one of the
background is hidden where the face is. Strokes of letters and drawings go both ways, lips and creases nearly one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.faces.crop import crop_to_frame, unit_to_frame
from lipdub.media.planes import YuvPicture
from lipdub.references.pages import Pages

GRID_SIDE = 160
"""Edges are looked at in px of a grid in which the crop's side measures about this, or of the frame where that is coarser."""
LOWER_FACE = (0.5, 1.0, 0.2, 0.8)
"""Where edges are looked at (y0, y1, x0, x1), unit crop."""
MOUTH = (0.5, 0.72)
"""What the motion of a face is read at, unit crop."""
EDGE, FAINT_EDGE = 120, 60
"""Sobel gradient from which on there is an edge that counts, and from which on it is followed: a step of 30 levels, and of 15. So an
exposure that changes makes no new edges."""
STILL_PX = 3
"""An edge stands still that stays while the face moves across it by this many px of the grid."""
INSIDE, NEAR = 0.9, 1.25
"""The outline is drawn in to this share, so that no background is taken for what lies before the face. What belongs to it is looked for
somewhat further out than the mouth is redrawn."""
LEAST_SHARES = {STILL_PX: 0.05, 2 * STILL_PX: 0.02}
"""An overlay has so many px of the face on edges of either direction that stayed while the face moved so far. On 330 clips without one
there are 0.030 and 0.010 at most, and with a line of letters over the chin 0.1 to 0.27."""
FEWEST_EDGES = 60
"""But so many at least: of a small face a few px on edges of its own are as large a share."""
SETTLED_FRAMES, AT_ONCE_SHARE = 25, 0.04
"""Or so many that came at once, so many frames ago, and stayed; without one 0.016 at most."""
AT_ONCE_FRAMES, SOON_FRAMES = 1, 8
"""What comes at once comes within so many frames of each other; what comes when another overlay goes is known so soon."""
MISS, MOST_TRUST = 4, 100
"""An edge that is not there counts as much as four times that it is; what came before a hundred times is forgotten."""
LEFT_SHARE = 0.5
"""It is gone when fewer of its edges are left."""
BEGIN_FRAMES = 5
"""Its edges come within so many frames; what stays for a while, but began later, is of the face."""
LEAST_EITHER = 0.2
"""Of the edges of each part of it, at least this share goes either way."""
BAR_SHARE = 0.6
"""A bar behind letters has an edge that crosses this share of the overlay's width in one row, and no strokes there."""
STROKE_PX, MOST_HOLE = 5, 0.04
"""Strokes up to this width are filled, and what they enclose up to this share of the crop's area."""
MARGIN_PX = 2
"""It reaches so far beyond its edges, or a cell where that is more."""
SOFT_PX = 1.0
"""Sigma of the soft edge."""
FORGOTTEN_FRAMES = 50
"""A face that was not seen for so long does not come back to its place."""
FEWEST_CLEAR = 12
"""Pages that nothing lies on, from which on others are not drawn from."""
COVER_PX = 64
"""Side of the picture in which is looked what lies on a page."""
SPAN_NUMBERS, MOST_PX = 7, 2**16
"""Of a span, and how large a number of px can be."""
_PARTS, _MOST = 4, 2**14
"""Parts of a px that motion is counted in, and how many at most, either way."""
_DOWN = 1
_UNKNOWN = 2
"""The edge where nothing was looked at yet."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Overlay:
    """One of them. first, end: the frames [first, end) that show it. step: frame px of a cell. x, y: its corner in cells of the frame.
    mask: bool (h, w), the cells that it covers."""

    first: int
    end: int
    step: int
    x: int
    y: int
    mask: NDArray[np.bool_]

    def seen(self, to_frame: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
        """How far it covers each px of a picture of `size` (W, H), float32 (H, W) in [0, 1]: 1 on all of it, with a soft edge around.
        to_frame: (2, 3), px of the picture to px of the frame."""
        matrix = to_frame / self.step
        matrix[:, 2] += 0.5 / self.step - 0.5 - np.array([self.x, self.y])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        hard = cv2.warpAffine(self.mask.astype(np.float32), matrix, size, flags=flags)
        return np.asarray(np.maximum(hard, cv2.GaussianBlur(hard, (0, 0), SOFT_PX)), np.float32)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Overlays:
    """All K of them in a video, ordered by their first frame.

    spans: int64 (K, SPAN_NUMBERS), of each `first`, `end`, `step`, `x`, `y`, width and height, as ``Overlay`` has them. bits: uint8, their
    masks one after another, each packed by ``numpy.packbits``.
    """

    spans: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, SPAN_NUMBERS), np.int64))
    bits: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __post_init__(self) -> None:
        if self.spans.shape != (len(self.spans), SPAN_NUMBERS) or self.spans.dtype != np.int64:
            raise ValueError(f"spans must be int64 (K, {SPAN_NUMBERS}), got {self.spans.dtype} {self.spans.shape}")
        sized = (self.spans[:, [2, 5, 6]] > 0).all() and (self.spans[:, 2:] <= MOST_PX).all()
        if (self.spans < 0).any() or not sized or (self.spans[:, 0] >= self.spans[:, 1]).any():
            raise ValueError("an overlay has frames, a place and a size")
        if self.bits.dtype != np.uint8 or self.bits.shape != (int(self._bytes.sum()),):
            raise ValueError(f"masks take {int(self._bytes.sum())} bytes, got {self.bits.shape}")

    def __len__(self) -> int:
        return len(self.spans)

    def __repr__(self) -> str:
        return f"Overlays({len(self)})"

    @classmethod
    def of(cls, found: list[Overlay]) -> Overlays:
        """All that was found."""
        found = sorted(found, key=lambda one: (one.first, one.end))
        rows = [[one.first, one.end, one.step, one.x, one.y, one.mask.shape[1], one.mask.shape[0]] for one in found]
        bits = [np.packbits(one.mask) for one in found]
        return cls(np.array(rows, np.int64).reshape(-1, SPAN_NUMBERS), np.concatenate([np.zeros(0, np.uint8), *bits]))

    @classmethod
    def joined(cls, parts: Sequence[Overlays]) -> Overlays:
        """All of all parts, each part with later frames than the one before."""
        return cls(np.concatenate([part.spans for part in parts]), np.concatenate([part.bits for part in parts]))

    def later(self, frames: int) -> Overlays:
        """The same so many frames later."""
        return Overlays(self.spans + np.array([frames, frames, *[0] * (SPAN_NUMBERS - 2)]), self.bits)

    def at(self, frame: int) -> tuple[Overlay, ...]:
        """Those that a frame shows."""
        if not len(self):
            return ()
        found, ends = [], np.cumsum(self._bytes)
        for number in np.flatnonzero((self.spans[:, 0] <= frame) & (frame < self.spans[:, 1])).tolist():
            first, end, step, x, y, width, height = self.spans[number].tolist()
            packed = self.bits[ends[number] - self._bytes[number] : ends[number]]
            mask = np.unpackbits(packed, count=width * height).reshape(height, width).astype(bool)
            found.append(Overlay(first, end, step, x, y, mask))
        return tuple(found)

    @property
    def _bytes(self) -> NDArray[np.int64]:
        return -(-self.spans[:, 5] * self.spans[:, 6] // 8)


def covering(overlays: tuple[Overlay, ...], to_frame: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """How far any of them covers each px of a picture; see ``Overlay.seen``."""
    return np.maximum.reduce([np.zeros(size[::-1], np.float32), *(one.seen(to_frame, size) for one in overlays)])


def over_crop(overlays: tuple[Overlay, ...], similarity: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """How far they cover each px of an aligned crop, float32 (S, S), by its frame-to-unit similarity (4,)."""
    return covering(overlays, crop_to_frame(similarity[None], size)[0], (size, size))


def drawable(pages: Pages, overlays: Overlays) -> NDArray[np.bool_]:
    """Which pages can be drawn from, bool (P,): usable ones, and only those that nothing lies on where a person has enough of them."""
    usable = pages.usable()
    if not len(overlays):
        return usable
    clear = usable & np.array([not lies_on(pages, number, overlays) for number in range(len(pages))], bool)
    for person in np.unique(pages.person):
        mine = pages.of(person)
        if clear[mine].sum() >= FEWEST_CLEAR:
            usable[mine] = clear[mine]
    return usable


def lies_on(pages: Pages, number: int, overlays: Overlays) -> bool:
    """Whether an overlay lies on the lower face of a page."""
    there = overlays.at(int(pages.frame[number]))
    if not there:
        return False
    covered = over_crop(there, pages.similarity[number], COVER_PX)
    return bool(covered[_drawn(COVER_PX * pages.outline[number], (COVER_PX, COVER_PX), NEAR)].any())


class OverlayFinder:
    """Finds them while the faces of a video go by, in order."""

    def __init__(self) -> None:
        self._watches: dict[int, _Watch] = {}
        self._found: list[tuple[int, Overlay]] = []

    def show(self, frame: int, track: int, picture: YuvPicture, similarity: NDArray[np.float64], outline: NDArray[np.float32]) -> None:
        """One face more, of the track of that number. outline: float32 (P, 2), frame px."""
        watch = self._watches.get(track)
        if watch is None:
            self._finish([number for number, one in self._watches.items() if one.last < frame - FORGOTTEN_FRAMES])
            watch = self._watches[track] = _Watch(frame, picture, similarity)
        if (gone := watch.show(frame, picture, similarity, outline)) is not None:
            self._found.append((track, gone))

    def cut(self) -> None:
        """Another shot begins: no face goes on."""
        self._finish(list(self._watches))

    def before(self, tracks: Container[int]) -> Overlays:
        """Those before the faces of these tracks, when all faces have gone by."""
        self._finish(list(self._watches))
        return Overlays.of([one for track, one in self._found if track in tracks])

    def _finish(self, tracks: Iterable[int]) -> None:
        ended = [(number, self._watches.pop(number).ended()) for number in tracks]
        self._found += [(number, one) for number, one in ended if one is not None]


class _Watch:
    """The edges around one face, at their places in the frame. All arrays are (2, H, W) on the grid: of gradients across and down."""

    def __init__(self, frame: int, picture: YuvPicture, similarity: NDArray[np.float64]) -> None:
        self._step = max(1, round(1 / float(np.hypot(*similarity[:2])) / GRID_SIDE))
        shape = (2, picture.height // self._step, picture.width // self._step)
        self._edge = np.full(shape, _UNKNOWN, np.int16)
        """1 or -1 on edges, faint ones, too, by where it is brighter, and 0 elsewhere."""
        self._since = np.full(shape, frame, np.int32)
        self._low, self._high = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
        """Between what places of the face an edge has stayed, in parts of a px (``_PARTS``)."""
        self._born = self._first = self.last = frame
        self._overlay: NDArray[np.int16] | None = None
        """The edges of the overlay that is there from the frame `_first` on."""
        self._changed = frame
        """When the one before it went."""
        self._trust = np.zeros(shape, np.int16)
        """How well each of them has stayed; below 0 it is none."""

    def show(self, frame: int, picture: YuvPicture, similarity: NDArray[np.float64], outline: NDArray[np.float32]) -> Overlay | None:
        """One frame more; what has gone since the one before."""
        step, to_frame = self._step, unit_to_frame(similarity[None])[0]
        y0, y1, x0, x1 = LOWER_FACE
        corners = np.array([[x, y, 1] for x in (x0, x1) for y in (y0, y1)]) @ to_frame.T / step
        limits = self._edge.shape[:0:-1]
        left, top = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, limits).tolist()
        right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, limits).tolist()
        size = (right - left, bottom - top)
        if min(size) < 2 * STROKE_PX:
            return None
        self.last = frame
        here = (slice(None), slice(top, bottom), slice(left, right))
        luma = picture.y[top * step : bottom * step, left * step : right * step]
        small = np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA) // picture.color.depth.step, np.uint8)
        gradient = np.stack(cv2.spatialGradient(small)).astype(np.int16, copy=False)
        moved = self._follow(gradient, here, frame, to_frame @ [*MOUTH, 1] / step)
        outline = (outline / step - [left, top]).astype(np.float32)
        inside = _drawn(outline, size, INSIDE)
        if self._overlay is not None and not self._stays(self._overlay[here], here, inside):
            return self._taken(frame)
        edge, since = self._edge[here], self._since[here]
        begun = self._changed if frame == self._changed + SOON_FRAMES else frame - SETTLED_FRAMES
        # What is there from the first frame on may have come one by one.
        at_once = (moved >= 0) & (np.abs(since - begun) <= AT_ONCE_FRAMES) if begun > self._born + BEGIN_FRAMES else np.zeros_like(inside)
        if self._overlay is None:
            for found, share in [(at_once, AT_ONCE_SHARE), *((moved >= _PARTS * least, share) for least, share in LEAST_SHARES.items())]:
                before = found & inside
                if before.any() and before.sum(axis=(-2, -1)).min() > max(FEWEST_EDGES, share * inside.sum()):
                    frames, count = np.unique(since[before], return_counts=True)
                    self._first = int(frames[count.argmax()])
                    self._overlay = np.zeros_like(self._edge)
                    self._trust[...] = 0
                    break
        if self._overlay is not None:
            theirs = (moved >= _PARTS * STILL_PX) & (since <= self._first + BEGIN_FRAMES) | at_once & (
                np.abs(since - self._first) <= AT_ONCE_FRAMES
            )
            np.copyto(self._overlay[here], edge, where=theirs & _drawn(outline, size, NEAR) & (self._overlay[here] == 0))
        return None

    def ended(self) -> Overlay | None:
        """What is there to the last frame."""
        return self._taken(self.last + 1)

    def _follow(self, gradient: NDArray[np.int16], here: tuple[slice, ...], frame: int, place: NDArray[np.float64]) -> NDArray[np.int16]:
        """Note which edges are where they were, and which are new; how far the face has moved across each of those that count, in parts of
        a px of the grid, and -1 elsewhere."""
        edge, since, low, high = (whole[here] for whole in (self._edge, self._since, self._low, self._high))
        at = np.clip(np.round(_PARTS * place), -_MOST, _MOST).astype(np.int16)[:, None, None]
        strength, unknown = np.abs(gradient), edge == _UNKNOWN
        new = (gradient * edge <= FAINT_EDGE) | unknown
        np.copyto(edge, np.sign(gradient), where=new)
        edge *= strength > FAINT_EDGE
        np.copyto(since, frame, where=new & ~unknown)
        np.minimum(low, at, out=low)
        np.maximum(high, at, out=high)
        np.copyto(low, at, where=new)
        np.copyto(high, at, where=new)
        return np.where(strength >= EDGE, high - low, np.int16(-1))

    def _stays(self, overlay: NDArray[np.int16], here: tuple[slice, ...], inside: NDArray[np.bool_]) -> bool:
        """Whether enough of the overlay's edges are where they were; each is noted."""
        trust = self._trust[here]
        known, kept = (overlay != 0) & (trust >= 0), self._edge[here] == overlay
        before = known & inside
        if before.any() and kept[before].mean() < LEFT_SHARE:
            return False
        np.copyto(trust, np.minimum(trust + 1, MOST_TRUST), where=known & kept)
        np.subtract(trust, MISS, out=trust, where=known & ~kept)
        return True

    def _taken(self, end: int) -> Overlay | None:
        """The overlay, where there is one, which is there no more from the frame `end` on."""
        overlay, self._overlay = self._overlay, None
        if overlay is None:
            return None
        # Where the next one has an edge, too, it is new.
        self._edge[overlay != 0], self._since[overlay != 0], self._changed = _UNKNOWN, end, end
        edges = np.where(self._trust >= 0, overlay, np.int16(0))
        rows, columns = (np.flatnonzero(edges.any(axis=axes)) for axes in ((0, 2), (0, 1)))
        if self._first >= end or not len(rows):
            return None
        # Nothing is filled further from the edges than they are high: a bar reaches as far beyond its letters.
        high = int(rows[-1] - rows[0]) + STROKE_PX
        top, left = max(0, int(rows[0]) - high), max(0, int(columns[0]) - STROKE_PX)
        edges = edges[:, top : rows[-1] + high + 1, left : columns[-1] + STROKE_PX + 1]
        mask = _filled(edges, margin=MARGIN_PX if self._step == 1 else 1)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return None
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
        return Overlay(self._first, end, self._step, left + int(columns[0]), top + int(rows[0]), mask)


def _drawn(outline: NDArray[np.float32], size: tuple[int, int], reach: float) -> NDArray[np.bool_]:
    """What an outline (P, 2) encloses in a picture of `size` (W, H), bool (H, W), when it is drawn in, or out, to a share."""
    middle = outline.mean(axis=0)
    face = np.zeros(size[::-1], np.uint8)
    cv2.fillPoly(face, [np.round((middle + reach * (outline - middle)) * 16).astype(np.int32)], (1,), cv2.LINE_8, 4)
    return face > 0


def _filled(edges: NDArray[np.int16], *, margin: int) -> NDArray[np.bool_]:
    """What has these edges (2, h, w), bool (h, w): letters and drawings with what they enclose, and the bar behind them, with a margin of
    so many cells."""
    strokes = edges != 0
    levels, (across, down) = np.zeros(strokes.shape[1:], np.uint8), strokes.sum(axis=2)
    bar = np.flatnonzero((down > BAR_SHARE * strokes.any(axis=(0, 1)).sum()) & (across < LEAST_EITHER * down))
    letters = strokes.copy()
    for row in bar.tolist():
        letters[:, max(0, row - 2) : row + 3] = False  # with what is left of it beside
    whole = cv2.morphologyEx(letters.any(axis=0).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((STROKE_PX, STROKE_PX), np.uint8))
    count, parts = cv2.connectedComponents(whole)
    each = np.stack([np.bincount(parts[one], minlength=count) for one in letters])
    both = each.min(axis=0) >= LEAST_EITHER * each.sum(axis=0)
    levels[both[parts] & (parts > 0)] = 1
    rows = np.flatnonzero(levels.any(axis=1))
    if len(bar) and len(rows):
        columns = np.flatnonzero(levels.any(axis=0) | strokes[_DOWN, bar].any(axis=0))
        # Letters lie in the middle of it, so that one of its edges tells where the other is.
        top, bottom = min(bar[0], rows[0] + rows[-1] - bar[-1]), max(bar[-1], rows[0] + rows[-1] - bar[0])
        levels[max(0, top) : bottom + 1, columns[0] : columns[-1] + 1] = 1
    edge, _ = cv2.findContours(levels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(levels, [one for one in edge if cv2.contourArea(one) < MOST_HOLE * GRID_SIDE**2], -1, (1,), cv2.FILLED)
    return np.asarray(cv2.dilate(levels, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)) > 0)
