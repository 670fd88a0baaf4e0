"""Routers of a mixture from prompts: what enters each block's MLP when the base reads them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from magmerge.checkpoints.mixture import Mixture
from magmerge.checkpoints.mixture_shapes import SHAPES
from magmerge.core.errors import ParameterError
from magmerge.core.extras import needed
from magmerge.core.models import Checkpoint
from magmerge.core.moe import Moe
from magmerge.data.tokens import open_tokenizer, token_limit
from magmerge.engine.executors import local
from magmerge.engine.job import Findings, Work
from magmerge.engine.notes import warn
from magmerge.live.module_weights import matched
from magmerge.live.modules import empty_model
from magmerge.live.offload import Offload

BATCH = 16
"""Prompts that are read at once."""
EMBEDDING = "embed_tokens.weight"
SMALL = 1e-8
"""Of the length of a mean: a direction of less is rounding."""
ROUNDING = 1e-5
"""The same of the difference of two directions from a run in float32."""


class Prompt(NamedTuple):
    """A text as the numbers of its tokens, and which of these are no special ones."""

    ids: tuple[int, ...]
    own: tuple[bool, ...]


def routers(work: Work) -> Findings:
    """The routers and gates of the mixture that its prompts tell of, by their names.

    A row is the direction of an expert's prompts, of length one. The base is run in float32, block
    by block; sums are in float64. Raises MagmergeError's children.
    """
    moe, mixture = Moe.model_validate(work.job.recipe.moe), work.layout
    assert isinstance(mixture, Mixture)
    routed = moe.routed(work.job.recipe.experts)
    gated = [name for name in moe.shared if name in moe.prompts]
    mlps = list(dict.fromkeys(mixture.routers.values()))
    texts = [text for name in (*routed, *gated) for text in _texts(moe, name)]
    prompts = _tokens(mixture, list(dict.fromkeys(texts)))
    if moe.router == "hidden":
        states = _hidden(work, mixture.base, mlps, prompts)
        rows = {name: _unit(_by_states(moe, name, states), name) for name in (*routed, *gated)}
        rows |= _apart({name: rows[name] for name in routed})
    else:
        of = partial(_by_embedding, mixture.base, prompts)
        rows = {name: _by_tokens(moe, name, of).expand(len(mlps), -1) for name in (*routed, *gated)}
    gate = SHAPES[str(moe.shape)].shared_gate
    found: dict[str, Tensor] = {}
    for router, mlp in mixture.routers.items():
        names = gated if gate and router.endswith(gate) else routed
        place = mlps.index(mlp)
        found[router] = torch.stack([rows[name][place] for name in names]).float()
    return Findings(statistics=found)


def _texts(moe: Moe, name: str) -> tuple[str, ...]:
    return (*moe.prompts[name], *moe.negative_prompts.get(name, ()))


def _tokens(mixture: Mixture, texts: Sequence[str]) -> dict[str, Prompt]:
    """Each text as the base's tokenizer cuts it; a warning for those that are cut short."""
    folder = mixture.folder
    tokenizer = open_tokenizer(folder, "the prompts")
    limit = token_limit(None, tokenizer, folder)
    prompts, cut = {}, []
    for text in texts:
        told = tokenizer(text, return_special_tokens_mask=True)
        ids, special = told["input_ids"], told["special_tokens_mask"]
        if not ids:
            raise ParameterError(
                f"the prompt {text!r} has no tokens",
                source=folder,
                remedy="write a text that the base's tokenizer knows",
            )
        cut += [text] if len(ids) > limit else []
        own = tuple(not mark for mark in special[:limit])
        # A prompt that is nothing but special tokens counts as a whole.
        prompts[text] = Prompt(tuple(ids[:limit]), own if any(own) else (True,) * len(own))
    if cut:
        warn([f"{len(cut)} prompts are cut to {limit} tokens, such as {cut[0][:40]!r}..."])
    return prompts


def _by_states(moe: Moe, name: str, states: Mapping[str, Tensor]) -> Tensor:
    """[blocks, features]: the mean over an expert's prompts, less that over its negative ones."""
    mean = torch.stack([states[text] for text in moe.prompts[name]]).mean(0)
    negative = moe.negative_prompts.get(name, ())
    return mean - torch.stack([states[text] for text in negative]).mean(0) if negative else mean


