"""A recipe whose method or calibration is `auto`, made one that names what it does: before anything
else is done with it, so that nothing else hears of `auto`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from magmerge.checkpoints.loader import Model
from magmerge.core import registry
from magmerge.core.choice import (
    MERGED,
    Candidate,
    Evidence,
    by_weights,
    candidates,
    check_auto,
    chosen,
    compared,
    fit,
    nearest,
)
from magmerge.core.choice_account import Comparison, told, told_of_rows
from magmerge.core.dtypes import spoken_size
from magmerge.core.errors import ParameterError, StructureError
from magmerge.core.lazy import load
from magmerge.core.recipe import Calibration, Recipe
from magmerge.core.validation import AUTO, check_calibrations, check_method
from magmerge.data.halves import Halves, halves
from magmerge.engine.job import Job, Work
from magmerge.engine.plan import make_plan
from magmerge.engine.resolve import open_job
from magmerge.engine.samples import inputs_of

LOOKING = Calibration(method="fsc")
"""A calibration that runs the model on samples, as comparing candidates does."""


def chosen_job(recipe: Recipe, models: Mapping[str, Model], how: Mapping[str, Any]) -> Job:
    """The job of a recipe whose auto is chosen, with what was chosen and why. Weights are read for
    that, and where there are samples candidates are run. `how`: what else `open_job` takes.
    """
    choosing = _Choosing(_checked(recipe), models, how)
    candidate, choice = choosing.choice()
    return replace(choosing.job(candidate), choice=choice)


def costliest_job(recipe: Recipe, models: Mapping[str, Model], how: Mapping[str, Any]) -> Job:
    """The same from headers alone: of all candidates the job that takes the most memory, with a
    note of what there is to choose and what choosing costs.
    """
    choosing = _Choosing(_checked(recipe), models, how)
    works, left_out = choosing.works(candidates(recipe, choosing.sampled))
    label = max(works, key=lambda label: works[label].plan.memory)
    cost = "256 rows of each matrix are read for that, at most"
    if choosing.sampled:
        live = spoken_size(make_plan(choosing.looking(), None).live)
        cost = (
            "each is merged once into a live model and run on half of the samples, nothing is "
            f"written for that, and the memory of that model ({live}) is needed twice where a "
            "candidate looks at samples itself"
        )
    job = works[label].job
    note = (
        f"auto chooses when it merges, among {', '.join(works)}: {cost}; what is told here is of "
        f"{label}, which takes the most memory"
    )
    note += "".join(f"; it cannot choose {one}: {why}" for one, why in left_out.items())
    return replace(job, models=replace(job.models, notes=(note, *job.models.notes)))


def _checked(recipe: Recipe) -> Recipe:
    """The recipe with its names and parameters checked."""
    method, params = check_method(recipe.method, recipe.params)
    calibrations = check_calibrations(recipe.calibrate)
    recipe = recipe.model_copy(
        update={"method": method, "params": params, "calibrate": calibrations}
    )
    check_auto(recipe)
    return recipe


class _Choosing:
    """A recipe and its models, and the jobs that it may become."""

    def __init__(self, recipe: Recipe, models: Mapping[str, Model], how: Mapping[str, Any]) -> None:
        self._recipe, self._models, self._how = recipe, models, how
        items = [registry.calibrators.get(c.method) for c in recipe.calibrate if c.method != AUTO]
        self._looks = any(item.needs == "inputs" for item in items)
        self.sampled = recipe.samples is not None

    def job(self, candidate: Candidate) -> Job:
        """The job of the recipe with this choice."""
        recipe, models = chosen(self._recipe, candidate), self._models
        if recipe.samples is not None and not (candidate.sampled or self._looks):
            recipe = recipe.model_copy(update={"samples": None, "keep_best": False})
        if recipe.merged is None and self._recipe.merged is not None:
            models = {MERGED: models["merged"]} if "merged" in models else {}
        return open_job(recipe, models, **self._how)

    def looking(self) -> Job:
        """A job of the same models that runs them on the samples."""
        recipe = self._recipe
        method = recipe.method if recipe.method != AUTO else "average"
        update = {"method": method, "calibrate": (LOOKING,), "keep_best": False}
        return open_job(recipe.model_copy(update=update), self._models, **self._how)

    def works(self, every: Sequence[Candidate]) -> tuple[dict[str, Work], dict[str, str]]:
        """Each candidate's planned job by its label; and why those are left out that these models
        cannot have. What is wrong with the first is raised: it is wrong with the models.
        """
        works, left_out = dict[str, Work](), dict[str, str]()
        for one in every:
            try:
                works[one.label] = _work(_compared(self.job(one)))
            except (StructureError, ParameterError) as error:
                if one is every[0]:
                    raise
                left_out[one.label] = str(error.problem)
        return works, left_out

    def choice(self) -> tuple[Candidate, dict[str, Any]]:
        """What is chosen, and the account of it for the record."""
        evidence = self._evidence()
        first, reason = by_weights(self._recipe, evidence)
        if not self.sampled:
            return first, told(evidence, first, reason)
        job = self.looking()
        halved = halves(inputs_of(job))
        if halved.shared and self._looks:
            reason += (
                "; the one sample that some experts have is what the calibration sees, so that "
                "nothing was compared on it"
            )
            return first, told(evidence, first, reason)
        return self._on_rows(job, halved, evidence, reason)

    def _evidence(self) -> Evidence:
        recipe = self._recipe
        job = self.job(candidates(recipe, sampled=False)[-1 if recipe.merged is not None else 0])
        plan = make_plan(job, None)
        evidence_of = load("magmerge.engine.evidence:evidence_of")
        found: Evidence = evidence_of(job, plan.steps, plan.room)
        return found

    def _on_rows(
        self, job: Job, halved: Halves, evidence: Evidence, reason: str
    ) -> tuple[Candidate, dict[str, Any]]:
        """The candidate that is nearest the experts on rows that no calibration saw."""
        recipe = self._recipe
        every = {one.label: one for one in fit(recipe, not halved.shared, evidence)}
        first = next(iter(every.values()))
        works, left_out = self.works([*every.values()])
        compare = load("magmerge.live.candidates:losses_of_candidates")
        found = compare(_work(job), works, halved)
        losses = compared(found.losses)
        winner = every[nearest(losses)] if any(losses.values()) else first
        rows = {name: sum(call.rows for call in calls) for name, calls in halved.aside.items()}
        comparison = Comparison(found.measure, losses, rows, left_out | found.left_out)
        return winner, told_of_rows(evidence, winner, first, reason, comparison)


def _compared(job: Job) -> Job:
    """The job as it is compared with others: with its calibration, whatever comes of it."""
    return replace(job, recipe=job.recipe.model_copy(update={"keep_best": False}))


def _work(job: Job) -> Work:
    return Work(job, make_plan(job, None))
