"""What a job that writes an adapter does otherwise than one that writes a model.

Its code is loaded only where an adapter is written: a merge of models needs none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from magmerge.core.errors import Fault
from magmerge.core.lazy import load
from magmerge.core.types import Step
from magmerge.engine.executors.local import Task
from magmerge.engine.job import Job, Work
from magmerge.engine.steps import Bench, Outcome

if TYPE_CHECKING:
    from magmerge.checkpoints.output.spool import Spool
    from magmerge.engine.publish import Report
    from magmerge.engine.result import Result


class AdapterForm(Protocol):
    """The parts of a run that an adapter has its own way for."""

    def faults(self, job: Job) -> list[Fault]:
        """What does not fit, from headers alone; errors for options that mean nothing here."""

    def notes(self, job: Job) -> tuple[str, ...]:
        """What a reader should know of the inputs."""

    def marked(self, job: Job, steps: Sequence[Step]) -> list[Step]:
        """The steps, with what the adapter has no place for marked as lost."""

    def needs(self, job: Job, step: Step, piece: int) -> list[tuple[str, int]]:
        """The layer and the bytes of each of its jobs that may run at once."""

    def run(self, bench: Bench, step: Step) -> Task[Outcome]:
        """One module's factors, given to the pass's sink."""

    def result(
        self, work: Work, notes: tuple[str, ...], report: Report, spool: Spool | None = None
    ) -> Result:
        """The pass of factors into memory, and what it says of the adapter. A spool holds what is
        finished.
        """


def form_of(job: Job) -> AdapterForm | None:
    """The way of an adapter where the job writes one; None for a model."""
    if not job.writes_adapter:
        return None
    form: AdapterForm = load("magmerge.engine.adapters.adapter_form:FORM")
    return form
