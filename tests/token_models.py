"""Tiny language models with tokenizers of their own, for the tests of vocabularies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magmerge.checkpoints.tokens.rows import GatheredRows, RowMap
from magmerge.core.models import Checkpoint

TEXT = "the cat sat on the mat and the dog ran off with a red hat in the sun"
EMBEDDING, HEAD, LAYER = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.w.weight"
WIDTH = 6


def tokenizer(folder: Path, added: Sequence[str] = (), vocabulary: int = 40) -> Any:
    """A byte-pair tokenizer with added tokens, saved into a folder."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    own = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    own.train_from_iterator([TEXT] * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if added:
        fast.add_special_tokens({"additional_special_tokens": list(added)})
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return fast


def model(
    folder: Path, rows: int, seed: int, *, config: dict[str, Any] | None = None, head: bool = True
) -> dict[str, Tensor]:
    """A model with so many rows of tokens, saved into a folder; its tensors."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {EMBEDDING: (rows, WIDTH), LAYER: (WIDTH, WIDTH)}
    shapes |= {HEAD: (rows, WIDTH)} if head else {}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    plain = {"model_type": "tiny", "vocab_size": rows, "hidden_size": WIDTH, "bos_token_id": 1}
    (folder / "config.json").write_text(json.dumps({**plain, **(config or {})}))
    return state


def result(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder."""
    return load_file(folder / "model.safetensors")


def config_of(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def loaded(folder: Path) -> Any:
    """The tokenizer of a folder as transformers loads it."""
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def gather_rows(checkpoint: Checkpoint, rows: Mapping[str, Sequence[int]]) -> GatheredRows:
    """`checkpoint` with the rows of some tensors gathered: row i of tensor t is its own row
    `rows[t][i]`, or is absent where that is ABSENT.
    """
    arrays = {name: np.asarray(order, dtype=np.int64) for name, order in rows.items()}
    return GatheredRows(checkpoint, {name: RowMap(order) for name, order in arrays.items()})
