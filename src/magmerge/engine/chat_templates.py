"""Whose template of chats a result has, or which one, and where it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from magmerge.checkpoints.donor import TEMPLATES, VOCABULARIES, companion_files
from magmerge.checkpoints.tokens.chat_template import (
    OPENINGS,
    Template,
    check_syntax,
    contents_of,
    lacks,
    named_templates,
    template_of,
    with_template,
)
from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
from magmerge.core.recipe import ModelOutput, Recipe
from magmerge.engine.job import Models

AUTO, BASE = "auto", "base"
NAME_ONE = "name one with --chat-template (chat_template=): "


def with_chat_template(recipe: Recipe, models: Models) -> Models:
    """The models, with the recipe's chat template among the texts of the result.

    ParameterError where the result has no tokenizer or a model that is named no template,
    UnknownNameError for a name of none.
    """
    assert recipe.chat_template is not None
    donor = _donor(recipe, models)
    contents = contents_of(donor, models.texts)
    if not any(name in contents for name in VOCABULARIES):
        raise ParameterError(
            "a chat template is asked for, and the result has no tokenizer",
            source=donor,
            remedy="drop --chat-template (chat_template=), or name a folder that has one with "
            "--donor (donor=)",
        )
    template, notes = _template(recipe, models)
    if template is None:
        return replace(models, notes=(*models.notes, *notes))
    text = template.text
    if not check_syntax(text):
        notes.append("the chat template was not checked: jinja2 is not installed")
    missing = lacks(contents, template.tokens)
    if missing:
        notes.append(
            f"the chat template {recipe.chat_template} writes {', '.join(missing)}, which the "
            f"tokenizer of {donor} has not, so that it is split up: take a model's tokens that has "
            "them with --tokenizer, or another template"
        )
    named = {n: models.texts.get(n, b"") for n in (*companion_files(donor), *models.texts)}
    if any(n.startswith(f"{TEMPLATES}/") and text is not None for n, text in named.items()):
        notes.append(f"the templates with names of their own ({TEMPLATES}) are kept as they are")
    texts = {**models.texts, **with_template(contents, text, donor)}
    texts = {n: own for n, own in texts.items() if own is not None or (donor / n).is_file()}
    return replace(models, texts=texts, notes=(*models.notes, *notes))


def _donor(recipe: Recipe, models: Models) -> Path:
    """The folder whose tokenizer the result has."""
    if not isinstance(recipe.output, ModelOutput) or models.union is not None:
        raise ParameterError(
            "a chat template is asked for, and an adapter has no tokenizer",
            remedy="drop --chat-template (chat_template=), or merge into a whole model with --base "
            "(base=)",
        )
    told = recipe.output.donor
    donor = models.layout.folder if told is None else Path(told)
    if donor is None:
        raise ParameterError(
            "a chat template is asked for, and the result has no tokenizer",
            source=models.layout.source,
            remedy="name a folder that has one with --donor (donor=), or drop --chat-template",
        )
    return donor


def _template(recipe: Recipe, models: Models) -> tuple[Template | None, list[str]]:
    """The template that is asked for, None for what the tokenizer has already; and what to say."""
    asked, folders = str(recipe.chat_template), _folders(models)
    if any(opening in asked for opening in OPENINGS):
        return Template(asked), []
    own = {name: template_of(contents_of(path, {}), path) for name, path in folders.items()}
    having = {name: text for name, text in own.items() if text is not None}
    if asked == AUTO:
        return _commonest(having, len(own))
    if asked == BASE or asked in recipe.experts:
        if asked not in having:
            others = [*having, *named_templates()]
            raise ParameterError(
                f"{asked} has no chat template", remedy=NAME_ONE + ", ".join(others)
            )
        return Template(having[asked]), []
    if asked not in named_templates():
        known = [*named_templates(), AUTO, BASE, *recipe.experts]
        raise UnknownNameError(
            f"there is no chat template {asked!r}",
            remedy=f"{suggestion(asked, known)} A text is known by its {{{{ or {{%",
        )
    return named_templates()[asked], []


def _folders(models: Models) -> dict[str, Path]:
    """The folder of the base and of each expert, where it has one."""
    folders = {} if models.base is None else {BASE: models.base.folder}
    for expert in models.experts:
        whole, files = expert.whole, expert.files
        parent = files[0].parent if files else None
        folders[expert.name] = parent if whole is None else whole.folder
    return {name: folder for name, folder in folders.items() if folder is not None}


def _commonest(having: Mapping[str, str], models: int) -> tuple[Template | None, list[str]]:
    """The template that most of the models have; where there is no such the base's, and that is
    said.
    """
    counts = Counter(having.values()).most_common()
    if not counts:
        return None, [f"chat template: none of {models} models has one, and so has the result none"]
    text, count = counts[0]
    owners = [name for name, own in having.items() if own == text]
    if len(counts) == 1 or count > counts[1][1]:
        return Template(text), [f"chat template: that of {', '.join(owners)} ({count} of {models})"]
    several = f"chat template: {', '.join(having)} have different ones, none more often than others"
    if BASE not in having:
        kept = "the result keeps what its tokenizer has"
        return None, [f"{several}, and the base none: {kept}; {NAME_ONE}{', '.join(having)}"]
    return Template(having[BASE]), [f"{several}: the base's is taken"]
