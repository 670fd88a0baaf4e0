"""From a recipe and opened models to a finished result: plan, samples, work, writing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magmerge import dtypes, registry
from magmerge.binding import bind
from magmerge.checkpoints.compare import check_distinct, check_merged, doubts
from magmerge.checkpoints.donor import check_donor, companion_files, weights_file
from magmerge.checkpoints.opening import Model
from magmerge.checkpoints.writer import MemorySink, Sink
from magmerge.device import open_device
from magmerge.errors import OutputError, printable
from magmerge.models import Sources
from magmerge.planning import make_plan
from magmerge.publishing import Filled, Target, check_unchanged, warn, write
from magmerge.reading import Reader
from magmerge.recipe import Recipe, keywords
from magmerge.request import thread_count
from magmerge.result import Result
from magmerge.run import Progress, Work, execute
from magmerge.types import LayerRecord, Plan, Uncovered
from magmerge.wanted import Wanted

if TYPE_CHECKING:
    from magmerge.live_merge import Running
    from magmerge.samples.rows import Inputs

CORRELATED = 0.1
"""Mean cosine of task vectors above which WSC's ellipsoid makes the factor too small."""


def carry_out(
    recipe: Recipe,
    sources: Sources,
    wanted: Wanted,
    layout: Model | None,
    *,
    out: str | Path | None,
    overwrite: bool,
    shard_size: str | int,
    donor: str | Path | None,
    threads: int | None,
    memory: str | int,
    device: str,
    progress: Progress | None,
) -> Result:
    count, engine = thread_count(threads), open_device(device)
    files = donor_for(donor, sources)
    target = None if out is None else Target.at(out, sources, overwrite=overwrite, donor=files)
    found = plan_for(recipe, sources, target, shard_size, files, count, memory)
    inputs = _inputs(recipe, sources, wanted, files)
    _check_models(found, sources)
    told = (*found.warnings, *doubts(sources, found.steps))
    warn(told)
    work = Work(found, bind(recipe), sources, Reader(sources, engine), engine, recipe.seed)
    uncovered: tuple[Uncovered, ...] = ()
    if recipe.sampling is not None:
        running = wanted.running(recipe.sampling, _origin(layout, sources), device)
        work, uncovered = _measured(work, inputs, running, count, progress)

    def fill(sink: Sink) -> Filled:
        records, carried = execute(work, sink, threads=count, progress=progress)
        notes = (*carried, *correlations(recipe, records))
        warn(notes)
        return Filled(records, (*told, *notes), uncovered)

    kept = MemorySink()
    if target is None:
        filled = fill(kept)
        check_unchanged(sources.stamps)
    else:
        filled = write(
            target, found, recipe, sources, files, fill, threads=count, progress=progress
        )
    return Result(
        recipe=recipe,
        plan=found,
        records=tuple(filled.records),
        warnings=filled.warnings,
        path=None if target is None else target.path,
        sources=sources,
        donor=files,
        tensors=kept.tensors if target is None else None,
        uncovered=uncovered,
    )


def _check_models(found: Plan, sources: Sources) -> None:
    """No two models are the same, as far as what is merged goes."""
    names = [step.spec.name for step in found.steps if step.action in ("merge", "mean", "average")]
    check_distinct(sources.base, sources.experts, names)
    if sources.merged is not None and sources.base is not None:
        check_merged(sources.merged, sources.base, sources.experts, names)


def _inputs(
    recipe: Recipe, sources: Sources, wanted: Wanted, donor: Path | None
) -> dict[str, list[Inputs]]:
    """The samples, read before any long work."""
    if recipe.sampling is None:
        return {}
    folder = donor or (None if sources.base is None else sources.base.folder)
    return wanted.inputs([expert.name for expert in sources.experts], folder, recipe.seed)


def _origin(layout: Model | None, sources: Sources) -> object:
    """The module, or the folder with config.json, that the merged model is run as."""
    if layout is not None and hasattr(layout, "named_modules"):
        return layout
    folders = [sources.layout.folder, None if sources.base is None else sources.base.folder]
    return next((f for f in folders if f is not None and (f / "config.json").is_file()), None)


def _measured(
    work: Work,
    inputs: Mapping[str, list[Inputs]],
    running: Running,
    threads: int,
    progress: Progress | None,
) -> tuple[Work, tuple[Uncovered, ...]]:
    """The work with what its calibrators need to know of the merged model's features."""
    from magmerge.estimation import estimate

    found = estimate(work, inputs, running, threads=threads, progress=progress)
    treatment = replace(work.bound.treatment, gains=found.gains)
    bound = replace(work.bound, treatment=treatment)
    return replace(work, bound=bound, statistics=found.statistics), found.uncovered


def plan_for(
    recipe: Recipe,
    sources: Sources,
    target: Target | None,
    shard_size: str | int,
    donor: Path | None,
    threads: int,
    memory: str | int,
) -> Plan:
    size = dtypes.parse_size(shard_size)
    return make_plan(
        recipe,
        sources,
        shard_size=None if target and target.single else size,
        file=target.weights if target else weights_file(donor),
        metadata=target.metadata(recipe) if target else {},
        copied=[] if target and target.single else sorted(companion_files(donor)),
        threads=threads,
        memory=dtypes.parse_size(memory),
    )


def donor_for(donor: str | Path | None, sources: Sources) -> Path | None:
    """The folder that config and tokenizer are taken from."""
    if donor is None:
        return sources.layout.folder
    folder = Path(donor)
    if not folder.is_dir():
        raise OutputError(
            "the donor of config and tokenizer is no folder",
            source=folder,
            remedy="name the folder of a model with --donor (donor=)",
        )
    check_donor(folder, sources.layout)
    return folder


def correlations(recipe: Recipe, records: list[LayerRecord]) -> tuple[str, ...]:
    """Where task vectors are too alike for what a calibrator assumes of them."""
    notes = []
    for calibration in recipe.calibrate:
        item = registry.calibrators.get(calibration.method)
        if not item.near_orthogonal(**keywords(item, calibration.params)):
            continue
        seen = [r for r in records if r.cosine is not None and item.name in r.calibrated_by]
        high = [r for r in seen if (r.cosine or 0.0) > CORRELATED]
        low = [r for r in seen if (r.cosine or 0.0) < -CORRELATED]
        if len(low) > len(seen) / 2:
            notes.append(
                f"the experts' task vectors point away from each other in {len(low)} layers (mean "
                f"cosine below -{CORRELATED}); is {recipe.base} really their base?"
            )
        if high:
            worst = max(high, key=lambda record: record.cosine or 0.0)
            notes.append(
                f"{item.name} assumes near-orthogonal task vectors, but in {len(high)} of "
                f"{len(seen)} layers their mean cosine is above {CORRELATED} "
                f"({printable(worst.name)}: {worst.cosine:.2f}), so xi is too small there; "
                f"consider target=sphere (--set {item.name}.target=sphere)"
            )
    return tuple(notes)
