"""A document's parameters in the words of the method here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from magmerge.core.mergekit_dialect.document import Document, Settings
from magmerge.core.mergekit_dialect.method_table import DRAWING, EACH, ELECTING, Word
from magmerge.core.mergekit_dialect.nodes import Faults
from magmerge.core.mergekit_dialect.roles import Place, Roles
from magmerge.core.mergekit_dialect.rule_table import Rules, told
from magmerge.core.mergekit_dialect.settings import Choice, Lookup, Part, leaves, of_experts, spread

FALLBACK = {"t": 0.5}
"""What tensors get that no filter takes, of parameters without a default; else 1."""
ENERGY_FLOOR = 1e-6


class Parameters:
    """The method's parameters, and the rules that applied on the way to them."""

    def __init__(self, document: Document, roles: Roles, rules: Rules, faults: Faults) -> None:
        self._document, self._roles, self._rules, self._faults = document, roles, rules, faults
        self._lookup = Lookup(faults, patterns=rules == "better")
        self.notes: list[str] = []
        self._values = {
            name: self._each(name, word) if word.each else self._shared(name, word)
            for name, word in document.table.words.items()
        }

    def in_our_words(self) -> tuple[str, dict[str, Any]]:
        """The method's name here, and all its parameters."""
        document, values = self._document, self._values
        words = document.table.words
        method = document.table.name
        params = {
            word.name: values[name]
            for name, word in words.items()
            if word.name not in (None, "rescale")
        }
        if document.method == "ties":
            method, params = self._ties(params)
        if document.method in DRAWING:
            params["rescale"] = self._rescale(values["rescale"])
        elif document.method.startswith("breadcrumbs"):
            params["rescale"] = _word_for(values["rescale"], "l1")
        if method in ("dare", "dare_ties"):
            density = params.pop("density")
            params["p"] = _each_leaf(density, lambda share: round(1 - share, 12))
        if document.method in ELECTING:
            params["vote"] = self._vote(params["weights"])
        if document.method == "sce":
            params["energy_floor"] = 0.0 if self._rules == "better" else ENERGY_FLOOR
            self._note("energy")
        self._tell_the_rest()
        return method, params

    def _ties(self, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """TIES that trims each tensor by itself; where entries are counted as mergekit does, or
        what stays is rescaled, that is breadcrumbs' trim with nothing cut from above.
        """
        dense = all(share == 1 for share in leaves(params["density"]))
        scaled = any(leaves(self._values["rescale"]))
        if dense and not scaled:
            return "ties", {**params, "scope": "tensor"}
        if self._rules == "better" and not scaled:
            self._note("ties-count")
            return "ties", {**params, "scope": "tensor"}
        rescale = _word_for(self._values["rescale"], "l1")
        return "breadcrumbs_ties", {**params, "gamma": 0.0, "rescale": rescale}

    def _rescale(self, flag: Any) -> Any:
        """What mergekit's rescale means for random draws."""
        if any(share < 1 for share in leaves(self._values["density"])):
            self._note("draws")
            if any(leaves(flag)):
                self._note("rescale")
        return _word_for(flag, "inverse" if self._rules == "better" else "l1")

    def _vote(self, weights: Any) -> str:
        single = list(leaves(weights))
        if any(weight != single[0] for weight in single) and len(self._roles.experts) > 1:
            self._note("vote")
        return "plain" if self._rules == "better" else "weighted"

    def _tell_the_rest(self) -> None:
        """Notes that hold in both ways."""
        document, values = self._document, self._values
        seen = self._lookup.seen
        if seen["patterns"]:
            self._note("patterns", f" ({', '.join(sorted(seen['patterns']))})")
        if seen["rest"]:
            rest = ", ".join(f"{name} {FALLBACK.get(name, 1.0)}" for name in sorted(seen["rest"]))
            self._note("rest", f" ({rest})")
        said = {name for settings in self._all_settings() for name in settings}
        words = document.table.words
        idle = sorted(name for name in said if name not in words or words[name].name is None)
        if document.method == "task_arithmetic" and "rescale" in said:
            idle.append("rescale")
        sources = [s for place in self._roles.places for s in place.sources.values()]
        alone = {name for source in sources for name in source.settings if name in words}
        idle += [f"{name} of a single model" for name in sorted(alone - EACH)]
        if idle:
            self._note("no-effect", f" ({document.method}: {', '.join(dict.fromkeys(idle))})")
        weights = values.get("weight")
        signed = document.method in ELECTING and any(leaves(values["normalize"]))
        if signed and any(weight < 0 for weight in leaves(weights)):
            self._note("negative-weights")
        half = document.words.get("dtype", "").removeprefix("torch.") in ("float16", "bfloat16")
        if half and document.method != "passthrough":
            self._note("arithmetic")

    def _all_settings(self) -> list[Settings]:
        document = self._document
        own = [source.settings for place in self._roles.places for source in place.sources.values()]
        slices = [place.slice_.settings for place in self._roles.places]
        return [document.settings, *(m.settings for m in document.modules), *slices, *own]

    def _note(self, name: str, detail: str = "") -> None:
        self.notes += told(name, self._rules, detail)

    def _levels(self, place: Place, name: str | None) -> list[Settings]:
        """Where a parameter may stand, the nearest first; of a source by its name in the slice."""
        own = [] if name is None else [place.sources[name].settings]
        return [*own, place.slice_.settings, place.module.settings, self._document.settings]

    def _shared(self, name: str, word: Word) -> Any:
        """A parameter that all models have in common; passthrough's is that of its only model."""
        parts: list[Part] = []
        for place in self._roles.places:
            sole = next(iter(place.sources), None) if name == "scale" else None
            chain = self._chain(self._levels(place, sole), name, word, place)
            if place.turned:
                chain = [Choice(c.filter, _turned(c.value)) for c in chain]
            parts.append((place.region, chain))
        return spread(parts, regions=len(self._roles.places))

    def _each(self, name: str, word: Word) -> Any:
        """A parameter of each expert."""
        change = self._share if name == "density" else None
        values = []
        for expert in self._roles.experts:
            parts: list[Part] = [
                (place.region, self._chain(self._levels(place, expert), name, word, place, expert))
                for place in self._roles.places
                if expert in place.sources and expert != place.base
            ]
            values.append(spread(parts, change, regions=len(self._roles.places)) if parts else 1.0)
        return of_experts(values, weights=name == "weight")

    def _share(self, density: float) -> float:
        if density > 1:
            self._note("clipped")
        return min(density, 1.0)

    def _chain(
        self,
        levels: Sequence[Settings],
        name: str,
        word: Word,
        place: Place,
        expert: str | None = None,
    ) -> list[Choice]:
        fallback = FALLBACK.get(name, 1.0)
        chain = self._lookup.chain(levels, name, word, fallback)
        if chain is None:
            source = place.sources[expert] if expert is not None else None
            owner = f" of {source.model}" if source is not None else ""
            line = place.slice_.line if source is None else source.line
            where = "" if source is not None else "beside merge_method "
            remedy = f"write {where}parameters: {{{name}: {fallback}}}"
            if source is not None:
                remedy += ", at the model, or at the top for all of them"
            self._faults.add(line, f"{name}{owner} is missing", remedy)
            return [Choice(None, fallback)]
        if place.region.layers is None and word.kind is bool:
            for choice in chain:
                if isinstance(choice.value, list):
                    self._faults.add(
                        place.slice_.line,
                        f"{name} runs through the layers as true and false",
                        "write slices with layer_range, so that its layers can be told apart",
                    )
        return chain


def _turned(t: Any) -> Any:
    """t from the other model: 1 - t."""
    return [_turned(point) for point in t] if isinstance(t, list) else 1 - t


def _word_for(flag: Any, word: str) -> Any:
    """The way of rescaling that a flag stands for, whatever form it has."""
    return _each_leaf(flag, lambda value: word if value else "none")


def _each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
    """A parameter's value with each single value in it changed."""
    if isinstance(value, list):
        return [_each_leaf(part, change) for part in value]
    if isinstance(value, Mapping):
        key = "value" if "value" in value else "gradient"
        return {**value, key: _each_leaf(value[key], change)}
    return change(value)
