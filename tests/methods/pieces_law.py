"""A layer merged as the pipeline does it: surveyed and merged piece by piece, in any order."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import magmerge

UNIT = 1 << 16


def by_pieces(name: str, tensors: Tensor, *, piece: int = 2 * UNIT, **params: Any) -> Tensor:
    """What the method gives, from pieces alone; `piece` is a multiple of UNIT."""
    method = magmerge.method(name)
    flat = tensors.reshape(len(tensors), -1)
    entries = flat.shape[1]
    found: dict[str, Any] = {}
    if method.survey is not None:
        survey = method.survey(experts=len(tensors), entries=entries, **params)
        if survey is not None:
            if survey.samples:
                places = torch.randperm(entries, generator=torch.Generator().manual_seed(1))
                survey.prepare(flat[:, places[: survey.samples].sort().values])
            while survey.passes:
                starts = list(range(0, entries, piece))
                random.Random(2).shuffle(starts)
                for start in starts:
                    part = flat[:, start : start + piece].clone()
                    if survey.wants("layer", start, start + part.shape[1]):
                        survey.observe("layer", start, part)
                survey.conclude()
            found = dict(survey.keywords("layer"))
    cut = method.cut(**params) if callable(method.cut) else method.cut
    if cut == "whole" or (cut == "rows" and tensors.ndim < 3):
        return method.fn(tensors, **params, **found)
    source = flat if cut == "entries" else tensors
    row = source[0, :1].numel()
    step = 64 * 700 if cut == "entries" else 64
    results = []
    for first in range(0, source.shape[1], step):
        part = source[:, first : first + step].clone()
        place = {"start": first * row} if "start" in method.fn.__annotations__ else {}
        results.append(method.fn(part, **params, **found, **place))
    return torch.cat(results).reshape(tensors.shape[1:])


def large_layer(experts: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A layer of more than three units, with equal magnitudes and zeros among its entries."""
    generator = torch.Generator().manual_seed(seed)
    layer = torch.randn((experts, 320, 651), generator=generator, dtype=torch.float64)
    layer[:, 5:40] = (layer[:, 5:40] * 2).round() / 2
    return (layer * 0.01).to(dtype)
