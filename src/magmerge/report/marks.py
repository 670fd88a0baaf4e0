"""The shapes and colours of marks, the same in a plot and in its legend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from magmerge.report.svg import COLOURS

DASH = ((-1.0, 0.28), (1.0, 0.28), (1.0, -0.28), (-1.0, -0.28), (-1.0, 0.28))
SHAPES: dict[str, Any] = {
    "circle": "o",
    "square": "s",
    "up": "^",
    "diamond": "D",
    "plus": "P",
    "down": "v",
    "cross": "X",
    "dash": DASH,
}
"""matplotlib's marker of each shape."""
SCALES = {"circle": 1.0, "square": 0.9, "diamond": 0.85}
"""Marks of one size cover about one area; 1.15 for all others."""
EXPERT_SHAPES = ("circle", "square", "up", "diamond", "plus", "down", "cross")


@dataclass(frozen=True, slots=True)
class Mark:
    """One kind of mark: what it stands for, its shape, colour and whether it is filled.

    The colour is one of the page's by its name, or any other as #rrggbb.
    """

    meaning: str
    shape: str
    colour: str
    filled: bool = True

    @property
    def paint(self) -> str:
        """The colour as matplotlib takes it."""
        return COLOURS.get(self.colour, self.colour)

    def look(self, size: float, *, rim: bool = True) -> dict[str, Any]:
        """matplotlib's words for a mark of `size` points; `rim` parts it from its neighbours."""
        paper = COLOURS["paper"]
        return {
            "marker": SHAPES[self.shape],
            "markersize": size * SCALES.get(self.shape, 1.15),
            "markerfacecolor": self.paint if self.filled else paper,
            "markeredgecolor": paper if self.filled else self.paint,
            "markeredgewidth": min(0.7, size / 10) * rim if self.filled else min(1.3, size / 4),
        }

    @property
    def points(self) -> str:
        """The corners for an SVG polygon of twelve units' width, whose y grows downwards."""
        from matplotlib.markers import MarkerStyle

        style = MarkerStyle(SHAPES[self.shape])
        corners: Any = style.get_path().transformed(style.get_transform()).to_polygons()[0]
        scale = 9 * SCALES.get(self.shape, 1.15)
        return " ".join(f"{6 + scale * x:.2f},{6 - scale * y:.2f}" for x, y in corners)


def expert_marks(names: tuple[str, ...]) -> tuple[Mark, ...]:
    """One mark for each expert; more experts than shapes share one, and tooltips name them."""
    if len(names) > len(EXPERT_SHAPES):
        return tuple(Mark(name, "dash", "series-1") for name in names)
    return tuple(
        Mark(name, shape, f"series-{1 + place % 4}")
        for place, (name, shape) in enumerate(zip(names, EXPERT_SHAPES, strict=False))
    )
