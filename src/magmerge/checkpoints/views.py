"""A model seen otherwise than it is stored: under other names, tensors cut, joined and turned."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, cast

from magmerge.core.dtypes import torch_dtype
from magmerge.core.lazy import Tensor, torch
from magmerge.core.models import Checkpoint, as_stored
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from magmerge.core.models import Bytes, Stored


class Stretch(NamedTuple):
    """One part: `size` entries of the stored tensor `name` from `start` on, as they follow each
    other in memory; if `turned`, of the transposed tensor. Without a name: zeros.
    """

    name: str | None
    start: int
    size: int
    turned: bool = False


class CheckpointView:
    """`checkpoint` with the tensors `specs`, each put together of its `stretches` when it is read.

    Only what a tensor is made of is read for it. Ties, kinds and rows that the model has not are
    known of what is one stored tensor, or parts of one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        specs: Mapping[str, TensorSpec],
        stretches: Mapping[str, Sequence[Stretch]],
    ) -> None:
        self._checkpoint = checkpoint
        self.source: str = checkpoint.source
        self.folder: Path | None = checkpoint.folder
        self.files: tuple[Path, ...] = checkpoint.files
        self.notes: tuple[str, ...] = checkpoint.notes
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(dict(specs))
        self._stretches = stretches
        self._stored = {
            name: parts[0].name
            for name, parts in stretches.items()
            if len(parts) == 1
            and parts[0].name is not None
            and not parts[0].turned
            and parts[0].size == math.prod(checkpoint.specs[parts[0].name].shape)
        }
        self._ends = {
            name: list(itertools.accumulate(stretch.size for stretch in parts))
            for name, parts in stretches.items()
        }
        names = {stored: name for name, stored in self._stored.items()}
        # Parts of a tensor under its own name are still that tensor.
        names |= {
            n: n for n, parts in stretches.items() if {part.name for part in parts} <= {n, None}
        }
        ties = {a: b for a, b in checkpoint.ties.items() if a in names and b in names}
        self.ties: Mapping[str, str] = {names[a]: names[b] for a, b in ties.items()}
        self.kinds: Mapping[str, Kind] = {
            names[name]: kind for name, kind in checkpoint.kinds.items() if name in names
        }
        holes: Mapping[str, Sequence[range]] = getattr(checkpoint, "absent", {})
        self.absent: Mapping[str, Sequence[range]] = {
            names[name]: rows for name, rows in holes.items() if name in names
        }

    def read(self, name: str) -> Tensor:
        """The tensor that is `name` here."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if name in self._stored:
            return self._checkpoint.read_part(self._stored[name], start, stop, out)
        if out is None:
            out = torch.empty(stop - start, dtype=torch_dtype(self.specs[name].dtype))
        stretches, ends = self._stretches[name], self._ends[name]
        for place in range(bisect.bisect_right(ends, start), len(stretches)):
            begin = ends[place] - stretches[place].size
            if begin >= stop:
                break
            first, last = max(start, begin), min(stop, ends[place])
            self._fill(out[first - start : last - start], stretches[place], first - begin)
        return out

    def raw(self, name: str) -> bool:
        """Whether its stored bytes are a stored tensor's."""
        stored = self._stored.get(name)
        return stored is not None and as_stored(self._checkpoint, stored) is not None

    def read_bytes(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """The stored bytes of entries [start, stop) of the flattened tensor, into all of `out`."""
        cast("Stored", self._checkpoint).read_bytes(self._stored[name], start, stop, out)

    def give_back(self, name: str, start: int, stop: int) -> None:
        """Let go of the memory in which the system keeps these entries, where they are stored as
        they are here.
        """
        if name in self._stored and hasattr(self._checkpoint, "give_back"):
            self._checkpoint.give_back(self._stored[name], start, stop)

    def _fill(self, out: Tensor, stretch: Stretch, start: int) -> None:
        """The entries of a stretch from `start` on, as many as `out` has room for."""
        stop = start + out.numel()
        if stretch.name is None:
            out.zero_()
        elif stretch.turned:
            out.copy_(self._checkpoint.read(stretch.name).t().reshape(-1)[start:stop])
        else:
            begin = stretch.start
            self._checkpoint.read_part(stretch.name, begin + start, begin + stop, out)


def whole(spec: TensorSpec) -> tuple[Stretch, ...]:
    """A stored tensor as it is."""
    return (Stretch(spec.name, 0, math.prod(spec.shape)),)


def under_names(checkpoint: Checkpoint, names: Mapping[str, str]) -> CheckpointView:
    """A checkpoint under other names; `names` maps each new name to the stored one."""
    stored = {new: checkpoint.specs[old] for new, old in names.items()}
    specs = {new: TensorSpec(new, spec.shape, spec.dtype) for new, spec in stored.items()}
    return CheckpointView(checkpoint, specs, {new: whole(spec) for new, spec in stored.items()})
