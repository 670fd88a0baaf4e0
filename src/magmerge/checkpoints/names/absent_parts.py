"""An expert that is some whole parts of a diffusion model, on a base that holds them all."""

from __future__ import annotations

import math
from collections.abc import Sequence

from magmerge.checkpoints.views import CheckpointView, Stretch, whole
from magmerge.core.components import component_of, layout_of
from magmerge.core.dtypes import FLOATS
from magmerge.core.models import Checkpoint

OTHERS = "what is beside them"
"""What a note calls tensors of no part."""


def with_absent_parts(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """`checkpoint` with the parts that it has not, all of their rows absent: it has no vote there.

    So is a VAE alone an expert on a single file. Only where it has some parts of the base as a
    whole and none of the others' tensors; otherwise it stays as it is, and the plan tells each
    tensor that is missing. A note tells the parts.
    """
    layout = layout_of(base.specs)
    names = [n for n, spec in base.specs.items() if spec.dtype in FLOATS and 0 not in spec.shape]
    parts = {name: component_of(name, layout) or OTHERS for name in names} if layout else {}
    there = {part for name, part in parts.items() if name in checkpoint.specs}
    lacking = {name: part for name, part in parts.items() if name not in checkpoint.specs}
    absent = set(lacking.values())
    if not there - {OTHERS} or not absent or there & absent:
        return checkpoint
    specs = {**checkpoint.specs, **{name: base.specs[name] for name in lacking}}
    stretches: dict[str, Sequence[Stretch]] = {n: whole(s) for n, s in checkpoint.specs.items()}
    stretches |= {name: (Stretch(None, 0, math.prod(specs[name].shape)),) for name in lacking}
    rows = {name: [range((specs[name].shape or (1,))[0])] for name in lacking}
    view = CheckpointView(checkpoint, specs, stretches)
    view.absent = {**view.absent, **rows}
    told = f"has only the {', '.join(sorted(there))} of a diffusion model, and no vote on the rest"
    view.notes = (*view.notes, f"{view.source} {told}: {', '.join(sorted(absent))}")
    return view
