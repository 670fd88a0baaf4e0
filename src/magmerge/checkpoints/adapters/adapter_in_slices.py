"""An adapter as an expert whose blocks stand at other places of the result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from magmerge.checkpoints.adapters.adapter_view import AdapterView
from magmerge.checkpoints.patchwork import every_row
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.types import TensorSpec
from magmerge.linalg.device import moved


class AdapterInSlices(AdapterView):
    """An adapter with the tensors `own`, from each name of the result to its own name for it.

    It has no vote on the others among `specs`. `origin` is the base that it changes; where the
    result's base has another block at a place its task vector is that to the changed one.
    `shared` are the names where both are the same.
    """

    def __init__(
        self,
        adapter: Expert,
        origin: Checkpoint,
        own: Mapping[str, str],
        specs: Mapping[str, TensorSpec],
        shared: frozenset[str],
    ) -> None:
        super().__init__(adapter)
        self._origin, self._own, self._shared = origin, own, shared
        stored = {name: adapter.specs[old] for name, old in own.items()}
        renamed = {name: TensorSpec(name, s.shape, s.dtype) for name, s in stored.items()}
        self.specs: Mapping[str, TensorSpec] = {**specs, **renamed}
        lacking = {name: [every_row(spec)] for name, spec in specs.items() if name not in own}
        holes = {name: adapter.absent[old] for name, old in own.items() if old in adapter.absent}
        self.absent: Mapping[str, Sequence[range]] = {**lacking, **holes}
        kept = {name for name in shared if own.get(name) in adapter.untouched}
        self.untouched = frozenset({*kept, *lacking})

    def equals(self, other: Expert, names: Collection[str]) -> bool:
        """Whether both are the same adapter, with the same blocks at some place."""
        if not isinstance(other, AdapterInSlices):
            return False
        same = any(self._own.get(n) == other._own.get(n) for n in names if n in self._own)
        return same and self.adapter.equals(other.adapter, names)

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The entries of the block that it changes, changed."""
        if name not in self._shared:
            part = self._origin.read_part(self._own[name], start, start + base.numel())
            base = moved(part, base, None)
        return self.adapter.weight(self._own[name], base, start, out)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The same entries less those of the result's base."""
        if name in self._shared:
            return self.adapter.delta(self._own[name], base, start, out)
        return self.weight(name, base, start, out).sub_(base)
