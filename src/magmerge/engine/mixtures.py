"""Dense models to one mixture of experts: its tensors, its config, and what does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from magmerge.checkpoints.kinds import read_model_config
from magmerge.checkpoints.mixture import Mixture, Patch
from magmerge.checkpoints.mixture_shapes import PARTS, Counts, settings_of, shape_of
from magmerge.core.errors import CheckpointError
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.moe import Moe
from magmerge.core.recipe import Recipe
from magmerge.core.stacks import block_of, stack_named
from magmerge.core.types import TensorSpec
from magmerge.engine.job import Input, Models
from magmerge.engine.mixture_parts import Parts, mixture_faults, mixture_notes
from magmerge.linalg.draws import derive_seed

WIDTH = 256
"""Of the shared expert of zeros that a mixture has which cannot do without one, at most."""
FREQUENCIES = "rotary_emb.inv_freq"
"""How the name of a table ends that old files hold and each model makes anew."""


def mixture_of(recipe: Recipe, models: Models) -> Models:
    """The opened base and experts as one model, the mixture, which is taken as it is.

    What does not fit is told in `faults`. ParameterError where no mixture for the base is known.
    """
    base, moe = models.layout, Moe.model_validate(recipe.moe)
    config = read_model_config(base)
    shape = shape_of(config, moe.shape, base.source)
    stack = stack_named(base.specs, "layers")
    blocks = _count(base, stack)
    routed = [expert for expert in models.experts if expert.name not in moe.shared]
    shared = [expert for expert in models.experts if expert.name in moe.shared]
    parts = Parts(shape, moe, base, config, stack, blocks, routed, shared)
    faults = list(mixture_faults(parts))
    inputs = [Input("base", base.source, base.files, base)]
    inputs += [Input("expert", e.source, e.files, e.whole) for e in models.experts]
    layout = base if faults else _mixture(parts, recipe.seed)
    return replace(
        models,
        layout=layout,
        base=None,
        experts=(),
        made_of=inputs,
        settings=_settings(parts),
        notes=(*models.notes, *mixture_notes(parts)),
        faults=(*models.faults, *faults),
    )


def _count(base: Checkpoint, stack: str) -> int:
    """How many blocks there are. CheckpointError where their numbers leave some out."""
    blocks = [block for block in map(block_of, base.specs) if block and block.stack == stack]
    numbers = {block.number for block in blocks}
    if max(numbers) + 1 != len(numbers):
        raise CheckpointError(
            f"of its {max(numbers) + 1} blocks {len(numbers)} are there",
            source=base.source,
            remedy="give the whole model: all of its files, with the index that lists them",
        )
    return len(numbers)


def _width(parts: Parts) -> int:
    """The width of an MLP, as the base has it."""
    spec = parts.base.specs.get(parts.mlp(0, PARTS[0]))
    return spec.shape[0] if spec is not None and spec.shape else 0


def _shared_width(parts: Parts) -> int:
    width = _width(parts)
    return width if parts.shared else min(width, WIDTH)


def _settings(parts: Parts) -> dict[str, Any]:
    chosen, width = parts.moe.experts_per_token, _width(parts)
    counts = Counts(parts.blocks, len(parts.routed), chosen, width, _shared_width(parts))
    inner = {block.inner for block in map(block_of, parts.base.specs) if block is not None}
    return settings_of(parts.shape, parts.config, counts, inner)


def _mixture(parts: Parts, seed: int) -> Mixture:
    """The mixture's tensors in the base's order, each block's experts in the place of its MLP."""
    base, patches, shapes = parts.base, dict[str, Patch](), dict[str, tuple[int, ...]]()
    routers: dict[str, str] = {}
    for name, spec in base.specs.items():
        block = block_of(name)
        if name.endswith(FREQUENCIES):
            continue
        if block is None or block.stack != parts.stack or not block.inner.startswith("mlp."):
            patches[name], shapes[name] = Patch(name), spec.shape
        elif block.inner == f"mlp.{PARTS[0]}.weight":
            for own, shape, patch in _block(parts, block.number, seed):
                patches[own], shapes[own] = patch, shape
            routers |= _measured(parts, block.number)
    code = base.specs[parts.mlp(0, PARTS[0])].dtype
    formats = {name: _format(parts.base, patch, code) for name, patch in patches.items()}
    specs = {name: TensorSpec(name, shapes[name], formats[name]) for name in patches}
    # What is computed, or of another format than the base, is written as the base is.
    mixed = any(patch.expert is not None and formats[n] != code for n, patch in patches.items())
    notes = [
        *base.notes,
        *(note for expert in (*parts.routed, *parts.shared) for note in expert.notes),
    ]
    return Mixture(
        base, specs, patches, routers=routers, written=code if mixed else None, notes=notes
    )


def _format(base: Checkpoint, patch: Patch, code: str) -> str:
    """The format in which a tensor is read: what is computed is so in 32 bits or more."""
    if patch.name is None:
        return code
    if not patch.stored:
        return "F64" if code == "F64" else "F32"
    whole = base if patch.expert is None else patch.expert.whole
    assert whole is not None
    return whole.specs[patch.name].dtype


def _block(parts: Parts, block: int, seed: int) -> Iterator[tuple[str, tuple[int, ...], Patch]]:
    """A block's mixture: names, shapes, and where they are from."""
    shape, moe, base = parts.shape, parts.moe, parts.base
    hidden = base.specs[parts.mlp(block, PARTS[0])].shape[1]
    router = parts.named(block, shape.router)
    spread = hidden**-0.5 if moe.router == "random" else 0.0
    drawn = Patch(spread=spread, seed=derive_seed(seed, router))
    yield router, (len(parts.routed), hidden), drawn
    for number, expert in enumerate(parts.routed):
        for part, pattern in zip(PARTS, shape.names, strict=True):
            own = parts.named(block, pattern.format(number))
            stored = parts.mlp(block, part)
            yield own, base.specs[stored].shape, _patch(moe, expert, stored, own, seed)
    if not shape.shared:
        return
    width = _shared_width(parts)
    for part in PARTS:
        own, stored = parts.named(block, shape.shared.format(part)), parts.mlp(block, part)
        size = (hidden, width) if part == PARTS[-1] else (width, hidden)
        zeros = Patch()
        yield own, size, _patch(moe, parts.shared[0], stored, own, seed) if parts.shared else zeros
    yield parts.named(block, shape.shared_gate), (1, hidden), Patch()


def _patch(moe: Moe, expert: Expert, stored: str, own: str, seed: int) -> Patch:
    """An expert's matrix, with its noise; the last one, whose output is added, scaled."""
    last = stored.endswith(f"{PARTS[-1]}.weight")
    return Patch(
        stored,
        expert,
        moe.residual_scale.get(expert.name, 1.0) if last else 1.0,
        # Uniform draws have this share of their range as their deviation.
        moe.noise.get(expert.name, 0.0) * math.sqrt(3),
        derive_seed(seed, own),
    )


def _measured(parts: Parts, block: int) -> dict[str, str]:
    """The router and the gate of a block that prompts tell of, each with the MLP before it."""
    if not parts.moe.prompted:
        return {}
    mlp = parts.named(block, "mlp")
    gated = any(expert.name in parts.moe.prompts for expert in parts.shared)
    names = [parts.shape.router, *([parts.shape.shared_gate] if gated else [])]
    return {parts.named(block, name): mlp for name in names}
