"""Where the experts of a mixture that an adapter changes are in a base: fused in one parameter, or
as layers of their own, as models are stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from magmerge.checkpoints.adapters.nouns import Adapter, Module
from magmerge.checkpoints.adapters.placement import Place, Placement
from magmerge.checkpoints.kinds import read_model_config
from magmerge.core.models import Checkpoint

APART = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""The layers whose rows a fused parameter has in turn, as models of several families name them."""
TURNED = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text"})
"""Types of models whose fused experts are [experts, in, out]: square ones tell by this alone."""


def places_of_experts(
    adapter: Adapter, base: Checkpoint, placement: Placement
) -> tuple[list[Place], list[str]]:
    """The places of every expert's module, and the parameters that the base lacks or has in another
    shape.
    """
    places: list[Place] = []
    strange = []
    for parameter, modules in adapter.experts.items():
        own = _fused(placement.names.get(parameter), modules, base) or _apart(
            parameter, modules, base
        )
        places += own
        if not own:
            strange.append(parameter)
    return places, strange


def _fused(name: str | None, modules: Sequence[Module], base: Checkpoint) -> list[Place]:
    """Rows of one parameter [experts, out, in], or [experts, in, out]."""
    if name is None:
        return []
    shape, (out, features) = base.specs[name].shape, modules[0].spec.shape
    if len(shape) == 2:
        shape = (1, *shape)
    straight, sideways = (len(modules), out, features), (len(modules), features, out)
    if shape not in (straight, sideways):
        return []
    config = read_model_config(base)
    turned = shape != straight or (out == features and config.get("model_type") in TURNED)
    return [
        Place(module.spec.name, 0, name, number * shape[1], shape[1], turned)
        for number, module in enumerate(modules)
    ]


def _apart(parameter: str, modules: Sequence[Module], base: Checkpoint) -> list[Place]:
    """Rows of each expert's own layers, in the same layer of the model."""
    path, _, leaf = parameter.rpartition(".")
    layer = re.match(r".*?\.\d+\.", path)
    start = layer[0] if layer else ""
    ends = {name.partition(start)[2]: name for name in base.specs if start in name}
    for names in APART.get(leaf, ()):
        places = []
        for number, module in enumerate(modules):
            row = 0
            for own in names:
                pattern = re.compile(rf"(?:.*\.)?experts\.{number}\.{own}\.weight")
                tensors = [name for end, name in ends.items() if pattern.fullmatch(end)]
                if len(tensors) != 1:
                    break
                rows, *features = base.specs[tensors[0]].shape
                if features != [module.spec.shape[1]]:
                    break
                places.append(Place(module.spec.name, row, tensors[0], 0, rows))
                row += rows
            if row != module.spec.shape[0]:
                places = []
                break
        if places:
            return places
    return []
