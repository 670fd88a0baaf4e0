"""What rank a merged module gets."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge import dtypes
from magmerge.adapters.nouns import Naming
from magmerge.errors import ParameterError, UnknownNameError, suggestion
from magmerge.linalg.low_rank import rank_for_energy
from magmerge.recipe import AdapterOutput

ENERGY = 0.99
"""Share of the squared norm that rank "auto" keeps by default."""
Rank = int | Literal["auto", "exact"] | None
"""A number; enough for a share of the squared norm; all that the inputs span; or None, which is
the largest rank that the module has in any input."""


def asked_output(rank: object, energy: object, naming: object) -> AdapterOutput | None:
    """The options of a merge of adapters, None if none is given; ParameterError for values that
    mean nothing.
    """
    if rank is None and energy is None and naming is None:
        return None
    if energy is not None and rank != "auto":
        raise ParameterError("energy speaks of rank auto", remedy="add --rank auto (rank=)")
    energy = ENERGY if energy is None else energy
    rank = int(rank) if isinstance(rank, str) and rank.isdecimal() else rank
    number = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not (number or rank in (None, "auto", "exact")):
        raise ParameterError(
            f"the rank is {rank!r}", remedy="give a number of 1 or more, auto, or exact"
        )
    if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0 < energy <= 1:
        raise ParameterError(
            f"the energy is {energy!r}",
            remedy="give the share of the squared norm to keep, above 0 and up to 1, like 0.99",
        )
    named = None if naming is None else check_naming(naming)
    held = float(energy) if rank == "auto" else None
    return AdapterOutput(rank=rank, energy=held, naming=named)  # type: ignore[arg-type]


def check_machine(donor: object, device: str, shard_size: str | int) -> None:
    """ParameterError for what a merge of adapters does not take: a donor, a GPU, an odd size."""
    dtypes.parse_size(shard_size)
    if device != "cpu":
        raise ParameterError(
            f"adapters are merged on the cpu, not on {device}", remedy="drop --device (device=)"
        )
    if donor is not None:
        raise ParameterError(
            "an adapter takes no config and tokenizer from a donor",
            remedy="drop --donor (donor=), or merge into a whole model with --base (base=)",
        )


def check_naming(naming: object) -> Naming:
    """The naming of this name; UnknownNameError with a suggestion if there is none."""
    known = get_args(Naming)
    if naming not in known:
        raise UnknownNameError(
            f"there is no naming {naming!r}", remedy=suggestion(str(naming), known)
        )
    return naming  # type: ignore[return-value]


def chosen_rank(wanted: AdapterOutput, values: Float[Tensor, "n"], largest: int) -> int:
    """The rank for a module whose merge has these singular values, largest first."""
    if wanted.rank == "exact":
        return len(values)
    if wanted.rank == "auto":
        whole = float(torch.linalg.vector_norm(values))
        return rank_for_energy(values, whole, wanted.energy or ENERGY)
    return largest if wanted.rank is None else wanted.rank
