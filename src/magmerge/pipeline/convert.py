"""convert(): an adapter to another naming, or a whole model to safetensors and CLIP's names."""

from __future__ import annotations

from pathlib import Path

from magmerge.checkpoints.averages import chosen
from magmerge.checkpoints.clip import family_of
from magmerge.checkpoints.kinds import check_gathered
from magmerge.checkpoints.loader import adapts, open_stored
from magmerge.checkpoints.pickles.torch_pickle import TorchCheckpoint
from magmerge.core.errors import ParameterError
from magmerge.core.machine import Machine, Progress
from magmerge.core.recipe import AdapterOutput, ModelOutput, Recipe
from magmerge.core.validation import check_naming
from magmerge.engine.adapters.adapter_result import AdapterResult
from magmerge.engine.conversion import Conversion, ModelConversion
from magmerge.engine.opening import EXPERT
from magmerge.pipeline.documents import run

UNNAMED = "its own names"
ONE_FILE = 1 << 62
"""A converted model is one file, whatever its size."""


def convert(
    model: str | Path,
    out: str | Path,
    *,
    naming: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion | ModelConversion:
    """Write an adapter under another naming, or a whole model as safetensors.

    An adapter needs the `naming`: peft (a folder), diffusers, kohya, and the others; task vectors
    are kept as they are, to the rounding of the stored format where parts that one naming fuses are
    put together. A whole model keeps its names, or gets those of a family of CLIP: hf_clip,
    open_clip or timm_clip. It may be a pickled object: nothing in it is run. `out` is a file that
    ends in .safetensors, or a folder, which then has model.safetensors; one that its library would
    not load is written only with `force`. Tensors of floating-point numbers are written in `dtype`
    if that is given. `weights` "ema" or "model" says what is written of a model that holds its
    weights and the average of these. With `resume` what a killed run left is gone on
    with. Raises MagmergeError's children: AdapterError or CheckpointError where something has no
    name in the new naming.
    """
    machine = Machine(1, progress=progress)
    if weights not in (None, "ema", "model"):
        raise ParameterError(f"the weights are {weights!r}", remedy="they are ema or model")
    if adapts(model):
        if naming is None:
            raise ParameterError(
                "it is an adapter, and no naming is given",
                source=model,
                remedy="add --format (naming=): peft, diffusers, kohya, kohya_ldm or kohya_flux",
            )
        output = AdapterOutput(naming=check_naming(naming), dtype=dtype)
        recipe = Recipe(experts={"adapter": str(model)}, output=output)
        adapter = run(recipe, out, machine=machine, overwrite=overwrite, resume=resume)
        union = adapter.job.models.union
        assert isinstance(adapter, AdapterResult)
        assert union is not None
        source, modules = union.adapters[0].source, len(union.modules)
        assert adapter.path is not None
        return Conversion(adapter.path, source, union.naming, naming, modules)
    read = open_stored(model, weights)
    if weights is not None:
        read = chosen(read, weights)
    check_gathered(read)
    before = (None if hasattr(read, "parts") else family_of(read.specs)) or UNNAMED
    family = None if naming == before else naming
    whole = ModelOutput(dtype=dtype, shard_size=ONE_FILE, names=family, force=force)
    recipe = Recipe(experts={"model": str(model)}, output=whole)
    models = {f"{EXPERT}model": read}
    result = run(recipe, out, models=models, machine=machine, overwrite=overwrite, resume=resume)
    torch_file = read if isinstance(read, TorchCheckpoint) else None
    assert result.path is not None
    return ModelConversion(
        path=result.path,
        source=read.source,
        before=before,
        after=naming or before,
        tensors=len(result.plan.steps),
        holds="tensors" if torch_file is None else torch_file.holds,
        passed={} if torch_file is None else dict(torch_file.passed),
        left_out=dict(getattr(result.job.models.layout, "left_out", {})),
    )
