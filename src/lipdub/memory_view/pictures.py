"""The pictures of a look into the memory: mouths of the slots, usage, address over time, slots against phonemes. uint8 (H, W, 3) RGB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub.memory_view.usage import Usage
from lipdub.phonetics.alignment import Alignment
from lipdub.phonetics.classes import CLASSES, to_ascii

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

PAPER: Final[Colour] = (24, 24, 28)
INK: Final[Colour] = (230, 230, 230)
FAINT: Final[Colour] = (120, 120, 128)
ACCENT: Final[Colour] = (255, 176, 60)
GAP_PX: Final = 6
MOUTH_PX: Final = (112, 90)
"""Width and height of a mouth."""
MOUTH_BOX: Final = (0.27, 0.73, 0.49, 0.86)
"""What of the unit crop a mouth shows: x0, x1, y0, y1."""
LABEL_PX: Final = 15
MARGIN_PX: Final = 104
"""Left of the tracks, for their names."""
PX_PER_S: Final = 220
MOUTH_EVERY_PX: Final = 74
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX


def mouth(crop: Picture, width: int = MOUTH_PX[0]) -> Picture:
    """The mouth of an aligned crop (S, S, 3), `width` px wide."""
    x0, x1, y0, y1 = (round(edge * len(crop)) for edge in MOUTH_BOX)
    return np.asarray(
        cv2.resize(crop[y0:y1, x0:x1], (width, round(width * MOUTH_PX[1] / MOUTH_PX[0])), interpolation=cv2.INTER_CUBIC), np.uint8
    )


def slot_grid(crops: NDArray[np.uint8], usage: Usage, opening: NDArray[np.float64], rest: Picture, title: str) -> Picture:
    """The mouths of all slots, from closed to open, each with its number and share; unused ones grey. First the mouth at rest.

    crops: uint8 (S, size, size, 3). opening: float64 (S,), NaN where it could not be measured (those come last).
    """
    columns = min(12, len(crops) + 1)
    width, height = MOUTH_PX[0] + GAP_PX, MOUTH_PX[1] + LABEL_PX + GAP_PX
    rows = -(-(len(crops) + 1) // columns)
    picture = _paper(max(columns * width, _text_px(title)) + GAP_PX, rows * height + 2 * LABEL_PX + GAP_PX)
    _write(picture, title, GAP_PX, LABEL_PX, INK)
    for place, slot in enumerate([-1, *np.argsort(opening, kind="stable").tolist()]):
        row, column = divmod(place, columns)
        x, y = GAP_PX + column * width, 2 * LABEL_PX + row * height
        cell = mouth(rest if slot < 0 else crops[slot])
        used = slot < 0 or bool(usage.used[slot])
        if not used:
            cell = _greyed(cell)
        picture[y : y + MOUTH_PX[1], x : x + MOUTH_PX[0]] = cell
        label = "at rest" if slot < 0 else f"{slot}  {100 * usage.share[slot]:.1f}%"
        _write(picture, label, x + 2, y + MOUTH_PX[1] + 11, ACCENT if slot < 0 else INK if used else FAINT)
    return picture


def usage_bars(usage: Usage, title: str) -> Picture:
    """Share of each slot, largest first, as bars; a line where an even share would lie, a curve of the sum."""
    slots, height = len(usage.share), 220
    bar = max(6, min(24, 1400 // slots))
    order = np.argsort(-usage.share, kind="stable")
    picture = _paper(max(MARGIN_PX + slots * bar, _text_px(title)) + 2 * GAP_PX, height + 5 * LABEL_PX)
    _write(picture, title, GAP_PX, LABEL_PX, INK)
    top, bottom = 2 * LABEL_PX, 2 * LABEL_PX + height
    scale = height / max(float(usage.share.max()), 1.5 / slots)
    for place, slot in enumerate(order):
        x = MARGIN_PX + place * bar
        y = bottom - round(float(usage.share[slot]) * scale)
        cv2.rectangle(picture, (x + 1, y), (x + bar - 2, bottom), ACCENT if usage.used[slot] else FAINT, -1)
        if bar >= 14 and (bar >= 20 or place % 2 == 0):
            _write(picture, str(slot), x, bottom + 12, INK if usage.used[slot] else FAINT, 0.3)
    even = bottom - round(scale / slots)
    cv2.line(picture, (MARGIN_PX, even), (MARGIN_PX + slots * bar, even), INK, 1)
    _write(picture, f"even {100 / slots:.1f}%", GAP_PX, even + 4, INK)
    _write(picture, f"most {100 * usage.share.max():.1f}%", GAP_PX, top + 10, INK)
    sums = np.cumsum(usage.share[order])
    points = [[MARGIN_PX + round((place + 0.5) * bar), round(bottom - height * float(total))] for place, total in enumerate(sums)]
    cv2.polylines(picture, [np.array(points, np.int32)], False, (110, 190, 255), 1, cv2.LINE_AA)
    _write(
        picture,
        "bars: mean address, largest first (grey: never twice an even share); curve: their sum, 0 to 100%",
        GAP_PX,
        bottom + 32,
        FAINT,
    )
    return picture


def address_track(
    *,
    times_s: NDArray[np.float64],
    sound: NDArray[np.float32],
    address: NDArray[np.float32],
    order: NDArray[np.int64],
    mouths_s: NDArray[np.float64],
    mouths: NDArray[np.uint8],
    opening: NDArray[np.float64],
    alignment: Alignment | None,
    title: str,
) -> Picture:
    """A stretch of speech: mel on top, phonemes where they are known, address below (slots in `order`, the first at the bottom), the
    opening that the slots' mouths and their shares amount to, and the mouths that are drawn.

    times_s (N,), evenly spaced; sound (N, bands), mel columns at these times; address (N, S); opening (N,), NaN where unknown;
    mouths_s (M,); mouths (M, size, size, 3).
    """
    start_s, end_s = float(times_s[0]), float(times_s[-1] + (times_s[1] - times_s[0] if len(times_s) > 1 else 0.02))
    width = max(1, round((end_s - start_s) * PX_PER_S))
    slot_px = max(3, min(16, 320 // address.shape[1]))
    mouth_height = round(MOUTH_EVERY_PX * MOUTH_PX[1] / MOUTH_PX[0])
    heights = {
        "mel": 110,
        "phonemes": 18 if alignment is not None else 0,
        "address": slot_px * address.shape[1],
        "opening": 70,
        "mouths": mouth_height,
    }
    tops, y = {}, 2 * LABEL_PX
    for name, height in heights.items():
        tops[name] = y
        y += height + (GAP_PX if height else 0)
    picture = _paper(max(MARGIN_PX + width, _text_px(title)) + GAP_PX, y + 2 * LABEL_PX)
    _write(picture, title, GAP_PX, LABEL_PX, INK)
    for name, height in heights.items():
        if height:
            _write(picture, {"address": "slots", "mel": "sound"}.get(name, name), GAP_PX, tops[name] + 12, INK)

    def place(values: NDArray[np.float64], name: str, palette: int) -> None:
        coloured = _coloured(np.asarray(values, np.float64), palette)
        large = cv2.resize(coloured, (width, heights[name]), interpolation=cv2.INTER_NEAREST)
        picture[tops[name] : tops[name] + heights[name], MARGIN_PX : MARGIN_PX + width] = large

    def x_of(time_s: float) -> int:
        return MARGIN_PX + round((time_s - start_s) * PX_PER_S)

    place((sound.T[::-1] + 4.0) / 8.0, "mel", cv2.COLORMAP_MAGMA)
    # The root shows small shares, too: a soft address has nothing else.
    shares = np.sqrt(address[:, order].T[::-1].astype(np.float64))
    place(shares / max(float(shares.max()), 1e-9), "address", cv2.COLORMAP_INFERNO)
    _write(picture, "open mouth", GAP_PX, tops["address"] + 26, FAINT)
    _write(picture, "closed mouth", GAP_PX, tops["address"] + heights["address"] - 4, FAINT)
    if alignment is not None:
        _phonemes(picture, alignment, (start_s, end_s), x_of, (tops["phonemes"], tops["address"] + heights["address"]))
    _curve(picture, [x_of(float(time)) for time in times_s], opening, tops["opening"], heights["opening"])
    _write(picture, "by the slots", GAP_PX, tops["opening"] + 26, FAINT)
    for time_s, crop in zip(mouths_s, mouths, strict=True):
        cell = mouth(crop, MOUTH_EVERY_PX - 2)
        left = x_of(float(time_s)) - cell.shape[1] // 2
        low, high = max(left, MARGIN_PX), min(left + cell.shape[1], MARGIN_PX + width)
        if high > low:
            picture[tops["mouths"] : tops["mouths"] + len(cell), low:high] = cell[:, low - left : high - left]
    for second in np.arange(np.ceil(start_s * 2) / 2, end_s, 0.5):
        cv2.line(picture, (x_of(float(second)), y - GAP_PX), (x_of(float(second)), y), FAINT, 1)
        _write(picture, f"{second:.1f} s", x_of(float(second)) - 12, y + 12, FAINT)
    return picture


def phoneme_matrix(
    matrix: NDArray[np.float64],
    windows: NDArray[np.int64],
    order: NDArray[np.int64],
    faces: dict[int, Picture],
    title: str,
    notes: Sequence[str],
) -> Picture:
    """Mean address of each phoneme class over the speech's own mean, and the mouth drawn for it.

    matrix: (classes, S); windows: (classes,), how many each; order: of the slots; faces: class to crop (size, size, 3).
    """
    present = [kind for kind in range(len(CLASSES)) if windows[kind] > 0]
    slot_px = max(6, min(24, 1200 // matrix.shape[1]))
    left = MARGIN_PX + 56 + MOUTH_PX[0] + GAP_PX
    width = max(left + slot_px * matrix.shape[1], *(_text_px(line) for line in (title, *notes))) + 2 * GAP_PX
    row_px = MOUTH_PX[1] + 3
    picture = _paper(width, (3 + len(notes)) * LABEL_PX + row_px * len(present) + GAP_PX)
    for number, line in enumerate((title, *notes)):
        _write(picture, line, GAP_PX, (1 + number) * LABEL_PX, INK if number == 0 else FAINT)
    mean = np.nansum(matrix[present] * windows[present][:, None], axis=0) / windows[present].sum()
    top = (2 + len(notes)) * LABEL_PX
    for row, kind in enumerate(present):
        y = top + row * row_px
        _write(picture, CLASSES[kind], GAP_PX, y + row_px // 2, INK)
        _write(picture, f"{windows[kind]} windows", GAP_PX, y + row_px // 2 + 14, FAINT)
        if kind in faces:
            picture[y : y + MOUTH_PX[1], MARGIN_PX + 50 : MARGIN_PX + 50 + MOUTH_PX[0]] = mouth(faces[kind])
        # Twice and half the usual share look equally far from it.
        ratio = np.log2((matrix[kind, order] + 1e-6) / (mean[order] + 1e-6))
        cells = _diverging(ratio[np.newaxis] / 3.0)
        large = cv2.resize(cells, (slot_px * matrix.shape[1], MOUTH_PX[1]), interpolation=cv2.INTER_NEAREST)
        picture[y : y + MOUTH_PX[1], left : left + large.shape[1]] = large
    _write(
        picture,
        "slots, from closed to open; white: their usual share, red: up to 8 times more, blue: less",
        left,
        top + row_px * len(present) + 10,
        FAINT,
    )
    return picture


def _phonemes(picture: Picture, alignment: Alignment, span_s: tuple[float, float], x_of: object, rows: tuple[int, int]) -> None:
    """Names and borders of the phonemes within `span_s`; the borders go down through all `rows` (top, bottom)."""
    assert callable(x_of)
    for phoneme in alignment:
        if phoneme.end_s <= span_s[0] or phoneme.start_s >= span_s[1]:
            continue
        left, right = x_of(max(phoneme.start_s, span_s[0])), x_of(min(phoneme.end_s, span_s[1]))
        for x in (left, right):
            cv2.line(picture, (x, rows[0]), (x, rows[0] + 18), FAINT, 1)
            picture[rows[0] + 18 : rows[1] : 4, min(x, picture.shape[1] - 1)] = FAINT
        name = to_ascii(phoneme.symbol)
        bilabial = CLASSES[phoneme.kind] == "bilabial"
        _write(picture, name, (left + right - _text_px(name)) // 2, rows[0] + 13, ACCENT if bilabial else INK)


def _curve(picture: Picture, xs: Sequence[int], values: NDArray[np.float64], top: int, height: int) -> None:
    """`values` over `xs`, scaled to their largest; nothing where they are NaN."""
    known = np.isfinite(values)
    if not known.any():
        return
    scale = (height - 4) / max(float(values[known].max()), 1e-6)
    points = np.array(
        [[x, top + height - 2 - round(value * scale)] for x, value in zip(xs, np.where(known, values, 0.0), strict=True)], np.int32
    )
    for first, second in zip(np.flatnonzero(known[:-1] & known[1:]), np.flatnonzero(known[:-1] & known[1:]) + 1, strict=True):
        cv2.line(picture, points[first].tolist(), points[second].tolist(), (110, 190, 255), 1, cv2.LINE_AA)


def _paper(width: int, height: int) -> Picture:
    return np.full((height, width, 3), PAPER, np.uint8)


def _write(picture: Picture, text: str, x: int, y: int, colour: Colour, size: float = 0.38) -> None:
    """One line of text; its base line begins at (x, y)."""
    plain = text.encode("ascii", errors="replace").decode()
    cv2.putText(picture, plain, (int(x), int(y)), _FONT, size, colour, 1, cv2.LINE_AA)


def _text_px(text: str) -> int:
    """Width of a line that `_write` writes."""
    plain = text.encode("ascii", errors="replace").decode()
    return int(cv2.getTextSize(plain, _FONT, 0.38, 1)[0][0])


def _coloured(values: NDArray[np.float64], palette: int) -> Picture:
    """Values in [0, 1] (h, w) in the colours of one of OpenCV's palettes."""
    levels = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.asarray(cv2.applyColorMap(levels, palette), np.uint8)[:, :, ::-1])


def _diverging(values: NDArray[np.float64]) -> Picture:
    """Values in [-1, 1] (h, w) from blue over white to red."""
    amount = np.clip(np.nan_to_num(values), -1, 1)[..., np.newaxis]
    white, blue, red = (np.array(colour, np.float64) for colour in ((240, 240, 240), (30, 60, 190), (190, 30, 30)))
    return np.rint(white + np.abs(amount) * (np.where(amount < 0, blue, red) - white)).astype(np.uint8)


def _greyed(picture: Picture) -> Picture:
    grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32) * 0.45 + 30
    return np.repeat(grey.astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
