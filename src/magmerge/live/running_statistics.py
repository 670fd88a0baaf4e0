"""Running means and variances of batch norms, taken anew from samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from magmerge.core.errors import MagmergeError
from magmerge.data.rows import Inputs
from magmerge.live.calls import run as run_model

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Calls = Mapping[int, Sequence[Inputs]]
"""The inputs of each expert, by its place."""


def reestimate(model: nn.Module, inputs: Calls, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Mean and variance of every batch norm over all inputs, by the tensors' names in `names`.

    Every call of the model counts alike. The model's own statistics are changed.
    """
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, NORMS)]
    if not norms:
        raise MagmergeError(
            "this model has no batch norms", remedy="drop --batchnorm (batchnorm=True)"
        )
    with ExitStack() as stack, torch.no_grad():
        for _, module in norms:
            stack.callback(setattr, module, "momentum", module.momentum)
            stack.callback(setattr, module, "training", False)
            module.reset_running_stats()
            module.momentum, module.training = None, True
        for calls in inputs.values():
            for call in calls:
                run_model(model, call, "an expert")
    tensors = {}
    for path, module in norms:
        for kind in ("running_mean", "running_var"):
            name = f"{path}.{kind}" if path else kind
            if name in names:
                tensors[names[name]] = getattr(module, kind).detach().float().cpu().clone()
    return tensors
