"""Documents like magmerge.json, made up, and what a browser would make of a page."""

from __future__ import annotations

import math
import random
import re
from html.parser import HTMLParser
from typing import Any

EXPERTS = ("reviews", "spam", "glosses")
PARTS = ("attention.query", "attention.output", "mlp")
VOID = {"meta", "link", "br", "hr", "img", "input"}


def factor(name: str, free: float, *, sensitive: bool, experts: list[float]) -> dict[str, Any]:
    gated = min(free, 1.0) if sensitive else max(free, 1.0)
    return {"calibrator": name, "free": free, "gated": gated, "experts": experts}


def layer(name: str, factors: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A record as `types.LayerRecord` has it, with norms that agree with its factor."""
    xi = math.prod(one["gated"] for one in factors)
    record = {
        "name": name, "action": "merge", "kind": "matrix", "sensitive": False,
        "xi": xi, "xi_min": xi, "xi_max": xi,
        "xi_free": math.prod(one["free"] for one in factors),
        "norm_before": 0.5, "norm_after": 0.5 * xi, "cosine": 0.01,
        "calibrated_by": [one["calibrator"] for one in factors], "notes": [],
        "norm_experts": 1.25, "factors": factors,
    }  # fmt: skip
    return {**record, **more}


def document(blocks: int = 4, *, dsc: bool = True, seed: int = 0) -> dict[str, Any]:
    """A merge of three experts; in every block the second layer is sensitive."""
    draw = random.Random(seed)
    layers = [layer("embeddings.weight", [], kind="embedding", cosine=None, norm_experts=None)]
    sensitive = []
    for block in range(blocks):
        for place, part in enumerate(PARTS):
            name = f"encoder.layer.{block}.{part}"
            careful = place == 1
            sensitive += [name] if careful else []
            asked = [math.exp(draw.gauss(0.05, 0.2)) for _ in EXPERTS]
            fsc = factor("fsc", sum(asked) / len(asked), sensitive=careful, experts=asked)
            wsc = factor("wsc", math.exp(draw.gauss(0.1, 0.2)), sensitive=careful, experts=[])
            both = [wsc, fsc] if dsc else [wsc]
            grown = math.prod(one["gated"] for one in both)
            rows = {"xi_min": 0.9 * grown, "xi_max": 1.3 * grown, "sensitive": careful}
            layers.append(layer(f"{name}.weight", both, **rows))
            if dsc:
                layers.append(layer(f"{name}.bias", [fsc], kind="vector", sensitive=careful))
    calibrate = [{"method": name, "params": {}} for name in (("wsc", "fsc") if dsc else ("wsc",))]
    return {
        "magmerge": "0.1.0",
        "recipe": {
            "base": "/models/base", "experts": {name: f"/models/{name}" for name in EXPERTS},
            "merged": None, "method": "ties", "params": {"density": 0.2, "weights": None},
            "calibrate": calibrate, "gate": "on", "sensitive": sensitive, "skip": ["*.pooler.*"],
            "ignore": [], "dtype": None, "seed": 0,
            "sampling": {"data": {"reviews": "r.jsonl"}, "samples": 8, "model": None},
        },
        "recipe_digest": "6f12" * 16,
        "inputs": [
            {"role": "base", "source": "/models/base", "files": {"model.safetensors": "53aa" * 16}}
        ],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "warnings": ["the mean cosine of the experts' task vectors is 0.14"],
        "layers": layers,
        "uncovered": [{"layer": "encoder.experts", "reason": "its inputs cannot be seen"}],
    }  # fmt: skip


def evaluation(model: str, shift: float = 0.0, **more: Any) -> dict[str, Any]:
    """What `magmerge evaluate --json` prints for one model."""
    tasks = [
        {
            "task": name, "title": name.title(), "metric": "accuracy", "score": 0.8125 + shift,
            "low": 0.77 + shift, "high": 0.85 + shift, "count": 300, "expert": 0.9,
            "relative": (0.8125 + shift) / 0.9, "seconds": 1.5,
        }
        for name in EXPERTS
    ]  # fmt: skip
    mean = {"score": 0.8125 + shift, "relative": 0.9}
    found = {"magmerge": "0.1.0", "suite": "text", "split": "test", "model": model}
    return {**found, "tasks": tasks, "mean": mean, "seconds": 4.5, **more}


class Page(HTMLParser):
    """A page read strictly: `faults` lists what is not closed, doubled, or leads elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.open]
        ids = [attributes["id"] for _, attributes in self.seen if "id" in attributes]
        self.faults += [f"id {one} is doubled" for one in ids if ids.count(one) > 1]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str, **attributes: str) -> int:
        return sum(tag == name and attributes.items() <= found.items() for name, found in self.seen)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.seen.append((tag, attributes))
        if tag in ("script", "iframe", "object", "embed", "img", "a", "form", "base"):
            self.faults.append(f"<{tag}> is in the page")
        self.faults += [f"{key} would run" for key in attributes if key.startswith("on")]
        for key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            if not attributes.get(key, "#").startswith(("#", "data:")):
                self.faults.append(f"{key} leads to {attributes[key]}")
        for value in attributes.values():
            self.faults += [f"url({one})" for one in re.findall(r"url\((?!#)([^)]*)", value)]
