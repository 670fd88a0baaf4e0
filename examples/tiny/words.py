"""Generated texts whose words tell their class, and a tokenizer that knows all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magmerge.core.extras import needed
from magmerge.linalg.draws import derive_seed

WORDS = 400
LENGTH = 12
TELLING = 3
"""Words of a text that its class draws from a list of its own."""
OWN = 6
"""Words in that list."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROWS = {"train": 96, "test": 96}


def word(number: int) -> str:
    """The word of this number: letters only."""
    return "w" + "".join(chr(ord("a") + int(digit)) for digit in f"{number:03}")


def write_tokenizer(folder: Path, template: str) -> int:
    """Write a tokenizer of whole words; returns how many tokens it has.

    `template` is what it makes of one text: "[CLS] $A [SEP]" for an encoder.
    """
    tokenizers = needed("tokenizers", "a small tokenizer")
    library = needed("transformers", "a small tokenizer")
    tokens = {token: n for n, token in enumerate([*SPECIAL, *(word(n) for n in range(WORDS))])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single=template,
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokens["[CLS]"]), ("[SEP]", tokens["[SEP]"])],
    )
    named = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    named |= {"bos": "[CLS]", "eos": "[SEP]"}
    made = library.PreTrainedTokenizerFast(
        tokenizer_object=model,
        model_max_length=128,
        **{f"{role}_token": token for role, token in named.items()},
    )
    made.save_pretrained(folder)
    return len(tokens)


def draw_texts(task: str, classes: int, count: int, seed: int) -> list[tuple[str, int]]:
    """Texts with the numbers of their classes, classes in turn; the same for the same seed."""
    chosen = np.random.default_rng(derive_seed(0, task))
    lists = chosen.choice(WORDS, size=(classes, OWN), replace=False)
    drawn = np.random.default_rng(derive_seed(seed, task, "texts"))
    found = []
    for row in range(count):
        number = row % classes
        words = drawn.integers(WORDS, size=LENGTH)
        places = drawn.choice(LENGTH, size=TELLING, replace=False)
        words[places] = drawn.choice(lists[number], size=TELLING)
        found.append((" ".join(word(int(one)) for one in words), number))
    return found


def as_rows(
    texts: Sequence[tuple[str, int]], text: str, pair: str | None, labels: Sequence[Any]
) -> list[dict[str, Any]]:
    """Rows as a data file holds them; of a pair the second text is the first half again."""
    rows = []
    for content, number in texts:
        words = content.split()
        row: dict[str, Any] = {text: content, "label": labels[number]}
        if pair is not None:
            row |= {text: content, pair: " ".join(words[: LENGTH // 2])}
        rows.append(row)
    return rows
