"""Factors as files hold them, brought to the one form `up @ down`; each exactly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.checkpoints.adapters.nouns import Content, Entries, LowRank
from magmerge.core.models import Checkpoint

Factors = tuple[Tensor, Tensor]


def plain(up: Float[Tensor, "out r ..."], down: Float[Tensor, "r cols ..."]) -> Factors:
    """Both as they are stored."""
    return up.flatten(1), down


def tucker(
    up: Float[Tensor, "out r ..."], down: Float[Tensor, "r cols ..."], mid: Float[Tensor, "r r ..."]
) -> Factors:
    """A convolution in three factors: `mid` is folded into `down`.

    sum_pq up[o,p] mid[p,q,...] down[q,i] = up @ (mid down), down becoming [r, in, *kernel].
    """
    wide = torch.einsum("pq...,qi->pi...", mid.double(), down.flatten(1).double())
    return _arithmetic(up.flatten(1), up), _arithmetic(wide, down)


def hadamard(
    w1_a: Float[Tensor, "out r"],
    w1_b: Float[Tensor, "r cols"],
    w2_a: Float[Tensor, "out s"],
    w2_b: Float[Tensor, "s cols"],
) -> Factors:
    """LoHa (arXiv:2108.06098): (A1 B1) * (A2 B2), entry by entry, has rank r s at most.

    Entry (o, i) is sum_pq A1[o,p] A2[o,q] B1[p,i] B2[q,i]: the factors are the products of the
    rows of A1 and A2, and of the columns of B1 and B2 (Khatri and Rao 1968).
    """
    if w1_a.shape[1] * w2_a.shape[1] > min(w1_a.shape[0], w1_b.shape[1]):
        return _full((w1_a.double() @ w1_b.double()) * (w2_a.double() @ w2_b.double()), w1_a)
    up = torch.einsum("op,oq->opq", w1_a.double(), w2_a.double()).flatten(1)
    down = torch.einsum("pi,qi->pqi", w1_b.double(), w2_b.double()).flatten(0, 1)
    return _arithmetic(up, w1_a), _arithmetic(down, w1_b)


def hadamard_of_tucker(
    w1_a: Float[Tensor, "r out"],
    w1_b: Float[Tensor, "r cols"],
    w2_a: Float[Tensor, "s out"],
    w2_b: Float[Tensor, "s cols"],
    t1: Float[Tensor, "r r ..."],
    t2: Float[Tensor, "s s ..."],
) -> Factors:
    """LoHa of convolutions whose two products have a core each: of full rank."""
    delta = _with_core(t1, w1_a, w1_b) * _with_core(t2, w2_a, w2_b)
    return _full(delta.flatten(1), w1_a)


def _with_core(
    core: Float[Tensor, "r s ..."], left: Float[Tensor, "r out"], right: Float[Tensor, "s cols"]
) -> Float[Tensor, "out cols ..."]:
    """sum_pq core[p,q,...] left[p,o] right[q,i], in float64."""
    return torch.einsum("pq...,po,qi->oi...", core.double(), left.double(), right.double())


def difference(delta: Float[Tensor, "out ..."]) -> Factors:
    """A task vector that is stored as it is."""
    return _full(delta.flatten(1), delta)


def stored_entries(checkpoint: Checkpoint, key: str, scale: float, start: int, stop: int) -> Tensor:
    """Entries [start, stop) of a stored task vector, scaled."""
    part = checkpoint.read_part(key, start, stop)
    return part.to(_wide(part)) * scale


def kronecker(
    w1: Float[Tensor, "a b"], w2_a: Float[Tensor, "c r"], w2_b: Float[Tensor, "r d"]
) -> Factors:
    """LoKr (arXiv:2309.14859) with a full W1: kron(W1, A2 B2), of rank r min(a, b) at most.

    kron(W1 I, A2 B2) = kron(W1, A2) kron(I, B2), or the same with I before W1, as is smaller.
    """
    rows, columns = w1.shape
    eye = torch.eye(min(rows, columns), dtype=torch.float64)
    left, right = (eye, w1.double()) if rows < columns else (w1.double(), eye)
    up, down = torch.kron(left, w2_a.double()), torch.kron(right, w2_b.double())
    return _arithmetic(up, w2_a), _arithmetic(down, w2_b)


def kronecker_of_factors(
    w1_a: Float[Tensor, "a s"],
    w1_b: Float[Tensor, "s b"],
    w2_a: Float[Tensor, "c r"],
    w2_b: Float[Tensor, "r d"],
) -> Factors:
    """LoKr with both in factors: kron(A1 B1, A2 B2) = kron(A1, A2) kron(B1, B2), of rank r s."""
    up, down = torch.kron(w1_a.double(), w2_a.double()), torch.kron(w1_b.double(), w2_b.double())
    return _arithmetic(up, w1_a), _arithmetic(down, w1_b)


def kronecker_of_whole(w1: Float[Tensor, "a b"], *second: Tensor) -> Factors:
    """LoKr whose product is of full rank: kron(W1, W2), `second` being W2 or what makes it."""
    return _full(torch.kron(w1.double(), _second(*second).flatten(1)), w1)


def kronecker_of_product(
    w1_a: Float[Tensor, "a s"], w1_b: Float[Tensor, "s b"], *second: Tensor
) -> Factors:
    """The same with W1 = A1 B1."""
    w1 = w1_a.double() @ w1_b.double()
    return _full(torch.kron(w1, _second(*second).flatten(1)), w1_a)


def kronecker_of_whole_entries(scale: float, w1: Float[Tensor, "a b"], *second: Tensor) -> Entries:
    """The entries of `kronecker_of_whole`, scaled, without building it."""
    return partial(_kronecker_entries, w1.double() * scale, _second(*second).flatten(1))


def kronecker_of_product_entries(
    scale: float, w1_a: Float[Tensor, "a s"], w1_b: Float[Tensor, "s b"], *second: Tensor
) -> Entries:
    """Those of `kronecker_of_product`."""
    return kronecker_of_whole_entries(scale, w1_a.double() @ w1_b.double(), *second)


def _second(first: Tensor, *more: Tensor) -> Float[Tensor, "c d ..."]:
    """LoKr's W2, in float64: whole, a product of two, or of two with a core."""
    if not more:
        return first.double()
    if len(more) == 1:
        return first.double() @ more[0].double()
    return _with_core(more[1], first, more[0])


