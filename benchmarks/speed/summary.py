"""Runs of merge_speed as tables: what each took, and what one more parameter costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.speed.process import GB
from benchmarks.speed.sizes import SIZES, parameters


class Run(NamedTuple):
    """The medians of one program at one merge: seconds, and bytes at its peak. `state` is warm or
    cold; of magmerge's own program besides first or later.
    """

    size: str
    experts: int
    case: str
    program: str
    state: str
    wall: float
    cpu: float
    memory: float


def show(runs: Iterable[Run]) -> None:
    """Print the tables; of runs of the same thing the last one counts."""
    last = {run[:5]: run for run in runs}
    console = Console(width=120)
    console.print(whole(list(last.values())))
    console.print(marginal(list(last.values())))


def whole(runs: list[Run]) -> Table:
    """What whole processes took, and how many times what mergekit took is that."""
    title = "whole processes: seconds, GB at the peak; and how many times less than mergekit's"
    names = ("", "billions", "experts", "program", "s", "CPU s", "GB", "s", "CPU", "memory")
    table = Table(*names, title=title, title_justify="left", box=None, pad_edge=False)
    rivals = {
        (run.size, run.experts, run.case, run.state): run
        for run in runs
        if run.program == "mergekit"
    }
    for run in sorted(runs, key=lambda run: (run.case, run.experts, run.size)):
        cells = [f"{run.wall:.2f}", f"{run.cpu:.2f}", f"{run.memory / GB:.3f}"]
        rival = rivals.get((run.size, run.experts, run.case, run.state.partition(" ")[0]))
        if rival is not None and rival is not run:
            pairs = zip(rival[5:], run[5:], strict=True)
            cells += [f"{other / own:.1f}x" for other, own in pairs]
        program = f"{run.program}, {run.state}"
        table.add_row(run.case, run.size, str(run.experts), program, *cells)
    return table


def marginal(runs: list[Run]) -> Table:
    """Nanoseconds that one more parameter of the result costs: the difference of two sizes."""
    title = "ns for one more parameter, and seconds before the first one"
    names = ("", "experts", "program", "CPU ns", "wall ns", "CPU s")
    table = Table(*names, title=title, title_justify="left", box=None, pad_edge=False)
    groups: dict[tuple[str, int, str], list[Run]] = {}
    for run in runs:
        if run.size != "tiny":
            key = (run.case, run.experts, f"{run.program}, {run.state}")
            groups.setdefault(key, []).append(run)
    for key, group in sorted(groups.items()):
        less, *_, more = sorted(group, key=entries) if len(group) > 1 else group * 2
        count = entries(more) - entries(less)
        if count:
            cpu, wall = (more.cpu - less.cpu) / count, (more.wall - less.wall) / count
            start = less.cpu - cpu * entries(less)
            cells = (f"{1e9 * cpu:.2f}", f"{1e9 * wall:.2f}", f"{start:.2f}")
            table.add_row(key[0], str(key[1]), key[2], *cells)
    return table


def entries(run: Run) -> int:
    """The parameters of the model that a run made."""
    return parameters(SIZES[run.size])
