"""A checkpoint under another's names: by rules, by CLIP's families, by tables of image models."""

from __future__ import annotations

from magmerge.checkpoints import clip
from magmerge.checkpoints.names.absent_parts import with_absent_parts
from magmerge.checkpoints.names.pairs import OTHERWISE, pair
from magmerge.checkpoints.names.parts import layouts, put_together
from magmerge.checkpoints.views import CheckpointView, under_names
from magmerge.core.models import Checkpoint


def aligned(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """`checkpoint` under the base's names, as far as it has the same tensors under others.

    A renaming is taken only if it makes more names equal, each one to one. Names that stay are the
    checkpoint's own. What a part of a diffusion model lacks of the whole is absent. The notes tell
    what was renamed.
    """
    return with_absent_parts(_renamed(checkpoint, base), base)


def _renamed(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    best, matched = checkpoint, len(base.specs.keys() & checkpoint.specs.keys())
    strange = matched < len(checkpoint.specs)
    names, kinds = pair(checkpoint.specs, base.specs) if strange else ({}, ())
    if len(names) > matched:
        matched = len(names)
        moved = sum(old != new for old, new in names.items())
        own = {names.get(old, old): old for old in checkpoint.specs}
        best = _noted(under_names(checkpoint, own), moved, base, ", ".join(kinds))
    for layout in layouts() if strange else ():
        view = put_together(best, base, layout) if matched < len(base.specs) else None
        shared = base.specs.keys() & (view or best).specs.keys()
        if (
            view is not None
            and len(shared) > matched
            and base.specs.keys() & best.specs.keys() <= shared
        ):
            moved = len(shared - best.specs.keys())
            best, matched = _noted(view, moved, base, layout.kind), len(shared)
    for model in dict.fromkeys((best, checkpoint)) if matched < len(base.specs) else ():
        other = clip.aligned(model, base)
        if other is not None and len(base.specs.keys() & other.specs.keys()) > matched:
            moved = len(other.specs.keys() - model.specs.keys())
            return _noted(other, moved, base, "CLIP's families") if moved else other
    return best


def _noted(view: CheckpointView, count: int, base: Checkpoint, kind: str) -> CheckpointView:
    """The view with a note of how many of its tensors are renamed, and by what kind of renaming."""
    note = f"{view.source}: {count} {OTHERWISE} {base.source} ({kind})"
    view.notes = (*view.notes, note)
    return view
