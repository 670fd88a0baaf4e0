"""Which files of a repository on the hub a merge needs, from their names alone."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Collection, Iterator
from typing import NamedTuple

from magmerge.checkpoints.adapters.adapter_loader import NAMES as ADAPTERS
from magmerge.checkpoints.adapters.adapter_loader import TRAINED
from magmerge.checkpoints.adapters.formats.keys import CONFIG as ADAPTER_CONFIG
from magmerge.checkpoints.adapters.names.vocabulary import COMPONENTS
from magmerge.checkpoints.donor import LEFT_OUT, MODULES, PIPELINE, SUFFIXES
from magmerge.checkpoints.folders import SHARD
from magmerge.checkpoints.loader import NAMES
from magmerge.checkpoints.loader import SUFFIXES as ENDINGS
from magmerge.checkpoints.output.own_files import RECIPE, RECORD
from magmerge.core.errors import CheckpointError, shortened

BESIDE = frozenset({ADAPTER_CONFIG, RECORD, RECIPE, "README.md"})
"""Texts that are read, beside config and tokenizer."""
LONE = (".safetensors", ".gguf")


class Choice(NamedTuple):
    """The texts of a model, its files of weights, and the indices whose shards are such too."""

    texts: tuple[str, ...]
    weights: tuple[str, ...]
    indices: tuple[str, ...]


def needed_files(names: Collection[str], source: str) -> Choice:
    """What is needed of the files `names`: no other format of the same weights, no training state.

    CheckpointError where there are no weights, or several models.
    """
    folders = [f"{part}/" for part in _parts(names)]
    places = [""] if MODULES in names and PIPELINE not in names else folders or [""]
    weights: list[str] = []
    indices: list[str] = []
    for start in places:
        own = _inside(names, start)
        single, index = _weights(own)
        weights += [f"{start}{name}" for name in single]
        indices += [f"{start}{name}" for name in index]
    if not weights and not indices:
        held = sorted(name for name in names if name.endswith((*LONE, *ENDINGS, ".pt", ".pth")))
        raise CheckpointError(
            f"it holds no model that is found by its name: {shortened(held) or 'no weights'}",
            source=source,
            remedy=f"fetch the file that you mean, hf download {source.partition('@')[0]} FILE "
            "--local-dir DIR, and name DIR/FILE" if held else "name a repository with weights",
        )  # fmt: skip
    return Choice(needed_texts(names), tuple(weights), tuple(indices))


def needed_texts(names: Collection[str]) -> tuple[str, ...]:
    """Config, tokenizer and what else is read beside weights, and the indices of such."""
    folders = [f"{part}/" for part in _parts(names)]
    texts = [name for start in ("", *folders) for name in _texts(_inside(names, start), start)]
    indices = [
        f"{start}{index}"
        for start in ("", *folders)
        for index in _weights(_inside(names, start))[1]
    ]
    return tuple(dict.fromkeys([*texts, *indices]))


def adapter_files(names: Collection[str]) -> list[str]:
    """The configurations of adapters among the files of a repository."""
    return [name for name in names if name.rpartition("/")[2] == ADAPTER_CONFIG]


def shards_of(index: str, text: bytes, names: Collection[str]) -> list[str]:
    """The shards that an index beside them lists, as paths in the repository."""
    start = index.rpartition("/")[0]
    try:
        listed = set(json.loads(text)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    # What is wrong with an index is told when it is read.
    paths = {f"{start}/{name}".lstrip("/") for name in listed if isinstance(name, str)}
    return sorted(paths & set(names))


def _parts(names: Collection[str]) -> Iterator[str]:
    """The folders in it that hold parts of the model."""
    inner = sorted({name.partition("/")[0] for name in names if name.count("/") == 1})
    if PIPELINE in names or MODULES in names:
        yield from inner
    elif ADAPTER_CONFIG not in names:
        yield from (part for part in inner
                    if part in COMPONENTS and f"{part}/{ADAPTER_CONFIG}" in names)  # fmt: skip


def _inside(names: Collection[str], start: str) -> list[str]:
    own = (name.removeprefix(start) for name in names if name.startswith(start))
    return sorted(name for name in own if "/" not in name)


def _texts(names: Collection[str], start: str) -> Iterator[str]:
    for name in names:
        ending = f".{name.rpartition('.')[2]}"
        plain = ending in SUFFIXES and name not in LEFT_OUT and ".index." not in name
        if (plain and not name.startswith(".")) or name in BESIDE:
            yield f"{start}{name}"


def _weights(names: Collection[str]) -> tuple[list[str], list[str]]:
    """The files of weights in one folder, and the indices of such."""
    beside = [name for name in (*ADAPTERS[:1], *TRAINED) if name in names]
    beside = beside if ADAPTER_CONFIG in names else []
    for ending in ENDINGS:
        for stem in NAMES:
            if f"{stem}{ending}" in names:
                return list(dict.fromkeys([f"{stem}{ending}", *beside])), []
            if f"{stem}{ending}.index.json" in names:
                return beside, [f"{stem}{ending}.index.json"]
    shards = [name for name in names if SHARD.fullmatch(name)]
    for ending in ENDINGS:
        own = fnmatch.filter(shards, f"*{ending}")
        if own:
            return own, []
    lone = [name for name in names if name.endswith(LONE)]
    return (lone if len(lone) == 1 else []), []
