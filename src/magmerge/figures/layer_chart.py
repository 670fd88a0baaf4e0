"""Figures of layers in the order of the model: how sensitive they are, and their factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from magmerge.figures.axis import SIZE, draw_even
from magmerge.figures.canvas import (
    Box,
    Canvas,
    Grid,
    Text,
    marker,
    open_canvas,
    shown,
    width_of,
)
from magmerge.figures.document import Coefficients, Ranking
from magmerge.figures.palette import BAND, INK, MUTED, PART_LOOKS, Look, look_of, spoken_calibration
from magmerge.figures.parts import PARTS, part_of
from magmerge.figures.series import Factor, factors_of
from magmerge.figures.wording import NUMBERED, SCORES, notes_of, subtitle_of, title_of
from magmerge.report.account import Module, differs
from magmerge.report.axis import STRIDES, Block, blocks_of, clamped, common_stem, factor_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 860.0
LARGEST, SMALLEST, PROMINENT = 7.0, 2.5, 5.5
"""Widths of a mark; the last one of a sensitive layer, at least."""
SHARES = frozenset({"drift", "accuracy"})
"""Scores that people read in percent."""
SENSITIVE, SENSITIVE_KEY = "#fbeadf", "#f0c3a5"
"""Behind sensitive layers, and in the key, where it is small."""
SHIFT = 0.2
"""How far marks of one layer stand from its middle, in layers."""


def ranking_chart(document: Ranking) -> Canvas:
    """Each layer's sensitivity, the most sensitive ones filled and numbered."""
    names = [one.layer for one in document.layers]
    parts = {name: part_of(name) for name in names}
    key = [(part, PART_LOOKS[part], True) for part in PARTS if part in parts.values()]
    axis = SCORES.get(document.score, shown(document.score))
    text = Text(title_of(document), subtitle_of(document), notes_of(document), axis, key)
    canvas = open_canvas(text, Grid(1, [""], 270, left=38, right=4, below=24), WIDTH)
    (axes, box) = canvas.panels[0]
    factor = 100.0 if document.score in SHARES else 1.0
    values = [factor * one.worse for one in document.layers]
    low, high = min([0.0, *values]), max([0.0, *values])
    room = (high - low) or 1.0
    draw_even(axes, low - 0.03 * room * (low < 0), high + 0.1 * room)
    _along(axes, names, box)
    _name_axis(axes, names)
    axes.axhline(0, color=MUTED, lw=0.8, zorder=1)
    ranks = {name: rank for rank, name in enumerate(document.sensitive, 1)}
    pixels = box.width / max(1, len(names))
    size = min(LARGEST, max(SMALLEST, 0.7 * pixels))
    axes.vlines(range(len(names)), 0, values, color="#c9cdd2", lw=min(1.2, pixels / 5), zorder=2)
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        gid = f"layer-{place}"
        canvas.tips[gid] = [f"{name}: {document.layers[place].worse:.6g}"]
        # The white rim of a filled mark takes from its size.
        own = max(1.2 * size, PROMINENT) if name in ranks else size
        look = marker(PART_LOOKS[parts[name]], own, filled=name in ranks)
        axes.plot([place], [value], ls="none", gid=gid, zorder=4, clip_on=False, **look)
        if name in ranks and len(names) <= NUMBERED:
            offset = (0, 0.5 * size + 3)
            axes.annotate(str(ranks[name]), (place, value), offset, textcoords="offset points",
                          ha="center", size=7.5, color=INK)  # fmt: skip
    return canvas


def coefficient_chart(document: Coefficients) -> Canvas:
    """A panel for each merge: each layer's factors beside each other, and what the gate did."""
    methods = [
        method
        for method in document.methods
        if any(factors_of(document, method, name) for name in document.calibrations)
    ]
    found = {
        (method, name): factors_of(document, method, name)
        for method in methods
        for name in document.calibrations
    }
    names = _all_layers(list(found.values()))
    several = len(methods) > 1
    titles = [shown(method, 40) if several else "" for method in methods] or [""]
    text = Text(
        title_of(document), subtitle_of(document), notes_of(document),
        "factor xi, logarithmic", _key(document, list(found.values())),
    )  # fmt: skip
    height = 250 if len(titles) == 1 else 190
    canvas = open_canvas(text, Grid(1, titles, height, left=38, right=4, below=24), WIDTH)
    values = [end for own in found.values() for one in own for end in (one.free, one.gated)]
    sensitive = {one.layer for own in found.values() for one in own if one.sensitive}
    for number, (axes, box) in enumerate(canvas.panels):
        _factor_axis(axes, [clamped(value) for value in values])
        _along(axes, names, box)
        for place, name in enumerate(names):
            if name in sensitive:
                axes.axvspan(place - 0.5, place + 0.5, color=SENSITIVE, lw=0, zorder=0.5)
        for index, name in enumerate(document.calibrations):
            own = found.get((methods[number], name), []) if methods else []
            shift = SHIFT * (2 * index - len(document.calibrations) + 1)
            _factors(canvas, axes, own, names, shift, look_of(name, document.calibrations), box)
    _name_axis(canvas.panels[-1][0], names)
    return canvas


