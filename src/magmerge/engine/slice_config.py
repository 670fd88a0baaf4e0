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
from magmerge.core.block_config import Source, block_settings, entry_of, leading, untapped
from magmerge.core.block_keys import at, keys_of
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
Places = Mapping[str, Sequence[Sequence[tuple[Checkpoint, int]]]]
"""For each block of each stack the models that have a part in it, each with its number there. First
is the one whose tensors the result has where nothing is merged.
"""


def with_config(
    recipe: Recipe, models: Models, seats: Seats, places: Places, stacks: Mapping[str, int]
) -> Models:
    """The models with what their blocks make of the config of the result. `stacks` are those of the
    model that it has its config of, with their lengths.

    What that config cannot tell of them is a fault, unless the recipe forces it.
    """
    assert isinstance(recipe.output, ModelOutput)
    folder = models.layout.folder if recipe.output.donor is None else Path(recipe.output.donor)
    donor = read_config(folder) if folder is not None and folder.is_dir() else {}
    own = read_model_config(models.layout)
    settings: dict[str, Any] = {}
    faults: list[Fault] = []
    notes: list[str] = []
    for stack, blocks in places.items() if donor else ():
        whole = dict.fromkeys(model for row in blocks for model, _ in row)
        known = {id(m): (read_model_config(m), lengths(m.specs)[stack]) for m in whole}
        parts = [[_source(known[id(m)], n) for m, n in row] for row in blocks]
        sources = [row[0] for row in parts]
        # A donor may tell what the model's own config does not.
        config = own if keys_of(own, stack, stacks).counts else donor
        told = block_settings(config, stack, stacks, sources)
        settings |= {path: value for path, value in told.items() if _has_place(donor, path)}
        faults += _faults(config, stack, stacks, sources)
        lists = keys_of(config, stack, stacks).lists
        notes += [note for p in lists for note in _unlike_blocks(config, p, blocks, parts)]
    faults += _unlike(own, places, settings)
    return replace(
        models,
        settings={**models.settings, **settings},
        notes=(*models.notes, *notes),
        blocks=tuple(_told(stack, own_seats) for stack, own_seats in seats.items()),
        faults=models.faults if recipe.output.force else (*models.faults, *faults),
    )


def _source(model: tuple[Mapping[str, Any], int], number: int) -> Source:
    config, length = model
    return Source(config, number, length)


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
    for path in keys.indices:
        lacking = untapped(config, path, sources)
        if lacking:
            numbers = ", ".join(map(str, lacking))
            yield Fault(
                f"{path} in config.json names blocks of {stack} whose output goes elsewhere too, "
                f"and the result has not all of them: {numbers}",
                f"choose slices that hold the blocks {numbers}",
            )
    for path in keys.prefixes:
        if not leading(config, path, sources):
            yield Fault(
                f"{path} in config.json tells how many of the first blocks are of another kind, "
                f"and in {stack} some of these come after others",
                "begin with the first blocks of a model, and take those of other slices after them",
            )


def _unlike_blocks(
    config: Mapping[str, Any],
    path: str,
    blocks: Sequence[Sequence[tuple[Checkpoint, int]]],
    parts: Sequence[Sequence[Source]],
) -> Iterator[str]:
    """That models say other things of blocks that are merged with each other."""
    for row, own in zip(blocks, parts, strict=True):
        first, *others = [entry_of(source, config, path) for source in own]
        for (model, number), other in zip(row[1:], others, strict=True):
            if other != first:
                yield (
                    f"{path} in config.json: block {number} of {model.source} is {other!r}, and "
                    f"the one that it is merged with is {first!r}, as in the result"
                )
                return


def _unlike(
    config: Mapping[str, Any], places: Places, settings: Mapping[str, Any]
) -> Iterator[Fault]:
    """Models of blocks in the result whose config says another size of blocks than its own."""
    sizes = sizes_of(config)
    rows = [row for blocks in places.values() for row in blocks]
    for model in dict.fromkeys(model for row in rows for model, _ in row):
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
