"""A job to its plan: every fault is found here, from headers alone, before any tensor is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any, NamedTuple

from magmerge.checkpoints.donor import companion_files
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.checkpoints.output.target import Target
from magmerge.core import dtypes
from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
from magmerge.core.filters import matches
from magmerge.core.lazy import load
from magmerge.core.traits import Method
from magmerge.core.types import UNCHANGED, Action, Choice, Kind, Plan, Shard, Step, TensorSpec
from magmerge.engine.faults import check_structure, dtype_warnings, reading_notes, tied_everywhere
from magmerge.engine.form import AdapterForm, form_of
from magmerge.engine.job import Job, Models, Vote
from magmerge.engine.memory import allow, bytes_at_work, bytes_of_result, bytes_of_sums, needs_of
from magmerge.engine.outputs import place
from magmerge.engine.variation import Varying, check_varying


class _Fate(NamedTuple):
    action: Action
    reason: str
    twin: str | None = None
    voters: tuple[int, ...] | None = None


def make_plan(job: Job, target: Target | None = None) -> Plan:
    """Decide what happens to each tensor and where its bytes go.

    Raises StructureError with all faults that `check_structure` finds, and ParameterError for what
    no layer can have, or where the memory is too little.
    """
    config = read_model_config(job.models.layout)
    kinds = kinds_of(job.models.layout, config)
    form = form_of(job)
    more = [] if form is None else form.faults(job)
    if target is not None:
        more += load("magmerge.engine.load_faults:load_faults")(job, target)
    check_structure(job, more)
    varying = Varying(job.recipe, job.models.layout.specs)
    steps = [
        step for name in job.models.layout.specs for step in _steps(job, name, kinds[name], varying)
    ]
    check_varying(job.recipe, steps, len(job.models.experts))
    if job.recipe.calibrate and not any(step.calibrated for step in steps):
        raise ParameterError(
            "no tensor of this model is calibrated",
            source=job.models.layout.source,
            remedy="drop the calibration, or exempt less with --skip and --ignore",
        )
    steps = _mark_sensitive(steps, job)
    shards: Sequence[Shard] = ()
    if form is None:
        steps, shards = place(steps, job, target)
    else:
        steps = form.marked(job, steps)
    plan = _with_sizes(job, steps, shards, form)
    single = form is not None or (target is not None and target.single)
    texts = job.models.texts
    files = {name for name in companion_files(job.donor) if texts.get(name, b"") is not None}
    copied = () if single else tuple(sorted(files | {name for name in texts if texts[name]}))
    choices, blocks = varying.choices(steps), job.models.blocks
    return replace(plan, copied=copied, choices=choices, blocks=blocks)


def _with_sizes(
    job: Job, steps: Sequence[Step], shards: Sequence[Shard], form: AdapterForm | None
) -> Plan:
    """The plan with what it takes of memory and disk, and what its reader should know."""
    samples = job.recipe.samples
    live = 0 if samples is None else bytes_at_work(steps, samples, job.machine)
    live += bytes_of_sums(job, steps)
    if job.recipe.moe is not None and job.recipe.moe["router"] == "hidden":
        live = job.models.layout.live(job.machine.count)  # type: ignore[attr-defined]
    held = 0 if form is None else bytes_of_result(job, steps)
    needs = needs_of if form is None else form.needs
    # A replaced tensor is averaged in float32, beside one that is read.
    allowance = allow(job, steps, needs, taken=live + held)
    warnings = [*reading_notes(job.models), *dtype_warnings(job.models)]
    if form is not None:
        warnings += form.notes(job)
    quiet = job.takes and job.models.base is None and not job.models.made_of
    return Plan(
        digest=job.recipe.digest,
        steps=tuple(steps),
        shards=tuple(shards),
        disk=sum(shard.size for shard in shards) if form is None else held,
        memory=allowance.memory,
        room=allowance.room,
        piece=allowance.piece,
        live=live,
        copied=(),
        warnings=() if quiet else tuple(warnings),
    )


def _fate(job: Job, name: str, kind: Kind) -> _Fate:
    recipe, models, method = job.recipe, job.models, job.stages.method
    spec, twin = models.layout.specs[name], models.layout.ties.get(name)
    if job.takes and models.base is None and models.union is None:
        return _Fate("carry", "taken as it is")
    if twin is not None and tied_everywhere(models, name):
        return _Fate("tie", f"shares its memory with {twin}", twin)
    if matches(name, recipe.ignore):
        return _Fate("carry", "ignored by the recipe")
    if name in models.unmerged:
        return _Fate("carry", "a head for another number of classes than an expert's")
    if kind == "buffer":
        return _Fate("carry", f"{dtypes.torch_name(spec.dtype)} values are not merged")
    if 0 in spec.shape:
        return _Fate("carry", "no entries")
    if models.union is not None and name in models.union.replaced:
        owners = models.union.owners(name)
        return _Fate("average", "replaced as a whole: no base tells its change", None, owners)
    based = models.base is not None or models.union is not None
    if based and all(name in expert.untouched for expert in models.experts):
        return _Fate("carry", UNCHANGED)
    if recipe.merged is not None:
        calibrated = job.stages.treatment.acts_on(kind) and not matches(name, recipe.skip)
        return _Fate("merge", kind) if calibrated else _Fate("carry", kind)
    if kind == "statistics" and not job.takes:
        return _Fate("average", "running statistics are averaged")
    if method is not None and method.kinds is not None and kind not in method.kinds:
        return _Fate("mean", f"{kind}: lambda times the mean, {method.name} is for matrices")
    return _Fate("merge", kind)


def _steps(job: Job, name: str, kind: Kind, varying: Varying) -> list[Step]:
    """A tensor's step, or one for each run of rows that the same models have."""
    fate = _fate(job, name, kind)
    action, spec = fate.action, job.models.layout.specs[name]
    code = job.recipe.output.dtype
    if code is not None and spec.dtype in dtypes.FLOATS:
        spec = TensorSpec(name, spec.shape, code)
    elif job.models.union is not None:
        spec = TensorSpec(name, spec.shape, job.models.union.dtype(name if job.takes else None))
    calibrated = (
        action in ("merge", "mean")
        and job.stages.treatment.acts_on(kind)
        and not matches(name, job.recipe.skip)
    )
    models = [model for model in (job.models.layout, job.models.base) if model is not None]
    wide = any(name in model.specs and model.specs[name].dtype == "F64" for model in models)
    step = Step(
        spec,
        kind,
        action,
        fate.reason,
        calibrated=calibrated,
        twin=fate.twin,
        wide=wide,
        params=varying.at(name, action),
        voters=fate.voters,
        part="" if job.writes_adapter else _part_of(job.models, name),
    )
    parts = action in ("merge", "mean", "average")
    return _by_rows(step, job) if parts else [step]


