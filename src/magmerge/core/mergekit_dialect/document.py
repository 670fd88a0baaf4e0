"""A document of mergekit's as its author wrote it: modules of slices of sources, and the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from magmerge.core.errors import suggestion
from magmerge.core.mergekit_dialect.method_table import KNOWN, METHODS, MergekitMethod
from magmerge.core.mergekit_dialect.nodes import Faults, Node, entries, fields, text_of

Settings = Mapping[str, Node]
"""Parameters as they are written, by mergekit's names."""
OWN = (
    *("calibrate", "samples", "seed", "rename", "gate", "bound", "skip", "ignore", "sensitive"),
    "output",
)
"""Keys of magmerge's own that may stand beside mergekit's."""
INPUTS = ("models", "slices", "modules")
TOP = (
    *("name", "out_path", "merge_method", "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template", *INPUTS, *OWN),
)
"""mergekit once had out_path, by which later documents call a result."""


class Source(NamedTuple):
    """A model in a slice: which of its blocks (None: all), and its own parameters."""

    model: str
    layers: tuple[int, int] | None
    settings: Settings
    line: int


class OutputSlice(NamedTuple):
    """Some blocks of the result, merged of as many of each source. `base` is its own base_model."""

    sources: tuple[Source, ...]
    base: str | None
    settings: Settings
    line: int

    @property
    def length(self) -> int | None:
        """How many blocks it has; None where these are all of a model's."""
        layers = self.sources[0].layers if self.sources else None
        return None if layers is None else layers[1] - layers[0]


class Module(NamedTuple):
    """A stack of blocks of the result, by mergekit's name of it: None where it was not named."""

    name: str | None
    slices: tuple[OutputSlice, ...]
    settings: Settings
    line: int


class Document(NamedTuple):
    """All of a document. `own` are magmerge's keys, as plain values; `words` single words by key.

    Models of `models:` are one slice of whole models. `whole`: no ranges are said anywhere.
    """

    method: str
    base: str | None
    modules: tuple[Module, ...]
    settings: Settings
    words: Mapping[str, str]
    tokenizer: Node | None
    own: Mapping[str, Any]
    line: int

    @property
    def table(self) -> MergekitMethod:
        """What its method takes."""
        return METHODS[self.method]

    @property
    def slices(self) -> list[OutputSlice]:
        """Those of all modules."""
        return [slice_ for module in self.modules for slice_ in module.slices]


def read_document(root: Node, faults: Faults) -> Document | None:
    """The document; None where its method is unknown. What is wrong is added to the faults."""
    top = fields(root, TOP, "the recipe", faults)
    method = text_of(top.get("merge_method"), "merge_method", faults)
    words = {
        key: text
        for key in ("name", "dtype", "out_dtype", "tokenizer_source", "chat_template")
        if (text := _word(key, top, faults)) is not None
    }
    document = Document(
        method or "",
        model_string(top.get("base_model"), faults),
        tuple(_modules(root, top, faults)),
        _settings(top.get("parameters"), faults),
        words,
        top.get("tokenizer"),
        {key: top[key].plain for key in OWN if key in top},
        root.line,
    )
    if "tokenizer" in top and "tokenizer_source" in top:
        faults.add(
            top["tokenizer"].line,
            "tokenizer and tokenizer_source are both given",
            "keep one: tokenizer: {source: ...} says the same",
        )
    if method not in METHODS:
        line = top["merge_method"].line if "merge_method" in top else root.line
        faults.add(line, f"mergekit has no method {method!r}", suggestion(method, METHODS))
        return None
    return document


def _word(key: str, top: Mapping[str, Node], faults: Faults) -> str | None:
    node = top.get(key)
    if key == "tokenizer_source" and node is not None:
        return model_string(node, faults)
    return text_of(node, key, faults)


