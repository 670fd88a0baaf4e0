"""Whose tokens a result has: one model's, or those of all, and what is said of single ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from magmerge.checkpoints.tokens import alignment as aligned
from magmerge.checkpoints.tokens.alignment import Alignment, AmbiguousRowsError
from magmerge.checkpoints.tokens.members import Member, Share
from magmerge.checkpoints.tokens.rows import ABSENT
from magmerge.core.errors import (
    Fault,
    ParameterError,
    StructureError,
    UnknownNameError,
    shortened,
    suggestion,
)
from magmerge.core.recipe import Recipe, TokenSource

BASE, UNION = "base", "union"
"""What a recipe calls the model that the result is like, and the tokens of all."""
MERGE_FIRST = (
    "merge the adapter into its base first (magmerge merge --base BASE --expert ADAPTER --method "
    "average OUT), put its tokenizer there, and give OUT in its place"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Whose vocabulary the result has (None: all models'), its alignment, and what is said of
    single tokens.
    """

    owner: int | None
    alignment: Alignment
    shares: Sequence[Share] = ()


def choose(recipe: Recipe, members: Sequence[Member]) -> Choice:
    """The result's vocabulary.

    StructureError where the vocabularies cannot be put together, UnknownNameError for a model or
    token that nobody has, ParameterError for a source that means nothing.
    """
    tables = [member.table for member in members]
    owner = _owner(recipe, members)
    try:
        alignment = aligned.align(tables, owner)
    except AmbiguousRowsError as error:
        raise StructureError(
            [
                Fault(
                    f"{error.model} has no tokenizer file, and the tokenizers of {error.first} and "
                    f"{error.second} differ: nothing tells which tokens its rows are",
                    f"put the tokenizer files of {error.model} into its folder",
                )
            ]
        ) from error
    held = set(alignment.texts)
    more = [text for text in recipe.tokens if text not in held]
    if more:
        alignment = aligned.align(tables, owner, more)
    if owner is None and _loose(recipe, members, tokenizer_of(members, None), alignment):
        owner = _widest(recipe, members, alignment)
        alignment = aligned.align(tables, owner, more)
    shares = [_share(text, source, members, alignment) for text, source in recipe.tokens.items()]
    if recipe.pad_to_multiple_of:
        alignment = aligned.padded(alignment, recipe.pad_to_multiple_of)
    return Choice(owner, alignment, shares)


def _owner(recipe: Recipe, members: Sequence[Member]) -> int | None:
    """The place of the model whose vocabulary the result has; None for that of all."""
    if members[0].is_merged:
        return 0
    if recipe.tokenizer in (None, UNION):
        return None
    return _place(recipe.tokenizer, members, "tokenizer", [UNION])


def _place(name: object, members: Sequence[Member], key: str, more: Sequence[str] = ()) -> int:
    """The place of a model by its name: base (the first expert, without one), or an expert's."""
    if name == BASE:
        return 0
    names = [member.name for member in members]
    if name not in names:
        raise UnknownNameError(
            f"{key} {name!r} is none of this recipe's models",
            remedy=suggestion(name, dict.fromkeys((*more, BASE, *names))),
        )
    return names.index(str(name))


def _share(text: str, said: TokenSource, members: Sequence[Member], alignment: Alignment) -> Share:
    """The row that is said for a token."""
    place, source = list(alignment.texts).index(text), said.source
    if isinstance(source, dict) and source.get("kind") == "zero" and len(source) == 1:
        return Share(place, None, 0, said.force)
    if isinstance(source, dict):
        _check_source(text, source)
    name = source["model"] if isinstance(source, dict) else source
    member = members[at := _place(name, members, f"tokens.{text}.source")]
    row = int(alignment.rows[at][place])
    if isinstance(source, dict):
        row = _row_named(source, member)
    if not 0 <= row < min(member.counts.values(), default=0):
        raise UnknownNameError(
            f"tokens.{text}.source: {member.name} has no row of this token",
            remedy="name a model that has it, or {kind: model_token, model: NAME, token: TEXT} for "
            "the row of another token",
        )
    if member.reader is None:
        raise ParameterError(
            f"tokens.{text}.source: {member.name} is an adapter, which has no rows of its own",
            remedy=MERGE_FIRST,
        )
    return Share(place, member.reader, row, said.force)


def _check_source(text: str, source: Mapping[str, Any]) -> None:
    keys = set(source) - {"kind", "model"}
    if (
        source.get("kind") != "model_token"
        or keys not in ({"token"}, {"token_id"})
        or "model" not in source
        or type(source.get("token_id", 0)) is not int
    ):
        raise ParameterError(
            f"tokens.{text}.source: {dict(source)} is no source of a row",
            remedy="write a model's name, {kind: zero}, or {kind: model_token, model: NAME, token: "
            "TEXT} (or token_id: NUMBER)",
        )


def _row_named(source: Mapping[str, Any], member: Member) -> int:
    """The row that {kind: model_token, ...} names."""
    ids = {} if member.vocabulary is None else member.vocabulary.ids
    return int(
        source["token_id"] if "token_id" in source else ids.get(str(source["token"]), ABSENT)
    )


def tokenizer_of(members: Sequence[Member], owner: int | None) -> Member:
    """The model whose tokenizer files the result has: the owner, else the first that has some."""
    if owner is not None:
        return members[owner]
    return next((member for member in members if member.vocabulary is not None), members[0])


def new_tokens(member: Member, alignment: Alignment) -> dict[str, int]:
    """The result's tokens that a model's tokenizer has not, or has under other ids."""
    ids = {} if member.vocabulary is None else member.vocabulary.ids
    texts = {text: place for place, text in enumerate(alignment.texts) if text is not None}
    return {text: place for text, place in texts.items() if ids.get(text) != place}


def _loose(
    recipe: Recipe, members: Sequence[Member], owner: Member, alignment: Alignment
) -> list[str]:
    """Tokens that no tokenizer can be told by adding them: texts are split into them by rules."""
    added = {*recipe.tokens}
    for member in members:
        added |= set(() if member.vocabulary is None else member.vocabulary.added)
    ids = {} if owner.vocabulary is None else owner.vocabulary.ids
    return [text for text in new_tokens(owner, alignment) if text not in added or text in ids]


def _widest(recipe: Recipe, members: Sequence[Member], union: Alignment) -> int:
    """The model whose tokenizer has the tokens of all; StructureError where none has."""
    tables = [member.table for member in members]
    for place, member in enumerate(members):
        if member.vocabulary is None:
            continue
        own = aligned.align(tables, place)
        if not any(own.lost) and not any(own.cut):
            return place
    first = tokenizer_of(members, None)
    loose = _loose(recipe, members, first, union)
    names = " or ".join(f"--tokenizer {member.name}" for member in members if member.vocabulary)
    raise StructureError(
        [
            Fault(
                f"the tokenizer of {first.name} has not {len(loose)} tokens that others split "
                f"texts into: {shortened(loose)}; no tokenizer can be made that has all",
                f"name the model whose tokens the result should have: {names} (tokenizer=)",
            )
        ]
    )
