"""Whether a model is quantised, told by names and dtypes: most such files carry no config."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from magmerge.core import dtypes
from magmerge.core.types import TensorSpec

INTEGERS = frozenset({"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
PACKING = INTEGERS - {"I64", "U64"}
"""Formats that numbers of few bits are packed into."""
PACKED = frozenset(
    {
        "weight", "qweight", "q_weight", "weight_packed", "quantized_weight", "in_proj_weight",
        "W_q", "_data", "qdata", "weight:qdata", "_weight_qdata", "trellis", "Qidxs",
    }
)  # fmt: skip
"""Last parts of names of tensors that hold such numbers where they are integers."""
BESIDE = (".absmax", ".SCB", ".scale", "._scale", "_scale", "_scales", "_scale_inv", "_scale_2")
"""Endings, after an integer tensor's own name, of what its entries are multiplied with."""
MARKS = (
    (".SCB", "bitsandbytes, 8 bits"),
    (".weight.absmax", "bitsandbytes, 4 bits"),
    (".quant_map", "bitsandbytes, 4 bits"),
    (".qzeros", "GPTQ or AWQ"),
    (".suh", "EXL3"),
    (".centroids.weight", "VPTQ"),
)
"""Endings of names that nothing but a quantised model has."""
PAIRS = (("_blocks", "_scales"), (".B", ".s"), (".codes", ".codebooks"))
"""Endings of an integer tensor's name, and what stands in its place beside it: MXFP4, Marlin, AQLM.
"""


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
        elif spec.dtype in PACKING and math.prod(spec.shape) > 1:
            reason = _packed(name, specs)
            if reason is not None:
                yield Sign(name, f"{dtypes.torch_name(spec.dtype)} {reason}")


def _packed(name: str, specs: Mapping[str, TensorSpec]) -> str | None:
    """How an integer tensor tells that it is a packed weight."""
    pairs = [f"{name}{ending}" for ending in BESIDE]
    pairs += [f"{name.removesuffix(end)}{other}" for end, other in PAIRS if name.endswith(end)]
    beside = next((pair for pair in pairs if pair in specs), None)
    if beside is not None:
        return f"beside {beside}"
    return "where weights are" if name.rpartition(".")[2] in PACKED else None
