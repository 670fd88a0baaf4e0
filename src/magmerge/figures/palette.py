"""Colours and marks, told apart by colour-blind readers and in print without colours."""

from __future__ import annotations

from dataclasses import dataclass

from magmerge.figures.document import NONE
from magmerge.figures.parts import PARTS, Part
from magmerge.report.marks import EXPERT_SHAPES

PAPER, INK, MUTED, RULE, BAND = "#ffffff", "#1b1d21", "#5d636c", "#e3e5e8", "#f5f6f7"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#c94f00", "#007d5c", "#a84f85"
GOLD, SKY = "#8a6d00", "#2f97cf"
"""The report's colours on paper, and two more; each has a contrast of 3 to white or more."""


@dataclass(frozen=True, slots=True)
class Look:
    """A colour, the mark at each point, and the dashes of the line; None: a whole line."""

    colour: str
    shape: str
    dashes: tuple[float, float] | None = None


_LOOKS = {
    NONE: Look(MUTED, "diamond", (4, 2.5)),
    "wsc": Look(BLUE, "circle"),
    "fsc": Look(ORANGE, "square"),
    "dsc": Look(GREEN, "up"),
}
_OTHERS = (PURPLE, GOLD, SKY)
PART_LOOKS: dict[Part, Look] = {
    part: Look(colour, shape)
    for part, colour, shape in zip(
        PARTS,
        (BLUE, ORANGE, GREEN, BLUE, PURPLE, GOLD, SKY, MUTED),
        ("circle", "square", "up", "plus", "diamond", "down", "dash", "cross"),
        strict=True,
    )
}


def look_of(calibration: str, others: tuple[str, ...] = ()) -> Look:
    """The look of a line; `others` are the calibrations that have no look of their own."""
    known = _LOOKS.get(calibration)
    if known is not None:
        return known
    place = others.index(calibration) if calibration in others else 0
    return Look(_OTHERS[place % len(_OTHERS)], EXPERT_SHAPES[(3 + place) % len(EXPERT_SHAPES)])


def spoken_calibration(name: str) -> str:
    """What a figure calls it."""
    return name.upper() if name in _LOOKS and name != NONE else name
