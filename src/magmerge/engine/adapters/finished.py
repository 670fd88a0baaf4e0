"""Modules that are finished: kept in a spool, and taken from it by a run after a kill."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from magmerge.checkpoints.output.spool import Spool
from magmerge.checkpoints.output.writer import MemorySink
from magmerge.core.types import Step
from magmerge.engine.adapters.extraction import ExtractedModule, LostTensor
from magmerge.engine.adapters.module_merge import DOWN, UP, ModuleRecord
from magmerge.engine.job import Work
from magmerge.engine.passes import bench_for, run_pass
from magmerge.engine.steps import Outcome

MODULES = {kind.__name__: kind for kind in (ExtractedModule, LostTensor, ModuleRecord)}


def finished_outcomes(work: Work, sink: MemorySink, spool: Spool | None) -> list[Outcome]:
    """What became of each step in the order of the plan, with all factors in `sink`."""
    done: dict[str, Outcome] = {}
    for part in spool.kept() if spool is not None else ():
        try:
            done[part.step] = _outcome(dict(part.outcome))
        except (ValueError, TypeError, KeyError):
            continue
        sink.tensors |= part.tensors

    def keep(step: Step, outcome: Outcome) -> None:
        if spool is not None:
            name = step.spec.name
            own = [key for key in (name, f"{name}{UP}", f"{name}{DOWN}") if key in sink.tensors]
            spool.keep(step.key, _noted(outcome), {key: sink.tensors[key] for key in own})

    todo = {step.key for step in work.plan.steps if step.key not in done}
    fresh = run_pass(bench_for(work, sink), todo, finish=keep)
    done |= {step.key: outcome for step, outcome in fresh}
    return [done[step.key] for step in work.plan.steps if step.key in done]


def _noted(outcome: Outcome) -> bytes:
    """What became of a step, with the kind of its module; what is not finite as null."""
    kind = None if outcome.module is None else type(outcome.module).__name__
    return to_json({"outcome": outcome, "module": kind}, inf_nan_mode="null")


def _outcome(noted: dict[str, Any]) -> Outcome:
    """The same, read; ValueError where it is not whole, as where a number was not finite."""
    told, kind = dict(noted["outcome"]), noted["module"]
    module = None if kind is None else TypeAdapter(MODULES[kind]).validate_python(told["module"])
    rest = TypeAdapter(Outcome).validate_python({**told, "module": None})
    return Outcome(rest.record, module, rest.note)
