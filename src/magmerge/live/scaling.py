"""Layers of a live merge with more or less of what a calibration makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from magmerge.calibrators.gate import bounded
from magmerge.core.types import Step
from magmerge.engine.executors import local
from magmerge.engine.layer import Calibrated, share_of, spread
from magmerge.live.live_merge import LiveMerge


class Scaling:
    """Scales the task vectors of a live merge's tensors by a share of their factors' logarithm.

    `factors` are what multiplies each when all is kept; what multiplies it in the merge's weights
    by now is kept beside that. No factor is above `bound`.
    """

    def __init__(self, merge: LiveMerge, bound: float) -> None:
        self.factors: dict[str, Tensor] = {}
        self._merge, self._bound = merge, bound
        self._shares: dict[str, float] = {}
        self._applied: dict[str, Tensor] = {}

    def note(self, step: Step, calibrated: Calibrated) -> None:
        """Keep the factors that a calibration of the merge's weights as they are comes to."""
        name, rows = step.spec.name, torch.tensor(calibrated.tally.xi)
        factor = rows[0] if len(rows) == 1 else spread(rows, step, calibrated.delta)
        before = self._applied.get(name, torch.ones(()))
        self.factors[name], _ = bounded(before, factor, self._bound)

    def put(self, name: str, weight: Tensor) -> None:
        """A weight with all its factors, for the model and for whatever is measured of it."""
        with torch.no_grad():
            self._merge.weights[name].copy_(weight)
            for place in self._places(name):
                place.copy_(weight)
        self._applied[name] = self.factors[name]

    def took(self, name: str, place: Tensor) -> None:
        """The model has a weight with all its factors at this place of it."""
        if self._is_the_merges(name, place):
            self._applied[name] = self.factors[name]

    def set(self, shares: Mapping[str, float]) -> None:
        """Give the live model the weights with these shares."""
        changed = [name for name, share in shares.items() if self._shares.get(name) != share]
        self._shares.update(shares)
        if self._merge.offload is not None:
            self._merge.offload.finish = self._finish
            return
        with local.one_thread_an_operation(), torch.no_grad():
            for name in changed:
                weight, places = self._merge.weights[name], self._places(name)
                scaled = self._finish(name, weight.float().cpu())
                for place in places:
                    place.copy_(scaled)
                if any(self._is_the_merges(name, place) for place in places):
                    self._applied[name] = self._target(name)

    def _places(self, name: str) -> list[Tensor]:
        """The parameters that hold a tensor; each once."""
        own, names = self._merge.model.state_dict(keep_vars=True), self._merge.names
        return [*{id(own[n]): own[n] for n, tensor in names.items() if tensor == name}.values()]

    def _is_the_merges(self, name: str, place: Tensor) -> bool:
        """Whether the merge's own weight is in that memory."""
        if self._merge.offload is not None:
            return False
        return self._merge.weights[name].data_ptr() == place.data_ptr()

    def _target(self, name: str) -> Tensor:
        return share_of(self.factors[name], self._shares[name])

    def _finish(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the merge as it is with its share."""
        if name not in self._shares:
            return weight
        base, before = self._merge.base(name), self._applied.get(name, torch.ones(()))
        ratio = torch.where(before > 0, self._target(name) / before, 1.0)
        return base + ratio * (weight - base)
