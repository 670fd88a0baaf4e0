"""The two axes of the plots: layers in model order, and factors on a logarithmic scale."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from magmerge.errors import printable
from magmerge.report.account import Module
from magmerge.report.svg import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCK = re.compile(r"(?s)(.*?)(?:^|[._])([0-9]{1,9})(?=[._]|$)")
LETTER = 7.2
"""Pixels that a letter of a label takes at most, on average."""
LONGEST = 18
SHARED = 0.9
"""Part of the numbered layers that what the numbers count must be common to."""
LABELS = 7
"""Most labels of the factors."""
EVENLY = 6.5
"""Range of factors up to which they are counted in even steps, beyond in multiples."""
LIMITS = 1e-9, 1e9
"""Factors beyond are drawn at these."""
STRIDES = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring layers of one block: the first place, the one after the last, and its label."""

    start: int
    stop: int
    stem: str
    label: str

    @property
    def middle(self) -> float:
        """Where its label goes."""
        return (self.start + self.stop - 1) / 2


def blocks_of(modules: Sequence[Module]) -> tuple[Block, ...]:
    """Runs of layers whose names agree up to their first number, or that have none."""
    found: list[Block] = []
    for place, module in enumerate(modules):
        numbered = BLOCK.match(module.name)
        stem = numbered[1] if numbered else module.name
        label = numbered[2] if numbered else module.name.rpartition(".")[2]
        last = found[-1] if found else None
        if last and numbered and (last.stem, last.label) == (stem, label):
            found[-1] = Block(last.start, place + 1, stem, label)
        else:
            found.append(Block(place, place + 1, stem, label))
    return tuple(found)


def common_stem(modules: Sequence[Module]) -> str | None:
    """What the numbers below a plot count, encoder.layer for example; None if nothing in common."""
    numbered = [found for module in modules if (found := BLOCK.match(module.name))]
    stem, count = Counter(one[1] for one in numbered).most_common(1)[0] if numbered else ("", 0)
    return stem if stem and count > SHARED * len(numbered) and 2 * count > len(modules) else None


def draw_layers(axes: Axes, modules: Sequence[Module], width: float) -> None:
    """The horizontal axis: a faint band behind every other block, labels as far as they fit."""
    blocks, count = blocks_of(modules), len(modules)
    axes.set_xlim(-0.6, count - 0.4)
    if len(blocks) <= width / 6:
        for block in blocks[1::2]:
            axes.axvspan(block.start - 0.5, block.stop - 0.5, color=COLOURS["band"], lw=0, zorder=0)
    labelled = _labelled(blocks, width / (count + 0.2))
    axes.set_xticks(
        [block.middle for block in labelled], [_short(block.label) for block in labelled]
    )
    axes.tick_params(axis="x", length=0, pad=6)


def _labelled(blocks: Sequence[Block], pixels: float) -> list[Block]:
    """The blocks whose labels find room: first those of the commonest stem, at even distances."""
    common = Counter(block.stem for block in blocks).most_common(1)[0][0]
    series = [block for block in blocks if block.stem == common]
    for stride in STRIDES:
        kept = series[::stride]
        if _apart(kept, pixels):
            break
    else:
        kept = series[:1]
    for block in blocks:
        wider = sorted([*kept, block], key=lambda one: one.start)
        if block.stem != common and _apart(wider, pixels):
            kept = wider
    return kept


def _apart(blocks: Sequence[Block], pixels: float) -> bool:
    """Whether the labels leave each other room, and the edges of the plot too."""
    half = [max(1, len(_short(block.label))) * LETTER / 2 for block in blocks]
    pairs = zip(blocks, blocks[1:], half, half[1:], strict=False)
    inside = all(
        (block.middle + 0.6) * pixels >= own - 40 for block, own in zip(blocks, half, strict=True)
    )
    return inside and all(
        (after.middle - before.middle) * pixels >= left + right + 8
        for before, after, left, right in pairs
    )


def _short(label: str) -> str:
    """A label in letters that every font has."""
    text = printable(label).encode("ascii", "replace").decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def clamped(value: float) -> float:
    """A factor that the axis can hold."""
    return min(max(value, LIMITS[0]), LIMITS[1])


def draw_factors(axes: Axes, values: Sequence[float]) -> None:
    """The vertical axis: all of `values`, and 1, on a logarithmic scale."""
    low, high = min([*values, 1.0]), max([*values, 1.0])
    room = max(0.06 * math.log(high / low), 0.02)
    low, high = low * math.exp(-room), high * math.exp(room)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = factor_ticks(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.grid(axis="y", lw=0.8)
    axes.axhline(1, color=COLOURS["ink"], lw=1, zorder=1)
    axes.set_axisbelow(True)


def factor_ticks(low: float, high: float) -> list[float]:
    """Round factors from `low` to `high`, 1 among them, at most seven: as many as find room."""
    series: list[list[float]] = []
    if high / low < EVENLY:
        for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1):
            places = range(math.ceil(low / step), 1 + math.floor(high / step))
            series.append([round(place * step, 2) for place in places])
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        powers = range(first, last + 1)
        series.append([float(f"{digit}e{power}") for power in powers for digit in digits])
    for stride in range(2, last - first + 1):
        powers = range(-stride * (-first // stride), last + 1, stride)
        series.append([float(f"1e{power}") for power in powers])
    for ticks in series:
        inside = [tick for tick in ticks if low <= tick <= high]
        if 1 < len(inside) <= LABELS:
            return inside
    return [1.0]
