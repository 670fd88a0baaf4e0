"""Models in which one matrix is embedding and head, beside models in which it is two, or stored
twice: all are brought to one form before they are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from magmerge.checkpoints.adapters import AdapterExpert
from magmerge.checkpoints.experts import FullExpert
from magmerge.checkpoints.heads import Head, head_of
from magmerge.checkpoints.kinds import read_model_config
from magmerge.checkpoints.ties import tied, untied, untied_settings, without_copies
from magmerge.core.models import Checkpoint, Expert
from magmerge.engine.job import Models


def in_one_form(models: Models) -> Models:
    """The models with each tied tensor told once. Where one of them, or an adapter, has another
    head than its embedding, all have a head of their own, and so has the result.
    """
    layout = models.layout
    models = _each(models, lambda model: without_copies(model, layout))
    whole = [expert.whole for expert in models.experts if expert.whole is not None]
    lacked = {name for name in layout.specs if any(name not in model.specs for model in whole)}
    models = _each(models, lambda model: tied(model, lacked)) if lacked else models
    head = _head_apart(models)
    return models if head is None else _apart(models, head)


def _head_apart(models: Models) -> Head | None:
    """The head that is the embedding in one model, and has values of its own in another."""
    trained = (e.apart for e in models.experts if isinstance(e, AdapterExpert))
    head = next((head for head in trained if head is not None), None)
    if head is not None:
        return head
    whole = [models.layout, models.base, *(expert.whole for expert in models.experts)]
    opened = [model for model in whole if model is not None]
    own = {name for model in opened for name in model.specs if name not in model.ties}
    heads = (head_of(model) for model in opened)
    return next((head for head in heads if head is not None and head.name in own), None)


def _apart(models: Models, head: Head) -> Models:
    """The models with that head beside the embedding in each, and a config that says so."""

    def view(model: Checkpoint) -> Checkpoint:
        has = head.name in model.specs and head.name not in model.ties
        return model if has or head.embedding not in model.specs else untied(model, head)

    apart = _each(models, view)
    if apart.layout is models.layout:
        return apart
    settings = {**models.settings, **untied_settings(read_model_config(models.layout))}
    told = (
        f"{head.name} is {head.embedding} in {models.layout.source}, and another matrix in one of "
        "the experts: the result has both, and tie_word_embeddings false"
    )
    return replace(apart, settings=settings, notes=(*models.notes, told))


def _each(models: Models, view: Callable[[Checkpoint], Checkpoint]) -> Models:
    """The models, each seen through `view` once; adapters on the base as it is seen then."""
    layout = view(models.layout)
    base = layout if models.base is models.layout else models.base
    if base is not None and base is not layout:
        base = view(base)
    merged = layout if models.merged is models.layout else models.merged

    def seen(expert: Expert) -> Expert:
        if expert.whole is not None:
            whole = layout if expert.whole is models.layout else view(expert.whole)
            return expert if whole is expert.whole else FullExpert(expert.name, whole)
        if base is models.base or base is None or not isinstance(expert, AdapterExpert):
            return expert
        return AdapterExpert(expert.name, expert.adapter, base)

    experts = [seen(expert) for expert in models.experts]
    return replace(models, layout=layout, base=base, merged=merged, experts=experts)
