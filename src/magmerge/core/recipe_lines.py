"""In which line of its file each key of a recipe stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from magmerge.core.plain_yaml import PlainLoader

Lines = Mapping[tuple[str, ...], int]
"""From a key with those that it lies in, or an entry's number in its list, to its line from 1."""


def lines_of(text: str) -> list[Lines]:
    """The lines of each document of a file that is YAML, but for empty ones."""
    documents: list[Lines] = []
    for node in yaml.compose_all(text, PlainLoader):
        if node is None or (isinstance(node, yaml.ScalarNode) and node.value in ("", "~", "null")):
            continue
        lines: dict[tuple[str, ...], int] = {(): node.start_mark.line + 1}
        _note(node, (), lines)
        documents.append(lines)
    return documents


def line_of(lines: Lines, path: Sequence[str]) -> int | None:
    """The line of a key, or of the nearest that it lies in; None where nothing is known."""
    places = [tuple(path[:length]) for length in range(len(path), -1, -1)]
    return next((lines[place] for place in places if place in lines), None)


def _note(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    # An alias is the same node once more: its lines are those of the first place.
    pairs: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(str(place), value, value) for place, value in enumerate(node.value)]
    for name, key, value in pairs:
        inner = (*path, name)
        if inner not in lines and len(path) < DEEPEST:
            lines[inner] = key.start_mark.line + 1
            _note(value, inner, lines)


DEEPEST = 6
"""Keys within keys that a fault may name; it also bounds what aliases of aliases unfold to."""
