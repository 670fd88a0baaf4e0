"""Blocks that a model has more than another, under the name that the other has for its stack."""

from __future__ import annotations

from magmerge.checkpoints.views import under_names
from magmerge.core.models import Checkpoint
from magmerge.core.stacks import block_of, numbers_of


def with_further_blocks(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """`checkpoint` with all blocks of a stack under one name, where it is deeper than `base`.

    A renaming is found from tensors that both have: of further blocks (layers.6 beside what became
    model.layers.0 to 5) the beginning of the name stayed the checkpoint's own.
    """
    blocks = {name: block_of(name) for name in checkpoint.specs}
    own, theirs = numbers_of(checkpoint.specs), numbers_of(base.specs)
    moved: dict[str, str] = {}
    for stack, numbers in own.items():
        homes = [
            home
            for home, others in own.items()
            if stack not in theirs
            and home in theirs
            and (home.endswith(f".{stack}") or stack.endswith(f".{home}"))
            and max(others) + 1 == min(numbers)
        ]
        if len(homes) == 1:
            moved[stack] = homes[0]
    if not moved:
        return checkpoint
    names: dict[str, str] = {}
    for name, block in blocks.items():
        home = None if block is None else moved.get(block.stack)
        if block is None or home is None:
            names[name] = name
        else:
            names[".".join(p for p in (home, str(block.number), block.inner) if p)] = name
    return under_names(checkpoint, names)
