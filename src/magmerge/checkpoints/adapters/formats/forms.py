"""What a module's tensors make: shape, rank, and the function that puts them together."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from magmerge.checkpoints.adapters.formats.group import Group
from magmerge.checkpoints.adapters.formats.keys import Role
from magmerge.core import dtypes
from magmerge.core.types import TensorSpec

PLAIN = frozenset({"up", "down", "mid"})
_THREE_BY_THREE = re.compile(
    r"(?:lora_)?unet_(?:.*_)?"
    r"(?:conv1|conv2|conv_in|conv_out|(?:down|up)samplers_0_conv|in_layers_2|out_layers_3|\d_op"
    r"|output_blocks_\d+_[12]_conv|input_blocks_0_0|out_2)"
)
"""Convolutions of 3 x 3 in U-Nets, by their names, for files that hold their kernels flattened."""


class Form(NamedTuple):
    """What the factors make by which function of `products`; alpha is divided by `trained`, and
    means nothing where that is None. `entries` is the function that gives entries alone, of a task
    vector of full rank. `flattened`: see `ModuleSpec`.
    """

    shape: tuple[int, ...]
    rank: int
    trained: int | None
    roles: tuple[Role, ...]
    product: str
    entries: str = ""
    flattened: bool = False


def form_of(group: Group) -> Form:
    """What the module's factors make; AdapterError where they do not go together."""
    for spec in group.factors.values():
        if spec.dtype not in dtypes.FLOATS:
            raise group.fault(f"its format {spec.dtype} is none to compute with", spec.name)
        if not 2 <= len(spec.shape) <= 5:
            needed = "a factor has two dimensions, or four for an image's convolution"
            raise group.fault(f"{needed}, and this is {list(spec.shape)}", spec.name)
    kinds = {"plain" if role in PLAIN else role.partition("_")[0] for role in group.factors}
    if len(kinds) > 1:
        several = f"{group.name} has factors of several kinds"
        raise group.fault(several, min(group.roles.values()))
    return _FORMS[kinds.pop() if kinds else "plain"](group)


def _plain(group: Group) -> Form:
    up, down = group.specs("up", "down")
    rank = down.shape[0]
    group.check_sizes(up, down)
    if math.prod(up.shape[2:]) != 1:
        raise group.fault(f"an up factor has no kernel, and this is {list(up.shape)}", up.name)
    group.check_rank(up, rank)
    mid = group.factors.get("mid")
    if mid is None:
        return Form((up.shape[0], *down.shape[1:]), rank, rank, ("up", "down"), "plain")
    group.check_sizes(mid)
    if mid.shape[:2] != (rank, rank) or math.prod(down.shape[2:]) != 1 or len(mid.shape) < 3:
        outer = f"{list(up.shape)} and {list(down.shape)}"
        problem = f"the factor in the middle is {list(mid.shape)}, between {outer}"
        raise group.fault(problem, mid.name)
    shape = (up.shape[0], down.shape[1], *mid.shape[2:])
    return Form(shape, rank, rank, ("up", "down", "mid"), "tucker")


def _difference(group: Group) -> Form:
    """A full difference: as a product it has the identity for a factor."""
    (spec,) = group.specs("diff")
    group.check_sizes(spec)
    rank = min(spec.shape[0], math.prod(spec.shape[1:]))
    return Form(spec.shape, rank, None, ("diff",), "difference", "stored")


def _hadamard(group: Group) -> Form:
    roles: tuple[Role, ...] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if "hada_t1" in group.factors or "hada_t2" in group.factors:
        return _hadamard_in_tucker_form(group, roles)
    w1_a, w1_b, w2_a, w2_b = group.matrices(*roles)
    group.check_rank(w1_a, w1_b.shape[0])
    group.check_rank(w2_a, w2_b.shape[0])
    if (w1_a.shape, w1_b.shape) != (w2_a.shape, w2_b.shape):
        raise group.fault(
            f"the two products of {group.name} are {list(w1_a.shape)} x {list(w1_b.shape)} and "
            f"{list(w2_a.shape)} x {list(w2_b.shape)}",
            w2_a.name,
        )
    rank, rows, columns = w1_b.shape[0], w1_a.shape[0], w1_b.shape[1]
    total = min(rank * rank, rows, columns)
    shape = (rows, *_unfolded(group, columns))
    return Form(shape, total, rank, roles, "hadamard", flattened=True)


