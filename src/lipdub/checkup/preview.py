"""A moment of a dub, to judge settings by before a long run: only the stretch around it is looked at, however long the film is."""

from __future__ import annotations

import json
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lipdub import media
from lipdub.atomic import write_whole
from lipdub.checkup.sheet import write_on
from lipdub.errors import OutputRefused
from lipdub.faces import crop
from lipdub.faces.detector import DetectorFactory, MediapipeDetector
from lipdub.media.planes import RgbPicture
from lipdub.options import DubOptions, FaceChoice, Mix
from lipdub.parts import parts_of, tempo_of
from lipdub.paste.mask import mask_of
from lipdub.pipeline import dub
from lipdub.records import DubReport, DubWarning, Warn
from lipdub.render import Scene
from lipdub.speech.lip_curves import LipCurves
from lipdub.stages import OnProgress
from lipdub.times import Range, written

AROUND_S = 5.0
"""So much before and after what is shown is looked at, too: mouths to draw from, and where the head moves."""
SHOWN_S = 0.6
"""Of a single moment so much before and after it is dubbed."""
PICTURE_PX, CELL_PX, GAP_PX, BACKGROUND = 486, 240, 6, 32
MASK_COLOUR, POINT_COLOUR, WANTED_COLOUR = (80, 160, 255), (255, 210, 60), (110, 255, 110)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What is cut out: the video, or the photo as it is, the speech and the options that dub it, and what of it is shown."""

    video: Path
    speech: Path
    options: DubOptions
    span: Range


@dataclass(frozen=True, slots=True)
class _Window:
    """The seconds that are looked at: `lasts_s` from `start_s` of the video on. A speech, spoken `tempo` times as fast, goes on in them
    from its own `heard_from_s` on. What is cut out lies in `folder`."""

    folder: Path
    start_s: Fraction
    lasts_s: float
    heard_from_s: Fraction
    tempo: Fraction

    def speech(self, sound: Path, name: str) -> str:
        """What is heard of a speech."""
        return self.sound(sound, name, self.heard_from_s * self.tempo, self.tempo)

    def sound(self, sound: Path, name: str, from_s: Fraction, tempo: Fraction = Fraction(1)) -> str:
        """What is heard of a sound from its own second `from_s` on."""
        media.sound_excerpt(sound, self.folder / name, start_s=from_s, seconds=self.lasts_s * float(tempo), tempo=tempo)
        return str(self.folder / name)

    def curves(self, curves: LipCurves) -> str | None:
        """A file of the curves in these seconds, None where they say nothing."""
        times_s = curves.times_s / float(self.tempo) - float(self.heard_from_s)
        near = (times_s >= 0) & (times_s <= self.lasts_s)
        rows = LipCurves(times_s[near], {name: curve[near] for name, curve in curves.curves.items()}).rows()
        moments = [row for row in rows if len(row) > 1]
        (self.folder / "lips.json").write_text(json.dumps({"moments": moments}))
        return str(self.folder / "lips.json") if moments else None

    def face(self, choice: FaceChoice | None) -> str | None:
        """A choice as it is made in these seconds. Raises OutputRefused: it names a place at another time."""
        if choice is None:
            return None
        if choice.number is not None or choice.picture is not None:
            return choice.picture or str(choice.number)
        (x, y), at_s = choice.place_px, choice.at_s - float(self.start_s)
        if not 0 <= at_s <= self.lasts_s:
            seen = f"{float(self.start_s):.1f} to {float(self.start_s) + self.lasts_s:.1f} s"
            raise OutputRefused(f"a preview looks at {seen} alone; name the face by a place then, not at {choice.at_s:g} s")
        return f"{x},{y}@{at_s:.6f}"


def preview(
    video: Path,
    speech: Path,
    out: Path,
    moment: Range | float,
    options: DubOptions,
    *,
    detectors: DetectorFactory = MediapipeDetector,
    on_progress: OnProgress | None = None,
) -> DubReport:
    """Write `out`: of a time in seconds a picture (source, result, what was found and what the mouth was drawn from), of a range a video.

    Mouths are those of the seconds around it, so a dub of the whole film, which knows more of them, may look better.

    Raises as `lipdub.dub`; OutputRefused, too: a picture of a range, or a video of a moment.
    """
    wants_picture = not isinstance(moment, Range)
    inputs = [video, speech, *map(Path, options.files)]
    warned: list[DubWarning] = []
    (media.check_picture if wants_picture else media.check_output)(out, inputs=inputs, force=options.force)
    span = moment if isinstance(moment, Range) else Range(max(0.0, moment - SHOWN_S), moment + SHOWN_S)
    with tempfile.TemporaryDirectory() as folder:
        cut = _stretch(video, speech, Path(folder), span, options, warned.append)
        if wants_picture:  # what makes a file of video is not for it
            cut = replace(cut, options=replace(cut.options, side_by_side=False, encoder="auto", credentials=None))
        dubbed = Path(folder) / "dubbed.mp4" if wants_picture else out
        found: list[_Explained] = []
        at_s = 0.0 if isinstance(moment, Range) else moment - span.start_s

        def keep(scene: Scene) -> None:
            if wants_picture:
                found.append(_explained(scene, at_s))

        report = dub(cut.video, cut.speech, dubbed, cut.options, detectors=detectors, span=cut.span, on_scene=keep, on_progress=on_progress)
        warnings = (*warned, *report.warnings)
        if wants_picture:
            sheet = _laid_out(found[0], _frame(dubbed, at_s), warnings)
            write_whole(out, media.encode_picture(sheet, out.suffix))
    return replace(report, video=str(video), speech=str(speech), output=str(out), options=options, warnings=warnings)


def _stretch(video: Path, speech: Path, folder: Path, span: Range, options: DubOptions, warn: Warn) -> _Stretch:
    """What has to be looked at to dub `span`. warn: told what a dub of the whole would be told of lengths and sounds."""
    info, offset_s = media.probe(video), Fraction(options.offset_ms, 1000)
    parts, tempo, start_s = parts_of(speech, options, warn), Fraction(1), Fraction(0)
    if options.fit == "stretch" and info.duration_s is not None:
        tempo = tempo_of(parts, info.duration_s - offset_s, warn)
    speech_s = max(part.sound.end_s for part in parts) / tempo + offset_s
    for shown, ends_s in ((video, info.duration_s), (speech, speech_s if info.is_still or options.fit == "speech" else None)):
        if ends_s is not None and span.start_s >= ends_s:
            raise OutputRefused(f"'{shown}' ends at {float(ends_s):.1f} s; give an earlier time than {span.start_s:g} s")
    if not info.is_still:
        start_s = media.key_frame_s(video, max(0.0, span.start_s - AROUND_S))
        video = media.excerpt(video, folder, seconds=span.end_s + AROUND_S - float(start_s), start_s=start_s)
        if any(part.face is not None and part.face.number is not None for part in parts):
            warn(DubWarning("faces-near", "faces are numbered by the seconds around alone; in the whole video a number may be another's"))
    lasts_s = span.end_s + AROUND_S - float(start_s)
    # The speech begins at `offset_s` of the film; from there on it is cut at a whole millisecond of the excerpt.
    window = _Window(folder, start_s, lasts_s, max(Fraction(0), Fraction(round(1000 * (start_s - offset_s)), 1000)), tempo)
    (first, *others), mix = parts, None if options.mix is None else Mix.of(options.mix)
    # Where no range reaches into the excerpt one behind its end says so.
    nowhere = f"{lasts_s + 1:.3f}-{lasts_s + 2:.3f}"
    asked = () if options.ranges is None else media.ranges_of(options.ranges)
    ranges = ";".join(written(one, earlier_s=float(start_s)) or nowhere for one in asked) or None
    here = replace(
        options, fit="longest" if options.fit == "stretch" else options.fit, force=True,
        copy_outside=False, ranges=ranges,
        offset_ms=round(1000 * (window.heard_from_s + offset_s - start_s)),
        driver=None if options.driver is None else window.speech(first.heard, "driver.wav"),
        lips=None if first.curves is None else window.curves(first.curves),
        face=window.face(first.face),
        also=";".join(f"{window.face(one.face)}={window.speech(one.audible, f'also{n}.wav')}" for n, one in enumerate(others)) or None,
        mix=None if mix is None else f"{window.sound(Path(mix.path), 'mix.wav', start_s)}:{mix.gain_db:g}",
    )  # fmt: skip
    begin_s = max(0.0, span.start_s - float(start_s))
    return _Stretch(video, Path(window.speech(first.audible, "speech.wav")), here, Range(begin_s, span.end_s - float(start_s)))


def _frame(video: Path, at_s: float) -> NDArray[np.uint8]:
    """The frame that is shown at `at_s`, uint8 (H, W, 3); the last one where there is none later."""
    found: NDArray[np.uint8] | None = None
    with closing(media.read_frames(video)) as chunks:
        for chunk in chunks:
            for pixels, time_s in zip(chunk.pixels, chunk.times_s.tolist(), strict=True):
                if found is not None and time_s > at_s + 1e-6:
                    return found
                found = pixels
    assert found is not None
    return found


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Explained:
    """A source frame, and its face close by in `cells`: with the mask and the lips that were found, the page that the mouth is drawn from
    with its lips, and where they are to lie. similarity: frame-to-unit (4,); None where the frame is passed through."""

    frame: NDArray[np.uint8]
    cells: list[NDArray[np.uint8]]
    similarity: NDArray[np.float64] | None


def _explained(scene: Scene, at_s: float) -> _Explained:
    """What is known of the frame that is shown at `at_s` of the output before it is drawn."""
    row, _ = scene.shown.within(Range(at_s, at_s + 1e-3))
    source, speaker = int(scene.shown.source[row]), scene.speakers[0]
    track = speaker.track
    with closing(media.play(scene.video, track.pts, scene.shown.part(row, row + 1))) as frames:
        chunk, _ = next(frames)
    picture = chunk.picture(0)
    whole = picture.rgb(0, 0, picture.width, picture.height)
    if track.person[source] < 0:
        return _Explained(whole, [], None)
    face = crop.take_one(picture, track.similarity[source], CELL_PX, sharp=True)
    chosen = speaker.choices.frames(row, row + 1)
    page = int(chosen.page[0]) if chosen.page[0] >= 0 else int(track.reference[source])
    reference = track.references.get(page)
    drawn_from = np.asarray(cv2.resize(reference.pixels if reference.detail is None else reference.detail, (CELL_PX, CELL_PX)), np.uint8)
    mask = mask_of(track.outline[source].astype(np.float32) * scene.spec.crop.size, scene.spec.crop)
    mask = np.asarray(cv2.resize(mask, (CELL_PX, CELL_PX)), np.float32)[..., None]
    masked = np.asarray((1 - 0.4 * mask) * face + 0.4 * mask * np.array(MASK_COLOUR), np.uint8)
    wanted = face.copy()
    _dots(masked, track.lips[source].astype(np.float32), POINT_COLOUR)
    _dots(drawn_from, track.pages.lips[page], POINT_COLOUR)
    painted = chosen.page[0] < 0
    if not painted:
        _dots(wanted, chosen.points[0, :40], WANTED_COLOUR)
    write_on(masked, "mask, lips found", (6, 18))
    write_on(drawn_from, f"{'painted from' if painted else 'drawn from'} page {page}", (6, 18))
    write_on(wanted, "painted by the network" if painted else "lips wanted", (6, 18))
    return _Explained(whole, [masked, drawn_from, wanted], track.similarity[source])


def _dots(picture: NDArray[np.uint8], points: NDArray[np.float32], colour: tuple[int, int, int]) -> None:
    for x, y in np.round(points * CELL_PX).astype(int).tolist():
        cv2.circle(picture, (x, y), 1, colour, -1, cv2.LINE_AA)


def _laid_out(source: _Explained, after: NDArray[np.uint8], warnings: tuple[DubWarning, ...]) -> NDArray[np.uint8]:
    """One picture: before beside after, the face below, then what has to be known of it."""
    before, cells = source.frame, [*source.cells]
    if source.similarity is not None:
        cells.append(crop.take_one(RgbPicture(after), source.similarity, CELL_PX, sharp=True))
        write_on(cells[-1], "dubbed", (6, 18))
    height = round(PICTURE_PX * before.shape[0] / before.shape[1])
    shown = [np.asarray(cv2.resize(one, (PICTURE_PX, height), interpolation=cv2.INTER_AREA), np.uint8) for one in (before, after)]
    for picture, name in zip(shown, ("source", "dubbed"), strict=True):
        write_on(picture, name, (6, 18))
    lines = [warning.line for warning in warnings]
    below = (CELL_PX + GAP_PX) * bool(cells)
    sheet = np.full((height + 2 * GAP_PX + below + 22 * len(lines), 2 * PICTURE_PX + 3 * GAP_PX, 3), BACKGROUND, np.uint8)
    for column, picture in enumerate(shown):
        x = GAP_PX + column * (PICTURE_PX + GAP_PX)
        sheet[GAP_PX : GAP_PX + height, x : x + PICTURE_PX] = picture
    for column, cell in enumerate(cells):
        x = GAP_PX + column * (CELL_PX + GAP_PX)
        sheet[height + 2 * GAP_PX : height + 2 * GAP_PX + CELL_PX, x : x + CELL_PX] = cell
    for row, line in enumerate(lines):
        write_on(sheet, line[:140], (GAP_PX, height + 2 * GAP_PX + below + 16 + 22 * row))
    return sheet
