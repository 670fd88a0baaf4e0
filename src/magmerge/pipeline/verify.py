"""verify(): whether what is written is what its library loads, and what its recipe gives."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple

from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.load_checks import Check
from magmerge.checkpoints.loader import adapts, adapts_parts, open_checkpoint, place_of
from magmerge.checkpoints.output.own_files import RECIPE
from magmerge.checkpoints.output.shelf import Shelf
from magmerge.core.errors import Fault, MagmergeError, no_such_model
from magmerge.core.lazy import Tabular
from magmerge.core.lazy import load as loaded
from magmerge.core.machine import Machine
from magmerge.core.models import Checkpoint
from magmerge.engine.input_record import recorded_recipe
from magmerge.engine.job import Live
from magmerge.engine.recomputation import (
    NAME,
    SAMPLE,
    computed_again,
    first_line,
    hindrance,
)
from magmerge.engine.resolve import open_job
from magmerge.engine.verification import (
    beside,
    header_checks,
    record_checks,
    record_of,
    tensor_checks,
)
from magmerge.pipeline.documents import Call, last_job, measured
from magmerge.pipeline.recipe_files import check_documents, read_recipes

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
    live: Live | None = None,
    machine: Machine | None = None,
) -> Verification:
    """Check a written model: a folder, a file, an adapter or a pipeline, magmerge's own or not.

    Its files are read as they are: names, shapes, config and tokenizer against each other; every
    tensor is finite, and as the record beside it tells. Where the inputs of its recipe (by default
    magmerge.yaml beside it) are at hand, some tensors are computed again and compared bit for bit;
    all of them with `every`. `against` is a recipe that the model is to be the result of: then what
    cannot be checked of it is a fault too: its digest, the inputs', and the tensors, also of
    adapters, of recipes with samples, which are measured again, and of several documents. `live` is
    what a call adds to such a recipe, such as that it may call the function that it names (build).
    With `load` its own library builds it, loads it, and runs it once; code of a checkpoint's own
    never runs. Faults are in the result, each with a remedy; raises CheckpointError only where
    nothing is at the path.
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
        proof = _Proof(against, beside(place, RECIPE).parent, every, Call({}, machine, live))
        checks = [*map(_proven, checks), *_against(checkpoint, record, proof)]
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
    reason = hindrance(recipes)
    if reason is not None:
        return Check(NAME, seen=reason, done=False)
    try:
        job = open_job(recipes[0], {}, machine=machine)
    except (MagmergeError, OSError) as error:
        return Check(NAME, seen=first_line(error), done=False)
    return computed_again(checkpoint, job, count=None if every else SAMPLE)


class _Proof(NamedTuple):
    """A recipe that a model is to be the result of, and how it is carried out once more."""

    recipe: str | Path
    folder: Path
    every: bool
    call: Call


def _against(checkpoint: Checkpoint, record: Mapping[str, Any], proof: _Proof) -> Iterator[Check]:
    """The recipe of the call is the one that the record tells, and gives the model's tensors.

    Documents before the last are carried out first, as a whole, into a folder that is gone soon.
    """
    recipes, live = read_recipes(proof.recipe), proof.call.live or Live()
    check_documents(recipes)
    reason = hindrance(recipes, live)
    if reason is not None:
        yield from _not_proven(record, Fault(f"not proven: {reason}", AT_HAND))
        return
    with TemporaryDirectory(prefix="magmerge-verify-") as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                job = last_job(recipes, Shelf(Path(folder)), proof.call)
        except (MagmergeError, OSError) as error:
            source = getattr(error, "source", None) or proof.recipe
            text = f"not proven: {source}: {first_line(error)}"
            yield from _not_proven(record, Fault(text, getattr(error, "remedy", "") or AT_HAND))
            return
        if record.get("recipe_digest") is not None:
            told = {job.recipe.digest, recorded_recipe(job, proof.folder).digest}
            yield _as_recorded(told, record["recipe_digest"], proof.recipe)
        count = None if proof.every else SAMPLE
        yield _proven(computed_again(checkpoint, job, measure=measured, count=count))


def _not_proven(record: Mapping[str, Any], fault: Fault) -> Iterator[Check]:
    """That neither the recipe nor the tensors could be checked."""
    if record.get("recipe_digest") is not None:
        yield Check("recipe", (fault,))
    yield Check(NAME, (fault,))


def _as_recorded(told: Collection[str], digest: str, recipe: str | Path) -> Check:
    """Whether the recipe, written out with its models as they are called from here (as records once
    had them) or from the result, has the digest that the record tells.
    """
    text = f"the record tells the recipe {digest}, and {recipe} is {' or '.join(sorted(told))}"
    remedy = "give the recipe as it was carried out: the magmerge.yaml beside the result"
    faults = () if digest in told else (Fault(text, remedy),)
    return Check("recipe", faults, f"{digest} is the recipe that the record tells")


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
