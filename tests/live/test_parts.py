"""Fused layers: which rows are query, key and value in the layouts that are in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomModel,
    FalconConfig,
    FalconModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    Phi3Config,
    Phi3Model,
)

from magmerge.live.row_groups import row_groups
from tests.live.test_compound import TOKENS, family, records_of
from tests.live.test_exactness import merged_by

SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "config", "parts"),
    [
        ("h.0.attn.c_attn", 4, 12, {}, [0] * 4 + [1] * 4 + [2] * 4),
        ("h.0.crossattention.c_attn", 4, 8, {}, [0] * 4 + [1] * 4),
        ("blocks.0.attn.qkv", 4, 12, {}, [0] * 4 + [1] * 4 + [2] * 4),
        ("mlp.gate_up_proj", 3, 8, {}, [0] * 4 + [1] * 4),
        (
            "self_attn.qkv_proj", 8, 16,
            {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2},
            [0] * 8 + [1] * 4 + [2] * 4,
        ),
        (
            "attention.query_key_value", 4, 12,
            {"model_type": "gpt_neox", "num_attention_heads": 2, "hidden_size": 4},
            [0, 0, 1, 1, 2, 2] * 2,
        ),
        (
            "self_attention.query_key_value", 8, 12,
            {"model_type": "falcon", "num_attention_heads": 4, "hidden_size": 8},
            [0] * 8 + [1] * 2 + [2] * 2,
        ),
        (
            "self_attention.query_key_value", 8, 16,
            {"model_type": "falcon", "num_attention_heads": 4, "hidden_size": 8,
             "new_decoder_architecture": True, "num_kv_heads": 2},
            ([0] * 4 + [1] * 2 + [2] * 2) * 2,
        ),
    ],
)  # fmt: skip
def test_rows_of_known_layouts(
    name: str, inputs: int, outputs: int, config: dict[str, Any], parts: list[int]
) -> None:
    found = row_groups(name, inputs, outputs, config)
    assert found is not None
    assert found.tolist() == parts


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [("mlp.c_fc", 4, 12), ("attn.qkv", 4, 10), ("attn.query_key_value", 4, 12), ("fc", 4, 8)],
)
def test_what_is_not_known_is_one_part(name: str, inputs: int, outputs: int) -> None:
    assert row_groups(name, inputs, outputs, {}) is None


@pytest.mark.parametrize(
    ("make", "path", "parts"),
    [
        (
            lambda: GPTNeoXModel(GPTNeoXConfig(**SMALL, intermediate_size=16)),
            "layers.0.attention.query_key_value", 3,
        ),
        (lambda: BloomModel(BloomConfig(**SMALL)), "h.0.self_attention.query_key_value", 3),
        (lambda: FalconModel(FalconConfig(**SMALL)), "h.0.self_attention.query_key_value", 3),
        (
            lambda: Phi3Model(Phi3Config(**SMALL, num_key_value_heads=2, intermediate_size=16,
                                         pad_token_id=0)),
            "layers.0.self_attn.qkv_proj", 3,
        ),
        (
            lambda: Phi3Model(Phi3Config(**SMALL, num_key_value_heads=2, intermediate_size=16,
                                         pad_token_id=0)),
            "layers.0.mlp.gate_up_proj", 2,
        ),
    ],
)  # fmt: skip
def test_real_models_get_a_factor_for_each_part(
    tmp_path: Path, make: Any, path: str, parts: int
) -> None:
    torch.manual_seed(0)
    base = make().eval()
    base.save_pretrained(tmp_path / "base")
    experts = family(base)
    for name, expert in experts.items():
        expert.save_pretrained(tmp_path / name)
    result = merged_by(
        tmp_path / "base",
        {name: tmp_path / name for name in experts},
        data={name: [TOKENS] for name in experts},
    )
    stored = next(name for name in records_of(result) if name.endswith(f"{path}.weight"))
    plain = merged_by(
        tmp_path / "base",
        {name: tmp_path / name for name in experts},
        calibrate=None,
        gate="on",
    ).state_dict()[stored]
    origin = base.state_dict()[f"{path}.weight"]
    factors = (result.state_dict()[stored] - origin).norm(dim=1) / (plain - origin).norm(dim=1)
    assert len({round(float(factor), 4) for factor in factors}) == parts
    assert not result.uncovered