def _by_tokens(moe: Moe, name: str, of: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """[1, features]: the direction of an expert's prompts, less that of its negative ones."""
    direction = _unit(of(moe.prompts[name]), name)
    negative = moe.negative_prompts.get(name, ())
    return _unit(direction - _unit(of(negative), name), name) if negative else direction


def _by_embedding(base: Checkpoint, prompts: Mapping[str, Prompt], texts: Sequence[str]) -> Tensor:
    """[1, features]: the sum of the embeddings of all tokens of some texts. Only these are read."""
    table = next(name for name in base.specs if name.endswith(EMBEDDING))
    width = base.specs[table].shape[1]
    counts = Counter(number for text in texts for number in prompts[text].ids)
    total = torch.zeros(1, width, dtype=torch.float64)
    for number, count in sorted(counts.items()):
        row = base.read_part(table, number * width, (number + 1) * width)
        total += count * row.double()
    return total


def _unit(rows: Tensor, name: str) -> Tensor:
    """The rows at length one; ParameterError where they have no direction."""
    lengths = rows.norm(dim=-1, keepdim=True)
    if not bool((lengths > SMALL).all()):
        raise ParameterError(
            f"the prompts of {name!r} and its negative ones cancel each other out",
            remedy="give other negative_prompts, or none",
        )
    directions: Tensor = rows / lengths
    return directions


def _apart(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows [blocks, features] of all experts less their mean, all times one number, so that
    they are of length one again in the mean of squares.

    A router's choice is not changed by what all its rows have in common, nor by that number; but
    what sets them apart is most of them then: experts that fit get more weight, and rounding to 16
    bits loses none of it.
    """
    stacked = torch.stack(list(rows.values()))
    if len(stacked) == 1:
        return dict(rows)
    apart = stacked - stacked.mean(0)
    lengths = apart.square().sum(-1, keepdim=True).mean(0).sqrt()
    if not bool((lengths > ROUNDING).all()):
        raise ParameterError(
            "the base sees no difference between the prompts of the experts",
            remedy="give each expert prompts of its own kind, or write router: random",
        )
    return dict(zip(rows, apart / lengths, strict=True))


def _hidden(
    work: Work, base: Checkpoint, mlps: Sequence[str], prompts: Mapping[str, Prompt]
) -> dict[str, Tensor]:
    """For each text [blocks, features]: the mean over its tokens of what enters each block's MLP,
    after the norm, as the router will see it.
    """
    assert base.folder is not None
    needed("accelerate", "a router from hidden states", "write router: embedding under moe:")
    model = empty_model(base.folder, model_class=None, build=None).eval()
    names = matched(model, {name: s.shape for name, s in base.specs.items()}, base.source)
    offload = Offload(model, names, _Stored(base), torch.float32, "cpu")
    texts = list(prompts)
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    listeners = _Listeners(model, names, mlps)
    with offload.running(), listeners.hooked():
        calls = [partial(listeners.run, [prompts[text] for text in batch]) for batch in batches]
        done = work.job.machine.counter("reading prompts", len(calls))
        states = local.run(local.single(calls), work.job.machine, done=done)
    return dict(zip(texts, (row for batch in states for row in batch), strict=True))


class _Stored:
    """A checkpoint's tensors in float32 for a model that is run block by block."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def bring(self, names: Collection[str]) -> Mapping[str, Tensor]:
        return {name: self._checkpoint.read(name).float() for name in names}

    def drop(self, names: Collection[str]) -> None:
        """Nothing is kept."""


class _Listeners:
    """What enters the MLPs `mlps` of a model, summed up in the thread that runs it."""

    def __init__(self, model: nn.Module, names: Mapping[str, str], mlps: Sequence[str]) -> None:
        # The model has no head: what it would say next is of no use here.
        self._model: Any = getattr(model, "base_model", model)
        inner = {stored: own for own, stored in names.items()}
        paths = [inner[f"{mlp}.gate_proj.weight"] for mlp in mlps]
        self._modules = [model.get_submodule(path.rpartition(".gate_proj")[0]) for path in paths]
        self._own = threading.local()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self._modules:
                stack.callback(module.register_forward_pre_hook(self._hear).remove)
            yield

    def _hear(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        share = self._own.share
        # [prompts, tokens] by [prompts, tokens, features]
        self._own.means.append((share.unsqueeze(1) @ args[0].double()).squeeze(1))

    def run(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """For each prompt [blocks, features], in float64."""
        length = max(len(prompt.ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        share = torch.zeros(len(prompts), length, dtype=torch.float64)
        for row, prompt in enumerate(prompts):
            count = len(prompt.ids)
            ids[row, :count] = torch.tensor(prompt.ids)
            mask[row, :count] = 1
            share[row, :count] = torch.tensor(prompt.own, dtype=torch.float64) / sum(prompt.own)
        self._own.share, self._own.means = share, []
        with torch.no_grad():
            self._model(input_ids=ids, attention_mask=mask, use_cache=False)
        return list(torch.stack(self._own.means, dim=1))
