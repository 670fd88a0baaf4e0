"""Whose names a model has."""

from __future__ import annotations

from collections.abc import Iterable

from magmerge.clip_names.family import Family, Naming
from magmerge.clip_names.hf import HF
from magmerge.clip_names.open_clip import OPEN_CLIP
from magmerge.clip_names.timm import TIMM

FAMILIES: dict[str, Family] = {family.name: family for family in (HF, OPEN_CLIP, TIMM)}
"""The families by name: hf_clip, open_clip, timm_clip."""


def family_of(names: Iterable[str]) -> str | None:
    """The family whose names a model's tensors have; None if it is no CLIP model of a known one.

    All names may have one prefix, such as model. or image_encoder.model.
    """
    found = recognise(names)
    return None if found is None else found.family.name


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
    found: dict[tuple[str, int, str], Naming] = {}
    for family in FAMILIES.values():
        for variant in range(len(family.variants)):
            for anchor in Naming(family, "", variant).anchors():
                for name in names:
                    if name == anchor or name.endswith(f".{anchor}"):
                        prefix = name[: -len(anchor)]
                        key = (family.name, variant, prefix)
                        if key not in found:
                            found[key] = Naming(family, prefix, variant)
    return list(found.values())
