"""Which of the person's own mouths a dub was drawn from: how many, how often it changes, and how far they reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipdub.choose import MOST_SHORT
from lipdub.faces.track import DUBBED
from lipdub.references.shapes import inner_opening
from lipdub.render import Scene


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PageUse:
    """page_s: float64 (N,), when the source shows the page that each frame of the output is drawn from; NaN where the mouth is painted or
    left alone. known: pages that there are. used: that are drawn from. switches: changes to a page that is not the one before's successor.
    short: share of the drawn frames whose mouth is to be further open than the page's by more than ``choose.MOST_SHORT``."""

    page_s: NDArray[np.float64]
    known: int
    used: int
    switches: int
    short: float

    @classmethod
    def of(cls, scene: Scene) -> PageUse:
        """Of the first speaker of a scene that is about to be drawn."""
        (speaker, *_), shown = scene.speakers, scene.shown
        track, chosen = speaker.track, speaker.choices.frames(0, len(scene.shown))
        drawn = (track.status[shown.source] == DUBBED) & (chosen.page >= 0)
        page, frame = chosen.page[drawn], track.pages.frame[chosen.page[drawn]]
        together = np.diff(np.flatnonzero(drawn)) == 1
        short = inner_opening(chosen.points[drawn, :40]) - inner_opening(track.pages.lips[page]) > MOST_SHORT
        page_s = np.full(len(shown), np.nan)
        page_s[drawn] = track.page_times_s[page]
        return cls(
            page_s, len(track.pages), len(np.unique(page)), int((together & (np.diff(page) != 0) & (np.diff(frame) != 1)).sum()),
            float(short.mean()) if len(short) else 0.0,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"known": self.known, "used": self.used, "switches": self.switches, "short": self.short, "page_s": self.page_s.tolist()}
