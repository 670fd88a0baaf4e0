"""Base, experts and merged model side by side on the same prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from magmerge.core.errors import CheckpointError, MagmergeError, MagmergeWarning, ParameterError
from magmerge.core.lazy import Tabular
from magmerge.core.machine import shown_progress
from magmerge.core.tables import Table
from magmerge.core.whole_file import check_free, write_whole
from magmerge.data.chat import asked, chat_texts
from magmerge.data.inputs import prepare
from magmerge.data.rows import (
    Calls,
    Chats,
    Images,
    Inputs,
    Rows,
    SampleDraw,
    Tensors,
    Texts,
)
from magmerge.data.sources import read_samples
from magmerge.data.tokens import open_tokenizer, positions
from magmerge.engine.opening import EXPERT, ROLES, experts_by_name
from magmerge.evaluation.entries import ModelEntry
from magmerge.evaluation.live_model import (
    Hardware,
    LiveModel,
    Measurable,
    evaluating,
    open_weights,
)
from magmerge.evaluation.runner import forward
from magmerge.live.verdict import predicts_tokens
from magmerge.report.side_by_side_page import side_by_side_page

PROMPTS = 20
"""Prompts that are looked at, if not said otherwise."""
TOKENS = 48
"""Tokens that a language model goes on for."""
Answerer = Callable[[nn.Module, Inputs], str]


@dataclass(frozen=True, slots=True)
class SideBySide(Tabular):
    """What each model makes of each prompt. `answers` are in the order of `models`: the base, the
    experts by name, and the merged model, which is the last. `owners` name the expert whose prompt
    each is, None: anybody's. An expert that is called base or merged is experts.base here.
    """

    tabled: ClassVar[str] = "magmerge.evaluation.side_by_side:side_by_side_table"
    models: tuple[str, ...]
    prompts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    owners: tuple[str | None, ...]

    def differs(self, row: int) -> tuple[str, ...]:
        """The experts whose answer to a prompt is another than the merged model's; of a prompt that
        is an expert's own that one alone.
        """
        own, answers = self.owners[row], dict(zip(self.models, self.answers[row], strict=True))
        asked = self.models[1:-1] if own is None else (own,)
        return tuple(name for name in asked if answers[name] != self.answers[row][-1])

    @property
    def text(self) -> str:
        """On how many prompts the merged model and each expert say the same."""
        told = []
        for name in self.models[1:-1]:
            rows = [n for n, own in enumerate(self.owners) if own in (None, name)]
            same = sum(name not in self.differs(n) for n in rows)
            told.append(f"{name} {same} of {len(rows)}")
        return f"the merged model answers as the expert does: {', '.join(told)}"

    def document(self) -> dict[str, Any]:
        """The same for a program to read."""
        return {
            "models": list(self.models),
            "text": self.text,
            "prompts": [
                {
                    "prompt": prompt,
                    "expert": self.owners[n],
                    "answers": dict(zip(self.models, self.answers[n], strict=True)),
                    "differs": list(self.differs(n)),
                }
                for n, prompt in enumerate(self.prompts)
            ],
        }

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as a page to read; OutputError where that exists, or cannot be made."""
        path = Path(out)
        check_free(path, overwrite=overwrite)
        write_whole(path, side_by_side_page(self.document()))
        return path


def side_by_side_table(found: SideBySide) -> Table:
    """A row for each prompt, a column for each model, and the experts that say something else."""
    rows = tuple(
        (prompt, *found.answers[n], ", ".join(found.differs(n)))
        for n, prompt in enumerate(found.prompts)
    )
    return Table(found.text, ("prompt", *found.models, "other than"), rows)


def compare(
    base: str | Path,
    experts: Sequence[Any] | Mapping[str, Any],
    merged: Measurable,
    *,
    prompts: str | Path | Sequence[str] | Mapping[str, Any],
    count: int = PROMPTS,
    tokens: int = TOKENS,
    text_field: str | None = None,
    **machine: Any,
) -> SideBySide:
    """Let base, experts and merged model answer the same prompts.

    `prompts` is a file of texts, conversations or images, a list of texts, or such by the name of
    the expert whose task they are; the first `count` of each are taken. A causal language model
    goes on greedily for at most `tokens` tokens, and no further than its positions; a classifier
    tells its label. `base` is a folder with config.json and tokenizer. Models run one after the
    other; `machine` are fields of `Hardware`. Raises MagmergeError's children.
    """
    members = experts_by_name(experts)
    sources = prompts if isinstance(prompts, Mapping) else {None: prompts}
    unknown = [str(name) for name in sources if name is not None and name not in members]
    if unknown or count < 1:
        problem = f"prompts are given for {unknown[0]!r}, which is no expert" if unknown else ""
        raise ParameterError(
            problem or f"{count} prompts", remedy=f"known: {', '.join(members)}; one prompt or more"
        )
    if not isinstance(tokens, int) or tokens < 1:
        raise ParameterError(
            f"{tokens} tokens to go on for", remedy="give --tokens (tokens=) one token or more"
        )
    folder = Path(base)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "there is no config.json, so it cannot be told what model this is", source=folder,
            remedy="give the base as a folder that transformers can load",
        )  # fmt: skip
    rows = {name: _rows(source, count, text_field) for name, source in sources.items()}
    labels = _labels([*members])
    names = [text for own in rows.values() for text in _texts(own)]
    owners = [name and labels[name] for name, own in rows.items() for _ in _texts(own)]
    calls = [call for own in rows.values() for call in _calls(own, folder)]
    experts_told = [(labels[name], model) for name, model in members.items()]
    models = [("base", base), *experts_told, ("merged", merged)]
    progress = machine.pop("progress", None) or shown_progress()
    hardware = Hardware(**machine, progress=progress)
    answers = _answers([model for _, model in models], calls, folder, tokens, hardware)
    told = tuple(label for label, _ in models)
    return SideBySide(told, tuple(names), tuple(zip(*answers, strict=True)), tuple(owners))


