"""The text encoder of open_clip, of Stable Diffusion 2 and XL, as transformers' CLIP modules."""

from __future__ import annotations

import re

from magmerge.checkpoints.adapters.names.assembly import Assembly, Rows, whole
from magmerge.checkpoints.adapters.nouns import ModuleSpec

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_INSIDE = {
    "attn.out_proj.weight": "self_attn.out_proj",
    "mlp.c_fc.weight": "mlp.fc1",
    "mlp.c_proj.weight": "mlp.fc2",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def split(tensor: str, inner: str, spec: ModuleSpec, assembly: Assembly, prefix: str) -> bool:
    """Add to `assembly` what CLIP has for a tensor that is `inner` in its encoder; False if it has
    no such module. The new names begin with `prefix`.
    """
    match = _BLOCK.fullmatch(inner)
    if match is None:
        return False
    layer = f"{prefix}text_model.encoder.layers.{match[1]}."
    if match[2] in _INSIDE:
        assembly.add(f"{layer}{_INSIDE[match[2]]}", whole(tensor, spec))
    elif match[2] == "attn.in_proj_weight" and spec.shape[0] % 3 == 0:
        third = spec.shape[0] // 3
        for place, part in enumerate(_FUSED):
            assembly.add(f"{layer}{part}", (Rows(tensor, place * third, (place + 1) * third),))
    else:
        return False
    return True
