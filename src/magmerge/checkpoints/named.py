"""Models by strings that are no paths here: of the hub, and with an adapter folded in."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.adapters.folded import FoldedCheckpoint
from magmerge.checkpoints.adapters.nouns import Adapter
from magmerge.checkpoints.hub.cache import at_hand
from magmerge.checkpoints.hub.choice import adapter_files
from magmerge.checkpoints.hub.fetch import Snapshot, fetched, fetched_texts, listing
from magmerge.checkpoints.hub.streamed import named as on_hub
from magmerge.checkpoints.hub.streamed import open_streamed
from magmerge.checkpoints.loader import Model, open_checkpoint, open_stored
from magmerge.core.errors import CheckpointError, MagmergeError
from magmerge.core.machine import Machine, hub_manner
from magmerge.core.model_strings import ModelString, is_name, parse
from magmerge.core.models import Checkpoint


def opened(text: str, weights: str | None = None) -> Checkpoint:
    """The model that a string names which is no path here, its tensors as they are stored."""
    named = parse(text)
    if named.adapter is None:
        if hub_manner() != "whole":
            return open_streamed(named.model, weights)
        snapshot = fetched(named.model)
        return on_hub(open_stored(snapshot.folder, weights), snapshot.part, snapshot.notes)
    adapter = replace(open_adapter(str(named.adapter)), source=str(named.adapter))
    return FoldedCheckpoint(open_checkpoint(str(named.model), weights), adapter)


def adapter_on(text: str, base: Checkpoint) -> Adapter | None:
    """The adapter of MODEL+ADAPTER, where MODEL is `base`: None where it is another."""
    named = parse(text)
    assert named.adapter is not None
    files = [os.path.realpath(file) for file in open_stored(str(named.model)).files]
    if files != [os.path.realpath(file) for file in base.files]:
        return None
    return replace(open_adapter(str(named.adapter)), source=text)


def place_of(text: str) -> Snapshot:
    """The folder of an id of the hub; CheckpointError for a model with an adapter."""
    named = parse(text)
    if named.adapter is None:
        if hub_manner() != "whole" and not adapter_files(listing(named.model).files):
            return fetched_texts(named.model)
        return fetched(named.model)
    raise CheckpointError(
        "it is a model with an adapter folded in, and an adapter alone is needed here",
        source=text,
        remedy=f"name the adapter alone: {named.adapter}",
    )


def folder_of_texts(text: str) -> Path:
    """The folder with config and tokenizer of a model of the hub, maybe without weights."""
    return fetched_texts(parse(text).model).folder if is_name(text) else Path(text)


def pinned(model: Model, machine: Machine | None = None) -> tuple[Model, tuple[str, ...]]:
    """A model of the hub in the words that say its commit, fetched, and what its reader should know
    of how that was found; any other as it is.
    """
    if not isinstance(model, str) or not is_name(model):
        return model, ()
    named, parts = parse(model), []
    notes: list[str] = []
    for part in named.parts:
        found = listing(part) if part.on_hub else None
        if found is not None and (machine is None or machine.hub == "whole"):
            fetched(found.part, machine)
        parts.append(part if found is None else found.part)
        # What is known of the cache alone is told by what is opened of it.
        notes += found.notes if found is not None and found.files else ()
    return str(ModelString(*parts)), tuple(notes)


def pinned_texts(text: str) -> str:
    """A donor of the hub in the words that say its commit; any other as it is."""
    return str(listing(parse(text).model).part) if is_name(text) else text


def is_at_hand(model: str) -> bool:
    """Whether a model can be read without a network."""
    if os.path.lexists(model):
        return True
    try:
        parts = parse(model).parts
        return all(not part.on_hub or at_hand(part) is not None for part in parts)
    except MagmergeError:
        return False


def places_at_hand(model: str) -> list[Path]:
    """Where the model of a string lies, and its adapter: paths, and folders in the hub's cache that
    are whole there.
    """
    try:
        parts = parse(model).parts
        places = [at_hand(part) if part.on_hub else Path(part.place) for part in parts]
    except MagmergeError:
        return []
    return [place for place in places if place is not None]
