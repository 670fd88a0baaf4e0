"""From a module's keys to its header: shapes, rank and scale, checked before any factor is read."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from magmerge.checkpoints.adapters.formats.keys import AGAIN, Role, Roles
from magmerge.checkpoints.adapters.nouns import LowRank, Module, ModuleKind, ModuleSpec
from magmerge.core import dtypes
from magmerge.core.errors import AdapterError, NonFiniteError
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

NOT_LOW_RANK = "its second factor (lokr_w2) is a full matrix: kron(W1, W2) is not low-rank"
PLAIN = frozenset({"up", "down", "mid"})
_THREE_BY_THREE = re.compile(
    r"(?:lora_)?unet_(?:.*_)?"
    r"(?:conv1|conv2|conv_in|conv_out|(?:down|up)samplers_0_conv|in_layers_2|out_layers_3|\d_op"
    r"|output_blocks_\d+_[12]_conv|input_blocks_0_0|out_2)"
)
"""Convolutions of 3 x 3 in U-Nets, by their names, for files that hold their kernels flattened."""


class _Form(NamedTuple):
    """What the factors make by which function of `products`; alpha is divided by `trained`."""

    shape: tuple[int, ...]
    rank: int
    trained: int
    roles: tuple[Role, ...]
    product: str


def stored_module(
    checkpoint: Checkpoint, name: str, roles: Roles, scale: float | None = None
) -> Module:
    """The module `name` of the tensors in `roles`.

    `scale` is what the file's own entries say of it; without it and without an alpha it is 1.
    AdapterError for half pairs, shapes that do not go together, and an alpha that cannot be.
    """
    group = _Group(checkpoint, name, roles)
    form = group.form()
    if scale is None or "alpha" in roles:
        own = group.scale(form.trained)
        if scale is not None and not math.isclose(own, scale, rel_tol=1e-6):
            problem = f"its alpha makes the scale {own:g}, and the file's entries {scale:g}"
            raise group.fault(problem, roles["alpha"])
        scale = own
    first = checkpoint.specs[roles[form.roles[0]]]
    kind: ModuleKind = "linear" if len(form.shape) == 2 else "convolution"
    spec = ModuleSpec(name, kind, form.shape, form.rank, scale, first.dtype)
    keys = [roles[role] for role in form.roles]
    return Module(spec, partial(_factors, checkpoint, keys, form.product, spec))


def _factors(checkpoint: Checkpoint, keys: list[str], product: str, spec: ModuleSpec) -> LowRank:
    from magmerge.checkpoints.adapters.formats import products

    up, down = getattr(products, product)(*(_finite(checkpoint, key) for key in keys))
    return LowRank(up, down.reshape(spec.rank, *spec.shape[1:]), spec.scale)


def _finite(checkpoint: Checkpoint, key: str) -> Tensor:
    tensor = checkpoint.read(key)
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        from magmerge.linalg.finite import count_of_bad

        remedy = "use a sound copy of this adapter"
        problem = count_of_bad(tensor)
        raise NonFiniteError(problem, source=checkpoint.source, tensor=key, remedy=remedy)
    return tensor


def checked_scale(
    alpha: float, scale: float, source: object, key: str, remedy: str = AGAIN
) -> float:
    """`scale`, if it is of use; AdapterError for an alpha of 0, NaN or infinity."""
    problem = None
    if not math.isfinite(alpha):
        problem = f"alpha is {alpha}"
    elif alpha == 0:
        problem = "alpha is 0: the adapter would change nothing"
        remedy = "restore the alpha that it was trained with"
    # Beyond these, the product with float32 factors is 0 or infinite.
    elif not 2.0**-100 < abs(scale) < 2.0**100:
        problem = f"alpha {alpha:g} makes the scale {scale:g}"
    if problem is not None:
        raise AdapterError(problem, source=source, tensor=key, remedy=remedy)
    return scale


class _Group:
    """The tensors of one module by their roles, of which nothing is known to be sound yet."""

    def __init__(self, checkpoint: Checkpoint, name: str, roles: Roles) -> None:
        self.checkpoint, self.name, self.roles = checkpoint, name, roles
        self.factors: dict[Role, TensorSpec] = {
            role: checkpoint.specs[key] for role, key in roles.items() if role != "alpha"
        }

    def fault(self, problem: str, key: str) -> AdapterError:
        return AdapterError(problem, source=self.checkpoint.source, tensor=key, remedy=AGAIN)

    def scale(self, rank: int) -> float:
        """alpha / rank; 1 without an alpha."""
        key = self.roles.get("alpha")
        if key is None:
            return 1.0
        spec = self.checkpoint.specs[key]
        if math.prod(spec.shape) != 1 or spec.dtype not in dtypes.FLOATS | {"I64", "I32", "I16"}:
            problem = f"an alpha is one number, and this is {spec.dtype} {list(spec.shape)}"
            raise self.fault(problem, key)
        alpha = float(self.checkpoint.read(key).reshape(()).item())
        return checked_scale(alpha, alpha / rank, self.checkpoint.source, key)

    def form(self) -> _Form:
        for spec in self.factors.values():
            if spec.dtype not in dtypes.FLOATS:
                raise self.fault(f"its format {spec.dtype} is none to compute with", spec.name)
            if not 2 <= len(spec.shape) <= 5:
                needed = "a factor has two dimensions, or four for an image's convolution"
                raise self.fault(f"{needed}, and this is {list(spec.shape)}", spec.name)
        kinds = {"plain" if role in PLAIN else role.partition("_")[0] for role in self.factors}
        if len(kinds) > 1:
            raise self.fault(f"{self.name} has factors of several kinds", min(self.roles.values()))
        if "hada" in kinds:
            return self._hadamard()
        return self._kronecker() if "lokr" in kinds else self._plain()

    def _plain(self) -> _Form:
        up, down = self._specs("up", "down")
        rank = down.shape[0]
        self._check_sizes(up, down)
        if math.prod(up.shape[2:]) != 1:
            raise self.fault(f"an up factor has no kernel, and this is {list(up.shape)}", up.name)
        self._check_rank(up, rank)
        mid = self.factors.get("mid")
        if mid is None:
            return _Form((up.shape[0], *down.shape[1:]), rank, rank, ("up", "down"), "plain")
        self._check_sizes(mid)
        if mid.shape[:2] != (rank, rank) or math.prod(down.shape[2:]) != 1 or len(mid.shape) < 3:
            outer = f"{list(up.shape)} and {list(down.shape)}"
            problem = f"the factor in the middle is {list(mid.shape)}, between {outer}"
            raise self.fault(problem, mid.name)
        shape = (up.shape[0], down.shape[1], *mid.shape[2:])
        return _Form(shape, rank, rank, ("up", "down", "mid"), "tucker")

    def _hadamard(self) -> _Form:
        roles: tuple[Role, ...] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        w1_a, w1_b, w2_a, w2_b = self._matrices(*roles)
        self._check_rank(w1_a, w1_b.shape[0])
        self._check_rank(w2_a, w2_b.shape[0])
        if (w1_a.shape, w1_b.shape) != (w2_a.shape, w2_b.shape):
            raise self.fault(
                f"the two products of {self.name} are {list(w1_a.shape)} x {list(w1_b.shape)} and "
                f"{list(w2_a.shape)} x {list(w2_b.shape)}",
                w2_a.name,
            )
        rank, rows, columns = w1_b.shape[0], w1_a.shape[0], w1_b.shape[1]
        total = min(rank * rank, rows, columns)
        return _Form((rows, *self._unfolded(columns)), total, rank, roles, "hadamard")

    def _kronecker(self) -> _Form:
        if "lokr_w2" in self.roles:
            raise AdapterError(
                f"refused: {NOT_LOW_RANK}",
                source=self.checkpoint.source,
                tensor=self.roles["lokr_w2"],
                remedy="merge it into its base with LyCORIS, and give the whole models",
            )
        both = "lokr_w1" not in self.roles
        first: tuple[Role, ...] = ("lokr_w1_a", "lokr_w1_b") if both else ("lokr_w1",)
        roles: tuple[Role, ...] = (*first, "lokr_w2_a", "lokr_w2_b")
        self._specs(*roles)
        if len(roles) != len(self.factors):
            raise self.fault(f"{self.name} has its first factor twice", self.roles["lokr_w1"])
        left, *_, w2_a, w2_b = specs = self._matrices(*roles)
        right, rank = specs[len(first) - 1], w2_b.shape[0]
        self._check_rank(w2_a, rank)
        if both:
            self._check_rank(left, right.shape[0])
            self._check_rank(left, rank)
        rows, columns = left.shape[0] * w2_a.shape[0], right.shape[1] * w2_b.shape[1]
        total = min(rank * (rank if both else min(left.shape)), rows, columns)
        product = "kronecker_of_factors" if both else "kronecker"
        return _Form((rows, *self._unfolded(columns)), total, rank, roles, product)

    def _specs(self, *roles: Role) -> list[TensorSpec]:
        """The factors' headers; AdapterError where one is missing."""
        missing = [role for role in roles if role not in self.factors]
        if missing:
            lacking = f"{self.name} has no {' and no '.join(missing)} factor"
            key = next(iter(self.roles.values()))
            raise self.fault(f"half of a pair is missing: {lacking}", key)
        return [self.factors[role] for role in roles]

    def _matrices(self, *roles: Role) -> list[TensorSpec]:
        specs = self._specs(*roles)
        self._check_sizes(*specs)
        for spec in specs:
            if len(spec.shape) != 2:
                problem = f"a factor of LoHa or LoKr is a matrix, and this is {list(spec.shape)}"
                raise self.fault(problem, spec.name)
        return specs

    def _check_sizes(self, *specs: TensorSpec) -> None:
        for spec in specs:
            if 0 in spec.shape:
                raise self.fault(f"rank 0 or no features: {list(spec.shape)}", spec.name)

    def _check_rank(self, left: TensorSpec, rank: int) -> None:
        if left.shape[1] != rank:
            problem = f"its rank is {left.shape[1]}, and that of its other half {rank}"
            raise self.fault(problem, left.name)

    def _unfolded(self, columns: int) -> tuple[int, ...]:
        """[in, 3, 3] for such a convolution whose in times 9 is `columns`; else [columns]."""
        if columns % 9 == 0 and _THREE_BY_THREE.fullmatch(self.name.replace(".", "_")):
            return (columns // 9, 3, 3)
        return (columns,)
