"""What carrying a recipe out would do, document by document, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.checkpoints.loader import Model
from magmerge.core.errors import CheckpointError
from magmerge.core.machine import Machine
from magmerge.core.recipe import AdapterOutput, Recipe
from magmerge.core.types import Kind, Plan, TensorSpec
from magmerge.engine.job import Job
from magmerge.engine.notes import warn
from magmerge.engine.outputs import target_for
from magmerge.engine.resolve import open_job
from magmerge.pipeline.documents import check_documents, named_models, read_recipes
from magmerge.pipeline.merge import plan_job

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Planned:
    """A document's result before it is made: its headers, as a checkpoint without values."""

    source: str
    folder: Path | None
    specs: Mapping[str, TensorSpec]
    ties: Mapping[str, str]
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def read(self, name: str) -> Tensor:
        """CheckpointError: there is nothing to read yet."""
        raise CheckpointError(
            "it is a result that is not made yet",
            source=self.source,
            tensor=name,
            remedy="run its document first, and give the result's path",
        )

    def read_part(self, name: str, *_: object) -> Tensor:
        """The same for a part."""
        return self.read(name)


def plan_recipe(
    recipe: Recipe | Sequence[Recipe] | str | Path,
    out: str | Path | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
) -> list[Plan]:
    """The plan of each document in turn; raises what `run` would before its work.

    Arguments are those of `run`. A later document sees the headers of an earlier one's result; one
    that reads an adapter which is not made yet is left out, with a warning.
    """
    if isinstance(recipe, str | Path):
        recipe = read_recipes(recipe)
    recipes = [recipe] if isinstance(recipe, Recipe) else list(recipe)
    check_documents(recipes)
    results: dict[str, Planned] = {}
    unseen: set[str | None] = set()
    plans = []
    for place, document in enumerate(recipes):
        last = place == len(recipes) - 1
        named = named_models(document)
        if unseen & set(named.values()):
            unseen.add(document.name)
            warn([f"{document.name or 'the last document'} reads an adapter that is not made yet: "
                  "what it would do cannot be told before"])  # fmt: skip
            continue
        inputs = dict(models or {}) if last else {}
        inputs |= {key: results[path] for key, path in named.items() if path in results}
        job = open_job(document, inputs, machine=machine, documents=recipes[:place])
        target = None
        if last and out is not None:
            target = target_for(job, out, overwrite=overwrite)
        plans.append(plan_job(job, target))
        if isinstance(job.recipe.output, AdapterOutput):
            unseen.add(document.name)
        elif not last:
            results[str(document.name)] = _result(document, job, plans[-1])
    return plans


def _result(recipe: Recipe, job: Job, plan: Plan) -> Planned:
    specs = {step.tensor.name: step.tensor for step in plan.steps if step.action != "lose"}
    ties = {step.spec.name: step.twin for step in plan.steps if step.action == "tie" and step.twin}
    folder = job.donor or job.models.layout.folder
    headers = Planned(str(recipe.name), folder, specs, ties)
    kinds = kinds_of(headers, read_model_config(headers))
    return Planned(headers.source, folder, specs, ties, kinds)
