"""The one cast of a result, from the arithmetic's format to the stored one."""

from __future__ import annotations

import torch
from torch import Tensor

from magmerge.core import dtypes
from magmerge.core.errors import NonFiniteError


def cast_result(
    tensor: Tensor, code: str, name: str, *, kept: bool = False, merged: bool = True
) -> Tensor:
    """The tensor in the format of `code`; NonFiniteError where a value is too large for it.

    With `kept` infinity and NaN that are there already stay: attention masks hold them. Only what
    is `merged` can be made smaller.
    """
    dtype = dtypes.torch_dtype(code)
    result = tensor.to(dtype)
    if not tensor.numel() or (result is tensor and kept) or not dtype.is_floating_point:
        return result
    least, greatest = (float(bound) for bound in torch.aminmax(tensor))
    # NaN fails this comparison too.
    if max(-least, greatest) <= torch.finfo(dtype).max:
        return result
    sound = tensor.isfinite() if kept else torch.ones_like(tensor, dtype=torch.bool)
    if bool((result.isfinite() | ~sound).all()):
        return result
    remedies = ["merge with a smaller lambda or smaller weights"] if merged else []
    if not merged or dtype == torch.float16 or not bool(tensor.isfinite().all()):
        remedies.append("write bfloat16 or float32 with --dtype (dtype=)")
    raise NonFiniteError(
        f"a value is too large for {dtypes.torch_name(code)}",
        tensor=name,
        source="the result",
        remedy=", or ".join(remedies),
    )
