"""Tiny model folders with a tokenizer."""

from __future__ import annotations

from pathlib import Path

WORDS = [*"abcdefgh", "yes", "no", "good", "bad", "very", "text", "one", "two", "three"]


def save_tokenizer(folder: Path, *, causal: bool = False, limit: int | None = None) -> Path:
    """A tokenizer of whole words: BERT's marks, or for causal models `<s>` and no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<unk>", "<s>", "</s>"] if causal else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    numbers = {word: i for i, word in enumerate([*marks, *WORDS])}
    made = Tokenizer(models.WordLevel(numbers, unk_token=marks[0] if causal else "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if causal:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    else:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
        named["sep_token"] = "[SEP]"
    more = {} if limit is None else {"model_max_length": limit}
    PreTrainedTokenizerFast(tokenizer_object=made, **named, **more).save_pretrained(folder)
    return folder
