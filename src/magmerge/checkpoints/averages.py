"""Moving averages of weights beside the weights, in the single files of Stable Diffusion.

There `model_ema.` stands before the name of the raw weight, less its first part and all its dots.
"""

from __future__ import annotations

from magmerge.checkpoints.loader import AVERAGE
from magmerge.checkpoints.views import under_names
from magmerge.core.errors import CheckpointError, shortened
from magmerge.core.models import Checkpoint

COUNTERS = frozenset({f"{AVERAGE}decay", f"{AVERAGE}num_updates"})
"""What is no weight among them."""
RAW = "model."
EMA = "ema"


def chosen(checkpoint: Checkpoint, weights: str | None) -> Checkpoint:
    """`checkpoint` with its raw weights, or with their average in place of them: `weights` "ema".

    Without a choice the raw ones of such a file are taken, as diffusers and ComfyUI take them.
    CheckpointError where the average is asked for and is not there.
    """
    averages = {name for name in checkpoint.specs if name.startswith(AVERAGE)}
    if not averages:
        if weights == EMA and not getattr(checkpoint, "averaged", False):
            raise CheckpointError(
                "it holds no averaged weights, and they are asked for",
                source=checkpoint.source,
                remedy="drop --weights ema (weights=), or name the models that have them: "
                "--weights NAME=ema, with base, or an expert's name",
            )
        return checkpoint
    names = {name: name for name in checkpoint.specs if name not in averages}
    if weights == EMA:
        names |= _averaged(checkpoint, averages - COUNTERS)
    taken = "averaged" if weights == EMA else "raw"
    view = under_names(checkpoint, names)
    note = f"holds averaged weights ({AVERAGE}*) beside the raw ones: the {taken} are taken"
    view.notes = (*view.notes, f"{checkpoint.source} {note}")
    return view


def _averaged(checkpoint: Checkpoint, averages: set[str]) -> dict[str, str]:
    """The names of raw weights, with those of their averages."""
    flat: dict[str, list[str]] = {}
    for name in checkpoint.specs:
        if name.startswith(RAW):
            key = AVERAGE + name.removeprefix(RAW).replace(".", "")
            flat.setdefault(key, []).append(name)
    odd = sorted(name for name in averages if len(flat.get(name, ())) != 1)
    odd += [
        name
        for name in averages - set(odd)
        if checkpoint.specs[name].shape != checkpoint.specs[flat[name][0]].shape
    ]
    if odd:
        raise CheckpointError(
            f"its averaged weights are not those of the model beside them: {shortened(odd)}",
            source=checkpoint.source,
            remedy="take the raw ones: drop --weights ema (weights=)",
        )
    return {flat[name][0]: name for name in averages}
