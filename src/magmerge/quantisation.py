"""Whether a model is quantised, told by names and dtypes: most such files carry no config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from magmerge import dtypes
from magmerge.types import TensorSpec

INTEGERS = frozenset({"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
PACKED = frozenset({"weight", "qweight", "weight_packed", "W_q", "codes", "q_weight", "_data"})
"""Last parts of names of matrices that hold numbers of few bits where they are integers."""
BESIDE = (".absmax", ".SCB", ".scale", "._scale", "_scale", "_scales", "_scale_inv", "_scale_2")
"""Endings, after an integer tensor's own name, of what its entries are multiplied with."""
MARKS = (
    (".SCB", "bitsandbytes, 8 bits"),
    (".absmax", "bitsandbytes, 4 bits"),
    (".quant_map", "bitsandbytes, 4 bits"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
)
"""Endings of names that nothing but a quantised model has."""
BLOCKS, SCALES = "_blocks", "_scales"


class Sign(NamedTuple):
    """A tensor that tells that its model is quantised, and how it tells it."""

    tensor: str
    reason: str


def signs(specs: Mapping[str, TensorSpec]) -> list[Sign]:
    """All tensors that tell it; none where the model's entries are the weights themselves."""
    return list(_signs(specs))


def _signs(specs: Mapping[str, TensorSpec]) -> Iterator[Sign]:
    for name, spec in specs.items():
        mark = next((kind for ending, kind in MARKS if name.endswith(ending)), None)
        if spec.dtype in dtypes.QUANTISED:
            yield Sign(name, dtypes.torch_name(spec.dtype))
        elif ".quant_state." in name:
            yield Sign(name, "bitsandbytes, 4 bits")
        elif mark is not None:
            yield Sign(name, mark)
        elif spec.dtype in INTEGERS and len(spec.shape) > 1:
            reason = _packed(name, specs)
            if reason is not None:
                yield Sign(name, f"{dtypes.torch_name(spec.dtype)} {reason}")


def _packed(name: str, specs: Mapping[str, TensorSpec]) -> str | None:
    """How an integer tensor of two dimensions or more tells that it is a packed weight."""
    pairs = [f"{name}{ending}" for ending in BESIDE]
    if name.endswith(BLOCKS):
        pairs.append(f"{name.removesuffix(BLOCKS)}{SCALES}")
    beside = next((pair for pair in pairs if pair in specs), None)
    if beside is not None:
        return f"beside {beside}"
    return "where weights are" if name.rpartition(".")[2] in PACKED else None
