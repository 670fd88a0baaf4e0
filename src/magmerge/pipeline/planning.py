"""What a job would do, told before anything is done."""

from __future__ import annotations

from dataclasses import replace

from magmerge.checkpoints.output.target import Target, check_space
from magmerge.core.types import Plan
from magmerge.engine.job import Job
from magmerge.engine.notes import config_notes
from magmerge.engine.origins import licence_notes
from magmerge.engine.plan import make_plan


def plan_job(job: Job, target: Target | None = None) -> Plan:
    """The plan of a job with what its result's reader will be warned of, and whether there is room
    for it. Raises what the merge would.
    """
    plan = make_plan(job, target)
    notes = licence_notes(job)
    if target is not None:
        check_space(target.path, plan.disk)
        notes = (*config_notes(job, target), *notes)
    return replace(plan, warnings=(*notes, *plan.warnings))
