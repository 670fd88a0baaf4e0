"""A record's paths as names: where somebody keeps models is no business of a card's readers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from magmerge.checkpoints.model_facts import plausible
from magmerge.report.account import InputAccount, MergeAccount
from magmerge.report.card_metadata import last_part, name_of_model

LOCAL = re.compile(r"(?<![\w:/.>])(?:~|\.{1,2})?/(?:[^\s/:;,'\"()\[\]]+/)+([^\s/:;,'\"()\[\]]+)/?")
"""A path in a text: absolute, or from here, or from home; of more than one part."""
BEGINNINGS = ("/", "~", "./", "../", "\\")
MODELS = frozenset({"base", "merged", "donor"})
"""Keys of a recipe whose values name models."""
GROUPS = frozenset({"experts", "data"})
"""Those whose values' values do."""


class CardNames:
    """What a card calls what the record names by a path."""

    def __init__(self, account: MergeAccount) -> None:
        self.by_path: dict[str, str] = {}
        for entry, paths in _roles(account):
            name = name_of_model(entry)
            for path in (entry.source, *paths):
                # A name of the hub's keeps the revision that it is written with.
                known = plausible(entry.facts.get("id"))
                hub = known is not None and path.partition("@")[0] == known
                self.by_path[path] = path if hub else name

    def name(self, path: str) -> str:
        """What a model's path, or that of samples, is called."""
        if path in self.by_path:
            return self.by_path[path]
        if plausible(path.partition("@")[0]) or "/" not in path.replace("\\", "/"):
            return path
        return "+".join(map(last_part, path.split("+")))

    def text(self, text: str) -> str:
        """A sentence with names in place of paths."""
        for path in sorted(self.by_path, key=len, reverse=True):
            if "/" in path or "\\" in path:
                text = text.replace(path, self.by_path[path])
        return LOCAL.sub(lambda found: found[1], text)

    def recipe(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe with names in place of paths, and without what is empty."""
        told = {key: self._value(key, value) for key, value in content.items()}
        output = told.get("output")
        if isinstance(output, Mapping):
            plain = {"kind": "model", "shard_size": 5_000_000_000}
            told["output"] = {k: v for k, v in output.items() if plain.get(k) != v and _says(v)}
        return {key: value for key, value in told.items() if _says(value)}

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, str):
            named = key in MODELS or value.startswith(BEGINNINGS)
            return self.name(value) if named else value
        if isinstance(value, Mapping):
            inner = "base" if key in GROUPS else ""
            return {self._key(k): self._value(inner or str(k), v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            inner = "base" if key in GROUPS else ""
            return [self._value(inner, entry) for entry in value]
        return value

    def _key(self, key: Any) -> Any:
        return self.name(key) if isinstance(key, str) and key.startswith(BEGINNINGS) else key


def _roles(account: MergeAccount) -> list[tuple[InputAccount, list[str]]]:
    """Each input, and by what paths the recipe calls it."""
    recipe, inputs = account.recipe, account.inputs
    named = recipe.get("experts")
    experts = [str(path) for path in named.values()] if isinstance(named, Mapping) else []
    members = [entry for entry in account.read if entry.role == "expert"]
    paths: dict[int, list[str]] = {}
    if len(members) == len(experts):
        paths = {id(entry): [path] for entry, path in zip(members, experts, strict=True)}
    paths |= {id(entry): [entry.source] for entry in inputs if entry.document is not None}
    for entry in account.read:
        own = recipe.get(entry.role)
        if entry.role in ("base", "merged") and isinstance(own, str):
            paths[id(entry)] = [own]
    return [(entry, paths.get(id(entry), [])) for entry in inputs]


def members_of(account: MergeAccount) -> Sequence[tuple[str, InputAccount | None]]:
    """The experts by their names in the recipe, each with its input where that is sure."""
    members = [entry for entry in account.read if entry.role == "expert"]
    same = len(members) == len(account.experts)
    return [(name, members[place] if same else None) for place, name in enumerate(account.experts)]


def _says(value: object) -> bool:
    return value is not None and value not in ([], {}, "", ())
