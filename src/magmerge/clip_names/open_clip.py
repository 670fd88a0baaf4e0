"""open_clip, whose names are OpenAI's own: q, k and v in one tensor, projections [in, out]."""

from __future__ import annotations

from magmerge.clip_names.family import Entry, Family, both

OPEN_CLIP = Family(
    name="open_clip",
    fixed={
        "logit_scale": Entry(("scale",)),
        "{vision}class_embedding": Entry(("vision.class",)),
        "{vision}conv1.weight": Entry(("vision.patch",)),
        "{vision}positional_embedding": Entry(("vision.positions",)),
        **both("{vision}ln_pre", "vision.pre"),
        **both("{vision}ln_post", "vision.post"),
        "{vision}proj": Entry(("vision.projection",), "turned"),
        "{text}token_embedding.weight": Entry(("text.tokens",)),
        "{text}positional_embedding": Entry(("text.positions",)),
        **both("{text}ln_final", "text.post"),
        "{text}text_projection": Entry(("text.projection",), "turned"),
        "{text}attn_mask": Entry(("text.mask",)),
        "input_resolution": Entry(("resolution",)),
        "context_length": Entry(("context",)),
        "vocab_size": Entry(("vocabulary",)),
    },
    layers={
        "vision": "{vision}transformer.resblocks.",
        "text": "{text}transformer.resblocks.",
    },
    inside={
        **both("ln_1", "norm1"),
        "attn.in_proj_weight": Entry(("q.weight", "k.weight", "v.weight")),
        "attn.in_proj_bias": Entry(("q.bias", "k.bias", "v.bias")),
        **both("attn.out_proj", "out"),
        **both("ln_2", "norm2"),
        **both("mlp.c_fc", "fc1"),
        **both("mlp.c_proj", "fc2"),
    },
    # Its CustomTextCLIP has the text half under text; a vision tower may be alone.
    variants=(("visual.", ""), ("visual.", "text."), ("", None)),
    anchors=("{vision}class_embedding", "{text}token_embedding.weight"),
)
