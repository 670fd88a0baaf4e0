"""Experts at work beside the merged model: copies of it that hold an expert's weights by blocks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from magmerge.engine.job import Work
from magmerge.live.forward import Following
from magmerge.live.layers import Layer
from magmerge.live.live_merge import LiveMerge
from magmerge.live.lockstep import wait_at_door
from magmerge.live.offload import Offload
from magmerge.live.units import units_of


class ExpertWeights:
    """One expert's own tensors by the merge's names, read anew whenever a block needs them.

    What the expert has not is the layout's.
    """

    def __init__(self, work: Work, place: int) -> None:
        self._layout, self._base = work.layout, work.models.base
        self._expert = work.models.experts[place]
        self._twins = {step.spec.name: step.twin or step.spec.name for step in work.plan.steps}

    def bring(self, names: Collection[str]) -> dict[str, Tensor]:
        """These tensors."""
        return {name: self._weight(self._twins[name]) for name in names}

    def drop(self, names: Collection[str]) -> None:
        """Nothing is kept."""

    def _weight(self, name: str) -> Tensor:
        base, own = self._base, self._expert.specs.get(name)
        if base is None or own is None or name not in base.specs:
            return self._layout.read(name)
        stored = base.read(name)
        if base.specs[name].shape != own.shape or not stored.is_floating_point():
            return self._layout.read(name)
        return self._expert.weight(name, stored.float())


class ExpertRuns:
    """A copy of the live model for each expert, without weights until a block of it runs."""

    def __init__(self, work: Work, merge: LiveMerge) -> None:
        self.merge = merge
        first, offload = next(merge.model.parameters()), merge.offload
        dtype = first.dtype if offload is None else offload.dtype
        self.copies = [hollow(merge.model, merge.names) for _ in work.models.experts]
        self._offloads = [
            Offload(
                model,
                merge.names,
                ExpertWeights(work, place),
                dtype,
                work.job.machine.device,
            )
            for place, model in enumerate(self.copies)
        ]

    def following(self, place: int, layers: Sequence[Layer]) -> Following:
        """An expert's copy, with the same layers followed."""
        model = self.copies[place]
        return Following(model, [_layer_of(model, layer) for layer in layers])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the copies can be run, in lockstep with each other and with the merge."""
        with ExitStack() as stack:
            if self.merge.offload is None:
                # So that no run is in a block before the others have left the one before it.
                for path, module in units_of(self.merge.model):
                    if next(module.parameters(), None) is not None:
                        door = partial(_come_to, path)
                        stack.callback(module.register_forward_pre_hook(door).remove)
            for offload in self._offloads:
                stack.enter_context(offload.running())
            yield


def _layer_of(model: nn.Module, layer: Layer) -> Layer:
    """The layer of the same place in another model."""
    other = copy.copy(layer)
    other.module = model.get_submodule(layer.name)
    return other


def _come_to(path: str, *_: object) -> None:
    wait_at_door(path)


def hollow(model: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """A copy of the module whose parameters among `names` have no data yet; others are shared."""
    memo: dict[int, object] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        empty = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        away = nn.Parameter(empty, requires_grad=False)
        memo.setdefault(id(parameter), away if name in names else parameter)
    return copy.deepcopy(model, memo)
