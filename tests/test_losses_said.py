"""What the output cannot hold of a video's pictures is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import draw_video

from lipdub import media
from lipdub.outcome import what_is_lost


@pytest.mark.parametrize(
    ("drawing", "kinds", "says"),
    [
        ({}, [], ""),
        ({"pix_fmt": "yuv420p10le"}, ["fewer-bits"], "have 10 bits a colour: the output has 8 by libx264"),
        ({"pix_fmt": "yuv420p10le", "tags": (9, 1, 9, 16)}, ["fewer-bits"], "10 bits a colour, high dynamic range: "),
        ({"pix_fmt": "yuv420p10le", "tags": (9, 1, 9, 18)}, ["fewer-bits"], "high dynamic range"),
        ({"pix_fmt": "yuv420p12le", "codec": "libx265", "options": {"x265-params": "log-level=error"}}, ["fewer-bits"], "12 bits"),
        ({"tags": (9, 1, 9, 16)}, [], ""),
        ({"options": {"x264-params": "tff=1"}}, ["interlaced"], "both fields stay woven"),
    ],
)
def test_what_is_lost_of_a_video_is_said(tmp_path: Path, drawing: dict[str, object], kinds: list[str], says: str) -> None:
    draw_video(tmp_path / "in.mp4", frames=4, **drawing)  # type: ignore[arg-type]
    found = what_is_lost(media.probe(tmp_path / "in.mp4"), media.encoder_for(tmp_path / "out.mp4", "libx264", crf=12))
    assert [warning.kind for warning in found] == kinds
    assert says in " ".join(warning.text for warning in found)
