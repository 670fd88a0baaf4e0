"""merge(), calibrate() and plan(): join recipe, plan, layers and writer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from magmerge import dtypes, registry
from magmerge.binding import bind
from magmerge.checkpoints.compare import check_distinct, check_merged
from magmerge.checkpoints.donor import check_donor, companion_files
from magmerge.checkpoints.opening import Model
from magmerge.checkpoints.target import check_space
from magmerge.checkpoints.writer import MemorySink, Sink
from magmerge.device import CPU, open_device
from magmerge.errors import OutputError, ParameterError, printable
from magmerge.memory import DEFAULT
from magmerge.models import Sources
from magmerge.planning import make_plan
from magmerge.publishing import Filled, Target, warn, write
from magmerge.reading import Reader
from magmerge.recipe import Calibrations, Recipe, keywords
from magmerge.request import Experts, Gate, prepare, thread_count
from magmerge.result import Result
from magmerge.run import Progress, Work, execute
from magmerge.types import LayerRecord, Plan

CORRELATED = 0.1
"""Mean cosine of task vectors above which WSC's ellipsoid makes the factor too small."""


def merge(
    *,
    base: Model | None = None,
    experts: Experts,
    method: str = "task_arithmetic",
    params: Mapping[str, Any] | None = None,
    calibrate: Calibrations | list[Calibrations] = None,
    gate: Gate = "on",
    sensitive: str | Path | Iterable[str] = (),
    skip: Iterable[str] = (),
    ignore: Iterable[str] = (),
    dtype: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    shard_size: str | int = "5GB",
    donor: str | Path | None = None,
    threads: int | None = None,
    memory: str | int = DEFAULT,
    device: str = CPU,
    progress: Progress | None = None,
) -> Result:
    """Merge `experts` that share `base`, and calibrate the result if asked to.

    A model is a folder, a file, a mapping from names to tensors, or a torch module; an expert may
    be a PEFT adapter folder. `experts` is a sequence, or a mapping from names to models. `method`
    and `params` are what `magmerge methods` lists; `calibrate` names a calibrator, or is
    {"method": ..., "params": {...}}, or a list of these, applied in order. `gate`, `sensitive`,
    `skip`, `ignore`, `dtype` and `seed` are as in `Recipe`. With `out` the result is written to a
    folder (or one file, if it ends in .safetensors), in shards of at most `shard_size` bytes
    (5GB is 5 * 1000^3, 5GiB is 5 * 1024^3), with config and tokenizer of `donor` (default: the
    base's folder); without, it stays in memory. At most `memory` bytes are used beyond the
    interpreter, torch and a result that stays in memory, by `threads` layers or pieces of layers at
    once; `device` is where the arithmetic is done: cpu, or cuda. Neither changes the result, but
    for rounding on another device. Raises MagmergeError's children.
    """
    recipe, sources = prepare(
        base=base,
        experts=experts,
        method=method,
        params=params,
        calibrate=calibrate,
        gate=gate,
        sensitive=sensitive,
        skip=skip,
        ignore=ignore,
        dtype=dtype,
        seed=seed,
    )
    return _carry_out(
        recipe,
        sources,
        out=out,
        overwrite=overwrite,
        shard_size=shard_size,
        donor=donor,
        threads=threads,
        memory=memory,
        device=device,
        progress=progress,
    )


def calibrate(
    merged: Model,
    *,
    base: Model,
    experts: Experts,
    method: str = "wsc",
    params: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    gate: Gate = "on",
    sensitive: str | Path | Iterable[str] = (),
    skip: Iterable[str] = (),
    ignore: Iterable[str] = (),
    dtype: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    shard_size: str | int = "5GB",
    donor: str | Path | None = None,
    threads: int | None = None,
    memory: str | int = DEFAULT,
    device: str = CPU,
    progress: Progress | None = None,
) -> Result:
    """Calibrate a merged checkpoint that any tool made, given its base and experts.

    `method` and `params` name the calibrator; `data` holds samples for calibrators that need
    inputs, by expert. What is not calibrated is carried over from `merged` bit for bit. All other
    arguments are those of `merge`; the donor is by default `merged`'s own folder.
    """
    needs = registry.calibrators.get(method).needs
    if (data is not None) != (needs == "inputs"):
        raise ParameterError(
            f"{method} {'needs' if needs == 'inputs' else 'takes no'} data",
            remedy="give one iterable of model inputs per expert"
            if needs == "inputs"
            else "drop data: this calibrator looks at weights only",
        )
    recipe, sources = prepare(
        base=base,
        experts=experts,
        merged=merged,
        calibrate={"method": method, "params": dict(params or {})},
        gate=gate,
        sensitive=sensitive,
        skip=skip,
        ignore=ignore,
        dtype=dtype,
    )
    return _carry_out(
        recipe,
        sources,
        out=out,
        overwrite=overwrite,
        shard_size=shard_size,
        donor=donor,
        threads=threads,
        memory=memory,
        device=device,
        progress=progress,
    )


