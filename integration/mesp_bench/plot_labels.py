"""Short texts beside the points of a plot, placed so that none covers a curve, a marker or another text.

A panel says what it would like to have labelled, the most important first; when the layout is settled each text tries
the four corners of its point and is left out if all of them are taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

    FloatArray = npt.NDArray[np.float64]

#: Gap between a point and its text, in points.
_GAP = 5.0

#: Corners to try, as signs of (right, up).
_ABOVE_FIRST = ((1, 1), (-1, 1), (1, -1), (-1, -1))
_BELOW_FIRST = ((-1, -1), (1, -1), (1, 1), (-1, 1))


@dataclass(frozen=True, slots=True)
class _Wish:
    text: str
    at: tuple[float, float]
    colour: Any
    size: float
    bold: bool
    below: bool


@dataclass(slots=True)
class Labels:
    """The wishes of one panel, and what they must not cover."""

    axes: Axes
    _wishes: list[_Wish] = field(default_factory=list)
    _lines: list[Sequence[tuple[float, float]]] = field(default_factory=list)
    _artists: list[Artist] = field(default_factory=list)

    def avoid(self, line: Sequence[tuple[float, float]], *artists: Artist) -> None:
        """Keep texts off this polyline, in data coordinates, and off these artists."""
        self._lines.append(line)
        self._artists += artists

    def want(
        self,
        text: str,
        at: tuple[float, float],
        colour: Any,
        *,
        size: float = 8.0,
        bold: bool = False,
        below: bool = False,
    ) -> None:
        """Label a point in data coordinates; `below` tries its lower corners first."""
        self._wishes.append(_Wish(text, at, colour, size, bold, below))

    def place(self) -> None:
        """Draw the texts that find room. The figure's layout must be settled."""
        room = self.axes.get_window_extent()
        taken = self._obstacles()
        for wish in self._wishes:
            corners = _BELOW_FIRST if wish.below else _ABOVE_FIRST
            for right, up in corners:
                text = self.axes.annotate(
                    wish.text,
                    wish.at,
                    xytext=(right * _GAP, up * _GAP),
                    textcoords="offset points",
                    ha="left" if right > 0 else "right",
                    va="bottom" if up > 0 else "top",
                    color=wish.colour,
                    fontsize=wish.size,
                    fontweight="bold" if wish.bold else "normal",
                    zorder=7,
                )
                text.set_in_layout(False)
                box = text.get_window_extent()
                inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
                if inside and not _overlaps(box.padded(2), taken):
                    taken = np.vstack((taken, box.extents))
                    break
                text.remove()

    def _obstacles(self) -> FloatArray:
        """Extents in pixels, (boxes, 4): small boxes along the lines, the artists and the legend."""
        boxes = [np.empty((0, 4))]
        for line in self._lines:
            pixels = self.axes.transData.transform(np.asarray(line, np.float64))
            for start, end in pairwise(pixels):
                along = np.linspace(start, end, max(int(np.hypot(*(end - start)) / 4), 1) + 1)
                boxes.append(np.hstack((along - 2, along + 2)))
        legend = self.axes.get_legend()
        boxes += [np.array([artist.get_window_extent().extents]) for artist in (*self._artists, legend) if artist]
        return np.vstack(boxes)


def _overlaps(box: Bbox, others: FloatArray) -> bool:
    left, bottom, right, top = others.T
    return bool(np.any((box.x0 < right) & (left < box.x1) & (box.y0 < top) & (bottom < box.y1)))
