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
from magmerge.report.svg import COLOURS, DOTS, drawing, svg_text, tip
from magmerge.studies.tuning.trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("trials.svg", "trials.png")
FINE = 144
"""Dots to an inch of the PNG."""
PANEL = (340.0, 250.0)
"""Width and height of a panel in pixels of a page."""
COLUMNS = 3
LONGEST = 34
"""Letters of a title, and of a choice's name, that are shown."""
PANELS = 11
"""Values that get a panel of their own, the first ones."""


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


def trial_chart(
    trials: Sequence[Trial], marks: Mapping[str, Mark], words: str, best: Trial
) -> Figure:
    """A panel of all trials in order, and one for each mark."""
    from matplotlib.figure import Figure

    shown = dict(list(marks.items())[:PANELS])
    count = 1 + len(shown)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    size = (columns * PANEL[0] / DOTS, (rows * PANEL[1] + 40) / DOTS)
    figure = Figure(figsize=size, dpi=DOTS, facecolor=COLOURS["paper"])
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    figure.suptitle(_letters(words, 90), x=0.01, ha="left", size=12, weight="bold")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in panels:
        axes.set_frame_on(False)
        axes.grid(axis="y", lw=0.8)
        axes.tick_params(length=0, pad=6)
    for axes in panels[count:]:
        axes.remove()
    _over_trials(panels[0], trials, best)
    for axes, (name, mark) in zip(panels[1:], shown.items(), strict=False):
        _against(axes, name, mark, trials, best)
    return figure


def _over_trials(axes: Axes, trials: Sequence[Trial], best: Trial) -> None:
    """Each trial's score, the default's and the best's in their own colours; failed ones as
    crosses at the lower edge.
    """
    from matplotlib.ticker import MaxNLocator

    axes.set_title("score of each trial", loc="left", weight="bold")
    axes.set_xlabel("trial")
    for trial in trials:
        if trial.score is not None:
            _dot(axes, trial.number, trial, best)
    default = trials[0]
    if default.score is not None:
        axes.axhline(default.score, color=COLOURS["muted"], lw=1, ls=(0, (3, 3)), zorder=1)
        _note(axes, "default", (len(trials) - 1, default.score))
    failed = [trial.number for trial in trials if trial.fault is not None]
    if failed:
        low = axes.get_ylim()[0]
        axes.scatter(failed, [low] * len(failed), marker="x", color=COLOURS["muted"], clip_on=False)
        axes.set_ylim(bottom=low)
        _note(axes, "x failed", (failed[-1], low))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.5, max(1, len(trials)) - 0.5)


def _against(axes: Axes, name: str, mark: Mark, trials: Sequence[Trial], best: Trial) -> None:
    """The score against one value, of the trials in which it counted."""
    axes.set_title(_letters(name, LONGEST), loc="left", weight="bold")
    space = mark.space
    for trial in trials:
        if trial.score is None or name not in trial.values:
            continue
        value = trial.values[name]
        _dot(
            axes, _place(space.values, value) if isinstance(space, Choices) else value, trial, best
        )
    if isinstance(space, Choices):
        labels = [_letters(_spoken(value), LONGEST // min(3, len(space.values)))
                  for value in space.values]  # fmt: skip
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        return
    if space.log:
        axes.set_xscale("log")
        axes.set_xlim(space.low / 1.1, space.high * 1.1)
        return
    room = 0.04 * (space.high - space.low)
    axes.set_xlim(space.low - room, space.high + room)


def _dot(axes: Axes, x: float, trial: Trial, best: Trial) -> None:
    """A trial, with its values in its tooltip."""
    kind = "series-1" if trial.number == best.number else "ink" if trial.number == 0 else "muted"
    marked = trial.number in (0, best.number)
    score = trial.score if trial.score is not None else float("nan")
    values = ", ".join(f"{name} {_spoken(value)}" for name, value in trial.values.items())
    axes.plot(
        [x], [score],
        marker="D" if trial.number == 0 else "o", ms=8 if marked else 5, color=COLOURS[kind],
        mec=COLOURS["paper"], mew=0.8, zorder=3 if marked else 2,
        gid=tip(f"trial {trial.number}: {score:.5g} with {values}"),
    )  # fmt: skip


def _note(axes: Axes, text: str, place: tuple[float, float]) -> None:
    axes.annotate(
        text, place, xytext=(0, 4), textcoords="offset points", ha="right", size=9,
        color=COLOURS["muted"],
    )  # fmt: skip


def _place(values: Sequence[Any], value: Any) -> int:
    return next(i for i, own in enumerate(values) if value in Choices((own,)))


def _spoken(value: Any) -> str:
    return str(value)


def _letters(text: str, most: int) -> str:
    """Short, and in letters that the font has."""
    plain = printable(text).encode("ascii", "replace").decode()
    return shorten(plain, most, placeholder="...") if " " in plain else plain[:most]
