"""Licences of models: which of several is the strictest, and what a reader should know of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from magmerge.core.errors import shortened

TABLE = Path(__file__).with_name("licences.yaml")
OTHER, UNKNOWN = "other", "unknown"
NAME = re.compile(r"[^a-z0-9.+-]+")
"""What the name of a licence has not."""


class Licence(NamedTuple):
    """A model's licence: the hub's name of it, or `other` with a name of its own and a link; None
    where the model tells none.
    """

    model: str
    id: str | None = None
    name: str | None = None
    link: str | None = None

    @property
    def called(self) -> str:
        """Its own name."""
        return self.name or self.id or UNKNOWN


class JointLicence(NamedTuple):
    """The licence of what is made of several models, as a card's metadata have it, and what has to
    be known of it.
    """

    metadata: Mapping[str, str]
    notes: tuple[str, ...]


def licence_of(model: str, value: object, name: object = None, link: object = None) -> Licence:
    """The licence that a card's metadata tell. One that the table has not is `other`."""
    text = str(value).strip().lower() if isinstance(value, str) else ""
    text = _table()["aliases"].get(text, text)
    if not text or text == UNKNOWN:
        return Licence(model)
    web = link if isinstance(link, str) and re.fullmatch(r"https://[\w./%#?=&+-]+", link) else None
    if text in _places() and text != OTHER:
        return Licence(model, text)
    own = name if isinstance(name, str) else text
    return Licence(model, OTHER, NAME.sub("-", own.lower())[:60].strip("-") or OTHER, web)


def licence_in(model: str, text: str) -> Licence:
    """The licence whose text this is, or begins like it; `other` for one that is not known."""
    plain = " ".join(text.lower().split())
    for entry in _table()["texts"]:
        if all(phrase in plain for phrase in entry["phrases"]):
            return Licence(model, entry["id"])
    return Licence(model, OTHER, "license-file")


def joined(licences: Sequence[Licence]) -> JointLicence:
    """The licence of a merge of these models.

    One that binds goes before those that do not; several of which none covers the others hold
    together, under a name of both. Where a model tells none, and no other's binds, it is unknown;
    where none tells any, nothing is said.
    """
    told = [licence for licence in licences if licence.id is not None]
    if not told:
        return JointLicence({}, ())
    silent = [licence.model for licence in licences if licence.id is None]
    binding = _uncovered(told)
    notes = [_unknown(silent)] if silent else []
    notes += _notes(told, binding)
    if len(binding) > 1:
        names = list(dict.fromkeys(licence.called for licence in binding))
        return JointLicence({"license": OTHER, "license_name": "-and-".join(names)}, tuple(notes))
    if not binding and silent:
        return JointLicence({"license": UNKNOWN}, tuple(notes))
    first = binding[0] if binding else max(told, key=lambda one: _places()[one.id or OTHER])
    more = {"license_name": first.name, "license_link": first.link}
    metadata = {"license": first.id or OTHER, **{k: v for k, v in more.items() if v is not None}}
    return JointLicence(metadata, tuple(notes))


def _uncovered(told: Sequence[Licence]) -> list[Licence]:
    """One of each licence that binds, the strictest last, but for those that another covers."""
    groups = {licence.called: _group(licence) for licence in told}
    covered = {name for group in groups.values() for name in group.get("covers", ())}
    binding = {
        licence.called: licence
        for licence in sorted(told, key=lambda one: _places()[one.id or OTHER])
        if groups[licence.called].get("binds") and groups[licence.called]["name"] not in covered
    }
    return list(binding.values())


def _notes(told: Sequence[Licence], binding: Sequence[Licence]) -> list[str]:
    """What each licence that binds asks, and that several do."""
    notes, besides = [], _table()["besides"]
    for licence in binding:
        models = [one.model for one in told if one.called == licence.called]
        others = [one for one in told if one.called != licence.called]
        asks = [_group(licence)["asks"]] if others or licence.id == OTHER else []
        if _group(licence)["name"] == "no changes":
            asks = [_group(licence)["asks"]]
        asks += [besides[licence.id]] if licence.id in besides else []
        if asks:
            also = f", and holds for the result beside {_models(others)}" if others else ""
            whose = f"the licence {licence.called} of {shortened(models)}"
            notes.append(f"{whose} {'; it '.join(asks)}{also}")
    if len(binding) > 1:
        names = " and ".join(licence.called for licence in binding)
        notes.append(f"the licences {names} may not go together: read both before you give it on")
    return notes


def _models(licences: Sequence[Licence]) -> str:
    return shortened([f"{one.called} ({one.model})" for one in licences])


def _unknown(models: Sequence[str]) -> str:
    return (
        f"no licence is told by {shortened(models)}: ask for it before you give the result on (a "
        "model's folder tells it in its README.md: license: apache-2.0)"
    )


def _group(licence: Licence) -> Mapping[str, Any]:
    return next(g for g in _table()["groups"] if (licence.id or OTHER) in g["ids"])


@cache
def _table() -> Mapping[str, Any]:
    reader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content: Mapping[str, Any] = yaml.load(TABLE.read_text(encoding="utf-8"), reader)
    return content


@cache
def _places() -> Mapping[str, int]:
    """Each licence's place in the order of what they ask."""
    ids = [name for group in _table()["groups"] for name in group["ids"]]
    return {name: place for place, name in enumerate(ids)}
