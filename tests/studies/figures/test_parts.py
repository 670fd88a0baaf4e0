"""The parts of real models' layers, by their names."""

from __future__ import annotations

import pytest

from magmerge.studies.figures.captions import part_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.layer.0.attention.self.query.weight", "attention q"),
        ("encoder.layer.0.attention.self.key", "attention k"),
        ("encoder.layer.11.attention.self.value.bias", "attention v"),
        ("encoder.layer.0.attention.output.dense", "attention out"),
        ("encoder.layer.0.attention.output.LayerNorm.weight", "norm"),
        ("encoder.layer.0.intermediate.dense", "mlp"),
        ("encoder.layer.0.output.dense", "mlp"),
        ("encoder.layer.0.output.LayerNorm", "norm"),
        ("pooler.dense", "other"),
        ("embeddings.word_embeddings", "other"),
        ("model.layers.3.self_attn.q_proj", "attention q"),
        ("model.layers.3.self_attn.k_proj", "attention k"),
        ("model.layers.3.self_attn.v_proj", "attention v"),
        ("model.layers.3.self_attn.o_proj", "attention out"),
        ("model.layers.3.self_attn.qkv_proj", "attention q, k, v in one"),
        ("model.layers.3.mlp.gate_proj", "mlp"),
        ("model.layers.3.mlp.down_proj", "mlp"),
        ("model.layers.3.post_attention_layernorm", "norm"),
        ("model.norm.weight", "norm"),
        ("lm_head", "other"),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", "attention q, k, v in one"),
        ("visual.transformer.resblocks.0.attn.out_proj", "attention out"),
        ("visual.transformer.resblocks.0.mlp.c_fc", "mlp"),
        ("visual.transformer.resblocks.0.ln_1.weight", "norm"),
        ("visual.proj", "other"),
        ("vision_model.encoder.layers.0.layer_norm1", "norm"),
        ("transformer.h.0.attn.c_attn", "attention q, k, v in one"),
        ("transformer.h.0.attn.c_proj", "attention out"),
        ("transformer.h.0.mlp.c_proj", "mlp"),
        ("blocks.0.attn.qkv", "attention q, k, v in one"),
        ("blocks.0.attn.proj", "attention out"),
        ("blocks.0.norm1", "norm"),
        ("vit.encoder.layer.0.layernorm_before", "norm"),
        ("encoder.block.0.layer.0.SelfAttention.q", "attention q"),
        ("encoder.block.0.layer.0.SelfAttention.o", "attention out"),
        ("encoder.block.0.layer.1.DenseReluDense.wi", "mlp"),
        ("transformer.layer.0.attention.q_lin", "attention q"),
        ("transformer.layer.0.attention.out_lin", "attention out"),
        ("transformer.layer.0.ffn.lin1", "mlp"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "attention q"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0", "attention out"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2", "mlp"),
        ("down_blocks.0.attentions.0.proj_in", "other"),
        ("_blocks.0._bn1", "norm"),
        ("features.0.0", "other"),
        ("", "other"),
        ("..", "other"),
    ],
)
def test_part(name: str, part: str) -> None:
    assert part_of(name) == part
