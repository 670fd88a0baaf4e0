"""The models of a job with one vocabulary: rows of tokens are matched by their texts.

The result has every token that any model has, unless the recipe names whose it has: nothing that
an expert learnt is dropped unsaid, and no row is mixed with that of another token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magmerge.checkpoints.experts import FullExpert
from magmerge.checkpoints.kinds import kinds_of, read_config, read_model_config
from magmerge.checkpoints.tokens.choice import (
    BASE,
    Choice,
    choose,
    new_tokens,
    tokenizer_of,
)
from magmerge.checkpoints.tokens.experts import AdapterOnRows
from magmerge.checkpoints.tokens.members import (
    MERGED,
    Member,
    expert_member,
    is_identity,
    member_of,
    permuted,
)
from magmerge.checkpoints.tokens.row_maps import (
    LAYOUT,
    Maps,
    check_adapters,
    is_plain,
    presence,
    row_maps,
    row_orders,
)
from magmerge.checkpoints.tokens.rows import GatheredRows, RowMap, Rows
from magmerge.checkpoints.tokens.token_account import account_of, notes_of
from magmerge.checkpoints.tokens.token_tensors import token_tensors, vocab_sizes
from magmerge.checkpoints.tokens.tokenizer_files import taken_from, token_ids, with_tokens
from magmerge.core.errors import Fault, ParameterError, StructureError
from magmerge.core.filters import matches
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.recipe import ModelOutput, Recipe
from magmerge.core.types import Kind
from magmerge.engine.job import Models


def on_one_vocabulary(recipe: Recipe, models: Models) -> Models:
    """The models, their token tensors in the rows of the result's vocabulary, and what follows for
    its config and tokenizer files. The same object where all rows are the same already.

    StructureError for vocabularies that cannot be put together, UnknownNameError for a model or
    token that nobody has.
    """
    said = bool(recipe.tokenizer or recipe.tokens or recipe.pad_to_multiple_of)
    config = read_model_config(models.layout)
    tensors = token_tensors(models.layout, config)
    if not said and all(matches(name, recipe.ignore) for name in tensors):
        return models
    _check_sayable(recipe, models, tensors)
    members = _members(models, tensors)
    choice = choose(recipe, members)
    if not said and is_plain(members, choice.alignment):
        return models
    _check_run(recipe, members, choice)
    maps = row_maps(recipe, members, choice)
    check_adapters(members, maps)
    orders = {} if models.merged is not None else row_orders(members, maps)
    account = account_of(choice, members, presence(members, maps))
    kinds = kinds_of(models.layout, config)
    kinds = {name: kinds[name] for name in tensors}
    rows = _Rows(members, maps, orders, kinds)
    settings, texts = _files(recipe, models, members, choice)
    seen = rows.of(models, notes_of(choice, members, account))
    return replace(seen, settings=settings, texts=texts, tokens=account)


def _check_sayable(recipe: Recipe, models: Models, tensors: Mapping[str, int]) -> None:
    if not tensors:
        raise ParameterError(
            "tokenizer and tokens speak of rows of tokens, and no tensor of this model has such",
            source=models.layout.source,
            remedy="drop them (--tokenizer, tokenizer=)",
        )
    if models.merged is not None and (recipe.tokenizer or recipe.tokens):
        raise ParameterError(
            "a calibrated model keeps its own tokens",
            source=models.merged.source,
            remedy="drop tokenizer and tokens",
        )


def _check_run(recipe: Recipe, members: Sequence[Member], choice: Choice) -> None:
    """StructureError where a calibration would run a model that its config does not tell yet."""
    same = choice.owner in (None, 0) and choice.alignment.count == members[0].table.count
    if recipe.samples is not None and recipe.merged is None and not same:
        text = (
            "a calibration from samples runs the merged model, and its tokens are not those of "
            f"{members[0].name}: no config and tokenizer of it are there yet"
        )
        remedy = (
            "merge into a folder without this calibration first, then calibrate that: magmerge "
            "calibrate MERGED OUT; or keep the base's tokens: --tokenizer base (tokenizer=)"
        )
        raise StructureError([Fault(text, remedy)])


def _members(models: Models, tensors: Mapping[str, int]) -> list[Member]:
    """The merged model, the base and the experts; the first is the layout."""
    whole = [(MERGED, models.merged), (BASE, models.base)]
    members = [member_of(role, m, tensors, votes=False) for role, m in whole if m is not None]
    base = members[-1] if members else None
    for expert in models.experts:
        members.append(expert_member(expert, tensors, base))
    return members


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the models are seen with: maps of rows, their order, and the kinds of these tensors."""

    members: Sequence[Member]
    maps: Maps
    orders: Mapping[str, Rows]
    kinds: Mapping[str, Kind]

    def of(self, models: Models, notes: Sequence[str]) -> Models:
        """The models with these rows; `notes` are the layout's."""
        layout = self._view(LAYOUT, models.layout, notes, self.orders)
        base = models.base
        if base is not None:
            base = layout if base is models.layout else self._view(1, base)
        experts = list(models.experts)
        first = len(self.members) - len(experts)
        return replace(
            models,
            layout=layout,
            base=base,
            merged=None if models.merged is None else layout,
            experts=[self._expert(first + k, expert) for k, expert in enumerate(experts)],
        )

    def _expert(self, place: int, expert: Expert) -> Expert:
        if expert.whole is not None:
            return FullExpert(expert.name, self._view(place, expert.whole))
        rows = self._rows(place)
        return AdapterOnRows(expert, rows) if rows else expert

    def _view(
        self,
        place: int,
        checkpoint: Checkpoint,
        notes: Sequence[str] = (),
        orders: Mapping[str, Rows] | None = None,
    ) -> GatheredRows:
        rows = self._rows(place)
        return GatheredRows(checkpoint, rows, kinds=self.kinds, order=orders or {}, notes=notes)

    def _rows(self, place: int) -> dict[str, RowMap]:
        """The model's rows where they are not its own as they are."""
        ordered = {
            name: permuted(rows[place], self.orders[name]) if name in self.orders else rows[place]
            for name, rows in self.maps.items()
            if place in rows
        }
        counts = self.members[max(place, 0)].counts
        return {n: rows for n, rows in ordered.items() if not is_identity(rows, counts[n])}


def _files(
    recipe: Recipe, models: Models, members: Sequence[Member], choice: Choice
) -> tuple[dict[str, Any], dict[str, bytes | None]]:
    """What the donor's config.json and tokenizer files become."""
    told = recipe.output.donor if isinstance(recipe.output, ModelOutput) else None
    donor = models.layout.folder if told is None else Path(told)
    if donor is None or not donor.is_dir():
        return {}, {}
    sizes = vocab_sizes(read_config(donor))
    homes = [member for member in members if member.folder == donor]
    before = homes[0].table.count if homes else members[0].table.count
    count = choice.alignment.count
    settings: dict[str, Any] = {path: count for path, size in sizes if size in (before, count)}
    owner = tokenizer_of(members, choice.owner)
    texts: dict[str, bytes | None] = {}
    if owner.folder is None:
        return settings, {}
    if owner.folder != donor:
        settings |= token_ids(owner.folder, donor)
        texts |= taken_from(owner.folder, donor)
    new = new_tokens(owner, choice.alignment)
    if new and owner.vocabulary is not None:
        told_of: dict[str, Any] = {}
        for member in reversed(members):
            told_of |= {} if member.vocabulary is None else member.vocabulary.added
        texts |= with_tokens(owner.folder, owner.vocabulary, new, told_of)
    return settings, texts
