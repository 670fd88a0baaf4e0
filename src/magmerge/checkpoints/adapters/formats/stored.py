"""An adapter in files: each module's header, and how its factors are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.adapters.nouns import LowRank, ModuleSpec
from magmerge.core.errors import NonFiniteError
from magmerge.core.models import Checkpoint
from magmerge.core.types import Naming, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StoredModule:
    """One module: its header, the keys of its factors, and what makes (up, down) of these."""

    spec: ModuleSpec
    checkpoint: Checkpoint
    keys: tuple[str, ...]
    product: Callable[..., tuple[Tensor, Tensor]]

    def read(self) -> LowRank:
        """The factors: up [out, rank], down [rank, in, *kernel]; NonFiniteError for NaN."""
        up, down = self.product(*(finite(self.checkpoint, key) for key in self.keys))
        columns = (self.spec.rank, *self.spec.shape[1:])
        return LowRank(up, down.reshape(columns), self.spec.scale)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that an adapter replaces as a whole, and the key that it is stored under."""

    spec: TensorSpec
    checkpoint: Checkpoint
    key: str


class StoredAdapter:
    """An adapter whose headers are read and whose factors are not."""

    def __init__(
        self,
        source: str,
        files: tuple[Path, ...],
        naming: Naming,
        stored: Mapping[str, StoredModule],
        replaced: Mapping[str, StoredTensor] = MappingProxyType({}),
        metadata: Mapping[str, str] = MappingProxyType({}),
        config: Mapping[str, Any] = MappingProxyType({}),
        notes: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self.files = files
        self.naming: Naming = naming
        self.stored = stored
        self.replaced = replaced
        self.metadata = metadata
        self.config = config
        self.notes = notes
        self.modules: Mapping[str, ModuleSpec] = MappingProxyType(
            {name: module.spec for name, module in stored.items()}
        )
        self.whole: Mapping[str, TensorSpec] = MappingProxyType(
            {name: tensor.spec for name, tensor in replaced.items()}
        )

    def read(self, module: str) -> LowRank:
        """One module's factors, in their stored dtype or, if computed from several, in float32."""
        return self.stored[module].read()

    def read_whole(self, name: str) -> Tensor:
        """One replaced tensor, in its stored dtype."""
        tensor = self.replaced[name]
        return finite(tensor.checkpoint, tensor.key)

    def read_whole_part(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of it, flattened, whatever they hold."""
        tensor = self.replaced[name]
        return tensor.checkpoint.read_part(tensor.key, start, stop)


def finite(checkpoint: Checkpoint, key: str) -> Tensor:
    """The tensor `key`; NonFiniteError if it holds NaN or infinity."""
    tensor = checkpoint.read(key)
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        from magmerge.linalg.finite import count_of_bad

        raise NonFiniteError(
            count_of_bad(tensor),
            source=checkpoint.source,
            tensor=key,
            remedy="use a sound copy of this adapter",
        )
    return tensor
