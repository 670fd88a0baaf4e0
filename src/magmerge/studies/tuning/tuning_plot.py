"""The plot of a search: the score over the trials, and against each value that was searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from magmerge.core.errors import printable
from magmerge.core.marks import Choices, Mark
from magmerge.core.whole_file import write_whole
from magmerge.report.axis import factor_ticks
from magmerge.report.svg import COLOURS, DOTS, drawing, svg_text, tip
from magmerge.studies.tuning.trials import Trial, spoken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("trials.svg", "trials.png")
FINE = 144
"""Dots to an inch of the PNG."""
PANEL = (340.0, 250.0)
"""Width and height of a panel in pixels of a page."""
COLUMNS = 3
LONGEST = 48
"""Letters of a title, and of all choices' names below a panel, that are shown."""
FEW = 4
"""Choices whose names stand side by side; those of more are turned."""
PANELS = 11
"""Values that get a panel of their own, the first ones."""


ROOM = 0.04
"""Part of a range that is left free beside it."""
LOOKS: Mapping[str, Any] = {
    kind: {"marker": marker, "ms": size, "color": COLOURS[colour], "mec": COLOURS["paper"]}
    for kind, marker, size, colour in (
        ("default", "D", 7, "ink"), ("best", "o", 8, "series-1"), ("other", "o", 5, "muted"),
    )
}  # fmt: skip


def draw_trials(
    trials: Sequence[Trial], marks: Mapping[str, Mark], folder: Path, words: str, best: Trial
) -> None:
    """Write the figure as SVG and PNG; MissingExtraError without matplotlib."""
    with drawing(**{"axes.facecolor": "none", "font.size": 10, "axes.titlesize": 10}):
        figure = trial_chart(trials, marks, words, best)
        write_whole(folder / FIGURES[0], svg_text(figure, f"{words} over {len(trials)} trials"))
        raw = BytesIO()
        figure.savefig(raw, format="png", dpi=FINE, metadata={"Software": None})
    write_whole(folder / FIGURES[1], raw.getvalue())


def check_drawing() -> None:
    """MissingExtraError, before any work, where no figure could be drawn."""
    with drawing():
        pass


def trial_chart(
    trials: Sequence[Trial], marks: Mapping[str, Mark], words: str, best: Trial
) -> Figure:
    """A panel of all trials in order, and one for each mark."""
    from matplotlib.figure import Figure

    shown = dict(list(marks.items())[:PANELS])
    count = 1 + len(shown)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    size = (columns * PANEL[0] / DOTS, (rows * PANEL[1] + 70) / DOTS)
    figure = Figure(figsize=size, dpi=DOTS, facecolor=COLOURS["paper"])
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    figure.suptitle(_letters(words, 90), x=0.01, ha="left", size=12, weight="bold")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten().tolist()
    for axes in panels:
        axes.set_frame_on(False)
        axes.grid(axis="y", lw=0.8)
        axes.tick_params(length=0, pad=6, labelleft=True)
    for axes in panels[count:]:
        axes.remove()
    _over_trials(panels[0], trials, best)
    for axes, (name, mark) in zip(panels[1:], shown.items(), strict=False):
        _against(axes, name, mark, trials, best)
    figure.legend(loc="outside lower left", ncols=5, frameon=False, fontsize=9)
    return figure


def _over_trials(axes: Axes, trials: Sequence[Trial], best: Trial) -> None:
    """Each trial's score, the default's and the best's in their own looks, a line at the default's;
    failed ones as crosses at the lower edge.
    """
    from matplotlib.ticker import MaxNLocator

    axes.set_title("score of each trial", loc="left", weight="bold")
    for trial in trials:
        if trial.score is not None:
            _dot(axes, trial.number, trial, best)
    default = trials[0]
    if default.score is not None:
        axes.axhline(default.score, color=COLOURS["muted"], lw=1, ls=(0, (3, 3)), zorder=1)
    failed = [trial.number for trial in trials if trial.fault is not None]
    for kind, name in (("default", "default"), ("best", "best"), ("other", "other trials")):
        axes.plot([], [], ls="none", label=name, **LOOKS[kind])
    if failed:
        low = axes.get_ylim()[0]
        axes.plot(
            failed, [low] * len(failed), ls="none", marker="x", color=COLOURS["muted"],
            clip_on=False, label="failed",
        )  # fmt: skip
        axes.set_ylim(bottom=low)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlim(-0.5, max(1, len(trials)) - 0.5)


def _against(axes: Axes, name: str, mark: Mark, trials: Sequence[Trial], best: Trial) -> None:
    """The score against one value, of the trials in which it counted."""
    axes.set_title(_letters(name, LONGEST), loc="left", weight="bold")
    space = mark.space
    for trial in trials:
        if trial.score is not None and name in trial.values:
            value = trial.values[name]
            x = _place(space.values, value) if isinstance(space, Choices) else value
            _dot(axes, x, trial, best)
    if isinstance(space, Choices):
        count = len(space.values)
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if count > FEW else {}
        labels = [_letters(spoken(value), LONGEST // min(count, FEW)) for value in space.values]
        axes.set_xticks(range(count), labels, **turned)
        axes.set_xlim(-0.6, count - 0.4)
    elif space.log:
        ends = space.low / (space.high / space.low) ** ROOM, space.high
        axes.set_xscale("log")
        axes.set_xlim(ends[0], ends[1] * (space.high / space.low) ** ROOM)
        ticks = factor_ticks(space.low, space.high) or [space.low, space.high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    else:
        room = ROOM * (space.high - space.low)
        axes.set_xlim(space.low - room, space.high + room)


def _dot(axes: Axes, x: float, trial: Trial, best: Trial) -> None:
    """A trial, with its values in its tooltip."""
    kind = "best" if trial.number == best.number else "other" if trial.number else "default"
    text = f"trial {trial.number}: {trial.score:.5g} with {trial.words}"
    axes.plot([x], [trial.score or 0.0], **LOOKS[kind], zorder=2 + (kind != "other"), gid=tip(text))


def _place(values: Sequence[Any], value: Any) -> int:
    return next(i for i, own in enumerate(values) if value in Choices((own,)))


def _letters(text: str, most: int) -> str:
    """Short, and in letters that the font has."""
    plain = printable(text).encode("ascii", "replace").decode()
    return shorten(plain, most, placeholder="...") if " " in plain else plain[:most]
