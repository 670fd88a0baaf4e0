"""The gate of MAGIC: which way a layer's magnitude may go."""

from __future__ import annotations

from magmerge.core.lazy import Float, Tensor


def gate(factor: Float[Tensor, "*rows"], sensitive: bool) -> Float[Tensor, "*rows"]:
    """A sensitive layer may only shrink, any other may only grow (arXiv:2512.19320, sec. 4)."""
    return factor.clamp(max=1.0) if sensitive else factor.clamp(min=1.0)
