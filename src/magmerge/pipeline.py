"""merge(), calibrate() and plan(): the front door, from arguments to results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from magmerge.adapters.ranks import Rank, asked_output, check_machine
from magmerge.checkpoints.opening import Model
from magmerge.checkpoints.target import check_space
from magmerge.conducting import carry_out, donor_for, plan_for
from magmerge.device import CPU, open_device
from magmerge.memory import DEFAULT
from magmerge.publishing import Target
from magmerge.recipe import Calibrations
from magmerge.request import Experts, Gate, prepare, thread_count
from magmerge.result import Result
from magmerge.run import Progress
from magmerge.types import Plan
from magmerge.wanted import Wanted

if TYPE_CHECKING:
    from torch import nn

    from magmerge.adapters.nouns import Naming
    from magmerge.samples.rows import SampleOptions

    Samples = int | SampleOptions | Mapping[str, Any]
Order = Literal["once", "forward"]
Precision = Literal["float32", "bfloat16"]


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
    data: Any = None,
    samples: Samples = 8,
    model: nn.Module | str | None = None,
    build: str | None = None,
    order: Order = "once",
    precision: Precision = "float32",
    batchnorm: bool = False,
    offload: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    shard_size: str | int = "5GB",
    donor: str | Path | None = None,
    threads: int | None = None,
    memory: str | int = DEFAULT,
    device: str = CPU,
    rank: Rank = None,
    energy: float | None = None,
    naming: Naming | None = None,
    progress: Progress | None = None,
) -> Result:
    """Merge `experts` that share `base`, and calibrate the result if asked to.

    A model is a folder, a file, a mapping from names to tensors, or a torch module; an expert may
    be a LoRA adapter. `experts` is a sequence, or a mapping from names to models. `method`
    and `params` are what `magmerge methods` lists; `calibrate` names a calibrator, or is
    {"method": ..., "params": {...}}, or a list of these, applied in order. `gate`, `sensitive`,
    `skip`, `ignore`, `dtype` and `seed` are as in `Recipe`. With `out` the result is written to a
    folder (or one file, if it ends in .safetensors), in shards of at most `shard_size` bytes
    (5GB is 5 * 1000^3, 5GiB is 5 * 1024^3), with config and tokenizer of `donor` (default: the
    base's folder); without, it stays in memory. At most `memory` bytes are used beyond the
    interpreter, torch and a result that stays in memory, by `threads` layers or pieces of layers at
    once; `device` is where the arithmetic is done: cpu, or cuda. Neither changes the result, but
    for rounding on another device.

    A calibrator that looks at inputs runs the merged model on `data`: a source of unlabelled
    samples for each expert by its name, or one for all: a file, a folder, a data set, a tensor, or
    an iterable of model inputs. `samples` are drawn from each file, folder or data set (a number,
    or the fields of `SampleOptions`); what is in memory is used whole. `model` is the module to
    run, or its class in transformers, where config.json does not tell; `build` a function
    "package.module:function" that returns it. `order` "forward" calibrates each layer before the
    next is measured. `precision` is that of the run. `batchnorm` takes running statistics anew.
    `offload` runs the model block by block, with only one of them in memory.

    Adapters alone, without a base, give an adapter (`AdapterResult`). Each module's merge is cut
    off at `rank`: a number, "auto" (enough for the share `energy` of the squared norm), "exact"
    (all that the inputs span), or None (the largest that the module has in any input); a
    calibration comes after that. `naming` is that of the output, by default the first expert's.
    Raises MagmergeError's children.
    """
    wanted = Wanted(data, samples, model, build, order, precision, batchnorm, offload)
    recipe, sources = prepare(
        base=base,
        experts=experts,
        output=asked_output(rank, energy, naming),
        method=method,
        params=params,
        calibrate=calibrate,
        gate=gate,
        sensitive=sensitive,
        skip=skip,
        ignore=ignore,
        dtype=dtype,
        seed=seed,
        wanted=wanted,
    )
    if recipe.adapter is not None:
        from magmerge.adapters.conducting import carry_out_adapters

        check_machine(donor, device, shard_size)
        return carry_out_adapters(
            recipe,
            sources,
            out=out,
            overwrite=overwrite,
            threads=threads,
            memory=memory,
            progress=progress,
        )
    return carry_out(
        recipe,
        sources,
        wanted,
        base,
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
    data: Any = None,
    samples: Samples = 8,
    seed: int = 0,
    model: nn.Module | str | None = None,
    build: str | None = None,
    order: Order = "once",
    precision: Precision = "float32",
    batchnorm: bool = False,
    offload: bool = False,
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

    `method` and `params` name the calibrator; `seed` is that of drawing samples. What is not
    calibrated is carried over from `merged` bit for bit. All other arguments are those of `merge`;
    the donor is by default `merged`'s own folder.
    """
    wanted = Wanted(data, samples, model, build, order, precision, batchnorm, offload)
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
        seed=seed,
        wanted=wanted,
    )
    return carry_out(
        recipe,
        sources,
        wanted,
        merged,
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
    rank: Rank = None,
    energy: float | None = None,
    naming: Naming | None = None,
    **arguments: Any,
) -> Plan:
    """What `merge` with these arguments would do, from headers alone; raises what it would."""
    asked = {name: arguments.pop(name) for name in Wanted.__slots__ if name in arguments}
    output = asked_output(rank, energy, naming)
    recipe, sources = prepare(
        base=base, method=method, wanted=Wanted(**asked), output=output, **arguments
    )
    if recipe.adapter is not None:
        from magmerge.adapters.conducting import check_output
        from magmerge.adapters.planning import plan_adapters

        check_machine(donor, device, shard_size)
        if out is not None:
            check_output(out, recipe, sources, overwrite=overwrite)
        return plan_adapters(recipe, sources, threads=thread_count(threads), memory=memory)
    files = donor_for(donor, sources)
    target = None if out is None else Target.at(out, sources, overwrite=overwrite, donor=files)
    open_device(device)
    count = thread_count(threads)
    found = plan_for(recipe, sources, target, shard_size, files, count, memory)
    if target is not None:
        check_space(target.path, found.disk)
    return found
