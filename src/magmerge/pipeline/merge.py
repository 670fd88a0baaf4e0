"""The verbs that merge: each builds a recipe, and run() carries every recipe out in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from magmerge.checkpoints.loader import Model
from magmerge.core.errors import ParameterError
from magmerge.core.filters import patterns
from magmerge.core.machine import CPU, DEFAULT_MEMORY, Machine, Manner, Progress, shown_progress
from magmerge.core.models import strengths_as_weights
from magmerge.core.parameters import BOUND
from magmerge.core.recipe import LATER, Calibration, Recipe
from magmerge.core.validation import check_calibrations, check_rank, read_sensitive
from magmerge.engine.job import Job
from magmerge.engine.opening import EXPERT, experts_by_name
from magmerge.engine.outputs import target_for
from magmerge.engine.result import Result
from magmerge.engine.run import run_job
from magmerge.engine.samples import samples_of
from magmerge.pipeline.documents import measured, opened, result_pages, run

if TYPE_CHECKING:
    from torch import nn

    from magmerge.core.types import Naming
    from magmerge.data.rows import SampleOptions
    from magmerge.engine.adapters.adapter_result import Extraction

    Samples = int | SampleOptions | Mapping[str, Any]
Experts = Sequence[Model] | Mapping[str, Model]
Gate = Literal["on", "off"]
Order = Literal["once", "forward"]
Precision = Literal["float32", "bfloat16"]
Rank = int | Literal["auto", "exact"] | None
Rename = Mapping[str, str] | Mapping[str, Mapping[str, str]]
Calibrations = str | Mapping[str, Any] | Calibration | None


def merge(
    *,
    base: Model | None = None,
    experts: Experts,
    method: str = "task_arithmetic",
    params: Mapping[str, Any] | None = None,
    calibrate: Calibrations | list[Calibrations] = None,
    gate: Gate = "on",
    bound: float | Literal["off"] = BOUND,
    sensitive: str | Path | Iterable[str] = (),
    skip: Iterable[str] = (),
    ignore: Iterable[str] = (),
    rename: Rename | None = None,
    weights: str | Mapping[str, str] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    tokenizer: str | None = None,
    tokens: Mapping[str, Any] | None = None,
    pad_to_multiple_of: int | None = None,
    chat_template: str | None = None,
    data: Any = None,
    samples: Samples = 8,
    statistics: Mapping[str, str | Path] | None = None,
    model: nn.Module | str | None = None,
    build: str | None = None,
    order: Order = "once",
    precision: Precision = "float32",
    batchnorm: bool = False,
    keep_best: bool = False,
    offload: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    shard_size: str | int = "5GB",
    donor: str | Path | None = None,
    force: bool = False,
    threads: int | None = None,
    memory: str | int = DEFAULT_MEMORY,
    device: str = CPU,
    stream: bool = False,
    sha256: bool = False,
    rank: Rank = None,
    energy: float | None = None,
    naming: Naming | None = None,
    progress: Progress | None = None,
) -> Result:
    """Merge `experts` that share `base`, and calibrate the result if asked to.

    A model is a folder, a file, a mapping from names to tensors, or a torch module; an expert may
    be a LoRA adapter. `experts` is a sequence, or a mapping from names to models. `method`
    and `params` are what `magmerge methods` lists; `calibrate` names a calibrator, or is
    {"method": ..., "params": {...}}, or a list of these, applied in order. `gate`, `bound`,
    `sensitive`, `skip`, `ignore`, `rename`, `weights`, `dtype`, `seed`, `tokenizer`, `tokens`,
    `pad_to_multiple_of` and `chat_template` are as in `Recipe`. With `out` the result is written to
    a folder (or a file ending in .safetensors), in shards of at most `shard_size` bytes (5GB,
    5GiB), with config and tokenizer of `donor` (default: the base's folder); without, it stays in
    memory. A folder that its library would not load is written only with `force`. With `resume`
    what a killed run left there is gone on with. At most `memory` bytes are used beyond the
    interpreter, torch and a result in memory, by `threads` pieces at once; `device` (cpu, cuda)
    does the arithmetic: no other bits, but for rounding elsewhere. With `stream` models of the hub
    are read there. With `sha256` inputs are read once more, and their files' SHA-256 recorded.

    A calibrator that looks at inputs runs the merged model on `data`: a source of unlabelled
    samples for each expert by its name, or one for all: a file, a folder, a data set, a tensor, or
    an iterable of model inputs. `samples` are drawn from each (a number, or the fields of
    `SampleOptions`); what is in memory is used whole. `statistics` are files of `statistics()` by
    expert, in place of `data`. `model` is the module to run, or its class in transformers; `build`
    a function "package.module:function" that returns it. `order` "forward" calibrates each layer
    before the next is measured. `precision` is that of the run. `batchnorm` takes running
    statistics anew. `keep_best` leaves a calibration out that is worse than the merge on held-out
    rows, and writes nothing where the base is the best. `offload` runs the model with one of its
    blocks in memory.

    Adapters alone, without a base, give an adapter (`AdapterResult`). Each module's merge is cut
    off at `rank`: a number, "auto" (enough for the share `energy` of the squared norm), "exact"
    (all that the inputs span), or None (the largest that the module has in any input); a
    calibration comes after that. `naming` is that of the output, by default the first expert's.
    With a base, `rank` asks for the merge as an adapter on it. Raises MagmergeError's children.
    """
    return _run(locals())


def calibrate(
    merged: Model,
    *,
    base: Model,
    experts: Experts,
    method: str = "wsc",
    params: Mapping[str, Any] | None = None,
    data: Any = None,
    samples: Samples = 8,
    statistics: Mapping[str, str | Path] | None = None,
    seed: int = 0,
    model: nn.Module | str | None = None,
    build: str | None = None,
    order: Order = "once",
    precision: Precision = "float32",
    batchnorm: bool = False,
    keep_best: bool = False,
    offload: bool = False,
    gate: Gate = "on",
    bound: float | Literal["off"] = BOUND,
    sensitive: str | Path | Iterable[str] = (),
    skip: Iterable[str] = (),
    ignore: Iterable[str] = (),
    rename: Rename | None = None,
    weights: str | Mapping[str, str] | None = None,
    dtype: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    shard_size: str | int = "5GB",
    donor: str | Path | None = None,
    force: bool = False,
    threads: int | None = None,
    memory: str | int = DEFAULT_MEMORY,
    device: str = CPU,
    stream: bool = False,
    sha256: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Calibrate a merged checkpoint that any tool made, given its base and experts.

    `method` and `params` name the calibrator; `seed` is that of drawing samples. What is not
    calibrated is carried over from `merged` bit for bit. All other arguments are those of `merge`;
    the donor is by default `merged`'s own folder.
    """
    arguments = locals()
    calibration = {"method": method, "params": dict(params or {})}
    return _run({**arguments, "method": None, "params": None, "calibrate": calibration})


def extract(
    *,
    base: Model,
    model: Model,
    out: str | Path | None = None,
    rank: int | Literal["auto"] = 16,
    energy: float = 0.99,
    targets: str | Iterable[str] = (),
    ignore: str | Iterable[str] = (),
    dtype: str | None = None,
    naming: Naming | None = None,
    overwrite: bool = False,
    resume: bool = False,
    threads: int | None = None,
    memory: str | int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> Extraction:
    """Make a LoRA adapter on `base` out of a fine-tuned `model`.

    Each changed weight of a linear layer or convolution gets the best approximation of its task
    vector at `rank`, or, with "auto", at the least rank that holds the share `energy` of its
    squared norm; embeddings and output heads only where `targets` name them. `targets` and `ignore`
    are shell patterns on whole names, and targets also on modules' names; with targets nothing else
    is adapted. `dtype` is the factors' format, by default that of most of the base's weights.
    `naming` is how the file names its modules, by default PEFT's, a folder. What differs and cannot
    be adapted is listed in `lost`, counted in `error`, and warned of. `threads`, `memory`
    and `resume` are as in `merge` and do not change the result.

    Raises StructureError for models that do not fit each other or are equal, AdapterError where
    nothing that changed can be adapted, ParameterError, NonFiniteError, OutputError.
    """
    number, share = check_rank(rank, energy, merged=False)
    output = {
        "kind": "adapter",
        "rank": number,
        "energy": share if number == "auto" else None,
        "naming": naming or "peft",
        "dtype": dtype,
        "targets": patterns(targets),
    }
    described = {"base": _described(base), "experts": {"model": _described(model)}}
    recipe = _recipe({**described, "ignore": patterns(ignore), "output": output})
    machine = Machine(threads, memory, progress=progress)
    models = {"base": base, f"{EXPERT}model": model}
    done = run(recipe, out, models=models, machine=machine, overwrite=overwrite, resume=resume)
    return cast("Extraction", done)


def _run(arguments: Mapping[str, Any]) -> Result:
    """A verb's arguments to a recipe, and that to its result."""
    job = job_of(arguments)
    out, resume = arguments["out"], arguments["resume"]
    target = None
    if out is not None:
        target = target_for(job, out, overwrite=arguments["overwrite"], resume=resume)
    elif resume:
        raise ParameterError("resume speaks of an output", remedy="name one: out=")
    return run_job(job, target, measure=measured, report=result_pages)


def job_of(
    arguments: Mapping[str, Any],
    manner: Manner = "whole",
    open_recipe: Callable[..., Job] = opened,
) -> Job:
    """The job that a verb's arguments ask for, its models of the hub read in the `manner`: names
    and parameters are checked first.
    """
    members, params = strengths_as_weights(*map(arguments.get, ("experts", "method", "params")))
    experts = experts_by_name(members)
    if arguments["gate"] not in ("on", "off"):
        raise ParameterError(f"the gate is {arguments['gate']!r}", remedy="it is on or off")
    calibrations = check_calibrations(arguments["calibrate"])
    samples, live = samples_of(arguments, list(experts), calibrations)
    sensitive = arguments["sensitive"] or ()
    if isinstance(sensitive, str | Path):
        sensitive = read_sensitive(Path(sensitive))
    roles = {role: arguments.get(role) for role in ("base", "merged")}
    recipe = _recipe(
        {
            **{role: None if model is None else _described(model) for role, model in roles.items()},
            "experts": {name: _described(model) for name, model in experts.items()},
            "method": arguments["method"],
            "params": params or {},
            "calibrate": calibrations,
            "gate": arguments["gate"],
            "sensitive": patterns(sensitive),
            "skip": patterns(arguments["skip"]),
            "ignore": patterns(arguments["ignore"]),
            "seed": arguments["seed"],
            **{k: arguments[k] for k in LATER if k in arguments and (arguments[k] or k == "bound")},
            "samples": samples,
            "output": _output(arguments),
        }
    )
    machine = Machine(
        arguments["threads"],
        arguments["memory"],
        arguments["device"],
        arguments["offload"],
        arguments["progress"] or shown_progress(),
        "ranges" if arguments["stream"] else manner, arguments["sha256"],
    )  # fmt: skip
    models = {role: model for role, model in roles.items() if model is not None}
    models |= {f"{EXPERT}{name}": model for name, model in experts.items()}
    return open_recipe(recipe, models, machine=machine, live=live)


def _output(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How the result is written; an adapter where rank, energy or naming is said."""
    rank, energy, naming = (arguments.get(name) for name in ("rank", "energy", "naming"))
    donor, dtype = arguments["donor"], arguments["dtype"]
    dtype = None if dtype is None else str(dtype)
    if rank is None and energy is None and naming is None:
        folder = None if donor is None else str(donor)
        size = arguments["shard_size"]
        told = {"dtype": dtype, "shard_size": size, "donor": folder}
        return {"kind": "model", **told, "force": arguments["force"]}
    if energy is not None and rank != "auto":
        raise ParameterError("energy speaks of rank auto", remedy="add --rank auto (rank=)")
    if donor is not None:
        raise ParameterError(
            "an adapter takes no config and tokenizer from a donor",
            remedy="drop --donor (donor=), or merge into a whole model with --base (base=)",
        )
    number, share = check_rank(rank, 0.99 if energy is None else energy)
    held = share if number == "auto" else None
    named = {"rank": number, "energy": held, "naming": naming, "dtype": dtype}
    return {"kind": "adapter", **named}


def _recipe(fields: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate(fields, context={"source": "the arguments"})


def _described(model: Model) -> str:
    """What the recipe calls a model until it is opened."""
    return str(model) if isinstance(model, str | Path) else f"a {type(model).__name__} in memory"


DEFAULTS: dict[str, Any] = {"experts": (), **(merge.__kwdefaults__ or {})}
"""What `merge` takes where an argument is not given."""
