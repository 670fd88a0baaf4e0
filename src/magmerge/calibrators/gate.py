"""What a calibrator's factor may do: the gate of MAGIC, and a bound on all factors together."""

from __future__ import annotations

from magmerge.core.lazy import Float, Tensor, torch


def gate(factor: Float[Tensor, "*rows"], sensitive: bool) -> Float[Tensor, "*rows"]:
    """A sensitive layer may only shrink, any other may only grow (arXiv:2512.19320, sec. 4)."""
    return factor.clamp(max=1.0) if sensitive else factor.clamp(min=1.0)


def bounded(
    xi: Float[Tensor, "..."], factor: Float[Tensor, "..."], bound: float
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """A further `factor` on rows that have `xi` already: what they have then, at most `bound`, and
    what it multiplied them by. Where the product is not above the bound no bit of it changes.
    """
    product = xi * factor
    return product.clamp(max=bound), torch.where(product > bound, bound / xi, factor)