def _key(document: Coefficients, found: Sequence[Sequence[Factor]]) -> list[tuple[str, Look, bool]]:
    key = []
    held = any(differs(one.free, one.gated) for own in found for one in own)
    for name in document.calibrations:
        look = look_of(name, document.calibrations)
        key.append((f"{spoken_calibration(name)}{', applied' if held else ''}", look, True))
        if held:
            key.append((f"{spoken_calibration(name)}, asked for", look, False))
    if any(one.sensitive for own in found for one in own):
        key.append(("sensitive layer", Look(SENSITIVE_KEY, "square"), True))
    return key


def _all_layers(found: Sequence[Sequence[Factor]]) -> list[str]:
    """The layers of all calibrations, in the order of the model: the longest list has it."""
    names: list[str] = []
    for own in sorted(found, key=len, reverse=True):
        names += [one.layer for one in own if one.layer not in set(names)]
    return names


def _factors(
    canvas: Canvas,
    axes: Axes,
    own: Sequence[Factor],
    names: Sequence[str],
    shift: float,
    look: Look,
    box: Box,
) -> None:
    """Filled marks for what is applied, hollow ones for what the gate did not give."""
    places = {name: place for place, name in enumerate(names)}
    size = min(LARGEST, max(SMALLEST, 0.45 * box.width / max(1, len(names))))
    held = [one for one in own if differs(one.free, one.gated)]
    gap = math.nan
    axes.plot(
        [x for one in held for x in (places[one.layer] + shift, places[one.layer] + shift, gap)],
        [y for one in held for y in (clamped(one.free), clamped(one.gated), gap)],
        color=look.colour,
        lw=0.7,
        alpha=0.5,
        zorder=2,
    )
    for ends, filled in (([(one, one.free) for one in held], False),
                         ([(one, one.gated) for one in own], True)):  # fmt: skip
        if not ends:
            continue
        gid = f"factors-{len(canvas.tips)}"
        canvas.tips[gid] = [
            f"{one.layer}: asked for {one.free:.6g}, applied {one.gated:.6g}" for one, _ in ends
        ]
        axes.plot(
            [places[one.layer] + shift for one, _ in ends],
            [clamped(value) for _, value in ends],
            ls="none",
            gid=gid,
            zorder=4,
            clip_on=False,
            **marker(look, size if filled else 0.8 * size, filled=filled),
        )


def _factor_axis(axes: Axes, values: Sequence[float]) -> None:
    low, high = min([1.0, *values]), max([1.0, *values])
    room = max(0.06 * math.log(high / low), 0.02)
    low, high = low * math.exp(-room), high * math.exp(room)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = factor_ticks(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], size=SIZE)
    axes.set_yticks([], minor=True)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.grid(axis="y", lw=0.8)
    axes.set_axisbelow(True)
    axes.axhline(1, color=INK, lw=0.9, zorder=1)


def _along(axes: Axes, names: Sequence[str], box: Box) -> None:
    """Layers by their place: bands for the blocks, numbered as far as there is room."""
    modules = [Module(name, ()) for name in names]
    blocks = blocks_of(modules)
    axes.set_xlim(-0.7, len(names) - 0.3)
    pixels = box.width / max(1.0, len(names) + 0.4)
    if len(blocks) <= box.width / 6:
        for block in blocks[1::2]:
            axes.axvspan(block.start - 0.5, block.stop - 0.5, color=BAND, lw=0, zorder=0)
    kept = _labelled(blocks, pixels, box.width)
    labels = [shown(block.label, 14) for block in kept]
    axes.set_xticks([block.middle for block in kept], labels, size=SIZE)
    axes.tick_params(axis="x", length=0, pad=5)


def _labelled(blocks: Sequence[Block], pixels: float, width: float) -> list[Block]:
    """The blocks whose labels find room: numbered ones at even distances, then the others."""

    def fit(kept: Sequence[Block]) -> bool:
        ends = []
        for block in kept:
            half = width_of(shown(block.label, 14), SIZE) / 2 + 3
            middle = (block.middle + 0.7) * pixels
            ends.append((middle - half, middle + half))
        inside = not ends or (ends[0][0] >= -30 and ends[-1][1] <= width + 12)
        return inside and all(one[1] <= other[0] for one, other in pairwise(ends))

    numbered = [block for block in blocks if block.label.isdigit()]
    strides = (numbered[::stride] for stride in STRIDES)
    kept = next((found for found in strides if fit(found)), [])
    for block in blocks:
        wider = sorted([*kept, block], key=lambda one: one.start)
        if not block.label.isdigit() and fit(wider):
            kept = wider
    return kept


def _name_axis(axes: Axes, names: Sequence[str]) -> None:
    stem = common_stem([Module(name, ()) for name in names])
    counted = f" (number of {shown(stem.strip('._'))})" if stem else ""
    axes.set_xlabel(f"layers in the order of the model, by block{counted}", size=SIZE, labelpad=6)
