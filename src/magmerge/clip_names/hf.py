"""Hugging Face's CLIPModel, its vision and text models, with and without their projections."""

from __future__ import annotations

from magmerge.clip_names.family import Entry, Family, both

HF = Family(
    name="hf_clip",
    fixed={
        "logit_scale": Entry(("scale",)),
        "{vision}embeddings.class_embedding": Entry(("vision.class",)),
        "{vision}embeddings.patch_embedding.weight": Entry(("vision.patch",)),
        "{vision}embeddings.position_embedding.weight": Entry(("vision.positions",)),
        "{vision}embeddings.position_ids": Entry(("vision.position_ids",)),
        # The name has been misspelt since the first release.
        **both("{vision}pre_layrnorm", "vision.pre"),
        **both("{vision}post_layernorm", "vision.post"),
        "visual_projection.weight": Entry(("vision.projection",)),
        "{text}embeddings.token_embedding.weight": Entry(("text.tokens",)),
        "{text}embeddings.position_embedding.weight": Entry(("text.positions",)),
        "{text}embeddings.position_ids": Entry(("text.position_ids",)),
        **both("{text}final_layer_norm", "text.post"),
        "text_projection.weight": Entry(("text.projection",)),
    },
    layers={"vision": "{vision}encoder.layers.", "text": "{text}encoder.layers."},
    inside={
        **both("layer_norm1", "norm1"),
        **both("self_attn.q_proj", "q"),
        **both("self_attn.k_proj", "k"),
        **both("self_attn.v_proj", "v"),
        **both("self_attn.out_proj", "out"),
        **both("layer_norm2", "norm2"),
        **both("mlp.fc1", "fc1"),
        **both("mlp.fc2", "fc2"),
    },
    # transformers 5 stores its lone vision and text models without a prefix.
    variants=(("vision_model.", "text_model."), ("", None), (None, "")),
    anchors=("{vision}embeddings.class_embedding", "{text}embeddings.token_embedding.weight"),
)
