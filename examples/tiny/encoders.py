"""Small random text encoders and causal language models, and models tuned from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from examples.tiny.words import write_tokenizer

from magmerge.live.modules import quiet_transformers

WIDTH = 64
LAYERS = 2
HEADS = 4
STEPS = 100
BATCH = 32
RATE = 2e-3
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS}
SHAPE |= {"num_attention_heads": HEADS, "max_position_embeddings": 160, "pad_token_id": 0}
# BERT was published with its pooler, RoBERTa without.
KINDS = {"bert": "BertForPreTraining", "roberta": "RobertaForMaskedLM", "llama": "LlamaForCausalLM"}
TEMPLATES = {"llama": "[CLS] $A"}
OPTIONS = {"llama": {"tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 3}}


def write_language_model(folder: Path, family: str, seed: int) -> None:
    """Write a random language model of `family`, bert, roberta or llama, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(folder, TEMPLATES.get(family, "[CLS] $A [SEP]"))
    with quiet_transformers() as library, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = getattr(library, KINDS[family])
        model = kind(kind.config_class(vocab_size=words, **SHAPE, **OPTIONS.get(family, {})))
        model.save_pretrained(folder)


def tune_classifier(
    base: Path, out: Path, rows: Sequence[tuple[Any, float]], classes: Sequence[str] | None
) -> None:
    """Tune a classifier of these classes, or of one number, for a moment, and write it.

    `rows` are inputs of the tokenizer (a text, or a pair of texts) with their labels.
    """
    options: dict[str, Any] = {"num_labels": len(classes or [""])}
    if classes is not None:
        options["id2label"] = dict(enumerate(classes))
    labels = torch.tensor([label for _, label in rows])
    labels = labels.float() if classes is None else labels.long()
    _tune(
        "AutoModelForSequenceClassification", base, out, [one for one, _ in rows], labels, options
    )


def tune_language_model(base: Path, out: Path, texts: Sequence[str]) -> None:
    """Tune a causal language model on texts for a moment, and write it."""
    _tune("AutoModelForCausalLM", base, out, texts, None, {})


def _tune(
    kind: str,
    base: Path,
    out: Path,
    texts: Sequence[Any],
    labels: torch.Tensor | None,
    options: dict[str, Any],
) -> None:
    with quiet_transformers() as library, torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(texts))
        tokenizer = library.AutoTokenizer.from_pretrained(base, local_files_only=True)
        model = getattr(library, kind).from_pretrained(base, local_files_only=True, **options)
        inputs = dict(tokenizer(list(texts), padding=True, return_tensors="pt"))
        inputs.pop("token_type_ids", None)
        _steps(model, inputs, inputs["input_ids"] if labels is None else labels)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def _steps(model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model.train()
    for _ in range(STEPS):
        rows = torch.randint(len(labels), (BATCH,))
        loss = model(**{name: one[rows] for name, one in inputs.items()}, labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