def _modules(root: Node, top: Mapping[str, Node], faults: Faults) -> Iterable[Module]:
    present = [key for key in INPUTS if key in top and top[key].value]
    if len(present) != 1:
        shown = " and ".join(present) if present else "none of models, slices and modules"
        line = top[present[1]].line if len(present) > 1 else root.line
        faults.add(line, f"{shown} {'are' if present else 'is'} given", "give exactly one of them")
        return
    node = top[present[0]]
    if present[0] != "modules":
        yield _module(None, {present[0]: node}, node.line, faults)
        return
    for name, entry in fields(node, node.value if isinstance(node.value, dict) else (), "modules",
                              faults).items():  # fmt: skip
        place = f"modules.{name}"
        parts = fields(entry, ("models", "slices", "parameters"), place, faults)
        if ("models" in parts) == ("slices" in parts):
            faults.add(entry.line, f"{place} has not one of models and slices", "give one of them")
            continue
        yield _module(name, parts, entry.line, faults)


def _module(name: str | None, parts: Mapping[str, Node], line: int, faults: Faults) -> Module:
    settings = _settings(parts.get("parameters"), faults)
    if "models" in parts:
        nodes = entries(parts["models"], "models", faults)
        sources = [_source(node, "an entry of models", faults) for node in nodes]
        slices = [OutputSlice(tuple(s for s in sources if s), None, {}, parts["models"].line)]
    else:
        nodes = entries(parts["slices"], "slices", faults)
        slices = [_slice(node, faults) for node in nodes]
    return Module(name, tuple(s for s in slices if s.sources), settings, line)


def _slice(node: Node, faults: Faults) -> OutputSlice:
    known = ("sources", "base_model", "parameters", "residual_weight")
    parts = fields(node, known, "an entry of slices", faults)
    if "sources" not in parts:
        faults.add(
            node.line,
            "an entry of slices has no sources",
            "write sources: [{model: PATH, layer_range: [0, 8]}]",
        )
    sources = [
        _source(entry, "an entry of sources", faults)
        for entry in entries(parts.get("sources"), "sources", faults)
    ]
    slice_ = OutputSlice(
        tuple(source for source in sources if source),
        model_string(parts.get("base_model"), faults),
        _settings(parts.get("parameters"), faults),
        node.line,
    )
    lengths = {source.layers[1] - source.layers[0] for source in slice_.sources if source.layers}
    if len(lengths) > 1:
        faults.add(
            node.line,
            f"the ranges of a slice are {' and '.join(map(str, sorted(lengths)))} layers long",
            "give all sources of a slice as many layers",
        )
    return slice_


def _source(node: Node, place: str, faults: Faults) -> Source | None:
    ranged = place == "an entry of sources"
    known = ("model", "layer_range", "parameters") if ranged else ("model", "parameters")
    parts = fields(node, known, place, faults)
    model = model_string(parts.get("model"), faults)
    if model is None:
        if "model" not in parts:
            faults.add(node.line, f"{place} names no model", "write model: PATH")
        return None
    layers = _range(parts.get("layer_range"), node.line, faults) if ranged else None
    return Source(model, layers, _settings(parts.get("parameters"), faults), node.line)


def _range(node: Node | None, line: int, faults: Faults) -> tuple[int, int] | None:
    value = None if node is None else node.plain
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(type(part) is int for part in value)
        and 0 <= value[0] < value[1]
    ):
        return value[0], value[1]
    faults.add(
        line if node is None else node.line,
        "a source has no layer_range" if node is None else f"layer_range {value!r} is no range",
        "write the first layer and the one after the last: layer_range: [0, 8]",
    )
    return None


def _settings(node: Node | None, faults: Faults) -> Settings:
    """Parameters by name; a fault for each that no method of mergekit's has."""
    return fields(node, KNOWN, "parameters", faults)


def model_string(node: Node | None, faults: Faults) -> str | None:
    """A model as one string: path[@revision][+lora[@revision]]."""
    if node is None or node.value == "":
        return None
    if not isinstance(node.value, dict):
        return text_of(node, "a model", faults)
    parts = fields(node, ("model", "lora", "override_architecture"), "a model", faults)
    texts = [_path(parts[key], faults) for key in ("model", "lora") if key in parts]
    if "model" not in parts:
        faults.add(node.line, "a model without a path", "write model: PATH")
        return None
    return "+".join(text for text in texts if text) or None


def _path(node: Node, faults: Faults) -> str | None:
    if not isinstance(node.value, dict):
        return text_of(node, "a model", faults)
    parts = fields(node, ("path", "revision"), "a model", faults)
    texts = [text_of(parts.get(key), "a model", faults) for key in ("path", "revision")]
    return "@".join(text for text in texts if text) or None