def _hadamard_in_tucker_form(group: Group, roles: tuple[Role, ...]) -> Form:
    """Each of the two is a core [r, r, *kernel] between [r, out] and [r, in]."""
    w1_a, w1_b, w2_a, w2_b = group.matrices(*roles)
    cores = group.specs("hada_t1", "hada_t2")
    shapes = [
        _tucker(group, *three) for three in zip(cores, (w1_a, w2_a), (w1_b, w2_b), strict=True)
    ]
    if shapes[0] != shapes[1]:
        problem = f"the two products of {group.name} are {list(shapes[0])} and {list(shapes[1])}"
        raise group.fault(problem, cores[1].name)
    rank = min(shapes[0][0], math.prod(shapes[0][1:]))
    roles = (*roles, "hada_t1", "hada_t2")
    trained = w1_b.shape[0]
    return Form(shapes[0], rank, trained, roles, "hadamard_of_tucker", flattened=True)


def _tucker(group: Group, core: TensorSpec, left: TensorSpec, right: TensorSpec) -> tuple[int, ...]:
    """[out, in, *kernel] of a core [r, r, *kernel] between [r, out] and [r, in]."""
    group.check_sizes(core)
    if core.shape[:2] != (left.shape[0], right.shape[0]):
        outer = f"{list(left.shape)} and {list(right.shape)}"
        raise group.fault(f"the core is {list(core.shape)}, between {outer}", core.name)
    return (left.shape[1], right.shape[1], *core.shape[2:])


def _kronecker(group: Group) -> Form:
    """kron(W1, W2): each whole or in factors, W2 also with a core."""
    first: tuple[Role, ...] = ("lokr_w1",)
    if "lokr_w1" not in group.factors:
        first = ("lokr_w1_a", "lokr_w1_b")
    second: tuple[Role, ...] = ("lokr_w2",)
    if "lokr_w2" not in group.factors:
        core: tuple[Role, ...] = ("lokr_t2",) if "lokr_t2" in group.factors else ()
        second = ("lokr_w2_a", "lokr_w2_b", *core)
    group.specs(*first, *second)
    if len(first) + len(second) != len(group.factors):
        twice = f"{group.name} has one of its factors twice"
        raise group.fault(twice, min(group.roles.values()))
    (rows, columns), one = _first_of_two(group, first)
    (height, *inner), two = _second_of_two(group, second)
    if one and two and one != two:
        group.check_rank(group.factors["lokr_w1_a"], two)
    shape = (rows * height, columns * inner[0], *inner[1:])
    limit = min(shape[0], math.prod(shape[1:]))
    ranks = (one or min(rows, columns), two or limit)
    roles, product = (*first, *second), "kronecker_of_factors" if one else "kronecker"
    unfolded = (shape[0], *(_unfolded(group, shape[1]) if len(shape) == 2 and two else shape[1:]))
    # Where both are whole its alpha means nothing: the programs that train it say so.
    trained = two or one
    if len(second) == 2 and ranks[1] <= min(height, inner[0]) and math.prod(ranks) <= limit:
        return Form(unfolded, math.prod(ranks), trained, roles, product, flattened=True)
    product = "kronecker_of_product" if one else "kronecker_of_whole"
    return Form(unfolded, limit, trained, roles, product, f"{product}_entries", flattened=True)


def _first_of_two(group: Group, roles: tuple[Role, ...]) -> tuple[tuple[int, int], int | None]:
    """The shape of LoKr's first factor, and its rank where it is a product."""
    left, right = (specs := group.matrices(*roles))[0], specs[-1]
    if len(roles) == 1:
        return (left.shape[0], left.shape[1]), None
    group.check_rank(left, right.shape[0])
    return (left.shape[0], right.shape[1]), right.shape[0]


def _second_of_two(group: Group, roles: tuple[Role, ...]) -> tuple[tuple[int, ...], int | None]:
    """The shape of LoKr's second factor, [out, in, *kernel], and its rank where it is a product."""
    if len(roles) == 1:
        (whole,) = group.specs(*roles)
        group.check_sizes(whole)
        return whole.shape, None
    left, right = group.matrices(*roles[:2])
    if len(roles) == 3:
        (core,) = group.specs(roles[2])
        return _tucker(group, core, left, right), right.shape[0]
    group.check_rank(left, right.shape[0])
    return (left.shape[0], right.shape[1]), right.shape[0]


_FORMS = {
    "plain": _plain,
    "diff": _difference,
    "hada": _hadamard,
    "lokr": _kronecker,
}


def _unfolded(group: Group, columns: int) -> tuple[int, ...]:
    """[in, 3, 3] for such a convolution whose in times 9 is `columns`; else [columns]."""
    if columns % 9 == 0 and _THREE_BY_THREE.fullmatch(group.name.replace(".", "_")):
        return (columns // 9, 3, 3)
    return (columns,)
