"""Tensors that are one in a model: stored twice they are read once, trained apart they are two."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from magmerge.checkpoints.experts import same_tensor
from magmerge.checkpoints.heads import BIASES, Head
from magmerge.checkpoints.kinds import kinds_of, read_model_config
from magmerge.checkpoints.views import CheckpointView, under_names, whole
from magmerge.core.errors import shortened
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

TIE = "tie_word_embeddings"


def untied(checkpoint: Checkpoint, head: Head) -> Checkpoint:
    """The model with its head as a tensor of its own, which is a copy of the embedding."""
    specs = dict(checkpoint.specs)
    stretches = {name: whole(own) for name, own in specs.items()}
    for name, of in head.copies.items():
        if of in checkpoint.specs:
            spec = checkpoint.specs[of]
            specs[name], stretches[name] = TensorSpec(name, spec.shape, spec.dtype), whole(spec)
    return CheckpointView(checkpoint, specs, stretches)


def untied_settings(config: Mapping[str, Any]) -> dict[str, bool]:
    """What a config says of a model whose head is no longer its embedding."""
    parts = [key for key, part in config.items() if isinstance(part, dict) and TIE in part]
    return dict.fromkeys((TIE, *(f"{part}.{TIE}" for part in parts)), False)


def without_copies(checkpoint: Checkpoint, layout: Checkpoint) -> Checkpoint:
    """The model less tensors that the layout stores once and it stores twice, equal bit for bit.

    A head, an encoder's or decoder's own embedding, or a head's bias; which they are is noted.
    """
    extra = [name for name in checkpoint.specs if name not in layout.specs]
    copies = [
        name
        for name in extra
        if any(
            other in layout.specs and same_tensor(checkpoint, checkpoint, name, other)
            for other in _partners(checkpoint, name)
        )
    ]
    if not copies:
        return checkpoint
    view = under_names(checkpoint, {name: name for name in checkpoint.specs if name not in copies})
    told = f"{checkpoint.source} holds copies of one tensor, read once: {shortened(copies)}"
    view.notes = (*view.notes, told)
    return view


def tied(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """The model with those of `names` told as ties that are copies, equal bit for bit, of a tensor
    that is not among them.
    """
    ties = {
        name: other
        for name in names
        if name in checkpoint.specs and name not in checkpoint.ties
        for other in _partners(checkpoint, name)
        if other not in names and same_tensor(checkpoint, checkpoint, name, other)
    }
    if not ties:
        return checkpoint
    view = under_names(checkpoint, {name: name for name in checkpoint.specs})
    view.ties = {**view.ties, **ties}
    return view


def _partners(checkpoint: Checkpoint, name: str) -> Sequence[str]:
    """The tensors of the same model that `name` may be one with."""
    if name in checkpoint.ties:
        return [checkpoint.ties[name]]
    for ending, other in BIASES.values():
        if name.endswith(ending):
            return [name.removesuffix(ending) + other]
    kinds = kinds_of(checkpoint, read_model_config(checkpoint))
    spec = checkpoint.specs[name]
    if kinds[name] not in ("embedding", "head") or len(spec.shape) != 2:
        return []
    return [
        other
        for other, own in checkpoint.specs.items()
        if other != name
        and kinds[other] in ("embedding", "head")
        and (own.shape, own.dtype) == (spec.shape, spec.dtype)
    ]
