"""The axes of plots: layers in model order, and factors on a logarithmic scale."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from magmerge.core.errors import printable
from magmerge.report.svg import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCK = re.compile(r"(?s)(.*?)(?:^|[._])([0-9]{1,9})(?=[._]|$)")
LETTER = 7.2
"""Pixels that a letter of a label takes at most, on average."""
LONGEST = 18
SHARED = 0.9
"""Part of the numbered layers that what the numbers count must be common to."""
EVENLY = 6.5
"""Range of factors up to which they are counted in even steps, beyond in multiples."""
STEPS = (1, 2, 2.5, 5, 10)
LIMITS = 1e-9, 1e9
"""Factors beyond are drawn at these."""
STRIDES = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)

Label = tuple[float, str]
"""Where a tick's label stands, and its text."""


class Block(NamedTuple):
    """Neighbouring layers of one block: the first place, the one after the last, and its label."""

    start: int
    stop: int
    stem: str
    label: str

    @property
    def tick(self) -> Label:
        """Its label below its middle, in letters that every font has."""
        text = printable(self.label).encode("ascii", "replace").decode()
        short = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
        return (self.start + self.stop - 1) / 2, short


def blocks_of(names: Sequence[str]) -> tuple[Block, ...]:
    """Runs of layers whose names agree up to their first number, or that have none."""
    blocks: list[Block] = []
    for place, name in enumerate(names):
        numbered = BLOCK.match(name)
        stem, label = numbered.groups() if numbered else (name, name.rpartition(".")[2])
        if numbered and blocks and blocks[-1][2:] == (stem, label):
            blocks[-1] = blocks[-1]._replace(stop=place + 1)
        else:
            blocks.append(Block(place, place + 1, stem, label))
    return tuple(blocks)


def common_stem(names: Sequence[str]) -> str | None:
    """What the numbers below a plot count, encoder.layer for example; None if nothing in common."""
    stems = [block[1] for name in names if (block := BLOCK.match(name))]
    stem, count = Counter(stems).most_common(1)[0] if stems else ("", 0)
    return stem if stem and count > SHARED * len(stems) and 2 * count > len(names) else None


def draw_layers(axes: Axes, names: Sequence[str], width: float) -> None:
    """The horizontal axis: a faint band behind every other block, labels as far as they fit."""
    blocks = blocks_of(names)
    axes.set_xlim(-0.6, max(1, len(names)) - 0.4)
    if len(blocks) <= width / 6:
        for block in blocks[1::2]:
            axes.axvspan(block.start - 0.5, block.stop - 0.5, color=COLOURS["band"], lw=0, zorder=0)
    stem = Counter(block.stem for block in blocks).most_common(1)[0][0] if blocks else ""
    series = [block.tick for block in blocks if block.stem == stem]
    strides = (series[::stride] for stride in STRIDES)
    even = next((labels for labels in strides if _apart(axes, labels, width)), series[:1])
    set_labels(axes, [*even, *(block.tick for block in blocks if block.stem != stem)], width)
    axes.tick_params(axis="x", length=0, pad=6)


def set_labels(axes: Axes, labels: Iterable[Label], width: float) -> None:
    """Ticks with those of the labels, the first ones first, that find room on `width` pixels."""
    kept: list[Label] = []
    for label in labels:
        wider = sorted([*kept, label])
        if _apart(axes, wider, width):
            kept = wider
    axes.set_xticks([place for place, _ in kept], [text for _, text in kept])
    axes.set_xticks([], minor=True)


def _apart(axes: Axes, labels: Sequence[Label], width: float) -> bool:
    """Whether the labels leave each other room, and stay on the sheet."""
    bend = math.log if axes.get_xscale() == "log" else float
    low, high = map(bend, axes.get_xlim())
    middles = [(bend(place) - low) / (high - low) * width for place, _ in labels]
    halves = [max(1, len(text)) * LETTER / 2 for _, text in labels]
    ends = [(x - half, x + half) for x, half in zip(middles, halves, strict=True)]
    inside = all(left >= -40 and right <= width + 14 for left, right in ends)
    return inside and all(left_label[1] + 8 <= other[0] for left_label, other in pairwise(ends))


def draw_factors(axes: Axes, values: Iterable[float]) -> None:
    """The vertical axis: all of `values`, and 1, on a logarithmic scale."""
    ends = [1.0, *(min(max(value, LIMITS[0]), LIMITS[1]) for value in values)]
    room = max(0.06 * math.log(max(ends) / min(ends)), 0.02)
    low, high = min(ends) * math.exp(-room), max(ends) * math.exp(room)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = factor_ticks(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.grid(axis="y", lw=0.8)
    axes.axhline(1, color=COLOURS["ink"], lw=1, zorder=1)


def factor_ticks(low: float, high: float) -> list[float]:
    """Round factors from `low` to `high`, 1 among them, at most eight."""
    from matplotlib.ticker import MaxNLocator

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if high / low < EVENLY:
        ticks = [
            round(float(tick), 6) for tick in MaxNLocator(7, steps=STEPS).tick_values(low, high)
        ]
    else:
        decades = math.log10(high / low)
        digits = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)
        stride = max(1, math.ceil(decades / 6)) if decades >= 3 else 1
        powers = range(-stride * (-first // stride), last + 1, stride)
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]
