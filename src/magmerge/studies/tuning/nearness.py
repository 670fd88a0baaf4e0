"""Without labels: how near a merged model's outputs come to each expert's on its own samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.core.recipe import EVERY, Recipe
from magmerge.data.inputs import prepare
from magmerge.data.rows import DataError, Inputs, SampleOptions
from magmerge.data.sources import read_samples
from magmerge.data.splits import is_test_path, names_test
from magmerge.engine.samples import by_expert
from magmerge.evaluation.held_out import HeldOutTask
from magmerge.evaluation.live_model import ModelWeights, evaluating
from magmerge.evaluation.runner import Batch, Prepared, forward
from magmerge.studies.tuning.merged_models import Measuring

SAMPLES = 64
"""Unlabelled samples of each expert that are looked at, if not said otherwise."""

SHARE = 0.5
"""Part of the memory that the experts' outputs on one expert's samples may take."""


def expert_recipes(recipes: Sequence[Recipe]) -> tuple[dict[str, Recipe], Recipe | None]:
    """Each expert alone as a recipe by its name, of all documents; and the base as one."""
    results = {recipe.name for recipe in recipes[:-1]}
    bases = [recipe.base for recipe in recipes if recipe.base and recipe.base not in results]
    base = bases[-1] if bases else None
    alone: dict[str, Recipe] = {}
    for recipe in recipes:
        for name, path in recipe.experts.items():
            if path in results:
                continue
            own = (name, "base", EVERY)
            weights = recipe.weights
            if isinstance(weights, dict):
                weights = {key: value for key, value in weights.items() if key in own}
            alone[name] = Recipe(
                base=base,
                experts={name: path},
                method=None if base is None else "average",
                ignore=recipe.ignore,
                rename={key: names for key, names in recipe.rename.items() if key in own},
                weights=weights,
            )
    whole = None if base is None else Recipe(experts={"base": base})
    return alone, whole


def sources_of(recipes: Sequence[Recipe], data: Any) -> dict[str, Any]:
    """The samples of each expert; errors for what names no expert, and for test data."""
    experts, _ = expert_recipes(recipes)
    if not experts:
        raise ParameterError(
            "the recipe names no expert to compare with", remedy="give --suite or --perplexity"
        )
    sources = by_expert(data, [*experts])
    for source in sources.values():
        _check_source(source)
    return sources


def nearness_tasks(
    recipes: Sequence[Recipe],
    data: Any,
    options: SampleOptions,
    measuring: Measuring,
    folder: Path | None,
) -> dict[str, HeldOutTask]:
    """A task for each expert: its samples, and what it makes of them; `folder` has the tokenizer
    or the image processor.

    Of models with logits the distance is the Kullback-Leibler divergence from the expert's, of
    others the squared distance of the last features; for each token or row, over that of the base.
    """
    experts, whole = expert_recipes(recipes)
    bench, sources, tasks = measuring.bench, sources_of(recipes, data), {}
    base = None if whole is None else bench.merged([whole], "the base")
    for name, recipe in experts.items():
        model = bench.merged([recipe], name)
        inputs, count = _inputs(name, sources[name], folder, options)
        batches = _batches(measuring, model, inputs)
        prepared = Prepared(batches, count, None, str(sources[name]))
        rows = f"{count} unlabelled rows of {sources[name]}, drawn by seed {options.seed}"
        task = HeldOutTask(name, name, "distance", prepared, rows)
        tasks[name] = task if base is None else _scaled(task, base, measuring)
    return tasks


def _scaled(task: HeldOutTask, base: ModelWeights, measuring: Measuring) -> HeldOutTask:
    """The task with the base's own distance as the unit; as it is where the base is the expert."""
    distances, counts = measuring.answers(base, {task.name: task})[task.name].double().T
    return replace(task, scale=float(distances.sum() / counts.sum()) or 1.0)


def _inputs(
    name: str, source: Any, folder: Path | None, options: SampleOptions
) -> tuple[list[Inputs], int]:
    """An expert's samples as the model takes them, and how many there are."""
    draw = replace(options.draw(name), allow_test=True, fewer=True)
    rows = read_samples(source, draw)
    return prepare(rows, folder, options.preparation, options.batch), len(rows)


def _check_source(source: Any) -> None:
    """DataError for test data: what is chosen by it can no longer be measured on it."""
    if isinstance(source, str | Path):
        text = str(source)
        if is_test_path(Path(Path(text).name)) or (":" in text and names_test(text)):
            raise DataError(
                "this names the test split, and a search never looks at test rows",
                source=source,
                remedy="name samples of training or validation data",
            )


def _batches(
    measuring: Measuring, expert: ModelWeights, inputs: Sequence[Inputs]
) -> tuple[Batch, ...]:
    """The samples, each with what the expert makes of them, which stays in memory."""
    bench, batches, first, size = measuring.bench, [], 0, 0
    module = measuring.live.put(expert, bench.hardware)
    for call in inputs:
        with torch.inference_mode(), evaluating(module):
            output, logits = _output(module, call)
        size += output.numel() * output.element_size()
        if size > SHARE * bench.machine.limit:
            raise ParameterError(
                f"the outputs of {expert.name} on its samples do not fit into memory",
                remedy="give fewer (--rows) or shorter ones (--max-length), or more --memory",
            )
        measure = partial(_distances, output.clone(), logits)
        rows = tuple(range(first, first + call.rows))
        batches.append(Batch(rows, partial(_same, call), measure))
        first += call.rows
    return tuple(batches)


def _same(inputs: Inputs) -> Inputs:
    return inputs


def _output(module: nn.Module, inputs: Inputs) -> tuple[Tensor, bool]:
    """The module's logits, or its last features; and whether they are logits."""
    output = forward(module, inputs)
    for name in ("logits", "last_hidden_state"):
        tensor = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(tensor, Tensor):
            return tensor.detach().float().cpu(), name == "logits"
    if isinstance(output, Tensor):
        return output.detach().float().cpu(), False
    raise MagmergeError(
        f"its output is a {type(output).__name__} without logits and features",
        source=type(module).__name__,
        remedy="give --suite, which says what the model's output is",
    )


def _distances(expert: Tensor, logits: bool, module: nn.Module, inputs: Inputs) -> Tensor:
    """Summed distance and number of tokens of each row: [rows, 2]."""
    output, _ = _output(module, inputs)
    if output.shape != expert.shape:
        raise MagmergeError(
            f"its outputs have the shape {list(output.shape)}, the expert's {list(expert.shape)}",
            source=type(module).__name__,
            remedy="keep the base's tokens: tokenizer: base in the recipe",
        )
    if logits:
        after, before = output.log_softmax(dim=-1), expert.log_softmax(dim=-1)
        apart = kl_div(after, before, reduction="none", log_target=True).sum(dim=-1)
    else:
        apart = (output - expert).square().sum(dim=-1)
    rows = len(apart)
    apart = apart.reshape(rows, -1).double()
    mask = inputs.kwargs.get("attention_mask")
    shape = (rows, apart.shape[1])
    kept = (
        mask.double() if mask is not None and tuple(mask.shape) == shape else apart.new_ones(shape)
    )
    return torch.stack([(apart * kept).sum(dim=1), kept.sum(dim=1)], dim=1)
