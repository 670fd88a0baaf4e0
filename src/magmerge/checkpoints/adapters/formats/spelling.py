"""How files spell their keys: read from one, so that a result is spelt as its first input is."""

from __future__ import annotations

from collections.abc import Mapping

from magmerge.checkpoints.adapters.formats.keys import Roles, read_key
from magmerge.checkpoints.adapters.nouns import ModuleKeys

KOHYA = ("lora_down.weight", "lora_up.weight")
"""The endings of kohya's keys, down and up."""


def keys_of(modules: Mapping[str, Roles]) -> dict[str, ModuleKeys]:
    """The spelling of each module's keys in a file; a LoHa's or LoKr's as LoRAs of kohya's."""
    alphas = any("alpha" in roles for roles in modules.values())
    keys = {}
    for module, roles in modules.items():
        first = read_key(next(iter(roles.values())))
        assert first is not None
        ends = KOHYA
        if "down" in roles and "up" in roles:
            ends = (_ending(roles["down"], first.module), _ending(roles["up"], first.module))
        keys[module] = ModuleKeys(first.module, *ends, alphas)
    return keys


def _ending(key: str, stem: str) -> str:
    return key.removeprefix(f"{stem}.")
