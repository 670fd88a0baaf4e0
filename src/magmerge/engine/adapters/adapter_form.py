"""The way of a job that writes an adapter: of adapters alone, or of models on a base."""

from __future__ import annotations

from collections.abc import Sequence

from magmerge.checkpoints.output.spool import Spool
from magmerge.core.errors import Fault
from magmerge.core.types import Step
from magmerge.engine.adapters.adapter_faults import faults_of, notes_of, pipeline_faults
from magmerge.engine.adapters.adapter_result import AdapterResult, result_of
from magmerge.engine.adapters.extraction import bytes_of_truncation, run_extraction
from magmerge.engine.adapters.module_memory import needs_of_module
from magmerge.engine.adapters.module_merge import run_module
from magmerge.engine.adapters.targets import mark_lost
from magmerge.engine.executors.local import Task
from magmerge.engine.form import AdapterForm
from magmerge.engine.job import Job, Work
from magmerge.engine.memory import Need, cut_for, needs_of
from magmerge.engine.publish import Report
from magmerge.engine.steps import Bench, Outcome


class _Form:
    """See `AdapterForm`."""

    def faults(self, job: Job) -> list[Fault]:
        union = job.models.union
        return pipeline_faults(job) if union is None else faults_of(job.recipe, job.stages, union)

    def notes(self, job: Job) -> tuple[str, ...]:
        union = job.models.union
        return () if union is None else notes_of(job.recipe, union)

    def marked(self, job: Job, steps: Sequence[Step]) -> list[Step]:
        return mark_lost(job, steps) if job.models.union is None else list(steps)

    def needs(self, job: Job, step: Step, piece: int) -> list[Need]:
        stages, name, union = job.stages, step.spec.name, job.models.union
        if step.action == "carry":
            return []
        if step.action not in ("merge", "mean"):
            return needs_of(job, step, piece)
        if union is None:
            pieces, experts = cut_for(step, stages, piece), len(job.models.experts)
            return [(name, bytes_of_truncation(step, stages, experts, pieces))]
        if name in union.added:
            return needs_of(job, step, piece)
        return needs_of_module(job, step, piece)

    def run(self, bench: Bench, step: Step) -> Task[Outcome]:
        alone = bench.work.models.union is not None
        return run_module(bench, step) if alone else run_extraction(bench, step)

    def result(
        self, work: Work, notes: tuple[str, ...], report: Report, spool: Spool | None = None
    ) -> AdapterResult:
        return result_of(work, notes, report, spool)


FORM: AdapterForm = _Form()
