"""From a module's keys to its header: shapes, rank and scale, checked before any factor is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from magmerge.checkpoints.adapters.formats.keys import Role
from magmerge.checkpoints.adapters.formats.sorting import AGAIN, Roles
from magmerge.checkpoints.adapters.formats.stored import StoredModule
from magmerge.checkpoints.adapters.names.kernels import unfolded
from magmerge.checkpoints.adapters.nouns import ModuleKind, ModuleSpec
from magmerge.core import dtypes
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

NOT_LOW_RANK = "its second factor (lokr_w2) is a full matrix: kron(W1, W2) is not low-rank"


class _Form(NamedTuple):
    """What the factors make: `trained` is the rank that alpha is divided by."""

    shape: tuple[int, ...]
    rank: int
    trained: int
    roles: tuple[Role, ...]
    product: str


def stored_module(
    checkpoint: Checkpoint, name: str, roles: Roles, scale: float | None = None
) -> StoredModule:
    """The module `name` of the tensors in `roles`.

    `scale` is what the file's own entries say of it; without it and without an alpha it is 1.
    AdapterError for half pairs, shapes that do not go together, and an alpha that cannot be.
    """
    form = _form(checkpoint, name, roles)
    if scale is None or "alpha" in roles:
        own = _alpha(checkpoint, roles, form.trained)
        if scale is not None and not math.isclose(own, scale, rel_tol=1e-6):
            raise _fault(
                f"its alpha makes the scale {own:g}, and the file's entries {scale:g}",
                checkpoint,
                roles["alpha"],
            )
        scale = own
    first = checkpoint.specs[roles[form.roles[0]]]
    kind: ModuleKind = "linear" if len(form.shape) == 2 else "convolution"
    spec = ModuleSpec(name, kind, form.shape, form.rank, scale, first.dtype)
    keys = tuple(roles[role] for role in form.roles)
    return StoredModule(spec, checkpoint, keys, product_of(form.product))


def product_of(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function of that name in `products`, which needs torch only once it is called."""

    def product(*factors: Tensor) -> tuple[Tensor, Tensor]:
        from magmerge.checkpoints.adapters.formats import products

        result: tuple[Tensor, Tensor] = getattr(products, name)(*factors)
        return result

    return product


def checked_scale(
    alpha: float, scale: float, source: object, key: str, remedy: str = AGAIN
) -> float:
    """`scale`, if it is of use; AdapterError for an alpha of 0, NaN or infinity."""
    if not math.isfinite(alpha):
        raise AdapterError(f"alpha is {alpha}", source=source, tensor=key, remedy=remedy)
    if alpha == 0:
        raise AdapterError(
            "alpha is 0: the adapter would change nothing",
            source=source,
            tensor=key,
            remedy="restore the alpha that it was trained with",
        )
    # Beyond these, the product with float32 factors is 0 or infinite.
    if not 2.0**-100 < abs(scale) < 2.0**100:
        raise AdapterError(
            f"alpha {alpha:g} makes the scale {scale:g}", source=source, tensor=key, remedy=remedy
        )
    return scale


def _alpha(checkpoint: Checkpoint, roles: Roles, rank: int) -> float:
    key = roles.get("alpha")
    if key is None:
        return 1.0
    spec = checkpoint.specs[key]
    if math.prod(spec.shape) != 1 or spec.dtype not in dtypes.FLOATS | {"I64", "I32", "I16"}:
        raise _fault(
            f"an alpha is one number, and this is {spec.dtype} {list(spec.shape)}", checkpoint, key
        )
    alpha = float(checkpoint.read(key).reshape(()).item())
    return checked_scale(alpha, alpha / rank, checkpoint.source, key)


def _form(checkpoint: Checkpoint, name: str, roles: Roles) -> _Form:
    given = set(roles) - {"alpha"}
    specs = {role: checkpoint.specs[key] for role, key in roles.items()}
    for role in given:
        _check_format(specs[role], checkpoint)
    kinds = {role.partition("_")[0] for role in given} - {"up", "down", "mid"}
    if len(kinds) > 1 or (kinds and given & {"up", "down", "mid"}):
        raise _fault(f"{name} has factors of several kinds", checkpoint, min(roles.values()))
    if "hada" in kinds:
        return _hadamard(checkpoint, name, roles, specs)
    if "lokr" in kinds:
        return _kronecker(checkpoint, name, roles, specs)
    return _plain(checkpoint, name, roles, specs)


def _check_format(spec: TensorSpec, checkpoint: Checkpoint) -> None:
    if spec.dtype not in dtypes.FLOATS:
        raise _fault(f"its format {spec.dtype} is none to compute with", checkpoint, spec.name)
    if not 2 <= len(spec.shape) <= 5:
        raise _fault(
            f"a factor has two dimensions, or four for an image's convolution, and this is "
            f"{list(spec.shape)}",
            checkpoint,
            spec.name,
        )