def _labels(names: Sequence[str]) -> dict[str, str]:
    """What each expert is called beside the base and the merged model: no two models alike."""
    labels = {}
    for name in names:
        label = name
        while label in ROLES or (label != name and label in names):
            label = f"{EXPERT}{label}"
        labels[name] = label
    return labels


def _answers(
    models: Sequence[Any], calls: Sequence[Inputs], folder: Path, tokens: int, hardware: Hardware
) -> list[list[str]]:
    """What each model, one after the other, answers to each call."""
    live, answers = LiveModel(ModelEntry.model_validate({}), folder), list[list[str]]()
    for number, model in enumerate(models):
        module = live.put(open_weights(model, folder), hardware)
        answer = _answerer(module, folder, tokens)
        if number == 0 and predicts_tokens(module):
            _check_lengths(calls, folder, tokens)
        with torch.inference_mode(), evaluating(module):
            answers.append([answer(module, call) for call in calls])
        hardware.tell("comparing", number + 1, len(models))
    return answers


def _check_lengths(calls: Sequence[Inputs], folder: Path, tokens: int) -> None:
    """ParameterError where a prompt has more tokens than the model has positions; a warning where
    answers end before `tokens`, because the positions do.
    """
    places, lengths = positions(folder), [call.kwargs["input_ids"].shape[1] for call in calls]
    if places is None or not lengths:
        return
    longest = max(lengths)
    if longest > places:
        raise ParameterError(
            f"prompt {lengths.index(longest) + 1} has {longest} tokens, and the model has "
            f"positions for {places}",
            source=folder,
            remedy="leave that prompt out, or shorten it",
        )
    short = sum(_room(length, places) < tokens for length in lengths)
    if short:
        warnings.warn(
            f"the model has positions for {places} tokens, so of {len(lengths)} "
            f"prompt{'' if len(lengths) == 1 else 's'} {short} cannot go on for {tokens}: the "
            "answers end where the positions do",
            MagmergeWarning,
            stacklevel=4,
        )


def _room(length: int, places: int) -> int:
    """Tokens that can follow so many; the last of them needs no position."""
    return places + 1 - length


def _rows(source: Any, count: int, field: str | None) -> Rows:
    """The first rows of a source, in its order."""
    rows = read_samples(source, SampleDraw("prompts", None, field=field, allow_test=True))
    content: Any = rows.content
    if isinstance(content, Tensors | Calls):
        raise ParameterError(
            "prompts are texts or images",
            source=rows.source,
            remedy="give a file of such, or name the column of texts (--text-field prompt)",
        )
    return Rows(rows.name, rows.source, replace(content, values=content.values[:count]))


def _calls(rows: Rows, folder: Path) -> list[Inputs]:
    """A call of the model for each prompt; of a conversation as far as the model is asked."""
    if not isinstance(rows.content, Chats):
        return prepare(rows, folder, batch=1)
    tokenizer = open_tokenizer(folder, rows.source)
    chats = [asked(chat) for chat in rows.content.values]
    texts = chat_texts(chats, tokenizer, rows.source, add_generation_prompt=True)
    return [
        Inputs((), dict(tokenizer(text, return_tensors="pt", add_special_tokens=False)), 1)
        for text in texts
    ]


def _texts(rows: Rows) -> list[str]:
    """What a table calls each prompt."""
    if isinstance(rows.content, Chats):
        return [str(asked(chat).messages[-1]["content"]) for chat in rows.content.values]
    assert isinstance(rows.content, Texts | Images)
    return [
        value if isinstance(value, str) else getattr(value, "name", None) or f"image {place}"
        for place, value in enumerate(rows.content.values, start=1)
    ]


def _answerer(module: nn.Module, folder: Path, tokens: int) -> Answerer:
    """How the module's answer to one prompt becomes a text."""
    if not predicts_tokens(module):
        return _label
    tokenizer = open_tokenizer(folder, "the prompts")
    ends = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends
    places = positions(folder)

    def continued(model: Any, call: Inputs) -> str:
        kwargs = {k: v for k, v in call.kwargs.items() if k in ("input_ids", "attention_mask")}
        place = next(model.parameters()).device
        length = kwargs["input_ids"].shape[1]
        most = tokens if places is None else min(tokens, _room(length, places))
        made = model.generate(
            **{name: tensor.to(place) for name, tensor in kwargs.items()},
            max_new_tokens=most, do_sample=False, num_beams=1, pad_token_id=padding,
        )  # fmt: skip
        text: str = tokenizer.decode(made[0, length:], skip_special_tokens=True)
        return text.strip()

    return continued


def _label(module: nn.Module, call: Inputs) -> str:
    """The label that a classifier finds the most likely."""
    output = forward(module, call)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise MagmergeError(
            "it neither goes on with texts nor tells classes, so there is nothing to compare",
            source=type(module).__name__,
            remedy="compare causal language models or classifiers, or measure with magmerge "
            "evaluate",
        )
    if logits.shape[1] == 1:
        return f"{float(logits[0, 0]):.3f}"
    number = int(logits[0].argmax())
    labels = getattr(getattr(module, "config", None), "id2label", None) or {}
    return str(labels.get(number, number))
