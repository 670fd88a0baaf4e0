"""Whose names a model has."""

from __future__ import annotations

from collections.abc import Iterable

from magmerge.clip_names.family import Family, Naming
from magmerge.clip_names.hf import HF
from magmerge.clip_names.open_clip import OPEN_CLIP
from magmerge.clip_names.timm import TIMM

FAMILIES: dict[str, Family] = {family.name: family for family in (HF, OPEN_CLIP, TIMM)}
"""The families by name: hf_clip, open_clip, timm_clip."""
MOST_PREFIXES = 8
"""Under how many prefixes a family is looked for. A file with one model has one."""


def family_of(names: Iterable[str]) -> str | None:
    """The family whose names a model's tensors have; None if it is no CLIP model of a known one.

    All names may have one prefix, such as model. or image_encoder.model.
    """
    found = recognise(names)
    return None if found is None else found.family.name


def left_over(names: Iterable[str], own: Naming) -> list[str]:
    """The names of weights that `own` does not know, and that another CLIP model has: one under
    another prefix, or of another family.
    """
    listed = list(names)
    strange = [name for name in listed if own.entry(name) is None]
    others = [*_candidates(strange), *_of_prefix(own.prefix)]
    return [name for name in strange if any(_is_weight(naming, name) for naming in others)]


def _of_prefix(prefix: str) -> list[Naming]:
    """Every family and variant under one prefix."""
    return [
        Naming(family, prefix, variant)
        for family in FAMILIES.values()
        for variant in range(len(family.variants))
    ]


def _is_weight(naming: Naming, name: str) -> bool:
    """Whether the name is a layer's: names outside the layers, such as head.weight, are common."""
    entry = naming.entry(name)
    return entry is not None and entry.parts[0].count(".") > 2


def recognise(names: Iterable[str]) -> Naming | None:
    """The naming that knows most of the names, among those that know a layer's attention."""
    listed = list(names)
    best, most = None, 0
    for naming in _candidates(listed):
        entries = [entry for entry in map(naming.entry, listed) if entry is not None]
        attends = any(entry.parts[0].endswith(".q.weight") for entry in entries)
        if attends and len(entries) > most:
            best, most = naming, len(entries)
    return best


def _candidates(names: list[str]) -> list[Naming]:
    """Every family and variant with each prefix that one of its anchors is found under."""
    found = []
    for bare in _of_prefix(""):
        prefixes = {
            name[: -len(anchor)]: None
            for anchor in bare.anchors()
            for name in names
            if name == anchor or name.endswith(f".{anchor}")
        }
        # Each is held against all names.
        found += [
            Naming(bare.family, prefix, bare.variant) for prefix in list(prefixes)[:MOST_PREFIXES]
        ]
    return found
