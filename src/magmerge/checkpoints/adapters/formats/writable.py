"""What a finished adapter's factors look like in a file, whatever its keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from magmerge.checkpoints.adapters.nouns import Content, LowRank
from magmerge.core.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor


def stored_factors(content: Content) -> Iterator[tuple[str, LowRank]]:
    """Each module's factors as files hold them: contiguous, in memory of their own, and the up
    factor of a convolution with a kernel of ones.
    """
    seen: set[int] = set()
    for name, (up, down, scale) in content.modules.items():
        kernel = [1] * (down.ndim - 2) if content.kinds[name] == "convolution" else []
        wide = up.reshape(*up.shape, *kernel)
        yield name, LowRank(_own(wide, seen), _own(down, seen), scale)


def _own(tensor: Tensor, seen: set[int]) -> Tensor:
    """The tensor, copied where another that is written has the same memory: safetensors refuses
    those.
    """
    dense = tensor.contiguous()
    storage = dense.untyped_storage()
    if storage.data_ptr() in seen or storage.nbytes() != dense.numel() * dense.element_size():
        dense = dense.clone()
    seen.add(dense.untyped_storage().data_ptr())
    return dense


def check_plain(content: Content) -> None:
    """AdapterError for what only PEFT's format can hold: replaced tensors and embeddings."""
    embeddings = [name for name, kind in content.kinds.items() if kind == "embedding"]
    names = [*content.whole, *embeddings]
    if names:
        raise AdapterError(
            f"the {content.naming} format has no place for {', '.join(names)}",
            remedy="write the adapter as a PEFT folder",
        )
