"""Reproductions, demos and searches as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.tables import Spread, Table

if TYPE_CHECKING:
    from magmerge.studies.demo.demonstration import Demo
    from magmerge.studies.reproduction.reproduction_table import Reproduction
    from magmerge.studies.tuning import TuneResult


def reproduction_table(run: Reproduction) -> Table:
    """A row for each model with the mean over the draws of samples, half of the range between the
    least and the greatest as its spread, and what was published.
    """
    sources = sorted({number for row in run.rows for number in row.published})
    rows = tuple(
        (
            row.model,
            *(
                None if own is None else Spread(own.mean, (own.high - own.low) / 2 or None)
                for own in (*(row.scores.get(task) for task in run.tasks), row.mean)
            ),
            *(row.published.get(number) for number in sources),
        )
        for row in run.rows
    )
    columns = ("model", *run.tasks, "mean", *(f"published [{number}]" for number in sources))
    return Table(run.title, columns, rows)


def demo_table(demo: Demo) -> Table:
    """A row for each model with its accuracies."""
    rows = tuple((row.model, *row.accuracies, row.average, row.xi) for row in demo.rows)
    return Table("demo: test accuracy", ("model", *demo.tasks, "mean", "mean xi"), rows)


def tuning_table(found: TuneResult) -> Table:
    """A row for each trial."""
    rows = tuple((t.number, t.words, t.score, t.fault) for t in found.trials)
    columns = ("trial", "values", found.words, "fault")
    return Table(f"{found.count} trials", columns, rows, {found.words: found.rising})
