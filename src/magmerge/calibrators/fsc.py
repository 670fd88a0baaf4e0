"""FSC: feature-space calibration, from what layers put out on a few samples."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.errors import ParameterError
from magmerge.core.parameters import Supplied, Switch
from magmerge.core.registry import register_calibrator
from magmerge.core.types import Cut, Kind
from magmerge.linalg.row_norms import row_norms

Norm = Annotated[
    Literal["l2", "l1", "projection"],
    Doc(
        "how a change in features is measured: its l2 norm; its l1 norm, as in the authors' code; "
        "or projection, the expert's change along the merge's own, none where they point apart"
    ),
]
Check = Annotated[
    Switch,
    Doc(
        "on: half of the samples tell the factors, the other half whether they bring the model "
        "nearer to its experts, and how much of them is kept; off: the paper's FSC"
    ),
]
Gains = Annotated[Tensor | None, Supplied()]
"""By how much a layer's change in features falls short of each expert's: [K] or [K, rows]."""
BOUNDS = (2.0**-30, 2.0**40)
"""Norms whose sums of squares neither underflow nor overflow in float32, with room to spare."""
LAYERS: frozenset[Kind] = frozenset(
    {"matrix", "transposed", "convolution", "embedding", "head", "vector", "experts", "other"}
)


def measure(
    expert: Float[Tensor, "tokens features"],
    merged: Float[Tensor, "tokens features"],
    *,
    norm: Norm = "l2",
) -> Float[Tensor, "tokens"]:
    """|expert| / |merged| of each token: how far the merge's change falls short of the expert's.

    Both are changes of one layer's output against the base's, on the same inputs. Zero, infinite
    or NaN where either change is: such tokens tell nothing. With `norm` projection it is
    <expert, merged> / |merged|^2, the factor that brings the merge's change nearest to the
    expert's; where they point apart the least number above zero, which counts.
    """
    if norm == "projection":
        nearest = (expert * merged).sum(dim=-1) / merged.square().sum(dim=-1)
        return nearest.clamp(min=torch.finfo(nearest.dtype).tiny)
    order = 2 if norm == "l2" else 1
    return token_norms(expert, order) / token_norms(merged, order)


def token_norms(features: Float[Tensor, "tokens features"], order: int) -> Float[Tensor, "tokens"]:
    """The norm of each token's features, to the bit what `row_norms` gives.

    Between the bounds no power of two that it would divide by changes a bit of the sum.
    """
    norms = torch.linalg.vector_norm(features, order, dim=-1)
    plain = (norms > BOUNDS[0]) & (norms < BOUNDS[1])
    return norms if bool(plain.all()) else torch.where(plain, norms, row_norms(features, order))


def checks(*, check: str = "on", **_: object) -> bool:
    """Whether rows are kept aside."""
    return check == "on"


def cut_by(**_: object) -> Cut:
    """The factors of a layer's rows are known before it is cut."""
    return "rows"


@register_calibrator(
    "fsc",
    source="MAGIC, arXiv:2512.19320, FSC",
    acts_on=LAYERS,
    needs="inputs",
    measure=measure,
    checks=checks,
    cut=cut_by,
    workspace=(0, 2),
)
def fsc(
    deltas: Float[Tensor, "K *shape"],  # noqa: ARG001 - every calibrator is given them
    merged: Float[Tensor, "*shape"],
    *,
    gains: Gains = None,
    norm: Norm = "l2",  # noqa: ARG001 - the gains were measured with it
    check: Check = "on",  # noqa: ARG001 - what comes of it is applied to all factors together
) -> Float[Tensor, "..."]:
    """Factor that gives the layer's change in features the magnitude that the experts' have.

    xi_k = mean_x |f_k(x) - f_0(x)| / |f_m(x) - f_0(x)| over the inputs x that the merged model
    feeds the layer on samples of task k, with f_0, f_k and f_m the layer of base, expert and merge;
    xi = mean_k xi_k. Layers are linear in their parameters, so the factor on features is a factor
    on the task vector. `gains` [K] or [K, rows] are the xi_k, measured with `norm`; those that are
    not finite or zero are left out, and xi = 1 where none is left.

    When: a few unlabelled samples of each task. One sample a task finds most of it. Not where
    the merge is worse than its base: measure first.
    """
    if gains is None:
        raise ParameterError(
            "fsc has no measured gains", remedy="give gains=, a tensor [K], or use calibrate()"
        )
    known = gains.isfinite() & (gains > 0)
    total = torch.where(known, gains, 0.0).sum(dim=0)
    factor = torch.where(known.any(dim=0), total / known.sum(dim=0).clamp(min=1), 1.0)
    return factor.to(merged)
