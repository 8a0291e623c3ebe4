"""How colours are coded: matrix, range, and the tags that an output carries."""

from __future__ import annotations

from av.video.reformatter import Interpolation

from lipdub.media.planes import Depth, YuvColor
from lipdub.records import ColorTags, VideoInfo

UNSPECIFIED = 2
LIMITED, FULL = 1, 2
SWS_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""AVColorSpace to the swscale matrix that converts it; the others (unspecified, RGB, YCgCo, ICtCp) have none."""
_SHARES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
"""Shares of red and blue in luma by swscale matrix (ITU-T H.273, table 4)."""
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""swscale's quick way darkens a picture by more than one level each time; this one is exact to rounding."""


def sws_matrix(matrix: int, shown_height: int) -> int:
    """swscale's code for an AVColorSpace; untagged pictures are BT.709 from 720 lines on and BT.601 below."""
    return SWS_MATRIX.get(matrix, 1 if shown_height >= 720 else 5)


def yuv_color(matrix: int, *, full: bool, shown_height: int, depth: Depth) -> YuvColor:
    """How planes of that AVColorSpace and depth make colours."""
    red, blue = _SHARES[sws_matrix(matrix, shown_height)]
    return YuvColor(red, blue, full, depth)


def written_color(info: VideoInfo, *, padded: bool) -> ColorTags:
    """The tags that the output carries: those of the source, where H.264 in YUV can carry them."""
    color = info.color
    if info.is_still or color.matrix == 0 or (padded and color.matrix not in SWS_MATRIX):
        matrix = 1 if sws_matrix(UNSPECIFIED, info.height) == 1 else 6
        return ColorTags(matrix, LIMITED, matrix, matrix)
    return color
