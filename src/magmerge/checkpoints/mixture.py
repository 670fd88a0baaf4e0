"""A mixture of experts as a patchwork of dense models: nothing of it but routers is in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from magmerge.core.dtypes import torch_dtype
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.stacks import block_of
from magmerge.core.types import Kind, TensorSpec
from magmerge.linalg.draws import uniforms

if TYPE_CHECKING:
    from torch import Tensor


class Patch(NamedTuple):
    """Where a tensor of a mixture is from: the tensor `name` of `expert`, or of the base where that
    is None; without a name zeros. To it are added draws from [-spread, spread) by `seed`, then all
    is multiplied by `scale`.
    """

    name: str | None = None
    expert: Expert | None = None
    scale: float = 1.0
    spread: float = 0.0
    seed: int = 0

    @property
    def stored(self) -> bool:
        """Whether it is a model's own tensor, bit for bit."""
        whole = self.expert is None or self.expert.whole is not None
        return self.name is not None and whole and self.scale == 1.0 and not self.spread


class Mixture:
    """The tensors `specs`, each from its patch. `routers` tell for each router, and each gate of a
    shared expert, that is still to be measured, the MLP in the base that it stands before: they
    are zeros until then. `written` is the format of the result, where its parts have several.
    """

    def __init__(
        self,
        base: Checkpoint,
        specs: Mapping[str, TensorSpec],
        patches: Mapping[str, Patch],
        *,
        routers: Mapping[str, str],
        written: str | None,
        notes: Sequence[str],
    ) -> None:
        self.base = base
        self.source: str = f"a mixture on {base.source}"
        self.folder: Path | None = base.folder
        experts = [patch.expert for patch in patches.values() if patch.expert is not None]
        files = [*base.files, *(file for expert in experts for file in expert.files)]
        self.files: tuple[Path, ...] = tuple(dict.fromkeys(files))
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(dict(specs))
        self.routers = routers
        self.written = written
        self.notes: tuple[str, ...] = tuple(notes)
        self.ties: Mapping[str, str] = {
            one: other for one, other in base.ties.items() if one in specs and other in specs
        }
        self.kinds: Mapping[str, Kind] = {
            name: kind for name, kind in base.kinds.items() if name in specs
        }
        self._patches = patches

    def live(self, runs: int) -> int:
        """Bytes of the base while prompts are read by so many runs at once: in float32, all that is
        in no block, and a block for each run.
        """
        sizes: dict[str, int] = {}
        for name, spec in self.base.specs.items():
            block = block_of(name)
            place = "" if block is None else f"{block.stack}.{block.number}"
            sizes[place] = sizes.get(place, 0) + 4 * math.prod(spec.shape)
        return sizes.pop("", 0) + runs * max(sizes.values(), default=0)

    def read(self, name: str) -> Tensor:
        """The tensor that is `name` here."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        patch = self._patches[name]
        if patch.name is not None and patch.stored:
            whole = self.base if patch.expert is None else patch.expert.whole
            assert whole is not None
            return whole.read_part(patch.name, start, stop, out)
        part = self._computed(name, patch, start, stop)
        return part if out is None else out.copy_(part)

    def _computed(self, name: str, patch: Patch, start: int, stop: int) -> Tensor:
        import torch

        dtype = torch_dtype(self.specs[name].dtype)
        if patch.name is None:
            part = torch.zeros(stop - start, dtype=dtype)
        else:
            part = self.base.read_part(patch.name, start, stop).to(dtype)
            if patch.expert is not None:
                part = patch.expert.weight(patch.name, part, start)
        if patch.spread:
            draws = uniforms(patch.seed, (stop - start,), start)
            part = part + draws.mul_(2).sub_(1).mul_(patch.spread)
        return part * patch.scale if patch.scale != 1.0 else part
