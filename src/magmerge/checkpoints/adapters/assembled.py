"""An adapter whose modules are put together from rows of another's, each task vector exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.adapters.names.assembly import Assembly, Rows
from magmerge.checkpoints.adapters.nouns import Adapter, Content, LowRank, ModuleSpec
from magmerge.core import dtypes
from magmerge.core.types import Naming, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

Groups = tuple[tuple[str, ...], ...]
"""Modules whose rows are put together, those with the same down factor side by side."""


class AssembledAdapter:
    """`adapter` with the modules of `assembly`, read as lazily as it is itself.

    Only where several modules become one are their down factors read at once: the rank is that of
    one of them if all are equal, else the sum.
    """

    def __init__(self, adapter: Adapter, assembly: Assembly, naming: Naming) -> None:
        self.source = adapter.source
        self.files: tuple[Path, ...] = adapter.files
        self.naming: Naming = naming
        self.metadata = adapter.metadata
        self.notes = adapter.notes
        self.config: Mapping[str, Any] = MappingProxyType({})
        self.whole: Mapping[str, TensorSpec] = MappingProxyType({})
        self._adapter = adapter
        self._rows = assembly.rows
        self._groups = {name: _groups(adapter, rows) for name, rows in assembly.rows.items()}
        self.modules: Mapping[str, ModuleSpec] = MappingProxyType(
            {
                name: _spec(
                    name, rows, [[adapter.modules[m] for m in g] for g in self._groups[name]]
                )
                for name, rows in assembly.rows.items()
            }
        )

    def read(self, module: str) -> LowRank:
        """One module's factors; in float32 where parts of different scales are put together."""
        groups, rows = self._groups[module], self._rows[module]
        factors = {name: self._adapter.read(name) for group in groups for name in group}
        first = rows[0]
        if len(rows) == 1 and first.module is not None:
            up, down, scale = factors[first.module]
            return LowRank(up[first.start : first.stop].contiguous(), down, scale)
        return _put_together(rows, groups, factors, self.modules[module])

    def read_whole(self, name: str) -> Tensor:
        """There are none."""
        raise KeyError(name)

    def read_whole_part(self, name: str, start: int, stop: int) -> Tensor:
        """There are none."""
        raise KeyError(name, start, stop)


def _groups(adapter: Adapter, rows: Sequence[Rows]) -> Groups:
    names = list(dict.fromkeys(part.module for part in rows if part.module is not None))
    if len(names) == 1:
        return ((names[0],),)
    import torch

    downs: list[tuple[Tensor, list[str]]] = []
    for name in names:
        down = adapter.read(name).down
        for seen, group in downs:
            if seen.dtype == down.dtype and torch.equal(seen, down):
                group.append(name)
                break
        else:
            downs.append((down, [name]))
    return tuple(tuple(group) for _, group in downs)


def _spec(name: str, rows: Sequence[Rows], groups: Sequence[Sequence[ModuleSpec]]) -> ModuleSpec:
    specs = [spec for group in groups for spec in group]
    first = specs[0]
    out = sum(part.stop - part.start for part in rows)
    alike = len({spec.scale for spec in specs}) == 1
    dtype = first.dtype if alike and len({spec.dtype for spec in specs}) == 1 else "F32"
    return ModuleSpec(
        name=name,
        kind=first.kind,
        shape=(out, *first.shape[1:]),
        rank=sum(group[0].rank for group in groups),
        scale=first.scale if alike else 1.0,
        dtype=dtype,
    )


def _put_together(
    rows: Sequence[Rows], groups: Groups, factors: Mapping[str, LowRank], spec: ModuleSpec
) -> LowRank:
    """The rows below each other; a group's are in the columns of its own down factor."""
    import torch

    dtype = torch.float32
    found = {tensor.dtype for up, down, _ in factors.values() for tensor in (up, down)}
    alike = all(one.scale == spec.scale for one in factors.values())
    if len(found) == 1 and alike:
        dtype = next(iter(found))
    downs = [factors[group[0]].down.to(dtype) for group in groups]
    columns = {}
    start = 0
    for group, down in zip(groups, downs, strict=True):
        columns.update(dict.fromkeys(group, slice(start, start + len(down))))
        start += len(down)
    up = torch.zeros(spec.shape[0], start, dtype=dtype)
    at = 0
    for part in rows:
        stop = at + part.stop - part.start
        if part.module is not None:
            own, _, scale = factors[part.module]
            block = own[part.start : part.stop].to(dtype)
            up[at:stop, columns[part.module]] = block if alike else block * scale
        at = stop
    return LowRank(up, torch.cat(downs), spec.scale)


class InMemory:
    """A finished adapter, seen as one that is read."""

    source = "the finished adapter"
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, content: Content) -> None:
        self.naming: Naming = content.naming
        self.metadata = content.metadata
        self.config = content.config
        self.whole: Mapping[str, TensorSpec] = MappingProxyType(
            {name: _tensor_spec(name, tensor) for name, tensor in content.whole.items()}
        )
        self._content = content
        self.modules: Mapping[str, ModuleSpec] = MappingProxyType(
            {name: self._module(name, factors) for name, factors in content.modules.items()}
        )

    def read(self, module: str) -> LowRank:
        """One module's factors."""
        return self._content.modules[module]

    def read_whole(self, name: str) -> Tensor:
        """One replaced tensor."""
        return self._content.whole[name]

    def read_whole_part(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of it, flattened."""
        return self._content.whole[name].reshape(-1)[start:stop]

    def _module(self, name: str, factors: LowRank) -> ModuleSpec:
        up, down, scale = factors
        shape = (up.shape[0], *down.shape[1:])
        dtype = _tensor_spec(name, up).dtype
        return ModuleSpec(name, self._content.kinds[name], shape, len(down), scale, dtype)


def _tensor_spec(name: str, tensor: Tensor) -> TensorSpec:
    code = dtypes.code_of(tensor.dtype)
    assert code is not None
    return TensorSpec(name, tuple(tensor.shape), code)
