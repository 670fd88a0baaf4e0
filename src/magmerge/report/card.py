"""README.md of a result: its model card, a pure function of what magmerge.json tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from magmerge.checkpoints.model_facts import plausible
from magmerge.checkpoints.output.own_files import CARD, FACTORS, RECIPE, card_end
from magmerge.core.lazy import load
from magmerge.core.plain_yaml import PlainLoader, yaml_of
from magmerge.core.registry import calibrators
from magmerge.report.account import InputAccount, MergeAccount, modules_of, read_account
from magmerge.report.card_metadata import (
    licence_of_merge,
    metadata_of,
    name_of_model,
    relation_of,
)
from magmerge.report.card_names import CardNames, members_of
from magmerge.report.card_steps import calibrations_of, method_parts, registered
from magmerge.report.factors_picture import factors_picture, factors_text
from magmerge.report.markdown import fenced, inline, table
from magmerge.report.recipe_text import setting_text
from magmerge.report.sentences import count_text, digest_text, gate_text, list_text, name_of, short
from magmerge.report.verdict_text import by_model, lines_of

if TYPE_CHECKING:
    from magmerge.report.accuracy import ScoreTable

MAGIC = "2512.19320"
FILES = 4
"""Files of a model whose digests are shown."""
NAMED = 6
"""Experts that the first sentence names."""
CITATION = f"""@misc{{magic,
  title         = {{MAGIC}},
  year          = {{2025}},
  eprint        = {{{MAGIC}}},
  archivePrefix = {{arXiv}},
  url           = {{https://arxiv.org/abs/{MAGIC}}}
}}"""


def card_files(
    document: Mapping[str, Any],
    texts: Mapping[str, bytes],
    scores: Sequence[Mapping[str, Any]] = (),
) -> dict[str, bytes]:
    """The card of a result, and its picture where something was calibrated, by their names.

    `document` is the content of magmerge.json, `texts` the files beside the tensors, of which
    configs and the recipe are read; `scores` as in `page.render`. Equal input gives equal bytes.
    CheckpointError where the input is not what magmerge writes.
    """
    account = read_account(document)
    modules = modules_of(account.calibrated)
    picture = factors_picture(modules)
    metadata = yaml_of(metadata_of(account, texts), width=10**6)
    names = CardNames(account)
    told = relation_of(account, texts)
    parts = [
        f"# {_title(account, names)}",
        _opening(account, names, told),
        *_licence(account, names),
        *method_parts(account),
        *_models(account),
        *_verdict(account, names),
        *([_picture(account)] if picture else []),
        *_notes(account, names),
        *_evaluation(scores, names),
        *_recipe(account, texts, names),
        *_digests(account),
        *_citation(account),
    ]
    body = f"---\n{metadata}---\n\n" + "\n\n".join(parts) + "\n\n"
    text = body.encode("utf-8", "replace")
    files = {CARD: text + card_end(text)}
    return {**files, FACTORS: picture.encode()} if picture else files


def _title(account: MergeAccount, names: CardNames) -> str:
    recipe, steps = account.recipe, calibrations_of(account)
    experts = [inline(short(name, 40)) for name in account.experts]
    if recipe.get("merged"):
        head = inline(names.name(str(recipe["merged"])))
        return f"{head}, calibrated by {inline(' + '.join(steps))}" if steps else head
    if recipe.get("moe"):
        chosen = list(dict.fromkeys(experts))
        few = list_text(chosen) if len(chosen) <= NAMED else count_text(len(chosen), "expert")
        return f"{few}, a mixture of experts"
    if not recipe.get("method"):
        return " and ".join(inline(name_of_model(entry)) for entry in account.read[-1:]) or "Model"
    listed = (
        list_text(experts[:NAMED]) if len(experts) <= NAMED else count_text(len(experts), "expert")
    )
    by = inline(short(" + ".join([str(recipe["method"]), *steps])))
    return f"{listed}, merged by {by}"


def _opening(account: MergeAccount, names: CardNames, relation: str | None) -> str:
    """What it is, in a sentence."""
    recipe, steps = account.recipe, [name_of(name) for name in calibrations_of(account)]
    made = f"made with magmerge {inline(short(account.magmerge, 20))}"
    bases = [inline(name_of_model(entry)) for entry in account.read if entry.role == "base"]
    on = f" on {bases[0]}" if bases else ""
    count, what = count_text(len(account.experts), "expert"), "merge"
    if relation == "adapter":
        what = "LoRA adapter, a merge"
    steps_text = f", whose magnitude {list_text(steps)} then set layer by layer" if steps else ""
    if recipe.get("merged"):
        return (
            f"A merged model that existed already, {inline(names.name(str(recipe['merged'])))}"
            f"{steps_text}, in comparison with {count}{on}; {made}."
        )
    if isinstance(moe := recipe.get("moe"), Mapping):
        router, each = moe.get("router"), moe.get("experts_per_token")
        return (
            f"A mixture of {count}{on}: attention, norms and embeddings are the base's, the layers "
            f"between them the experts', of which {inline(str(each))} are taken for each token; "
            f"routers: {inline(str(router))}; {made}."
        )
    if not recipe.get("method"):
        source = list_text([inline(name_of_model(entry)) for entry in account.read])
        kind = "A LoRA adapter" if relation == "adapter" else "A model"
        return f"{kind}, written anew from {source}; {made}."
    return f"A {what} of {count}{on} by {inline(str(recipe['method']))}{steps_text}; {made}."


def _licence(account: MergeAccount, names: CardNames) -> Iterator[str]:
    joint = licence_of_merge(account)
    told = any(entry.facts.get("license") for entry in account.sources)
    if joint.notes:
        lines = [f"> - {inline(names.text(note))}" for note in joint.notes]
        yield "\n".join(["> [!WARNING]", "> Before you use it or give it on:", *lines])
    elif not told:
        yield "No licence is given: none of the models that it is made of tells one in its folder."


def _models(account: MergeAccount) -> Iterator[str]:
    """The models with what the method was told of each, and what it was told of all."""
    params = account.recipe.get("params")
    params = params if isinstance(params, Mapping) else {}
    members = members_of(account)
    each = {k: v for k, v in params.items() if _for_each(v, len(members))}
    rows = [
        [_model(entry), entry.role, *[""] * len(each), _licence_cell(entry)]
        for entry in account.read
        if entry.role != "expert"
    ]
    for place, (name, entry) in enumerate(members):
        own = [inline(setting_text(values[place])) for values in each.values()]
        licence = "" if entry is None else _licence_cell(entry)
        model = inline(name) if entry is None else _model(entry)
        rows.append([model, f"expert {inline(short(name, 40))}", *own, licence])
    if rows:
        yield table(["Model", "Role", *map(inline, map(str, each)), "Licence"], rows)
    told = [
        f"{inline(str(key))} {inline(setting_text(value))}"
        for key, value in params.items()
        if key not in each and value is not None
    ]
    if told:
        yield f"Parameters: {', '.join(told)}."


def _for_each(value: object, count: int) -> bool:
    """Whether a parameter has a value for each expert, and no values that vary by layer."""
    if not isinstance(value, list | tuple) or len(value) != count or not value:
        return False
    return not any(isinstance(entry, Mapping) and "value" in entry for entry in value)


def _model(entry: InputAccount) -> str:
    hub = plausible(entry.facts.get("id"))
    if hub is not None:
        return f"[{inline(hub)}](https://huggingface.co/{hub})"
    return inline(short(name_of_model(entry), 60))


def _licence_cell(entry: InputAccount) -> str:
    name, own = entry.facts.get("license"), entry.facts.get("license_name")
    return inline(str(own or name)) if name else "not told"


def _picture(account: MergeAccount) -> str:
    modules = modules_of(account.calibrated)
    text = factors_text(modules)
    return (
        f"## Calibration\n\n![{inline(text)}]({FACTORS})\n\n{inline(text)} "
        f"{inline(gate_text(account, modules))}"
    )


def _verdict(account: MergeAccount, names: CardNames) -> Iterator[str]:
    """Whether the calibration helped, and what each model came to."""
    if account.verdict is None:
        return
    yield "## Did it help?"
    yield " ".join(inline(names.text(line)) for line in lines_of(account.verdict))
    rows = by_model(account.verdict)
    if rows is not None:
        yield table(rows.columns, rows.rows)


def _notes(account: MergeAccount, names: CardNames) -> Iterator[str]:
    """What the run warned of, once."""
    licence = licence_of_merge(account).notes
    notes = [note for note in dict.fromkeys(account.warnings) if note not in licence]
    if account.uncovered:
        layers = count_text(len(account.uncovered), "layer")
        notes.append(f"the calibration could not measure {layers}, and left them as merged")
    if notes:
        yield "## Notes"
        yield "\n".join(f"- {inline(names.text(note))}" for note in notes)


def _evaluation(scores: Sequence[Mapping[str, Any]], names: CardNames) -> Iterator[str]:
    yield "## Evaluation"
    if not scores:
        yield (
            "Not evaluated yet. `magmerge evaluate OUT --suite suite.yaml --out scores.json` "
            "measures it, and `magmerge card OUT --scores scores.json --write` puts the scores "
            "here."
        )
        return
    for each in load("magmerge.report.accuracy:score_tables")(scores):
        yield inline(names.text(each.caption))
        yield _score_table(each, names)


def _score_table(scores: ScoreTable, names: CardNames) -> str:
    headings = [inline(names.text(heading.text)) for heading in scores.headings]
    rows = [
        [inline("; ".join(filter(None, [cell.text, *cell.notes]))) for cell in row]
        for row in scores.rows
    ]
    return table(headings, rows)


def _recipe(account: MergeAccount, texts: Mapping[str, bytes], names: CardNames) -> Iterator[str]:
    """The recipe, and the command that carries it out."""
    documents = _documents(texts) or [account.recipe]
    yield "## Recipe"
    yield fenced(yaml_of(*map(names.recipe, documents), width=100), "yaml")
    yield f"With the models under these names, `magmerge merge {RECIPE} OUT` makes it again."


def _documents(texts: Mapping[str, bytes]) -> list[Mapping[str, Any]]:
    """The documents of the recipe beside the result; none where they cannot be read."""
    try:
        text = texts.get(RECIPE, b"").decode()
        contents = list(yaml.load_all(text, PlainLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    return [content for content in contents if isinstance(content, Mapping)]


def _digests(account: MergeAccount) -> Iterator[str]:
    """The files that were read, each with the beginning of its digest."""
    rows = []
    for entry in account.sources:
        files = list(entry.files.items())
        for file, digest in files[:FILES]:
            code = digest_text(digest) or "not known"
            rows.append([inline(short(name_of_model(entry), 60)), inline(file), code])
        if len(files) > FILES:
            more = f"{len(files) - FILES} more files"
            rows.append([inline(short(name_of_model(entry), 60)), more, "see magmerge.json"])
    if rows:
        yield "## Files that it was made of"
        yield table(["Model", "File", "Digest (its beginning)"], rows)


def _citation(account: MergeAccount) -> Iterator[str]:
    """MAGIC, where a calibration of it was done."""
    items = [registered(calibrators, name) for name in calibrations_of(account)]
    if any(item is not None and MAGIC in item.source for item in items):
        yield "## Citation"
        yield fenced(CITATION, "bibtex")
