"""YAML as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from yaml.composer import ComposerError

MARK = "!tune"
"""The tag of a place whose value is searched; the verb tune alone reads it."""


BREAKS = frozenset("\x85\u2028\u2029")
"""Line breaks that YAML knows beside the usual ones."""


class MarkError(yaml.YAMLError):
    """A mark where values are read; `line` counts from 1."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} has a mark")
        self.line = line


class PlainLoader(yaml.SafeLoader):
    """YAML as plain data: no tag makes an object, and a key that stands twice is an error, where
    YAML itself takes the last and drops the first in silence.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping as it stands in the file, before merge keys bring in others."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [(key.tag, key.value) for key in keys]
        for key in reversed(keys):
            if key.value != "<<" and names.count((key.tag, key.value)) > 1:
                problem = f"the key {key.value!r} stands twice"
                raise ComposerError(None, None, problem, key.start_mark)
        return node


class _PlainDumper(yaml.SafeDumper):
    """YAML that PlainLoader reads as it was: a word that looks like a number there is quoted, and
    so is what holds another kind of line break.
    """

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Where it has breaks that are read as spaces, with an escape for each."""
        style = '"' if BREAKS.intersection(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_PlainDumper.add_representer(str, _PlainDumper.represent_text)

# YAML 1.1 takes 1e-5 for a word, as it has no point; people who write it mean a number.
for _kind in (PlainLoader, _PlainDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+"), list("-+0123456789")
    )


def yaml_of(*documents: Any, width: int = 80) -> str:
    """Plain data as YAML, a document each, in lines of about `width`."""
    text: str = yaml.dump_all(
        documents, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=width
    )
    return text


def _refuse(_: PlainLoader, node: yaml.Node) -> None:
    raise MarkError(node.start_mark.line + 1)


PlainLoader.add_constructor(MARK, _refuse)


def documents_of(text: str) -> list[dict[str, Any]]:
    """The documents of a text; none where they are not all mappings, or it is no YAML."""
    try:
        contents = [*yaml.load_all(text, PlainLoader)]
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    return contents if all(isinstance(content, dict) for content in contents) else []


def names_of(documents: Sequence[Mapping[str, Any]]) -> set[str]:
    """What documents are called by, where they read each other."""
    return {str(each["name"]) for each in documents if each.get("name") is not None}
