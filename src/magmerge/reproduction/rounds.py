"""Rounds of a run: models are made as many as memory holds, measured task by task, and removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from magmerge.checkpoints import open_checkpoint
from magmerge.dtypes import nbytes, parse_size
from magmerge.machine import Progress
from magmerge.reproduction.ledger import Ledger
from magmerge.reproduction.making import Workshop
from magmerge.reproduction.table import EXPERTS, ZERO_SHOT
from magmerge.reproduction.variants import Variant


def measure_all(
    shop: Workshop,
    ledger: Ledger,
    variants: Sequence[Variant],
    *,
    keep: bool,
    progress: Progress | None,
) -> None:
    """Measure what the ledger lacks; base and experts in the first round."""
    missing = [one for one in variants if lacking(ledger, one.name, all_tasks(shop))]
    rounds = list(_rounds(shop, missing)) or [[]]
    made = 0
    for number, round_ in enumerate(rounds):
        models: dict[str, Any] = {}
        for variant in round_:
            if progress is not None:
                progress("merging", made, len(missing))
            models[variant.name] = shop.make(variant)
            made += 1
        if progress is not None and missing:
            progress("merging", made, len(missing))
        _measure_round(shop, ledger, models, references=number == 0)
        if not keep:
            shop.remove(round_)


def all_tasks(shop: Workshop) -> list[str]:
    """Every task that is measured."""
    return [task for expert in shop.ready.experts for task in shop.measure.tasks_of(expert)]


def lacking(ledger: Ledger, model: str, tasks: Sequence[str]) -> list[str]:
    """The tasks that a model has no score of."""
    return [task for task in tasks if not ledger.has(model, task)]


def _measure_round(
    shop: Workshop, ledger: Ledger, models: Mapping[str, Any], *, references: bool
) -> None:
    for expert in shop.ready.experts:
        tasks = shop.measure.tasks_of(expert)
        wanted = {name: model for name, model in models.items() if lacking(ledger, name, tasks)}
        if references and lacking(ledger, ZERO_SHOT, tasks):
            wanted[ZERO_SHOT] = shop.measure.base()
        if references and lacking(ledger, EXPERTS, tasks):
            wanted[EXPERTS] = shop.measure.expert(expert)
        if wanted:
            ledger.put_all(shop.measure.measure(wanted, expert))


def models_a_round(memory: str | int, size: int) -> int:
    """As many models as half of the memory holds, one at least."""
    return max(1, parse_size(memory) // (2 * max(1, size)))


def _rounds(shop: Workshop, variants: Sequence[Variant]) -> Iterator[list[Variant]]:
    specs = open_checkpoint(shop.ready.base).specs.values()
    size = models_a_round(shop.machine.memory, sum(nbytes(spec) for spec in specs))
    for start in range(0, len(variants), size):
        yield list(variants[start : start + size])
