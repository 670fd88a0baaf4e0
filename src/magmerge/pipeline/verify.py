"""verify(): whether what is written is what its library loads, and what its recipe gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.load_checks import Check
from magmerge.checkpoints.loader import adapts, adapts_parts, open_checkpoint, place_of
from magmerge.checkpoints.output.own_files import RECIPE
from magmerge.core.errors import Fault, MagmergeError, no_such_model
from magmerge.core.lazy import Tabular
from magmerge.core.lazy import load as loaded
from magmerge.core.machine import Machine
from magmerge.core.models import Checkpoint
from magmerge.core.recipe import Recipe
from magmerge.engine.recomputation import NAME, SAMPLE, computed_again
from magmerge.engine.resolve import open_job
from magmerge.engine.verification import (
    beside,
    header_checks,
    record_checks,
    record_of,
    tensor_checks,
)
from magmerge.pipeline.documents import measured, read_recipes

AT_HAND = "have all that the recipe names at hand, each where the recipe says"


@dataclass(frozen=True, slots=True)
class Verification(Tabular):
    """What was checked of a model, in order."""

    tabled: ClassVar[str] = "magmerge.pipeline.verification_table:verification_table"
    source: str
    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        """Whether no check has a fault."""
        return not any(check.faults for check in self.checks)


def verify(
    model: str | Path,
    *,
    against: str | Path | None = None,
    every: bool = False,
    load: bool = False,
    machine: Machine | None = None,
) -> Verification:
    """Check a written model: a folder, a file, an adapter or a pipeline, magmerge's own or not.

    Its files are read as they are: names, shapes, config and tokenizer against each other; every
    tensor is finite, and as the record beside it tells. Where the inputs of its recipe (by default
    magmerge.yaml beside it) are at hand, some tensors are computed again and compared bit for bit;
    all of them with `every`. `against` is a recipe that the model is to be the result of: then what
    cannot be checked of it is a fault too: its digest, the inputs', and the tensors, also of
    adapters and of recipes with samples, which are measured again. With `load` its own library
    builds it, loads it, and runs it once; code of a checkpoint's own never runs. Faults are in the
    result, each with a remedy; raises CheckpointError only where nothing is at the path.
    """
    machine = machine or Machine()
    model = str(loaded("magmerge.checkpoints.named:pinned")(model, machine)[0])
    place = place_of(model)
    if not place.exists():
        raise no_such_model(place)
    record = record_of(place)
    try:
        checkpoint = _opened(place)
    except MagmergeError as error:
        fault = Fault(f"{error.source or place}: {error.problem}", error.remedy or "")
        return Verification(model, (Check("files", (fault,)),))
    files = Check("files", seen=", ".join(file.name for file in checkpoint.files))
    checks = [
        files,
        *header_checks(checkpoint),
        *tensor_checks(checkpoint, machine, record),
        *record_checks(place, record),
    ]
    if against is not None:
        checks = [*map(_proven, checks), *_against(checkpoint, record, against, machine, every)]
    else:
        checks.append(_again(checkpoint, place, machine, every))
    if load:
        checks += loaded("magmerge.live.load_trial:load_trial")(place)
    return Verification(model, tuple(checks))


def _again(checkpoint: Checkpoint, place: Path, machine: Machine, every: bool) -> Check:
    """The tensors that the recipe beside the model makes, if there is one."""
    own = beside(place, RECIPE)
    try:
        recipes = read_recipes(own) if own.is_file() else []
    except MagmergeError as error:
        return Check("recipe", (Fault(f"{own}: {error.problem}", error.remedy or ""),))
    return computed_again(checkpoint, recipes, machine, count=None if every else SAMPLE)


def _against(
    checkpoint: Checkpoint,
    record: Mapping[str, Any],
    recipe: str | Path,
    machine: Machine,
    every: bool,
) -> Iterator[Check]:
    """The recipe of the call is the one that the record tells, and gives the model's tensors."""
    recipes = read_recipes(recipe)
    digest = record.get("recipe_digest")
    if digest is not None and len(recipes) == 1:
        yield _as_recorded(recipes[0], digest, recipe, machine)
    count = None if every else SAMPLE
    yield _proven(computed_again(checkpoint, recipes, machine, measure=measured, count=count))


def _as_recorded(own: Recipe, digest: str, recipe: str | Path, machine: Machine) -> Check:
    """Whether the recipe, written out with its models, has the digest that the record tells."""
    try:
        told = open_job(own, {}, machine=machine).recipe.digest
    except (MagmergeError, OSError) as error:
        problem = f"{getattr(error, 'source', None) or recipe}: {getattr(error, 'problem', error)}"
        return Check(
            "recipe", (Fault(f"not proven: {problem}", getattr(error, "remedy", "") or AT_HAND),)
        )
    text = f"the record tells the recipe {digest}, and {recipe} is {told}"
    remedy = "give the recipe as it was carried out: the magmerge.yaml beside the result"
    faults = () if digest == told else (Fault(text, remedy),)
    return Check("recipe", faults, f"{told} is the recipe that the record tells")


def _proven(check: Check) -> Check:
    """A check of what a recipe says, which is a fault where it could not be made."""
    if check.done or check.name not in ("inputs", NAME):
        return check
    text = f"not proven: {check.seen or 'no input is at hand'}"
    return Check(check.name, (Fault(text, AT_HAND),))


def _opened(place: Path) -> Checkpoint:
    """The model, or an adapter whose configuration is found to fit its keys."""
    if adapts(place):
        adapter = open_adapter(place)
        if adapts_parts(place):
            from_parts = loaded("magmerge.checkpoints.pipeline_folder:PipelineFolder")
            parts = {name: open_checkpoint(place / name) for name in adapter.config}
            return from_parts(str(place), None, parts)  # type: ignore[no-any-return]
    return open_checkpoint(place)
