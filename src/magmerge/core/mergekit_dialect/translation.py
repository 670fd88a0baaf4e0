"""A file of mergekit's recipes as recipes with every parameter written out."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from os.path import lexists
from typing import Any

from magmerge.core.dtypes import parse_float_dtype
from magmerge.core.errors import ParameterError
from magmerge.core.mergekit_dialect.document import Document, read_document
from magmerge.core.mergekit_dialect.nodes import Faults, Node, read_nodes
from magmerge.core.mergekit_dialect.parameters import Parameters
from magmerge.core.mergekit_dialect.roles import Roles, roles_of
from magmerge.core.mergekit_dialect.rule_table import Rules, check_rules, told
from magmerge.core.mergekit_dialect.vocabulary import vocabulary_fields
from magmerge.core.recipe import Recipe


def translated(text: str, source: str, rules: Rules = "better") -> list[Recipe]:
    """The recipes of a file in which at least one document is mergekit's, in the order of work.

    Each has the notes of the rules by which it differs from what mergekit 0.1.5 makes of it.
    StructureError with all faults and their lines, ParameterError for what is no YAML.
    """
    check_rules(rules)
    faults = Faults(source)
    roots = read_nodes(text, source)
    if not any(map(_is_mergekits, roots)):
        raise ParameterError(
            f"no document of it is mergekit's, to be read as {rules}",
            source=source,
            remedy="drop --as (rules=), or write merge_method: in place of method:",
        )
    mappings = [root.value for root in roots if isinstance(root.value, Mapping)]
    names = {str(top["name"].plain) for top in mappings if "name" in top}
    recipes = [_recipe(root, source, rules, names, faults) for root in roots]
    faults.check()
    return _in_order([recipe for recipe in recipes if recipe is not None], source)


def _is_mergekits(root: Node) -> bool:
    return isinstance(root.value, Mapping) and "merge_method" in root.value


def _recipe(
    root: Node, source: str, rules: Rules, names: Container[str], faults: Faults
) -> Recipe | None:
    """One document's recipe; None where the faults tell why there is none. `names` are those of
    all documents, whose results take config and tokenizer along by themselves.
    """
    before = faults.count
    if not _is_mergekits(root):
        return Recipe.model_validate(root.plain, context={"source": source})
    document = read_document(root, faults)
    if document is None or not document.slices:
        if document is not None and faults.count == before:
            faults.add(root.line, "no model is given", "write models: [{model: PATH}]")
        return None
    roles = roles_of(document, counted=rules == "mergekit", faults=faults)
    if not roles.places:
        return None
    parameters = Parameters(document, roles, rules, faults)
    method, params = parameters.in_our_words()
    notes = [*parameters.notes]
    fields = {
        "name": document.words.get("name"),
        "base": roles.base,
        "experts": dict(roles.experts),
        "method": method,
        "params": params,
        "slices": _slices(roles),
        **vocabulary_fields(document, roles, faults),
        **_own(document, roles),
    }
    tokens_said = any(fields.get(key) for key in ("tokenizer", "tokens", "pad_to_multiple_of"))
    donor = None if tokens_said or roles.unlisted in names else roles.unlisted
    fields["output"] = _output(document, donor, faults)
    notes += _notes(fields, roles, rules)
    if faults.count > before:
        return None
    told_fields = {key: value for key, value in fields.items() if value is not None}
    recipe = Recipe.model_validate(told_fields, context={"source": source})
    return recipe.with_notes(dict.fromkeys(notes), drops_idle_filters=True)


def _notes(fields: Mapping[str, Any], roles: Roles, rules: Rules) -> Iterator[str]:
    """The rules that apply to tokens, a base that is no model of the merge, and slices."""
    if fields.get("tokenizer") == "union" or fields.get("tokens"):
        yield from told("tokens", rules)
    if fields.get("pad_to_multiple_of"):
        yield from told("padding", rules)
    if roles.unlisted is not None and not roles.sliced:
        yield from told("unlisted-base", rules)
    for place in roles.places:
        first, last = place.module.slices[0], place.module.slices[-1]
        if len(last.sources) > len(first.sources):
            yield from told("last-slice", rules)


def _slices(roles: Roles) -> list[dict[str, Any]]:
    """The result's blocks; none where they are just those of the models."""
    slices = []
    for place in roles.places if roles.sliced else ():
        layers = {name: source.layers for name, source in place.sources.items()}
        told = {"layers": layers, "stack": place.region.stack, "base": place.base}
        if place.region.stack is not None or place.region.part is None:
            slices.append({key: value for key, value in told.items() if value is not None})
    return slices


def _own(document: Document, roles: Roles) -> dict[str, Any]:
    """magmerge's own keys; experts may be called by their models there too."""
    names = {path: name for name, path in roles.experts.items()}
    own = {key: value for key, value in document.own.items() if key != "output"}
    samples, rename = own.get("samples"), own.get("rename")
    if isinstance(samples, dict) and isinstance(samples.get("data"), dict):
        data = {names.get(key, key): value for key, value in samples["data"].items()}
        own["samples"] = {**samples, "data": data}
    if isinstance(rename, dict):
        own["rename"] = {
            names.get(key, key) if isinstance(value, dict) else key: value
            for key, value in rename.items()
        }
    return own


def _output(document: Document, donor: str | None, faults: Faults) -> Any:
    """The output, in the format that is said, with config and tokenizer of a base that is no
    model of the merge.
    """
    output = document.own.get("output", {})
    if not isinstance(output, dict):
        return output
    words = document.words
    dtype = words.get("out_dtype") or words.get("dtype")
    if dtype is not None and output.get("dtype") is not None:
        faults.add(document.line, "dtype and output: dtype are both given", "keep one: out_dtype")
    if dtype is not None:
        for key in ("dtype", "out_dtype"):
            try:
                parse_float_dtype(words.get(key, "float32"))
            except ParameterError as error:
                faults.add(document.line, f"{key}: {error.problem}", str(error.remedy))
        output = {**output, "dtype": dtype}
    if donor is not None and "donor" not in output:
        output = {**output, "donor": donor if lexists(donor) else donor.partition("+")[0]}
    return output


def _in_order(recipes: Sequence[Recipe], source: str) -> list[Recipe]:
    """The recipes, each after those whose results it reads; ParameterError for a circle.

    One without a name makes what is written in the end.
    """
    names = {recipe.name for recipe in recipes if recipe.name}
    waiting = sorted(recipes, key=lambda recipe: recipe.name is None)
    done: list[Recipe] = []
    while waiting:
        made = {recipe.name for recipe in done}
        ready = next(
            (r for r in waiting if (names & {*r.models.values()}) - {r.name} <= made), None
        )
        if ready is None:
            shown = ", ".join(str(recipe.name) for recipe in waiting)
            raise ParameterError(
                f"the documents {shown} read each other's results",
                source=source,
                remedy="name a path in one of them",
            )
        waiting.remove(ready)
        done.append(ready)
    return done
