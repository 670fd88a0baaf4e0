"""YAML with the line of every value, and faults that name these lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from magmerge.core.errors import Fault, ParameterError, StructureError, suggestion
from magmerge.core.mergekit_dialect.method_table import EACH, KNOWN
from magmerge.core.plain_yaml import PlainLoader

MOST, DEEPEST = 100_000, 40
"""Values of a file, and how deep they may lie: aliases of aliases unfold to any number."""


class Node(NamedTuple):
    """A mapping or a list of nodes, or a plain value, and the line that it begins in."""

    value: Any
    line: int

    @property
    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value


class Faults:
    """What is wrong with a file, each told once, with its line."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._faults: dict[Fault, None] = {}

    def add(self, line: int, text: str, remedy: str) -> None:
        """One more."""
        self._faults[Fault(f"{self.source}, line {line}: {text}", remedy)] = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._faults)

    def check(self) -> None:
        """StructureError with all of them, if there are any."""
        if self._faults:
            raise StructureError(list(self._faults))


def read_nodes(text: str, source: str) -> list[Node]:
    """The documents of a file, those without content left out. It is read as data.

    ParameterError for what is no YAML, or unfolds to more than a recipe can hold.
    """
    try:
        reader = _Reader(text)
        roots = reader.documents()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParameterError(
            f"not YAML: {error}", source=source, remedy="mend the line it names"
        ) from error
    if reader.count > MOST:
        raise ParameterError(
            "it unfolds to more values than a recipe can have",
            source=source,
            remedy="write it without aliases of aliases (&name, *name)",
        )
    return [node for node in roots if node.value is not None]


class _Reader:
    def __init__(self, text: str) -> None:
        self._loader = PlainLoader(text)
        self.count = 0

    def documents(self) -> list[Node]:
        roots = []
        while self._loader.check_node():
            roots.append(self._node(self._loader.get_node(), 0))
        return roots

    def _node(self, node: Any, depth: int) -> Node:
        self.count += 1
        line = node.start_mark.line + 1
        if self.count > MOST:
            return Node(None, line)
        if depth > DEEPEST:
            raise ValueError(f"line {line} lies too deep")
        if isinstance(node, yaml.MappingNode):
            self._loader.flatten_mapping(node)
            return Node({self._key(k): self._node(v, depth + 1) for k, v in node.value}, line)
        if isinstance(node, yaml.SequenceNode):
            return Node([self._node(part, depth + 1) for part in node.value], line)
        value = self._loader.construct_object(node)
        known = value is None or isinstance(value, str | int | float)
        return Node(value if known else node.value, line)

    def _key(self, node: Any) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise ValueError(f"line {node.start_mark.line + 1}: a key that is no word")
        return str(node.value)


def fields(node: Node | None, known: Iterable[str], place: str, faults: Faults) -> dict[str, Node]:
    """The entries of a mapping that are known and not null; faults for all others."""
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, Mapping):
        faults.add(node.line, f"{place} is no mapping", f"write {', '.join(sorted(known))} in it")
        return {}
    names = set(known)
    for key, entry in node.value.items():
        if key not in names:
            remedy = MISPLACED.get((place, key)) or _suggestion(key, names, place)
            faults.add(entry.line, f"unknown key {key!r} in {place}", remedy)
    return {k: entry for k, entry in node.value.items() if k in names and entry.value is not None}


MISPLACED = {
    ("an entry of models", "layer_range"): "models are merged whole; for some of their layers "
    "write slices: [{sources: [{model: M, layer_range: [0, 8]}]}]",
    **dict.fromkeys(
        [("an entry of models", "revision"), ("an entry of sources", "revision")],
        "write it with the model: PATH@REVISION",
    ),
    ("the recipe", "experts"): "beside merge_method the experts are models: [{model: PATH}]",
    ("the recipe", "base"): "beside merge_method the base is base_model: PATH",
    ("the recipe", "method"): "drop it: merge_method is the method",
    ("the recipe", "params"): "beside merge_method they are parameters:",
}
"""Remedies for keys that stand in a wrong place, by place and key."""


def _suggestion(key: str, names: Iterable[str], place: str) -> str:
    """What is meant with a key: one of these names, or one that has its own place."""
    if key in TOP_ALONE and place != "the recipe":
        return f"write it at the top of the recipe, beside merge_method: {key}: ..."
    near = suggestion(key, names)
    own = f"did you mean {key}?" if key in KNOWN else suggestion(key, KNOWN)
    if place == "parameters" or near.startswith("did you mean") or not own.startswith("did you"):
        return near
    name = own.removeprefix("did you mean ").removesuffix("?").partition(" or ")[0]
    if place in ("an entry of models", "an entry of sources") and name not in EACH:
        return f"it is one for all models: write it at the top, parameters: {{{name}: ...}}"
    return f"write it under parameters: {{{name}: ...}}"


TOP_ALONE = ("merge_method", "dtype", "out_dtype", "tokenizer_source", "chat_template", "calibrate")
"""Keys that are meant for the whole recipe wherever they stand."""


def entries(node: Node | None, place: str, faults: Faults) -> list[Node]:
    """The entries of a list; a fault where it is none."""
    if node is None:
        return []
    if not isinstance(node.value, list):
        faults.add(node.line, f"{place} is no list", "begin each of its entries with - ")
        return []
    return list(node.value)


def text_of(node: Node | None, place: str, faults: Faults) -> str | None:
    """A word or path; a fault where it is none."""
    if node is None:
        return None
    if isinstance(node.value, str | int) and str(node.value).strip():
        return str(node.value)
    faults.add(node.line, f"{place} is no name", "write one word or path, in quotes if need be")
    return None
