"""The config of a result that is made of slices: how many blocks it has, and of what kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from magmerge.checkpoints.donor import sizes_of
from magmerge.checkpoints.kinds import read_config, read_model_config
from magmerge.core.assembly import Seat, Seats
from magmerge.core.block_config import Source, at, block_settings, keys_of, leading
from magmerge.core.errors import Fault, printable
from magmerge.core.models import Checkpoint
from magmerge.core.recipe import ModelOutput, Recipe
from magmerge.core.stacks import lengths
from magmerge.engine.job import Models

UNSAID = (
    "name the folder of a model whose config.json does with --donor (donor=), or write it all the "
    "same: --force (force=True)"
)
TIES = ("tie_word_embeddings",)
"""What a merge decides by itself."""
Places = Mapping[str, Sequence[tuple[Checkpoint, int]]]
"""For each stack the model that each block is from, and its number there."""


def with_config(
    recipe: Recipe, models: Models, seats: Seats, places: Places, stacks: Mapping[str, int]
) -> Models:
    """The models with what their blocks make of the config of the result. `stacks` are those of the
    model that the result has its config of, main ones first, with their lengths.

    What that config cannot tell of them is a fault, unless the recipe forces it.
    """
    assert isinstance(recipe.output, ModelOutput)
    folder = models.layout.folder if recipe.output.donor is None else Path(recipe.output.donor)
    donor = read_config(folder) if folder is not None and folder.is_dir() else {}
    own = read_model_config(models.layout) or donor
    settings: dict[str, Any] = {}
    faults: list[Fault] = []
    for stack, blocks in places.items() if donor else ():
        sources = [
            Source(read_model_config(model), number, lengths(model.specs)[stack])
            for model, number in blocks
        ]
        told = block_settings(own, stack, stacks, sources)
        settings |= {path: value for path, value in told.items() if _has_place(donor, path)}
        faults += _faults(own, stack, stacks, sources)
    faults += _unlike(own, places, settings)
    return replace(
        models,
        settings={**models.settings, **settings},
        blocks=tuple(_told(stack, own_seats) for stack, own_seats in seats.items()),
        faults=models.faults if recipe.output.force else (*models.faults, *faults),
    )


def _has_place(config: Mapping[str, Any], path: str) -> bool:
    """Whether a config has the part that a setting is written into."""
    parent = path.rpartition(".")[0]
    return not parent or isinstance(at(config, parent), Mapping)


def _faults(
    config: Mapping[str, Any], stack: str, stacks: Mapping[str, int], sources: Sequence[Source]
) -> Iterator[Fault]:
    """What the config cannot say of a stack."""
    keys = keys_of(config, stack, stacks)
    told = block_settings(config, stack, stacks, sources)
    if not told and len(sources) != stacks[stack]:
        yield Fault(
            f"no key of config.json says that {stack} has {stacks[stack]} blocks, and the result "
            f"has {len(sources)}",
            f"{UNSAID}; or choose slices of {stacks[stack]} blocks in all",
        )
    for path in keys.prefixes:
        if not leading(config, path, sources):
            yield Fault(
                f"{path} in config.json tells how many of the first blocks are of another kind, "
                f"and in {stack} some of these come after others",
                "begin with the first blocks of a model, and take those of other slices after them",
            )


def _unlike(
    config: Mapping[str, Any], places: Places, settings: Mapping[str, Any]
) -> Iterator[Fault]:
    """Models of blocks in the result whose config says another size of blocks than its own."""
    sizes = sizes_of(config)
    for model in dict.fromkeys(model for blocks in places.values() for model, _ in blocks):
        theirs = sizes_of(read_model_config(model))
        for key, value in theirs.items():
            counted = (
                key in settings or key.endswith("vocab_size") or key.rpartition(".")[2] in TIES
            )
            if key in sizes and not counted and sizes[key] != value:
                yield Fault(
                    f"{key} is {value} in the config.json of {model.source}, and {sizes[key]} in "
                    "that of the result: its blocks would compute something else",
                    "give models of one architecture and one size",
                )


def _told(stack: str, seats: Sequence[Seat]) -> str:
    """How many blocks the result has, and which of whose they are."""
    runs: list[str] = []
    for _, own in groupby(seats, key=lambda seat: seat.slice):
        first, *rest = own
        last = [first, *rest][-1]
        runs.append(
            " with ".join(
                f"{name} {number}"
                if number == last.own[name]
                else f"{name} {number}-{last.own[name]}"
                for name, number in first.own.items()
            )
        )
    return f"{printable(stack)} has {len(seats)} blocks in the result: {', then '.join(runs)}"