def _kronecker_entries(
    w1: Float[Tensor, "a b"], w2: Float[Tensor, "c d"], start: int, stop: int
) -> Float[Tensor, "n"]:
    """Entries [start, stop) of kron(W1, W2), without the other rows."""
    row, height = w1.shape[1] * w2.shape[1], len(w2)
    rows = torch.arange(start // row, -(-stop // row))
    left, right = w1[rows // height], w2[rows % height]
    entries = (left[:, :, None] * right[:, None, :]).reshape(-1)
    begin = start // row * row
    return entries[start - begin : stop - begin]


def _full(delta: Float[Tensor, "out cols"], stored: Tensor) -> Factors:
    """A task vector of full rank: one factor is the identity, the other all of it."""
    rows, columns = delta.shape
    eye = _arithmetic(torch.eye(min(rows, columns)), stored)
    full = _arithmetic(delta, stored)
    return (eye, full) if rows <= columns else (full, eye)


def scaled(factors: LowRank) -> LowRank:
    """The same with scale 1: it is multiplied into `up` in float32, which is then cast once."""
    up, down, scale = factors
    if scale == 1:
        return factors
    return LowRank((up.to(_wide(up)) * scale).to(up.dtype), down, 1.0)


def _arithmetic(product: Tensor, stored: Tensor) -> Tensor:
    """A product in the format of the arithmetic: float64 for what is stored so, else float32."""
    return product.to(_wide(stored)).contiguous()


def _wide(stored: Tensor) -> torch.dtype:
    return torch.float64 if stored.dtype == torch.float64 else torch.float32


def stored_factors(content: Content, *, unscaled: bool = False) -> Iterator[tuple[str, LowRank]]:
    """Each module's factors as files hold them: contiguous, in memory of their own, and the up
    factor of a convolution with a kernel of ones. `unscaled`: with scale 1.
    """
    seen: set[int] = set()
    for name, factors in content.modules.items():
        up, down, scale = scaled(factors) if unscaled else factors
        kernel = [1] * (down.ndim - 2) if content.kinds[name] == "convolution" else []
        wide = up.reshape(*up.shape, *kernel)
        yield name, LowRank(_own(wide, seen), _own(down, seen), scale)


def _own(tensor: Tensor, seen: set[int]) -> Tensor:
    """The tensor, copied where another shares its memory: safetensors refuses those."""
    dense = tensor.contiguous()
    storage = dense.untyped_storage()
    if storage.data_ptr() in seen or storage.nbytes() != dense.numel() * dense.element_size():
        dense = dense.clone()
    seen.add(dense.untyped_storage().data_ptr())
    return dense