def _part_of(models: Models, name: str) -> str:
    """The folder of a pipeline's part that a tensor belongs to; empty in any other model."""
    return models.layout.part_of(name) if hasattr(models.layout, "part_of") else ""


def _by_rows(step: Step, job: Job) -> list[Step]:
    """The step, or one for each run of rows that have the same voters: no vote is not a zero.

    Rows that the base has not are the mean of those who have them, and rows that no expert has are
    the base's. What samples would tell of such a tensor is not of all its rows: they calibrate none
    of it, and a merged model keeps its own.
    """
    name, shape, models = step.spec.name, step.spec.shape, job.models
    vote = models.votes.get(name)
    step = step if vote is None else _in_slice(step, vote, len(models.experts))
    places = range(len(models.experts)) if step.voters is None else step.voters
    holes = {place: models.experts[place].absent.get(name, ()) for place in places}
    # Where a slice has no base its method does without.
    own = getattr(models.base, "absent", {}).get(name, ()) if vote is None or vote.based else ()
    if step.action == "carry" or (not own and not any(holes.values())):
        return [step]
    if models.merged is not None:
        reason = "its rows are not those of the base and the experts"
        return [replace(step, action="carry", reason=reason, calibrated=False)]
    # Rows are along the first dimension that is not 1.
    axis = next((axis for axis, size in enumerate(shape) if size != 1), 0)
    cuts = {0, *(shape[axis : axis + 1] or (1,))}
    for part in (own, *holes.values()):
        cuts |= {edge for rows in part for edge in (rows.start, rows.stop)}
    edges, row = sorted(cuts), 1
    for size in shape[axis + 1 :]:
        row *= size
    steps = []
    for start, stop in pairwise(edges):
        voters = tuple(
            place for place, part in holes.items() if not any(start in rows for rows in part)
        )
        bare = any(start in rows for rows in own)
        action, reason = _fate_of_rows(step, len(voters), job.stages.method, bare=bare)
        rows = (*shape[:axis], stop - start, *shape[axis + 1 :]) if shape else ()
        part = replace(step.spec, shape=rows)
        steps.append(
            replace(
                step,
                spec=part,
                action=action,
                reason=reason,
                calibrated=step.calibrated and action == step.action and job.recipe.samples is None,
                voters=voters or None,
                whole=shape,
                first=start * row,
            )
        )
    return steps