def plan(
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    shard_size: str | int = "5GB",
    donor: str | Path | None = None,
    threads: int | None = None,
    memory: str | int = DEFAULT,
    device: str = CPU,
    method: str = "task_arithmetic",
    base: Model | None = None,
    **arguments: Any,
) -> Plan:
    """What `merge` with these arguments would do, from headers alone; raises what it would."""
    recipe, sources = prepare(base=base, method=method, **arguments)
    files = _donor(donor, sources)
    target = None if out is None else Target.at(out, sources, overwrite=overwrite, donor=files)
    open_device(device)
    count = thread_count(threads)
    found = _plan(recipe, sources, target, shard_size, files, count, memory)
    if target is not None:
        check_space(target.path, found.disk)
    return found


def _carry_out(
    recipe: Recipe,
    sources: Sources,
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
    files = _donor(donor, sources)
    target = None if out is None else Target.at(out, sources, overwrite=overwrite, donor=files)
    found = _plan(recipe, sources, target, shard_size, files, count, memory)
    names = [step.spec.name for step in found.steps if step.action in ("merge", "mean", "average")]
    check_distinct(sources.base, sources.experts, names)
    if sources.merged is not None and sources.base is not None:
        check_merged(sources.merged, sources.base, sources.experts, names)
    warn(found.warnings)
    work = Work(found, bind(recipe), sources, Reader(sources, engine), engine, recipe.seed)

    def fill(sink: Sink) -> Filled:
        records, carried = execute(work, sink, threads=count, progress=progress)
        notes = (*carried, *_correlations(recipe, records))
        warn(notes)
        return Filled(records, (*found.warnings, *notes))

    kept = MemorySink()
    if target is None:
        filled = fill(kept)
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
    )


def _plan(
    recipe: Recipe,
    sources: Sources,
    target: Target | None,
    shard_size: str | int,
    donor: Path | None,
    threads: int,
    memory: str | int,
) -> Plan:
    return make_plan(
        recipe,
        sources,
        shard_size=dtypes.parse_size(shard_size),
        single_file=target.single_file if target else None,
        metadata=target.metadata(recipe) if target else {},
        copied=[] if target and target.single else sorted(companion_files(donor)),
        threads=threads,
        memory=dtypes.parse_size(memory),
    )


def _donor(donor: str | Path | None, sources: Sources) -> Path | None:
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
    check_donor(folder, sources.layout.folder)
    return folder


def _correlations(recipe: Recipe, records: list[LayerRecord]) -> tuple[str, ...]:
    """Where task vectors are too alike for what a calibrator assumes of them."""
    notes = []
    for calibration in recipe.calibrate:
        item = registry.calibrators.get(calibration.method)
        if not item.near_orthogonal(**keywords(item, calibration.params)):
            continue
        high = [r for r in records if r.cosine is not None and r.cosine > CORRELATED]
        low = [r for r in records if r.cosine is not None and r.cosine < -CORRELATED]
        if len(low) > len(records) / 2:
            notes.append(
                f"the experts' task vectors point away from each other in {len(low)} layers (mean "
                f"cosine below -{CORRELATED}); is {recipe.base} really their base?"
            )
        if high:
            worst = max(high, key=lambda record: record.cosine or 0.0)
            among = sum(record.cosine is not None for record in records)
            notes.append(
                f"{item.name} assumes near-orthogonal task vectors, but in {len(high)} of {among} "
                f"layers their mean cosine is above {CORRELATED} ({printable(worst.name)}: "
                f"{worst.cosine:.2f}), so xi is too small there; consider target=sphere "
                f"(--set {item.name}.target=sphere)"
            )
    return tuple(notes)
