"""timm's vision transformers with a norm before the blocks, which are CLIP's vision half."""

from __future__ import annotations

from magmerge.clip_names.family import BIAS, Entry, Family, both

TIMM = Family(
    name="timm_clip",
    fixed={
        "{vision}cls_token": Entry(("vision.class",), "token"),
        "{vision}patch_embed.proj.weight": Entry(("vision.patch",)),
        "{vision}pos_embed": Entry(("vision.positions",), "table"),
        **both("{vision}norm_pre", "vision.pre"),
        **both("{vision}norm", "vision.post"),
        "{vision}head.weight": Entry(("vision.projection",)),
        "{vision}head.bias": Entry((BIAS,)),
    },
    layers={"vision": "{vision}blocks."},
    inside={
        **both("norm1", "norm1"),
        "attn.qkv.weight": Entry(("q.weight", "k.weight", "v.weight")),
        "attn.qkv.bias": Entry(("q.bias", "k.bias", "v.bias")),
        **both("attn.proj", "out"),
        **both("norm2", "norm2"),
        **both("mlp.fc1", "fc1"),
        **both("mlp.fc2", "fc2"),
    },
    variants=(("", None),),
    # Other vision transformers have no norm before the blocks.
    anchors=("{vision}norm_pre.weight",),
)
