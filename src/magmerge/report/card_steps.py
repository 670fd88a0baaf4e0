"""What a model card says of the method and the calibrators: their descriptions and sources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from magmerge.core.errors import UnknownNameError
from magmerge.core.registry import calibrators, methods
from magmerge.core.traits import Calibrator, Method
from magmerge.report.account import MergeAccount
from magmerge.report.markdown import inline
from magmerge.report.sentences import count_text

PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
SENTENCE = re.compile(r"(?<=[.])\s+(?=[A-Z])")
CODE = re.compile(r"`(\w+)`")
SENTENCES = 2
"""How many of a method's description follow its summary."""


def method_parts(account: MergeAccount) -> Iterator[str]:
    """What was done, each step in a few sentences with its source."""
    name = account.recipe.get("method")
    steps = [(str(name), registered(methods, name))] if name else []
    steps += [(step, registered(calibrators, step)) for step in calibrations_of(account)]
    if not steps:
        return
    yield "## How it was made"
    if any(isinstance(item, Method) and item.acts_on == "deltas" for _, item in steps):
        yield "A task vector D_k is what expert k has more than the base: W_k - W_base."
    for step, item in steps:
        yield f"**{inline(step)}**: {_explained(item)}"
    slices = account.recipe.get("slices")
    if isinstance(slices, list | tuple) and slices:
        number = count_text(len(slices), "slice")
        yield f"Its blocks are put together of {number}, told in the recipe."


def _explained(item: Method | Calibrator | None) -> str:
    """Summary and first sentences of a function's description, and its source."""
    if item is None:
        return "a step that the magmerge which wrote this card does not know."
    paragraphs = (item.fn.__doc__ or "").split("\n\n")
    rest = " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""
    more = SENTENCE.split(rest)[:SENTENCES] if rest else []
    text = _described(" ".join([f"{item.summary}.", *more]))
    return f"{text} Source: {_linked(item.source)}."


def _described(text: str) -> str:
    """A description with its names of parameters as code."""
    parts = CODE.split(text)
    return "".join(f"`{part}`" if place % 2 else _spaced(part) for place, part in enumerate(parts))


def _linked(source: str) -> str:
    parts = PAPER.split(source)
    return "".join(
        f"[arXiv:{part}](https://arxiv.org/abs/{part})" if place % 2 else _spaced(part)
        for place, part in enumerate(parts)
    )


def _spaced(text: str) -> str:
    """Plain text with the spaces at its ends."""
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before and ' '}{inline(text)}{after and ' '}" if text.strip() else before and " "


def calibrations_of(account: MergeAccount) -> list[str]:
    """The names of the calibrators, in their order."""
    steps = account.recipe.get("calibrate")
    named = steps if isinstance(steps, list | tuple) else ()
    return [str(step.get("method")) for step in named if isinstance(step, Mapping)]


def registered(registry: Any, name: object) -> Any:
    """The method or calibrator of this name; None where there is none here."""
    try:
        return registry.get(str(name))
    except UnknownNameError:
        return None
