"""Tasks of causal language models: log-probabilities of tokens given those before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from magmerge.core.errors import MagmergeError
from magmerge.data.rows import DataError, Inputs
from magmerge.evaluation.runner import Batch, forward

BATCH = 32
LOGITS = 1 << 25
"""Logits that one call may make, so that memory is bounded however large the vocabulary."""


class TokenSpan(NamedTuple):
    """Tokens, of which those from place `first` on are looked at."""

    tokens: tuple[int, ...]
    first: int


def _losses(pieces: Sequence[TokenSpan], module: nn.Module, inputs: Inputs) -> Tensor:
    """Summed negative log-probability in nats, and number of tokens: [pieces, 2]."""
    losses = [_loss(*pair) for pair in _logits(module, inputs, pieces)]
    counts = [len(piece.tokens) - piece.first for piece in pieces]
    return torch.tensor([losses, counts], dtype=torch.float64).T


def _best_next(
    pieces: Sequence[TokenSpan], choices: Sequence[Sequence[int]], module: nn.Module, inputs: Inputs
) -> Tensor:
    """Of choices of one token, which one call tells: the best, and how many: [rows, 2]."""
    rows = zip(_logits(module, inputs, pieces), choices, strict=True)
    best = [int(logits[-1, list(tokens)].float().argmax()) for (_, logits), tokens in rows]
    return torch.tensor([best, list(map(len, choices))]).T


def _best_piece(
    pieces: Sequence[TokenSpan], counts: Sequence[int], module: nn.Module, inputs: Inputs
) -> Tensor:
    """Of prompts with each of their choices, `counts` of a row: the same."""
    losses = torch.tensor([_loss(*pair) for pair in _logits(module, inputs, pieces)])
    best = [int(own.argmin()) for own in torch.split(losses, list(counts))]
    return torch.tensor([best, list(counts)]).T


def text_batches(tokenizer: Any, texts: Sequence[str], limit: int) -> tuple[Batch, ...]:
    """Texts as the tokenizer makes them, cut to `limit` tokens.

    The first token, be it a mark of the beginning or not, is given and not predicted; texts of one
    token are left out, and the rows are numbered without them.
    """
    tokens = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    pieces = [TokenSpan(tuple(text), 1) for text in tokens if len(text) > 1]

    def batch(rows: list[int]) -> Batch:
        return _batch(rows, [pieces[row] for row in rows], _losses)

    lengths = [len(piece.tokens) for piece in pieces]
    return tuple(_grouped(range(len(pieces)), lengths, len(tokenizer), batch))


def choice_batches(
    tokenizer: Any,
    texts: Sequence[str],
    choices: Sequence[Sequence[str]],
    limit: int,
    source: str,
) -> tuple[Batch, ...]:
    """Texts as prompts, each with its own choices; prompts too long lose their beginning."""
    tails = _continuations(tokenizer, texts, choices, source)
    prompts = [
        _fitting(prompt, limit - max(map(len, tails[row])), tokenizer, source)
        for row, prompt in enumerate(_tokens(tokenizer, texts))
    ]
    single = {row for row, parts in enumerate(tails) if all(len(tail) == 1 for tail in parts)}

    def following(rows: list[int]) -> Batch:
        # The logits at a prompt's last token are those of the token after it.
        pieces = [TokenSpan((*prompts[row], 0), len(prompts[row])) for row in rows]
        numbers = [[tail[0] for tail in tails[row]] for row in rows]
        return _batch(rows, pieces, _best_next, numbers)

    def whole(rows: list[int]) -> Batch:
        pieces = [
            TokenSpan((*prompts[row], *tail), len(prompts[row]))
            for row in rows
            for tail in tails[row]
        ]
        return _batch(rows, pieces, _best_piece, [len(tails[row]) for row in rows])

    words, longer = len(tokenizer), set(range(len(prompts))) - single
    short = [len(prompt) + 1 for prompt in prompts]
    long = [
        (len(prompt) + max(map(len, own))) * len(own)
        for prompt, own in zip(prompts, tails, strict=True)
    ]
    batches = _grouped(sorted(single), short, words, following)
    return (*batches, *_grouped(sorted(longer), long, words, whole))


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that something follows: without a mark of the end."""
    parts = tokenizer(list(texts), verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [text[:-1] if len(text) > 1 and text[-1] == end else text for text in parts]


def _continuations(
    tokenizer: Any, texts: Sequence[str], choices: Sequence[Sequence[str]], source: str
) -> list[list[list[int]]]:
    """Each row's choices in tokens: what they add to the prompt's tokens.

    Where a choice would merge with the prompt's last token, it is tokenised by itself.
    """
    alone = {}
    for choice in dict.fromkeys(choice for own in choices for choice in own):
        alone[choice] = tokenizer(choice, add_special_tokens=False)["input_ids"]
        if not alone[choice]:
            raise DataError(
                f"the choice {choice!r} has no token", source=source, remedy="give it letters"
            )
    pairs = [(row, choice) for row, own in enumerate(choices) for choice in own]
    wholes = _tokens(tokenizer, [texts[row] + choice for row, choice in pairs])
    prompts = _tokens(tokenizer, texts)
    parts: list[list[list[int]]] = [[] for _ in prompts]
    for (row, choice), whole in zip(pairs, wholes, strict=True):
        prompt = prompts[row]
        added = whole[len(prompt) :] if whole[: len(prompt)] == prompt else []
        parts[row].append(added or alone[choice])
    return parts


def _fitting(prompt: list[int], room: int, tokenizer: Any, source: str) -> tuple[int, ...]:
    """The prompt's end, with its mark of the beginning."""
    if room < 1:
        raise DataError(
            "max_length leaves no room for the choices", source=source, remedy="raise max_length"
        )
    if len(prompt) <= room:
        return tuple(prompt)
    marked = room > 1 and prompt[0] == tokenizer.bos_token_id
    return (prompt[0], *prompt[len(prompt) - room + 1 :]) if marked else tuple(prompt[-room:])


def _grouped(
    rows: Sequence[int], lengths: Sequence[int], words: int, batch: Callable[[list[int]], Batch]
) -> Iterator[Batch]:
    """Batches of rows of like length, the long ones first, that keep to LOGITS and BATCH."""
    group: list[int] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        longest = lengths[group[0]] if group else 0
        if group and (len(group) == BATCH or (len(group) + 1) * longest * words > LOGITS):
            yield batch(group)
            group = []
        group.append(row)
    if group:
        yield batch(group)


def _batch(rows: list[int], pieces: list[TokenSpan], measure: Any, *options: Any) -> Batch:
    return Batch(tuple(rows), partial(_inputs, pieces), partial(measure, pieces, *options))


def _inputs(pieces: Sequence[TokenSpan]) -> Inputs:
    """Tokens padded to one length, and the mask of those that are no padding."""
    length = max(len(piece.tokens) for piece in pieces) - 1
    # The last token predicts nothing that is asked for, so the module does not see it.
    ids = torch.zeros(len(pieces), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for line, piece in enumerate(pieces):
        seen = len(piece.tokens) - 1
        ids[line, :seen], mask[line, :seen] = torch.tensor(piece.tokens[:-1]), 1
    return Inputs((), {"input_ids": ids, "attention_mask": mask}, len(pieces))


def _logits(
    module: nn.Module, inputs: Inputs, pieces: Sequence[TokenSpan]
) -> Iterator[tuple[TokenSpan, Tensor]]:
    """For each piece the logits that predict its tokens from `first` on: [tokens, words]."""
    length = max(len(piece.tokens) for piece in pieces) - 1
    kwargs: dict[str, Any] = dict(inputs.kwargs)
    parameters = signature(module.forward).parameters
    if "use_cache" in parameters:
        kwargs["use_cache"] = False
    if "logits_to_keep" in parameters:
        kwargs["logits_to_keep"] = length - min(piece.first for piece in pieces) + 1
    output = forward(module, Inputs((), kwargs, len(pieces)))
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise MagmergeError(
            "the model gives no logits for each token",
            source=type(module).__name__,
            remedy="set model: {class: AutoModelForCausalLM}",
        )
    skipped = length - logits.shape[1]
    for line, piece in enumerate(pieces):
        yield piece, logits[line, piece.first - 1 - skipped : len(piece.tokens) - 1 - skipped]


def _loss(piece: TokenSpan, logits: Tensor) -> float:
    """Summed negative log-probability of the tokens from `first` on, in float32."""
    tokens = torch.tensor(piece.tokens[piece.first :], device=logits.device)
    return float(cross_entropy(logits.float(), tokens, reduction="sum"))
