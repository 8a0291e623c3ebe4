"""People who were taken for one because a dissolve leads from one to the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipdub.references.pages import Pages

ALIKE_AFTER_COVER = 0.75
"""Before and after a cover two faces are the same person where they correlate by this much: the place is the same."""


def people_parted(
    pages: Pages,
    faces: NDArray[np.float32],
    near: dict[int, NDArray[np.int64]],
    person: NDArray[np.int32],
    covered: NDArray[np.bool_],
    reach: int,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Who is on each frame, int32 (N,), when people who were taken for one across a cover are told apart, and which frames are covered
    then, bool (N,).

    faces: float32 (P, pixels), of each page the upper face, of length 1. near: of each person int64 (n, 2), a frame that is no page, and
    that of the page it is nearest to. person: int32 (N,), covered: bool (N,), as found. reach: frames of a dissolve before and after what
    was found of it.
    """
    who, hidden, fresh = person.copy(), covered.copy(), int(person.max(initial=-1)) + 1
    for one in np.unique(pages.person).tolist():
        mine = np.flatnonzero(person == one)
        known: list[tuple[int, NDArray[np.float32]]] = []
        before: tuple[int, int] | None = None  # who it was until which frame
        for stretch in np.split(mine, np.flatnonzero(np.diff(covered[mine].astype(np.int8)) != 0) + 1):
            # What is short between two covers may be a mixture itself.
            if covered[stretch[0]] or len(stretch) < 2 * reach:
                continue
            # What became no page looked like one that was there.
            shown = near[one][(near[one][:, 0] >= stretch[0]) & (near[one][:, 0] <= stretch[-1]), 1]
            of = ((pages.frame >= stretch[0]) & (pages.frame <= stretch[-1])) | np.isin(pages.frame, shown)
            here = faces[(pages.person == one) & of]
            if len(here) == 0:  # its pages had to go
                number = one if before is None else before[0]
            else:
                alike = [number for number, others in known if float((here @ others.T).max(initial=-1)) > ALIKE_AFTER_COVER]
                number = alike[0] if alike else fresh if known else one
                fresh += number == fresh
                known.append((number, here))
            if before is None or before[0] == number:
                who[stretch] = number
            else:
                mixed = slice(before[1] - reach, stretch[0] + reach)
                hidden[mixed] |= person[mixed] == one
                who[mine[mine >= stretch[0]]] = number
            before = number, int(stretch[-1]) + 1
    return who, hidden
