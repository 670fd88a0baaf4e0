"""Experts with the rows of another vocabulary: whole models, and adapters that stay as they are."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from magmerge.checkpoints.adapters.adapter_view import AdapterView
from magmerge.checkpoints.tokens.rows import RowMap, row_width, runs, with_rows
from magmerge.core.lazy import Tensor, torch
from magmerge.core.models import Expert
from magmerge.core.types import TensorSpec


class AdapterOnRows(AdapterView):
    """An adapter whose token tensors have the first rows of longer ones, in the same order."""

    def __init__(self, adapter: Expert, rows: Mapping[str, RowMap]) -> None:
        super().__init__(adapter)
        self._rows = rows
        self._ends = {name: math.prod(adapter.specs[name].shape) for name in rows}
        specs = dict(adapter.specs)
        for name, each in rows.items():
            specs[name] = with_rows(specs[name], len(each.own))
        self.specs: Mapping[str, TensorSpec] = specs
        every = {name: list(runs(each.lacking)) for name, each in rows.items()}
        self.absent: Mapping[str, Sequence[range]] = {n: part for n, part in every.items() if part}

    def equals(self, other: Expert, names: Collection[str]) -> bool:
        """Whether both are the same adapter."""
        return self.adapter.equals(getattr(other, "adapter", other), names)

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The base's entries with the adapter's change."""
        return self.delta(name, base, start, out).add_(base)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The adapter's change of these entries: zeros where it has no rows."""
        if name not in self._rows:
            return self.adapter.delta(name, base, start, out)
        result = torch.zeros_like(base) if out is None else out.zero_()
        stop = min(start + base.numel(), self._ends[name])
        if start < stop and name not in self.adapter.untouched:
            part = base.reshape(-1)[: stop - start]
            change = self.adapter.delta(name, part, start).reshape(-1)
            result.view(-1)[: stop - start] = change
        return result


def holds_first_rows(adapter: Expert, name: str, rows: RowMap) -> bool:
    """Whether an adapter's rows of a tensor are the first of these, in order: all that it can
    have. One that leaves the tensor as it is has no rows of its own to be in order.
    """
    if name in adapter.untouched:
        return True
    spec = adapter.specs[name]
    count = math.prod(spec.shape) // row_width(spec)
    own = rows.own
    return bool((own[:count] == range(min(count, len(own)))).all() and (own[count:] == -1).all())