def _in_slice(step: Step, vote: Vote, experts: int) -> Step:
    """The step with the voters of its slice; without a base nothing tells what the merge changed,
    so it is not calibrated.
    """
    if not vote.experts:
        reason = f"no expert has a part in slice {vote.slice}"
        return replace(step, action="carry", reason=reason, calibrated=False)
    voters = None if vote.experts == tuple(range(experts)) else vote.experts
    return replace(step, voters=voters, calibrated=step.calibrated and vote.based)


def _fate_of_rows(
    step: Step, voters: int, method: Method | None, *, bare: bool
) -> tuple[Action, str]:
    """What becomes of rows that so many experts have, and why; `bare`: the base has them not."""
    if not voters:
        return "carry", "no expert has these rows"
    if bare:
        return "average", "the base has not these rows"
    if step.action == "merge" and method is not None and voters < method.experts[0]:
        return "average", "too few experts have these rows for the method"
    return step.action, step.reason


def _mark_sensitive(steps: list[Step], job: Job) -> list[Step]:
    """Mark the layers of the sensitive list, by tensor name or by module name, never in part.

    A layer's weight and bias are marked together: they have one factor in feature space.
    """
    if not job.recipe.sensitive:
        return steps
    if job.recipe.gate == "off":
        raise ParameterError(
            "a list of sensitive layers without a gated calibration has no effect",
            remedy="add --calibrate and leave --gate on, or drop --sensitive",
        )
    names = [step.spec.name for step in steps if step.calibrated]
    layers: dict[str, set[str]] = {}
    for name in names:
        layers.setdefault(_layer_of(name), set()).add(name)
        layers.setdefault(name.rpartition(".")[0] or name, set()).add(name)
    for name in names:
        # torch's attention holds the projection of its output, and is one layer to a ranking.
        whole, _, last = name.rpartition(".out_proj.")
        if last and whole in layers:
            layers[whole].add(name)
    sensitive = set()
    for entry in job.recipe.sensitive:
        layer = layers.get(_layer_of(entry) if entry in names else entry)
        if layer is None:
            raise UnknownNameError(
                f"the sensitive layer {entry!r} is none of the calibrated ones",
                remedy=suggestion(entry, layers),
            )
        sensitive |= layer
    return [
        replace(step, sensitive=True) if step.spec.name in sensitive else step for step in steps
    ]


def _layer_of(name: str) -> str:
    """The layer that a weight or bias belongs to; any other tensor is one of its own."""
    layer, _, last = name.rpartition(".")
    return layer if layer and last in ("weight", "bias") else name


def describe(plan: Plan) -> dict[str, Any]:
    """The plan for a program to read: everything but the headers' bytes."""
    return {
        "digest": plan.digest,
        "steps": [{**asdict(step), "params": dict(step.params)} for step in plan.steps],
        "choices": [_choice(choice) for choice in plan.choices],
        "blocks": list(plan.blocks),
        "shards": [{"file": shard.file, "size": shard.size} for shard in plan.shards],
        "disk": plan.disk,
        "memory": plan.memory,
        "piece": plan.piece,
        "live": plan.live,
        "copied": list(plan.copied),
        "warnings": list(plan.warnings),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    """A choice, with layers where it is for some."""
    told = asdict(choice)
    quiet = () if choice.layers else ("layers", "stack")
    return {key: value for key, value in told.items() if key not in quiet}
