"""The shapes and colours of marks, the same in a plot and in its legend."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

Points = tuple[tuple[float, float], ...]


def _polygon(corners: int, radius: float = 1.0, turn: float = 0.0) -> Points:
    angles = [2 * pi * (place + turn) / corners for place in range(corners)]
    return tuple((round(radius * sin(a), 3), round(radius * cos(a), 3)) for a in angles)


def _cross(turn: float, arm: float = 0.34, reach: float = 1.15) -> Points:
    quarter = [(-arm, reach), (arm, reach), (arm, arm)]
    turns = [turn - place * pi / 2 for place in range(4)]
    return tuple(
        (round(x * cos(t) - y * sin(t), 3), round(x * sin(t) + y * cos(t), 3))
        for t in turns
        for x, y in quarter
    )


SHAPES: dict[str, Points] = {
    "circle": _polygon(24),
    "square": _polygon(4, 1.22, 0.5),
    "up": _polygon(3, 1.35),
    "diamond": _polygon(4, 1.25),
    "plus": _cross(0.0),
    "down": _polygon(3, 1.35, 0.5),
    "cross": _cross(pi / 4),
    "dash": ((-1, 0.28), (1, 0.28), (1, -0.28), (-1, -0.28)),
}
"""Corners of each mark, all of about the circle's area; y grows upwards."""
EXPERT_SHAPES = ("circle", "square", "up", "diamond", "plus", "down", "cross")


def reach(shape: str) -> float:
    """How far the mark's corners are from its middle, along an axis; 1 for the circle."""
    return max(abs(end) for point in SHAPES[shape] for end in point)


@dataclass(frozen=True, slots=True)
class Mark:
    """One kind of mark: what it stands for, its shape, colour and whether it is filled."""

    meaning: str
    shape: str
    colour: str
    filled: bool = True

    @property
    def points(self) -> str:
        """The corners for an SVG polygon of twelve units' width, whose y grows downwards."""
        return " ".join(f"{6 + 4.2 * x:.2f},{6 - 4.2 * y:.2f}" for x, y in SHAPES[self.shape])


def expert_marks(names: tuple[str, ...]) -> tuple[Mark, ...]:
    """One mark for each expert; more experts than shapes share one, and tooltips name them."""
    if len(names) > len(EXPERT_SHAPES):
        return tuple(Mark(name, "dash", "series-1") for name in names)
    return tuple(
        Mark(name, shape, f"series-{1 + place % 4}")
        for place, (name, shape) in enumerate(zip(names, EXPERT_SHAPES, strict=False))
    )
