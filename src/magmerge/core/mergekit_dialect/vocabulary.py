"""What a document says of tokens and templates, in a recipe's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from magmerge.core.mergekit_dialect.document import Document, model_string
from magmerge.core.mergekit_dialect.nodes import Faults, Node, fields
from magmerge.core.mergekit_dialect.roles import Roles


def vocabulary_fields(document: Document, roles: Roles, faults: Faults) -> dict[str, Any]:
    """The recipe's fields tokenizer, tokens, pad_to_multiple_of and chat_template."""
    told: dict[str, Any] = {}
    if "chat_template" in document.words:
        told["chat_template"] = document.words["chat_template"]
    parts = fields(
        document.tokenizer, ("source", "tokens", "pad_to_multiple_of"), "tokenizer", faults
    )
    source = document.words.get("tokenizer_source")
    line = document.line
    if document.tokenizer is not None:
        line = document.tokenizer.line
        source = model_string(parts.get("source"), faults) or "union"
    if source is not None:
        told["tokenizer"] = _owner(source, document, roles, line, faults)
    if "pad_to_multiple_of" in parts:
        told["pad_to_multiple_of"] = _multiple(parts["pad_to_multiple_of"], faults)
    tokens = {}
    texts = parts["tokens"].value if "tokens" in parts else {}
    if not isinstance(texts, dict):
        faults.add(parts["tokens"].line, "tokens is no mapping", "write {TEXT: {source: MODEL}}")
        texts = {}
    for text, node in texts.items():
        entry = _token(text, node, roles, faults)
        if entry is not None:
            tokens[text] = entry
    if tokens:
        told["tokens"] = tokens
    return told


def _owner(source: str, document: Document, roles: Roles, line: int, faults: Faults) -> str | None:
    """Whose tokens the result has, by the recipe's name of it."""
    if source == "union":
        return source
    model = document.base if source == "base" else source
    if model is None:
        # mergekit takes any of the models then; the first is one that can be named.
        return "base"
    if model == roles.unlisted:
        # It is the donor of config and tokenizer.
        return None
    return _named(model, roles, f"the tokenizer's source {source}", line, faults)


def _named(model: str, roles: Roles, place: str, line: int, faults: Faults) -> str | None:
    if model == roles.base:
        return "base"
    name = next((name for name, path in roles.experts.items() if path == model), None)
    if name is None:
        known = ", ".join(dict.fromkeys([*filter(None, [roles.base]), *roles.experts.values()]))
        faults.add(line, f"{place}: {model} is none of the models", f"name one of {known}")
    return name


def _multiple(node: Node, faults: Faults) -> int | None:
    if type(node.value) is int and node.value > 0:
        return node.value
    faults.add(node.line, f"pad_to_multiple_of is {node.value!r}", "write a whole number: 64")
    return None


def _token(text: str, node: Node, roles: Roles, faults: Faults) -> dict[str, Any] | None:
    """A token's source; None where none is said."""
    place = f"tokens.{text}"
    parts = fields(node, ("source", "force"), place, faults)
    if "source" not in parts:
        return None
    source: str | Mapping[str, Any] | None
    entry = parts["source"]
    kind = entry.value.get("kind") if isinstance(entry.value, dict) else None
    if kind is None:
        model = model_string(entry, faults)
        source = model and _named(model, roles, f"{place}.source", entry.line, faults)
    elif kind.value == "zero":
        fields(entry, ("kind",), f"{place}.source", faults)
        source = {"kind": "zero"}
    else:
        source = _model_token(entry, place, roles, faults)
    force = parts["force"].value if "force" in parts else False
    if not isinstance(force, bool):
        faults.add(parts["force"].line, f"{place}.force is {force!r}", "write true or false")
    return {"source": source, "force": bool(force)} if source else None


def _model_token(entry: Node, place: str, roles: Roles, faults: Faults) -> Mapping[str, Any] | None:
    parts = fields(entry, ("kind", "model", "token", "token_id"), f"{place}.source", faults)
    rows: dict[str, Any] = {key: parts[key].value for key in ("token", "token_id") if key in parts}
    fits = len(rows) == 1 and type(rows.get("token_id", 0)) is int and "model" in parts
    if parts["kind"].value != "model_token" or not fits:
        faults.add(
            entry.line,
            f"{place}.source is no source of a row",
            "write a model, {kind: zero}, or {kind: model_token, model: PATH, token: TEXT} (or "
            "token_id: NUMBER)",
        )
        return None
    model = model_string(parts["model"], faults)
    name = model and _named(model, roles, f"{place}.source", entry.line, faults)
    if "token" in rows:
        rows["token"] = str(rows["token"])
    return {"kind": "model_token", "model": name, **rows} if name else None
