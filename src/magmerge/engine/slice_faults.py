"""What is wrong with a recipe's slices, beside their names and ranges: told before any tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magmerge.core import registry
from magmerge.core.assembly import BASE, Anatomy, Seat, Seats, Specs
from magmerge.core.block_config import traits_of
from magmerge.core.block_keys import keys_of
from magmerge.core.block_kinds import kinds_of_blocks, mixture_faults, place_faults, width_faults
from magmerge.core.errors import Fault, ParameterError
from magmerge.core.filters import varies
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.recipe import AdapterOutput, Recipe
from magmerge.core.stacks import block_of, lengths
from magmerge.core.traits import Method
from magmerge.core.validation import keywords
from magmerge.engine.job import Models

PER_BLOCK = frozenset(
    {"embed_tokens_per_layer", "per_layer_model_projection", "layer_weights", "contact_head"}
)
"""Parts of names of tensors outside of blocks that have rows or columns for each of them."""
ONCE = "give each model once in a slice, or other blocks of it"


def check_sliceable(recipe: Recipe, models: Models) -> None:
    """ParameterError where slices do not go together with what else the recipe says."""
    told, remedy = "", ""
    if models.union is not None or isinstance(recipe.output, AdapterOutput):
        told, remedy = "an adapter has no blocks to stack", "merge into a whole model, with a base"
    elif models.merged is not None:
        told = "a merged model that is calibrated keeps its blocks"
        remedy = "give the merge's method in place of merged:, and calibrate: wsc beside it"
    elif recipe.samples is not None:
        told = "a calibration from samples runs the merged model, and its blocks are not yet one"
        remedy = "calibrate from weights alone: calibrate: wsc"
    elif hasattr(models.layout, "parts"):
        told = "a pipeline is several models"
        remedy = "slice one part alone: name its folder in each model"
    elif models.base is None and any(expert.name == BASE for expert in models.experts):
        told = "an expert is called base, which in slices is what the base is called"
        remedy = "give that expert another name"
    if told:
        raise ParameterError(f"slices: {told}", remedy=remedy)


def model_faults(recipe: Recipe, models: Models, seats: Seats) -> list[Fault]:
    """Slices with too few or too many models for the method, with no base where it needs one, or
    with the same blocks twice; experts of no slice.
    """
    method = None if recipe.method is None else registry.methods.get(recipe.method)
    named = {name for slice_ in recipe.slices for name in slice_.layers}
    faults = [
        Fault(f"{expert.name} has a part in no slice", "name its blocks in one, or drop it")
        for expert in models.experts
        if expert.name not in named
    ]
    for number, seat in _by_slice(seats).items():
        faults += _repeated(number, seat, models)
        if method is not None:
            faults += _method_faults(number, seat, models, method)
            faults += _parameter_faults(number, voters(seat, models, method), recipe, method)
    return faults


def voters(seat: Seat, models: Models, method: Method | None) -> tuple[int, ...]:
    """The experts of a slice by their places, in the order that the method takes them: the base of
    the slice is none of them, or the first where the method works without a base.
    """
    places = [place for place, e in enumerate(models.experts) if e.name in seat.own]
    if seat.base is None:
        return tuple(places)
    own = next(place for place in places if models.experts[place].name == seat.base)
    others = tuple(place for place in places if place != own)
    return (own, *others) if method is None or method.base_free else others


def is_base(name: str, seat: Seat, method: Method | None) -> bool:
    """Whether a model is the one that task vectors are told from in a slice."""
    free = method is None or method.base_free
    return name == (BASE if seat.base is None or free else seat.base) and name in seat.own


def _by_slice(seats: Seats) -> Mapping[int, Seat]:
    """The first block of each slice."""
    slices: dict[int, Seat] = {}
    for stack in seats.values():
        for seat in stack:
            slices.setdefault(seat.slice, seat)
    return dict(sorted(slices.items()))


def _method_faults(number: int, seat: Seat, models: Models, method: Method) -> Iterator[Fault]:
    least, most = method.experts
    names = [models.experts[place].name for place in voters(seat, models, method)]
    count = len(names)
    if (count and count < least) or (most is not None and count > most):
        bounds = f"exactly {least}" if least == most else f"at least {least}"
        told = f"{count} {'has' if count == 1 else 'have'} a part in slice {number}"
        noun = "expert" if least == 1 else "experts"
        yield Fault(
            f"{method.name} takes {bounds} {noun}, and {told}: {', '.join(names)}",
            f"name the blocks of {bounds} {noun} in slice {number}, or choose another method",
        )
    based = any(is_base(name, seat, method) for name in seat.own)
    if count and not method.base_free and not based:
        start, stop = seat.own[names[0]], seat.own[names[0]]
        yield Fault(
            f"{method.name} works on task vectors, and the base has no part in slice {number}",
            f"name its blocks there: layers: {{base: [{start}, {stop + 1} or more], ...}}, or say "
            "which expert is the base of this slice: base: NAME; average and slerp do without",
        )
    base = next((e for e in models.experts if e.name == seat.base), None)
    if base is not None and base.whole is None:
        yield Fault(
            f"the base of slice {number}, {base.name}, is an adapter",
            "merge it into its base first, and give the whole model",
        )


def _parameter_faults(
    number: int, places: tuple[int, ...], recipe: Recipe, method: Method
) -> Iterator[Fault]:
    """Weights that do not go together where only some of them count."""
    weights = recipe.params.get("weights")
    plain = isinstance(weights, list) and all(isinstance(w, int | float) for w in weights)
    if not plain or method.check is None or weights is None or not places:
        return
    if len(weights) <= max(places):
        return
    own = {"weights": [weights[place] for place in places]}
    params = {name: value for name, value in recipe.params.items() if not varies(value)}
    try:
        method.check(**keywords(method, {**params, **own}))
    except ParameterError as error:
        yield Fault(f"slice {number}: {error.problem}", error.remedy or "")


def _repeated(number: int, seat: Seat, models: Models) -> Iterator[Fault]:
    """Models whose files are the same, with the same blocks in one slice."""
    opened: list[tuple[str, Checkpoint | Expert]] = [(e.name, e) for e in models.experts]
    if models.base is not None:
        opened.insert(0, (BASE, models.base))
    seen: dict[tuple[tuple[Path, ...], int], str] = {}
    for name, model in opened:
        files = tuple(file.resolve() for file in model.files)
        if not files or name not in seat.own:
            continue
        twin = seen.setdefault((files, seat.own[name]), name)
        if twin != name:
            text = f"slice {number} takes the same blocks of {model.source} as {twin} and as {name}"
            yield Fault(text, ONCE)


def structure_faults(seats: Seats, specs: Mapping[str, Specs], main: str, config: Mapping[str, Any],
                     stacks: Mapping[str, int]) -> list[Fault]:  # fmt: skip
    """Blocks that do not fit each other, or the place where they would stand. `specs` are those of
    each model by name, `main` the name of that whose `config` and `stacks` the result follows.
    """
    faults: list[Fault] = []
    for stack, own in seats.items():
        anatomy = Anatomy(specs[main], list(seats))
        kinds = {name: kinds_of_blocks(each, anatomy, stack) for name, each in specs.items()}
        wide = width_faults(own, kinds, main, stack)
        faults += wide or mixture_faults(own, kinds, stack)
        if wide or not config:
            continue
        keys = keys_of(config, stack, stacks)

        def traits(number: int, keys: Any = keys) -> tuple[str, ...]:
            return traits_of(config, keys, number)

        faults += place_faults(own, kinds, main, stack, traits)
    return faults


def per_block_faults(models: Models, seats: Seats) -> list[Fault]:
    """Tensors outside of blocks that have a part for each of them, where these do not stay."""
    moved = [
        stack
        for stack, own in seats.items()
        if any({*seat.own.values()} != {place} for place, seat in enumerate(own))
        or len(own) != lengths(models.layout.specs)[stack]
    ]
    names = [name for name in models.layout.specs if not PER_BLOCK.isdisjoint(name.split("."))]
    return [
        Fault(
            f"{name} has a part for each block of {moved[0]}, in their order, and the blocks of "
            "the result are others",
            f"leave the blocks of {moved[0]} at their places: models with such cannot be stacked",
        )
        for name in names
        if moved
    ]


def unsliced_faults(method: Method | None, models: Models) -> list[Fault]:
    """Stacks of which no slice speaks, where the method does not take all experts."""
    count = len(models.experts)
    if method is None or (
        method.experts[0] <= count and (method.experts[1] is None or count <= method.experts[1])
    ):
        return []
    left = [name for name in models.layout.specs if name not in models.votes]
    every = Anatomy(models.layout.specs, []).stacks
    blocks = [block for name in left if (block := block_of(name)) is not None]
    stacks = dict.fromkeys(block.stack for block in blocks if block.stack in every)
    return [
        Fault(
            f"{method.name} does not take {count} experts, and all of them have a part in {stack}, "
            "of which no slice speaks",
            f"add a slice for it: {{stack: {stack}, layers: {{{models.experts[0].name}: null}}}}",
        )
        for stack in stacks
    ]
