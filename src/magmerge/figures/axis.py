"""The vertical axis of figures on an even scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 9.0
"""Of letters on axes, in points."""
STEPS = (1, 2, 2.5, 5, 10)


def draw_even(axes: Axes, low: float, high: float) -> None:
    """From `low` to `high`, with a thin line and a label at each round number."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(low, high)
    ticks = MaxNLocator(6, steps=STEPS).tick_values(low, high)
    kept = [float(tick) for tick in ticks if low <= tick <= high]
    axes.set_yticks(kept, alike(kept), size=SIZE)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.grid(axis="y", lw=0.8)
    axes.set_axisbelow(True)


def alike(ticks: Sequence[float]) -> list[str]:
    """Numbers with as many decimals as the longest of them needs, at most nine."""
    short = [f"{tick:.9f}".rstrip("0").partition(".")[2] for tick in ticks]
    places = max(map(len, short), default=0)
    return [f"{tick:.{places}f}" for tick in ticks]
