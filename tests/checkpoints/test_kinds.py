from __future__ import annotations

import pytest
import torch

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.kinds import kinds_of


@pytest.mark.parametrize(
    ("name", "shape", "config", "kind"),
    [
        ("model.layers.3.mlp.down_proj.weight", (4, 6), {}, "matrix"),
        ("in_proj_weight", (6, 2), {}, "matrix"),
        ("model.embed_tokens.weight", (9, 2), {}, "embedding"),
        ("bert.embeddings.word_embeddings.weight", (9, 2), {}, "embedding"),
        ("transformer.wte.weight", (9, 2), {}, "embedding"),
        ("shared.weight", (9, 2), {}, "embedding"),
        ("visual.positional_embedding", (9, 2), {}, "embedding"),
        ("pos_embed", (1, 9, 2), {}, "embedding"),
        ("odd_name.weight", (32000, 2), {"vocab_size": 32000, "hidden_size": 2}, "embedding"),
        ("odd_name.weight", (8, 2), {"vocab_size": 8, "hidden_size": 8}, "matrix"),
        ("lm_head.weight", (9, 2), {}, "head"),
        ("classifier.weight", (9, 2), {}, "head"),
        ("classifier.1.weight", (9, 2), {}, "head"),
        ("cls.predictions.transform.dense.weight", (2, 2), {}, "head"),
        ("fc.weight", (9, 2), {}, "head"),
        ("layers.0.fc.weight", (9, 2), {}, "matrix"),
        ("h.0.attn.c_attn.weight", (2, 6), {"model_type": "gpt2"}, "transposed"),
        ("h.0.attn.c_attn.weight", (2, 6), {}, "matrix"),
        ("conv1.weight", (4, 3, 3, 3), {}, "convolution"),
        ("patch_embed.proj.weight", (4, 3, 3, 3), {}, "convolution"),
        ("layers.0.conv.weight", (4, 3, 3), {}, "convolution"),
        ("layers.0.mlp.experts.down_proj", (4, 3, 3), {}, "experts"),
        ("layers.0.norm.weight", (4,), {}, "vector"),
        ("logit_scale", (), {}, "scalar"),
    ],
)
def test_kinds_follow_names_shapes_and_configuration(
    name: str, shape: tuple[int, ...], config: dict, kind: str
) -> None:
    assert kinds_of(open_checkpoint({name: torch.zeros(shape)}), config)[name] == kind


def test_running_statistics_come_in_pairs_of_one_shape() -> None:
    pair = {"bn.running_mean": torch.zeros(3), "bn.running_var": torch.zeros(3)}
    assert set(kinds_of(open_checkpoint(pair), {}).values()) == {"statistics"}
    alone = {"bn.running_mean": torch.zeros(3), "n": torch.tensor(1)}
    assert kinds_of(open_checkpoint(alone), {}) == {"bn.running_mean": "vector", "n": "buffer"}


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("image_encoder.pos_embed", (1, 8, 8, 4), "embedding"),
        ("class_token", (1, 1, 4), "other"),
        ("query_tokens", (1, 4, 4), "other"),
        ("logit_scale", (4, 1, 1), "other"),
        ("time_embed.0.weight", (4, 4), "matrix"),
        ("embeddings_project.weight", (4, 4), "matrix"),
        ("attn.relative_position_bias_table", (9, 4), "other"),
        ("embed_out.weight", (9, 4), "head"),
    ],
)
def test_what_only_looks_like_a_layer_is_left_alone(
    name: str, shape: tuple[int, ...], kind: str
) -> None:
    assert kinds_of(open_checkpoint({name: torch.zeros(shape)}), {})[name] == kind


def test_transposed_convolutions_have_their_outputs_second() -> None:
    model = torch.nn.ModuleDict(
        {
            "one": torch.nn.ConvTranspose2d(4, 2, 3),
            "two": torch.nn.ConvTranspose1d(4, 4, 3, groups=2),
        }
    )
    kinds = kinds_of(open_checkpoint(model), {})
    assert (kinds["one.weight"], kinds["two.weight"]) == ("transposed", "other")
