"""Tensors find their parameters, whatever wraps or renames them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTModel,
)

from magmerge.live.module_weights import stored_names
from tests.live.test_compound import family, records_of
from tests.live.test_exactness import merged_by

VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def clip() -> CLIPModel:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20,
            "intermediate_size": 8, "max_position_embeddings": 8}  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VIT, projection_dim=4))


@pytest.mark.parametrize("make", [lambda: ViTModel(ViTConfig(**VIT)), clip])
def test_what_transformers_saves_is_what_its_model_takes(tmp_path: Path, make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = stored_names(model, list(stored))
    assert {name for name, _ in model.named_parameters()} <= set(names)
    for name, tensor in model.state_dict().items():
        if name in names:
            assert torch.equal(tensor, stored[names[name]]), name


def test_a_saved_vision_transformer_is_calibrated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = ViTModel(ViTConfig(**VIT)).eval()
    base.save_pretrained(tmp_path / "base")
    experts = family(base)
    for name, expert in experts.items():
        expert.save_pretrained(tmp_path / name)
    images = torch.randn(3, 3, 16, 16)
    result = merged_by(
        tmp_path / "base",
        {name: tmp_path / name for name in experts},
        data={name: [{"pixel_values": images}] for name in experts},
    )
    assert not result.uncovered
    assert "embeddings.cls_token" in records_of(result)


def test_a_classifier_takes_the_tensors_of_a_bare_encoder_and_the_other_way_round() -> None:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        vocab_size=20,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    inner = {name.removeprefix("bert.") for name in model.state_dict()}
    names = stored_names(model, inner)
    assert (
        names["bert.encoder.layer.0.output.dense.weight"] == "encoder.layer.0.output.dense.weight"
    )
    back = stored_names(model.bert, set(model.state_dict()))
    assert back["encoder.layer.0.output.dense.weight"] == "bert.encoder.layer.0.output.dense.weight"


def test_modules_of_ones_own_keep_their_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert stored_names(copy.deepcopy(model), {"0.weight"}) == {"0.weight": "0.weight"}
