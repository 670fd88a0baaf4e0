"""What a merge of adapters would do, and what it takes: known from headers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from magmerge import dtypes
from magmerge.adapters.checking import check_calibrators, check_exact, check_names
from magmerge.adapters.merging import always_in_factors, bytes_of_module, stated_dtype
from magmerge.adapters.union import AdapterUnion, union_of
from magmerge.binding import bind
from magmerge.errors import ParameterError
from magmerge.faults import matches
from magmerge.memory import OVERHEAD
from magmerge.models import Sources
from magmerge.planning import make_plan
from magmerge.recipe import AdapterOutput, Recipe
from magmerge.types import Plan


def plan_adapters(recipe: Recipe, sources: Sources, *, threads: int, memory: str | int) -> Plan:
    """What a merge of adapters would do: its steps are modules, its sizes those of factors."""
    union, output = union_of(sources), recipe.adapter or AdapterOutput()
    check_exact(recipe, output)
    check_calibrators(recipe)
    check_names(recipe, sources)
    bound, limit = bind(recipe), dtypes.parse_size(memory)
    factored = always_in_factors(bound.method, bound.keywords)
    # Where nothing is merged in full pieces, these need no memory.
    room = 2**62 if factored else limit
    plan = make_plan(_of_modules(recipe, union), sources, threads=threads, memory=room)
    needs = []
    width = dtypes.width(stated_dtype(union, recipe.dtype))
    replaced = _replaced_sizes(recipe, union)
    disk = width * sum(replaced)
    for name, spec in union.modules.items():
        ranks = [one.modules[name].rank for one in union.adapters if name in one.modules]
        needs.append((bytes_of_module(spec, ranks, factored=factored), name))
        rank = _most_rank(output, ranks, spec.shape)
        disk += width * rank * (spec.shape[0] + _features(spec.shape))
    largest, worst = max(needs)
    # A replaced tensor is averaged in float32, beside one that is read.
    taken = OVERHEAD + disk + 8 * max(replaced, default=0)
    if taken + largest > limit:
        raise ParameterError(
            f"{dtypes.spoken_size(limit)} of memory are too little: merging {worst} takes "
            f"{dtypes.spoken_size(largest)} beside {dtypes.spoken_size(taken)} for the result and "
            "the program's own needs",
            remedy=f"allow more with --memory {-(-(taken + largest) // 10_000_000) / 100:.2f}GB "
            "(memory=)",
        )
    together = sum(size for size, _ in sorted(needs, reverse=True)[:threads])
    room = limit - taken
    return replace(
        plan,
        digest=recipe.digest,
        shards=(),
        disk=disk,
        memory=taken + min(room, together),
        room=room,
    )


def _replaced_sizes(recipe: Recipe, union: AdapterUnion) -> list[int]:
    """Entries of each tensor that adapters replace as a whole."""
    shapes = {name: spec.shape for one in union.adapters for name, spec in one.whole.items()}
    return [math.prod(s) for name, s in shapes.items() if not matches(name, recipe.ignore)]


def _of_modules(recipe: Recipe, union: AdapterUnion) -> Recipe:
    """The recipe without patterns that are for replaced tensors only, which are no modules."""
    replaced = [name for one in union.adapters for name in one.whole]
    kept = tuple(
        pattern
        for pattern in recipe.ignore
        if any(matches(name, [pattern]) for name in union.modules)
        or not any(matches(name, [pattern]) for name in replaced)
    )
    return recipe.model_copy(update={"ignore": kept})


def _features(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _most_rank(output: AdapterOutput, ranks: Sequence[int], shape: tuple[int, ...]) -> int:
    """The rank that a module has at most in the result."""
    limit = min(shape[0], _features(shape))
    if output.rank in ("auto", "exact"):
        return min(limit, sum(ranks))
    return min(limit, max(ranks) if output.rank is None else int(output.rank))
