"""Look-up of methods and calibrators by name, and the list of all."""

from __future__ import annotations

from typing import Any

from magmerge.core import registry
from magmerge.core.traits import Calibrator, Method
from magmerge.core.validation import COMPOSED


def method(name: str) -> Method:
    """The merge method `name`: `method("ties").fn(deltas, density=0.2)` merges [K, *shape]."""
    return registry.methods.get(name)


def calibrator(name: str) -> Calibrator:
    """The calibrator `name`: `calibrator("wsc").fn(deltas, merged)` gives its factor."""
    return registry.calibrators.get(name)


def catalog() -> list[dict[str, Any]]:
    """Every method and calibrator, with parameters, defaults and source; DSC among them."""
    listed = [("method", item, registry.methods.aliases(item.name)) for item in registry.methods]
    items: list[tuple[str, Method | Calibrator, tuple[str, ...]]] = [*listed]
    items += [
        ("calibrator", item, registry.calibrators.aliases(item.name))
        for item in registry.calibrators
    ]
    entries = [
        {
            "kind": kind,
            "name": item.name,
            "aliases": list(aliases),
            "summary": item.summary,
            "source": item.source,
            "takes": _takes(item),
            "parameters": [
                {"name": p.name, "default": p.default, "meaning": p.meaning}
                for p in item.parameters
            ],
        }
        for kind, item, aliases in items
    ]
    return entries + [_composed(name, parts, entries) for name, parts in COMPOSED.items()]


def _composed(name: str, parts: tuple[str, ...], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Several calibrators in turn, as one entry."""
    members = [entry for part in parts for entry in entries if entry["name"] == part]
    return {
        "kind": "calibrator",
        "name": name,
        "aliases": [],
        "summary": f"{', then '.join(parts)}, each on the result of the one before it",
        "source": members[0]["source"].rpartition(",")[0] or members[0]["source"],
        "takes": "what each of them takes",
        "parameters": [
            {**parameter, "name": f"{entry['name']}.{parameter['name']}"}
            for entry in members
            for parameter in entry["parameters"]
        ],
    }


def _takes(item: Method | Calibrator) -> str:
    """What it needs besides experts, for a person."""
    if isinstance(item, Calibrator):
        kinds = ", ".join(sorted(item.acts_on))
        return f"layers: {kinds}" + ("; samples of each task" if item.needs == "inputs" else "")
    least, most = item.experts
    count = f"{least} or more experts"
    if least == most:
        count = f"exactly {least} expert{'s' if least > 1 else ''}"
    return f"{count}, {'with or without a base' if item.base_free else 'a base'}"
