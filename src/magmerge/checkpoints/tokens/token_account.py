"""Where the rows of a result's tokens are from, in a compact form, and in a line or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magmerge.checkpoints.tokens.alignment import patterns
from magmerge.checkpoints.tokens.choice import UNION, Choice
from magmerge.checkpoints.tokens.members import Member
from magmerge.checkpoints.tokens.rows import runs
from magmerge.core.errors import shortened

TOLD = 3
"""Groups of tokens that a line tells."""


def account_of(
    choice: Choice, members: Sequence[Member], presence: Mapping[str, Sequence[NDArray[np.bool_]]]
) -> dict[str, Any]:
    """Whose tokens the result has, how many rows, and each token that is not plainly in all models:
    which have it, and which tokens of a model are lost.
    """
    alignment = choice.alignment
    names = [member.name for member in members if not member.is_merged]
    whole = [p for p in presence.values() if len(p) == len(names) and len(p[0]) == alignment.count]
    forced = [share.place for share in choice.shares if share.force]
    seen = [own.copy() for own in whole[0]] if whole else []
    for own in seen:
        # Where such a row is from is told by itself.
        own[forced] = True
    groups = _groups(seen, names, alignment.texts) if whole else []
    lost = {
        member.name: {"tokens": list(texts), "rows": rows}
        for member, texts, rows in zip(members, alignment.lost, alignment.cut, strict=True)
        if texts or rows
    }
    shares = {alignment.texts[share.place]: share.force for share in choice.shares}
    owner = UNION if choice.owner is None else members[choice.owner].name
    said = {"sources": shares} if shares else {}
    return {"tokenizer": owner, "rows": alignment.count, "groups": groups, "lost": lost, **said}


def notes_of(
    choice: Choice, members: Sequence[Member], account: Mapping[str, Any]
) -> tuple[str, ...]:
    """The same for a reader: what was assumed, who has which tokens, and what is lost."""
    notes = [
        f"{name} has no tokenizer file: its rows are taken for the first tokens of {other}"
        for name, other in choice.alignment.assumed.items()
    ]
    if all(member.vocabulary is None for member in members):
        counts = ", ".join(f"{member.name} {member.table.count}" for member in members)
        notes.append(f"no tokenizer file tells whose rows of tokens are which ({counts}): they are "
                     "matched by their places")  # fmt: skip
    groups = account["groups"]
    told = [_spoken(group) for group in groups[:TOLD]]
    more = [f"and {len(groups) - TOLD} more groups in magmerge.json"] if len(groups) > TOLD else []
    head = f"the result has {account['rows']} rows of tokens (tokenizer: {account['tokenizer']})"
    sources = [str(text) for text in account.get("sources", {})]
    rows = [f"of the recipe's choice: {shortened(sources)}"] if sources else []
    notes.append("; ".join([head, *told, *more, *rows]))
    for member in members if not members[0].is_merged else ():
        lost = account["lost"].get(member.name, {"tokens": [], "rows": 0})
        count = lost["rows"] + len(lost["tokens"])
        added = set(() if member.vocabulary is None else member.vocabulary.added)
        # What is no added token may be in no tokenizer but this one.
        keeps = UNION if added.issuperset(lost["tokens"]) else member.name
        if count:
            notes.append(
                f"{count} rows of {member.name} are dropped, the result's vocabulary has not these "
                f"tokens{': ' if lost['tokens'] else ''}{shortened(lost['tokens'])}; to keep them: "
                f"--tokenizer {keeps} (tokenizer=)"
            )
    return tuple(notes)


def _groups(
    presence: Sequence[NDArray[np.bool_]], names: Sequence[str], texts: Sequence[str | None]
) -> list[dict[str, Any]]:
    """The tokens that not all models have, by the models that have them."""
    firsts, group = patterns(presence)
    bare_rows = np.fromiter((text is None for text in texts), bool, len(texts))
    found = []
    for number, first in enumerate(firsts.tolist()):
        has = [bool(model[first]) for model in presence]
        if all(has):
            continue
        inside = group == number
        here = [texts[place] for place in np.flatnonzero(inside).tolist()]
        named = [text for text in here if text is not None]
        bare = inside & bare_rows
        entry: dict[str, Any] = {
            "models": [name for name, own in zip(names, has, strict=True) if own],
            "count": int(inside.sum()),
        }
        entry |= {"tokens": named} if named else {}
        entry |= {"rows": [_range(r) for r in runs(bare)]} if bare.any() else {}
        found.append(entry)
    return found


def _range(rows: range) -> str:
    return str(rows.start) if len(rows) == 1 else f"{rows.start}-{rows.stop - 1}"


def _spoken(group: Mapping[str, Any]) -> str:
    names = [*group.get("tokens", []), *(f"row {rows}" for rows in group.get("rows", []))]
    who = " and ".join(group["models"]) or "no model"
    return f"{group['count']} only in {who}: {shortened(names)}"