def _plain(
    checkpoint: Checkpoint, name: str, roles: Roles, specs: Mapping[Role, TensorSpec]
) -> _Form:
    _check_whole(checkpoint, name, roles, ("up", "down"))
    up, down = specs["up"], specs["down"]
    rank = down.shape[0]
    _check_sizes(checkpoint, up, down)
    if math.prod(up.shape[2:]) != 1:
        raise _fault(
            f"an up factor has no kernel, and this is {list(up.shape)}", checkpoint, up.name
        )
    _check_ranks(checkpoint, up, rank)
    if "mid" not in roles:
        return _Form((up.shape[0], *down.shape[1:]), rank, rank, ("up", "down"), "plain")
    mid = specs["mid"]
    _check_sizes(checkpoint, mid)
    if mid.shape[:2] != (rank, rank) or math.prod(down.shape[2:]) != 1 or len(mid.shape) < 3:
        raise _fault(
            f"the factor in the middle is {list(mid.shape)}, between {list(up.shape)} and "
            f"{list(down.shape)}",
            checkpoint,
            mid.name,
        )
    shape = (up.shape[0], down.shape[1], *mid.shape[2:])
    return _Form(shape, rank, rank, ("up", "down", "mid"), "tucker")


def _hadamard(
    checkpoint: Checkpoint, name: str, roles: Roles, specs: Mapping[Role, TensorSpec]
) -> _Form:
    wanted: tuple[Role, ...] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    _check_whole(checkpoint, name, roles, wanted)
    w1_a, w1_b, w2_a, w2_b = (specs[role] for role in wanted)
    _check_matrices(checkpoint, w1_a, w1_b, w2_a, w2_b)
    for a, b in ((w1_a, w1_b), (w2_a, w2_b)):
        _check_ranks(checkpoint, a, b.shape[0])
    if (w1_a.shape, w1_b.shape) != (w2_a.shape, w2_b.shape):
        raise _fault(
            f"the two products of {name} are {list(w1_a.shape)} x {list(w1_b.shape)} and "
            f"{list(w2_a.shape)} x {list(w2_b.shape)}",
            checkpoint,
            w2_a.name,
        )
    rank = w1_b.shape[0]
    rows, columns = w1_a.shape[0], w1_b.shape[1]
    total = min(rank * rank, rows, columns)
    return _Form((rows, *unfolded(name, columns)), total, rank, wanted, "hadamard")


def _kronecker(
    checkpoint: Checkpoint, name: str, roles: Roles, specs: Mapping[Role, TensorSpec]
) -> _Form:
    if "lokr_w2" in roles:
        raise AdapterError(
            f"refused: {NOT_LOW_RANK}",
            source=checkpoint.source,
            tensor=roles["lokr_w2"],
            remedy="merge it into its base with LyCORIS, and give the whole models",
        )
    factored = "lokr_w1" not in roles
    first: tuple[Role, ...] = ("lokr_w1_a", "lokr_w1_b") if factored else ("lokr_w1",)
    wanted: tuple[Role, ...] = (*first, "lokr_w2_a", "lokr_w2_b")
    _check_whole(checkpoint, name, roles, wanted)
    if len(wanted) != len(set(roles) - {"alpha"}):
        raise _fault(f"{name} has its first factor twice", checkpoint, roles["lokr_w1"])
    _check_matrices(checkpoint, *(specs[role] for role in wanted))
    w2_a, w2_b = specs["lokr_w2_a"], specs["lokr_w2_b"]
    rank = w2_b.shape[0]
    _check_ranks(checkpoint, w2_a, rank)
    left, right = specs[first[0]], specs[first[-1]]
    if factored:
        _check_ranks(checkpoint, left, right.shape[0])
        _check_ranks(checkpoint, left, rank)
    rows, columns = left.shape[0] * w2_a.shape[0], right.shape[1] * w2_b.shape[1]
    total = min(rank * (rank if factored else min(left.shape)), rows, columns)
    product = "kronecker_of_factors" if factored else "kronecker"
    return _Form((rows, *unfolded(name, columns)), total, rank, wanted, product)


def _check_whole(checkpoint: Checkpoint, name: str, roles: Roles, wanted: tuple[Role, ...]) -> None:
    missing = [role for role in wanted if role not in roles]
    if missing:
        raise AdapterError(
            f"half of a pair is missing: {name} has no {' and no '.join(missing)} factor",
            source=checkpoint.source,
            tensor=next(iter(roles.values())),
            remedy=AGAIN,
        )


def _check_matrices(checkpoint: Checkpoint, *specs: TensorSpec) -> None:
    _check_sizes(checkpoint, *specs)
    for spec in specs:
        if len(spec.shape) != 2:
            raise _fault(
                f"a factor of LoHa or LoKr is a matrix, and this is {list(spec.shape)}",
                checkpoint,
                spec.name,
            )


def _check_sizes(checkpoint: Checkpoint, *specs: TensorSpec) -> None:
    for spec in specs:
        if 0 in spec.shape:
            raise _fault(f"rank 0 or no features: {list(spec.shape)}", checkpoint, spec.name)


def _check_ranks(checkpoint: Checkpoint, left: TensorSpec, rank: int) -> None:
    if left.shape[1] != rank:
        raise _fault(
            f"its rank is {left.shape[1]}, and that of its other half {rank}", checkpoint, left.name
        )


def _fault(problem: str, checkpoint: Checkpoint, key: str) -> AdapterError:
    return AdapterError(problem, source=checkpoint.source, tensor=key, remedy=AGAIN)
